# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program that starts llama-server without an absent lender: run as the unit runs it, on servers of one answer."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import choose_placement

PROGRAM = choose_placement.__file__
#: Prints its arguments and what it does about SIGPIPE, instead of llama-server.
SHOW = '#!/bin/sh\necho "$@"\ngrep SigIgn /proc/$$/status\n'


def lender(lasting: contextlib.ExitStack, answer: bytes | None, port: int = 0) -> str:
    """Start a server that answers each first message alike, or never (None); return its endpoint."""
    server = socket.create_server(("127.0.0.1", port), reuse_port=False)
    held: list[socket.socket] = []

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _address = server.accept()
                held.append(client)
                if answer is not None:
                    client.recv(33, socket.MSG_WAITALL)
                    client.sendall(answer)
                    client.close()

    threading.Thread(target=serve, daemon=True).start()
    lasting.callback(server.close)
    return f"127.0.0.1:{server.getsockname()[1]}"


def version(major: int, minor: int, size: int = 28) -> bytes:
    return struct.pack(f"<QBBB{size - 3}x", size, major, minor, 0)


@pytest.fixture
def lasting() -> t.Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


@pytest.fixture
def closed() -> str:
    """An endpoint at which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


class Started(t.NamedTuple):
    """The program, and where it tells its status."""

    process: subprocess.Popen[str]
    statuses: socket.socket

    def status(self) -> str:
        return self.statuses.recv(1000).decode()


def start(
    folder: pathlib.Path, lasting: contextlib.ExitStack, lenders: t.Sequence[str], placements: t.Sequence[str],
    patience: float = 0, protocol: str = "",
) -> Started:  # fmt: skip
    """Start it as the unit does."""
    statuses = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    lasting.callback(statuses.close)
    statuses.bind(str(folder / "notify"))
    statuses.settimeout(120)
    server = folder / "bin" / "server"
    server.parent.mkdir()
    server.write_text(SHOW)
    server.chmod(0o755)
    words = [f"--lender={name}" for name in lenders] + [f"--placement={text}" for text in placements]
    words += [f"--protocol={protocol}"] if protocol else []
    process = subprocess.Popen(
        [sys.executable, PROGRAM, f"--patience={patience}", *words, "--", str(server), "-m", "a model.gguf"],
        stdout=subprocess.PIPE, text=True, env={"NOTIFY_SOCKET": str(folder / "notify")},
    )  # fmt: skip
    lasting.callback(process.wait)
    lasting.callback(process.kill)
    return Started(process, statuses)


def test_the_full_placement_is_started_where_all_answer(tmp_path: pathlib.Path, lasting: contextlib.ExitStack) -> None:
    endpoint = lender(lasting, version(7, 0))
    done = start(tmp_path, lasting, [endpoint], [f"--rpc {endpoint} -dev RPC0,CUDA0", "-dev CUDA0"])
    said, _error = done.process.communicate(timeout=120)
    assert said.splitlines()[0] == f"--rpc {endpoint} -dev RPC0,CUDA0 -m a model.gguf"
    assert done.status() == "STATUS=all lenders answer"
    # the server takes SIGPIPE as if it had been started by systemd itself
    ignored = int(said.splitlines()[1].split()[1], 16)
    assert not ignored & 1 << (signal.SIGPIPE - 1)


def test_the_first_placement_without_the_absent_one(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack, closed: str
) -> None:
    there = lender(lasting, version(7, 0))
    placements = [f"--rpc {closed},{there} -dev all", f"--rpc {there} -dev RPC0", "-dev CUDA0"]
    done = start(tmp_path, lasting, [closed, there], placements)
    said, _error = done.process.communicate(timeout=120)
    assert f"<4>the lender {closed} has no RPC server that runs: starting without it" in said
    assert f"--rpc {there} -dev RPC0 -m a model.gguf" in said and done.status() == f"STATUS=without {closed}"


def test_a_lender_of_the_same_absent_host_is_left_out_and_named(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack, closed: str
) -> None:
    there = lender(lasting, version(7, 0))
    done = start(tmp_path, lasting, [closed, there], [f"--rpc {closed},{there} -dev all", "-dev CUDA0"])
    said, _error = done.process.communicate(timeout=120)
    assert said.splitlines()[-2] == "-dev CUDA0 -m a model.gguf"
    assert done.status() == f"STATUS=without {closed},{there}"


@pytest.mark.parametrize(
    ("answer", "seconds", "why"),
    [(None, 0.3, "does not answer"), (b"HTTP/1.1 400 Bad Request\r\n" + b"x" * 40, 60, "speaks another protocol"),
     (b"", 60, "speaks another protocol")],
    ids=["silent", "something else", "hangs up"],
)  # fmt: skip
def test_who_does_not_answer_as_a_lender_does(
    monkeypatch: pytest.MonkeyPatch, lasting: contextlib.ExitStack, answer: bytes | None, seconds: float, why: str
) -> None:
    monkeypatch.setattr(choose_placement.hello, "__defaults__", (seconds,))
    assert why in choose_placement.problem(lender(lasting, answer), None)


@pytest.mark.parametrize(
    ("own", "server", "used"),
    [("7.0", (7, 0), True), ("7.1", (7, 0), True), ("", (8, 3), True),
     ("7.0", (7, 1), False), ("7.0", (8, 0), False), ("8.0", (7, 0), False), ("7.9", (7, 10), False)],
)  # fmt: skip
def test_a_lender_of_another_protocol_is_absent(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack, own: str, server: tuple[int, int], used: bool
) -> None:
    endpoint = lender(lasting, version(*server))
    done = start(tmp_path, lasting, [endpoint], [f"--rpc {endpoint} -dev RPC0", "-dev CUDA0"], protocol=own)
    said, _error = done.process.communicate(timeout=120)
    assert (f"--rpc {endpoint} -dev RPC0 -m a model.gguf" in said) is used
    if used:
        assert done.status() == "STATUS=all lenders answer"
        return
    why = f"lender {endpoint} speaks protocol {server[0]}.{server[1]}, this llama.cpp {own}"
    assert done.status() == f"STATUS=without {endpoint}; {why}: run homelab.mixed_gpu.site over both"
    assert f"<4>the {why}: starting without it" in said
    words = [sys.executable, PROGRAM, "--ask", f"--lender={endpoint}"]
    asked = [subprocess.run([*words, *more], capture_output=True, text=True, check=True).stdout.split()
             for more in ([], [f"--protocol={own}"])]  # fmt: skip
    assert asked == [[endpoint], []]


@pytest.mark.parametrize(
    ("said", "used"),
    [('{"rpc_protocol": "8.0"}', True), ('{"rpc_protocol": "7.0"}', False), ('{"rpc_protocol": ""}', False),
     ('{"rpc_protocol": null}', False), ("[]", False), ("{", False)],
)  # fmt: skip
def test_the_build_that_is_started_says_its_protocol_before_the_record_does(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack, said: str, used: bool
) -> None:
    endpoint = lender(lasting, version(8, 0))
    (tmp_path / "build.json").write_text(said)
    done = start(tmp_path, lasting, [endpoint], [f"--rpc {endpoint} -dev RPC0", "-dev CUDA0"], protocol="7.0")
    shown, _error = done.process.communicate(timeout=120)
    assert (f"--rpc {endpoint} -dev RPC0 -m a model.gguf" in shown) is used


def test_a_server_that_waits_says_that_its_lender_speaks_another_protocol(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack
) -> None:
    endpoint = lender(lasting, version(8, 0))
    waiting = start(tmp_path, lasting, [endpoint], [f"--rpc {endpoint} -dev RPC0"], protocol="7.0")
    assert waiting.status() == (
        f"STATUS=waits for {endpoint}; lender {endpoint} speaks protocol 8.0, this llama.cpp 7.0:"
        " run homelab.mixed_gpu.site over both"
    )


def test_where_nothing_fits_it_waits_until_the_lender_is_there(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack, closed: str
) -> None:
    waiting = start(tmp_path, lasting, [closed], [f"--rpc {closed} -dev RPC0"])
    assert waiting.status() == f"STATUS=waits for {closed}"
    assert waiting.process.stdout is not None and waiting.process.poll() is None
    line = waiting.process.stdout.readline()
    assert line == f"<3>nothing fits without the lenders that are missing ({closed} has no RPC server that runs): " \
        "waiting for them\n"  # fmt: skip
    lender(lasting, version(7, 0), int(closed.rpartition(":")[2]))
    assert waiting.status() == "STATUS=all lenders answer"
    assert waiting.process.stdout.readline() == f"--rpc {closed} -dev RPC0 -m a model.gguf\n"


def test_a_lender_that_comes_within_the_patience_is_used(
    tmp_path: pathlib.Path, lasting: contextlib.ExitStack, closed: str
) -> None:
    done = start(tmp_path, lasting, [closed], [f"--rpc {closed} -dev RPC0", "-dev CUDA0"], patience=100000)
    lender(lasting, version(7, 0), int(closed.rpartition(":")[2]))
    said, _error = done.process.communicate(timeout=300)
    assert said.splitlines()[0] == f"--rpc {closed} -dev RPC0 -m a model.gguf"


def test_who_answers_is_printed(lasting: contextlib.ExitStack, closed: str) -> None:
    there = [lender(lasting, version(7, 0)) for _number in range(2)]
    words = [f"--lender={name}" for name in (there[0], closed, there[1])]
    done = subprocess.run([sys.executable, PROGRAM, "--ask", *words], capture_output=True, text=True, check=True)
    assert done.stdout.split() == there


@pytest.mark.parametrize("size", [3, 28, 68])
def test_a_version_may_greet_with_more_than_another(lasting: contextlib.ExitStack, size: int) -> None:
    assert choose_placement.hello(lender(lasting, version(8, 1, size)), 60) == (8, 1)


@pytest.mark.live
def test_a_real_server_answers_and_serves_on(llama_bin: pathlib.Path, rpc_endpoints: list[str]) -> None:
    seen = [choose_placement.hello(rpc_endpoints[0], 60) for _time in range(3)]
    assert len(set(seen)) == 1 and seen[0].major >= 7
    listed = subprocess.run(
        [llama_bin / "llama-bench", "--rpc", rpc_endpoints[0], "--list-devices"],
        capture_output=True, text=True, check=True, timeout=300,
    )  # fmt: skip
    assert "RPC0" in listed.stdout + listed.stderr


@pytest.mark.live
def test_a_real_server_that_hangs_does_not_answer(llama_bin: pathlib.Path, lasting: contextlib.ExitStack) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [str(llama_bin / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    lasting.callback(server.wait)
    lasting.callback(server.kill)
    until = time.monotonic() + 300
    while choose_placement.problem(f"127.0.0.1:{port}", None) and time.monotonic() < until:
        time.sleep(0.1)
    server.send_signal(signal.SIGSTOP)
    assert choose_placement.problem(f"127.0.0.1:{port}", None) == "does not answer"
