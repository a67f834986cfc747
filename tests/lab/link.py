"""A network of its own between hosts of the lab, of the speed, delay and loss that are asked for. Needs root.

    link.py start FOLDER [--rate-mbit 1000] [--delay-ms 0.15] [--loss-percent 0] [--mtu 65000] HOST=PID:ADDRESS/BITS...
    link.py set FOLDER [--rate-mbit N] [--delay-ms N] [--loss-percent N]
    link.py cut FOLDER HOST      nothing comes or goes, and nobody is told, as with a cable that is pulled out
    link.py mend FOLDER HOST
    link.py stop FOLDER

Each host gets a device `cable0` in the network namespace of process PID, and one process moves the packets between
them, as a switch does. tc netem is not in every kernel. The delay is that of one way. A large MTU keeps the work of a
fast link small; 1500 is possible. A host that was started anew needs a new link.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import fcntl
import ipaddress
import json
import os
import pathlib
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
import typing as t

DEVICE: t.Final = "cable0"
#: So much may wait for a cable before its senders wait, as a network card makes them do.
QUEUE_SECONDS: t.Final = 0.004
WAIT_SECONDS: t.Final = 60
_TUNSETIFF: t.Final = 0x400454CA
_TUN_WITHOUT_HEADER: t.Final = 0x0001 | 0x1000
_CLONE_NEWNET: t.Final = 0x40000000
SHAPE: t.Final = {"rate_mbit": 1000.0, "delay_ms": 0.15, "loss_percent": 0.0}


def join_network(namespace: int) -> None:
    """Enter a network namespace. Raises OSError."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def make_device(pid: int, address: str, mtu: int) -> int:
    """Make the device in the network of a process; return the descriptor that carries its packets."""
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    try:
        join_network(there)
        device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), _TUN_WITHOUT_HEADER))
        for words in (f"link set {DEVICE} mtu {mtu}", f"addr add {address} dev {DEVICE}", f"link set {DEVICE} up"):
            subprocess.run(["ip", *words.split()], check=True)
        return device
    finally:
        join_network(home)
        os.close(home)
        os.close(there)


class Switch:
    """Moves packets between hosts."""

    def __init__(self, folder: pathlib.Path, devices: dict[str, int], addresses: dict[str, str]) -> None:
        self.folder, self.devices = folder, devices
        self.hosts = {ipaddress.ip_interface(text).ip.packed: host for host, text in addresses.items()}
        self.waiting: dict[str, collections.deque[tuple[float, bytes]]] = {
            host: collections.deque() for host in devices
        }
        self.free_at = dict.fromkeys(devices, 0.0)  # when a host's cable has carried what was given to it
        self.held: dict[str, float] = {}  # senders that wait, and until when
        self.shape: dict[str, t.Any] = {}
        self.read_shape()

    def read_shape(self) -> None:
        """Read what is asked for, and say that it holds."""
        self.shape = json.loads((self.folder / "shape.json").read_text())
        write(self.folder / "applied", str(self.shape["number"]))

    def take(self, host: str, now: float) -> None:
        """Take what a host sends, until the cable of a receiver is full."""
        while host not in self.held:
            try:
                packet = os.read(self.devices[host], 65536)
            except BlockingIOError:
                return
            target = self.hosts.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            lost = random.random() * 100 < self.shape["loss_percent"]
            if target is None or {host, target} & set(self.shape["cut"]) or lost:
                continue
            seconds = len(packet) * 8 / (self.shape["rate_mbit"] * 1e6)
            self.free_at[target] = max(self.free_at[target], now) + seconds
            self.waiting[target].append((self.free_at[target] + self.shape["delay_ms"] / 1000, packet))
            if self.free_at[target] - now > QUEUE_SECONDS:
                self.held[host] = self.free_at[target] - QUEUE_SECONDS / 2

    def give(self, now: float) -> float | None:
        """Hand out what has arrived; return when the next packet does, or a sender may go on."""
        for host, packets in self.waiting.items():
            while packets and packets[0][0] <= now:
                try:
                    os.write(self.devices[host], packets.popleft()[1])
                except OSError:  # the device is down or its host is gone: the packet is lost
                    continue
        self.held = {host: until for host, until in self.held.items() if until > now}
        times = [*(packets[0][0] for packets in self.waiting.values() if packets), *self.held.values()]
        return min(times, default=None)

    def run(self) -> None:
        """Move packets for ever; SIGHUP has the shape read again."""
        wake, alarm = socket.socketpair()
        alarm.setblocking(False)
        signal.set_wakeup_fd(alarm.fileno())
        signal.signal(signal.SIGHUP, lambda _number, _frame: None)
        names = {device: host for host, device in self.devices.items()}
        while True:
            due = self.give(time.monotonic())
            wait = None if due is None else max(0.0, due - time.monotonic())
            senders = [device for device, host in names.items() if host not in self.held]
            for ready in select.select([wake, *senders], [], [], wait)[0]:
                if ready is wake:
                    wake.recv(64)
                    self.read_shape()
                else:
                    self.take(names[ready], time.monotonic())


def write(path: pathlib.Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def wait_for(what: t.Callable[[], bool], failure: str) -> None:
    """Wait until something holds; end with a sentence where it does not."""
    until = time.monotonic() + WAIT_SECONDS
    while not what():
        if time.monotonic() > until:
            sys.exit(f"link: {failure}")
        time.sleep(0.01)


def start(folder: pathlib.Path, wanted: argparse.Namespace) -> None:
    """Start the process that moves the packets; it outlives this one."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "applied").unlink(missing_ok=True)
    shape = {name: getattr(wanted, name) for name in SHAPE}
    write(folder / "shape.json", json.dumps({**shape, "cut": [], "number": 0}))
    with open(folder / "log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, __file__, "serve", str(folder), *wanted.hosts, "--mtu", str(wanted.mtu)],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    write(folder / "pid", str(process.pid))
    done = (folder / "applied").exists
    wait_for(lambda: done() or process.poll() is not None, "the link did not come up")
    if process.poll() is not None:
        sys.exit(f"link: {(folder / 'log').read_text()}")


def change(folder: pathlib.Path, wanted: t.Callable[[dict[str, t.Any]], dict[str, t.Any]]) -> None:
    """Change what the link does, and wait until it does that."""
    shape = json.loads((folder / "shape.json").read_text())
    shape = {**wanted(shape), "number": shape["number"] + 1}
    write(folder / "shape.json", json.dumps(shape))
    os.kill(int((folder / "pid").read_text()), signal.SIGHUP)
    wait_for(lambda: (folder / "applied").read_text() == str(shape["number"]), "the link does not answer")


def stop(folder: pathlib.Path) -> None:
    """End the link; its devices go with it."""
    pid = int((folder / "pid").read_text())
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        return
    files = f"/proc/{pid}/fd"  # a process that has ended has none, whether or not its parent has asked for its status
    wait_for(lambda: not os.path.exists(files) or not os.listdir(files), "the link does not end")


def serve(folder: pathlib.Path, wanted: argparse.Namespace) -> None:
    """Make the devices and move the packets."""
    devices, addresses = {}, {}
    for word in wanted.hosts:
        host, _sign, rest = word.partition("=")
        pid, _colon, addresses[host] = rest.partition(":")
        devices[host] = make_device(int(pid), addresses[host], wanted.mtu)
    Switch(folder, devices, addresses).run()


def parsed(words: t.Sequence[str]) -> argparse.Namespace:
    """Return the command."""
    parser = argparse.ArgumentParser(prog="link.py", description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["start", "serve", "set", "cut", "mend", "stop"])
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("hosts", nargs="*")
    for name in SHAPE:
        parser.add_argument(f"--{name.replace('_', '-')}", type=float)
    parser.add_argument("--mtu", type=int, default=65000)
    return parser.parse_intermixed_args(words)


def main(words: t.Sequence[str]) -> None:
    """Do what a command says."""
    wanted = parsed(words)
    asked = {name: value for name in SHAPE if (value := getattr(wanted, name)) is not None}
    if wanted.command == "start":
        vars(wanted).update({**SHAPE, **asked})
        start(wanted.folder, wanted)
    elif wanted.command == "serve":
        serve(wanted.folder, wanted)
    elif wanted.command == "stop":
        stop(wanted.folder)
    elif wanted.command == "set":
        change(wanted.folder, lambda shape: {**shape, **asked})
    else:
        named = set(wanted.hosts)
        combine = set.union if wanted.command == "cut" else set.difference
        change(wanted.folder, lambda shape: {**shape, "cut": sorted(combine(set(shape["cut"]), named))})


if __name__ == "__main__":
    main(sys.argv[1:])
