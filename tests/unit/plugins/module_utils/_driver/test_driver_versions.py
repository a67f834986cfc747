# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which driver is loaded and which one is installed, on hosts that are directories with a modinfo of their own."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_versions

CLOSED = """\
NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC 2024
GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)
"""
OPEN = """\
NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22-I3)  Tue Sep 23 2025
GCC version:  gcc version 13.3.0 (Ubuntu 13.3.0-6ubuntu2~24.04)
"""
# modinfo of a host: -k KERNEL -F version NAME, of what lies below lib/modules
MODINFO = """\
#!/bin/sh
cat "$0.host/lib/modules/$2/$5" 2>/dev/null
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A function that installs a module for a kernel, with the host's directory as its attribute C(root)."""
    program = tmp_path / "modinfo"
    program.write_text(MODINFO)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    root = tmp_path / "modinfo.host"
    root.mkdir()

    def install(kernel, **modules):
        directory = root / "lib" / "modules" / kernel
        directory.mkdir(parents=True)
        for name, version in modules.items():
            (directory / name.replace("_", "-")).write_text(f"{version}\n")

    install.root = root
    return install


@pytest.mark.parametrize(
    ("text", "version"), [(CLOSED, "535.183.01"), (OPEN, "580.95.05"), ("", ""), ("GCC version: 13.3.0\n", "")]
)
def test_the_loaded_version_is_read_of_both_kinds_of_module(text, version):
    assert driver_versions.loaded_version(text) == version


def test_of_several_kernels_the_newest_with_the_module_counts(host):
    host("6.8.0-90-generic", nvidia="580.95.05")
    host("6.8.0-101-generic", nvidia="580.105.08")
    host("6.11.0-9-generic")
    (host.root / "proc/driver/nvidia").mkdir(parents=True)
    (host.root / "proc/driver/nvidia/version").write_text(OPEN)
    assert driver_versions.read(str(host.root)) == ("580.95.05", "580.105.08")


def test_debians_module_has_a_name_of_its_own(host):
    host("6.1.0-40-amd64", nvidia_current="535.247.01")
    assert driver_versions.read(str(host.root)) == ("", "535.247.01")


def test_a_removed_driver_is_told_from_one_that_cannot_be_known(host, monkeypatch, tmp_path):
    assert driver_versions.read(str(host.root)).installed is None  # a container without kernels
    host("6.8.0-90-generic")
    assert driver_versions.read(str(host.root)).installed == ""
    (tmp_path / "modinfo").unlink()
    monkeypatch.setattr(driver_versions.shutil, "which", lambda *_arguments, **_named: None)
    assert driver_versions.read(str(host.root)).installed is None
