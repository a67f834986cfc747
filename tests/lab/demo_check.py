"""Check in a second what `make demo` needs of this machine, before minutes are spent on it.

Prints the port on 127.0.0.1 of this machine that will reach the demo's server. Otherwise: one sentence per problem on
standard error, exit status 1. Standard library only, and syntax that an old Python reads, since .venv is made later.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import socket
import subprocess
import sys
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[2]
PORT, PORTS_TRIED = 8080, 100
PYTHON = (3, 11)
# host_preflight, which site.yml runs on the host, wants 2048 MiB of memory and 4096 MiB of disk;
# the image and its archive took 430 MiB
MEMORY_MIB = 2048
DISK_MIB = 5120
DISK_OF_A_HOST_THAT_EXISTS_MIB = 1024
DISK_OF_VENV_MIB = 1024


class Unfit(Exception):
    """One thing that the demo lacks on this machine: the cause and the cure in a sentence."""


def lab_dir(environment: t.Mapping[str, str]) -> pathlib.Path:
    """The folder of the lab, as lab.sh chooses it."""
    return pathlib.Path(environment.get("LAB_DIR") or cache_dir(environment) / "lab")


def cache_dir(environment: t.Mapping[str, str]) -> pathlib.Path:
    """The folder of the caches, as lab.sh and requirements/venv.sh choose it."""
    chosen = environment.get("MIXED_GPU_CACHE")
    return pathlib.Path(chosen) if chosen else pathlib.Path(environment["HOME"], ".cache/homelab-mixed-gpu")


def forwarded_ports(lab: pathlib.Path, host: str, proc: pathlib.Path = pathlib.Path("/proc")) -> list[int]:
    """The ports of this machine that an earlier demo forwards to its host, by the processes that still do."""
    found = []
    for path in (lab / "forwards").glob(f"{host}-*"):
        port = path.name[len(host) + 1 :]
        try:
            command = (proc / path.read_text().strip() / "cmdline").read_bytes().decode()
        except OSError:
            continue
        if port.isdigit() and f"forward.py\0listen\0{port}\0" in command:
            found.append(int(port))
    return sorted(found)


def is_free(port: int) -> bool:
    """Whether forward.py could listen on 127.0.0.1:port."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind(("127.0.0.1", port))
            server.listen(1)
        except OSError:
            return False
    return True


def choose_port(asked: str, forwarded: list[int], free: t.Callable[[int], bool] = is_free) -> int:
    """The asked port ("" for none), else that of an earlier demo, else the first free one from 8080 on."""
    if asked:
        if not re.fullmatch("[0-9]{1,5}", asked) or not 1 <= int(asked) <= 65535:
            raise Unfit(f"MIXED_GPU_DEMO_PORT is {asked!r}, which is no port: set a number from 1 to 65535.")
        if int(asked) in forwarded or free(int(asked)):
            return int(asked)
        raise Unfit(
            f"Port {asked} on 127.0.0.1 cannot be used: stop what listens there "
            f"(ss -ltnp 'sport = :{asked}' names it), or unset MIXED_GPU_DEMO_PORT for the next free port."
        )
    if forwarded:
        return PORT if PORT in forwarded else forwarded[0]
    for port in range(PORT, PORT + PORTS_TRIED):
        if free(port):
            return port
    last = PORT + PORTS_TRIED - 1
    raise Unfit(f"No port from {PORT} to {last} on 127.0.0.1 is free: set MIXED_GPU_DEMO_PORT to a free one.")


def check_python(version: tuple[int, ...]) -> None:
    if version < PYTHON:
        raise Unfit(
            f"Python is {version[0]}.{version[1]}, the demo needs {PYTHON[0]}.{PYTHON[1]} or newer: "
            "set PYTHON=<a newer one>."
        )


def check_memory(meminfo: str) -> None:
    """Raise Unfit when the text of /proc/meminfo says that less memory is available than the host's preflight wants."""
    available = int(re.search(r"^MemAvailable: *([0-9]+) kB", meminfo, re.MULTILINE)[1]) // 1024  # type: ignore[index]
    if available < MEMORY_MIB:
        raise Unfit(f"{available} MiB of memory are available, the demo needs {MEMORY_MIB}: stop other programs.")


def check_disk(needs: t.Iterable[tuple[pathlib.Path, int]], disk: t.Callable[[pathlib.Path], tuple[int, int]]) -> None:
    """Raise Unfit when the file systems lack space. needs: folder and MiB; disk(folder): its device and free MiB."""
    wanted: dict[int, int] = {}
    for folder, mib in needs:
        device, free = disk(folder)
        wanted[device] = wanted.get(device, 0) + mib
        if free < wanted[device]:
            raise Unfit(
                f"{free} MiB are free on the file system of {folder}, the demo needs {wanted[device]}: make room, "
                "or set MIXED_GPU_CACHE to a folder on a larger disk."
            )


def disk_of(folder: pathlib.Path) -> tuple[int, int]:
    """The device of a folder, which need not exist yet, and its free MiB."""
    while not folder.exists():
        folder = folder.parent
    return folder.stat().st_dev, shutil.disk_usage(folder).free >> 20


def private_host_exists(lab: pathlib.Path, host: str) -> bool:
    """Whether the lab has a host of this name. Raises Unfit where the lab cannot be made, or apt is missing."""
    if os.geteuid() != 0:
        raise Unfit("The lab needs root: run `make demo`, which asks sudo, or set LAB_ENGINE and LAB_IMAGE.")
    if not shutil.which("apt-get"):
        raise Unfit("This machine has no apt-get, so it is neither Debian nor Ubuntu: set LAB_ENGINE and LAB_IMAGE.")
    tried = subprocess.run(
        ["unshare", "--mount", "--net", "--propagation", "private", "true"], capture_output=True, text=True, check=False
    )
    if tried.returncode != 0:
        raise Unfit(
            f"Namespaces cannot be made ({tried.stderr.strip()}): in a container the lab needs --privileged; "
            "elsewhere set LAB_ENGINE and LAB_IMAGE."
        )
    containers = lab / "storage/overlay-containers/containers.json"
    known = json.loads(containers.read_text() or "[]") if containers.exists() else []
    return any(host in container.get("names", []) for container in known)


def engine_host_exists(engine: str, image: str, host: str, cache: pathlib.Path) -> bool:
    """Whether an ordinary engine has a container of this name. Raises Unfit when it is not one that lab.sh made."""
    if not shutil.which(engine):
        raise Unfit(f"LAB_ENGINE is {engine}, which is not installed: install it, or unset LAB_ENGINE.")
    if not image:
        raise Unfit("LAB_ENGINE needs LAB_IMAGE: set it to an image whose init is systemd.")
    listed = subprocess.run([engine, "ps", "-a", "--format", "{{.Names}}"], capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        raise Unfit(f"{engine} does not answer ({listed.stderr.strip()}): start it, or unset LAB_ENGINE.")
    if host not in listed.stdout.split():
        return False
    inspect = [engine, "inspect", "-f", "{{range .Mounts}}{{println .Source}}{{end}}", host]
    mounts = subprocess.run(inspect, capture_output=True, text=True, check=False).stdout.splitlines()
    if str(cache / "ccache") not in mounts:
        raise Unfit(f"{engine} has a container {host} that is none of this lab: rename or remove it.")
    return True


def main() -> int:
    env = os.environ
    host, cache, lab, engine = env["LAB_HOST"], cache_dir(env), lab_dir(env), env.get("LAB_ENGINE", "")
    exists, port, problems = False, 0, []

    def attempt(check: t.Callable[..., t.Any], *arguments: t.Any) -> t.Any:
        try:
            return check(*arguments)
        except Unfit as exc:
            problems.append(str(exc))

    attempt(check_python, sys.version_info[:2])
    if engine:
        exists = attempt(engine_host_exists, engine, env.get("LAB_IMAGE", ""), host, cache)
    else:
        exists = attempt(private_host_exists, lab, host)
    needs = [(cache, DISK_OF_A_HOST_THAT_EXISTS_MIB if exists else DISK_MIB)]
    if not list(ROOT.glob(".venv/ready-*")):
        needs.append((ROOT, DISK_OF_VENV_MIB))
    attempt(check_disk, needs, disk_of)
    attempt(check_memory, pathlib.Path("/proc/meminfo").read_text())
    port = attempt(choose_port, env.get("MIXED_GPU_DEMO_PORT", ""), forwarded_ports(lab, host))
    if problems:
        print("\n".join(f"demo: {problem}" for problem in problems), file=sys.stderr)
        return 1
    if port != PORT:
        print(f"demo | the server will be at http://127.0.0.1:{port}", file=sys.stderr)
    print(port)
    return 0


if __name__ == "__main__":
    sys.exit(main())
