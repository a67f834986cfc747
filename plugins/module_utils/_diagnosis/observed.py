# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long each device of a split was busy, beside what its record expects. Private to this collection. Pure functions.

The fit spreads over the devices what belongs to none of them (hops, launches, the host), so what is observed is spread
too: with s_i the device's part of all busy time, its stage is scale * s_i with the scale for which T (see expected) is
the time that the server reports. For decoding that is T * s_i.

A device's change is the mean over the blocks of a phase of ln(observed / expected). Its interval is Student's of 99 %:
several devices are judged in two phases, and with 95 % up to 13 % of noisy runs of a healthy pair blame one device. In
quadrature the interval has what the record itself does not know: the fit's residual, and the interval of the recorded
split.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base import stats
from .._base.types import Json
from . import split_advice
from .expected import Expected, expected, record_error

#: Outside of the interval of a change, both ends together.
OUTSIDE: t.Final = 0.01


class Change(t.NamedTuple):
    """How much more time something takes than recorded, in percent, with the verdict."""

    percent: float | None
    interval: tuple[float, float] | None
    verdict: str


def change(ratios: t.Sequence[float], error: float, tolerance_percent: float) -> Change:
    """Return the change from observed/expected of each block; C(error) is the record's own relative error.

    C(slower) and C(faster): the interval excludes zero and the change exceeds the tolerance. C(within_noise): the
    interval includes zero, and something beyond the tolerance too, so nothing can be said. C(as_recorded): the rest.
    With one block there is no interval, and one from half of the time to twice the time says nothing: no change either.
    """
    if len(ratios) < 2:
        return Change(None, None, "within_noise" if ratios else "not_seen")
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    own = stats.t_quantile(len(logs) - 1, OUTSIDE) * statistics.stdev(logs) / math.sqrt(len(logs))
    half = math.hypot(own, math.log1p(error))
    if half > max(math.log(2), abs(mean)):
        return Change(None, None, "within_noise")
    percent, low, high = (100 * (math.exp(value) - 1) for value in (mean, mean - half, mean + half))
    verdict = "as_recorded"
    if low > 0 and percent > tolerance_percent:
        verdict = "slower"
    elif high < 0 and percent < -tolerance_percent:
        verdict = "faster"
    elif low <= 0 <= high and max(-low, high) > tolerance_percent:
        verdict = "within_noise"
    return Change(percent, (low, high), verdict)


def attributed(ms: float, busy_ms: t.Sequence[float | None], model: Expected | None) -> list[float | None]:
    """Return the time of each device by the fit's own accounts, so that they add up to C(ms) of a unit of work.

    C(busy_ms) is None for a device that is not seen; of decoding a single one of those gets what is left. Without
    C(model) devices are taken to take turns.
    """
    of_sum, of_max, batches = (model.of_sum, model.of_max, model.batches) if model else (1.0, 0.0, 1)
    known = [value for value in busy_ms if value is not None]
    if len(known) == len(busy_ms):
        together = of_sum * sum(known) + of_max * max(known, default=0.0)
        scale = batches * ms / together if together > 0 else 0.0
        return [value * scale for value in known]
    if of_max or len(busy_ms) - len(known) > 1:
        return list(busy_ms)
    return [max(0.0, ms - sum(known)) if value is None else value for value in busy_ms]


class _Part(t.NamedTuple):
    """One block of a phase, in ms per unit of work: a token, or a prompt. The lists have one entry per device."""

    ms: float
    wall_ms: float
    busy_ms: list[float | None]
    waiting_ms: list[float]
    own_ms: list[float | None]


def _parts(entry: Json, phase: Json, model: Expected | None) -> list[_Part]:
    layers = entry["decision"]["layers"]
    found = []
    for block in phase["blocks"]:
        units = block["requests"] * (phase["generated_tokens"] if phase["kind"] == "decode" else 1)
        spent = [block["devices"].get(device["id"]) for device in entry["devices"]]
        busy: list[float | None] = [
            # a device without layers is no part of the server
            0.0 if not count else None if one is None else one["busy_ms"] / units
            for one, count in zip(spent, layers, strict=True)
        ]
        waiting = [one["waiting_ms"] / units if one else 0.0 for one in spent]
        ms = block["ms"] / units
        # in tensor mode all work at the same time: there is nothing to share out
        own = attributed(ms, busy, model) if entry["decision"]["split_mode"] == "layer" else busy
        found.append(_Part(ms, block["wall_ms"] / units, busy, waiting, own))
    return found


def observe(entry: Json, phase: Json, tolerance_percent: float) -> Json:
    """Compare one phase of server_under_load.watch with the record; see docs/data_formats.md, diagnosis."""
    kind = phase["kind"]
    # deep in a context attention takes time that a short request does not
    depth = int((split_advice.tests_of(entry).get(kind) or {}).get("n_depth") or 0)
    model, error = expected(entry, kind, phase["prompt_tokens"]), record_error(entry, kind)
    parts = _parts(entry, phase, model)
    drafted = bool(entry.get("speculation"))
    compared = None if depth or drafted else model
    whole = change([part.ms / compared.ms for part in parts] if compared else [], error, tolerance_percent)
    # the busy time of a card leaves out what the fit puts into its layers: it compares only if all can be shared out
    shared = all(busy is not None for part in parts for busy in part.busy_ms)
    rows = []
    for index, device in enumerate(entry["devices"]):
        if entry["decision"]["layers"][index]:
            row = _device_row(entry, index, parts, model)
            own = [part.own_ms[index] for part in parts]
            ratios = [ms / compared.busy_ms[index] for ms in own if ms] if compared and shared else []
            result = change(ratios if len(ratios) == len(parts) else [], error, tolerance_percent)
            rows.append({"device": device["device"], "id": device["id"], **row, **_change_out(result)})
    for name in ("", "expected_"):
        together = sum(row[f"{name}ms"] or 0.0 for row in rows)
        for row in rows:
            own_ms = row[f"{name}ms"]
            row[f"{name}share_percent"] = stats.rounded(100 * own_ms / together if own_ms and together else None, 1)
    ms = statistics.fmean(part.ms for part in parts) if parts else None
    tokens = 1 if kind == "decode" else phase["prompt_tokens"]
    return {
        **{key: phase[key] for key in ("kind", "prompt_tokens", "skipped_reason", "overlapped")},
        "blocks": len(parts),
        "tokens_per_second": stats.rounded(1000 * tokens / ms if ms else None, 3),
        "ms": stats.rounded(ms, 4),
        "expected_ms": stats.rounded(model.ms if model else None, 4),
        "depth_tokens": depth,
        "drafted": drafted,
        **_change_out(whole),
        "devices": rows,
    }


def _device_row(entry: Json, index: int, parts: t.Sequence[_Part], model: Expected | None) -> Json:
    """Return what was seen of one device and what is expected of it, without a verdict."""
    layers = entry["decision"]["layers"][index]
    busy = [part.busy_ms[index] for part in parts]
    known = [ms for part in parts if (ms := part.own_ms[index]) is not None]
    mean = statistics.fmean(known) if known else None
    seen = bool(parts) and None not in busy
    used = [ms / part.wall_ms for ms, part in zip(busy, parts, strict=True) if ms is not None]
    total = sum(ms for ms in busy if ms is not None)
    waited = sum(part.waiting_ms[index] for part in parts)
    return {
        "layers": layers,
        "seen": seen,
        "ms": stats.rounded(mean, 4),
        "expected_ms": stats.rounded(model.busy_ms[index] if model else None, 4),
        "ms_per_layer": stats.rounded(None if mean is None else mean / layers, 5),
        "utilisation_percent": stats.rounded(100 * statistics.fmean(used) if seen else None, 1),
        "expected_utilisation_percent": stats.rounded(100 * model.utilisation()[index] if model else None, 1),
        "waiting_percent": stats.rounded(100 * waited / total if total else None, 1),
    }


def _change_out(result: Change) -> Json:
    interval = None if result.interval is None else [round(value, 1) for value in result.interval]
    return {"change_percent": stats.rounded(result.percent, 1), "interval_percent": interval, "verdict": result.verdict}
