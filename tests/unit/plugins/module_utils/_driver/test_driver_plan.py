# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_plan, driver_systems

KERNEL = "6.8.0-90-generic"


def request(**changes):
    wish = {"source": "distribution", "branch": "580", "version": "", "open_modules": True, "signed_modules": False}
    return {**wish, **changes}


def plan(found, recorded=(), **changes):
    return driver_plan.plan(found, request(**changes), recorded)


def refusal(found, recorded=(), **changes):
    """Why the plan is refused."""
    with pytest.raises(UserError) as caught:
        plan(found, recorded, **changes)
    return str(caught.value)


def choose(found, answers, recorded=(), **changes):
    return driver_plan.choose(plan(found, recorded, **changes), {**found, "policies": answers}, request(**changes))


def no_choice(found, answers, **changes):
    """Why no version is chosen."""
    planned = plan(found, **changes)
    with pytest.raises(UserError) as caught:
        driver_plan.choose(planned, {**found, "policies": answers}, request(**changes))
    return str(caught.value)


def test_ubuntu_gets_the_compute_packages_of_the_branch_in_one_version(host, policies):
    choice = choose(host(), policies("ubuntu2404-580-server-open"))
    version = "580.126.20-0ubuntu0.24.04.1"
    assert choice["install"] == {
        "linux-headers-6.8.0-90-generic": "6.8.0-90.91", "nvidia-headless-580-server-open": version,
        "nvidia-utils-580-server": version, "nvidia-compute-utils-580-server": version,
    }  # fmt: skip
    assert choice["remove"] == []


def test_later_kernels_get_headers_where_their_images_come_by_themselves(host):
    planned = plan(host({"linux-image-generic": {}}))
    assert planned["headers"] == ["linux-headers-6.8.0-90-generic", "linux-headers-generic"]


def test_signed_modules_need_no_headers_and_are_of_the_next_kernel(host):
    planned = plan(host(), signed_modules=True)
    assert planned["headers"] == []
    assert f"linux-modules-nvidia-580-server-open-{KERNEL}" in planned["packages"]


def test_signed_modules_are_refused_where_nobody_signs(host):
    assert "nvidia_driver_signed_modules to false" in refusal(host(), source="nvidia", signed_modules=True)


def test_nvidias_repository_has_other_names_from_590_on(host):
    assert plan(host(), source="nvidia", branch="580")["main"] == "nvidia-dkms-580-open"
    assert plan(host(), source="nvidia", branch="595")["packages"] == [
        "nvidia-dkms-open",
        "libnvidia-compute",
        "nvidia-persistenced",
    ]
    assert plan(host(), source="nvidia", branch="595", open_modules=False)["main"] == "nvidia-dkms"


def test_a_branch_without_a_name_of_its_own_is_chosen_by_version(host, policies):
    found = host({f"linux-headers-{KERNEL}": {}})
    choice = choose(found, policies("ubuntu2404-nvidia-repository"), source="nvidia", branch="595")
    assert choice["version"] == "595.71.05-1ubuntu1"
    assert choice["install"]["libnvidia-compute"] == "595.71.05-1ubuntu1"
    exact = choose(found, policies("ubuntu2404-nvidia-repository"), source="nvidia", branch="595", version="595.45.04")
    assert exact["version"] == exact["install"]["libnvidia-compute"] == "595.45.04-1ubuntu1"
    # the daemon's own newest, where it has no such version
    assert exact["install"]["nvidia-persistenced"] == "615.71.09-1ubuntu1"


@pytest.mark.parametrize("branch", sorted(branch for branch, life in driver_systems.BRANCHES.items() if life))
@pytest.mark.parametrize("system", ["Ubuntu 24.04", "Debian 12"])
def test_a_branch_at_its_end_is_refused_and_another_is_named(host, branch, system):
    error = refusal(host(system=system), branch=branch)
    assert re.match(rf"Driver branch {branch} is end of life .*: set nvidia_driver_branch to \"580\"", error)
    if system == "Debian 12":
        assert "nvidia_driver_source to nvidia" in error


def test_debian_maintains_what_nvidia_ended(host):
    planned = plan(host(system="Debian 13"), branch="550")
    assert "Debian 13 still maintains it" in planned["note"]
    assert planned["packages"][0] == "nvidia-open-kernel-dkms"


def test_debian_13_sends_who_wants_580_elsewhere(host):
    error = refusal(host(system="Debian 13"))
    assert "Debian 13 has driver branch 550 from the source distribution, not 580" in error
    assert '"595") and nvidia_driver_source to nvidia' in error
    assert "begins with branch 590" in refusal(host(system="Debian 13"), source="nvidia")


def test_ubuntu_26_04_has_the_names_of_24_04_and_another_repository(host):
    resolute = host(system="Ubuntu 26.04", kernel_next="7.0.0-27-generic")
    assert plan(resolute, branch="595")["packages"][0] == "nvidia-headless-595-server-open"
    assert plan(resolute, branch="595", source="nvidia")["packages"] == [
        "nvidia-dkms-open", "libnvidia-compute", "nvidia-persistenced",
    ]  # fmt: skip
    assert "begins with branch 595, not 580" in refusal(resolute, source="nvidia")
    signed = plan(resolute, signed_modules=True)["packages"]
    assert "linux-modules-nvidia-580-server-open-7.0.0-27-generic" in signed


def test_what_is_no_branch_no_version_or_no_system(host):
    assert "three digits" in refusal(host(), branch="580-open")
    assert 'nvidia_driver_branch to "570"' in refusal(host(), version="570.86.15")
    error = refusal(host(system="Fedora 43"))
    assert "Ubuntu 24.04 or Debian 13 or Debian 12" in error and "in nvidia_driver_system to try its packages" in error


def test_a_transitional_package_is_refused_with_what_it_has_become(host, policies):
    answers = policies("ubuntu2404-transitional") | {
        name: {"installed": "", "candidate": "1", "versions": ["1"]}
        for name in (f"linux-headers-{KERNEL}", "nvidia-utils-595-server", "nvidia-compute-utils-595-server")
    }
    assert 'set nvidia_driver_branch to "610"' in no_choice(host(), answers, branch="595")
    # asked for by its exact version, the real package of before is what is wanted
    assert choose(host(), answers, branch="595", version="595.71.05")["version"] == "595.71.05-0ubuntu0.24.04.1"


def test_packages_that_no_source_has(host, policies):
    answers = policies("ubuntu2404-580-server-open")
    for name in list(answers):
        gone = {**answers, name: {"installed": "", "candidate": "", "versions": []}}
        error = no_choice(host(), gone)
        assert name in error
        assert ("reboot into it" in error) is name.startswith("linux-headers-")
    error = no_choice(host(), answers, version="580.95.05")
    assert "580.95.05" in error and "580.126.20-0ubuntu0.24.04.1" in error


def test_a_known_bad_build_is_refused_before_it_is_tried(host):
    found = host(kernel_next="7.1.0-1-generic", modules={})
    answers = {
        name: {"installed": "", "candidate": "580.142-1", "versions": ["580.142-1"]} for name in plan(found)["missing"]
    }
    assert "does not compile for kernel 7.1.0-1-generic" in no_choice(found, answers)


def test_headers_and_signed_modules_are_of_every_kernel_that_may_boot(host):
    found = host({"proxmox-headers-6.17.2-1-pve": {}}, kernels_next=[KERNEL, "6.17.2-1-pve"])
    assert plan(found)["headers"] == [f"linux-headers-{KERNEL}", "proxmox-headers-6.17.2-1-pve"]
    assert "proxmox-headers-6.17.2-1-pve" not in plan(found)["missing"]
    signed = plan(host(kernels_next=[KERNEL, "6.8.0-45-generic"]), signed_modules=True)["packages"]
    assert [name for name in signed if name.startswith("linux-modules-")] == [
        f"linux-modules-nvidia-580-server-open-{KERNEL}", "linux-modules-nvidia-580-server-open-6.8.0-45-generic",
    ]  # fmt: skip
    assert len(set(signed)) == len(signed) == 5


def test_headers_that_no_source_has_are_the_vendors(host, policies):
    found = host(kernel_next="6.12.9-zabbly+", images={"6.12.9-zabbly+": "linux-image-6.12.9-zabbly+"})
    error = no_choice(found, policies("ubuntu2404-580-server-open"))
    assert "do not have linux-headers-6.12.9-zabbly+: " in error and "the vendor's repository" in error
    assert "/lib/modules/6.12.9-zabbly+/build" in error


def test_an_installed_driver_of_the_branch_needs_nothing(host):
    names = ("nvidia-headless-580-server-open", "nvidia-utils-580-server", "nvidia-compute-utils-580-server")
    there = {name: {"version": "580.95.05-0ubuntu0.24.04.1"} for name in names} | {f"linux-headers-{KERNEL}": {}}
    assert plan(host(there))["missing"] == []
    assert plan(host(there), version="580.95.05")["missing"] == []
    assert plan(host(there), version="580.95.05-0ubuntu0.24.04.1")["missing"] == []
    assert len(plan(host(there), version="580.105.08")["missing"]) == 4
    there["nvidia-utils-580-server"]["whole"] = False
    assert plan(host(there))["missing"] == ["nvidia-utils-580-server"]


def test_somebody_elses_driver(host):
    desktop = {"nvidia-dkms-580-open": {"version": "580.95.05-0ubuntu1"}}
    assert "it is left as it is" in plan(host(desktop))["foreign"]
    # the same packages, made by this role with other flags before
    assert plan(host(desktop), recorded=["nvidia-dkms-580-open"])["foreign"] == ""
    assert "it is left as it is" in plan(host(loaded_version="580.65.06"))["foreign"]
    older = {"nvidia-dkms-570": {"version": "570.1-0ubuntu1"}}
    assert plan(host(older))["foreign"] == ""
    older["nvidia-dkms-570"]["held"] = True
    assert "apt-mark unhold nvidia-dkms-570" in refusal(host(older))


def test_another_drivers_module_goes_in_the_same_step(host, policies):
    found = host(
        {"nvidia-dkms-570": {"version": "570.1-0ubuntu1"}, "libnvidia-compute-570": {"version": "570.1-0ubuntu1"}}
    )
    assert choose(found, policies("ubuntu2404-580-server-open"))["remove"] == ["nvidia-dkms-570"]
    mine = host({"nvidia-dkms-580-server-open": {"version": "580.95.05-1"}})
    changes = {"recorded": ["nvidia-dkms-580-server-open"]}
    assert choose(mine, policies("ubuntu2404-580-server-open"), **changes)["remove"] == []
