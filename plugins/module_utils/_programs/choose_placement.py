# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Starts llama-server with the first placement whose lenders answer; the role llama_server copies it to the host.

    choose_placement.py [--patience SECONDS] [--protocol MAJOR.MINOR] --lender HOST:PORT... --placement WORDS... \\
        -- PROGRAM ARGUMENT...
    choose_placement.py --ask [--protocol MAJOR.MINOR] --lender HOST:PORT...      prints those that answer, one a line

Without it, a lender that is off ends llama-server at its start, and one that sleeps blocks it for ever. A lender is
asked as llama.cpp asks it: a connection, and the protocol's first message, HELLO, which also tells a server that hangs,
and one whose protocol this llama.cpp refuses. Which one it speaks says its build.json, else --protocol.
Each placement is the part of llama-server's arguments that differs, the preferred one first. Where none can be used it
waits. The unit's status tells what was chosen, and verify and watchdog read it there. Standard library only.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import json
import os
import pathlib
import shlex
import signal
import socket
import struct
import sys
import time
import typing as t

#: Of one connection, and of one answer.
ANSWER_SECONDS: t.Final = 3.0
#: An absent lender is asked again after this time.
PAUSE_SECONDS: t.Final = 1.0
#: RPC_CMD_HELLO of ggml-rpc.cpp with bytes that offer no other transport; what comes back begins with the version.
COMMAND: t.Final = 14
OFFER: t.Final = bytes(24)
HELLO: t.Final = struct.pack("<BQ", COMMAND, len(OFFER)) + OFFER
ANSWER_BYTES: t.Final = range(3, 4097)

ALL: t.Final = "all lenders answer"
WITHOUT: t.Final = "without "
WAITS: t.Final = "waits for "
CURE: t.Final = "run homelab.mixed_gpu.site over both"


class Version(t.NamedTuple):
    """The protocol's version."""

    major: int
    minor: int

    @classmethod
    def parsed(cls, text: str) -> Version:
        """Return the version in C(major.minor). Raises ValueError."""
        major, minor = map(int, text.split("."))
        return cls(major, minor)

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}"

    def takes(self, server: Version) -> bool:
        """Return whether a client of this version connects to a server, as negotiate_hello of ggml-rpc.cpp."""
        return server.major == self.major and server.minor <= self.minor


def hello(endpoint: str, seconds: float = ANSWER_SECONDS) -> Version:
    """Return the protocol's version that a server at C(host:port) speaks. Raises OSError where it does not answer."""
    host, _colon, port = endpoint.rpartition(":")
    with socket.create_connection((host.strip("[]"), int(port)), timeout=seconds) as server:
        deadline = time.monotonic() + seconds
        server.sendall(HELLO)
        answer = b""
        while len(answer) < 8 + ANSWER_BYTES.start:
            server.settimeout(max(0.001, deadline - time.monotonic()))
            part = server.recv(8 + ANSWER_BYTES.start - len(answer))
            if not part:
                raise OSError("it speaks another protocol")
            answer += part
    if struct.unpack_from("<Q", answer)[0] not in ANSWER_BYTES:
        raise OSError("it speaks another protocol")
    return Version(answer[8], answer[9])


def problem(endpoint: str, own: Version | None) -> str:
    """Return why a lender cannot be used, as the end of a sentence; empty where it can.

    C(own) is what llama.cpp here speaks, None where that is not known.
    """
    try:
        found = hello(endpoint)
    except TimeoutError:
        return "does not answer"
    except ConnectionError:
        return "has no RPC server that runs"
    except OSError as exc:
        return f"cannot be used ({exc.strerror or exc})"
    return "" if own is None or own.takes(found) else f"speaks protocol {found}, this llama.cpp {own}"


def problems(endpoints: t.Sequence[str], own: Version | None) -> dict[str, str]:
    """Return why lenders cannot be used, by endpoint; all are asked at the same time."""
    if not endpoints:
        return {}
    with concurrent.futures.ThreadPoolExecutor(len(endpoints)) as pool:
        found = zip(endpoints, pool.map(lambda endpoint: problem(endpoint, own), endpoints), strict=True)
        return {endpoint: why for endpoint, why in found if why}


def endpoints_of(words: t.Sequence[str]) -> set[str]:
    """Return the endpoints that a placement uses."""
    after = dict(zip(words, words[1:], strict=False))
    return set(after["--rpc"].split(",")) if "--rpc" in after else set()


def choice(placements: t.Sequence[t.Sequence[str]], absent: t.Collection[str]) -> t.Sequence[str] | None:
    """Return the first placement that uses no absent endpoint; None where each does."""
    return next((words for words in placements if not endpoints_of(words) & set(absent)), None)


def status(text: str) -> None:
    """Tell systemd what the unit does now."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
            teller.connect(address.replace("@", "\0", 1) if address.startswith("@") else address)
            teller.sendall(f"STATUS={text}".encode())


def say(priority: int, text: str) -> None:
    """Write one line to the journal, with a priority of syslog(3)."""
    sys.stdout.write(f"<{priority}>{text}\n")
    sys.stdout.flush()


def without(words: str, endpoints: t.Iterable[str], absent: t.Mapping[str, str]) -> str:
    """Return the status of a start without lenders; of one that answers in another protocol, also what to do."""
    others = [f"; lender {endpoint} {why}: {CURE}" for endpoint, why in absent.items() if "protocol" in why]
    return words + ",".join(endpoints) + "".join(others)


def chosen(
    lenders: t.Sequence[str], placements: t.Sequence[t.Sequence[str]], patience: float, own: Version | None
) -> t.Sequence[str]:
    """Return the placement to start with, after all lenders answer, or the patience is over; wait while none can be.

    A lender that is just being started gets C(patience) seconds: loading a model takes longer than that.
    """
    until, told = time.monotonic() + patience, ""
    while True:
        absent = problems(lenders, own)
        found = choice(placements, absent)
        if not absent or (found is not None and time.monotonic() >= until):
            break
        if found is None and time.monotonic() >= until:
            whys = ", ".join(f"{endpoint} {why}" for endpoint, why in absent.items())
            if whys != told:
                say(3, f"nothing fits without the lenders that are missing ({whys}): waiting for them")
                status(without(WAITS, absent, absent))
            told = whys
        time.sleep(PAUSE_SECONDS)
    left_out = [endpoint for endpoint in lenders if endpoint not in endpoints_of(found or ())]
    for endpoint, why in absent.items():
        say(4, f"the lender {endpoint} {why}: starting without it")
    status(without(WITHOUT, left_out, absent) if absent else ALL)
    return found or ()


def spoken(program: str) -> Version | None:
    """Return the protocol that the build of a program speaks, None where its build.json does not say.

    What was recorded is that of the build that was tuned; an upgrade starts another one before it records anything.
    """
    try:
        record = json.loads((pathlib.Path(program).parents[1] / "build.json").read_text(encoding="utf-8"))
        return Version.parsed(record["rpc_protocol"])
    except (OSError, ValueError, TypeError, AttributeError, KeyError, IndexError):
        return None


def parsed(words: t.Sequence[str]) -> argparse.Namespace:
    """Return what is asked for."""
    parser = argparse.ArgumentParser(prog="choose_placement.py")
    parser.add_argument("--patience", type=float, default=5.0)
    parser.add_argument("--lender", action="append", default=[])
    parser.add_argument("--placement", action="append", default=[])
    parser.add_argument("--protocol", type=Version.parsed)
    parser.add_argument("--ask", action="store_true")
    return parser.parse_args(words)


def main(words: t.Sequence[str]) -> int:
    """Replace this process by the server, or print which lenders answer."""
    end = words.index("--") if "--" in words else len(words)
    wanted, server = parsed(words[:end]), words[end + 1 :]
    if wanted.ask:
        absent = problems(wanted.lender, wanted.protocol)
        sys.stdout.writelines(f"{endpoint}\n" for endpoint in wanted.lender if endpoint not in absent)
        return 0
    placements = [shlex.split(text) for text in wanted.placement]
    placement = chosen(wanted.lender, placements, wanted.patience, spoken(server[0]) or wanted.protocol)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # Python ignores it, and what is executed would do so, too
    os.execv(server[0], [server[0], *placement, *server[1:]])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
