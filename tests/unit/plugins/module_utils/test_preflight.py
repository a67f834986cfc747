# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Described machines, and what preflight says of them."""

from __future__ import annotations

import copy

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.preflight_checks import preflight_checks
from ansible_collections.homelab.mixed_gpu.plugins.filter.preflight_table import preflight_table
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._nvml import unavailable

HOST = {
    "os": {"id": "ubuntu", "version_id": "24.04", "pretty_name": "Ubuntu 24.04.3 LTS"},
    "machine": "x86_64",
    "python_version": "3.12.3",
    "uid": 0,
    "init": "systemd",
    "memory_total_mib": 64000,
    "memory_available_mib": 60000,
    "swap_total_mib": 8192,
    "swap_used_mib": 0,
    "disks": [
        {"path": "/opt/llama.cpp", "mount_point": "/", "free_mib": 50000, "held_mib": 0},
        {"path": "/srv/models", "mount_point": "/", "free_mib": 50000, "held_mib": 0},
    ],
    "listeners": [],
    "nvidia_pci": ["0000:01:00.0", "0000:02:00.0"],
    "nvidia_module_version": "580.95.05",
    "nouveau_loaded": False,
}
GPUS = {
    "available": True,
    "reason": None,
    "driver_version": "580.95.05",
    "gpus": [
        {"uuid": "GPU-1", "name": "NVIDIA GeForce RTX 4090"},
        {"uuid": "GPU-2", "name": "NVIDIA GeForce RTX 3090"},
    ],
}
WANTED = {
    "port": 8080,
    "server_unit": "llama-server.service",
    "memory_mib": 2048,
    "disk": [{"path": "/opt/llama.cpp", "needed_mib": 3072}, {"path": "/srv/models", "needed_mib": 41000}],
    "gpus_expected": [],
}


def judge(gpus="the pair", wanted=None, **host):
    gpus = GPUS if gpus == "the pair" else gpus
    return preflight_checks({**copy.deepcopy(HOST), **host}, {**WANTED, **(wanted or {})}, gpus)


def bad(checks):
    return {check["name"]: check for check in checks if not check["ok"]}


def test_the_box_that_all_this_is_for_passes():
    checks = judge(wanted={"gpus_expected": ["RTX 3090", "RTX 4090"]})
    assert bad(checks) == {}
    assert all(check["cure"] is None for check in checks)
    assert checks[-1]["detail"] == "NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 3090; driver 580.95.05"


@pytest.mark.parametrize(
    ("host", "name", "words"),
    [
        ({"os": {"id": "debian", "version_id": "11", "pretty_name": "Debian 11"}}, "operating system", "Debian 12"),
        ({"os": {"id": "ubuntu", "version_id": "22.04", "pretty_name": "Ubuntu 22.04"}}, "operating system", "24.04"),
        ({"os": {"id": "fedora", "version_id": "43", "pretty_name": "Fedora 43"}}, "operating system", "Ubuntu 24.04"),
        ({"os": {"id": None, "version_id": None, "pretty_name": None}}, "operating system", "unknown"),
        ({"machine": "aarch64"}, "architecture", "x86_64"),
        ({"python_version": "3.10.12"}, "Python", "ansible_python_interpreter"),
        ({"uid": 1000}, "root", "become"),
        ({"init": "tini"}, "systemd", "tini"),
        ({"memory_total_mib": 1900}, "memory", "1900 MiB"),
    ],
)
def test_what_cannot_work_is_an_error_with_its_cure(host, name, words):
    found = bad(judge(**host))
    assert list(found) == [name]
    assert found[name]["severity"] == "error"
    assert words in f"{found[name]['detail']}; {found[name]['cure']}"


@pytest.mark.parametrize(("system", "version"), [("debian", "14"), ("ubuntu", "24.10"), ("ubuntu", "26.04")])
def test_a_newer_release_is_a_warning(system, version):
    found = bad(judge(os={"id": system, "version_id": version, "pretty_name": "new"}))
    assert found["operating system"]["severity"] == "warning"


@pytest.mark.parametrize("version", ["3.11.2", "3.13.5", "3.14.0rc1"])
def test_python_versions_are_compared_as_numbers(version):
    assert bad(judge(python_version=version)) == {}


def disks(free, opt_held=0, models_held=0, models_mount="/"):
    return [
        {"path": "/opt/llama.cpp", "mount_point": "/", "free_mib": free, "held_mib": opt_held},
        {"path": "/srv/models", "mount_point": models_mount, "free_mib": free, "held_mib": models_held},
    ]


def test_paths_on_one_file_system_share_its_room():
    assert bad(judge(disks=disks(44072))) == {}
    found = bad(judge(disks=disks(44071)))
    assert list(found) == ["disk /opt/llama.cpp", "disk /srv/models"]
    assert "44072 MiB with what the other paths need there" in found["disk /srv/models"]["detail"]
    assert "free 1 MiB on /," in found["disk /srv/models"]["cure"]
    assert bad(judge(disks=disks(44071, models_mount="/srv"))) == {}


def test_what_is_there_already_counts():
    assert bad(judge(disks=disks(200, opt_held=3100, models_held=41000))) == {}
    assert list(bad(judge(disks=disks(200, opt_held=3100, models_held=40000)))) == ["disk /srv/models"]


def test_port():
    ours = {"pid": 7, "process": "llama-server", "unit": "llama-server.service"}
    nginx = {"pid": 8, "process": "nginx", "unit": "nginx.service"}
    hidden = {"pid": None, "process": None, "unit": None}
    assert bad(judge(listeners=[ours])) == {}
    found = bad(judge(listeners=[ours, nginx]))
    assert found["port 8080"]["severity"] == "error"
    assert found["port 8080"]["detail"] == "taken by nginx (pid 8) of nginx.service"
    assert "llama_server_port" in found["port 8080"]["cure"]
    assert bad(judge(listeners=[hidden]))["port 8080"]["detail"] == "taken by a process"
    assert bad(judge(listeners=None))["port 8080"]["severity"] == "note"


def test_swap_in_use_is_a_warning():
    assert bad(judge(swap_used_mib=512)) == {}
    assert bad(judge(swap_used_mib=4000))["swap"]["severity"] == "warning"


def test_no_card_is_fine_unless_one_is_expected():
    none = {"nvidia_pci": [], "nvidia_module_version": None}
    assert bad(judge(None, **none)) == {}
    found = bad(judge(None, {"gpus_expected": ["RTX 4090"]}, **none))["GPUs"]
    assert (found["severity"], found["detail"]) == ("error", "0 NVIDIA cards on the PCI bus, 1 expected (RTX 4090)")


@pytest.mark.parametrize(("nouveau", "words"), [(False, "no NVIDIA driver is loaded"), (True, "nouveau holds them")])
def test_a_missing_driver_is_a_warning_because_a_role_installs_it(nouveau, words):
    checks = judge(None, {"gpus_expected": ["4090", "3090"]}, nvidia_module_version=None, nouveau_loaded=nouveau)
    found = bad(checks)["GPUs"]
    assert (found["severity"], words in found["detail"]) == ("warning", True)
    assert "nvidia_driver" in found["cure"]


def test_cards_are_counted_before_their_names_can_be_read():
    checks = judge(None, {"gpus_expected": ["4090", "3090"]})
    assert bad(checks) == {}
    assert "2 NVIDIA cards on the PCI bus, driver 580.95.05 is loaded" in checks[-1]["detail"]
    assert bad(judge(None, {"gpus_expected": ["4090"] * 3}))["GPUs"]["severity"] == "error"


def test_another_card_than_expected_is_an_error():
    found = bad(judge(wanted={"gpus_expected": ["RTX 4090", "RTX 4090"]}))["GPUs"]
    assert found["severity"] == "error"
    assert "missing is RTX 4090" in found["cure"]


def test_a_broken_driver_says_why():
    found = bad(judge(unavailable("A driver upgrade is half done, reboot to finish it.")))["GPUs"]
    assert (found["severity"], found["cure"]) == ("warning", "A driver upgrade is half done, reboot to finish it.")


def test_table():
    lines = preflight_table(judge(uid=1000, swap_used_mib=4000))
    assert lines[0] == "ok   operating system     Ubuntu 24.04.3 LTS"
    assert "FAIL root                 tasks run as user id 1000; set become to true," in lines
    (warning,) = [number for number, line in enumerate(lines) if line.startswith("warn swap")]
    assert lines[warning + 1].startswith(" " * 26) and lines[warning + 1].strip()
    assert max(map(len, lines)) <= 74


def test_foreign_input_is_a_sentence():
    with pytest.raises(AnsibleFilterError, match="host_info"):
        preflight_checks({"os": {}}, WANTED)
    with pytest.raises(AnsibleFilterError, match="host_info"):
        preflight_checks(HOST, {**WANTED, "disk": []}, GPUS)
    with pytest.raises(AnsibleFilterError, match="host_preflight_checks"):
        preflight_table([{"name": "x"}])
