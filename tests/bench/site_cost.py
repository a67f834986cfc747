"""site_cost.py COMMIT RUNS PAGE: compare logged no-op runs of site.yml, here and of COMMIT; write the section."""

from __future__ import annotations

import pathlib
import re
import statistics
import sys
import typing as t

import page


class Run(t.NamedTuple):
    """One run that changed nothing."""

    seconds: float
    done: int
    skipped: int


def read(log: str) -> Run:
    """Return what a log says; ValueError where the run changed something or failed."""
    recap = {name: int(number) for name, number in re.findall(r"(\w+)=(\d+)", log.rsplit("PLAY RECAP", 1)[-1])}
    if recap["changed"] or recap["failed"] or recap["unreachable"]:
        raise ValueError(f"a run did not leave everything as it was: {recap}")
    return Run(float(log.rsplit("seconds=", 1)[-1]), recap["ok"], recap["skipped"])


def text_of(before: str, runs: t.Mapping[str, t.Sequence[Run]]) -> str:
    """Return the section."""
    seconds = {side: statistics.median(run.seconds for run in found) for side, found in runs.items()}
    lines = [
        "## A run that changes nothing", "",
        "Written by `make bench-site`: site.yml on an idle sandbox on which nothing is to be done, in turns, each on a",
        "host that its own version made. The bar: a third of the seconds.", "",
        f"Measured {page.today()} on {page.machine()}.", "",
        "| | median s | all runs, s | tasks run | tasks skipped |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for side, name in (("before", f"before (`{before}`)"), ("after", "this checkout")):
        all_runs = " ".join(f"{run.seconds:.1f}" for run in runs[side])
        last = runs[side][-1]
        lines.append(f"| {name} | {seconds[side]:.1f} | {all_runs} | {last.done} | {last.skipped} |")
    return "\n".join([*lines, "", f"That is **{seconds['after'] / seconds['before']:.2f}** of the seconds."]) + "\n"


def main(before: str, folder: str, target: str) -> None:
    """Read the logs and write the section."""
    logs = {side: sorted(pathlib.Path(folder).glob(f"{side}-*.log")) for side in ("before", "after")}
    text = text_of(
        before, {side: [read(log.read_text(encoding="utf-8")) for log in found] for side, found in logs.items()}
    )
    page.write_section(pathlib.Path(target), "site", text)
    print(text)


if __name__ == "__main__":
    main(*sys.argv[1:])
