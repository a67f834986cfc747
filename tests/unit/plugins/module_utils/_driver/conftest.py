# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host as the functions of the room _driver see it, and what apt says in recorded transcripts."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import apt

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "apt"
KERNEL = "6.8.0-90-generic"


@pytest.fixture
def host():
    """Return a function: host(packages, **changes) is a HostDriver on Ubuntu 24.04 with kernel 6.8.0-90-generic."""

    def make(packages=None, **changes):
        entry = {"version": "1", "source": "", "arch": "amd64", "held": False, "whole": True}
        unit = {
            "present": False, "unit_file_state": "", "static": False, "active": False, "exec_start": "", "stale": False,
            "wanted_at_boot": False, "dropin": "",
        }  # fmt: skip
        return {
            "system": "Ubuntu 24.04",
            "packages": {name: {**entry, **value} for name, value in (packages or {}).items()},
            "kernel_running": KERNEL, "kernel_next": KERNEL, "kernel_next_why": "it is the newest in /boot",
            "kernels_next": [changes.get("kernel_next", KERNEL)], "headers": {}, "images": {},
            "modules": {KERNEL: None}, "dkms": [], "loaded_version": "", "nouveau_loaded": False, "secure_boot": False,
            "mok": {}, "initramfs_mtime": None, "nouveau_mtime": None, "policies": {}, "kept": {},
            **changes, "persistence": {**unit, **changes.get("persistence", {})},
        }  # fmt: skip

    return make


@pytest.fixture
def policies():
    """Return a function: policies(name) is what `apt-cache policy` said in a recorded transcript."""
    return lambda name: apt.parse_policy((FIXTURES / f"{name}.txt").read_text(encoding="utf-8"))
