# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The transcripts under fixtures/llama_server were recorded from llama-server b11312 with two RPC servers on CPUs.

The lv5 one holds what -lv 5 adds about layers; its several thousand other debug lines were taken out.
"""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import server_log

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "llama_server"
FAST, SLOW = "127.0.0.1:50052", "127.0.0.1:50053"


def transcript(name):
    return (FIXTURES / f"b11312-{name}.txt").read_text()


@pytest.mark.parametrize(
    ("name", "layers", "output", "source", "host_layers", "pipeline"),
    [
        pytest.param("rpc-20-13", [20, 13], [False, True], "kv_buffers", 0, True, id="b11312 -lv 4, 20/13"),
        pytest.param("rpc-20-13-lv5", [20, 13], [False, True], "log", 0, True, id="b11312 -lv 5, 20/13"),
        pytest.param("rpc-32-1", [32, 1], [False, True], "kv_buffers", 0, True, id="only the output layer on RPC1"),
        pytest.param("block-on-cpu", [20, 12], [False, True], "kv_buffers", 1, False, id="-ngl 32 of 33"),
        pytest.param("single-device", [33], [True], "kv_buffers", 0, False, id="-sm none"),
        pytest.param("two-slots-q8", [20, 13], [False, True], "kv_buffers", 0, True, id="two slots, q8_0 cache"),
    ],
)
def test_layers_are_counted(name, layers, output, source, host_layers, pipeline):
    load = server_log.parse_load(transcript(name))
    assert load["complete"]
    assert load["build"] == "11312 (0c1e57098)"
    assert [device["layers"] for device in load["devices"]] == layers
    assert [device["output"] for device in load["devices"]] == output
    assert load["layers_source"] == source
    assert load["host_layers"] == host_layers
    assert load["model_layers"] == 33
    assert load["pipeline_parallel"] is pipeline


@pytest.mark.parametrize(
    ("name", "layers", "speculation"),
    [
        # nine blocks, six of them recurrent and the last one for drafting, and the output layer
        ("rpc-mtp-idle-6-4", [6, 4], []),
        ("rpc-mtp-6-4", [6, 4], ["draft-mtp"]),
        ("rpc-mtp-9-1", [9, 1], ["draft-mtp"]),
    ],
)
def test_recurrent_blocks_and_those_for_drafting_are_counted(name, layers, speculation):
    load = server_log.parse_load(transcript(name))
    assert load["complete"] and load["speculation"] == speculation
    assert [device["layers"] for device in load["devices"]] == layers
    assert [device["output"] for device in load["devices"]] == [False, True]
    assert (load["layers_source"], load["model_layers"], load["drafting_blocks"]) == ("kv_buffers", 10, 1)
    assert load["context_size"] == 1024


def test_split_mode_tensor_is_one_device_of_several():
    load = server_log.parse_load(transcript("rpc-tensor-3-1"))
    assert load["complete"]
    assert load["tensor_devices"] == ["RPC0", "RPC1"]
    assert [device["device"] for device in load["devices"]] == ["Meta()"]
    assert (load["host_layers"], load["flash_attention"]) == (0, "on")
    assert server_log.parse_load(transcript("rpc-20-13"))["tensor_devices"] == []


def test_a_draft_is_told_apart_from_the_model():
    load = server_log.parse_load(transcript("rpc-draft"))
    assert load["complete"] and load["speculation"] == ["draft-simple"]
    assert [device["layers"] for device in load["devices"]] == [2, 1]
    assert (load["model_layers"], load["offloaded_layers"], load["layers_source"]) == (3, 3, "kv_buffers")
    # its memory is part of what the device holds, and of nothing else that is said of the model
    slow = load["devices"][1]
    assert (slow["model_mib"], slow["kv_mib"], slow["compute_mib"]) == (0.53, 0.0, 0.07)
    assert slow["total_mib"] == pytest.approx(0.6 + 0.87 + 0.5 + 3.01)
    assert load["load_seconds"] == 0.198
    assert server_log.parse_load(transcript("rpc-20-13"))["speculation"] == []


def test_buffers_are_told_apart_by_endpoint():
    load = server_log.parse_load(transcript("rpc-20-13"))
    fast, slow = load["devices"]
    sizes = ("model_mib", "kv_mib", "compute_mib", "total_mib")
    assert (fast["device"], fast["id"], fast["pci_bus_id"], fast["free_mib"]) == ("RPC0", FAST, None, 24105)
    assert [fast[size] for size in sizes] == [239.22, 80.0, 9.63, 328.85]
    assert [slow[size] for size in sizes] == [144.07, 48.0, 9.63, 201.7]
    assert load["host"] == {"model_mib": 0.53, "kv_mib": 0.0, "compute_mib": 4.51, "total_mib": 5.04}


def test_context_is_read():
    load = server_log.parse_load(transcript("two-slots-q8"))
    assert (load["context_size"], load["context_per_slot"], load["slots"]) == (4096, 2048, 2)
    assert load["kv_unified"] is False
    assert (load["batch_size"], load["micro_batch_size"], load["flash_attention"]) == (512, 128, "on")
    assert (load["cache_type_k"], load["cache_type_v"]) == ("q8_0", "q8_0")
    assert load["load_seconds"] == 0.683


def test_journal_without_the_prefix_of_the_log_says_the_same():
    plain = "\n".join(line.partition(" I ")[2] or line for line in transcript("rpc-20-13").splitlines())
    load = server_log.parse_load(plain)
    assert load.pop("load_seconds") is None
    expected = server_log.parse_load(transcript("rpc-20-13"))
    expected.pop("load_seconds")
    assert load == expected


def test_cuda_lines_are_read():
    text = transcript("rpc-20-13")
    for number, endpoint, card in ((0, FAST, "4090"), (1, SLOW, "3090")):
        text = text.replace(
            f"using device RPC{number} ({endpoint}) (unknown id)",
            f"using device CUDA{number} (NVIDIA GeForce RTX {card}) (0000:0{number + 1}:00.0)",
        ).replace(f"RPC0[{endpoint}]", f"CUDA{number}")
    load = server_log.parse_load(text)
    first = load["devices"][0]
    assert (first["id"], first["pci_bus_id"]) == ("CUDA0", "0000:01:00.0")
    assert first["description"] == "NVIDIA GeForce RTX 4090"
    assert [(device["layers"], device["model_mib"]) for device in load["devices"]] == [(20, 239.22), (13, 144.07)]


def test_layers_of_two_caches_add_up():
    """A model with sliding windows has two caches, each with some of the layers."""
    before, size, after = transcript("rpc-20-13").partition("0.00.251.882 I llama_kv_cache: size")
    assert size
    second = [
        "llama_kv_cache: RPC0[127.0.0.1:50052] KV buffer size =    20.00 MiB",
        "llama_kv_cache: RPC0[127.0.0.1:50053] KV buffer size =    12.00 MiB",
        "llama_kv_cache: size =   32.00 MiB (   512 cells,  16 layers,  1/1 seqs), K (f16):   16 MiB, V (f16): 16 MiB",
    ]
    text = before + size + after.replace("32 layers", "16 layers", 1)
    text = text.replace("llama_context: pipeline", "\n".join(["x", *second, "llama_context: pipeline"]))
    load = server_log.parse_load(text)
    assert [device["layers"] for device in load["devices"]] == [20, 13]
    assert load["devices"][0]["kv_mib"] == 100.0


def test_layers_of_unequal_size_are_not_guessed():
    text = transcript("rpc-20-13").replace("KV buffer size =    80.00", "KV buffer size =    81.70")
    load = server_log.parse_load(text)
    assert [device["layers"] for device in load["devices"]] == [None, None]
    assert load["layers_source"] is None
    assert load["layers_note"] == "the layers of the KV cache are not all of one size"


def test_layers_without_a_cache_are_not_guessed():
    text = transcript("rpc-20-13").replace(" 32 layers,  1/1 seqs", " 30 layers,  1/1 seqs")
    assert server_log.parse_load(text)["layers_source"] is None


@pytest.mark.parametrize("text", ["", "error: invalid argument: --no-such-flag", "\x00\x01 garbage buffer size = MiB"])
def test_log_of_no_load_is_incomplete(text):
    load = server_log.parse_load(text)
    assert not load["complete"]
    assert load["devices"] == []
    assert load["layers_source"] is None


def test_every_beginning_of_a_log_is_read_without_error():
    lines = transcript("rpc-20-13").splitlines()
    complete = [server_log.parse_load("\n".join(lines[:count]))["complete"] for count in range(len(lines) + 1)]
    assert not complete[0]
    assert complete[-1]


@pytest.mark.parametrize("number", [".", "1.2.3", "9" * 5000, "\u0663", "\u00b2"])
@pytest.mark.parametrize(
    "place", ["offloaded 33", "n_ctx_seq             = 2048", "model buffer size =   239.22"]
)
def test_a_line_that_was_torn_says_nothing(number, place):
    text = transcript("rpc-20-13-lv5")
    assert place in text
    torn = text.replace(place, f"{place.rstrip('0123456789.')}{number}", 1)
    assert server_log.parse_load(torn)["complete"] == (place != "offloaded 33")
