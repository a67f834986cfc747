# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Revalidate without anybody watching: what mixed-gpu-revalidate.service runs, of the copy of the collection it is in.

Runs playbooks/revalidate_when_idle.yml, tells the verdict to the journal in one line, and writes it as a metric. What
Ansible prints goes to the journal with priority debug. Exit status: 0 for an accepted verdict, a busy server and
nothing to do; else what ansible-playbook returned.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import pathlib
import subprocess
import sys
import typing as t

from prometheus_client import CollectorRegistry, Enum, Gauge, write_to_textfile

for directory in pathlib.Path(__file__).parents:
    if directory.name == "ansible_collections":
        sys.path.insert(0, str(directory.parent))

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_mark
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import unattended

DEBUG, NOTICE, ERROR = 7, 5, 3


def to_journal() -> bool:
    """Whether systemd connected the output with the journal (systemd.exec(5), $JOURNAL_STREAM)."""
    output = os.fstat(sys.stdout.fileno())
    return os.environ.get("JOURNAL_STREAM") == f"{output.st_dev}:{output.st_ino}"


def say(priority: int, text: str) -> None:
    """Write a line; the journal takes its priority from the prefix."""
    print(f"<{priority}>{text}" if to_journal() else text, flush=True)


def read(path: pathlib.Path) -> str | None:
    """The text of a file, or None where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def write(path: pathlib.Path, data: t.Any) -> None:
    """Write a JSON file whole or not at all."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    new.replace(path)


def write_metrics(path: str, state: unattended.State | None, mark_needed: bool, now: str) -> None:
    """Write what is known as a file for node_exporter's textfile collector."""
    registry = CollectorRegistry()
    labels = ["host", "deployment"]
    prefix = "mixed_gpu_revalidation"
    Gauge("mixed_gpu_needs_revalidation", "The driver changed and was not revalidated since.", registry=registry).set(
        mark_needed
    )
    tried = Gauge(f"{prefix}_last_try_timestamp_seconds", "Last start that was due, skipped or not.", registry=registry)
    tried.set(unattended.timestamp(now))
    if state is not None:
        done = Gauge(f"{prefix}_timestamp_seconds", "End of the last revalidation.", registry=registry)
        done.set(unattended.timestamp(state["finished_at"]))
        verdict = Enum(f"{prefix}_verdict", "Verdict.", labels, states=unattended.VERDICTS, registry=registry)
        accepted = Gauge(f"{prefix}_accepted", "Whether the verdict is an accepted one.", labels, registry=registry)
        measured = Gauge(
            f"{prefix}_measured", "Whether the split was measured, or the server's own timings were enough.", labels,
            registry=registry,
        )  # fmt: skip
        change = Gauge(
            f"{prefix}_change_percent", "Change of the time per token since the baseline; more is slower.",
            [*labels, "test"], registry=registry,
        )  # fmt: skip
        for name, outcome in state["hosts"].items():
            where = (name, outcome["deployment"])
            verdict.labels(*where).state(outcome["verdict"])
            accepted.labels(*where).set(outcome["accepted"])
            measured.labels(*where).set(outcome["measured"])
            for test, percent in outcome["change_percent"].items():
                change.labels(*where, test).set(percent)
    write_to_textfile(path, registry)


def play(given: argparse.Namespace, report: pathlib.Path, busy: pathlib.Path) -> tuple[int, list[str]]:
    """Run the playbook, and return its exit status and what it printed."""
    variables = {"revalidate_report": str(report), "revalidate_busy_report": str(busy)}
    if given.measure:
        variables["revalidate_measure"] = True
    command = [
        str(pathlib.Path(sys.executable).parent / "ansible-playbook"), "--inventory", given.inventory,
        "--extra-vars", json.dumps(variables), "homelab.mixed_gpu.revalidate_when_idle",
    ]  # fmt: skip
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        for text in t.cast("t.IO[str]", process.stdout):
            lines.append(text.rstrip())
            say(DEBUG, text.rstrip())
    return process.returncode, lines


def revalidate(given: argparse.Namespace, directory: pathlib.Path) -> tuple[int, dict[str, unattended.Outcome] | None]:
    """Return the exit status and the outcomes; None where all hosts were busy."""
    report, busy = directory / "report.json", directory / "busy.json"
    for path in (report, busy):
        path.unlink(missing_ok=True)
    status, lines = play(given, report, busy)
    uses = json.loads(read(busy) or "{}")
    skipped = {name: use["why"] for name, use in uses.items() if use["busy"]}
    for name, why in skipped.items():
        say(NOTICE, f"{name}: skipped: {why}; the timer tries again later")
    if skipped and len(skipped) == len(uses):
        return 0, None
    try:
        return status, unattended.outcomes(read(report))
    except unattended.UnattendedError as exc:
        why = f"ansible-playbook ended with status {status} ({unattended.why_failed(lines)}), and {exc}"
        idle = [name for name in uses if name not in skipped] or [given.host]
        return status or 1, {name: unattended.failed(why) for name in idle}


def main() -> int:
    """Revalidate where it is due, and tell."""
    parser = argparse.ArgumentParser(description="Revalidate when nobody uses the server.")
    parser.add_argument("--inventory", required=True)
    parser.add_argument("--host", required=True, help="name to report under when not even the play could start")
    parser.add_argument("--state", required=True, type=pathlib.Path, help="directory that keeps what was found last")
    parser.add_argument("--mark", default=driver_mark.PATH)
    parser.add_argument("--metrics", default="", help="file for node_exporter's textfile collector")
    parser.add_argument("--every-hours", type=float, default=0, help="when started by a timer, do nothing before")
    parser.add_argument("--measure", action="store_true", help="always measure, under the lease")
    given = parser.parse_args()
    given.state.mkdir(parents=True, exist_ok=True)
    state_file = given.state / "state.json"
    state, now = unattended.parse_state(read(state_file)), utc_now()
    if os.environ.get("TRIGGER_UNIT"):
        is_due, why = unattended.due(state, marked(given.mark), given.every_hours, now)
        say(DEBUG, f"{'due' if is_due else 'not due'}: {why}")
        if not is_due:
            return 0
    status, hosts = revalidate(given, given.state)
    if hosts is not None:
        for name, outcome in hosts.items():
            say(*unattended.line(name, outcome))
        state = unattended.new_state(hosts, utc_now())
        write(state_file, state)
    if given.metrics:
        try:
            write_metrics(given.metrics, state, marked(given.mark)["needed"], now)
        except OSError as exc:
            say(ERROR, f"the metric {given.metrics} cannot be written ({exc.strerror}): make its directory")
    return status


def marked(path: str) -> dict[str, t.Any]:
    """What the mark says."""
    return driver_mark.state(read(pathlib.Path(path)))


def utc_now() -> str:
    """The time as 2026-11-25T18:20:36Z."""
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    raise SystemExit(main())
