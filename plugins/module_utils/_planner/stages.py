# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole tuning campaign: the layer split, then its micro-batch, then tensor mode. Private to this collection.

One pure function, split_plan, over the same loads as the planner of layer splits (_split_planner), which never sees the
loads of the two later stages: they neither count against its limit nor enter its fit.
"""

from __future__ import annotations

import typing as t

from .._split import memory_plan
from .._split.layer_split import Layers, split_name
from .._split.types import Serving
from . import layer_stage, micro_batch_stage, tensor_stage
from .layer_stage import Evidence

Json = dict[str, t.Any]

LATER_PURPOSES: t.Final = (
    micro_batch_stage.PURPOSE, tensor_stage.PURPOSE, tensor_stage.RIVAL_PURPOSE, tensor_stage.TRIAL_PURPOSE
)  # fmt: skip


def plan(problem: t.Any, loads: t.Any) -> Json:
    """Return the plan for a problem and everything measured so far, all as in docs/data_formats.md.

    Pure and deterministic. Raises ValueError, naming the field, for a problem or loads that are not as described there.
    """
    if not isinstance(loads, (list, tuple)) or not all(isinstance(load, t.Mapping) for load in loads):
        raise ValueError(f"loads must be a list of dicts, not {loads!r}")
    later = [_checked(f"loads[{index}]", load) for index, load in enumerate(loads) if _is_later(load)]
    found, evidence = layer_stage.plan_with_evidence(problem, [load for load in loads if not _is_later(load)])
    _check_tensor(evidence.problem.raw.get("tensor"))
    found["trials"] = []
    if found["decision"] is None:
        return found
    # a device that tensor mode brought down is a reason against tensor mode
    lost = next((load for load in later if load["status"] == "device_lost" and load["split_mode"] == "layer"), None)
    if lost is not None:
        reason = lost.get("reason")
        why = f"a device was lost: {lost['label']} ended as device_lost ({reason}); bring it back and run again"
        return {**found, "done": True, "stage": "impossible", "why": why, "loads": [], "decision": None}
    longest_ms = max((load.get("wall_ms") or 0 for load in loads if load.get("split_mode") == "layer"), default=0)
    return _tensor_stage(_micro_batch_stage(found, evidence, later), evidence, later, longest_ms)


def _is_later(load: t.Mapping[str, t.Any]) -> bool:
    return load.get("purpose") in LATER_PURPOSES


def _checked(where: str, load: t.Mapping[str, t.Any]) -> Json:
    """Return a load of a later stage; ValueError names the field that is missing or wrong."""
    for key, kind in (("split_mode", str), ("layers", list), ("load", int), ("status", str), ("results", list)):
        if not isinstance(load.get(key), kind):
            raise ValueError(f"{where}.{key} is missing or no {kind.__name__}")
    if load["purpose"] != tensor_stage.TRIAL_PURPOSE and not isinstance(load.get("tests"), list):
        raise ValueError(f"{where}.tests is missing or no list")
    return dict(load)


def _check_tensor(settings: t.Any) -> None:
    """Raise ValueError, naming the field, for settings of tensor mode that are none."""
    if settings is None:
        return
    if not isinstance(settings, t.Mapping):
        raise ValueError(f"problem.tensor must be a dict, not {type(settings).__name__}")
    ways, most = settings.get("allreduce", []), settings.get("max_loads", tensor_stage.MAX_LOADS)
    if not isinstance(ways, list) or not all(isinstance(way, str) for way in ways):
        raise ValueError(f"problem.tensor.allreduce must be a list of names, not {ways!r}")
    if isinstance(most, bool) or not isinstance(most, int) or most < 1:
        raise ValueError(f"problem.tensor.max_loads must be a whole number of at least 1, not {most!r}")


def _gain(layer_percent: float | None, tensor_percent: float) -> float | None:
    """Return how much less tensor mode takes than llama.cpp's default: layer mode's gain, and that over layer mode."""
    if layer_percent is None:
        return None
    return round(100 - (100 - layer_percent) * (100 - tensor_percent) / 100, 2)


def _called(decision: Json) -> str:
    return split_name(decision["layers"])


def _micro_batch_stage(plan: Json, evidence: Evidence, later: t.Sequence[Json]) -> Json:
    """Return the plan with the loads that the micro-batch asks for, or with the micro-batch in its decision."""
    decision = plan["decision"]
    layers: Layers = tuple(decision["layers"])
    own = [load for load in later if load["purpose"] == micro_batch_stage.PURPOSE]
    load = micro_batch_stage.next_load(evidence, layers, own, evidence.next_number(layers) + len(own))
    if load is not None:
        sizes = ", ".join(str(test["micro_batch_size"]) for test in load["tests"])
        return {
            **plan,
            "done": False,
            "stage": "micro_batch",
            "why": f"{_called(decision)} is settled; now its micro-batch: {sizes} tokens in one load",
            "loads": [load],
            "decision": None,
        }
    found = micro_batch_stage.outcome(evidence, layers, own)
    size = found["micro_batch_size"]
    decision = {**decision, "micro_batch_size": size, "micro_batches": found}
    if size != evidence.problem.micro_batch:
        serving: Serving = {**evidence.problem.memory.serving, "micro_batch_size": size}
        mib = memory_plan.MemoryPlan(evidence.problem.memory.model, serving).mib(layers)
        row = next(row for row in found["sizes"] if row["micro_batch_size"] == size)
        tested = evidence.problem.prefill_test
        decision.update(
            mib=mib,
            headroom_mib=memory_plan.headroom_mib(mib, evidence.problem.budgets),
            why=f"{decision['why']}; {found['why']}",
        )
        if tested is not None and row["prefill_ms"]:
            decision["prefill_tokens_per_second"] = round(1000 * tested.n_prompt / row["prefill_ms"], 3)
    return {**plan, "decision": decision, "why": decision["why"]}


def _tensor_stage(plan: Json, evidence: Evidence, later: t.Sequence[Json], longest_ms: float) -> Json:
    """Return the plan with what tensor mode asks for, or with what became of it in the decision."""
    decision = plan["decision"]
    if decision is None:
        return plan
    layers: Layers = tuple(decision["layers"])
    why_not = tensor_stage.wanted(evidence.problem, layers)
    if why_not is not None:
        asked = "tensor" in evidence.problem.raw["split_modes"]
        found: Json | None = {"verdict": "not_tried", "why": f"tensor mode was not tried: {why_not}"} if asked else None
        return {**plan, "decision": {**decision, "environment": {}, "tensor": found}}
    state = tensor_stage.Measured(evidence, layers, decision["micro_batch_size"], later, longest_ms)
    loads = tensor_stage.next_loads(state)
    trial = None if loads else tensor_stage.trial(state)
    if loads or trial is not None:
        labels = ", ".join(item["label"] for item in [*loads, *([trial] if trial is not None else [])])
        return {
            **plan,
            "done": False,
            "stage": "tensor" if loads else "tensor_trial",
            "why": f"{_called(decision)} is settled in layer mode; now split mode tensor: {labels}",
            "loads": loads,
            "trials": [trial] if trial is not None else [],
            "decision": None,
        }
    found = tensor_stage.outcome(state)
    decision = {**decision, "environment": {}, "tensor": found}
    if found["verdict"] == "faster":
        decision.update(
            layers=found["layers"],
            split_mode="tensor",
            single_device=False,
            # what was said of layer splits holds for layer splits alone
            verdict="faster",
            advice=[],
            best_by_objective={},
            range_percent=None,
            gain_over_default_percent=_gain(decision["gain_over_default_percent"], found["less_percent"]),
            gain_interval_percent=None,
            environment=found["environment"],
            mib=found["mib"],
            headroom_mib=found["headroom_mib"],
            decode_tokens_per_second=found["decode_tokens_per_second"],
            prefill_tokens_per_second=found["prefill_tokens_per_second"],
            why=f"{found['why']}. The best in layer mode: {decision['why']}",
        )
    else:
        decision["why"] = f"{decision['why']}; {found['why']}"
        if state.trial is not None and state.trial["status"] == "reference_failed":
            decision["advice"] = [*decision["advice"], f"look at this before you rely on it: {state.trial['reason']}"]
    return {**plan, "decision": decision, "why": decision["why"]}
