# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names and words of an all-reduce."""

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import allreduce

ASKED = {"environment": {"GGML_CUDA_ALLREDUCE": "nccl"}}


def test_an_arm_is_called_by_what_ran():
    assert (allreduce.asked(ASKED), allreduce.of_load(ASKED)) == ("nccl", "nccl")
    fell = {**ASKED, "allreduce": {"asked": "nccl", "ran": "internal", "transport": None, "fallback": "x"}}
    assert (allreduce.asked(fell), allreduce.of_load(fell)) == ("nccl", "internal")
    assert allreduce.of_load({**ASKED, "allreduce": {"ran": None}}) == "nccl"
    assert allreduce.of_load({}) == ""
    assert allreduce.environment("none", "llama_cpp") == {"GGML_CUDA_ALLREDUCE": "none"}
    assert allreduce.environment("", "llama_cpp") == {}
    of_exllama = allreduce.environment("native", "exllama")
    assert allreduce.asked({"environment": of_exllama}) == "native"


def test_the_slowest_channel_of_nccl_is_what_counts():
    line = "box:1:3 [0] NCCL INFO Channel 0%d : 0[0] -> 1[1] via %s\n"
    text = line % (0, "SHM/direct/direct") + line % (1, "NET/Socket/0")
    assert allreduce.transport(text) == "NET" and allreduce.transport(line % (0, "P2P/IPC")) == "P2P"
    assert allreduce.transport("NCCL INFO Init COMPLETE") is None


def test_a_trial_says_what_ran_in_its_server_or_its_load():
    ran = {"ran": "native"}
    assert allreduce.of_trial({"results": [{"kind": "trial", "allreduce": ran}]}) == ran
    assert allreduce.of_trial({"results": [{"kind": "decode"}], "allreduce": ran}) == ran
    assert allreduce.of_trial(None) is None and allreduce.of_trial({"results": []}) is None


def test_what_ran_in_words():
    assert allreduce.words({"ran": "nccl", "transport": "SHM"}) == "NCCL through host memory"
    assert allreduce.words({"ran": "internal", "transport": None}) == "llama.cpp's internal all-reduce"
    assert allreduce.words({"ran": None, "fallback": "y"}) == allreduce.words(None) == ""


def test_what_one_does_not_say_is_no_difference():
    shm, net = {"ran": "nccl", "transport": "SHM"}, {"ran": "nccl", "transport": "NET"}
    assert allreduce.same(shm, shm) and not allreduce.same(shm, net)
    assert allreduce.same(shm, {"ran": "nccl", "transport": None})
    assert not allreduce.same(shm, {"ran": "internal", "transport": None})
    assert allreduce.same(shm, {"ran": None, "transport": None})


def test_a_record_follows_what_its_server_uses_once_that_is_accepted():
    shm, net = {"ran": "nccl", "transport": "SHM"}, {"ran": "nccl", "transport": "NET"}
    entry = {"split_mode": "tensor", "decision": {"why": "w", "tensor": {"allreduce": shm, "verdict": "faster"}}}
    assert allreduce.recorded(entry) == shm
    renewed = allreduce.with_seen(entry, net)
    assert allreduce.recorded(renewed) == net and renewed["decision"]["tensor"]["verdict"] == "faster"
    assert allreduce.recorded(entry) == shm
    assert allreduce.with_seen(entry, None) == allreduce.with_seen(entry, {"ran": None}) == entry
    layer = {**entry, "split_mode": "layer"}
    assert allreduce.recorded(layer) is None and allreduce.with_seen(layer, net) == layer


def test_a_trial_tells_what_its_server_used():
    assert allreduce.of_trial({"results": [{"allreduce": {"ran": "nccl"}}]}) == {"ran": "nccl"}
    assert allreduce.of_trial({"results": []}) is allreduce.of_trial(None) is None
