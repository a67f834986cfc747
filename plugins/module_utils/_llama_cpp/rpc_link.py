# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How quick the way to an RPC server is, asked of the server itself. Private to this collection.

A few words of ggml-rpc's protocol: nothing else has to listen on the lender. A server serves one client at a time, so
call this under the lease only. Of an answer nothing is used but numbers of known size.
"""

from __future__ import annotations

import socket
import statistics
import struct
import time
import typing as t

from .._base.errors import UserError
from .._programs import choose_placement

#: Version of the protocol whose words for memory are known here; of another one the greeting alone is used. Whether a
#: box and a lender fit together is never judged by it: llama.cpp does that, once it lists the devices.
KNOWN_MAJOR: t.Final = 7

_ALLOC, _FREE, _BASE, _SET, _GET, _COUNT = 0, 4, 3, 6, 8, 15
#: id, type, buffer, ne[4], nb[4], op, op_params[16], flags, src[10], view_src, view_offs, data, name, use_count
_TENSOR: t.Final = struct.Struct("<QIQ4I4II16ii10QQQQ64si")
_TYPE_I8: t.Final = 24
_SMALL: t.Final = 4 << 20
_LARGE: t.Final = 32 << 20
#: A transfer that takes less says little of a rate.
_LEAST_SECONDS: t.Final = 0.2
#: The first transfer is slow: TCP begins slowly, and the server touches its memory for the first time.
_TIMES: t.Final = 2
_EXCHANGES: t.Final = 100


#: An exchange that takes so much longer than others has waited for a packet that was lost, where one was sent again.
_STALL_MS: t.Final = 100.0
_MORE: t.Final = 4
#: Where tcp_info of Linux has how many packets were sent again.
_SENT_AGAIN: t.Final = struct.Struct("100xI")


class Link(t.TypedDict):
    """A way to a server: protocol, a small exchange in ms, and MB (10^6 bytes) per second to it and from it.

    C(stalls_ms) is what packets that are lost add to an exchange, on average: TCP waits 200 ms and more for the last
    one of a message.

    The rates are None where the server speaks another version of the protocol, whose words are not known here; the
    protocol is empty where it does not even take the greeting that is known here.
    """

    protocol: str
    round_trip_ms: float
    stalls_ms: float
    to_mb_per_s: float | None
    from_mb_per_s: float | None


class _ClosedError(UserError):
    """The server ended the connection."""


class _Client:
    """One connection."""

    def __init__(self, host: str, port: int, timeout_seconds: float) -> None:
        self.timeout_seconds = timeout_seconds
        self.socket = socket.create_connection((host, port), timeout_seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, command: int, request: bytes = b"", more: bytes = b"") -> None:
        """Send a command whose request has two parts, so that a large one is not copied."""
        self.socket.settimeout(self.timeout_seconds)
        self.socket.sendall(struct.pack("<BQ", command, len(request) + len(more)) + request)
        self.socket.sendall(more)

    def ask(self, command: int, request: bytes, answer_bytes: int) -> bytes:
        """Send a command and return its answer, which must have that size."""
        size, deadline = self._asked(command, request)
        if size != answer_bytes:
            raise UserError(f"it answers {size} bytes where {answer_bytes} belong")
        return self._receive(answer_bytes, deadline)

    def greet(self) -> tuple[int, ...] | None:
        """Return the version of the server's protocol; None where it ends the connection, as it does for another."""
        try:
            size, deadline = self._asked(choose_placement.COMMAND, choose_placement.OFFER)
        except (_ClosedError, ConnectionError):
            return None
        if size not in choose_placement.ANSWER_BYTES:
            raise UserError(f"it greets with {size} bytes, so it is no RPC server")
        return tuple(self._receive(size, deadline)[:3])

    def _asked(self, command: int, request: bytes) -> tuple[int, float]:
        """Send a command; return the size of its answer, and until when that is waited for."""
        self.send(command, request)
        deadline = time.monotonic() + self.timeout_seconds
        (size,) = struct.unpack("<Q", self._receive(8, deadline))
        return size, deadline

    def _receive(self, count: int, deadline: float) -> bytes:
        """Return that many bytes; a server that sends them one by one is as good as one that hangs."""
        found, have = memoryview(bytearray(count)), 0
        while have < count:
            self.socket.settimeout(max(0.001, deadline - time.monotonic()))
            part = self.socket.recv_into(found[have:])
            if not part:
                raise _ClosedError("it closed the connection")
            have += part
        return bytes(found)


def measure(host: str, port: int, timeout_seconds: float) -> Link:
    """Return how quick the way to a server is. Raises UserError with the reason, OSError where it is not reached."""
    client = _Client(host, port, timeout_seconds)
    try:
        began = time.perf_counter()
        version = client.greet()
        protocol, greeted = ".".join(map(str, version or ())), time.perf_counter()
        if version is None or version[0] != KNOWN_MAJOR:
            waited = 1000 * (greeted - began)
            none = {"stalls_ms": 0.0, "to_mb_per_s": None, "from_mb_per_s": None}
            return t.cast(Link, {"protocol": protocol, "round_trip_ms": waited, **none})
        times = _exchanges(client, _EXCHANGES)
        if max(times) > statistics.median(times) + _STALL_MS:
            times += _exchanges(client, _MORE * _EXCHANGES)  # stalls are rare: so few of them say little
        (sent_again,) = _SENT_AGAIN.unpack(
            client.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _SENT_AGAIN.size)
        )
        there, back = _transfers(client, min(times) / 1000)
    finally:
        client.socket.close()
    usual = statistics.median(times)
    stalls = sum(taken - usual for taken in times if sent_again and taken > usual + _STALL_MS) / len(times)
    return {
        "protocol": protocol, "round_trip_ms": usual, "stalls_ms": stalls,
        "to_mb_per_s": there / 1e6, "from_mb_per_s": back / 1e6,
    }  # fmt: skip


def _exchanges(client: _Client, count: int) -> list[float]:
    """Return how long small exchanges take, in ms."""
    times = []
    for _exchange in range(count):
        began = time.perf_counter()
        client.ask(_COUNT, b"", 4)
        times.append(1000 * (time.perf_counter() - began))
    return times


def _transfers(client: _Client, round_trip: float) -> tuple[float, float]:
    """Return bytes per second to the server and from it."""
    found = _transfer(client, _SMALL, round_trip)
    if min(_SMALL / rate for rate in found) < _LEAST_SECONDS:
        found = _transfer(client, _LARGE, round_trip)
    return found


def _transfer(client: _Client, size: int, round_trip: float) -> tuple[float, float]:
    """Return the best rates of a few transfers of that many bytes."""
    pointer, _size = struct.unpack("<QQ", client.ask(_ALLOC, struct.pack("<IQ", 0, size), 16))
    if not pointer:
        raise UserError(f"its device has no {size >> 20} MiB free")
    (base,) = struct.unpack("<Q", client.ask(_BASE, struct.pack("<Q", pointer), 8))
    sizes = (size, 1, 1, 1, 1, size, size, size)
    tensor = _TENSOR.pack(0, _TYPE_I8, pointer, *sizes, 0, *[0] * 16, 0, *[0] * 10, 0, 0, base, b"link", 0)
    data, there, back = bytes(size), 0.0, 0.0
    for _time in range(_TIMES):
        began = time.perf_counter()
        client.send(_SET, tensor + struct.pack("<BQ", 0, 0), data)
        client.ask(_COUNT, b"", 4)
        sent = time.perf_counter()
        client.ask(_GET, tensor + struct.pack("<QQ", 0, size), size)
        received = time.perf_counter()
        there = max(there, size / max(sent - began - round_trip, 1e-6))
        back = max(back, size / max(received - sent - round_trip, 1e-6))
    client.send(_FREE, struct.pack("<Q", pointer))
    return there, back
