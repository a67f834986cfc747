# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How ExLlamaV3 shares layers between cards, and the C(gpu_split) that makes it do so. Private. Pure functions only.

exllamav3 1.6.5 (C(TPAllocator.initial_split) of model/model_tp_alloc.py) goes through the parts of a model and divides
each in the ratio of what is left of the cards' numbers: heads of keys and values for attention, 128 channels elsewhere.
So numbers in the ratio of the shares share everything so, while enough is left. They are a plan on paper: nothing
compares them with the memory of the cards.
"""

from __future__ import annotations

import typing as t

from .layer_split import Layers

#: Attention is divided at so many channels (attn.py, C(make_tp_allocation)).
_CHANNELS: t.Final = 128
#: Decimals of a gpu_split: about a kilobyte.
_DECIMALS: t.Final = 6


def attention_units(model: t.Mapping[str, t.Any]) -> int | None:
    """Return into how many equal parts the attention of a block divides; None where ExLlamaV3 cannot divide it."""
    heads, length = model.get("head_count_kv") or 0, model.get("key_length") or 0
    if not heads or not length:
        return None
    width = 1
    while width * length % _CHANNELS:
        if heads % 2:
            return None
        width, heads = 2 * width, heads // 2
    return int(heads)


def gpu_split_gb(shares: Layers | t.Sequence[int], budgets_mib: t.Sequence[int]) -> list[float]:
    """Return numbers of gigabytes (2^30 bytes) in the ratio of the shares, the largest that keep within the budgets.

    Raises ValueError where a card has no share, or no budget: each works on every layer.
    """
    if len(shares) != len(budgets_mib) or min(shares) < 1 or min(budgets_mib) < 1:
        raise ValueError(
            f"shares {list(shares)} over budgets {list(budgets_mib)} MiB: each card needs a share and room"
        )
    unit_mib = min(budget / share for budget, share in zip(budgets_mib, shares, strict=True))
    return [round(unit_mib * share / 1024, _DECIMALS) for share in shares]
