# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Headers of kernels of several vendors, by the names of their packages."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_packages, kernel_headers


def at(kernel, *others):
    return {"kernel_next": kernel, "kernels_next": [kernel, *others]}


@pytest.mark.parametrize(
    ("kernel", "image", "headers"),
    [
        ("6.8.0-90-generic", "linux-image-6.8.0-90-generic", "linux-headers-6.8.0-90-generic"),
        ("6.8.0-90-generic", "linux-image-unsigned-6.8.0-90-generic", "linux-headers-6.8.0-90-generic"),
        ("6.17.4-2-pve", "proxmox-kernel-6.17.4-2-pve-signed", "proxmox-headers-6.17.4-2-pve"),
        ("6.14.11-4-pve", "proxmox-kernel-6.14.11-4-pve", "proxmox-headers-6.14.11-4-pve"),
        ("5.15.158-2-pve", "pve-kernel-5.15.158-2-pve", "pve-headers-5.15.158-2-pve"),
        ("6.12.9-zabbly+", "linux-image-6.12.9-zabbly+", "linux-headers-6.12.9-zabbly+"),
        ("6.14.2-x64v3-xanmod1", "linux-image-6.14.2-x64v3-xanmod1", "linux-headers-6.14.2-x64v3-xanmod1"),
        ("6.15.3-1-liquorix-amd64", "linux-image-6.15.3-1-liquorix-amd64", "linux-headers-6.15.3-1-liquorix-amd64"),
        ("6.12.34+rpt-rpi-v8", "linux-image-6.12.34+rpt-rpi-v8", "linux-headers-6.12.34+rpt-rpi-v8"),
        ("6.12.8-current-x86", "linux-image-current-x86", "linux-headers-current-x86"),
        ("6.6.44-production+truenas", "linux-image-truenas-production-amd64", "linux-headers-truenas-production-amd64"),
        ("6.9.1", "linux-image-6.9.1", "linux-headers-6.9.1"),
    ],
)
def test_headers_are_named_as_their_image(host, kernel, image, headers):
    assert kernel_headers.wanted(host(**at(kernel), images={kernel: image})) == [headers]
    # the same where only the list of packages tells
    if kernel in image:
        assert kernel_headers.wanted(host({image: {}}, **at(kernel))) == [headers]
        assert kernel_headers.wanted(host({headers: {}}, **at(kernel))) == [headers]
    # what owns the headers needs no guessing
    owned = host(**at(kernel), headers={kernel: "odd-name"}, images={kernel: image})
    assert kernel_headers.wanted(owned) == ["odd-name"]


def test_headers_of_no_package_need_none(host):
    assert kernel_headers.wanted(host(**at("6.9.1-mine"), headers={"6.9.1-mine": ""})) == []


@pytest.mark.parametrize(
    ("kernel", "headers"),
    [
        ("6.17.2-1-pve", "proxmox-headers-6.17.2-1-pve"), ("6.5.13-6-pve", "proxmox-headers-6.5.13-6-pve"),
        ("6.2.16-20-pve", "pve-headers-6.2.16-20-pve"), ("6.9.1-mine", "linux-headers-6.9.1-mine"),
    ],
)  # fmt: skip
def test_a_kernel_without_a_known_package_has_the_headers_of_its_vendor(host, kernel, headers):
    assert kernel_headers.wanted(host(**at(kernel))) == [headers]


def test_headers_of_every_kernel_that_may_boot(host):
    kernels = at("6.8.0-45-generic", "6.17.2-1-pve")
    found = host({"proxmox-kernel-6.17.2-1-pve-signed": {}}, **kernels)
    assert kernel_headers.wanted(found) == ["linux-headers-6.8.0-45-generic", "proxmox-headers-6.17.2-1-pve"]


@pytest.mark.parametrize(
    ("metapackage", "headers"),
    [
        ("linux-image-generic-hwe-24.04", "linux-headers-generic-hwe-24.04"),
        ("linux-image-amd64", "linux-headers-amd64"),
        ("proxmox-default-kernel", "proxmox-default-headers"), ("proxmox-kernel-6.17", "proxmox-headers-6.17"),
        ("pve-kernel-5.15", "pve-headers-5.15"), ("linux-image-liquorix-amd64", "linux-headers-liquorix-amd64"),
    ],
)  # fmt: skip
def test_headers_of_later_kernels_come_with_their_images(host, metapackage, headers):
    found = kernel_headers.wanted(host({metapackage: {}}, **at("6.1.0-1-amd64")))
    assert found == ["linux-headers-6.1.0-1-amd64", headers]


@pytest.mark.parametrize(
    "name",
    [
        "linux-image-generic", "linux-headers-generic-hwe-26.04", "linux-generic", "linux-image-cloud-amd64",
        "proxmox-default-kernel", "proxmox-default-headers", "proxmox-kernel-6.17", "pve-kernel-6.2", "linux-zabbly",
        "linux-xanmod-x64v3", "linux-image-liquorix-amd64", "linux-image-current-x86",
        "linux-headers-truenas-production-amd64",
    ],
)  # fmt: skip
def test_what_pulls_the_next_kernel_is_held(name):
    assert driver_packages.is_kernel_metapackage(name)


@pytest.mark.parametrize(
    "name",
    [
        "linux-image-6.8.0-90-generic", "linux-headers-6.8.0-90", "proxmox-kernel-6.17.2-1-pve-signed",
        "linux-libc-dev", "linux-base", "linux-firmware", "proxmox-kernel-helper",
        "pve-headers-5.15.158-2-pve", "linux-image-amd64-dbg",
        "linux-modules-nvidia-580-generic", "linux-kbuild-6.12.48", "proxmox-backup-client",
    ],
)  # fmt: skip
def test_a_kernel_itself_and_its_neighbours_are_not(name):
    assert not driver_packages.is_kernel_metapackage(name)


@pytest.mark.parametrize(
    ("said", "package"),
    [
        ("proxmox-headers-6.17.2-1-pve: /lib/modules/6.17.2-1-pve/build\n", "proxmox-headers-6.17.2-1-pve"),
        ("linux-image-6.12.9-zabbly+:amd64: /boot/vmlinuz-6.12.9-zabbly+\n", "linux-image-6.12.9-zabbly+"),
        ("diversion by x from: /boot/y\nlinux-image-a, linux-image-b: /boot/y\n", "linux-image-a"),
        ("", ""),
    ],
)
def test_the_owner_of_a_path_as_dpkg_says_it(said, package):
    assert kernel_headers.owner(said) == package
