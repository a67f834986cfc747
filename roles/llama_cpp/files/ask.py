# SPDX-License-Identifier: GPL-3.0-or-later
"""Run several harmless commands in one round trip. Run by the role llama_cpp.

Stdin is a JSON list of commands, each a list of its arguments. Stdout is a JSON list with one answer to each: `argv`,
`rc`, `stdout` and `stderr` without line ends at their ends, and `reason`, one line for a person, empty when rc is 0.
"""

from __future__ import annotations

import json
import subprocess
import sys
import typing as t


def ask(argv: list[str]) -> dict[str, t.Any]:
    """Return what a command answers; rc is 127 for one that cannot be run."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, encoding="utf-8", errors="replace", check=False
        )
    except OSError as exc:
        return {"argv": argv, "rc": 127, "stdout": "", "stderr": "", "reason": exc.strerror or str(exc)}
    stdout, stderr = done.stdout.rstrip("\r\n"), done.stderr.rstrip("\r\n")
    reason = ""
    if done.returncode:
        lines = [line.strip() for line in (stderr + "\n" + stdout).splitlines() if line.strip()]
        reason = (lines or [f"exit status {done.returncode}"])[0][:300]
    return {"argv": argv, "rc": done.returncode, "stdout": stdout, "stderr": stderr, "reason": reason}


if __name__ == "__main__":
    json.dump([ask(argv) for argv in json.load(sys.stdin)], sys.stdout)
