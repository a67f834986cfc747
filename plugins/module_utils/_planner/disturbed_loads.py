# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which measured loads something else on the host has disturbed. Private to this collection. Pure functions only.

A load is suspected as _split/disturbance.py says. It is set aside only after its split was measured once more, so never
more loads than were repeated and never the last one of a split.
"""

from __future__ import annotations

import typing as t

from .._base import stats
from .._split import disturbance, layer_split
from .._split.layer_split import Layers
from .._split.measured_loads import Load

Loads = t.Mapping[Layers, t.Sequence[Load]]


class Judged(t.NamedTuple):
    """The loads of each split that count, those that were set aside, and why loads are suspected."""

    ok: dict[Layers, list[Load]]
    aside: dict[Layers, list[Load]]
    suspects: dict[tuple[Layers, int], str]
    #: The split to measure again, with the reason.
    repeat: tuple[Layers, str] | None


def judge(measured: Loads, kinds: t.Sequence[str], indifference: float) -> Judged:
    """Return which loads count. Only the kinds of test that count for the objective are looked at."""
    ok = {layers: list(loads) for layers, loads in measured.items()}
    judged = Judged(ok, {}, {}, None)
    repeat: tuple[Layers, str] | None = None
    for layers, alarms in _doubts(measured, kinds, indifference).items():
        ranked = sorted(alarms, key=lambda number: (alarms[number].probability, number))
        repeated = sum(1 for load in measured[layers] if load.purpose == "repeat")
        judged.suspects.update({(layers, number): alarms[number].reason for number in ranked})
        aside = {number for number in ranked[:repeated] if len(measured[layers]) > 1}
        if aside:
            judged.aside[layers] = [load for load in measured[layers] if load.number in aside]
            ok[layers] = [load for load in measured[layers] if load.number not in aside]
        if len(ranked) > repeated and repeat is None:
            number = ranked[repeated]
            repeat = layers, f"{layer_split.load_label(layers, number)} looks disturbed: {alarms[number].reason}"
    return judged._replace(repeat=repeat)


def _doubts(
    measured: Loads, kinds: t.Sequence[str], indifference: float
) -> dict[Layers, dict[int, disturbance.Alarm]]:
    """Return, by split and number, the alarm of each suspected load; of several kinds the least probable one."""
    doubts: dict[Layers, dict[int, disturbance.Alarm]] = {}
    for kind in kinds:
        for (layers, number), alarm in _alarms(measured, kind, indifference):
            known = doubts.setdefault(layers, {}).get(number)
            if known is None or alarm.probability < known.probability:
                doubts[layers][number] = alarm
    return {layers: alarms for layers, alarms in doubts.items() if alarms}


def _alarms(
    measured: Loads, kind: str, indifference: float
) -> t.Iterator[tuple[tuple[Layers, int], disturbance.Alarm]]:
    """Yield the suspected loads by one kind of test: scattered ones, and those far from their calm twins."""
    loads = [load for own in measured.values() for load in own if load.samples(kind)]
    scattered = disturbance.scattered([load.samples(kind) for load in loads], indifference)
    odd = {id(loads[alarm.load]): alarm for alarm in scattered}
    calm = {layers: [load for load in own if id(load) not in odd] for layers, own in measured.items()}
    error = disturbance.repetition_error(load.samples(kind) for own in calm.values() for load in own)
    times = {
        layers: [value for load in own if (value := getattr(load, kind)) is not None] for layers, own in calm.items()
    }
    for layers, own in measured.items():
        alarms = {load.number: odd[id(load)] for load in own if id(load) in odd}
        others = stats.pooled_spread(times[other] for other in times if other != layers)
        far = disturbance.far_from_twins(times[layers], others, error, indifference)
        if far is not None:
            alarms[calm[layers][far.load].number] = far
        yield from (((layers, number), alarm) for number, alarm in alarms.items())
