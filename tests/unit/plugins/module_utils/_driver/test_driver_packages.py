# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import itertools
import pathlib
import re
import shutil
import subprocess

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import apt, driver_packages

ROOT = pathlib.Path(__file__).resolve().parents[5]
FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "apt"
TABLE = yaml.safe_load((ROOT / "roles/nvidia_driver/vars/main/systems.yml").read_text(encoding="utf-8"))[
    "__nvidia_driver_table"
]
KERNEL = "6.8.0-90-generic"


def info(packages=None, **changes):
    entry = {"version": "1", "source": "", "arch": "amd64", "held": False, "whole": True}
    given = {name: {**entry, **value} for name, value in (packages or {}).items()}
    return {
        "packages": given, "kernel_running": KERNEL, "kernel_next": KERNEL,
        "kernel_next_why": "it is the newest in /boot",
        "modules": {KERNEL: None}, "dkms": [], "loaded_version": "", "secure_boot": False, "mok": {},
        "cuinit": {"result": 0, "detail": ""}, **changes,
    }  # fmt: skip


def request(**changes):
    return {
        "system": "Ubuntu 24.04", "source": "distribution", "branch": "580", "version": "", "open_modules": True,
        "signed_modules": False, "recorded": [], **changes,
    }  # fmt: skip


def plan(found, **changes):
    return driver_packages.plan(found, request(**changes), TABLE)


def policies(name):
    return apt.parse_policy((FIXTURES / f"{name}.txt").read_text(encoding="utf-8"))


def choose(found, answers, **changes):
    planned = plan(found, **changes)
    assert planned["error"] == ""
    return driver_packages.choose(planned, answers, found, request(**changes))


# --- versions and kernels ---

VERSIONS = [
    "1", "1.0", "1.10", "1.9", "1:0.5", "1.0~rc1", "1.0-1", "1.0-1~bpo13+1", "1.0-1ubuntu1", "1.0+dfsg", "1.0a",
    "6.8.0-90-generic",
    "6.12.118+deb13-amd64", "6.12.97", "7.0", "580.95.05-0ubuntu0.24.04.1", "580.126.16", "580.105.08-0ubuntu1",
    "550.163.01-4~bpo13+1",
]  # fmt: skip


@pytest.mark.skipif(shutil.which("dpkg") is None, reason="needs dpkg to compare with")
@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(VERSIONS, 2)))
def test_versions_are_ordered_as_dpkg_orders_them(one, other):
    less = subprocess.run(["dpkg", "--compare-versions", one, "lt", other], check=False).returncode == 0
    assert (driver_packages.version_key(one) < driver_packages.version_key(other)) is less


@pytest.mark.parametrize(
    ("default", "environment", "expected"),
    [
        ("", "", "6.12.118+deb13-amd64"),
        ("0", "# GRUB Environment Block\n", "6.12.118+deb13-amd64"),
        ("saved", "saved_entry=gnulinux-advanced-1>gnulinux-6.8.0-90-generic-advanced-1\n", "6.8.0-90-generic"),
        ("0", "saved_entry=gnulinux-6.8.0-90-generic-advanced-1\n", "6.12.118+deb13-amd64"),
        ("0", "next_entry=gnulinux-6.8.0-9-generic-advanced-1\n", "6.8.0-9-generic"),
        ("gnulinux-advanced-1>gnulinux-6.8.0-9-generic-advanced-1", "", "6.8.0-9-generic"),
        ("gnulinux-5.15.0-1-generic", "", "6.12.118+deb13-amd64"),
    ],
)
def test_which_kernel_boots_next(default, environment, expected):
    kernels = ["6.8.0-9-generic", "6.8.0-90-generic", "6.12.118+deb13-amd64"]
    assert driver_packages.next_kernel(kernels, "6.1.0", default, environment)[0] == expected


def test_without_a_kernel_in_boot_the_running_one_counts():
    assert driver_packages.next_kernel([], "6.1.0")[0] == "6.1.0"


# --- what dpkg and apt say ---


def test_held_half_installed_and_removed_packages_are_told_apart():
    lines = [
        "install\tinstalled\tlibnvidia-compute-580\tamd64\t580.95.05-1\tnvidia-graphics-drivers-580",
        "install\tinstalled\tlibnvidia-compute-580\ti386\t580.95.05-1\tnvidia-graphics-drivers-580",
        "hold\tinstalled\tlibcuda1\tamd64\t550.163.01-2\tnvidia-graphics-drivers",
        "install\thalf-configured\tnvidia-kernel-dkms\tamd64\t550.163.01-2\tnvidia-graphics-drivers",
        "deinstall\tconfig-files\tnvidia-dkms-570\tamd64\t570.1-1\tnvidia-graphics-drivers-570",
        "install\tinstalled\tlinux-image-generic-hwe-24.04\tamd64\t7.0.0.1\tlinux-meta-hwe-7.0",
        "install\tinstalled\tnvidia-cuda-toolkit\tamd64\t12.4.131~12.4.1-2\tnvidia-cuda-toolkit",
        "install\tinstalled\tlibnvidia-container1\tamd64\t1.18.0-1\tlibnvidia-container",
        "install\tinstalled\tcoreutils\tamd64\t9.4\tcoreutils",
    ]
    found = driver_packages.parse_dpkg("\n".join(lines))
    assert {name: (entry["held"], entry["whole"]) for name, entry in found.items()} == {
        "libcuda1": (True, True),
        "libnvidia-compute-580": (False, True),
        "linux-image-generic-hwe-24.04": (False, True),
        "nvidia-kernel-dkms": (False, False),
    }


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("linux-image-generic", True), ("linux-headers-generic-hwe-24.04", True), ("linux-generic", True),
        ("linux-image-amd64", True), ("linux-headers-amd64", True), ("linux-image-6.8.0-90-generic", False),
        ("linux-headers-6.12.118+deb13-amd64", False), ("linux-base", False), ("linux-libc-dev", False),
    ],
)  # fmt: skip
def test_kernel_metapackages(name, expected):
    assert driver_packages.is_kernel_metapackage(name) is expected


# --- decisions ---


def test_ubuntu_gets_the_compute_packages_of_the_branch_in_one_version():
    choice = choose(info(), policies("ubuntu2404-580-server-open"))
    version = "580.126.20-0ubuntu0.24.04.1"
    assert choice["error"] == ""
    assert choice["install"] == {
        "linux-headers-6.8.0-90-generic": "6.8.0-90.91", "nvidia-headless-580-server-open": version,
        "nvidia-utils-580-server": version, "nvidia-compute-utils-580-server": version,
    }  # fmt: skip
    assert choice["remove"] == []


def test_later_kernels_get_headers_where_their_images_come_by_themselves():
    planned = plan(info({"linux-image-generic": {}}))
    assert planned["headers"] == ["linux-headers-6.8.0-90-generic", "linux-headers-generic"]


def test_signed_modules_need_no_headers_and_are_of_the_next_kernel():
    planned = plan(info(), signed_modules=True)
    assert planned["headers"] == []
    assert f"linux-modules-nvidia-580-server-open-{KERNEL}" in planned["packages"]


def test_signed_modules_are_refused_where_nobody_signs():
    assert "nvidia_driver_signed_modules to false" in plan(info(), source="nvidia", signed_modules=True)["error"]


def test_nvidias_repository_has_other_names_from_590_on():
    assert plan(info(), source="nvidia", branch="580")["main"] == "nvidia-dkms-580-open"
    assert plan(info(), source="nvidia", branch="595")["packages"] == [
        "nvidia-dkms-open",
        "libnvidia-compute",
        "nvidia-persistenced",
    ]
    assert plan(info(), source="nvidia", branch="595", open_modules=False)["main"] == "nvidia-dkms"


def test_a_branch_without_a_name_of_its_own_is_chosen_by_version():
    found = info({f"linux-headers-{KERNEL}": {}})
    choice = choose(found, policies("ubuntu2404-nvidia-repository"), source="nvidia", branch="595")
    assert choice["version"] == "595.71.05-1ubuntu1"
    assert choice["install"]["libnvidia-compute"] == "595.71.05-1ubuntu1"
    exact = choose(found, policies("ubuntu2404-nvidia-repository"), source="nvidia", branch="595", version="595.45.04")
    assert exact["version"] == exact["install"]["libnvidia-compute"] == "595.45.04-1ubuntu1"
    # the daemon's own newest, where it has no such version
    assert exact["install"]["nvidia-persistenced"] == "615.71.09-1ubuntu1"


@pytest.mark.parametrize("branch", sorted(branch for branch, life in TABLE["branches"].items() if life))
@pytest.mark.parametrize("system", ["Ubuntu 24.04", "Debian 12"])
def test_a_branch_at_its_end_is_refused_and_another_is_named(branch, system):
    error = plan(info(), branch=branch, system=system)["error"]
    assert re.match(rf"Driver branch {branch} is end of life .*: set nvidia_driver_branch to \"580\"", error)
    if system == "Debian 12":
        assert "nvidia_driver_source to nvidia" in error


def test_debian_maintains_what_nvidia_ended():
    planned = plan(info(), system="Debian 13", branch="550")
    assert planned["error"] == ""
    assert "Debian 13 still maintains it" in planned["note"]
    assert planned["packages"][0] == "nvidia-open-kernel-dkms"
    assert (planned["module"], plan(info(), system="Debian 13", branch="550", open_modules=False)["module"]) == (
        "nvidia-current-open", "nvidia-current",
    )  # fmt: skip


def test_debian_13_sends_who_wants_580_elsewhere():
    error = plan(info(), system="Debian 13")["error"]
    assert "Debian 13 has driver branch 550 from the source distribution, not 580" in error
    assert '"595") and nvidia_driver_source to nvidia' in error
    assert "begins with branch 590" in plan(info(), system="Debian 13", source="nvidia")["error"]


def test_what_is_no_branch_no_version_or_no_system():
    assert "three digits" in plan(info(), branch="580-open")["error"]
    assert 'nvidia_driver_branch to "570"' in plan(info(), version="570.86.15")["error"]
    assert "Ubuntu 24.04 or Debian 13 or Debian 12" in plan(info(), system="Fedora 43")["error"]


def test_a_transitional_package_is_refused_with_what_it_has_become():
    answers = policies("ubuntu2404-transitional") | {
        name: {"installed": "", "candidate": "1", "versions": ["1"]}
        for name in (f"linux-headers-{KERNEL}", "nvidia-utils-595-server", "nvidia-compute-utils-595-server")
    }
    assert 'set nvidia_driver_branch to "610"' in choose(info(), answers, branch="595")["error"]
    # asked for by its exact version, the real package of before is what is wanted
    assert choose(info(), answers, branch="595", version="595.71.05")["version"] == "595.71.05-0ubuntu0.24.04.1"


def test_packages_that_no_source_has():
    answers = policies("ubuntu2404-580-server-open")
    for name in list(answers):
        gone = {**answers, name: {"installed": "", "candidate": "", "versions": []}}
        error = choose(info(), gone)["error"]
        assert name in error
        assert ("reboot into it" in error) is name.startswith("linux-headers-")
    error = choose(info(), answers, version="580.95.05")["error"]
    assert "580.95.05" in error and "580.126.20-0ubuntu0.24.04.1" in error


@pytest.mark.parametrize(
    ("version", "kernel", "open_modules", "words"),
    [
        ("550.163.01-2", "6.12.118+deb13-amd64", True, "nvidia_driver_open_modules to false"),
        ("550.163.01-2", "6.12.118+deb13-amd64", False, ""),
        ("550.163.01-2", "6.12.48+deb13-amd64", True, ""),
        ("580.126.16-0ubuntu1", "7.0.0-12-generic", True, "6 series"),
        ("580.142-0ubuntu1", "7.0.0-12-generic", True, ""),
        ("580.142-0ubuntu1", "7.1.0-1-generic", False, "580.159.04"),
        ("580.159.04-0ubuntu1", "7.1.0-1-generic", True, ""),
        ("580.95.05-0ubuntu1", "6.8.0-90-generic", True, ""),
    ],
)
def test_what_is_known_not_to_compile(version, kernel, open_modules, words):
    found = driver_packages.known_bad(version, kernel, open_modules)
    assert (words in found and kernel in found) if words else found == ""


def test_a_known_bad_build_is_refused_before_it_is_tried():
    found = info(kernel_next="7.1.0-1-generic", modules={})
    answers = {
        name: {"installed": "", "candidate": "580.142-1", "versions": ["580.142-1"]} for name in plan(found)["missing"]
    }
    assert "does not compile for kernel 7.1.0-1-generic" in choose(found, answers)["error"]


def test_an_installed_driver_of_the_branch_needs_nothing():
    names = ("nvidia-headless-580-server-open", "nvidia-utils-580-server", "nvidia-compute-utils-580-server")
    there = {name: {"version": "580.95.05-0ubuntu0.24.04.1"} for name in names} | {f"linux-headers-{KERNEL}": {}}
    assert plan(info(there))["missing"] == []
    assert plan(info(there), version="580.95.05")["missing"] == []
    assert plan(info(there), version="580.95.05-0ubuntu0.24.04.1")["missing"] == []
    assert len(plan(info(there), version="580.105.08")["missing"]) == 4
    there["nvidia-utils-580-server"]["whole"] = False
    assert plan(info(there))["missing"] == ["nvidia-utils-580-server"]


def test_somebody_elses_driver():
    desktop = {"nvidia-dkms-580-open": {"version": "580.95.05-0ubuntu1"}}
    assert "it is left as it is" in plan(info(desktop))["foreign"]
    # the same packages, made by this role with other flags before
    assert plan(info(desktop), recorded=["nvidia-dkms-580-open"])["foreign"] == ""
    assert "it is left as it is" in plan(info(loaded_version="580.65.06"))["foreign"]
    older = {"nvidia-dkms-570": {"version": "570.1-0ubuntu1"}}
    planned = plan(info(older))
    assert (planned["error"], planned["foreign"]) == ("", "")
    older["nvidia-dkms-570"]["held"] = True
    assert "apt-mark unhold nvidia-dkms-570" in plan(info(older))["error"]


def test_another_drivers_module_goes_in_the_same_step():
    found = info(
        {"nvidia-dkms-570": {"version": "570.1-0ubuntu1"}, "libnvidia-compute-570": {"version": "570.1-0ubuntu1"}}
    )
    assert choose(found, policies("ubuntu2404-580-server-open"))["remove"] == ["nvidia-dkms-570"]
    mine = info({"nvidia-dkms-580-server-open": {"version": "580.95.05-1"}})
    changes = {"recorded": ["nvidia-dkms-580-server-open"]}
    assert choose(mine, policies("ubuntu2404-580-server-open"), **changes)["remove"] == []


# --- settings ---


def test_holds_follow_the_wishes():
    packages = info({
        "libnvidia-compute-580": {"held": True}, "nvidia-dkms-580-open": {}, "linux-image-generic": {}, "dkms": {},
        f"linux-headers-{KERNEL}": {},
    })["packages"]  # fmt: skip
    both = driver_packages.holds(packages, True, True)
    assert both == {
        "hold": ["nvidia-dkms-580-open", "linux-image-generic"], "unhold": [],
        "held": ["libnvidia-compute-580", "linux-image-generic", "nvidia-dkms-580-open"],
    }  # fmt: skip
    assert driver_packages.holds(packages, True, False)["hold"] == ["nvidia-dkms-580-open"]
    assert driver_packages.holds(packages, False, True) == {
        "hold": [],
        "unhold": ["libnvidia-compute-580"],
        "held": [],
    }


def test_persistence_of_ubuntu_and_of_debian():
    ubuntu = {
        "load_state": "loaded", "static": True,
        "exec_start": "/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose",
    }  # fmt: skip
    needed = driver_packages.persistence(ubuntu)
    assert needed["wants"]
    assert (
        "ExecStart=\nExecStart=/usr/bin/nvidia-persistenced --persistence-mode --user nvidia-persistenced --verbose\n"
    ) in needed["dropin"]
    debian = {"load_state": "loaded", "static": False, "exec_start": "/usr/bin/nvidia-persistenced --user nvpd"}
    assert driver_packages.persistence(debian) == {"dropin": "", "wants": False}
    assert driver_packages.persistence({**debian, "load_state": "not-found"}) == {"dropin": "", "wants": False}


MODULE = {KERNEL: {"version": "580.95.05", "signer": ""}}


@pytest.mark.parametrize(
    ("changes", "ok", "words"),
    [
        ({"secure_boot": None}, True, "does not say"),
        ({"secure_boot": False}, True, "off"),
        ({"secure_boot": True, "modules": MODULE}, False, "not signed"),
        (
            {"secure_boot": True, "modules": {KERNEL: {"version": "1", "signer": "host Secure Boot key"}},
             "mok": {"/var/lib/shim-signed/mok/MOK.der": "not enrolled"}},
            False, "mokutil --import /var/lib/shim-signed/mok/MOK.der",
        ),
        (
            {"secure_boot": True, "modules": {KERNEL: {"version": "1", "signer": "DKMS module signing key"}},
             "mok": {"/var/lib/dkms/mok.pub": "enrolled"}},
            True, "is enrolled",
        ),
        ({"secure_boot": True, "modules": {KERNEL: {"version": "1", "signer": "Canonical Ltd."}}}, True, "Canonical"),
    ],
)  # fmt: skip
def test_secure_boot_is_never_silent(changes, ok, words):
    found = driver_packages.secure_boot(info(**changes))
    assert found["ok"] is ok
    assert words in found["detail"] + found["cure"]
    assert bool(found["cure"]) is not ok


def test_the_module_of_the_next_kernel_is_what_counts():
    assert driver_packages.built_problem(info(modules=MODULE), "580.95.05-0ubuntu1") == ""
    assert "remove the module that is left over" in driver_packages.built_problem(info(modules=MODULE), "580.105.08-1")
    missing = driver_packages.built_problem(info(dkms=[f"nvidia/580.95.05, {KERNEL}, x86_64: built"]), "580.95.05-1")
    assert "make.log" in missing and "x86_64: built" in missing
    assert "dkms knows nothing of it" in driver_packages.built_problem(info(), "580.95.05-1")


# --- verdict ---

CARDS = [
    {"uuid": "GPU-1111", "name": "NVIDIA GeForce RTX 4090"},
    {"uuid": "GPU-2222", "name": "NVIDIA GeForce RTX 3090"},
]
PCI = ("0000:01:00.0", "0000:02:00.0")


def problems(expected=(), pci=PCI, gpus=None, **changes):
    facts = {"available": True, "reason": None, "driver_version": "580.95.05", "gpus": CARDS, **(gpus or {})}
    return driver_packages.problems(info(**{"loaded_version": "580.95.05", **changes}), facts, list(expected), pci)


def test_all_is_well():
    assert problems() == []
    assert problems(["GPU-2222", "RTX 4090"]) == []
    # the name must not take the card that the UUID means
    assert problems(["RTX", "GPU-1111"]) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loaded_version": ""}, "not loaded: reboot"),
        ({"gpus": {"available": False, "reason": "No driver: install one."}}, "No driver: install one."),
        ({"gpus": {"driver_version": "580.105.08"}}, "half-done upgrade"),
        ({"pci": [*PCI, "0000:03:00.0"]}, "3 NVIDIA card(s) and NVML sees 2"),
        ({"expected": ["GPU-3333", "RTX 3090"]}, "wants GPU-3333"),
        ({"expected": ["RTX 3090", "RTX 3090"]}, "wants RTX 3090"),
        ({"expected": ["RTX 3090"]}, "add GPU-1111"),
        ({"cuinit": {"result": 3, "detail": ""}}, "nvidia_driver_uvm_disable_hmm"),
        ({"cuinit": {"result": 999, "detail": ""}}, "cuInit answers 999"),
        ({"cuinit": {"result": 77, "detail": ""}}, "cuInit answers 77"),
        ({"cuinit": {"result": None, "detail": "libcuda.so.1: cannot open shared object file"}}, "libcuda.so.1"),
    ],
)
def test_every_problem_is_a_sentence_with_its_cure(arguments, words):
    (sentence,) = problems(**arguments)
    assert words in sentence
    assert sentence.endswith(".")
