# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs a program of an engine on a host, in the sandbox of the units that serve. Private to this collection.

It acts on behalf of the modules that measure and ask. Where systemd runs, the program is a transient service
(systemd-run) with the properties of unit_sandbox: an unprivileged user, closed devices, only the network that it needs.
Where systemd does not run (a test, a container) there is no such thing: the program runs directly, as the user of the
module. Nothing else decides between the two.
"""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import ipaddress
import os
import re
import signal
import socket
import stat
import subprocess
import tempfile
import time
import typing as t

from . import unit_sandbox
from .errors import UserError

#: Exists where systemd is the init (sd_booted(3)).
BOOTED = "/run/systemd/system"
#: Every unit of this session is mixed-gpu-run-SESSION-*: who ends a session ends its units (plugin_utils/job.py).
PREFIX: t.Final = "mixed-gpu-run"
#: The user of programs that build.
BUILDER: t.Final = "mixed-gpu-build"
#: Marks every process of a program that runs directly, whatever process group or session it moved itself into.
MARK: t.Final = "MIXED_GPU_MEASUREMENT"

#: Of each stream that much is read: an RPC server has a say in what a program prints.
_MOST_BYTES: t.Final = 64 << 20
_RESULTS: t.Final = "/run/mixed_gpu"
_ENDED_FILE: t.Final = re.compile(r"([a-z-]+) ([a-z]+) (\w+)")
#: Hidden from the sandbox (ProtectHome=, PrivateTmp=).
_HIDDEN: t.Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # noqa: S108 (named, not used)
_NODE_FILES: t.Final = {"char-nvidia*": "/dev/nvidia*", "char-drm": "/dev/dri/*", "char-kfd": "/dev/kfd"}


class Box(t.Protocol):
    """What a program may use."""

    def given(self, unit: str, environment: t.Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Return the properties of its unit and its variables. Raises UserError where it cannot be so."""


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """What measures. C(endpoints) are RPC servers (host:port), C(files) what it reads, C(lease) a unit."""

    engine: str = "llama_cpp"
    device_nodes: t.Sequence[str] = ()
    endpoints: t.Sequence[str] = ()
    files: t.Sequence[str] = ()
    nccl: bool = False
    lock_memory: bool = False
    #: the program ends before this unit does, so that nothing measures beside a server that comes back
    lease: str = ""

    def given(self, unit: str, environment: t.Mapping[str, str]) -> tuple[list[str], dict[str, str]]:  # noqa: ARG002
        """Return the properties of its unit and its variables. Raises UserError for a file that it cannot read."""
        networks = ["localhost", *_networks(self.endpoints)]
        wanted = unit_sandbox.lines(self.engine, self.device_nodes, networks, self.nccl)
        wanted.append(f"User={PREFIX}")
        variables = dict(environment)
        if self.device_nodes:
            wanted += [f"CacheDirectory={PREFIX}", "CacheDirectoryMode=0700"]
            variables = {**unit_sandbox.cache_environment(self.engine, f"/var/cache/{PREFIX}"), **variables}
        if groups := _groups(self.files, self.device_nodes):
            wanted.append(f"SupplementaryGroups={' '.join(groups)}")
        if self.lock_memory:
            wanted.append("LimitMEMLOCK=infinity")
        if self.lease:
            wanted += [f"BindsTo={self.lease}", f"After={self.lease}"]
        return wanted, variables


@dataclasses.dataclass(frozen=True)
class Build:
    """What builds. C(writable) are the only folders that it can write to; they exist.

    It has no network, but for a program that fetches what is built (C(network)).
    """

    writable: tuple[str, ...]
    network: bool = False

    def given(self, unit: str, environment: t.Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
        """Return the properties of its unit and its variables; ccache wants a home."""
        variables = {"HOME": self.writable[0], **environment}
        return [*unit_sandbox.build_lines(unit, self.writable, self.network), f"User={BUILDER}"], variables


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a program ended: exit status (below 0: by that signal), both streams, and whether its time was over."""

    rc: int
    stdout: str
    stderr: str
    timed_out: bool


def booted() -> bool:
    """Return whether systemd runs this host."""
    return os.path.isdir(BOOTED)


class Process:
    """One program that was started, with all that it starts itself."""

    def __init__(
        self, argv: t.Sequence[str], box: Box, environment: t.Mapping[str, t.Any], stdout: t.Any, stderr: t.Any,
        lock: int | None, limit_seconds: int | None = None, stop_seconds: int = 0,
    ) -> None:  # fmt: skip
        """Start a program; C(stdout) and C(stderr) are as for subprocess.Popen, a pipe is C(output) then.

        C(lock) is a descriptor that the program keeps open, so that a lock lasts as long as the program. After
        C(limit_seconds) everything of it is killed. C(stop_seconds) is the time it has between SIGTERM and SIGKILL.
        Raises UserError where a file of the sandbox cannot be read there, or the program cannot be started.
        """
        self.timed_out, self.complaint, self._stop_seconds = False, "", stop_seconds
        self._found: tuple[str, ...] = ()
        variables = {name: str(value) for name, value in environment.items()}
        self.sandboxed = booted()
        self._unit = f"{PREFIX}-{os.getsid(0)}-{os.getpid()}-{time.monotonic_ns()}.service"
        self._deadline = None if limit_seconds is None else time.monotonic() + limit_seconds
        if self.sandboxed:
            os.makedirs(_RESULTS, mode=0o755, exist_ok=True)
            start, variables = prefix(self._unit, box, variables, limit_seconds, stop_seconds)
            command = [*start, *map(_verbatim, argv)]
            # the service gets the three descriptors of systemd-run and no other: the lock is its standard input
            options: dict[str, t.Any] = {"stdin": subprocess.DEVNULL if lock is None else lock}
            options["env"] = {**os.environ, **variables}
        else:
            command = list(argv)
            options = {
                "stdin": subprocess.DEVNULL, "pass_fds": () if lock is None else (lock,),
                "env": {**os.environ, **variables, MARK: self._unit},
            }  # fmt: skip
        try:
            self._process = subprocess.Popen(command, stdout=stdout, stderr=stderr, **options)
            self.output = self._process.stdout
        except OSError as exc:
            raise UserError(f"{command[0]} cannot be run ({exc.strerror}): install it") from exc

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return None if self._process.poll() is None else self.wait()

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status; raises subprocess.TimeoutExpired after C(timeout) seconds.

        When this returns nothing of the program is left. A program that was ended by SIGTERM kills its unit first.
        """
        if self.sandboxed:
            self._process.wait(timeout)
            return self._sandboxed_status()
        left = None if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        try:
            status = self._process.wait(left if timeout is None else timeout)
        except subprocess.TimeoutExpired:
            if timeout is not None:
                raise
            self.timed_out = True
            self._process.kill()
            status = self._process.wait()
        kill_leftovers(self._unit)
        return status

    def end(self) -> int:
        """End the program and what it started, and return the exit status."""
        if self.sandboxed:
            if self._process.poll() is None:
                word = ["stop"] if self._stop_seconds else ["kill", "--signal=KILL"]
                subprocess.run(["systemctl", *word, self._unit], capture_output=True, check=False)
            return self.wait()
        if self._stop_seconds:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._stop_seconds)
        kill_leftovers(self._unit)
        self._process.kill()
        return self.wait()

    def _sandboxed_status(self) -> int:
        """Return the exit status as subprocess gives it, from what systemd says of the service."""
        path = f"{_RESULTS}/{self._unit}"
        try:
            with open(path, encoding="ascii") as file:
                found = _ENDED_FILE.match(file.read())
            os.unlink(path)
        except FileNotFoundError:
            found = None
        if found is not None:
            self._found = found.groups()
        if not self._found:  # systemd did not start it, and systemd-run has said why
            return self._process.returncode or 1
        result, code, status = self._found
        self.timed_out = result == "timeout"
        if result == "oom-kill":
            self.complaint = "error: killed by the kernel (oom-kill), as the memory of the host was used up"
        if code in ("killed", "dumped"):
            return -int(getattr(signal, f"SIG{status}", signal.SIGKILL))
        if result == "exit-code" and status.isdigit() and 200 <= int(status) <= 245:  # noqa: PLR2004 (systemd.exec(5))
            self.complaint = f"error: systemd could not prepare the sandbox of {self._unit} (exit status {status})"
        return int(status) if status.isdigit() else self._process.returncode


@contextlib.contextmanager
def ended_with_us(process: Process) -> t.Iterator[None]:
    """End the process whatever ends this block, SIGTERM included (a job that is stopped)."""

    def stop(_number: int, _frame: t.Any) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        before = None
    try:
        yield
    except BaseException:
        process.end()
        raise
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)


def run(
    argv: t.Sequence[str], box: Box, environment: t.Mapping[str, t.Any], limit_seconds: int,
    lock: int | None = None,
) -> Ended:  # fmt: skip
    """Run a program for at most C(limit_seconds), with nothing of it left behind. Raises UserError as Process does."""
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        process = Process(argv, box, environment, out, err, lock, limit_seconds)
        with ended_with_us(process):
            rc = process.wait()
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read(_MOST_BYTES).decode(errors="replace"))
    complaint = f"\n{process.complaint}\n" if process.complaint else ""
    return Ended(rc, texts[0], texts[1] + complaint, process.timed_out)


def prefix(
    unit: str, box: Box, environment: t.Mapping[str, str], limit_seconds: int | None, stop_seconds: int
) -> tuple[list[str], dict[str, str]]:
    """Return what stands before the command, systemd-run with the properties of the unit, and its variables."""
    wanted, variables = box.given(unit, environment)
    if limit_seconds is not None:
        wanted.append(f"RuntimeMaxSec={limit_seconds}")
    wanted += ["KillSignal=SIGTERM", f"TimeoutStopSec={stop_seconds}"] if stop_seconds else ["KillSignal=SIGKILL"]
    # systemd-run answers a signal, a timeout and a lack of memory with the same exit status
    told = 'echo "$$SERVICE_RESULT $$EXIT_CODE $$EXIT_STATUS"'
    wanted.append(f"ExecStopPost=+/bin/sh -c '{told} > {_RESULTS}/{unit}'")
    # systemd-run takes the values from its own variables: a key must not be on a command line
    given = [f"--setenv={name}" for name in variables]
    return unit_sandbox.command(["systemd-run", f"--unit={unit}", *given], wanted, []), variables


def _verbatim(word: str) -> str:
    """Return a word of a command so that systemd does not replace variables in it."""
    return word.replace("$", "$$")


def _networks(endpoints: t.Iterable[str]) -> list[str]:
    """Return the addresses of RPC servers elsewhere, and of the name servers where one is given by name."""
    found: list[str] = []
    for endpoint in endpoints:
        host = endpoint.rpartition(":")[0].strip("[]")
        with contextlib.suppress(OSError):
            answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            addresses = [str(answer[4][0]) for answer in answers]
            elsewhere = [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
            found += [*elsewhere, *(_name_servers() if elsewhere and host not in addresses else [])]
    return list(dict.fromkeys(found))


def _name_servers() -> list[str]:
    with contextlib.suppress(OSError), open("/etc/resolv.conf", encoding="utf-8", errors="replace") as file:
        return re.findall(r"^nameserver\s+([0-9A-Fa-f.:]+)\s*$", file.read(), re.MULTILINE)
    return []


def _groups(files: t.Iterable[str], device_nodes: t.Iterable[str]) -> list[str]:
    """Return the groups that the program needs beside its own, as numbers.

    Raises UserError for a file that an unprivileged user cannot read: the unit that serves could not either.
    """
    needed = set()
    for path in files:
        real = os.path.realpath(path)
        hidden = next((place for place in _HIDDEN if real.startswith(f"{place}/")), None)
        if hidden is not None:
            raise UserError(f"{real} is below {hidden}, which is hidden from what serves and measures: move it")
        folders = [real]
        while folders[-1] != "/":
            folders.append(os.path.dirname(folders[-1]))
        wanted = [(real, 4), *((folder, 1) for folder in folders[1:])]
        for place, bits in wanted:
            needed |= _group(place, bits, refuse=True)
    for pattern in {_NODE_FILES[node] for node in device_nodes}:
        for place in glob.glob(pattern):
            needed |= _group(place, 6, refuse=False) if stat.S_ISCHR(os.stat(place).st_mode) else set()
    return sorted(map(str, needed), key=int)


def _group(path: str, bits: int, refuse: bool) -> set[int]:
    """Return the group of a file where others lack the permission C(bits) and the group has it."""
    try:
        found = os.stat(path)
        listed = "system.posix_acl_access" in os.listxattr(path)
    except OSError:
        return set()
    if found.st_mode & bits == bits or listed:
        return set()
    if (found.st_mode >> 3) & bits == bits and found.st_gid != 0:
        return {found.st_gid}
    if not refuse:
        return set()
    cure = f"chmod o+{'x' if bits == 1 else 'r'} {path}"
    raise UserError(f"{path} is closed to others, so neither measuring nor serving can read the model: {cure}")


def kill_leftovers(mark: str) -> None:
    """Kill every process whose environment carries the mark, until none is left (a fork may happen in between)."""
    for _attempt in range(20):
        killed = [_killed(name, mark) for name in os.listdir("/proc") if name.isdigit()]
        if not any(killed):
            return
        time.sleep(0.05)


def _killed(pid: str, mark: str) -> bool:
    """Kill a process if its environment carries the mark; return whether it did."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{pid}/environ", "rb") as handle:
            ours = f"{MARK}={mark}".encode() in handle.read().split(b"\0")
        if ours and not is_zombie(pid):
            os.kill(int(pid), signal.SIGKILL)
            return True
    return False


def is_zombie(pid: str) -> bool:
    """Return whether the process has ended and only waits to be collected."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as handle:
        return handle.read().rpartition(")")[2].split()[0] == "Z"
