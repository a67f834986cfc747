# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speeds to expect of each split mode and of speculation, as ranges, before anything was measured. Private; pure.

Layer mode is that of the predictor. In tensor mode all cards read their share of every layer at once, and twice per
block they exchange sums. How long that takes, and what speculation gains, is taken from published runs.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import memory_plan, model_weights
from .._split.types import Model, Serving
from . import tensor_shares

_SWEEPS: t.Final = "sudoingX, qwen38-mtp, community numbers and sweeps, August 2026"


class Range(t.NamedTuple):
    """A speed or a time: least, expected, most."""

    low: float
    expected: float
    high: float


#: How far cards of one kind were apart in published runs of a dense model, to each side (RTX 4090, 27B: 43 to 48).
SPREAD: t.Final = 0.12
#: Microseconds of one all-reduce between two cards, two per block: fastest, usual and slowest of the published pairs,
#: by what reading and launches leave of a token.
#: 2x RTX 5090 107.5 tokens per second, 2x RTX 5060 Ti 38.3, RTX 5080 + RTX 3090 55.6, RTX 3060 + RTX 4070 Super 30.1.
ALLREDUCE_US: t.Final = Range(5.0, 17.0, 25.0)
ALLREDUCE_SOURCE: t.Final = f"{_SWEEPS}; llama.cpp PR 19378"
#: Tokens per second with a drafting method against without: least and most of what was published, and where.
SPECULATION: t.Final[dict[str, tuple[float, float, str]]] = {
    "mtp": (1.25, 2.45, f"MTP head, dense models of 27 billion weights ({_SWEEPS})"),
    "mtp_experts": (1.25, 1.35, f"MTP head, a model of 35 billion weights with 3 in use ({_SWEEPS})"),
    "draft": (
        1.35, 2.47,
        "a small model as draft, which needs room beside it: llama-swap's examples of 70B and 32B, textgen PR 6899",
    ),
}  # fmt: skip


def speculation(model: Mapping) -> tuple[float, float, str]:
    """Return the least and the most factor of speculation for a model, and their source."""
    if model["expert_count"]:
        return SPECULATION["mtp_experts"]
    return SPECULATION["mtp" if model["architecture"] in ("qwen35", "qwen35moe") else "draft"]


def layer(tokens_per_second: float) -> Range:
    """Return the range around a predicted speed of layer mode."""
    return Range(tokens_per_second * (1 - SPREAD), tokens_per_second, tokens_per_second * (1 + SPREAD))


def tensor(
    model: Model, serving: Serving, devices: t.Sequence[Mapping], reserve_mib: int, depth: int
) -> tuple[Range, tuple[int, ...]] | None:
    """Return tokens per second of tensor mode on two equal or unequal cards, and the parts that each holds.

    None where it cannot be told; an exchange between hosts takes too long for it. The parts are the fastest that fit,
    of those into which llama.cpp divides attention.
    """
    units = tensor_shares.attention_units(model, len(devices)) or 0
    near = all(device["bandwidth_gb_per_s"] and device.get("link") is None for device in devices)
    if len(devices) != 2 or units < 2 or not near:
        return None
    memory = memory_plan.MemoryPlan(model, serving)
    read = sum(model_weights.bytes_read(model, serving, depth))
    rates = [device["bandwidth_gb_per_s"] * device["fraction"] * 1e6 for device in devices]
    # every card launches the kernels of every block
    launched = [device["launch_ms"] * model["block_count"] for device in devices]
    budgets = memory_plan.budgets_mib(devices, reserve_mib)
    found = []
    for first in range(1, units):
        parts = (first, units - first)
        needs = tensor_shares.shares_mib(memory, parts)
        if all(need <= budget for need, budget in zip(needs, budgets, strict=True)):
            reading = [read * part / units / rate for part, rate in zip(parts, rates, strict=True)]
            slowest = max(zip(reading, launched, strict=True), key=sum)
            found.append((slowest, parts))
    if not found:
        return None
    (reading, launching), fastest = min(found, key=lambda item: sum(item[0]))
    exchanges = 2 * model["block_count"] / 1000

    def speed(factor: float, microseconds: float) -> float:
        return 1000 / (reading / factor + launching + exchanges * microseconds)

    return Range(
        speed(1 - SPREAD, ALLREDUCE_US.high), speed(1.0, ALLREDUCE_US.expected), speed(1 + SPREAD, ALLREDUCE_US.low)
    ), fastest


def as_json(found: Range | None) -> Json | None:
    """Return a range with three digits."""
    return None if found is None else {name: float(f"{value:.3g}") for name, value in found._asdict().items()}
