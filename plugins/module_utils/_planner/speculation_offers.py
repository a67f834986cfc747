# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which ways to speculate memory and headers allow, with the split beside each. Private to this collection. Pure.

A draft takes memory of one device. Where the chosen split leaves it, nothing moves; else the fastest split beside it is
taken, by the fitted costs of layer mode, and what it loses is part of the offer. Beside weights in RAM nothing moves.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from .._base.types import Mapping
from .._models import vocabulary
from .._split import cost_model, expert_placement, layer_split, memory_plan, speculation
from .._split.layer_split import Layers
from .._split.speculation import Offer
from .._split.split_problem import Problem
from .._split.types import Model, Serving
from . import expected_speeds, round_costs

#: Kinds of which each drafted token keeps a copy of a recurrent state on the devices; others have a checkpoint in RAM
#: (need_n_rs_seq of llama.cpp b11312, common.h). Drafted tokens at most where it does.
WITH_STATE: t.Final = ("draft-mtp", "draft-eagle3")
MOST_WITH_STATE: t.Final = 4
#: What verifying one more token is expected to take of the time of weights in RAM, and the error of that: the CPU reads
#: FFN weights once for all tokens and computes each of them; experts of its own are read for each token.
VERIFY_IN_RAM: t.Final[dict[str, float]] = {expert_placement.FFN: 0.4, expert_placement.EXPERTS: 0.7}
VERIFY_IN_RAM_ERROR: t.Final = 0.2


@dataclasses.dataclass(frozen=True)
class Draft:
    """A model that may draft. C(mib): what its own dry run said, None where it was not asked."""

    id: str
    path: str
    model: Mapping
    mib: int | None

    @property
    def kind(self) -> str:
        """The kind of speculation that it is made for."""
        return "draft-eagle3" if self.model["architecture"] == "eagle3" else "draft-simple"


@dataclasses.dataclass(frozen=True)
class Found:
    """All offers, what each takes of each device (MiB) by its family, and why others are none."""

    offers: list[Offer]
    mib: dict[speculation.Family, tuple[int, ...]]
    refused: list[str]


def memory_of(problem: Problem, decision: Mapping) -> memory_plan.MemoryPlan:
    """Return the memory of every split with the micro-batch that is decided, all weights on devices."""
    serving = expert_placement.of_decision(problem.memory.serving, decision)
    return memory_plan.MemoryPlan(problem.memory.model, serving)


def draft_mib(draft: Draft, serving: Serving) -> int:
    """Return what a draft takes of the device that holds it: as planned, or as llama.cpp's dry run says if more.

    C(serving): of its target, which it shares context and types of KV cache with.
    """
    model = t.cast(Model, draft.model)
    planned = memory_plan.MemoryPlan(model, serving).mib([model["block_count"] + 1])[0]
    return max(planned, draft.mib or 0)


def verifying(model: Model, decision: Mapping) -> round_costs.Verify:
    """Return what verifying one more token is expected to take, relative to a token, by where the weights are."""
    experts = expert_placement.from_json(decision["layers"], decision.get("experts_in_ram"))
    if experts is None:
        return round_costs.VERIFY
    fit, token_ms = decision.get("fit") or {}, 1000 / decision["decode_tokens_per_second"]
    share = 1.0
    if fit.get("decode_ms_per_block_in_ram"):
        read = sum(expert_placement.block_ram_bytes(model, experts)) * expert_placement.share_used(model)
        share = min(1.0, read / fit["bytes_per_block_in_ram"] * fit["decode_ms_per_block_in_ram"] / token_ms)
    value, error = round_costs.VERIFY
    in_ram = share * VERIFY_IN_RAM[experts.kind]
    return round_costs.Verify(in_ram + (1 - share) * value, math.hypot(error, share * VERIFY_IN_RAM_ERROR))


class Offers:
    """What is offered beside one decision."""

    def __init__(
        self, problem: Problem, decision: Mapping, splits: t.Sequence[Layers], drafts: t.Sequence[Draft],
        kinds: t.Sequence[str], mode: str = "",
    ) -> None:  # fmt: skip
        """Take a checked problem, its decision, the splits that remain, and the kinds that may be tried.

        C(mode): the split mode of the decision where that is another one than without speculation.
        """
        self.mode = mode
        self.problem, self.decision, self.splits, self.drafts, self.kinds = problem, decision, splits, drafts, kinds
        self.layers: Layers = tuple(decision["layers"])
        self.ids = [str(device["id"]) for device in problem.raw["devices"]]
        self.reference_ms = 1000 / decision["decode_tokens_per_second"]
        self.memory = memory_of(problem, decision)
        self.serving, self.model = self.memory.serving, self.memory.model

    def find(self) -> Found:
        """Return what is offered and what is not."""
        found = Found([], {}, [])
        for draft in self.drafts:
            self._of_draft(draft, found)
        if "draft-mtp" in self.kinds:
            self._of_own_blocks(found)
        for kind in (kind for kind in self.kinds if kind in speculation.NGRAM_KINDS):
            found.offers.append(Offer(kind, "", "", self.layers, self.reference_ms, 0.0, 0))
        return found

    def _of_draft(self, draft: Draft, found: Found) -> None:
        if draft.kind not in self.kinds:
            return
        # a head has a vocabulary of its own
        mine, its = (model.get("vocabulary") or {} for model in (self.model, draft.model))
        why = vocabulary.why_not(mine, its) if draft.kind == "draft-simple" else None
        if why is not None:
            found.refused.append(f"{draft.id} cannot draft for this model: {why}")
            return
        needed = draft_mib(draft, self.serving)
        before = len(found.offers)
        for place, device in enumerate(self.ids):
            on_device = [needed if index == place else 0 for index in range(len(self.ids))]
            read = sum(draft.model["block_read_bytes"]) + draft.model["output_bytes"]
            self._offer(found, Offer(draft.kind, draft.id, device, (), 0.0, read * self._ms_per_byte(place)), on_device)
        if len(found.offers) == before:
            left = ", ".join(
                f"{name} has {room} MiB left"
                for name, room in zip(self.problem.names, self.decision["headroom_mib"], strict=True)
            )
            found.refused.append(
                f"{draft.id} does not fit beside the model: it needs {needed} MiB on one device, and {left}"
            )

    def _of_own_blocks(self, found: Found) -> None:
        """Offer the model's own blocks for drafting (MTP), which lie before the output layer, in tensor mode on all."""
        blocks = self.model.get("nextn_blocks", 0)
        if not blocks:
            return
        place = layer_split.last_block_device(self.layers)
        cells = memory_plan.context_cells(self.serving)[1]
        types = (self.serving["cache_type_k"], self.serving["cache_type_v"])
        cache = sum(memory_plan.row_bytes(self.model["nextn_kv_elements"] // 2, kind) for kind in types) * cells
        width, forward = self.model["embedding_length"], self.model["feed_forward_length"]
        tokens = memory_plan.micro_batch_tokens(self.serving)
        compute = 4 * (tokens * (3 * width + 3 * forward) + self.model["vocabulary_size"])
        needed = -(-(self.model["nextn_bytes"] + cache + compute) // memory_plan.MIB)
        # in tensor mode each device has all of what only drafting has (nextn.*), and its share of the rest
        holders = range(len(self.ids)) if self.decision["split_mode"] == "tensor" else [place]
        on_device = [needed if index in holders else 0 for index in range(len(self.ids))]
        # the output matrix is read again for every drafted token
        read = self.model["nextn_bytes"] + self.model["output_bytes"]
        most = speculation.MOST_DRAFTED if blocks == 1 else min(blocks, speculation.MOST_DRAFTED)
        ms = read * self._ms_per_byte(place)
        offer = Offer("draft-mtp", "", self.ids[place], (), 0.0, ms, most)
        if not self._offer(found, offer, on_device):
            room, place = min((self.decision["headroom_mib"][index], index) for index in holders)
            found.refused.append(
                f"the model's own MTP blocks do not fit: they need {needed} MiB on {self.problem.names[place]}, which"
                f" has {room} MiB left"
            )

    def _offer(self, found: Found, offer: Offer, on_device: t.Sequence[int]) -> bool:
        """Add an offer with the split beside it; return whether there is one."""
        copied = offer.kind in WITH_STATE and any(self.model.get("block_sequence_bytes") or ())
        most = min(offer.most_drafted, MOST_WITH_STATE) if copied else offer.most_drafted

        def needed(layers: Layers) -> tuple[int, ...]:
            state = self._state_mib(layers) if copied else [0] * len(layers)
            return tuple(own + most * kept for own, kept in zip(on_device, state, strict=True))

        # the model's own blocks stay on the device that the offer names
        last = layer_split.last_block_device(self.layers)
        own_blocks = offer.kind == "draft-mtp"
        splits = [split for split in self.splits if not own_blocks or layer_split.last_block_device(split) == last]
        beside = self._beside(needed, splits)
        if beside is None:
            return False
        layers, target_ms = beside
        whole = dataclasses.replace(offer, layers=layers, target_ms=target_ms, most_drafted=most, mode=self.mode)
        found.offers.append(whole)
        found.mib[whole.family] = needed(layers)
        return True

    def _state_mib(self, layers: Layers) -> list[int]:
        """Return the recurrent state of all slots on each device."""
        states = self.model["block_sequence_bytes"]
        held = expected_speeds.stages(states, layers)
        if self.decision["split_mode"] == "tensor":
            held = [sum(states) * share / sum(layers) for share in layers]
        return [math.ceil(own * self.serving["parallel_slots"] / memory_plan.MIB) for own in held]

    def _ms_per_byte(self, place: int) -> float:
        """Return what reading a byte takes on a device, by the fitted costs, else as in the whole model."""
        total = sum(self.model.get("block_read_bytes") or self.model["block_bytes"]) + self.model["output_bytes"]
        fit = self.decision.get("fit") or {}
        costs, alone = fit.get("decode_ms_per_layer"), fit.get("decode_ms_per_device")
        if alone and alone[place]:  # of a fit with weights in RAM: all weights on that device
            return float(alone[place]) / float(fit["read_bytes"])
        if costs and costs[place] > 0:
            return float(costs[place]) * self.problem.slots / total
        return self.reference_ms / total

    def _beside(
        self, needed: t.Callable[[Layers], tuple[int, ...]], splits: t.Sequence[Layers]
    ) -> tuple[Layers, float] | None:
        """Return the fastest split that leaves C(needed) MiB of each device, and what a token takes with it (ms)."""
        room = self.decision["headroom_mib"]
        if all(want <= left for want, left in zip(needed(self.layers), room, strict=True)):
            return self.layers, self.reference_ms
        costs = (self.decision.get("fit") or {}).get("decode_ms_per_layer")
        if self.decision["split_mode"] != "layer" or not costs:
            return None
        fitting = [
            (self._fitted_ms(costs, layers), layers)
            for layers in splits
            if all(
                held + own <= budget
                for held, own, budget in zip(self.memory.mib(layers), needed(layers), self.problem.budgets, strict=True)
            )
        ]
        if not fitting:
            return None
        best_ms, layers = min(fitting)
        return layers, max(0.1 * self.reference_ms, self.reference_ms + best_ms - self._fitted_ms(costs, self.layers))

    def _fitted_ms(self, costs: t.Sequence[float], layers: Layers) -> float:
        return cost_model.decode_ms(costs, self.problem.weights.amounts("decode", layers))
