# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_settings

KERNEL = "6.8.0-90-generic"
MAIN = "nvidia-headless-580-server-open"
ALL = {"hold": True, "hold_kernel": True, "uvm_disable_hmm": False}
UBUNTU = {
    "present": True, "static": True,
    "exec_start": "/usr/bin/nvidia-persistenced --user nvidia-persistenced --no-persistence-mode --verbose",
}  # fmt: skip
DEBIAN = {"present": True, "static": False, "exec_start": "/usr/bin/nvidia-persistenced --user nvpd"}


@pytest.fixture
def settings(host):
    """Return a function that decides about a host with the driver 580.95.05, built for the next kernel."""

    def decide(wishes=ALL, **changes):
        built = {KERNEL: {"version": "580.95.05", "signer": ""}}
        found = host({MAIN: {"version": "580.95.05-0ubuntu1"}}, **{"modules": built, **changes})
        return driver_settings.settings(found, MAIN, wishes)

    return decide


def texts(decided):
    return {file["path"]: file["content"] for file in decided["files"]}


def test_holds_follow_the_wishes(host):
    packages = host({
        "libnvidia-compute-580": {"held": True}, "nvidia-dkms-580-open": {}, "linux-image-generic": {}, "dkms": {},
        f"linux-headers-{KERNEL}": {},
    })["packages"]  # fmt: skip
    both = driver_settings.hold_changes(packages, True, True)
    assert both == (["nvidia-dkms-580-open", "linux-image-generic"], [])
    assert driver_settings.hold_changes(packages, True, False) == (["nvidia-dkms-580-open"], [])
    assert driver_settings.hold_changes(packages, False, True) == ([], ["libnvidia-compute-580"])


def test_the_pin_is_of_the_drivers_version_with_or_without_an_epoch():
    assert "\nPin: version 580.95.05*\n" in driver_settings.pin("580.95.05-0ubuntu1")
    assert "\nPin: version *580.95.05*\n" in driver_settings.pin("1:580.95.05-1")


def test_files_follow_the_wishes(settings):
    held = texts(settings())
    assert "580.95.05*" in held[driver_settings.PIN_PATH] and '"^linux-image-"' in held[driver_settings.BLACKLIST_PATH]
    assert set(settings()["absent"]) == {driver_settings.UVM_PATH, driver_settings.DROPIN_PATH}
    free = settings({"hold": False, "hold_kernel": True, "uvm_disable_hmm": True})
    assert set(texts(free)) == {driver_settings.NOUVEAU_PATH, driver_settings.UVM_PATH}
    assert driver_settings.PIN_PATH in free["absent"] and driver_settings.BLACKLIST_PATH in free["absent"]
    driver_only = texts(settings({**ALL, "hold_kernel": False}))
    assert "linux-image" not in driver_only[driver_settings.BLACKLIST_PATH]


@pytest.mark.parametrize(
    ("with_kernel", "left_alone", "upgraded"),
    [
        (
            False,
            ["linux-objects-nvidia-580-server-6.8.0-90-generic", "linux-modules-nvidia-595-generic-hwe-26.04",
             "linux-signatures-nvidia-6.8.0-90-generic", "libnvidia-compute-580", "libcuda1", "firmware-nvidia-gsp"],
            ["linux-image-generic", "proxmox-kernel-6.17", "openssl", "linux-modules-6.8.0-90-generic"],
        ),
        (
            True,
            ["linux-objects-nvidia-580-6.8.0-90-generic", "linux-image-6.8.0-90-generic",
             "linux-modules-6.8.0-90-generic", "linux-modules-extra-6.8.0-90-generic",
             "proxmox-kernel-6.17.2-1-pve-signed", "proxmox-default-kernel",
             "pve-kernel-5.15.158-2-pve", "linux-image-6.12.9-zabbly+", "linux-zabbly", "linux-xanmod-x64v3",
             "linux-virtual-hwe-24.04", "linux-lowlatency", "proxmox-headers-6.17", "linux-headers-generic"],
            ["proxmox-backup-client", "linux-firmware", "linux-libc-dev", "proxmox-kernel-helper"],
        ),
    ],
)  # fmt: skip
def test_unattended_upgrades_leaves_driver_and_kernels_alone(with_kernel, left_alone, upgraded):
    # unattended-upgrades matches Python regular expressions at the start of a name
    patterns = re.findall(r'"(.+)";', driver_settings.blacklist(with_kernel))
    for name in left_alone:
        assert any(re.match(pattern, name) for pattern in patterns), name
    for name in upgraded:
        assert not any(re.match(pattern, name) for pattern in patterns), name


def test_persistence_of_ubuntu_and_of_debian(host):
    def needed(unit):
        return driver_settings.persistence(host(persistence=unit)["persistence"])

    dropin, link = needed(UBUNTU)
    assert link and not needed({**UBUNTU, "wanted_at_boot": True})[1]
    assert (
        "ExecStart=\nExecStart=/usr/bin/nvidia-persistenced --persistence-mode --user nvidia-persistenced --verbose\n"
    ) in dropin
    assert needed(DEBIAN) == ("", False)
    assert needed({**DEBIAN, "present": False}) == ("", False)


@pytest.mark.parametrize(
    ("unit", "reload_systemd", "restart"),
    [
        ({**UBUNTU, "active": True}, True, True),
        ({**UBUNTU, "active": False}, True, False),
        ({**DEBIAN, "active": True}, False, False),
        ({**DEBIAN, "active": True, "stale": True}, True, True),
        # what an interrupted run wrote, and systemd has not read
        ({**DEBIAN, "active": True, "dropin": "[Service]\n"}, True, True),
        # the present driver came without a unit, while the daemon of the driver before still runs
        ({"present": False, "active": True, "stale": True}, True, False),
    ],
)
def test_the_daemon_is_restarted_where_systemd_must_read_its_unit_again(settings, unit, reload_systemd, restart):
    decided = settings(persistence=unit)
    assert (decided["reload_systemd"], decided["restart_persistence"]) == (reload_systemd, restart)


def test_a_settled_daemon_is_left_alone(settings, host):
    dropin, _link = driver_settings.persistence(host(persistence=UBUNTU)["persistence"])
    decided = settings(persistence={**UBUNTU, "active": True, "dropin": dropin, "wanted_at_boot": True})
    assert not (decided["reload_systemd"] or decided["restart_persistence"] or decided["link_persistence"])
    assert decided["directories"] == ["/etc/systemd/system/nvidia-persistenced.service.d"]


def test_where_any_kernel_may_boot_all_get_module_and_initramfs(settings):
    decided = settings(initramfs_mtime=5.0, kernels_next=[KERNEL, "6.8.0-45-generic"])
    assert (decided["initramfs"], decided["build_for"]) == ("all", ["6.8.0-45-generic"])
    assert "6.8.0-45-generic" in decided["problem"]
    assert settings()["build_for"] == [] and settings(modules={})["build_for"] == [KERNEL]


@pytest.mark.parametrize(
    ("initramfs", "nouveau", "kernel"), [(None, None, ""), (5.0, None, KERNEL), (5.0, 6.0, KERNEL), (5.0, 4.0, "")]
)
def test_the_initramfs_is_built_again_where_it_is_older_than_the_blacklist(settings, initramfs, nouveau, kernel):
    assert settings(initramfs_mtime=initramfs, nouveau_mtime=nouveau)["initramfs"] == kernel


def test_the_module_is_loaded_where_nothing_else_holds_the_cards(settings):
    assert settings()["load_module"]
    assert not settings(nouveau_loaded=True)["load_module"]
    assert not settings(loaded_version="580.95.05")["load_module"]


def test_what_will_not_work_after_the_next_boot_is_a_problem(settings):
    assert settings()["problem"] == "" and settings()["note"] == "Secure Boot is off"
    assert "make.log" in settings(modules={KERNEL: None})["problem"]
    unsigned = settings(secure_boot=True)
    assert "not signed" in unsigned["problem"] and unsigned["note"] == ""


def test_somebody_elses_driver_gets_its_holds_back_and_no_pin(host):
    packages = host({"nvidia-dkms-580-open": {"held": False}, "linux-image-generic": {"held": True}})["packages"]
    decided = driver_settings.restored(packages, ["nvidia-dkms-580-open"])
    assert (decided["hold"], decided["unhold"]) == (["nvidia-dkms-580-open"], ["linux-image-generic"])
    assert decided["absent"] == [driver_settings.PIN_PATH, driver_settings.BLACKLIST_PATH]
    assert (decided["ours"], decided["files"]) == (False, [])
