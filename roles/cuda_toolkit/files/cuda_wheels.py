# SPDX-License-Identifier: GPL-3.0-or-later
"""Make a CUDA toolkit out of NVIDIA's Python wheels. Run by the role cuda_toolkit, with a JSON job on stdin.

    cuda_wheels.py LOG

job = {prefix, name, requirements (text, hashed), record (content of toolkit.json)}

The result is PREFIX/NAME: bin, include, lib, lib64, nvvm as in an ordinary toolkit, and nccl where it was asked for.
It is made beside its place and renamed into it, so that a directory of that name is complete. What the wheels lack is
added: links without a version, which linkers look for, and a stub of the driver's library, for hosts without a driver.
Progress goes to LOG. Prints {"changed": bool}, or one sentence on stderr.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import typing as t


class Failure(Exception):
    """One sentence for a person."""


def run(command: list[str], log: t.TextIO, what: str, cure: str) -> None:
    """Run a command; its output goes to the log, which the role shows as progress."""
    log.write(f"{what}\n")
    log.flush()
    try:
        done = subprocess.run(command, stdout=log, stderr=subprocess.PIPE, text=True, check=False)
    except OSError as exc:
        raise Failure(f"{what} failed ({command[0]}: {exc.strerror}): {cure}.") from exc
    if done.returncode:
        lines = [line.strip() for line in done.stderr.splitlines() if re.search("error", line, re.IGNORECASE)]
        lines = lines or [f"exit status {done.returncode}"]
        raise Failure(f"{what} failed ({lines[0][:400]}): {cure}.")


def stub_source(header: str) -> str:
    """Return C that defines every function of the CUDA driver, to link against where no driver is installed.

    Each returns 34 (CUDA_ERROR_STUB_LIBRARY), as NVIDIA's own stub does. cuda.h renames some (cuMemFree is
    cuMemFree_v2).
    """
    names = set(re.findall(r"CUDAAPI\s+(cu[A-Z]\w*)\s*\(", header))
    names |= set(re.findall(r"#\s*define\s+cu[A-Z]\w*\s+(?:__CUDA_API_\w+\()?(cu[A-Z]\w*)", header))
    # with a default stream per thread (__CUDA_API_PTSZ, __CUDA_API_PTDS) further ones
    names |= {f"{name}_{kind.lower()}" for kind, name in re.findall(r"__CUDA_API_(PTSZ|PTDS)\((cu[A-Z]\w*)\)", header)}
    if len(names) < 100:
        raise Failure(
            "cuda.h of the wheels declares next to no function: the wheels are not those that this release knows."
        )
    return "".join(f"int {name}(void) {{ return 34; }}\n" for name in sorted(names))


def unversioned_links(lib: pathlib.Path) -> None:
    """Beside each libX.so.N, make libX.so lead to it, unless there is one."""
    for path in sorted(lib.iterdir()):
        stem, dot_so, _version = path.name.partition(".so.")
        if dot_so and not (lib / f"{stem}.so").exists():
            (lib / f"{stem}.so").symlink_to(path.name)


def assemble(stage: pathlib.Path, log: t.TextIO) -> None:
    """Turn STAGE/site, where pip put the wheels, into a toolkit at STAGE."""
    site = stage / "site" / "nvidia"
    for entry in (site / "cu13").iterdir():
        entry.rename(stage / entry.name)
    if (site / "nccl").is_dir():
        (site / "nccl").rename(stage / "nccl")
        unversioned_links(stage / "nccl" / "lib")
    unversioned_links(stage / "lib")
    (stage / "lib64").symlink_to("lib")
    stubs = stage / "lib" / "stubs"
    stubs.mkdir(exist_ok=True)
    source = stubs / "cuda.c"
    source.write_text(
        stub_source((stage / "include" / "cuda.h").read_text(encoding="utf-8", errors="replace")), encoding="utf-8"
    )
    command = [
        "cc", "-shared", "-fPIC", "-w", "-fno-builtin", "-Wl,-soname,libcuda.so.1",
        "-o", str(stubs / "libcuda.so"), str(source),
    ]  # fmt: skip
    run(command, log, "compiling the stub of libcuda", "install g++")
    # the licences stay with what they cover
    licences = stage / "licences"
    licences.mkdir()
    for info in (stage / "site").glob("*.dist-info"):
        info.rename(licences / info.name)
    shutil.rmtree(stage / "site")


def make(job: dict[str, t.Any], log: t.TextIO) -> bool:
    """Make the toolkit unless it is there; return whether it was made."""
    prefix = pathlib.Path(job["prefix"])
    final, stage = prefix / job["name"], prefix / f".new-{job['name']}"
    prefix.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(prefix / ".lock", "w", encoding="utf-8") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (final / "toolkit.json").exists():
            return False
        shutil.rmtree(stage, ignore_errors=True)
        shutil.rmtree(final, ignore_errors=True)
        (stage / "site").mkdir(parents=True)
        try:
            (stage / "requirements.txt").write_text(job["requirements"], encoding="utf-8")
            pip = [
                sys.executable, "-m", "pip", "install", "--require-hashes", "--no-deps", "--only-binary=:all:",
                "--no-compile", "--no-input", "--disable-pip-version-check", "--progress-bar=off",
                "--target", str(stage / "site"), "-r", str(stage / "requirements.txt"),
            ]  # fmt: skip
            run(pip, log, "fetching the wheels", "check the host's network, its disk, and its settings for pip")
            assemble(stage, log)
            (stage / "toolkit.json").write_text(
                json.dumps(job["record"], indent=2, sort_keys=True) + "\n", encoding="utf-8"
            )
            os.sync()
            os.rename(stage, final)
            os.sync()
        finally:
            shutil.rmtree(stage, ignore_errors=True)
    return True


def main() -> int:
    os.umask(0o022)
    try:
        with open(sys.argv[1], "w", encoding="utf-8") as log:
            print(json.dumps({"changed": make(json.load(sys.stdin), log)}))
    except Failure as exc:
        print(exc, file=sys.stderr)
        return 1
    except OSError as exc:
        print(f"{exc.filename}: {exc.strerror}; correct that and run the play again.", file=sys.stderr)
        return 1
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
