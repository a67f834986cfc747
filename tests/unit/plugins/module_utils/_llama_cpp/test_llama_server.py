# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The transcripts under fixtures/llama_server were recorded from llama-server b11312 with two RPC servers on CPUs.

The lv5 one holds what -lv 5 adds about layers; its several thousand other debug lines were taken out.
"""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import addresses, systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    llama_server,
    server_check,
    server_log,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import engines

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "llama_server"
FAST, SLOW = "127.0.0.1:50052", "127.0.0.1:50053"

SERVING = {
    "context_size": 2048,
    "parallel_slots": 1,
    "kv_unified": True,
    "batch_size": 512,
    "micro_batch_size": 128,
    "flash_attention": "on",
    "cache_type_k": "f16",
    "cache_type_v": "f16",
    "threads": 1,
    "poll": 0,
    "load_mode": "auto",
    "gpu_layers": 99,
}
SETTINGS = {
    "host": "127.0.0.1",
    "port": 8080,
    "alias": "bench",
    "cache_ram_mib": 0,
    "cors_origins": "localhost",
    "log_verbosity": 4,
    "extra_arguments": [],
    "allowed_networks": [],
    "load_timeout_seconds": 900,
}


def transcript(name):
    return (FIXTURES / f"b11312-{name}.txt").read_text()


def rpc_deployment(fast=20, slow=13, **serving):
    devices = [
        {"device": f"RPC{index}", "id": ident, "backend": "RPC", "description": ident, "total_mib": 24105}
        for index, ident in enumerate((FAST, SLOW))
    ]
    return {
        "model": {"id": "bench", "path": "/srv/models/bench.gguf", "sha256": "0" * 64},
        "serving": {**SERVING, **serving},
        "devices": devices,
        "environment": {},
        "placement": [{"id": FAST, "layers": fast}, {"id": SLOW, "layers": slow}],
        "split_mode": "layer",
        "rpc_endpoints": [FAST, SLOW],
        "decision": {"mib": [329, 202]},
    }


def cuda_deployment():
    """Two of the three cards of a box: its CUDA0 is not used."""
    cards = (("CUDA1", "GPU-aaaa", "NVIDIA GeForce RTX 4090"), ("CUDA2", "GPU-bbbb", "NVIDIA GeForce RTX 3090"))
    deployment = rpc_deployment(44, 37)
    deployment["devices"] = [
        {"device": name, "id": uuid, "backend": "CUDA", "description": text, "total_mib": 24080, "free_mib": 23660}
        for name, uuid, text in cards
    ]
    deployment["placement"] = [{"id": "GPU-aaaa", "layers": 44}, {"id": "GPU-bbbb", "layers": 37}]
    deployment["environment"] = engines.cuda_environment(["GPU-aaaa", "GPU-bbbb"])
    deployment["rpc_endpoints"] = []
    deployment["decision"] = {"mib": [23197, 20079]}
    return deployment


def value_after(words, flag):
    return words[words.index(flag) + 1]


def tensor_deployment(first=3, second=1):
    """The deployment of the recorded start in split mode tensor."""
    deployment = rpc_deployment(first, second)
    deployment["split_mode"] = "tensor"
    deployment["environment"] = {"GGML_CUDA_ALLREDUCE": "internal"}
    deployment["serving"] = {
        **deployment["serving"], "context_size": 2048, "parallel_slots": 1, "batch_size": 512, "micro_batch_size": 64,
        "cache_type_k": "f16", "cache_type_v": "f16", "kv_unified": True, "flash_attention": "on",
    }
    return deployment


def test_split_mode_tensor_is_served_and_verified():
    deployment = tensor_deployment()
    called = llama_server.command(deployment, SETTINGS)
    assert value_after(called["arguments"], "-sm") == "tensor"
    assert value_after(called["arguments"], "-ts") == "3,1"
    assert called["environment"]["GGML_CUDA_ALLREDUCE"] == "internal"
    load = server_log.parse_load(transcript("rpc-tensor-3-1"))
    assert server_check.deviations(deployment, load) == []
    (other,) = server_check.deviations(deployment, {**load, "tensor_devices": ["RPC1", "RPC0"]})
    assert "The server uses RPC1, RPC0; the facts say split mode tensor over RPC0, RPC1" in other
    (layer,) = server_check.deviations(deployment, {**load, "tensor_devices": []})
    assert "in layer mode" in layer
    assert server_check.allreduce_deviation(deployment, load) == ""
    seen = {"asked": None, "ran": "nccl", "transport": "NET", "fallback": None}
    added = {"decision": {"tensor": {"allreduce": {**seen, "transport": "SHM"}}}}
    for now, words in ((seen, "NCCL through network sockets; NCCL through host memory was measured"),
                       ({**seen, "ran": "internal", "transport": None, "fallback": "NCCL init failed (x)"},
                        "internal all-reduce (NCCL init failed (x)); NCCL through host memory")):  # fmt: skip
        assert words in server_check.allreduce_deviation({**deployment, **added}, {**load, "allreduce": now})
    assert server_check.allreduce_deviation({**deployment, **added}, {**load, "allreduce": None}) == ""
    changed = {**deployment, "serving": {**deployment["serving"], "micro_batch_size": 128}}
    assert "micro_batch_size is 64" in server_check.deviations(changed, load)[0]


# --- plan and server


def deviations(name, deployment):
    return server_check.deviations(deployment, server_log.parse_load(transcript(name)))


@pytest.mark.parametrize(
    ("name", "deployment"),
    [
        ("rpc-20-13", rpc_deployment()),
        ("rpc-20-13-lv5", rpc_deployment()),
        ("rpc-32-1", rpc_deployment(32, 1)),
        ("single-device", rpc_deployment(0, 33)),
        (
            "two-slots-q8",
            rpc_deployment(
                context_size=4000, parallel_slots=2, kv_unified=False, cache_type_k="q8_0", cache_type_v="q8_0"
            ),
        ),
        ("rpc-20-13", rpc_deployment(flash_attention="auto", batch_size=512, context_size=1900)),
    ],
)
def test_server_as_planned_has_no_deviation(name, deployment):
    assert deviations(name, deployment) == []


@pytest.mark.parametrize(
    ("name", "deployment", "words"),
    [
        ("rpc-20-13", rpc_deployment(19, 14), ["[20, 13]", "[19, 14]"]),
        ("rpc-20-13", rpc_deployment(33, 0), [f"uses the devices {FAST}, {SLOW}"]),
        ("block-on-cpu", rpc_deployment(), ["1 of 33 layers are on the CPU", "at least 33"]),
        ("rpc-20-13", rpc_deployment(context_size=8192), ["2048 tokens", "8192"]),
        ("rpc-20-13", rpc_deployment(context_size=1024), ["2048 tokens", "1024"]),
        ("rpc-20-13", rpc_deployment(parallel_slots=4), ["parallel_slots is 1; the facts say 4"]),
        ("rpc-20-13", rpc_deployment(kv_unified=False), ["kv_unified is True; the facts say False"]),
        ("rpc-20-13", rpc_deployment(flash_attention="off"), ["flash_attention is on; the facts say off"]),
        ("rpc-20-13", rpc_deployment(micro_batch_size=256), ["micro_batch_size is 128; the facts say 256"]),
        ("rpc-20-13", rpc_deployment(cache_type_k="q8_0"), ["cache_type_k is f16; the facts say q8_0"]),
    ],
)
def test_deviation_is_named(name, deployment, words):
    text = " ".join(deviations(name, deployment))
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    ("planned", "seen", "placed"),
    [
        ((32, 1), (32, 1), True),       # it drafts
        ((32, 1), (31, 2), True),       # idle: counted on the device of the output layer, whatever holds it
        ((32, 1), (30, 3), False),
        ((20, 13), (20, 13), True),
        ((20, 13), (19, 14), False),    # the block that drafts is on the second device in any case
    ],
)  # fmt: skip
def test_a_block_that_only_drafts_may_be_seen_on_the_device_of_the_output_layer(planned, seen, placed):
    load = server_log.parse_load(transcript("rpc-20-13")) | {"drafting_blocks": 1}
    for device, layers in zip(load["devices"], seen, strict=True):
        device["layers"] = layers
    found = server_check.deviations(rpc_deployment(*planned), load)
    assert found == ([] if placed else [f"The server placed {list(seen)} layers on {FAST}, {SLOW}; the facts say "
                                        f"{list(planned)}."])  # fmt: skip


def test_swapped_devices_are_a_deviation():
    deployment = rpc_deployment()
    deployment["devices"].reverse()
    assert "uses the devices" in deviations("rpc-20-13", deployment)[0]


def test_lost_journal_is_a_deviation_with_a_cure():
    (sentence,) = server_check.deviations(rpc_deployment(), server_log.parse_load(""))
    assert "restart llama-server.service" in sentence


def test_uncounted_layers_are_a_deviation_with_a_cure():
    text = transcript("rpc-20-13").replace("KV buffer size =    80.00", "KV buffer size =    81.70")
    (sentence,) = server_check.deviations(rpc_deployment(), server_log.parse_load(text))
    assert "llama_server_log_verbosity to 5" in sentence


def test_other_card_under_the_same_number_is_a_deviation():
    text = transcript("rpc-20-13")
    for number, endpoint, card in ((0, FAST, "3090"), (1, SLOW, "4090")):
        name = f"using device CUDA{number} (NVIDIA GeForce RTX {card})"
        text = text.replace(f"using device RPC{number} ({endpoint})", name)
        text = text.replace(f"RPC0[{endpoint}]", f"CUDA{number}")
    deployment = cuda_deployment()
    deployment["placement"] = [{"id": "GPU-aaaa", "layers": 20}, {"id": "GPU-bbbb", "layers": 13}]
    found = server_check.deviations(deployment, server_log.parse_load(text))
    assert found == [
        "CUDA0 is NVIDIA GeForce RTX 3090; the facts say NVIDIA GeForce RTX 4090.",
        "CUDA1 is NVIDIA GeForce RTX 4090; the facts say NVIDIA GeForce RTX 3090.",
    ]


# --- the command line


def test_every_flag_that_decides_memory_or_speed_is_set():
    result = llama_server.command(rpc_deployment(), SETTINGS)
    words = result["arguments"]
    expected = {
        "-m": "/srv/models/bench.gguf",
        "--rpc": f"{FAST},{SLOW}",
        "-dev": "RPC0,RPC1",
        "-sm": "layer",
        "-ts": "20,13",
        "-ngl": "99",
        "-fit": "off",
        "-c": "2048",
        "-np": "1",
        "-b": "512",
        "-ub": "128",
        "-fa": "on",
        "-ctk": "f16",
        "-ctv": "f16",
        "-t": "1",
        "--poll": "0",
        "-lm": "auto",
        "--cache-ram": "0",
        "--host": "127.0.0.1",
        "--port": "8080",
        "-a": "bench",
        "-lv": "4",
    }
    assert {flag: value_after(words, flag) for flag in expected} == expected
    assert "-kvu" in words
    assert "-no-kvu" not in words
    assert words.index("--rpc") < words.index("-dev"), "llama-server knows RPC devices only after --rpc"
    assert result["environment"] == {"GGML_NO_BACKTRACE": "1"}
    assert result["device_nodes"] == []
    assert result["local"]
    assert result["networks"] == ["localhost"]
    assert result["url"] == "http://127.0.0.1:8080"


def test_cards_are_chosen_by_uuid_and_renumbered():
    result = llama_server.command(cuda_deployment(), SETTINGS)
    assert value_after(result["arguments"], "-dev") == "CUDA0,CUDA1"
    assert "--rpc" not in result["arguments"]
    assert result["environment"]["CUDA_VISIBLE_DEVICES"] == "GPU-aaaa,GPU-bbbb"
    assert result["environment"]["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"
    assert result["device_nodes"] == ["char-nvidia*"] and result["cuda"]


def test_device_without_layers_is_not_named():
    deployment = cuda_deployment()
    deployment["placement"] = [{"id": "GPU-aaaa", "layers": 0}, {"id": "GPU-bbbb", "layers": 81}]
    words = llama_server.command(deployment, SETTINGS)["arguments"]
    assert value_after(words, "-dev") == "CUDA1"
    assert value_after(words, "-sm") == "none"
    assert "-ts" not in words


@pytest.mark.parametrize(
    ("host", "endpoints", "allowed", "networks"),
    [
        ("127.0.0.1", [FAST, SLOW], [], ["localhost"]),
        ("0.0.0.0", [FAST, SLOW], [], ["localhost", *addresses.PRIVATE]),
        ("0.0.0.0", [FAST, SLOW], ["192.168.1.0/24"], ["localhost", "192.168.1.0/24"]),
        ("127.0.0.1", [FAST, "192.168.1.7:50052"], [], ["localhost", "192.168.1.7"]),
        ("127.0.0.1", [FAST, SLOW], ["192.168.1.0/24"], ["localhost", "192.168.1.0/24"]),
    ],
)
def test_a_server_talks_to_its_networks_alone(host, endpoints, allowed, networks):
    deployment = {**rpc_deployment(), "rpc_endpoints": endpoints}
    result = llama_server.command(deployment, {**SETTINGS, "host": host, "allowed_networks": allowed})
    assert result["networks"] == networks


def test_what_is_no_network_is_refused_by_name():
    with pytest.raises(ValueError, match="llama_server_allowed_networks has the entry 'lan', which is no network"):
        llama_server.command(rpc_deployment(), {**SETTINGS, "allowed_networks": ["lan"]})


@pytest.mark.parametrize("name", ["alias", "cors_origins", "host"])
def test_a_line_break_is_refused_by_name(name):
    with pytest.raises(ValueError, match=f"llama_server_{name} contains a line break"):
        llama_server.command(rpc_deployment(), {**SETTINGS, name: "127.0.0.1\n"})


def test_the_key_file_is_that_of_the_unit():
    assert llama_server.key_file("[Service]\nLoadCredential=api_key:/etc/mixed_gpu/k\nUser=x\n") == "/etc/mixed_gpu/k"
    assert llama_server.key_file("[Service]\nLoadCredential=config.yml:/etc/x\n") == ""


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:8080"),
        ("0.0.0.0", "http://127.0.0.1:8080"),
        ("192.168.1.7", "http://192.168.1.7:8080"),
        ("::1", "http://[::1]:8080"),
    ],
)
def test_url_is_reachable_from_the_host(host, url):
    assert llama_server.command(rpc_deployment(), {**SETTINGS, "host": host})["url"] == url


def test_placement_on_unknown_device_is_refused():
    deployment = rpc_deployment()
    deployment["placement"][1]["id"] = "127.0.0.1:1"
    with pytest.raises(ValueError, match="127.0.0.1:1, which is not among the recorded devices"):
        llama_server.command(deployment, SETTINGS)


def test_incomplete_deployment_is_refused():
    deployment = rpc_deployment()
    del deployment["placement"], deployment["serving"]
    with pytest.raises(ValueError, match="no serving, placement"):
        llama_server.command(deployment, SETTINGS)


def test_empty_placement_is_refused():
    with pytest.raises(ValueError, match="gives no device any layer"):
        llama_server.command(rpc_deployment(0, 0), SETTINGS)


# --- systemd


@pytest.mark.parametrize(
    ("properties", "health", "state"),
    [
        ("LoadState=not-found\nActiveState=inactive\nSubState=dead", None, "absent"),
        ("LoadState=loaded\nActiveState=inactive\nSubState=dead", None, "stopped"),
        ("LoadState=loaded\nActiveState=failed\nSubState=failed", None, "failed"),
        ("LoadState=loaded\nActiveState=activating\nSubState=auto-restart", None, "restarting"),
        ("LoadState=loaded\nActiveState=active\nSubState=running", None, "loading"),
        ("LoadState=loaded\nActiveState=active\nSubState=running", 503, "loading"),
        ("LoadState=loaded\nActiveState=active\nSubState=running", 200, "ready"),
        ("LoadState=loaded\nActiveState=failed\nSubState=failed", 200, "failed"),
    ],
)
def test_unit_state(properties, health, state):
    assert llama_server.unit_state(systemd.properties(properties), health) == state


# --- measuring
