"""downloads.py [--mib N] [--rounds N] PAGE: how fast is a verified download, and what does a cut line cost?

The same file from the same local hub, in turns: this collection's module, `hf download`, ansible's get_url, and curl,
the last three with `sha256sum` behind them, since a model that is to be trusted must be read once. Each is a process of
its own, its start included. Afterwards once more with a line that is cut at 90 %, each tool started again until it is
done, and once more with nothing to do.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

import page
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_api
from ansible_collections.homelab.mixed_gpu.tests.local_hub import server

REPO, COMMIT, NAME = "owner/Model-GGUF", "1" * 40, "Model-Q8_0.gguf"
MIB = 1 << 20
MODULE = """\
import json, sys, importlib
from ansible.module_utils.testing import patch_module_args
name, arguments = json.load(sys.stdin)
with patch_module_args(arguments):
    importlib.import_module(name).main()
"""
OURS = "ansible_collections.homelab.mixed_gpu.plugins.modules.model_file"


@dataclasses.dataclass
class Tool:
    """One way to get the file: commands that are run one after the other."""

    name: str
    commands: t.Callable[[pathlib.Path], list[tuple[list[str], str]]]


def tools(hub: server.Hub, sha256: str, size_bytes: int) -> list[Tool]:
    """Return the tools to compare; each puts the file below the directory that it is given."""
    url = hub_api.file_url(hub.url, REPO, COMMIT, NAME)
    python = [sys.executable, "-c", MODULE]

    def ours(directory: pathlib.Path) -> list[tuple[list[str], str]]:
        arguments = {
            "path": str(directory / NAME), "url": url, "sha256": sha256, "size_bytes": size_bytes, "reserve_mib": 0,
            "manifest_dir": str(directory / "manifests"), "attempts": 1,
        }  # fmt: skip
        return [(python, json.dumps([OURS, arguments]))]

    def check(directory: pathlib.Path) -> tuple[list[str], str]:
        return ["sha256sum", "--check", "--quiet", "-"], f"{sha256}  {directory / NAME}\n"

    def hf(directory: pathlib.Path) -> list[tuple[list[str], str]]:
        command = [str(pathlib.Path(sys.executable).with_name("hf")), "download", REPO, NAME, "--revision", COMMIT]
        return [([*command, "--local-dir", str(directory)], ""), check(directory)]

    def get_url(directory: pathlib.Path) -> list[tuple[list[str], str]]:
        arguments = {"url": url, "dest": str(directory / NAME)}
        return [(python, json.dumps(["ansible.modules.get_url", arguments])), check(directory)]

    def curl(directory: pathlib.Path) -> list[tuple[list[str], str]]:
        return [(["curl", "-sSfL", "-C", "-", "-o", str(directory / NAME), url], ""), check(directory)]

    return [
        Tool("this collection (`model_file`)", ours), Tool("`hf download`, `sha256sum`", hf),
        Tool("`get_url`, `sha256sum`", get_url), Tool("`curl -C -`, `sha256sum`", curl),
    ]  # fmt: skip


def run(tool: Tool, directory: pathlib.Path, hub: server.Hub) -> tuple[bool, float]:
    """Run a tool's commands and return whether all went well, and the seconds that it took."""
    # the progress bar is off, and Xet is not spoken by the local hub
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HOME": str(directory / "hf_home"), "NO_PROXY": "*", "PYTHONPATH": os.pathsep.join(sys.path),
    }  # fmt: skip
    directory.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    for command, text in tool.commands(directory):
        done = subprocess.run(command, input=text, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            return False, time.monotonic() - started
    return True, time.monotonic() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="downloads-") as name:
        home = pathlib.Path(name)
        origin = home / "hub" / REPO / COMMIT / NAME
        origin.parent.mkdir(parents=True)
        with origin.open("wb") as handle:
            for _each in range(options.mib):
                handle.write(os.urandom(MIB))
        (home / "hub" / REPO / "main").write_text(COMMIT)
        hub = server.Hub(home / "hub")
        sha256 = hub.hashes(origin)[0]
        size_bytes = origin.stat().st_size
        rows = measure(tools(hub, sha256, size_bytes), hub, home / "got", options.rounds, size_bytes)
        hub.close()
    section = text(rows, options.mib, options.rounds, load)
    page.write_section(options.page, "downloads", section)
    print(section)


def measure(
    every: t.Sequence[Tool], hub: server.Hub, got: pathlib.Path, rounds: int, size_bytes: int
) -> list[dict[str, t.Any]]:
    """Return one dict per tool: seconds of the rounds, what a cut line cost, and seconds with nothing to do."""
    rows = [{"name": tool.name, "seconds": [], "again": None, "cut": None} for tool in every]
    for number in range(rounds):
        # in turns, and each once first
        for index in [(number + step) % len(every) for step in range(len(every))]:
            shutil.rmtree(got, ignore_errors=True)
            well, seconds = run(every[index], got, hub)
            if not well:
                raise SystemExit(f"{every[index].name} failed")
            rows[index]["seconds"].append(seconds)
    for tool, row in zip(every, rows, strict=True):
        shutil.rmtree(got, ignore_errors=True)
        hub.sent_bytes = 0
        hub.faults = [{"cut": size_bytes * 9 // 10}]
        starts = 1
        while not run(tool, got, hub)[0] and starts < 5:
            starts += 1
        row["cut"] = (starts, hub.sent_bytes / size_bytes)
        hub.faults = []
        well, seconds = run(tool, got, hub)
        row["again"] = f"{seconds:.1f}" if well else "fails"
    return rows


def text(rows: t.Sequence[dict[str, t.Any]], mib: int, rounds: int, load: float) -> str:
    """Return the section of the page."""
    lines = [
        "## Downloads", "",
        "Written by `make bench-downloads`. The same file from the same hub on loopback, in turns; each tool is a",
        "process of its own and ends with a file whose SHA-256 was compared. The line is then cut once at 90 % of the",
        "file, and each tool is started again until it is done; and once more with nothing to do.", "",
        f"Run {page.today()} on {page.machine()}, load {load:.1f} before; {mib} MiB, median of {rounds} rounds.",
        "",
        "| tool | s | MiB/s | lowest to highest s | with a cut: sent, in files | starts | nothing to do: s |",
        "|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in rows:
        seconds = statistics.median(row["seconds"])
        starts, share = row["cut"]
        lines.append(
            f"| {row['name']} | {seconds:.1f} | {mib / seconds:.0f} | {min(row['seconds']):.1f} to "
            f"{max(row['seconds']):.1f} | {share:.2f} | {starts} | {row['again']} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
