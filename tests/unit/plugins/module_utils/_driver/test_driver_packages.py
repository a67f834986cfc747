# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import itertools
import shutil
import subprocess

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages

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
