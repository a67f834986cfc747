# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_kernel

KERNEL = "6.8.0-90-generic"


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
    assert driver_kernel.next_kernel(kernels, "6.1.0", default, environment, "")[0] == expected


def test_without_a_kernel_in_boot_the_running_one_counts():
    assert driver_kernel.next_kernel([], "6.1.0", "", "", "")[0] == "6.1.0"


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
    found = driver_kernel.known_bad(version, kernel, open_modules)
    assert (words in found and kernel in found) if words else found == ""


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
def test_secure_boot_is_never_silent(host, changes, ok, words):
    note, problem = driver_kernel.secure_boot(host(**changes))
    assert words in note + problem
    assert (bool(note), bool(problem)) == (ok, not ok)


def test_where_the_next_kernel_is_not_known_the_module_of_every_kernel_counts(host):
    other = "6.17.2-1-pve"
    next_ones = {"kernels_next": [KERNEL, other], "kernel_next_why": "GRUB_DEFAULT is '1>2', and there is no grub.cfg"}
    built = host(modules={**MODULE, other: MODULE[KERNEL]}, **next_ones)
    assert driver_kernel.built_problem(built, "580.95.05-1") == "" and driver_kernel.is_built(built, "580.95.05-1")
    half = host(modules={**MODULE, other: None}, **next_ones)
    problem = driver_kernel.built_problem(half, "580.95.05-1")
    assert f"is not there for kernel {other}, which may boot next" in problem and "there is no grub.cfg" in problem
    assert f"remove kernel {other}." in problem and not driver_kernel.is_built(half, "")
    signed = {KERNEL: {"version": "1", "signer": "Canonical Ltd."}, other: {"version": "1", "signer": ""}}
    assert "not signed" in driver_kernel.secure_boot(host(secure_boot=True, modules=signed, **next_ones))[1]
    newer = host(kernels_next=[KERNEL, "7.1.0-1-x"])
    assert "kernel 7.1.0-1-x" in driver_kernel.bad_for_next(newer, "580.95.05-1", True)


def test_the_module_of_the_next_kernel_is_what_counts(host):
    assert driver_kernel.built_problem(host(modules=MODULE), "580.95.05-0ubuntu1") == ""
    assert "remove the module of the other version" in driver_kernel.built_problem(host(modules=MODULE), "580.105.08-1")
    missing = driver_kernel.built_problem(host(dkms=[f"nvidia/580.95.05, {KERNEL}, x86_64: built"]), "580.95.05-1")
    assert "make.log" in missing and "x86_64: built" in missing
    assert "dkms has no NVIDIA module" in driver_kernel.built_problem(host(), "580.95.05-1")
