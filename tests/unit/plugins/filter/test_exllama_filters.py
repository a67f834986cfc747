# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.exllama_serving import exllama_serving
from ansible_collections.homelab.mixed_gpu.plugins.filter.split_workload import split_workload

SERVING = exllama_serving("exllamav2", 8192, "Q8")


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
