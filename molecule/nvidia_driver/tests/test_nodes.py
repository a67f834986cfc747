"""The device nodes of the cards at boot and after, by a real systemd.

Files stand in for the kernel's /proc and /sys; the nodes are real, but nothing is behind them. The tests build on one
another, in this order."""

from __future__ import annotations

import re
import shlex

import pytest
from ansible_collections.homelab.mixed_gpu.molecule.nvidia_driver.tests.conftest import HERE
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_sandbox
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

UNIT, SERVER, RPC, EXLLAMA = (
    "mixed-gpu-nodes.service", "llama-server.service", "ggml-rpc-server-card.service", "exllama-server.service"
)  # fmt: skip
SERVERS = (SERVER, RPC, EXLLAMA)
KERNEL = "/opt/kernel"
DEVICES = "Character devices:\n195 nvidia\n195 nvidiactl\n{uvm}\nBlock devices:\n259 blkext\n"
CARD = "0000:01:00.0"


def ran(host, command):
    done = host.run(command)
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout


def show(host, unit, *names):
    out = ran(host, f"systemctl show -p {','.join(names)} {unit}")
    return dict(line.split("=", 1) for line in out.splitlines())


def modules(host, uvm="511 nvidia-uvm\n"):
    """Make the kernel say which modules are loaded."""
    host.run("printf %s > " + f"{KERNEL}/proc/devices.new && mv {KERNEL}/proc/devices.new {KERNEL}/proc/devices",
             DEVICES.format(uvm=uvm))  # fmt: skip


@pytest.fixture(scope="module")
def box(host, controller):
    """Return the host with a card, the three servers, and a unit that asks the stand-in for the kernel."""
    # of an earlier run on a kept host
    host.run(f"systemctl stop {SERVER} {RPC} {UNIT}; systemctl reset-failed; rm -f /dev/nvidia*")
    done = controller.play(str(HERE / "servers.yml"))
    assert done.returncode == 0, done.stdout[-4000:]
    bus, proc = f"{KERNEL}/sys/bus/pci", f"{KERNEL}/proc/driver/nvidia/gpus/{CARD}"
    ran(host, f"mkdir -p {bus}/devices/{CARD} {bus}/drivers/nvidia {proc}")
    ran(host, f"echo 0x10de > {bus}/devices/{CARD}/vendor; echo 0x030000 > {bus}/devices/{CARD}/class")
    ran(host, f"ln -sfn {bus}/drivers/nvidia {bus}/devices/{CARD}/driver")
    ran(host, f"echo 'Device Minor: 0' > {proc}/information")
    modules(host)
    waiting(host, 6)
    return host


def waiting(host, seconds):
    """Let the unit ask the stand-in for the kernel, and wait so long for a node that is not there."""
    program = f"/usr/bin/python3 -I /opt/mixed_gpu/lib/make_device_nodes.py --proc={KERNEL}/proc --sys={KERNEL}/sys"
    commands = "".join(f"{key}=\n{key}={program} --wait-seconds={seconds}\n" for key in ("ExecStart", "ExecReload"))
    folder = f"/etc/systemd/system/{UNIT}.d"
    host.run(
        f"mkdir -p {folder} && printf %s > {folder}/kernel.conf && systemctl daemon-reload", f"[Service]\n{commands}"
    )


def reboot():
    lab.Controller("nvidia_driver", "").reboot()


def test_the_unit_is_there_at_boot_and_has_few_rights(host):
    assert show(host, UNIT, "UnitFileState")["UnitFileState"] == "enabled"
    assert host.run(f"systemd-analyze verify /etc/systemd/system/{UNIT}").stderr == ""
    report = ran(host, f"systemd-analyze security --no-pager {UNIT}")
    assert float(re.search(r"exposure level for \S+ ([\d.]+)", report)[1]) <= 2.5, report
    assert host.file("/opt/mixed_gpu/lib/make_device_nodes.py").mode == 0o644


def test_python_can_ask_a_library_in_the_sandbox_of_a_server(host):
    # as the check of the driver asks CUDA; the library of C stands in for it
    ask = "import ctypes; print(ctypes.CDLL('libc.so.6').getuid())"
    properties = unit_sandbox.lines("llama_cpp", unit_sandbox.nodes(["CUDA"]), ["localhost"])
    command = unit_sandbox.command(["systemd-run"], properties, ["/usr/bin/python3", "-I", "-c", ask])
    assert int(ran(host, shlex.join(command))) > 0


@pytest.mark.parametrize("unit", SERVERS)
def test_each_server_comes_after_the_nodes_and_wants_them(box, unit):
    said = show(box, unit, "After", "Wants")
    assert UNIT in said["After"].split() and UNIT in said["Wants"].split()
    assert "AssertPathExists=/dev/nvidia-uvm" in ran(box, f"systemctl cat {unit}")


def test_the_nodes_are_made_before_the_servers_run(box):
    ran(box, f"systemctl start {SERVER} {RPC}")
    for unit in (SERVER, RPC):  # a started RPC server restarts llama-server
        lab.eventually(lambda unit=unit: show(box, unit, "ActiveState")["ActiveState"] == "active")
    assert ran(box, "stat -c '%F %t:%T %a' /dev/nvidia-uvm /dev/nvidia0 /dev/nvidiactl").splitlines() == [
        "character special file 1ff:0 666", "character special file c3:0 666", "character special file c3:ff 666",
    ]  # fmt: skip


def test_a_reboot_brings_nodes_and_servers_back(box):
    before = show(box, UNIT, "InvocationID")
    reboot()
    lab.eventually(lambda: show(box, SERVER, "ActiveState")["ActiveState"] == "active")
    assert show(box, UNIT, "InvocationID") != before
    lab.eventually(lambda: show(box, RPC, "ActiveState")["ActiveState"] == "active")
    when = {
        unit: int(show(box, unit, "ActiveEnterTimestampMonotonic")["ActiveEnterTimestampMonotonic"])
        for unit in (UNIT, SERVER, RPC)
    }
    assert 0 < when[UNIT] <= min(when[SERVER], when[RPC])


def test_a_node_that_comes_late_is_waited_for_and_the_server_follows(box):
    ran(box, f"systemctl stop {SERVER} {RPC} {UNIT}; rm -f /dev/nvidia-uvm")
    modules(box, uvm="")
    waiting(box, 180)
    ran(box, f"systemctl start --no-block {SERVER}")
    lab.eventually(lambda: show(box, UNIT, "ActiveState")["ActiveState"] == "activating")
    assert show(box, SERVER, "ActiveState", "NRestarts") == {"ActiveState": "inactive", "NRestarts": "0"}
    modules(box)
    lab.eventually(lambda: show(box, SERVER, "ActiveState")["ActiveState"] == "active")
    assert show(box, SERVER, "NRestarts")["NRestarts"] == "0"
    waiting(box, 6)


def test_a_node_that_never_comes_is_named_and_no_server_is_tried(box):
    ran(box, f"systemctl stop {SERVER} {RPC} {UNIT}; rm -f /dev/nvidia-uvm")
    modules(box, uvm="")
    assert box.run(f"systemctl start {SERVER}").rc != 0
    assert show(box, UNIT, "ActiveState", "Result") == {"ActiveState": "failed", "Result": "exit-code"}
    journal = ran(box, f"journalctl --no-pager -o cat -n 5 _SYSTEMD_UNIT={UNIT}")
    assert "/dev/nvidia-uvm (the kernel module nvidia_uvm is not loaded)" in journal
    said = show(box, SERVER, "ActiveState", "NRestarts", "AssertResult", "ExecMainPID")
    assert (said["ActiveState"], said["NRestarts"], said["AssertResult"]) == ("inactive", "0", "no")


def test_the_rule_of_a_loaded_driver_brings_nodes_and_servers(box):
    modules(box)
    rule = box.file("/etc/udev/rules.d/72-mixed-gpu-nodes.rules").content_string
    assert 'DEVPATH=="/bus/pci/drivers/nvidia"' in rule
    ran(box, re.search(r'RUN\+="([^"]+)"', rule)[1])
    for unit in (UNIT, SERVER, RPC):
        lab.eventually(lambda unit=unit: show(box, unit, "ActiveState")["ActiveState"] == "active")


def test_a_module_that_was_loaded_again_gets_a_node_of_its_new_number(box):
    modules(box, uvm="508 nvidia-uvm\n")
    invocation = show(box, SERVER, "InvocationID")
    rule = box.file("/etc/udev/rules.d/72-mixed-gpu-nodes.rules").content_string
    ran(box, re.search(r'RUN\+="([^"]+)"', rule)[1])
    lab.eventually(lambda: ran(box, "stat -c %t:%T /dev/nvidia-uvm").strip() == "1fc:0")
    assert show(box, SERVER, "InvocationID") == invocation


def test_a_server_that_dies_during_each_load_is_failed_in_the_end_and_says_why(box, controller):
    said = show(box, SERVER, "StartLimitIntervalUSec", "StartLimitBurst", "RestartUSec")
    assert said == {"StartLimitIntervalUSec": "2h 50min 50s", "StartLimitBurst": "10", "RestartUSec": "5s"}
    folder = f"/run/systemd/system/{SERVER}.d"
    ran(
        box, f"mkdir -p {folder} && printf '[Service]\nRestartSec=0\n' > {folder}/quick.conf && systemctl daemon-reload"
    )
    ran(box, "mv /usr/local/bin/server /usr/local/bin/server.kept")
    box.run("printf %s > /usr/local/bin/server; chmod 755 /usr/local/bin/server",
            "#!/bin/sh\necho 'cudaMalloc failed: out of memory'\nsleep 1\nexit 1\n")  # fmt: skip
    ran(box, f"systemctl reset-failed {SERVER}; systemctl restart {SERVER}")
    try:
        lab.eventually(lambda: show(box, SERVER, "ActiveState")["ActiveState"] == "failed")
    finally:
        ran(box, f"mv /usr/local/bin/server.kept /usr/local/bin/server; rm -r {folder}; systemctl daemon-reload")
    told = " ".join(controller.ask("homelab.mixed_gpu.llama_server_info").split())
    assert "llama-server.service is not started any more, because it ended after each of 10 starts" in told
    assert re.search(r"it ended with exit status 1, \d+ s after its start", told) and "cudaMalloc failed" in told
