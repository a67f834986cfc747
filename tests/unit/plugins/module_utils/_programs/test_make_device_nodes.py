# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program on a kernel that is made of files; the nodes themselves are real where this runs as root."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import make_device_nodes as nodes

DEVICES = "Character devices:\n  1 mem\n{driver}{uvm}\nBlock devices:\n 259 blkext\n"
FIRST, SECOND = "0000:01:00.0", "0000:65:00.0"


class Kernel:
    """Files below /proc, /sys and /dev of a machine with a driver."""

    def __init__(self, home):
        self.places = {name: str(home / name) for name in ("proc", "sys", "dev")}
        self.host = nodes.Host(**self.places)
        self.home = home
        (home / "dev").mkdir()
        self.groups()

    def groups(self, driver="195 nvidia\n195 nvidiactl\n", uvm="511 nvidia-uvm\n"):
        self.write("proc/devices", DEVICES.format(driver=driver, uvm=uvm))

    def write(self, path, text):
        (self.home / path).parent.mkdir(parents=True, exist_ok=True)
        (self.home / path).write_text(text, encoding="utf-8")

    def card(self, address, minor=None, device_class="0x030000", vendor="0x10de", driver="nvidia"):
        there = f"sys/bus/pci/devices/{address}"
        self.write(f"{there}/vendor", f"{vendor}\n")
        self.write(f"{there}/class", f"{device_class}\n")
        (self.home / f"sys/bus/pci/drivers/{driver}").mkdir(parents=True, exist_ok=True)
        (self.home / there / "driver").symlink_to(self.home / f"sys/bus/pci/drivers/{driver}")
        if minor is not None:
            self.write(f"proc/driver/nvidia/gpus/{address}/information", f"Model: \t\t X\nDevice Minor: \t {minor}\n")

    def made(self):
        found = {path.name: path.stat() for path in (self.home / "dev").iterdir()}
        return {name: (os.major(node.st_rdev), os.minor(node.st_rdev)) for name, node in found.items()}


def _may_make_nodes():
    try:
        os.mknod(path := "/dev/mixed-gpu-test", stat.S_IFCHR | 0o600, os.makedev(511, 0))
    except OSError:
        return False
    os.unlink(path)
    return True


makes_nodes = pytest.mark.skipif(not _may_make_nodes(), reason="device nodes need root")


@pytest.fixture
def kernel(tmp_path):
    """Return a machine with two cards and all modules, and no node yet."""
    made = Kernel(tmp_path)
    made.card(FIRST, 0)
    made.card(SECOND, 1)
    return made


def test_the_nodes_are_those_of_driver_cards_and_uvm(kernel):
    assert {node.name: node.number for node in nodes.wanted(kernel.host)} == {
        "nvidiactl": (195, 255), "nvidia0": (195, 0), "nvidia1": (195, 1), "nvidia-uvm": (511, 0),
        "nvidia-uvm-tools": (511, 1),
    }  # fmt: skip


def test_a_driver_before_545_has_another_name_for_its_devices(kernel):
    kernel.groups(driver="195 nvidia-frontend\n")
    assert nodes.wanted(kernel.host)[0].number == (195, 255)


def test_a_card_has_the_number_that_the_driver_gave_not_its_place_on_the_bus(kernel):
    kernel.card("0000:21:00.0", 2)
    assert [node.name for node in nodes.wanted(kernel.host)][1:4] == ["nvidia0", "nvidia2", "nvidia1"]


def test_what_no_driver_of_this_host_has_needs_no_node(kernel):
    kernel.card("0000:01:00.1", device_class="0x040300")  # the sound of a card
    kernel.card("0000:70:00.0", driver="vfio-pci")  # of a virtual machine
    kernel.card("0000:71:00.0", vendor="0x1002")
    assert nodes.cards(kernel.host) == [FIRST, SECOND]


@pytest.mark.parametrize("written", [FIRST, "00000000:01:00.0", "01:00.0", " 0000:01:00.0"])
def test_a_card_that_may_stay_without_a_driver_needs_no_node(kernel, written):
    assert nodes.cards(kernel.host._replace(left_out=(written,))) == [SECOND]
    kernel.card("0001:01:00.0")
    assert nodes.cards(kernel.host._replace(left_out=(written,))) == [SECOND, "0001:01:00.0"]


@pytest.mark.parametrize(
    ("without", "name", "words"),
    [
        ({"uvm": ""}, "/dev/nvidia-uvm ", "the kernel module nvidia_uvm is not loaded"),
        ({"driver": ""}, "/dev/nvidiactl ", "the kernel module nvidia is not loaded"),
        ({"driver": ""}, "/dev/nvidia0 ", "the kernel module nvidia is not loaded"),
    ],
)
def test_a_missing_node_is_named_with_its_module(kernel, without, name, words):
    kernel.groups(**without)
    (phrase,) = [phrase for phrase in nodes.missing(kernel.host) if phrase.startswith(name)]
    assert words in phrase


def test_a_card_that_the_driver_does_not_have_is_named_by_its_address(kernel):
    kernel.card("0000:b1:00.0")
    assert any("the driver does not have the card 0000:b1:00.0" in phrase for phrase in nodes.missing(kernel.host))


def test_a_machine_without_a_card_says_so(tmp_path):
    assert any("the PCI bus has no NVIDIA card" in phrase for phrase in nodes.missing(Kernel(tmp_path).host))


@makes_nodes
def test_all_nodes_are_made_once_for_everybody(kernel):
    assert nodes.make(kernel.host) == "" and nodes.missing(kernel.host) == []
    assert kernel.made() == {
        "nvidiactl": (195, 255), "nvidia0": (195, 0), "nvidia1": (195, 1), "nvidia-uvm": (511, 0),
        "nvidia-uvm-tools": (511, 1),
    }  # fmt: skip
    node = (kernel.home / "dev/nvidia-uvm").stat()
    assert (stat.S_ISCHR(node.st_mode), node.st_mode & 0o777) == (True, 0o666)
    nodes.make(kernel.host)
    assert (kernel.home / "dev/nvidia-uvm").stat().st_ino == node.st_ino


@makes_nodes
def test_the_parameters_of_the_driver_say_who_may_open_a_node(kernel):
    kernel.write("proc/driver/nvidia/params", "DeviceFileUID: 0\nDeviceFileGID: 44\nDeviceFileMode: 432\n")
    nodes.make(kernel.host)
    node = (kernel.home / "dev/nvidia0").stat()
    assert (node.st_gid, node.st_mode & 0o777) == (44, 0o660)


@makes_nodes
def test_a_node_of_an_earlier_load_of_the_module_is_replaced(kernel):
    nodes.make(kernel.host)
    kernel.groups(uvm="508 nvidia-uvm\n")
    assert any("has other numbers" in phrase and "508:0" in phrase for phrase in nodes.missing(kernel.host))
    assert nodes.make(kernel.host) == ""
    assert kernel.made()["nvidia-uvm"] == (508, 0)


@makes_nodes
def test_a_card_and_a_module_that_come_late_are_waited_for(kernel, monkeypatch):
    ran = []
    monkeypatch.setattr(nodes, "_run", lambda *command: ran.append(command) or "")
    kernel.groups(uvm="")
    late = threading.Timer(1.5, kernel.groups)
    late.start()
    try:
        assert nodes.wait(kernel.host, 300) == ""
    finally:
        late.join()
    assert kernel.made()["nvidia-uvm"] == (511, 0)
    assert set(ran) == {("modprobe", "nvidia-uvm")}


def test_the_wait_ends_and_the_program_names_what_is_missing(kernel):
    kernel.groups(uvm="")
    options = [f"--{name}={path}" for name, path in kernel.places.items()]
    command = [sys.executable, "-I", nodes.__file__, *options, "--wait-seconds=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 1
    assert "/dev/nvidia-uvm (the kernel module nvidia_uvm is not loaded)" in done.stderr
    assert "systemctl restart mixed-gpu-nodes.service" in done.stderr and len(done.stderr.splitlines()) == 1
