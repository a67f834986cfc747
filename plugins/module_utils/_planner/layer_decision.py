# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The decision between layer splits, with everything that is shown of it. Private to this collection. Pure."""

from __future__ import annotations

import statistics
import typing as t

from .._base import stats
from .._split import cost_model
from .._split.layer_split import Layers
from .._split.measured_loads import Load
from .._split.split_problem import Candidate, Json
from .._split.workload import needed_kinds
from . import choice, equality, known_costs, why
from .evidence import Evidence, is_single, room_of

#: The objectives whose best splits are shown beside the chosen one.
SHOWN_OBJECTIVES = ("decode", "prefill", "ttft", "request")

#: A split that is slower by so many standard deviations of a load need not be measured twice: Student's t of one degree
#: of freedom (12.7), for one load against two (times the root of 1.5).
PLAINLY = 16


def verdict_of(evidence: Evidence, chosen: Candidate, rival: Candidate | None) -> str:
    """Return faster, no_difference or inconclusive for two measured splits (equality.verdict).

    One load of each is enough where an earlier tuning, whose costs hold, says how loads scatter. No difference is it as
    well where all splits are equal (equality.equal_within).
    """
    if rival is None or not evidence.count(chosen.layers) or not evidence.count(rival.layers):
        return "inconclusive"
    plain = evidence.count(chosen.layers) > 1 and plainly_slower(evidence, rival, chosen)
    single = not evidence.carried and not plain and min(map(evidence.count, (chosen.layers, rival.layers))) < 2
    within = equality.equal_within(evidence)
    if within is not None and within <= 100 * equality.EQUIVALENCE_FACTOR * evidence.problem.indifference:
        return "no_difference"
    result = evidence.compare(chosen.layers, rival.layers)
    return equality.verdict(result, evidence.problem.indifference, single)


def plainly_slower(evidence: Evidence, slow: Candidate, fast: Candidate) -> bool:
    """Return whether one load each tells already that a split is slower, whatever the noise of two loads may be.

    Of more than two devices the second load is worth having: it is one more point for the fit.
    """
    if not evidence.problem.two_devices or not evidence.count(slow.layers) or not evidence.count(fast.layers):
        return False
    percent = evidence.compare(fast.layers, slow.layers).percent
    return percent > 100 * PLAINLY * evidence.point_noise("objective")


def decide(evidence: Evidence, winner: Candidate, rival: Candidate | None, known_verdict: str | None) -> Json:
    """Return the decision between the winner and its rival; without C(known_verdict) their loads give the verdict."""
    verdict = "only_choice" if len(evidence.candidates) == 1 else known_verdict or verdict_of(evidence, winner, rival)
    chosen, other = winner, rival
    if rival is not None and known_verdict is None:
        chosen, other = _chosen(evidence, winner, rival, verdict)
        if winner not in (chosen, other):
            verdict = verdict_of(evidence, chosen, other)
    better = choice.surely_better(evidence, chosen)
    if better is not None:
        chosen, other = better, chosen if other in (None, better) else other
        verdict = verdict_of(evidence, chosen, other)
    problem = evidence.problem
    default = evidence.by_layers.get(problem.default)
    gain, interval = equality.gain(_against(evidence, chosen, default))
    decode, prefill = (
        evidence.measured(kind, chosen.layers) if evidence.load_means(kind, chosen.layers) else None
        for kind in ("decode", "prefill")
    )
    return {
        "layers": list(chosen.layers),
        "split_mode": "layer",
        "single_device": is_single(chosen),
        "verdict": verdict,
        "why": why.decided(evidence, chosen, other, verdict),
        "objective": problem.asked,
        "default_layers": None if default is None else list(problem.default),
        "gain_over_default_percent": gain,
        "gain_interval_percent": interval,
        "decode_tokens_per_second": None if decode is None else round(1000 / decode, 3),
        "prefill_tokens_per_second": (
            None
            if prefill is None or problem.prefill_test is None
            else round(1000 * problem.prefill_test.n_prompt / prefill, 3)
        ),
        "best_by_objective": {name: _best_by(evidence, name, chosen.layers) for name in SHOWN_OBJECTIVES},
        "range_percent": _rounded(equality.range_percent(evidence)[0], 2),
        "advice": why.advice(evidence, chosen),
        "mib": list(chosen.mib),
        "headroom_mib": list(chosen.headroom),
        "loads_used": len(evidence.loads),
        "fit": fit_of(evidence),
        "table": _table(evidence),
    }


def _chosen(
    evidence: Evidence, winner: Candidate, rival: Candidate, verdict: str
) -> tuple[Candidate, Candidate]:
    """Return the split to take, and the one that it is compared with: of these two, unless the winner lost."""
    if evidence.count(winner.layers) and evidence.count(rival.layers):
        result = evidence.compare(winner.layers, rival.layers)
        # what was measured slower is not taken, even where too few loads say so for a verdict
        if (verdict == "faster" and result.percent < 0) or (result.high is not None and result.high < 0):
            return _instead(evidence, winner, rival)
        if verdict == "faster":
            return winner, rival
    # where loads cannot tell, room decides, unless the fit says that it costs too much
    limit = choice.limit(evidence, evidence.candidates)
    if is_single(winner) or evidence.objective(rival.layers) > limit:
        return winner, rival
    one, other = sorted((winner, rival), key=lambda c: (-room_of(c), evidence.objective(c.layers), c.layers))
    return one, other


def _instead(evidence: Evidence, loser: Candidate, rival: Candidate) -> tuple[Candidate, Candidate]:
    """Return what is taken where the winner by the fit lost against its rival, and what that is compared with.

    The fit was wrong, so the loads decide between all other splits that were measured.
    """
    measured = [c for c in evidence.candidates if c != loser and evidence.count(c.layers)]
    best = min([rival, *measured], key=lambda c: choice.measured_and_expected(evidence, c.layers))
    return (rival, loser) if best == rival else (best, rival)


def _against(
    evidence: Evidence, chosen: Candidate, default: Candidate | None
) -> cost_model.Comparison | None:
    """Return the chosen split compared with the engine's default; None where that was not measured."""
    if default is None or not evidence.count(default.layers):
        return None
    return equality.SAME if default == chosen else evidence.compare(chosen.layers, default.layers)


def _best_by(evidence: Evidence, name: str, chosen: Layers) -> list[int] | None:
    """Return the fastest split by another objective, as far as known; None when a part of it was not measured.

    By the objective that was asked for it is the chosen one: why.advice names what the fit would prefer. By another the
    chosen one is kept where its loads were no slower than those of the split that the fit prefers.
    """
    if _value_of(evidence, name, chosen) is not None and name == evidence.problem.objective:
        return list(chosen)
    among = list(evidence.by_layers)
    cost = evidence.cost(name) if len(evidence.problem.names) > 2 else None
    if cost is not None and (best := evidence.splits.best(cost)) is not None:
        among.append(best)
    known = [(value, layers) for layers in among if (value := _value_of(evidence, name, layers)) is not None]
    if not known:
        return None
    best = min(known)[1]
    own, other = _measured_of(evidence, name, chosen), _measured_of(evidence, name, best)
    return list(chosen if own is not None and other is not None and own <= other else best)


def _measured_of(evidence: Evidence, name: str, layers: Layers) -> float | None:
    """Return what a split took (ms) by an objective in its own loads; None where a part was not measured."""
    kinds = needed_kinds(name)
    if layers not in evidence.ok or not all(evidence.load_means(kind, layers) for kind in kinds):
        return None
    parts = {kind: evidence.measured(kind, layers) for kind in kinds}
    return evidence.objective_ms(layers, parts.get("decode"), parts.get("prefill"), name)


def _value_of(evidence: Evidence, name: str, layers: Layers) -> float | None:
    """Return what a split costs (ms) by another objective, as far as known; None when a part of it is unknown."""
    parts = {kind: evidence.value(kind, layers) for kind in needed_kinds(name)}
    if any(value is None for value in parts.values()):
        return None
    return evidence.objective_ms(layers, parts.get("decode"), parts.get("prefill"), name)


def fit_of(evidence: Evidence) -> Json | None:
    """Return the fitted costs, or None before the anchors are measured."""
    if evidence.decode_fit is None and evidence.prefill_fit is None:
        return None
    return {
        "decode_ms_per_layer": _rounded(evidence.decode_fit),
        "prefill_ms_per_layer": _rounded(evidence.prefill_fit),
        "weights": evidence.problem.weights.as_lists(),
        "average_layer": evidence.problem.average_layer,
        "error": _rounded(_error(evidence), 4),
        "spread": {
            kind: [round(deviation, 5), degrees]
            for kind in evidence.problem.kinds
            for deviation, degrees in [evidence.spread(kind)]
            if degrees
        },
        "prefill_form": evidence.prefill_form,
        "prefill_overlap": None if evidence.prefill_form is None else _rounded(evidence.prefill_overlap, 3),
        "decode_residual_percent": _rounded(evidence.residual["decode"], 2),
        "prefill_residual_percent": _rounded(evidence.residual["prefill"], 2),
    }


def _error(evidence: Evidence) -> float:
    """Return how far the ratios of the fitted costs may be off (relative standard deviation)."""
    kinds = evidence.problem.kinds
    noise = max(max(evidence.point_noise(kind), (evidence.residual[kind] or 0.0) / 100) for kind in kinds)
    return known_costs.error_of_fit(evidence.points, noise, evidence.known)


def _rounded(value: t.Any, digits: int = 5) -> t.Any:
    if value is None:
        return None
    return [round(item, digits) for item in value] if isinstance(value, list) else round(value, digits)


def _table(evidence: Evidence) -> list[Json]:
    """Return one row per split that was tried, in order of layers."""
    rows = []
    for layers in sorted({load.layers for load in evidence.loads}):
        failure = evidence.failed.get(layers)
        aside = evidence.disturbed.get(layers, ())
        reason = _remarks(evidence, layers) if failure is None else failure.reason
        rows.append(
            {
                "layers": list(layers),
                "status": "ok" if failure is None else failure.status,
                "reason": reason or None,
                "loads": sum(1 for load in evidence.loads if load.layers == layers),
                "disturbed": bool(aside),
                "disturbed_loads": [load.number for load in aside],
                "decode_ms_per_token": _cell(evidence, "decode", layers),
                "prefill_ms": _cell(evidence, "prefill", layers),
                "objective_ms": _cell(evidence, "objective", layers),
            }
        )
    return rows


def _remarks(evidence: Evidence, layers: Layers) -> str:
    """Return which loads of a split failed or were suspected, why, and what became of them; empty when none was."""
    aside = {load.number for load in evidence.disturbed.get(layers, ())}
    failed = [
        f"load {load.number} ended as {load.status} ({load.reason.rstrip('.')})"
        for load in evidence.loads
        if load.layers == layers and not load.ok
    ]
    return "; ".join(failed + [
        f"load {number} {'was set aside' if number in aside else 'looks disturbed, but counts'}: {reason}"
        for (split, number), reason in sorted(evidence.suspects.items())
        if split == layers
    ])


def _cell(evidence: Evidence, kind: str, layers: Layers) -> Json | None:
    """Return mean, interval and prediction of a split, or None when C(kind) was not measured.

    The interval is 95 %, from the noise between loads, pooled over splits; of a single load the range of its samples.
    """
    if not evidence.count(layers):
        return None
    means = evidence.load_means(kind, layers)
    if not means:
        return None
    mean = statistics.fmean(means)
    if len(means) > 1:
        spread, degrees = evidence.spread(kind)
        half = mean * spread * stats.t_quantile(degrees, 0.05) / len(means) ** 0.5
        low, high = max(0.0, mean - half), mean + half
    else:
        low, high = _sample_range(evidence, kind, evidence.ok[layers][0])
    return {
        "mean": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "predicted": _rounded(evidence.predicted(kind, layers), 4),
    }


def _sample_range(evidence: Evidence, kind: str, load: Load) -> tuple[float, float]:
    if kind == "objective":
        low, high = (
            evidence.objective_ms(
                load.layers,
                pick(load.decode_samples) if load.decode_samples else None,
                pick(load.prefill_samples) if load.prefill_samples else None,
            )
            for pick in (min, max)
        )
        return low, high
    samples = load.samples(kind)
    return min(samples), max(samples)
