# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Costs of layers that an earlier tuning has measured. Private to this collection. Pure functions only.

A change of context, KV type or slots moves the bound of memory, and hardly what a layer costs on a device. Nor does
another model whose blocks are the same work, such as a fine-tune. So the fitted costs of a recorded tuning of such
blocks are a prior of the next one, if engine, driver, cards and power limits are the same. Costs are carried over by
what they are for: bytes that a token reads, and operations of a prompt. Where their error would not change the choice,
the first load is of the split that they favour, instead of as many anchors as devices. How loads scattered is carried
over, too, so that one load each may tell two splits apart.
"""

from __future__ import annotations

import itertools
import math
import typing as t

from .._base import fingerprints
from .._base.types import Json, Mapping
from .._split import cost_model, model_weights, network_links, split_cost, tuning_key
from .._split.layer_split import Layers
from .._split.split_problem import KnownCosts, Problem
from .._split.types import Model

#: How far a cost may have moved with another context, KV type or number of slots (relative standard deviation).
ERROR: t.Final = 0.05
#: The same of a dense model of the architecture and type with other shapes, with the launches of its blocks apart.
KIND_ERROR: t.Final = 0.15
#: Up to how many times the bytes of a layer of such a model may be, or one of as many.
KIND_REACH: t.Final = 4.0
#: How much longer a byte of the KV cache may take to read than one of weights, where no two depths were measured:
#: least, expected, most. Published with growing context: 13 % at 20K of a dense model, and up to three times.
UNKNOWN_CACHE: t.Final = (0.5, 1.0, 3.0)
#: Two depths tell the cost of the cache where its bytes differ by this share of the weights.
_TELLING_SHARE: t.Final = 0.03
_LARGEST_FACTOR: t.Final = 20.0

#: kind of test -> split -> ms
Measured = t.Mapping[str, t.Mapping[Layers, float]]

_OF_ENGINE: t.Final = ("engine", "engine_build")
#: What two models of a kind have in common; of the last it is 0.
_OF_KIND: t.Final = ("architecture", "file_type", "expert_count")


class Known(t.NamedTuple):
    """Costs of an earlier tuning: ms of its average layer by device, and what that layer was (average_layer)."""

    deployment: str
    error: float
    decode: list[float] | None
    prefill: list[float] | None
    overlap: float
    layer: Mapping
    spread: Mapping
    cache: tuple[float, float, float]  # of a byte of KV cache against one of weights: least, expected, most
    of_kind: bool = False  # of a model with other blocks


def find(recorded: Mapping, parts: Mapping, ids: t.Sequence[str], model: Model) -> Known | None:
    """Return the costs of the latest recorded tuning that tells something of a model, or None.

    C(recorded): the entries of the record, by deployment. C(parts): of this tuning (tuning_key.parts). C(ids): of the
    devices in their order.
    """
    telling = _telling(recorded, parts, ids, model)
    if not telling:
        return None
    deployment = _latest(telling)
    fits = [entry["decision"]["fit"] for entry in telling.values()]
    return of_fit(deployment, telling[deployment]["decision"]["fit"], fits)


def for_plan(recorded: Mapping, parts: Mapping, ids: t.Sequence[str], model: Model) -> Known | None:
    """Return the costs that a plan predicts with: as C(find), else of a dense model of the architecture and type.

    Devices of other hosts are left out then: what the network takes does not go by the bytes of a layer.
    """
    found, kind = find(recorded, parts, ids, model), {name: model.get(name) for name in _OF_KIND}
    lent = network_links.remote(parts["rpc_endpoints"])
    if found is not None or kind["expert_count"] or not kind["file_type"] or lent:
        return found
    bytes_of_layer = sum(model["block_read_bytes"]) / len(model["block_read_bytes"])
    telling = {
        name: entry
        for name, entry in recorded.items()
        if _tells(entry, parts, ids) and {name: entry["model"].get(name) for name in _OF_KIND} == kind
        and 1 / KIND_REACH <= bytes_of_layer / entry["decision"]["fit"]["average_layer"]["weights_bytes"] <= KIND_REACH
    }
    if not telling:
        return None
    deployment = _latest(telling)
    fit = telling[deployment]["decision"]["fit"]
    return of_fit(deployment, fit, [])._replace(error=math.hypot(KIND_ERROR, fit["error"]), of_kind=True)


def of_fit(deployment: str, fit: Mapping, others: t.Sequence[Mapping]) -> Known:
    """Return the costs of a fit; C(others) are fits of the same model, which may tell what the KV cache costs."""
    overlap = fit.get("prefill_overlap")
    return Known(
        deployment, math.hypot(ERROR, fit["error"]), fit["decode_ms_per_layer"], fit["prefill_ms_per_layer"],
        1.0 if overlap is None else overlap, fit["average_layer"], fit["spread"], _cache(fit, others),
    )  # fmt: skip


def fits_of(recorded: Mapping, parts: Mapping, ids: t.Sequence[str], model: Model) -> list[Mapping]:
    """Return the recorded fits of the model, or of one with the same blocks, on these devices in the same state."""
    return [entry["decision"]["fit"] for entry in _telling(recorded, parts, ids, model).values()]


def _latest(entries: Mapping) -> str:
    return max(entries, key=lambda name: (str(entries[name].get("recorded_at", "")), name))


def _telling(
    recorded: Mapping, parts: Mapping, ids: t.Sequence[str], model: Model
) -> dict[str, Mapping]:
    """Return the recorded tunings of the model's blocks on these devices in the same state that have costs."""
    return {
        name: entry
        for name, entry in recorded.items()
        if _tells(entry, parts, ids) and _same_blocks(entry, model)
    }


def of_experts(recorded: Mapping, parts: Mapping, ids: t.Sequence[str], model: Model) -> Json | None:
    """Return what the latest tuning of a model with experts in RAM has fitted: C(deployment), C(error) and C(fit).

    A fit of one kind of test, or to which a block in RAM takes no time, tells nothing of other placements.
    """
    found = {
        name: entry
        for name, entry in recorded.items()
        if all((entry["decision"].get("fit") or {}).get(cost) for cost in ("decode_ms_per_block_in_ram", "prefill_ms"))
        and _same_state(entry, parts, ids)
        and _same_blocks(entry, model)
    }
    if not found:
        return None
    deployment = max(found, key=lambda name: str(found[name]["recorded_at"]))
    fit = found[deployment]["decision"]["fit"]
    misses = [fit[name] for name in ("decode_residual_percent", "prefill_residual_percent") if fit[name]]
    return {"deployment": deployment, "error": math.hypot(ERROR, max(misses, default=0.0) / 100), "fit": fit}


def _tells(entry: Mapping, parts: Mapping, ids: t.Sequence[str]) -> bool:
    """Return whether a recorded tuning has costs of layers, and was of these devices in the same state."""
    fit = entry["decision"].get("fit") or {}
    costs = [fit[name] for name in ("decode_ms_per_layer", "prefill_ms_per_layer") if fit.get(name)]
    if not costs or "spread" not in fit or any(min(own) <= 0 for own in costs):
        return False
    return _same_state(entry, parts, ids)


def _same_state(entry: Mapping, parts: Mapping, ids: t.Sequence[str]) -> bool:
    """Return whether a recorded tuning was of these devices in the same state, by the same engine."""
    before = entry["fingerprint_parts"]
    return [device["id"] for device in entry["devices"]] == list(ids) and all(
        fingerprints.canonical(before.get(name)) == fingerprints.canonical(parts.get(name))
        for name in (*tuning_key.OF_PROBE, *_OF_ENGINE)
    )


def _same_blocks(entry: Mapping, model: Model) -> bool:
    """Return whether a recorded tuning was of the model, or of another whose blocks are the same work."""
    return bool(entry["model"].get("blocks_fingerprint") == model_weights.blocks_fingerprint(model))


def _cache(fit: Mapping, others: t.Sequence[Mapping]) -> tuple[float, float, float]:
    """Return what a byte of the KV cache costs against one of weights: by two depths of one model, else a wide guess.

    Of two tunings with the average layers w + k and w + k', whose costs have the ratio r, it is w (r - 1) / (k' - r k).
    """
    for told in others:
        if not fit["decode_ms_per_layer"] or not told["decode_ms_per_layer"]:
            continue
        weights, near, far = (
            fit["average_layer"]["weights_bytes"], fit["average_layer"]["cache_bytes"],
            told["average_layer"]["cache_bytes"],
        )  # fmt: skip
        ratio = sum(told["decode_ms_per_layer"]) / sum(fit["decode_ms_per_layer"])
        if abs(far - near) < _TELLING_SHARE * weights or not far - ratio * near:
            continue
        factor = weights * (ratio - 1) / (far - ratio * near)
        if not 0 < factor < _LARGEST_FACTOR:
            continue
        # both costs are off by as much as a cost may move
        doubt = 2 * ERROR * weights / abs(far - near)
        return max(0.0, factor - doubt), factor, factor + doubt
    return UNKNOWN_CACHE


def of_problem(known: Known, average_layer: Mapping) -> Json:
    """Return C(known_costs) of a problem: ms of its own average layer by device."""
    before = known.layer

    def read_by(cache: float) -> float:
        now, then = (layer["weights_bytes"] + cache * layer["cache_bytes"] for layer in (average_layer, before))
        return now / then

    low, read, high = map(read_by, known.cache)
    computed = average_layer["operations"] / before["operations"] if before["operations"] else 1.0
    return {
        "deployment": known.deployment,
        "error": known.error,
        "decode": None if not known.decode else [read * ms for ms in known.decode],
        "prefill": None if not known.prefill else [computed * ms for ms in known.prefill],
        "overlap": known.overlap,
        "spread": known.spread,
        # of a prompt the cache is left out above, and counts no more than this
        "scale_error": {
            "decode": max(abs(math.log(one / read)) for one in (low, high)),
            "prefill": abs(math.log(read_by(UNKNOWN_CACHE[2]))),
        },
    }


def error_of_fit(points: t.Sequence[Layers], noise: float, before: KnownCosts | None) -> float:
    """Return how far the ratio of fitted costs between devices may be off (relative standard deviation).

    C(noise) is that of a point. Splits that lie close together tell it badly; then what was known before counts.
    """
    shares = [[count / sum(layers) for count in layers] for layers in points]
    reach = min(max(column) - min(column) for column in zip(*shares, strict=True))
    own = min(1.0, math.sqrt(2) * noise / reach) if reach else 1.0
    return own if before is None else min(own, before.error)


def with_spread(problem: Problem, kind: str, own: tuple[float, int]) -> tuple[float, int]:
    """Return how loads scatter (relative standard deviation, degrees), with what an earlier tuning has seen of it.

    The objective is taken to scatter as much as the worst of the tests that it is made of.
    """
    kinds = problem.kinds if kind == "objective" else (kind,)
    known = {} if problem.known is None else problem.known.spread
    before = [known[name] for name in kinds if name in known]
    if not before or len(before) < len(kinds):
        return own
    deviation, degrees = max(one[0] for one in before), min(one[1] for one in before)
    pooled = degrees + own[1]
    return math.sqrt((degrees * deviation**2 + own[1] * own[0] ** 2) / pooled), pooled


def cost(problem: Problem) -> split_cost.Cost | None:
    """Return the objective by the known costs of a problem, as coefficients of the layers; None without them."""
    known = problem.known
    if known is None:
        return None
    return _cost(problem, known, known.costs)


def _cost(problem: Problem, known: KnownCosts, costs: Mapping) -> split_cost.Cost | None:
    tokens, generated = problem.counted(problem.objective)
    return split_cost.workload_cost(
        costs.get("decode"), costs.get("prefill"), tokens, generated, tokens, problem.micro_batch, known.overlap,
        problem.weights,
    )  # fmt: skip


def suffice(problem: Problem, splits: t.Sequence[Layers]) -> bool:
    """Return whether the split that the known costs favour would do as well if they were off by their error.

    Each device in turn is taken for slower and for faster by the error; what the favoured split then takes longer than
    the best must be no more than the indifference.
    """
    known, exact = problem.known, cost(problem)
    if known is None or exact is None or not splits:
        return False
    favoured = min(splits, key=lambda split: (exact.ms(split), split))
    for device, factor in itertools.product(range(len(problem.names)), (1 + known.error, 1 / (1 + known.error))):
        moved = {
            kind: [ms * (factor if own == device else 1.0) for own, ms in enumerate(costs)]
            for kind, costs in known.costs.items()
        }
        other = _cost(problem, known, moved)
        if other is None or other.ms(favoured) > (1 + problem.indifference) * min(other.ms(split) for split in splits):
            return False
    return True


def hold(
    problem: Problem, measured: Measured, tolerances: t.Mapping[str, float], determined: bool
) -> bool:
    """Return whether loads bear out what the known costs say of splits over all devices.

    C(tolerances): percent by kind of test. C(determined) is whether the measured splits tell the cost of each device.
    Then the scale that all costs have in common is free, as in a fit. With fewer splits it counts as well: what slows
    one device alone may slow all that were measured alike. A split that leaves a device out makes fewer hops, so it may
    be faster, and not slower.
    """
    known = problem.known
    if known is None:
        return True
    for kind, percent in tolerances.items():
        ratios = _ratios(problem, known, kind, measured[kind])
        whole = [ratio for split, ratio in ratios.items() if all(split)]
        if not whole:
            continue
        if 100 * (max(ratios.values()) / min(whole) - 1) > percent:
            return False
        off = max(abs(math.log(max(whole))), abs(math.log(min(whole))))
        if not determined and off > _allowed(known, kind, percent):
            return False
    return True


def _allowed(known: KnownCosts, kind: str, percent: float) -> float:
    """Return how far the scale of all known costs may be off (the logarithm of a factor)."""
    return known.scale_error.get(kind, 0.0) + max(2 * known.error, math.log1p(percent / 100))


def _ratios(
    problem: Problem, known: KnownCosts, kind: str, measured: t.Mapping[Layers, float]
) -> dict[Layers, float]:
    """Return what splits over several devices took by what the known costs say of them."""
    if kind not in known.costs:
        return {}
    batches, overlap = 1, 0.0
    if kind == "prefill" and problem.prefill_test is not None:
        batches, overlap = cost_model.micro_batches(problem.prefill_test.n_prompt, problem.micro_batch), known.overlap
    return {
        split: ms / cost_model.prefill_ms(known.costs[kind], problem.weights.amounts(kind, split), batches, overlap)
        for split, ms in measured.items()
        if sum(map(bool, split)) > 1
    }
