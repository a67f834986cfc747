# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Commands for a pipeline over hosts, beside what the wheels of vLLM and Ray say (tests/fixtures/vllm.json)."""

from __future__ import annotations

import json
import shlex
import subprocess
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import pipeline_start
from ansible_collections.homelab.mixed_gpu.tests import pinned_wheels, vllm_wheel

KNOWN = json.loads(vllm_wheel.FIXTURE.read_text(encoding="utf-8"))
HEAD = {"address": "192.168.1.10", "cards": "rtx4090_rtx3090", "uuids": ["GPU-1a", "GPU-2b"]}
WORKER = {"address": "192.168.1.11", "cards": "rtx3090", "interface": "enp3s0"}


def test_the_fixture_is_of_the_pinned_wheels() -> None:
    assert KNOWN["wheels"] == {name: pinned_wheels.WHEELS[name] for name in (vllm_wheel.RAY, vllm_wheel.VLLM)}


def node(**given: t.Any) -> pipeline_start.Node:
    return pipeline_start.read_nodes([given])[0]


def accepted(kind: str | list[str], value: str) -> bool:
    """Return whether a parser takes a value of that kind."""
    if isinstance(kind, list):
        return value in kind
    try:
        {"int": int, "float": float, "str": str}[kind](value)
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("ray", [True, False])
def test_vllm_knows_every_option_and_takes_every_value(ray: bool) -> None:
    program, verb, model, *words = shlex.split(pipeline_start.serve("org/model AWQ", 3, 8192, ray))
    assert (program, verb, model) == ("vllm", "serve", "org/model AWQ")
    assert "model_tag" in KNOWN["serve"]
    while words:
        option = words.pop(0)
        kind = KNOWN["serve"][option]
        assert kind == "bool" or accepted(kind, words.pop(0)), option


@pytest.mark.parametrize("given", [HEAD, WORKER])
def test_ray_knows_every_option(given: dict[str, t.Any]) -> None:
    command = shlex.split(pipeline_start.ray_start(node(**given), "192.168.1.10"))
    assert command[:2] == ["ray", "start"]
    assert {word.partition("=")[0] for word in command[2:]} <= set(KNOWN["start"])


def test_the_head_begins_and_others_join_it() -> None:
    assert " --head --port=6379 --node-ip-address=192.168.1.10 --num-gpus=2 " in pipeline_start.ray_start(
        node(**HEAD), "192.168.1.10"
    )
    assert " --address=192.168.1.10:6379 --node-ip-address=192.168.1.11 --num-gpus=1 " in pipeline_start.ray_start(
        node(**WORKER), "192.168.1.10"
    )
    assert "--address=[fd00::1]:6379" in pipeline_start.ray_start(node(**WORKER), "fd00::1")


def test_vllm_reads_the_variables_that_are_set_for_it() -> None:
    variables = {**pipeline_start.node_environment(node(**HEAD)), **pipeline_start.environment("vllm", [{}], [1], True)}
    assert {name for name in variables if name.startswith("VLLM_")} == set(KNOWN["environment"])


@pytest.mark.parametrize(
    ("cards", "p2p"),
    [
        ("rtx4090_rtx3090", False), ("rtx3090", True), ("rtx3090_x2_nvlink", True), ("rtx3090_x2", False),
        ("a4000_x2", True),
    ],
)
def test_geforce_cards_reach_each_other_over_nvlink_alone(cards: str, p2p: bool) -> None:
    found = pipeline_start.node_environment(node(address="10.0.0.1", cards=cards))
    assert found.get("NCCL_P2P_DISABLE") == (None if p2p else "1")


def test_a_shell_sets_the_variables_as_they_are_meant(tmp_path: t.Any) -> None:
    (tmp_path / "ip").write_text("#!/bin/sh\necho \"2: enp9s0    inet $5/24 scope global enp9s0\"\n")
    (tmp_path / "ip").chmod(0o755)
    line = pipeline_start.exports(pipeline_start.node_environment(node(**HEAD)))
    done = subprocess.run(
        ["sh", "-c", f"PATH={tmp_path}:$PATH; {line} env"], capture_output=True, text=True, check=True
    )  # fmt: skip
    shown = dict(row.split("=", 1) for row in done.stdout.splitlines() if "=" in row)
    assert shown["NCCL_SOCKET_IFNAME"] == shown["GLOO_SOCKET_IFNAME"] == "enp9s0"
    assert shown["CUDA_VISIBLE_DEVICES"] == "GPU-1a,GPU-2b" and shown["VLLM_HOST_IP"] == "192.168.1.10"
    assert (shown["RAY_AUTH_MODE"], shown["NCCL_P2P_DISABLE"], shown["NCCL_IB_DISABLE"]) == ("token", "1", "1")


def test_two_hosts_have_a_plain_partition_and_alike_workers_too() -> None:
    third = {**WORKER, "address": "192.168.1.12"}
    nodes = pipeline_start.read_nodes([HEAD, WORKER, third])
    assert pipeline_start.partition(nodes[:2], [30, 28, 22]) == "30,28,22"
    assert pipeline_start.partition(nodes, [30, 20, 15, 15]) == "30,20,15,15"
    assert "ray.nodes()" in pipeline_start.partition(nodes, [30, 20, 16, 14])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["x"], "mixed_gpu_nodes[0] is 'x': give address and cards"),
        ([{"address": "10.0.0.1"}], "give address and cards"),
        ([{**WORKER, "host": "b"}], "give address and cards"),
        ([{**WORKER, "address": "box"}], "address is 'box': give the host's IP address"),
        ([{**WORKER, "address": "8.8.8.8"}], "Ray needs a private network"),
        ([{**WORKER, "cards": "voodoo2"}], "there is no hardware profile 'voodoo2'"),
        ([{**WORKER, "interface": "a b; rm"}], "interface is 'a b; rm'"),
        ([{**WORKER, "uuids": ["GPU-1; reboot"]}], "give UUIDs of cards"),
        ([{**WORKER, "uuids": ["GPU-1a", "GPU-2b"]}], "has 2 uuids and 1 cards"),
        ([{**WORKER, "cards": "rtx4090+rtx3090@1gbe"}], "name the cards of this host alone"),
        ([WORKER, HEAD, WORKER], "has 192.168.1.11 twice"),
        ([{**WORKER, "address": f"10.0.0.{number}"} for number in range(17)], "has 17 entries: give at most 16"),
    ],
)
def test_what_are_no_nodes(given: list[t.Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        pipeline_start.read_nodes(given)
    assert words in str(error.value)
