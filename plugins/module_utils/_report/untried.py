# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tuning did not try and may be faster, with the reason. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from .._split import engines

#: Objectives that do not wait for generated text, which is what speculation makes faster.
_OF_PROMPTS: t.Final = ("prefill", "ttft")


def untried(entry: Mapping) -> list[str]:
    """Return one sentence per thing, the one that usually gains most first; C(entry) is an expanded one."""
    stages = engines.of(entry["serving"]).stages
    found = [_tensor(entry, stages), _speculation(entry, stages), _micro_batches(entry, stages)]
    return [sentence for sentence in found if sentence]


def _tensor(entry: Mapping, stages: t.Sequence[str]) -> str:
    tried, decision = entry["decision"].get("tensor"), entry["decision"]
    if tried is not None:
        return _sentence(tried["why"]) if tried["verdict"] == "not_tried" else ""
    if "mode" not in stages or len(entry["devices"]) < 2 or decision["split_mode"] == "tensor":
        return ""
    name = "split_tuning_modes" if engines.of(entry["serving"]).family == "llama_cpp" else "split_tuning_exllama_modes"
    if decision.get("experts_in_ram"):
        return "Split mode tensor was not tried: it needs whole blocks on the devices, and weights are in RAM."
    return (
        f"Split mode tensor, in which the devices compute each layer together, was not tried: {name} does not allow it;"
        f" set {name}: [layer, tensor]."
    )


def _speculation(entry: Mapping, stages: t.Sequence[str]) -> str:
    tried = entry["decision"].get("speculation")
    if tried is not None:
        return _sentence(tried["why"]) if tried["verdict"] == "not_tried" else ""
    if "speculation" not in stages or entry["decision"]["objective"]["name"] in _OF_PROMPTS:
        return ""
    if engines.of(entry["serving"]).family == "exllama":
        return (
            "Speculation, in which a small draft is checked by the model, was not tried: no entry of llm_models has"
            f" draft_for {entry['model']['id']}, or split_tuning_speculation does not allow it."
        )
    return (
        "Speculation, in which a small draft is checked by the model, was not tried: split_tuning_speculation does not"
        " allow it; set split_tuning_speculation: auto."
    )


def _micro_batches(entry: Mapping, stages: t.Sequence[str]) -> str:
    """Return what is lost with one micro-batch; where only tokens count there is nothing."""
    decision, asked = entry["decision"], (entry.get("fingerprint_parts") or {}).get("micro_batches")
    if "micro_batch" not in stages or decision["objective"]["name"] in ("decode", "agent") or asked is None:
        return ""
    if (decision.get("micro_batches") or {}).get("loads") or decision.get("experts_in_ram") or len(asked) > 1:
        return ""
    return (
        "Other micro-batches, which read prompts in larger or smaller parts, were not tried: split_tuning_micro_batches"
        " names none; set split_tuning_micro_batches: [256, 512, 1024]."
    )


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:].rstrip('.')}."
