# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is written for vLLM on Ray, beside vLLM's and Ray's own code of the pinned wheels: make vllm-test.

Without the wheels in the cache these tests are skipped; test_pipeline_start.py compares with what they derived.
"""

from __future__ import annotations

import collections
import contextlib
import io
import json
import os
import re
import sys
import types
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import pipeline_start
from ansible_collections.homelab.mixed_gpu.tests import pinned_wheels, vllm_wheel

NODES = [
    {"address": "192.168.1.10", "cards": "rtx4090_rtx3090"}, {"address": "192.168.1.11", "cards": "rtx3090"},
    {"address": "192.168.1.12", "cards": "rtx3060_rtx3060"},
]  # fmt: skip
COUNTS = [30, 20, 18, 7, 5]


def run(names: t.Container[str], member: str, scope: dict[str, t.Any]) -> t.Any:
    """Return the functions of a file of vLLM's wheel."""
    return pinned_wheels.functions(pinned_wheels.wheel(vllm_wheel.VLLM), member, names, scope)


def stages(partition: str, blocks: int, size: int) -> list[int]:
    """Return how many blocks vLLM gives each stage."""
    environment = types.SimpleNamespace(VLLM_PP_LAYER_PARTITION=partition)
    function = run({"get_pp_indices"}, "vllm/distributed/utils.py", {"envs": environment, "logger": None})
    ranges = [function["get_pp_indices"](blocks, rank, size) for rank in range(size)]
    assert ranges[0][0] == 0 and ranges[-1][1] == blocks
    return [end - start for start, end in ranges]


def test_the_fixture_is_what_the_wheels_say() -> None:
    assert json.loads(vllm_wheel.FIXTURE.read_text(encoding="utf-8")) == vllm_wheel.derived()


def test_the_versions_are_those_of_the_wheels() -> None:
    assert vllm_wheel.VLLM.split("-")[1] == pipeline_start.VLLM_VERSION
    assert vllm_wheel.RAY.split("-")[1] == pipeline_start.RAY_VERSION


@pytest.mark.parametrize("count", [1, 2])
def test_every_stage_gets_the_blocks_of_its_card(count: int) -> None:
    nodes = pipeline_start.read_nodes(NODES[:count])
    counts = COUNTS[: sum(node.cards for node in nodes)]
    assert stages(pipeline_start.partition(nodes, counts), sum(counts), len(counts)) == counts


class Ray(types.ModuleType):
    """A cluster of NODES with ids of Ray's, as vLLM and the command ask for it."""

    def __init__(self, ids: t.Sequence[str]) -> None:
        super().__init__("ray")
        self.ids = dict(zip(ids, (node["address"] for node in NODES), strict=True))
        self.gone = "0" * 8

    def init(self, *_words: t.Any, **_options: t.Any) -> None:
        """Join."""

    def nodes(self) -> list[dict[str, t.Any]]:
        dead = {"NodeID": self.gone, "NodeManagerAddress": "192.168.1.99", "Alive": False}
        return [dead, *({"NodeID": own, "NodeManagerAddress": at, "Alive": True} for own, at in self.ids.items())]

    def get_runtime_context(self) -> t.Any:
        return types.SimpleNamespace(get_node_id=lambda: next(iter(self.ids)))


@pytest.mark.parametrize("ids", [("b1", "c2", "a3"), ("b1", "a2", "c3"), ("c1", "a2", "b3"), ("a1", "b2", "c3")])
def test_the_partition_follows_the_order_of_vllm_whatever_ids_ray_gives(
    ids: t.Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster, nodes = Ray(ids), pipeline_start.read_nodes(NODES)
    bundles = [own for own, node in zip(ids, nodes, strict=True) for _card in range(node.cards)][::-1]
    table = {"bundles_to_node_id": dict(enumerate(bundles))}
    function = run({"get_bundles_sorted_by_node"}, "vllm/v1/executor/ray_utils.py", {
        "ray": cluster, "placement_group_table": lambda _group: table,
        "current_platform": types.SimpleNamespace(ray_device_key="GPU"),
    })  # fmt: skip
    group = types.SimpleNamespace(bundle_specs=[{"GPU": 1.0}] * len(bundles))
    order = [address for _bundle, _node, address in function["get_bundles_sorted_by_node"](group)]

    command = re.fullmatch(r'\$\(RAY_AUTH_MODE=token python3 -c "(.*)"\)', pipeline_start.partition(nodes, COUNTS))
    assert command
    monkeypatch.setitem(sys.modules, "ray", cluster)
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(command[1], {})
    given = stages(said.getvalue().strip(), sum(COUNTS), len(COUNTS))
    found = collections.defaultdict(list)
    for address, count in zip(order, given, strict=True):
        found[address].append(count)
    assert found == {"192.168.1.10": [30, 20], "192.168.1.11": [18], "192.168.1.12": [7, 5]}


def test_workers_take_the_partition_of_the_server_and_keep_their_own_address(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = {"VLLM_PP_LAYER_PARTITION": "1,2", "VLLM_HOST_IP": "a", "CUDA_VISIBLE_DEVICES": "b"}
    monkeypatch.setattr(os, "environ", variables)
    source = pinned_wheels.wheel(vllm_wheel.VLLM).read("vllm/v1/executor/ray_utils.py").decode()
    names = re.search(r"WORKER_SPECIFIC_ENV_VARS: set\[str\] = \{(.*?)\}", source, re.DOTALL)
    assert names
    own = set(re.findall(r'"(\w+)"', names[1]))
    scope = {"RAY_NON_CARRY_OVER_ENV_VARS": set(), "os": os}
    function = run({"get_driver_env_vars"}, "vllm/v1/executor/ray_env_utils.py", scope)
    assert function["get_driver_env_vars"](own) == {"VLLM_PP_LAYER_PARTITION": "1,2"}


def test_the_cards_of_a_node_are_sorted_and_not_as_the_environment_says() -> None:
    source = pinned_wheels.wheel(vllm_wheel.VLLM).read("vllm/v1/executor/ray_executor_v2.py").decode()
    assert "assigned_physical_gpu_ids = sorted(node_physical_gpu_ids[node_id])" in source
