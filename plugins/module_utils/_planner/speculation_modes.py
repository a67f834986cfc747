# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The split mode that did not win without drafts, where it may win with them. Private to this collection. Pure.

A round costs relatively less in tensor mode (on two H200 1.0 tokens of the target before anything is drafted, and 1.4
to 1.6 in layer mode), and drafts slow prompts down in layer mode. So speculation can change the order of the modes.
"""

from __future__ import annotations

from .._base.types import Json, Mapping
from .._split import memory_plan
from .._split.layer_split import split_name
from .._split.split_problem import Problem
from .speculation_offers import memory_of
from .tensor_loads import TRIAL_PURPOSE


def other_mode(problem: Problem, decision: Mapping) -> Json | None:
    """Return the decision as it would be in the other split mode; None where that was not measured, or is out.

    Tensor mode is out where it failed its trial.
    """
    tensor = decision.get("tensor") or {}
    rows = {row["mode"]: row for row in tensor.get("table") or [] if row.get("decode_ms_per_token")}
    if decision["split_mode"] == "tensor":
        if "layer" not in rows:
            return None
        layers = tuple(tensor["layer_split"])
        mib = memory_of(problem, decision).mib(layers)
        room = memory_plan.headroom_mib(mib, problem.budgets)
        ms = rows["layer"]["decode_ms_per_token"]
        return {
            **decision, "split_mode": "layer", "environment": {}, "layers": list(layers), "mib": mib,
            "headroom_mib": room, "decode_tokens_per_second": 1000 / ms,
        }  # fmt: skip
    usable = tensor.get("verdict") in ("slower", "inconclusive") and tensor.get("decode_tokens_per_second")
    if not usable or distrust(decision):
        return None
    taken = ("environment", "layers", "mib", "headroom_mib", "decode_tokens_per_second")
    return {**decision, "split_mode": "tensor", **{name: tensor[name] for name in taken}}


def distrust(decision: Mapping) -> str:
    """Return why tensor mode failed its trial, empty where it passed or had none."""
    trial = (decision.get("tensor") or {}).get("trial")
    return "" if trial is None or trial["status"] == "ok" else str(trial.get("reason") or trial["status"])


def trial(decision: Mapping, other: Mapping) -> Json | None:
    """Return the trial that tensor mode has to pass before it is served with drafts; None where it had one.

    C(other) is the decision in tensor mode. An item as of tensor_stage.trial.
    """
    if (decision.get("tensor") or {}).get("trial") is not None:
        return None
    way = ", ".join(other["environment"].values())
    return {
        "label": f"trial of tensor {split_name(other['layers'])}{f' {way}' if way else ''}",
        "split_mode": "tensor",
        "layers": list(other["layers"]),
        "load": 1,
        "purpose": TRIAL_PURPOSE,
        "environment": dict(other["environment"]),
        "micro_batch_size": other["micro_batch_size"],
        "reference": {"split_mode": "layer", "layers": list(decision["layers"])},
    }


def told(decision: Mapping, kept: Mapping) -> Json | None:
    """Return what became of tensor mode, where the table of the modes says what is served with drafts."""
    tensor = decision.get("tensor")
    if tensor is None or kept["split_mode"] == decision["split_mode"]:
        return None if tensor is None else dict(tensor)
    served = (kept["split_mode"], kept["layers"])
    rows = [
        {**row, "verdict": "chosen" if (row["mode"], row["layers"]) == served else _without_drafts(row["verdict"])}
        for row in tensor["table"]
    ]
    return {**tensor, "table": rows}


def _without_drafts(verdict: str) -> str:
    return "without drafts" if verdict == "chosen" else verdict
