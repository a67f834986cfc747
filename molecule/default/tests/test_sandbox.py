"""What measures and asks runs in the sandbox of the units that serve."""

from __future__ import annotations

import json
import subprocess

import pytest

EVIL = "/opt/evil/llama-bench"
#: says who it is, and tries what it must not
SCRIPT = """#!/bin/sh
id -u
touch /etc/owned /var/lib/mixed_gpu/owned /srv/models/owned
python3 -c 'import socket; socket.create_connection(("192.0.2.1", 80), 3)'
ls /dev/kmsg
cat /etc/shadow
setsid sleep 987654 &
exit 1
"""


@pytest.fixture
def evil(host):
    """A llama-bench that is not to be trusted."""
    host.run("mkdir -p /opt/evil; printf %s %s > %s; chmod 755 %s", "%s", SCRIPT, EVIL, EVIL)
    yield EVIL
    host.run("rm -r /opt/evil; rm -f /etc/owned")


def _module(controller, name, arguments):
    command = [
        "ansible", f"--inventory={controller.project}/inventories/sandbox", "mixed_gpu", "-m",
        f"homelab.mixed_gpu.{name}", "-a", json.dumps(arguments),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return json.loads(done.stdout[done.stdout.index("{") :])


def test_every_measurement_was_made_in_the_sandbox(host):
    folder = "/var/lib/mixed_gpu/measurements"
    loads = host.run("grep -l wall_ms %s/*.json", folder).stdout.split()
    assert loads
    assert [path for path in loads if '"sandboxed": true' not in host.file(path).content_string] == []
    units = host.run("journalctl --no-pager -o cat -u 'mixed-gpu-run-*' | grep -c ^Started").stdout
    assert int(units) >= len(loads)


def test_what_is_not_trusted_has_no_power(host, controller, evil):
    answer = _module(controller, "llama_devices_info", {"llama_bench": evil})
    said = answer["stderr"]
    assert answer["failed"]
    assert "touch: cannot touch '/etc/owned': Read-only file system" in said
    assert "touch: cannot touch '/var/lib/mixed_gpu/owned': Read-only file system" in said
    assert "touch: cannot touch '/srv/models/owned': Read-only file system" in said
    assert "Network is unreachable" in said or "Operation not permitted" in said
    assert "cannot access '/dev/kmsg'" in said
    assert "/etc/shadow: Permission denied" in said
    assert not host.file("/etc/owned").exists
    # nothing of it is left, the unit neither
    assert host.run("pgrep -f 'sleep [9]87654'").stdout == ""
    assert host.run("systemctl list-units --all --no-legend 'mixed-gpu-run-*'").stdout == ""
