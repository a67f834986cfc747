"""run_all.py STEP...: run `make STEP` for each, two at a time, and list at the end what the tests skipped, and why.

The steps begin in the order given. The first, the longest, measures how fast things are: the others give way to it
(nice). What a step says is kept in build/test/STEP.log, and shown where it fails.
"""

from __future__ import annotations

import concurrent.futures
import pathlib
import re
import subprocess
import sys
import time
import typing as t

LANES: t.Final = 2
LOGS: t.Final = pathlib.Path("build/test")
#: pytest's summary of reasons, ansible-test's warnings
_SKIPPED: t.Final = re.compile(
    r"^(?:SKIPPED \[\d+\] |WARNING: (?=Skipping |Required program .* not found)).+", re.MULTILINE
)
_PASSED: t.Final = re.compile(r"\b\d+ passed\b[^=\n]*")


class Result(t.NamedTuple):
    """What became of a step."""

    step: str
    seconds: float
    passed: bool
    output: str


def skipped(output: str) -> list[str]:
    """Return what a log says was skipped, each once, in order."""
    lines = (re.sub(r"^SKIPPED \[\d+\] |^WARNING: ", "", line) for line in _SKIPPED.findall(output))
    return list(dict.fromkeys(lines))


def run(step: str, command: t.Sequence[str]) -> Result:
    """Run a step's command to its end, with its output in the step's log."""
    print(f"test | {step}: started", flush=True)
    log, began = LOGS / f"{step}.log", time.monotonic()
    with log.open("wb") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, check=False)
    output = log.read_text(encoding="utf-8", errors="replace")
    return Result(step, time.monotonic() - began, done.returncode == 0, output)


def told(result: Result) -> str:
    """Return what people are told of a step: a line, preceded by its whole output where it failed."""
    if not result.passed:
        failed = f"FAILED after {result.seconds:.0f} s; its log is {LOGS / result.step}.log"
        return f"{result.output.rstrip()}\ntest | {result.step}: {failed}"
    counts = ", ".join(count.strip() for count in _PASSED.findall(result.output))
    return f"test | {result.step}: passed in {result.seconds:.0f} s{f' ({counts})' if counts else ''}"


def main(steps: t.Sequence[str]) -> int:
    """Run all steps; return 1 where one failed."""
    LOGS.mkdir(parents=True, exist_ok=True)
    began, results = time.monotonic(), []
    with concurrent.futures.ThreadPoolExecutor(LANES) as lanes:
        runs = []
        for number, step in enumerate(steps):
            priority = [] if number == 0 else ["nice", "-n", "19"]
            runs.append(lanes.submit(run, step, [*priority, "make", "--no-print-directory", step]))
        for future in concurrent.futures.as_completed(runs):
            results.append(future.result())
            print(told(results[-1]), flush=True)
    lines = [f"{result.step}: {line}" for result in results for line in skipped(result.output)]
    print(f"test | {len(results)} steps in {time.monotonic() - began:.0f} s")
    print("test | skipped:" + "".join(f"\n  {line}" for line in lines) if lines else "test | nothing was skipped")
    failed = [result.step for result in results if not result.passed]
    print(f"test | FAILED: {', '.join(failed)}" if failed else "test | all passed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
