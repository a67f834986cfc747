# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The numbers that make ExLlamaV3 share layers as meant: exllamav3's own allocator, out of its wheel, has to agree."""

from __future__ import annotations

import heapq
import types

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import exl_tensor
from ansible_collections.homelab.mixed_gpu.tests.pinned_wheels import functions, wheel

GIB = 1024**3
#: Llama 3.3 70B at 4 bits with 8192 tokens of cache: bytes of an attention, a feed-forward part and the output layer.
ATTENTION, FORWARD, OUTPUT = int(0.092 * GIB), int(0.33 * GIB), int(0.98 * GIB)
MODEL = {"head_count": 64, "head_count_kv": 8, "key_length": 128}


def part(name, storage, channels, per_device=0, per_token=0):
    """One component of a model, as exllamav3's TPAllocation is; chunks of 2048 tokens are 32 MiB on each card."""
    return types.SimpleNamespace(
        key=name, limit_key=None, max_devices=None, affinity_key=None, channels_to_split=channels,
        storage_per_device=per_device, storage_to_split=storage, current_split=[],
        overhead=lambda tokens, share, of: tokens * 8192 * 2 + tokens * per_token * share // of,
    )  # fmt: skip


@pytest.fixture(scope="module")
def allocator():
    """Return exllamav3's initial_split of these components over these numbers, as its own code makes it."""
    archive = wheel("exllamav3-1.6.5-py3-none-any.whl")
    scope = {"heapq": heapq}
    functions(archive, "exllamav3/util/misc.py", {"ratio_split"}, scope)
    functions(archive, "exllamav3/model/model_tp_alloc.py", {"top_k_mask_"}, scope)
    found = functions(archive, "exllamav3/model/model_tp_alloc.py", {"initial_split"}, scope, "TPAllocator")

    def _split(components, numbers):
        self = types.SimpleNamespace(
            components=components, dev_limits={}, num_tokens=2048, output_num_tokens=32, num_devices=None
        )
        found["initial_split"](self, [int(number * GIB) for number in numbers])
        return [component.current_split for component in components]

    return _split


@pytest.mark.parametrize(
    ("model", "units"),
    [
        (MODEL, 8),
        ({**MODEL, "key_length": 64}, 4),
        ({**MODEL, "key_length": 192}, 4),
        ({**MODEL, "key_length": 256, "head_count_kv": 4}, 4),
        # 7 heads of 64 channels make no whole pair
        ({**MODEL, "key_length": 64, "head_count_kv": 7}, None),
        ({**MODEL, "head_count_kv": 0}, None),
    ],
)
def test_attention_divides_at_whole_heads_of_128_channels(model, units):
    assert exl_tensor.attention_units(model) == units


@pytest.mark.parametrize("shares", [(4, 4), (5, 3), (3, 5)])
@pytest.mark.parametrize("budgets_mib", [(23500, 23500), (23500, 22000), (30000, 23000)])
def test_exllamav3_shares_each_part_of_a_model_so(allocator, shares, budgets_mib):
    numbers = exl_tensor.gpu_split_gb(shares, budgets_mib)
    assert all(number * 1024 <= budget + 1 for number, budget in zip(numbers, budgets_mib, strict=True))
    parts = [part("norm", 0, 1, per_device=16384)]
    for block in range(80):
        parts += [part(f"{block} attention", ATTENTION, 8, per_token=65536), part(f"{block} forward", FORWARD, 224)]
    parts.append(part("head", OUTPUT, 1002))
    found = allocator(parts, numbers)
    heads = [split for component, split in zip(parts, found, strict=True) if "attention" in component.key]
    assert {tuple(split) for split in heads} == {shares}
    wide = [split[0] / sum(split) for component, split in zip(parts, found, strict=True) if "forward" in component.key]
    assert all(abs(share - shares[0] / 8) < 0.02 for share in wide)


def test_three_cards_share_in_three_parts(allocator):
    numbers = exl_tensor.gpu_split_gb((4, 2, 2), (23000, 23000, 11000))
    parts = [part(f"{block} attention", ATTENTION, 8) for block in range(80)]
    assert {tuple(split) for split in allocator(parts, numbers)} == {(4, 2, 2)}


@pytest.mark.parametrize(("shares", "budgets"), [((8, 0), (1, 1)), ((4, 4), (100, 0)), ((4, 4), (100,))])
def test_each_card_needs_a_share_and_room(shares, budgets):
    with pytest.raises(ValueError, match="each card needs a share and room"):
        exl_tensor.gpu_split_gb(shares, budgets)
