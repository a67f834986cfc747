# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a split costs in time, and how sure that is. Private to this collection. Pure functions only.

Layer mode, single stream. With n_i layers on device i, each weighed by what it reads or computes (layer_weights.py):

- decode: the devices take turns, so one token takes t = sum(n_i * a_i), a_i in ms per average layer and token. A hop
  between devices costs the same in every split that uses all devices. It cannot be told apart from such splits and is
  spread over the a_i, so the prediction for fewer devices contains hops that these do not make. One device alone is
  therefore no point of a fit over all devices.
- prefill: a prompt runs as m = ceil(prompt / micro-batch) micro-batches, c_i in ms per average block and micro-batch,
  in one of three forms.
  pipeline  t = sum(n_i * c_i) + (m - 1) * max(n_i * c_i), what llama.cpp does on CUDA cards and over RPC. This is
            [sum + (m - 1) * max] / m with c_i for the whole prompt;
  serial    t = m * sum(n_i * c_i), where stages cannot overlap (pipelining off, or two devices that are one chip);
  between   t = w * pipeline + (1 - w) * serial, with an overlap w from 0 to 1.
  cost_fit.choose_prefill lets the data decide.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._base import stats

#: What each device holds, in average layers (layer_weights.py).
Amounts = t.Sequence[float]

Point = tuple[Amounts, float]


def micro_batches(prompt_tokens: int, micro_batch: int) -> int:
    """Return how many micro-batches a prompt makes."""
    return max(1, -(-prompt_tokens // micro_batch))


def decode_ms(slot_ms: t.Sequence[float], amounts: Amounts) -> float:
    """Return the predicted time of one token."""
    return sum(a * n for a, n in zip(slot_ms, amounts, strict=True))


def stages_ms(slot_ms: t.Sequence[float], amounts: Amounts) -> list[float]:
    """Return how long each device takes over one micro-batch of a prompt."""
    return [cost * count for cost, count in zip(slot_ms, amounts, strict=True)]


def prefill_weights(batches: int, overlap: float) -> tuple[float, float]:
    """Return (a, b) of t = a * sum(stages) + b * max(stages), the time of C(batches) micro-batches at that overlap."""
    return batches - overlap * (batches - 1), overlap * (batches - 1)


def prefill_ms(
    slot_ms: t.Sequence[float], amounts: Amounts, batches: int, overlap: float
) -> float:
    """Return the predicted time of a prompt of C(batches) micro-batches; C(overlap) 1 is a pipeline, 0 is serial."""
    stages = stages_ms(slot_ms, amounts)
    of_sum, of_max = prefill_weights(batches, overlap)
    return of_sum * sum(stages) + of_max * max(stages)


def prefill_scale(
    slot_ms: t.Sequence[float] | None, amounts: Amounts, tested: int, asked: int, micro_batch: int, overlap: float
) -> float:
    """Return the factor from the time of a prompt of C(tested) tokens to that of one of C(asked) tokens.

    The fitted form of both is compared, with micro-batches as full on average as each prompt makes them, so a split
    that is badly balanced pays more for a longer prompt. Without a fit it is the ratio of the tokens. Attention's own
    growth with the prompt is left out: measure a prompt of about the size that you ask for.
    """
    if tested == asked:
        return 1.0
    if slot_ms is None:
        return asked / tested
    tested_batches, asked_batches = micro_batches(tested, micro_batch), micro_batches(asked, micro_batch)
    fullness = (asked / asked_batches) / (tested / tested_batches)
    before = prefill_ms(slot_ms, amounts, tested_batches, overlap)
    return fullness * prefill_ms(slot_ms, amounts, asked_batches, overlap) / before if before > 0 else asked / tested


def residual_percent(predicted: t.Sequence[float], measured: t.Sequence[float]) -> float:
    """Return the largest |predicted - measured| / measured, in percent."""
    return 100 * max(abs(p - m) / m for p, m in zip(predicted, measured, strict=True))


class Comparison(t.NamedTuple):
    """How much less time one split takes than another, in percent of the other's time."""

    percent: float
    low: float | None
    high: float | None
    smallest_visible: float | None


def compare(
    chosen: t.Sequence[float], other: t.Sequence[float], spread: tuple[float, int], scaled: float = 0.0
) -> Comparison:
    """Compare the load means of two splits; the 95 % interval is Student's, with the load as the unit.

    C(spread) comes from pooled_spread. Without degrees of freedom the interval is unknown. C(scaled) is the relative
    error of what the ratio of the two was multiplied by.
    """
    ratio = statistics.fmean(map(math.log, chosen)) - statistics.fmean(map(math.log, other))
    percent = 100 * (1 - math.exp(ratio))
    deviation, degrees = spread
    if not degrees:
        return Comparison(percent, None, None, None)
    error = math.hypot(deviation * math.sqrt(1 / len(chosen) + 1 / len(other)), scaled)
    half = stats.t_quantile(degrees, 0.05) * error
    return Comparison(
        percent, 100 * (1 - math.exp(ratio + half)), 100 * (1 - math.exp(ratio - half)), 100 * (math.exp(half) - 1)
    )
