# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Files of a machine as the kernel writes them; the cards' are in test_described_hosts."""

from __future__ import annotations

import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware
from ansible_collections.homelab.mixed_gpu.tests.described_hosts import build

# an excerpt of the PCI ID Repository's file
PCI_IDS = (
    "# comment\n10dd  Enhance Electronics\n\t2204  wrong vendor\n10de  NVIDIA Corporation\n"
    "\t2204  GA102 [GeForce RTX 3090]\n\t\t1043 87b3  ROG Strix\n# another\n\t2c2c  GB6-256(N22W-ES-A1)\n"
    "10df  Emulex\n\t2204  also wrong\n"
)


def test_cards_on_the_bus(tmp_path):
    devices = {
        "0000:02:00.0": ("0x10de", "0x030200"),
        "0000:01:00.0": ("0x10de", "0x030000"),
        "0000:01:00.1": ("0x10de", "0x040300"),  # the card's audio
        "0000:00:02.0": ("0x8086", "0x030000"),
    }
    for address, (vendor, kind) in devices.items():
        build.write(tmp_path / "sys/bus/pci/devices" / address / "vendor", f"{vendor}\n")
        build.write(tmp_path / "sys/bus/pci/devices" / address / "class", f"{kind}\n")
    assert host_hardware.nvidia_pci(str(tmp_path)) == ["0000:01:00.0", "0000:02:00.0"]
    assert host_hardware.nvidia_pci(str(tmp_path / "none")) == []


def test_everything_about_one_card(tmp_path):
    card = {"device": "0x2204", "width": 4, "slot_width": 4, "slot_speed": "8.0 GT/s PCIe", "iommu": "DMA-FQ"}
    build.build({"pci": {"0000:02:00.0": card}, "files": {"/usr/share/misc/pci.ids": PCI_IDS}}, tmp_path)
    assert host_hardware.nvidia_devices(str(tmp_path)) == [{
        "address": "0000:02:00.0", "device_id": "0x2204", "name": "GeForce RTX 3090", "driver": "nvidia",
        "generation": 1, "generation_max": 4, "width": 4, "width_max": 16, "slot_generation_max": 3,
        "slot_width_max": 4, "bar1_mib": 32768, "iommu": "DMA-FQ",
    }]


def test_a_card_of_which_the_kernel_says_little(tmp_path):
    unknown = {"speed": "Unknown", "width": 255, "slot_speed": "Unknown", "slot_width": 0}
    card = {"device": "0x2204", "driver": None, **unknown}
    build.build({"pci": {"0000:02:00.0": card}}, tmp_path)
    (found,) = host_hardware.nvidia_devices(str(tmp_path))
    for key in ("driver", "generation", "width", "slot_generation_max", "slot_width_max", "iommu"):
        assert found[key] is None
    assert host_hardware.aperture_mib("") is None
    assert host_hardware.aperture_mib("0x0 0x0 0x0\n0x0 0x0 0x0\n") is None


def test_the_window_to_memory_is_region_1_or_2_and_never_a_virtual_functions():
    def line(start, mib):
        return f"{start:#x} {start + (mib << 20) - 1:#x} 0x14220c" if mib else "0x0 0x0 0x0"

    geforce = [16, 256, 0, 32, 0, 0]
    hopper = [16, 0, 131072, 0, 32, 0, 0, 4, 0, 262144]
    for sizes, expected in ((geforce, 256), (hopper, 131072)):
        text = "\n".join(line(number << 40, size) for number, size in enumerate(sizes, 1))
        assert host_hardware.aperture_mib(text) == expected


def test_kernels_are_ordered_as_numbers(tmp_path):
    for release in ("6.8.0-101-generic", "6.8.0-87-generic", "6.14.0-3-generic"):
        build.write(tmp_path / "boot" / f"vmlinuz-{release}", "")
    build.write(tmp_path / "boot/initrd.img-6.8.0-87-generic", "")
    assert host_hardware.kernels(str(tmp_path)) == ["6.8.0-87-generic", "6.8.0-101-generic", "6.14.0-3-generic"]
    assert host_hardware.kernels(str(tmp_path / "none")) == []


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, False),
        ({f"efivars/{host_hardware.SECURE_BOOT}": "\x06\0\0\0\x01"}, True),
        ({f"efivars/{host_hardware.SECURE_BOOT}": "\x06\0\0\0\0"}, False),
        ({f"efivars/{host_hardware.SECURE_BOOT}": "\x06"}, None),
        ({"efivars/BootOrder-8be4df61": "x"}, False),
        ({"fw_platform_size": "64"}, None),  # efivarfs is not mounted
    ],
)
def test_secure_boot(tmp_path, files, expected):
    for name, text in files.items():
        build.write(tmp_path / "sys/firmware/efi" / name, text)
    assert host_hardware.secure_boot(str(tmp_path)) is expected


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/cpuinfo": "flags : fpu vme\n"}, None),
        ({}, None),
        ({"proc/cpuinfo": "flags : fpu hypervisor\n", "sys/class/dmi/id/sys_vendor": "QEMU\n"}, "KVM or QEMU"),
        ({"proc/cpuinfo": "flags : fpu hypervisor\n"}, "an unknown hypervisor"),
        ({"sys/hypervisor/type": "xen\n"}, "Xen"),
    ],
)
def test_hypervisor(tmp_path, files, expected):
    for name, text in files.items():
        build.write(tmp_path / name, text)
    assert host_hardware.hypervisor(str(tmp_path)) == expected


def block(root, number, path, **files):
    """A block device as sysfs shows it: its folder, and a link by number."""
    folder = root / "sys/devices" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        build.write(folder / name.replace("__", "/"), text)
    (root / "sys/dev/block").mkdir(parents=True, exist_ok=True)
    (root / "sys/dev/block" / number).symlink_to(folder)
    return folder


def test_media(tmp_path):
    root = str(tmp_path)
    nvme = block(tmp_path, "259:0", "nvme0n1", queue__rotational="0\n")
    block(tmp_path, "259:2", "nvme0n1/nvme0n1p2", partition="2\n")
    disk = block(tmp_path, "8:0", "sda", queue__rotational="1\n")
    part = block(tmp_path, "8:1", "sda/sda1", partition="1\n")
    block(tmp_path, "8:16", "sdb", queue__rotational="0\n")
    block(tmp_path, "253:0", "vda", queue__rotational="1\n")
    crypt = block(tmp_path, "254:0", "dm-0")
    (crypt / "slaves").mkdir()
    (crypt / "slaves/nvme0n1").symlink_to(nvme)
    both = block(tmp_path, "9:0", "md0")
    (both / "slaves").mkdir()
    (both / "slaves/dm-0").symlink_to(crypt)
    (both / "slaves/sda1").symlink_to(part)
    assert disk.exists()
    kinds = {number: host_hardware.block_medium(number, root) for number in os.listdir(tmp_path / "sys/dev/block")}
    assert kinds == {
        "259:0": "nvme", "259:2": "nvme", "8:0": "disk", "8:1": "disk", "8:16": "ssd", "254:0": "nvme", "9:0": "disk",
        "253:0": None,
    }
    assert host_hardware.block_medium("0:42", root) is None


def test_device_files(tmp_path):
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset", "null"):
        build.write(tmp_path / "dev" / name, "")
    assert host_hardware.nvidia_nodes(str(tmp_path)) == ["nvidia-uvm", "nvidia0", "nvidiactl"]


def test_threads_that_share_a_core(tmp_path):
    folder = tmp_path / "sys/devices/system/cpu/cpu3/topology"
    folder.mkdir(parents=True)
    (folder / "thread_siblings_list").write_text("3,11\n")
    assert host_hardware.siblings(3, str(tmp_path)) == "3,11"
    assert host_hardware.siblings(4, str(tmp_path)) is None
