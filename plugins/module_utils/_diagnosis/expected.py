# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the record of a split expects of each device, and how sure it is. Private to this collection. Pure functions.

Expectations come from the record's fit (see cost_model), with n_i layers (output layer included) and b_i blocks on
device i:

- decode, per token: device i works n_i * a_i ms of the token's T = sum(n_i * a_i), one after the other. So its
  utilisation is its share n_i * a_i / T, and all shares together are 100 %: in a layer split no card is ever at 100 %.
- prefill, per prompt of m micro-batches: device i works m * b_i * c_i ms of T = of_sum * sum(b_i * c_i) + of_max *
  max(b_i * c_i) (cost_model.prefill_weights). In a full pipeline the slower stage is busy nearly all the time, the
  other one for the ratio of the stages.
"""

from __future__ import annotations

import math
import typing as t

from .._base.types import Json
from .._split import cost_model, layer_weights, workload
from . import split_advice


def phases(entry: Json, block_seconds: float) -> list[Json]:
    """Return what to load the server with: the tests of the record, as far as they fit.

    A decode request has one token of prompt, which costs what a generated one does, and lasts no longer than a block
    where the record says how long a token takes.
    """
    tests, room = split_advice.tests_of(entry), workload.context_of(entry["serving"])
    generated = tests["decode"]["n_gen"] if "decode" in tests else split_advice.DECODE_TOKENS
    rate = entry["decision"].get("decode_tokens_per_second")
    if rate:
        generated = min(generated, max(4, round(rate * block_seconds)))
    prompt = tests["prefill"]["n_prompt"] if "prefill" in tests else split_advice.PROMPT_TOKENS
    return [
        {"kind": "decode", "prompt_tokens": 1, "generated_tokens": max(1, min(generated, room - 1))},
        {"kind": "prefill", "prompt_tokens": max(1, min(prompt, room - 1)), "generated_tokens": 1},
    ]


class Expected(t.NamedTuple):
    """What the record expects of one unit of work: a token of decoding, or a prompt."""

    ms: float
    busy_ms: tuple[float, ...]
    of_sum: float
    of_max: float
    batches: int

    def utilisation(self) -> list[float]:
        """Return the share of time that each device is busy, from 0 to 1."""
        return [min(1.0, busy / self.ms) for busy in self.busy_ms]


def expected(entry: Json, kind: str, prompt_tokens: int) -> Expected | None:
    """Return what the fit of a record expects, or None where there is none for layers."""
    decision = entry["decision"]
    layers, fit = decision["layers"], decision.get("fit")
    if not fit or decision["split_mode"] != "layer" or not fit.get(f"{kind}_ms_per_layer"):
        return None
    costs = fit[f"{kind}_ms_per_layer"]
    amounts = layer_weights.of_lists(fit.get("weights"), sum(layers)).amounts(kind, layers)
    if kind == "decode":
        busy = tuple(cost * amount for cost, amount in zip(costs, amounts, strict=True))
        return Expected(sum(busy), busy, 1.0, 0.0, 1) if sum(busy) > 0 else None
    micro_batch = min(entry["serving"]["micro_batch_size"], entry["serving"]["batch_size"])
    tested = split_advice.tests_of(entry).get("prefill", {}).get("n_prompt") or prompt_tokens
    batches = cost_model.micro_batches(prompt_tokens, micro_batch)
    fullness = (prompt_tokens / batches) / (tested / cost_model.micro_batches(tested, micro_batch))
    overlap = fit.get("prefill_overlap", 1.0)
    stages = [fullness * ms for ms in cost_model.stages_ms(costs, amounts)]
    of_sum, of_max = cost_model.prefill_weights(batches, overlap)
    total = of_sum * sum(stages) + of_max * max(stages)
    return Expected(total, tuple(batches * ms for ms in stages), of_sum, of_max, batches) if total > 0 else None


def record_error(entry: Json, kind: str) -> float:
    """Return the relative error of what the record expects of one more load.

    In quadrature the fit's largest residual and the noise between loads: the recorded split's interval h of n loads is
    t * s / sqrt(n) wide, and a new load differs from their mean by t * s * sqrt(1 + 1/n) = h * sqrt(n + 1).
    """
    decision = entry["decision"]
    residual = ((decision.get("fit") or {}).get(f"{kind}_residual_percent") or 0.0) / 100
    key = "decode_ms_per_token" if kind == "decode" else "prefill_ms"
    row: Json = next((row for row in decision.get("table") or [] if row["layers"] == decision["layers"]), {})
    cell = row.get(key)
    if not cell:
        return residual
    loads = max(1, row["loads"] - len(row.get("disturbed_loads") or []))
    return math.hypot(residual, (cell["high"] - cell["low"]) / 2 / cell["mean"] * math.sqrt(loads + 1))
