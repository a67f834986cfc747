# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which device is slow, waits for a CPU or is not seen. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json
from . import split_advice
from .finding import finding

#: So much waiting for a CPU, in percent of the busy time, is a problem; a note from split_advice.WAITS_PERCENT on.
WAITING_PROBLEM_PERCENT: t.Final = 40.0
#: A device whose work is stretched so much more by waiting than another's is held up by itself, not by a busy machine.
WAITS_ALONE_RATIO: t.Final = 1.5
_CURE_SLOW: t.Final = "see its other findings; homelab.mixed_gpu.revalidate measures each device alone"
_CURE_SPLIT: t.Final = "homelab.mixed_gpu.revalidate says what changed since the baseline"
_CURE_WAITING: t.Final = (
    "find with top what else computes there, and stop it, or give the device a CPU of its own (CPUAffinity)"
)
_CURE_MACHINE: t.Final = "find with top what else computes there, stop it, and run diagnose again"


def devices(watched: t.Sequence[Json], observed: t.Sequence[Json]) -> list[Json]:
    """Return which device waits for a CPU, which is slower or faster than recorded, and which is not seen."""
    found = _waiting(watched, observed)
    for device in watched:
        if device["seen"] is None:
            found.append(finding(device["device"], "seen", "note", f"not seen: {device['reason']}", None))
        rows = [(phase["kind"], row) for phase in observed for row in phase["devices"] if row["id"] == device["id"]]
        for verdict in ("slower", "faster"):
            found += _changed(device["device"], verdict, [pair for pair in rows if pair[1]["verdict"] == verdict], rows)
    return found


def _changed(
    name: str, verdict: str, changed: t.Sequence[tuple[str, Json]], rows: t.Sequence[tuple[str, Json]]
) -> list[Json]:
    """Return the finding about a device that is slower or faster than recorded in any of its phases."""
    if not changed:
        return []
    shown = [
        f"{abs(row['change_percent']):.0f} % {_more(verdict)} time per {split_advice.unit(kind)} (99 % interval "
        f"{row['interval_percent'][0]:+.0f} to {row['interval_percent'][1]:+.0f} %)"
        for kind, row in changed
    ]
    waits = any(_waits(row) for _kind, row in rows)
    problem = verdict == "slower" and not waits
    detail = f"takes {' and '.join(shown)} than recorded" + (", waiting for a CPU included" if waits else "")
    return [finding(name, verdict, "problem" if problem else "note", detail, _CURE_SLOW if problem else None)]


def split(observed: t.Sequence[Json]) -> list[Json]:
    """Return which phase is slower or faster than recorded although no device alone is."""
    found = []
    for phase in observed:
        verdict = phase["verdict"]
        if verdict not in ("slower", "faster") or any(row["verdict"] == verdict for row in phase["devices"]):
            continue
        low, high = phase["interval_percent"]
        waits = any(_waits(row) for row in phase["devices"])
        problem = verdict == "slower" and not waits
        detail = (
            f"{phase['kind']} takes {abs(phase['change_percent']):.0f} % {_more(verdict)} time than recorded "
            f"(99 % interval {low:+.0f} to {high:+.0f} %), and no device alone explains it"
            + (", waiting for a CPU included" if waits else "")
        )
        severity = "problem" if problem else "note"
        found.append(finding("the split", verdict, severity, detail, _CURE_SPLIT if problem else None))
    return found


def _more(verdict: str) -> str:
    return "more" if verdict == "slower" else "less"


def _waits(row: Json) -> bool:
    """Return whether a device waits for a CPU so long that its time says nothing about the device."""
    return (row["waiting_percent"] or 0.0) >= split_advice.WAITS_PERCENT


class _Waiting(t.NamedTuple):
    """How long a device's process waits for a CPU, in percent of its busy time."""

    device: Json
    by_kind: dict[str, float]

    @property
    def most(self) -> float:
        return max(self.by_kind.values(), default=0.0)

    @property
    def stretched(self) -> float:
        return 1 / max(0.01, 1 - self.most / 100)

    @property
    def shown(self) -> str:
        return ", ".join(f"{percent:.0f} % of its {kind}" for kind, percent in self.by_kind.items()) or "not measured"

    @property
    def severity(self) -> str:
        return "problem" if self.most >= WAITING_PROBLEM_PERCENT else "note"


def _waiting(watched: t.Sequence[Json], observed: t.Sequence[Json]) -> list[Json]:
    """Return who waits for a CPU: a device by itself, or all of them on a machine that computes something else."""
    rows = [(phase["kind"], row) for phase in observed for row in phase["devices"]]
    processes = [
        _Waiting(
            device,
            {
                kind: row["waiting_percent"]
                for kind, row in rows
                if row["id"] == device["id"] and row["waiting_percent"] is not None
            },
        )
        for device in watched
        if device["seen"] == "process"
    ]
    least = min((one.stretched for one in processes), default=1.0)
    alone, together = [], []
    for one in processes:
        quota = one.device["cpu_quota_percent"]
        if quota is None and len(processes) > 1 and one.stretched < WAITS_ALONE_RATIO * least:
            together.append(one)
        else:
            alone.append(one)
    together = [one for one in together if one.most >= split_advice.WAITS_PERCENT]
    return [*(each for one in alone for each in _waits_alone(one)), *_wait_together(together)]


def _waits_alone(one: _Waiting) -> list[Json]:
    """Return the finding about one device that waits, or whose unit has a CPU quota."""
    device, quota = one.device, one.device["cpu_quota_percent"]
    if one.most < split_advice.WAITS_PERCENT and quota is None:
        return []
    detail = f"its process ({device['unit'] or device['pid']}) waits for a CPU, {one.shown}"
    cure = _CURE_WAITING
    if quota is not None:
        detail += f"; its unit has a CPU quota of {quota:g} %"
        cure = f"remove CPUQuota, which systemctl cat {device['unit']} shows"
    return [finding(device["device"], "waiting", one.severity, detail, cure)]


def _wait_together(together: t.Sequence[_Waiting]) -> list[Json]:
    """Return the finding about a machine whose devices wait alike."""
    if not together:
        return []
    shown = "; ".join(f"{one.device['device']} {one.shown}" for one in together)
    severity = "problem" if any(one.severity == "problem" for one in together) else "note"
    return [finding("the machine", "waiting", severity, f"its devices wait for a CPU: {shown}", _CURE_MACHINE)]
