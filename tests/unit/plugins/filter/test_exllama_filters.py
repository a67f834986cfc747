# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.exllama_placement import exllama_placement
from ansible_collections.homelab.mixed_gpu.plugins.filter.exllama_serving import exllama_serving
from ansible_collections.homelab.mixed_gpu.plugins.filter.split_workload import split_workload

SERVING = exllama_serving("exllamav2", 8192, "Q8")
ENTRY = {"serving": SERVING, "decision": {"layers": [44, 37]}}


def load(layers, number, status="ok", **more):
    placed = {"gpu_split_gb": [20.0 + number, 23.0], "loaded": [{}, {}]} if status == "ok" else {}
    return {"layers": layers, "load": number, "status": status, **placed, **more}


def test_the_profile_is_one_that_the_planner_reads():
    asked = {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0}
    bench = {"prompt_tokens": 2048, "generated_tokens": 128, "repetitions": 3}
    assert len(split_workload(asked, bench, SERVING)["tests"]) == 2
    assert (SERVING["engine"], SERVING["cache_mode"], SERVING["cache_type_k"]) == ("exllamav2", "Q8", "q8_0")


def test_without_flash_attn_exllamav2_plans_for_more_and_exllamav3_brings_its_own():
    assert exllama_serving("exllamav2", 8192, "Q8", False)["flash_attention"] == "off"
    assert exllama_serving("exllamav3", 8192, "Q8", False)["flash_attention"] == "on"


def test_a_wrong_mode_is_one_sentence():
    with pytest.raises(AnsibleFilterError, match="exllama_serving: ExLlamaV2 has no cache mode 'q8_0'"):
        exllama_serving("exllamav2", 8192, "q8_0")


def test_what_is_recorded_is_what_placed_the_chosen_layers_last():
    loads = [load([44, 37], 1), load([40, 41], 1), load([44, 37], 2), load([44, 37], 3, "crashed")]
    assert exllama_placement(loads, ENTRY) == {
        "engine": "exllamav2", "gpu_split_gb": [22.0, 23.0], "loaded": [{}, {}],
    }  # fmt: skip


def test_llama_cpp_has_nothing_beyond():
    assert exllama_placement([load([44, 37], 1)], {"serving": {}, "decision": {"layers": [44, 37]}}) == {}


def test_a_choice_that_no_load_placed_cannot_be_recorded():
    with pytest.raises(AnsibleFilterError, match=r"no load of exllamav2 placed the layers \[44, 37\]"):
        exllama_placement([load([44, 37], 1, "out_of_memory")], ENTRY)
