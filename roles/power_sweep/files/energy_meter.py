# SPDX-License-Identifier: GPL-3.0-or-later
"""Run llama-bench and add to each of its rows the energy that the cards used for it. Run by the role power_sweep.

energy_meter.py [--interval-ms N] PROGRAM ARGUMENTS...: the program's output (-o jsonl) passes through, and each row
gets `energy`: {seconds, joules: {card_id: J}, source: {card_id: counter | power}}. The exit status is the program's.

llama-bench prints a row at the end of its test, right after its last sample, and its samples follow one another when
the test has no depth. So the row's arrival and the sum of its samples tell when the samples were taken; loading the
model, warming up and other tests are left out. Energy is what the card's counter gained in that time, or, for a card
without one, its power over that time (an average over a second on GeForce cards, so short tests are blurred).
"""

from __future__ import annotations

import argparse
import bisect
import json
import subprocess
import sys
import threading
import time
import typing as t

#: One look at the cards: seconds, and by UUID energy in joules (None without a counter) and power in watts.
Look = tuple[float, dict[str, float | None], dict[str, float | None]]


def at(looks: t.Sequence[tuple[float, float]], seconds: float) -> float:
    """The value at a time between two looks [(seconds, value), ...], on the line between them; at the ends the last."""
    position = bisect.bisect_left([when for when, _value in looks], seconds)
    if position == 0:
        return looks[0][1]
    if position == len(looks):
        return looks[-1][1]
    (before, low), (after, high) = looks[position - 1], looks[position]
    return low + (high - low) * (seconds - before) / (after - before)


def integral(looks: t.Sequence[tuple[float, float]], start: float, end: float) -> float:
    """Joules from looks at a power in watts, between two times, by the trapezoidal rule."""
    inside = [(when, value) for when, value in looks if start < when < end]
    points = [(start, at(looks, start)), *inside, (end, at(looks, end))]
    return sum((b - a) * (one + other) / 2 for (a, one), (b, other) in zip(points, points[1:], strict=False))


def energy(looks: t.Sequence[Look], start: float, end: float) -> dict[str, t.Any] | None:
    """What a row gets, or None where the cards were not looked at."""
    joules: dict[str, float] = {}
    source: dict[str, str] = {}
    for card_id in looks[0][1] if looks else {}:
        counter = [(when, value) for when, counters, _watts in looks if (value := counters[card_id]) is not None]
        power = [(when, value) for when, _counters, watts in looks if (value := watts[card_id]) is not None]
        if len(counter) == len(looks):
            joules[card_id], source[card_id] = at(counter, end) - at(counter, start), "counter"
        elif power:
            joules[card_id], source[card_id] = integral(power, start, end), "power"
    if not joules:
        return None
    return {
        "seconds": round(end - start, 6), "joules": {card_id: round(value, 3) for card_id, value in joules.items()},
        "source": source,
    }  # fmt: skip


class Meter(threading.Thread):
    """Looks at the cards until it is stopped."""

    def __init__(self, nvml: t.Any, interval_seconds: float) -> None:
        super().__init__(daemon=True)
        self.nvml = nvml
        self.interval_seconds = interval_seconds
        self.looks: list[Look] = []
        self.ended = threading.Event()
        self.handles = {}
        for index in range(nvml.nvmlDeviceGetCount()):
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            self.handles[nvml.nvmlDeviceGetUUID(handle)] = handle

    def ask(self, function: str, handle: t.Any) -> float | None:
        """A reading in thousandths, or None where the card has none."""
        try:
            return float(getattr(self.nvml, function)(handle)) / 1000
        except self.nvml.NVMLError:
            return None

    def look(self) -> None:
        """Look once."""
        counters = {u: self.ask("nvmlDeviceGetTotalEnergyConsumption", handle) for u, handle in self.handles.items()}
        watts = {u: self.ask("nvmlDeviceGetPowerUsage", handle) for u, handle in self.handles.items()}
        self.looks.append((time.monotonic(), counters, watts))

    def run(self) -> None:
        while not self.ended.wait(self.interval_seconds):
            self.look()

    def stop(self) -> None:
        """End, with a last look."""
        self.ended.set()
        self.join()
        self.look()


def with_energy(line: str, arrived: float, looks: t.Sequence[Look]) -> str:
    """A line of the program's output, with energy where it is a row of a test."""
    try:
        row = json.loads(line)
        seconds = sum(row["samples_ns"]) / 1e9
    except (ValueError, TypeError, KeyError):
        return line
    row["energy"] = energy(looks, arrived - seconds, arrived)
    return json.dumps(row)


def main(arguments: t.Sequence[str]) -> int:
    """Run the program; the exit status is its, as a shell gives it."""
    parser = argparse.ArgumentParser(description="Run llama-bench and add the energy of each test to its row.")
    parser.add_argument("--interval-ms", type=int, default=50)
    parser.add_argument("command", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    import pynvml  # noqa: PLC0415

    try:
        pynvml.nvmlInit()
        meter = Meter(pynvml, given.interval_ms / 1000)
    except pynvml.NVMLError as error:
        print(f"NVML does not answer ({error}), so no energy is measured: see what 'nvidia-smi' says.", file=sys.stderr)
        return 1
    meter.look()
    meter.start()
    lines = []
    try:
        # what the caller has open stays open: the lock on the devices is passed on like this
        with subprocess.Popen(
            given.command, stdout=subprocess.PIPE, text=True, errors="replace", close_fds=False
        ) as program:
            assert program.stdout is not None
            for line in program.stdout:
                lines.append((line.rstrip("\n"), time.monotonic()))
    except OSError as error:
        print(f"{given.command[0]} cannot be run: {error.strerror}", file=sys.stderr)
        return 127
    meter.stop()
    for line, arrived in lines:
        print(with_energy(line, arrived, meter.looks))
    pynvml.nvmlShutdown()
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
