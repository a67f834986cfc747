# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The words of the protocol, against a server of them on this machine; those marked live against the real one."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_link


def _exactly(connection: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        found += connection.recv(count - len(found)) or pytest.fail("the client closed")
    return found


class Server:
    """Answers as ggml-rpc-server does, with one buffer."""

    def __init__(self, major: int = rpc_link.KNOWN_MAJOR, pointer: int = 4096, capabilities: int = 24) -> None:
        self.major, self.pointer, self.capabilities, self.received = major, pointer, capabilities, 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self.serve, daemon=True).start()

    def serve(self) -> None:
        connection, _address = self.listener.accept()
        with connection:
            while head := connection.recv(1):
                (size,) = struct.unpack("<Q", _exactly(connection, 8))
                self.answer(connection, head[0], _exactly(connection, size))

    def answer(self, connection: socket.socket, command: int, request: bytes) -> None:
        answers: dict[int, t.Callable[[], bytes]] = {
            14: lambda: bytes([self.major, 1, 2, 0]) + bytes(self.capabilities),
            15: lambda: struct.pack("<I", 1),
            0: lambda: struct.pack("<QQ", self.pointer, struct.unpack("<IQ", request)[1]),
            3: lambda: struct.pack("<Q", 65536),
            8: lambda: bytes(struct.unpack("<QQ", request[-16:])[1]),
        }
        if command in (4, 6):
            self.received += len(request) - rpc_link._TENSOR.size - 9 if command == 6 else 0
            return  # as the real one: without an answer
        found = answers[command]()
        connection.sendall(struct.pack("<Q", len(found)) + found)


def test_a_link_is_measured_by_what_the_server_sends_and_receives():
    server = Server()
    found = rpc_link.measure("127.0.0.1", server.port, 30)
    assert found["protocol"] == f"{rpc_link.KNOWN_MAJOR}.1.2"
    assert found["round_trip_ms"] > 0 and found["to_mb_per_s"] > 0 and found["from_mb_per_s"] > 0
    assert server.received in (2 * rpc_link._SMALL, 2 * (rpc_link._SMALL + rpc_link._LARGE))


def test_of_another_protocol_the_greeting_alone_is_known():
    found = rpc_link.measure("127.0.0.1", Server(major=rpc_link.KNOWN_MAJOR + 1).port, 30)
    assert found["protocol"] == f"{rpc_link.KNOWN_MAJOR + 1}.1.2" and found["round_trip_ms"] > 0
    assert found["to_mb_per_s"] is None and found["from_mb_per_s"] is None


def test_a_greeting_may_be_longer_than_the_known_one():
    found = rpc_link.measure("127.0.0.1", Server(major=rpc_link.KNOWN_MAJOR + 1, capabilities=64).port, 30)
    assert found["protocol"] == f"{rpc_link.KNOWN_MAJOR + 1}.1.2" and found["to_mb_per_s"] is None
    assert rpc_link.measure("127.0.0.1", Server(capabilities=0).port, 30)["to_mb_per_s"]


def raw(answer: bytes, unread: bool = False) -> int:
    """Start a server that answers the first message with that and hangs up; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(1 if unread else 33, socket.MSG_WAITALL)
            connection.sendall(answer)

    threading.Thread(target=serve, daemon=True).start()
    return listener.getsockname()[1]


@pytest.mark.parametrize("unread", [False, True], ids=["hangs up", "resets"])
def test_whose_greeting_is_not_known_here_is_left_to_llama_cpp(unread):
    found = rpc_link.measure("127.0.0.1", raw(b"", unread), 30)
    assert found["protocol"] == "" and found["round_trip_ms"] > 0
    assert found["to_mb_per_s"] is None and found["from_mb_per_s"] is None


def test_what_is_no_rpc_server_is_named():
    with pytest.raises(ValueError, match="it greets with [0-9]+ bytes, so it is no RPC server"):
        rpc_link.measure("127.0.0.1", raw(b"HTTP/1.1 400 Bad Request\r\n"), 30)


def test_a_full_device_is_named():
    with pytest.raises(ValueError, match="its device has no 4 MiB free"):
        rpc_link.measure("127.0.0.1", Server(pointer=0).port, 30)


def test_a_server_that_sends_byte_by_byte_is_given_up():
    """Each byte comes in time, all of them would take for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _address = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.sendall(struct.pack("<Q", 28))
                while True:
                    connection.sendall(b"\x07")
                    time.sleep(0.2)

        threading.Thread(target=serve, daemon=True).start()
        with pytest.raises(TimeoutError):
            rpc_link.measure("127.0.0.1", listener.getsockname()[1], timeout_seconds=1)


@pytest.mark.live
def test_the_real_server_is_measured(rpc_endpoints):
    host, _colon, port = rpc_endpoints[0].rpartition(":")
    found = rpc_link.measure(host, int(port), 30)
    assert found["protocol"].startswith(f"{rpc_link.KNOWN_MAJOR}.") and found["to_mb_per_s"] > 0
