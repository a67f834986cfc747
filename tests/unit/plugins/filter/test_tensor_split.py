# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.split import FilterModule, tensor_split
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("program", "text"), [("llama_bench", "45/36/0"), ("llama_server", "45,36,0"), ("llama_fit_params", "45,36,0")],
)
def test_each_program_gets_its_own_form(program: str, text: str) -> None:
    assert FilterModule().filters()["tensor_split"]([45, 36, 0], program) == text


def test_an_unknown_program_is_told_which_are_known() -> None:
    known = "'sglang': known are llama_bench, llama_fit_params, llama_server, vllm"
    with pytest.raises(AnsibleFilterError, match=known):
        tensor_split([45, 36], "sglang")


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("45,36", "must be a list"),
        ([], "must be a list"),
        (None, "must be a list"),
        ([45, 36.0], "whole numbers"),
        ([True, 36], "whole numbers"),
        ([45, -1], "whole numbers"),
        ([0, 0], "at least one device"),
    ],
)
def test_what_is_no_split(layers: t.Any, message: str) -> None:
    with pytest.raises(AnsibleFilterError, match=message):
        tensor_split(layers, "llama_server")


#: VLLM_PP_LAYER_PARTITION, and the blocks of each stage that get_pp_indices of vLLM 0.33.0 made of it
RECORDED_PARTITIONS = [
    ("36,44", [(0, 36), (36, 80)]),
    ("44,36", [(0, 44), (44, 80)]),
    ("1,79", [(0, 1), (1, 80)]),
    ("79,1", [(0, 79), (79, 80)]),
    ("10,53,1", [(0, 10), (10, 63), (63, 64)]),
    ("10,40,30", [(0, 10), (10, 50), (50, 80)]),
    ("1,1,1,77", [(0, 1), (1, 2), (2, 3), (3, 80)]),
    ("32", [(0, 32)]),
]


@pytest.mark.parametrize(("partition", "ranges"), RECORDED_PARTITIONS)
def test_vllm_gives_every_stage_the_blocks_of_its_card(partition: str, ranges: list[tuple[int, int]]) -> None:
    blocks = [end - start for start, end in ranges]
    slots = [*blocks[:-1], blocks[-1] + 1]  # the output layer is a slot of the last card
    assert tensor_split(slots, "vllm") == partition


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_partition_has_a_number_per_stage_and_adds_up_to_the_blocks(blocks: list[int]) -> None:
    slots = [*blocks[:-1], blocks[-1] + 1]
    assert [int(number) for number in tensor_split(slots, "vllm").split(",")] == blocks


@pytest.mark.parametrize(("layers", "stage"), [([0, 81], 0), ([80, 1], 1), ([81, 0], 1), ([40, 0, 41], 1), ([1], 0)])
def test_a_stage_without_a_block_is_refused(layers: list[int], stage: int) -> None:
    with pytest.raises(AnsibleFilterError, match=f"leaves stage {stage} of vLLM no block: leave its card out"):
        tensor_split(layers, "vllm")
