# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import types
import typing as t

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.tensor_split import FilterModule, tensor_split
from ansible_collections.homelab.mixed_gpu.tests.pinned_wheels import functions, wheel
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


#: blocks, VLLM_PP_LAYER_PARTITION, what get_pp_indices of vLLM 0.33.0 makes of it (recorded by running it)
RECORDED_PARTITIONS = [
    (80, "36,44", [(0, 36), (36, 80)]),
    (80, "44,36", [(0, 44), (44, 80)]),
    (64, "10,53,1", [(0, 10), (10, 63), (63, 64)]),
    (80, "44,37", "sum(partitions)=81 does not match num_hidden_layers=80."),
    (80, "80", "len(partitions)=1 does not match pp_size=2."),
    (80, "", "Invalid partition string: "),
]


def vllm_ranges(place: t.Any, blocks: int, stages: int) -> t.Any:
    """What each stage of vLLM gets, or the words with which it refuses."""
    try:
        return [place(blocks, stage, stages) for stage in range(stages)]
    except ValueError as error:
        return str(error)


@pytest.fixture
def vllm_with(monkeypatch: pytest.MonkeyPatch) -> t.Any:
    """vLLM's own partition function, with an environment."""
    archive = wheel("vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl")

    def _with(partition: str) -> t.Any:
        scope = {"envs": types.SimpleNamespace(VLLM_PP_LAYER_PARTITION=partition)}
        return functions(archive, "vllm/distributed/utils.py", {"get_pp_indices"}, scope)["get_pp_indices"]

    return _with


@pytest.mark.parametrize(("blocks", "partition", "result"), RECORDED_PARTITIONS)
def test_vllm_still_does_what_is_recorded_here(vllm_with: t.Any, blocks: int, partition: str, result: t.Any) -> None:
    assert vllm_ranges(vllm_with(partition), blocks, 3 if partition.count(",") == 2 else 2) == result


def test_vllm_gives_every_stage_the_blocks_of_its_card(vllm_with: t.Any) -> None:
    for layers in [(count, 81 - count) for count in range(1, 80)] + [(10, 40, 31), (1, 1, 1, 78)]:
        place = vllm_with(tensor_split(list(layers), "vllm"))
        ranges = vllm_ranges(place, 80, len(layers))
        sizes = [end - start for start, end in ranges]
        assert [*sizes[:-1], sizes[-1] + 1] == list(layers) and ranges[0][0] == 0 and ranges[-1][1] == 80


def test_an_example_is_what_is_recorded() -> None:
    assert [tensor_split(layers, "vllm") for layers in ([36, 45], [44, 37], [10, 53, 2])] == [
        partition for _blocks, partition, _result in RECORDED_PARTITIONS[:3]
    ]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_a_partition_has_a_number_per_stage_and_adds_up_to_the_blocks(blocks: list[int]) -> None:
    slots = [*blocks[:-1], blocks[-1] + 1]
    assert [int(number) for number in tensor_split(slots, "vllm").split(",")] == blocks


@pytest.mark.parametrize(("layers", "stage"), [([0, 81], 0), ([80, 1], 1), ([81, 0], 1), ([40, 0, 41], 1), ([1], 0)])
def test_a_stage_without_a_block_is_refused(layers: list[int], stage: int) -> None:
    with pytest.raises(AnsibleFilterError, match=f"leaves stage {stage} of vLLM no block: leave its card out"):
        tensor_split(layers, "vllm")
