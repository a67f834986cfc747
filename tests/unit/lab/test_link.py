# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shaped link of the lab, between two network namespaces: real packets, bounds that a busy machine keeps."""

from __future__ import annotations

import contextlib
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

LINK = pathlib.Path(__file__).parents[3] / "tests/lab/link.py"
pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not os.path.exists("/dev/net/tun"), reason="a link needs root and /dev/net/tun"
)
DELAY_MS = 20.0
RATE_MBIT = 80.0
BYTES = 4_000_000

#: Sends so many bytes, and waits until the other side has them.
SEND = """
import socket, sys, time
with socket.create_connection(("10.77.0.2", 5000), timeout=float(sys.argv[2])) as far:
    begun = time.monotonic()
    far.sendall(b"x" * int(sys.argv[1]))
    far.shutdown(socket.SHUT_WR)
    assert far.recv(1) == b"k"
    print(time.monotonic() - begun)
"""
RECEIVE = """
import socket
server = socket.create_server(("10.77.0.2", 5000))
print("ready", flush=True)
while True:
    near, _peer = server.accept()
    try:
        while near.recv(1 << 20): pass
        near.sendall(b"k")
    except OSError: pass
    near.close()
"""


def link(*words: object) -> None:
    """Run the program."""
    subprocess.run([sys.executable, str(LINK), *map(str, words)], check=True)


def inside(pid: int, program: str, *words: object) -> subprocess.Popen[str]:
    """Start a Python program in the network of a process."""
    return subprocess.Popen(
        ["nsenter", "-t", str(pid), "--net", "--", sys.executable, "-c", program, *map(str, words)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def seconds(pid: int, size: int, patience: float = 300) -> float | None:
    """Return how long a number of bytes takes to the other host; None where they do not arrive."""
    process = inside(pid, SEND, size, patience)
    words, _error = process.communicate()
    return float(words) if process.returncode == 0 else None


class Cable(t.NamedTuple):
    """Two hosts on a link: the link's folder, and a process of the host that sends."""

    folder: pathlib.Path
    sender: int


def host(lasting: contextlib.ExitStack) -> int:
    """Start a network of its own; return a process of it."""
    script = "ip link set lo up && echo up && exec sleep infinity"
    process = subprocess.Popen(["unshare", "--net", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    lasting.callback(process.wait)
    lasting.callback(process.kill)
    assert process.stdout and process.stdout.readline()
    return process.pid


@pytest.fixture(scope="module", params=[65000, 1500], ids=["large packets", "packets of Ethernet"])
def cable(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> t.Iterator[Cable]:
    """A link between two hosts, the second of which receives."""
    folder = tmp_path_factory.mktemp("link")
    with contextlib.ExitStack() as lasting:
        hosts = [host(lasting), host(lasting)]
        named = [f"host{place}={pid}:10.77.0.{place + 1}/24" for place, pid in enumerate(hosts)]
        link("start", folder, "--rate-mbit", RATE_MBIT, "--delay-ms", DELAY_MS, "--mtu", request.param, *named)
        lasting.callback(link, "stop", folder)
        receiver = inside(hosts[1], RECEIVE)
        lasting.callback(receiver.wait)
        lasting.callback(receiver.kill)
        assert receiver.stdout and receiver.stdout.readline()
        yield Cable(folder, hosts[0])


def test_no_faster_than_asked(cable: Cable) -> None:
    took = seconds(cable.sender, BYTES)
    assert took is not None and took >= 0.9 * BYTES * 8 / (RATE_MBIT * 1e6)


def test_a_small_message_takes_a_round_trip_and_a_faster_link_does_not(cable: Cable) -> None:
    folder, sender = cable
    slow = [seconds(sender, 1) for _try in range(3)]
    assert all(took is not None and took >= 2 * DELAY_MS / 1000 for took in slow)
    link("set", folder, "--delay-ms", 0, "--rate-mbit", 10000)
    # the quickest of several: a busy machine delays some of them, never all by as much
    quick = [took for _try in range(20) if (took := seconds(sender, 1)) is not None]
    link("set", folder, "--delay-ms", DELAY_MS, "--rate-mbit", RATE_MBIT)
    assert len(quick) == 20 and min(quick) < min(took for took in slow if took is not None)


def test_bytes_arrive_over_a_link_that_loses_packets(cable: Cable) -> None:
    folder, sender = cable
    link("set", folder, "--loss-percent", 2)
    arrived = seconds(sender, BYTES // 10)
    link("set", folder, "--loss-percent", 0)
    assert arrived is not None


def test_a_cut_cable_carries_nothing_until_it_is_mended(cable: Cable) -> None:
    folder, sender = cable
    link("cut", folder, "host1")
    assert seconds(sender, 1, patience=2) is None
    link("mend", folder, "host1")
    assert seconds(sender, 1) is not None


def test_nothing_is_left_of_a_stopped_link(tmp_path: pathlib.Path) -> None:
    with contextlib.ExitStack() as lasting:
        pid = host(lasting)
        link("start", tmp_path, f"only={pid}:10.77.0.1/24")
        link("stop", tmp_path)
        listed = ["nsenter", "-t", str(pid), "--net", "ip", "-o", "link"]
        found = subprocess.run(listed, check=True, capture_output=True, text=True).stdout
    assert "lo:" in found and "cable0" not in found
