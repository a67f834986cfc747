# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Blocks per card of a pipeline: they add up, fit, and no other sharing has a quicker slowest stage."""

from __future__ import annotations

import itertools
import os
import pathlib
import subprocess
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import pipeline_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import known_devices, pipeline_start

MODEL: t.Any = model_shapes.model("llama_3_3_70b_q4_k_m")
HEAD = {"address": "192.168.1.10", "cards": "rtx4090_rtx3090"}
WORKER = {"address": "192.168.1.11", "cards": "rtx3090"}
SMALL = {"address": "192.168.1.12", "cards": "rtx3060"}


def planned(
    given: list[dict[str, t.Any]], context: int = 8192, model: t.Any = MODEL, repo: str = ""
) -> dict[str, t.Any]:
    """Return the plan of a start over such hosts."""
    nodes = pipeline_start.read_nodes(given)
    devices = [device for node in nodes for device in known_devices.profile_devices(node.profile)]
    return pipeline_plan.plan(model, devices, nodes, context, repo)


@pytest.mark.parametrize("given", [[HEAD], [HEAD, WORKER], [WORKER, HEAD], [HEAD, WORKER, SMALL]])
@pytest.mark.parametrize("context", [2048, 8192, 16384])
def test_blocks_add_up_and_every_stage_has_room(given: list[dict[str, t.Any]], context: int) -> None:
    try:
        start = planned(given, context)["start"]
    except UserError as error:
        assert given == [HEAD] and "have no room" in str(error)
        return
    rows = start["stages"]
    assert sum(row["blocks"] for row in rows) == 80 == start["blocks"]
    assert all(row["blocks"] >= 1 and row["cache_mib"] > 0 for row in rows)
    assert start["kv_cache_tokens"] >= context
    assert [row["host"] for row in rows] == [
        entry["address"] for entry in given for _card in entry["cards"].split("_")
    ]


@pytest.mark.parametrize("shape", model_shapes.SHAPES)
@pytest.mark.parametrize("hosts", [1, 2, 4, 8, 14])
def test_every_known_model_is_planned_or_has_no_room(shape: str, hosts: int) -> None:
    model: t.Any = model_shapes.model(shape)
    given = [{"address": f"192.168.1.{10 + index}", "cards": "rtx3090"} for index in range(hosts)]
    try:
        start = planned(given, model=model)["start"]
    except UserError as error:
        assert "No start: " in str(error)
        return
    # vLLM refuses a partition that does not add up to num_hidden_layers, which has no block that only drafts
    assert sum(row["blocks"] for row in start["stages"]) == model["block_count"] - model["nextn_blocks"]


def test_no_other_sharing_is_quicker() -> None:
    stages = [
        pipeline_plan._Stage("a", "h", 1000.0, 100.0, 1.0, 0.0), pipeline_plan._Stage("b", "h", 500.0, 0.0, 0.7, 0.0),
        pipeline_plan._Stage("c", "h", 1200.0, 300.0, 2.0, 3.0),
    ]  # fmt: skip
    most = [9, 5, 9]
    counts = pipeline_plan._shared(stages, 100.0, 14, 1)

    def slowest(split: t.Sequence[int]) -> float:
        return max(count * stage.block_ms + stage.extra_ms for count, stage in zip(split, stages, strict=True))

    able = [
        split for split in itertools.product(range(1, 10), repeat=3)
        if sum(split) == 14 and all(count <= limit for count, limit in zip(split, most, strict=True))
    ]  # fmt: skip
    assert tuple(counts) in able
    assert slowest(counts) == min(map(slowest, able))


def test_the_output_matrix_is_the_last_stage_s() -> None:
    first = [row["blocks"] for row in planned([WORKER, {**WORKER, "address": "10.0.0.1"}], 2048)["start"]["stages"]]
    assert first[0] > first[1]


def test_several_hosts_have_every_command_in_its_order() -> None:
    start = planned([HEAD, WORKER], repo="org/model-AWQ")["start"]
    does = [(step["host"], step["does"].split()[0]) for step in start["commands"]]
    assert does == [
        ("192.168.1.10", "makes"), ("192.168.1.10", "begins"), ("192.168.1.11", "joins"), ("192.168.1.10", "serves,"),
    ]  # fmt: skip
    partition = ",".join(str(row["blocks"]) for row in start["stages"])
    last = start["commands"][-1]["command"]
    assert f"VLLM_PP_LAYER_PARTITION={partition} vllm serve org/model-AWQ " in last
    assert "--pipeline-parallel-size 3 " in last and "--distributed-executor-backend ray" in last
    assert (start["vllm"], start["ray"]) == (pipeline_start.VLLM_VERSION, pipeline_start.RAY_VERSION)


def test_a_shell_asks_ray_for_the_order_of_three_hosts(tmp_path: pathlib.Path) -> None:
    start = planned([HEAD, WORKER, SMALL], repo="org/model-AWQ")["start"]
    ids = {HEAD["address"]: "b", WORKER["address"]: "c", SMALL["address"]: "a", "192.168.1.99": "0"}
    nodes = [
        {"NodeID": own, "NodeManagerAddress": address, "Alive": own != "0"} for address, own in ids.items()
    ]  # fmt: skip
    (tmp_path / "ray.py").write_text(f"def init(*words, **options):\n    pass\ndef nodes():\n    return {nodes}\n")
    (tmp_path / "vllm").write_text('#!/bin/sh\necho "$VLLM_PP_LAYER_PARTITION $2"\n')
    (tmp_path / "vllm").chmod(0o755)
    found = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(tmp_path)}
    command = ["sh", "-c", start["commands"][-1]["command"]]
    done = subprocess.run(command, env=found, capture_output=True, text=True, check=True)
    first, second, worker, small = (row["blocks"] for row in start["stages"])
    assert worker != small
    assert done.stdout == f"{first},{second},{small},{worker} org/model-AWQ\n"


def test_a_border_between_hosts_carries_two_rows_of_sixteen_bits() -> None:
    limits = " ".join(planned([HEAD, WORKER])["start"]["limits"])
    assert "carries 32 KiB per token" in limits and "3571 over 1 GbE" in limits and "no password" in limits


def test_one_host_needs_no_ray() -> None:
    start = planned([{**HEAD, "uuids": ["GPU-1a", "GPU-2b"]}], 2048)["start"]
    command = start["commands"][0]["command"]
    assert len(start["commands"]) == 1 and start["ray"] is None and "ray" not in command
    cards = "CUDA_DEVICE_ORDER=PCI_BUS_ID CUDA_VISIBLE_DEVICES=GPU-1a,GPU-2b"
    assert command.startswith(f"{cards} VLLM_PP_LAYER_PARTITION=")
    assert "NCCL_P2P_DISABLE=1 vllm serve MODEL " in command
    assert not [limit for limit in start["limits"] if "Ray" in limit]


def test_the_cards_of_a_host_by_their_uuids() -> None:
    devices = known_devices.profile_devices("rtx4090_rtx3090")
    named = [{**device, "id": uuid} for device, uuid in zip(devices, ("GPU-1a", "GPU-2b"), strict=True)]
    start = pipeline_plan.plan(MODEL, named, [], 2048, "")["start"]
    assert "CUDA_VISIBLE_DEVICES=GPU-1a,GPU-2b" in start["commands"][0]["command"]
    assert start["stages"][0]["host"] == "this host"


def test_cards_of_unknown_speed_count_as_equal() -> None:
    devices = [{**device, "bandwidth_gb_per_s": None} for device in known_devices.profile_devices("rtx3090_x4")]
    blocks = [row["blocks"] for row in pipeline_plan.plan(MODEL, devices, [], 2048, "")["start"]["stages"]]
    assert blocks == [20, 20, 20, 20]


@pytest.mark.parametrize(
    ("given", "context", "words"),
    [
        ([HEAD], 131072, "of 80 blocks"),
        ([SMALL, {**SMALL, "address": "10.0.0.2"}], 2048, "have no room: add a card, or choose a smaller model"),
        ([HEAD, WORKER], 10**7, "has no room for one block"),
    ],
)
def test_what_does_not_fit_is_said_with_a_cure(given: list[dict[str, t.Any]], context: int, words: str) -> None:
    with pytest.raises(UserError) as error:
        planned(given, context)
    assert words in str(error.value) and str(error.value).startswith("No start: ")


def test_sizes_are_those_of_four_bits_or_of_the_file() -> None:
    weights = sum(MODEL["block_weights"]) * 4.15625 / 8 / 2**20
    wide = 2 * MODEL["vocabulary_size"] * MODEL["embedding_length"] * 2 / 2**20
    start = planned([HEAD, WORKER])["start"]
    assert sum(row["weights_mib"] for row in start["stages"]) == pytest.approx(weights + wide, abs=2)
    experts = planned([HEAD], 2048, model_shapes.model("gpt_oss_20b_mxfp4"))["start"]
    assert experts["weights"] == "MXFP4_MOE"


def test_lines_have_the_table_and_the_commands() -> None:
    found = planned([HEAD, WORKER, SMALL])
    text = "\n".join(found["lines"])
    assert found["lines"][0].startswith(
        "PLAN of a start, nothing was run: Llama 3.3 70B Instruct, 4 bits (AWQ, GPTQ), with vLLM 0.33.0 and Ray 2.60.0"
    )
    assert "pip install vllm==0.33.0 ray==2.60.0" in text
    for step in found["start"]["commands"]:
        assert f"   {step['command']}" in found["lines"]
    assert text.count("Limit: ") == len(found["start"]["limits"])
