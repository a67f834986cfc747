# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Costs of layers that an earlier tuning has measured. Private to this collection. Pure functions only.

A change of context, KV type or slots moves the bound of memory, and hardly what a layer costs on a device. So the
fitted costs of a recorded tuning of the same model are a prior of the next one, if engine, driver, cards and power
limits are the same. The first load then is of the split that they favour, instead of as many anchors as devices.
"""

from __future__ import annotations

import typing as t

from .._base import fingerprints
from .._base.types import Json, Mapping
from .._split import cost_model, split_cost, tuning_key
from .._split.layer_split import Layers
from .._split.split_problem import Problem

#: How far a cost may have moved with another context, KV type or number of slots (relative standard deviation).
ERROR: t.Final = 0.05

_OF_ENGINE: t.Final = ("engine", "engine_build")


def find(recorded: Mapping, parts: Mapping, ids: t.Sequence[str]) -> Json | None:
    """Return C({deployment, error, decode, prefill, overlap}) of the latest recorded tuning that tells, or None.

    C(recorded): the entries of the record, by deployment. C(parts): of this tuning (tuning_key.parts). C(ids): of the
    devices in their order. Costs are in ms per average layer, one per device.
    """
    found: list[tuple[str, str, Json]] = []
    for deployment, entry in recorded.items():
        fit = entry["decision"].get("fit") or {}
        decode, prefill = fit.get("decode_ms_per_layer"), fit.get("prefill_ms_per_layer")
        positive = all(min(costs) > 0 for costs in (decode, prefill) if costs)
        if [device["id"] for device in entry["devices"]] != list(ids) or not positive or not _same(entry, parts):
            continue
        overlap = fit.get("prefill_overlap")
        costs: Json = {
            "deployment": deployment, "error": ERROR, "decode": decode, "prefill": prefill,
            "overlap": 1.0 if overlap is None else overlap,
        }  # fmt: skip
        if decode or prefill:
            found.append((str(entry.get("recorded_at", "")), deployment, costs))
    return max(found, key=lambda item: item[:2])[2] if found else None


def _same(entry: Mapping, parts: Mapping) -> bool:
    """Return whether a recorded tuning was of the same model, on the same host in the same state."""
    before = entry["fingerprint_parts"]
    names = (*tuning_key.OF_PROBE, *_OF_ENGINE, "model_sha256")
    return bool(before.get("model_sha256")) and all(
        fingerprints.canonical(before.get(name)) == fingerprints.canonical(parts.get(name)) for name in names
    )


def cost(problem: Problem) -> split_cost.Cost | None:
    """Return the objective by the known costs of a problem, as coefficients of the layers; None without them."""
    known = problem.known
    if known is None:
        return None
    tokens, generated = problem.counted(problem.objective)
    return split_cost.workload_cost(
        known.costs.get("decode"), known.costs.get("prefill"), tokens, generated, tokens, problem.micro_batch,
        known.overlap, problem.weights,
    )  # fmt: skip


def hold(
    problem: Problem, measured: t.Mapping[str, t.Mapping[Layers, float]], tolerances: t.Mapping[str, float]
) -> bool:
    """Return whether loads bear out what the known costs say of one split over all devices against another.

    C(measured): ms by kind of test and split, C(tolerances): percent by kind. Their common scale is free: another depth
    or number of slots makes all of them slower.
    """
    known = problem.known
    for kind, costs in ({} if known is None else known.costs).items():
        batches, overlap = 1, 0.0
        if kind == "prefill" and known is not None and problem.prefill_test is not None:
            batches = cost_model.micro_batches(problem.prefill_test.n_prompt, problem.micro_batch)
            overlap = known.overlap
        ratios = [
            ms / cost_model.prefill_ms(costs, problem.weights.amounts(kind, split), batches, overlap)
            for split, ms in measured[kind].items()
            if all(split)
        ]
        if ratios and 100 * (max(ratios) / min(ratios) - 1) > tolerances[kind]:
            return False
    return True
