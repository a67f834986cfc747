# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shares that split mode tensor can have, and their memory. Private to this collection. Pure functions only.

llama.cpp floors shares to whole groups of attention heads (attention_units), and ExLlamaV3 to whole heads of keys
(_split/exl_tensor.py), so there are few candidates.
"""

from __future__ import annotations

import itertools
import math
import typing as t

from .._split import engines, exl_tensor, memory_plan
from .._split.layer_split import Layers
from .._split.split_problem import Problem

#: Shares on more devices than this are only proportional and even ones.
LISTED_DEVICES: t.Final = 3


def quantisation_block(file_type: str | None) -> int:
    """Return how many elements of a row one quantisation block of most of a model's tensors has, by its file type.

    256 for K and I quantisations, 32 for the older ones, 1 for floats (ggml's type table).
    """
    name = (file_type or "").upper()
    if "_K" in name or (name.startswith("IQ") and "IQ4_NL" not in name) or name.startswith("TQ"):
        return 256
    return 1 if name in ("F32", "F16", "BF16", "ALL_F32", "MOSTLY_F16", "MOSTLY_BF16") else 32


def attention_units(model: t.Mapping[str, t.Any], devices: int) -> int | None:
    """Return into how many equal parts llama.cpp can divide the attention of a block; None when that is not known.

    As in get_split_granularity of llama.cpp b11312: whole groups of query heads that share a K head, with the rows
    of a quantisation block (at least 128 where the group is wide enough) kept together. 8 for Llama 3.3 70B at Q4_K_M.
    """
    heads, kv_heads, length = (model.get(key) or 0 for key in ("head_count", "head_count_kv", "key_length"))
    if not heads or not kv_heads or not length or heads % kv_heads:
        return None
    group = heads // kv_heads * length
    block = quantisation_block(model.get("file_type"))
    while block < 128 and block * devices < group:
        block *= 2
    units, rest = divmod(heads * length, math.lcm(group, block))
    return None if rest or units < 1 else units


def units_of(problem: Problem) -> int | None:
    """Return into how many equal parts the engine of a problem divides attention; None where that is not known."""
    model = problem.memory.model
    if engines.of(problem.memory.serving).family == "exllama":
        return exl_tensor.attention_units(model)
    return attention_units(model, len(problem.names))


def candidates(problem: Problem, slot_ms: t.Sequence[float] | None) -> list[tuple[float, Layers]]:
    """Return (predicted ms per token without synchronisation, shares), the best first; shares are whole units.

    Only shares whose memory fits, and on which every device has a part. Without a fit the prediction is the largest
    share.
    """
    devices = len(problem.names)
    units = units_of(problem)
    if units is None or units < devices:
        return []
    costs = list(slot_ms) if slot_ms is not None else [1.0] * devices
    if devices <= LISTED_DEVICES:
        cuts = itertools.combinations(range(1, units), devices - 1)
        found = [tuple(b - a for a, b in itertools.pairwise((0, *cut, units))) for cut in cuts]
    else:
        found = [_rounded([1 / max(cost, 1e-9) for cost in costs], units), _rounded([1.0] * devices, units)]
    fitting = [shares for shares in dict.fromkeys(found) if headroom_mib(problem, shares)[1] >= 0]
    return sorted((_predicted_ms(problem, costs, shares, units), shares) for shares in fitting)


def _predicted_ms(problem: Problem, costs: t.Sequence[float], shares: Layers, units: int) -> float:
    return max(share / units * problem.slots * cost for share, cost in zip(shares, costs, strict=True))


def _rounded(weights: t.Sequence[float], units: int) -> Layers:
    """Return whole parts of C(units), at least one each, in proportion to C(weights) by largest remainders."""
    exact = [1 + (units - len(weights)) * weight / sum(weights) for weight in weights]
    parts = [int(value) for value in exact]
    by_rest = sorted(range(len(parts)), key=lambda i: (parts[i] - exact[i], i))
    for index in by_rest[: units - sum(parts)]:
        parts[index] += 1
    return tuple(parts)


def shares_mib(memory: memory_plan.MemoryPlan, shares: Layers) -> list[int]:
    """Return the MiB of each device in tensor mode, an estimate: its share of weights and KV cache, a compute buffer.

    llama.cpp's dry run says nothing about single devices in this mode. The compute buffer is counted as if the device
    held the whole model, which is more than it needs.
    """
    whole = memory.device((memory.model["block_count"] + 1,), 0)
    part = (whole.weights + whole.kv) / sum(shares)
    return [-(-int(share * part + whole.compute) // memory_plan.MIB) for share in shares]


def headroom_mib(problem: Problem, shares: Layers) -> tuple[list[int], int]:
    """Return what is left of each device's budget, and the least of it."""
    left = memory_plan.headroom_mib(shares_mib(problem.memory, shares), problem.budgets)
    return left, min(left)
