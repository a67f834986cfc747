# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with programs that print what llama-fit-params b11312 printed, or misbehave."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_fit_params_info

SERVING = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}
PRINTED = "CUDA0 21477 1408 312 \nCUDA1 18501 1152 426 \nHost 563 0 112 \n"


@pytest.fixture
def run(tmp_path, call_module):
    def _run(script, **arguments):
        program = tmp_path / "llama-fit-params"
        if script is not None:
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        arguments = {
            "program": str(program), "model_path": "/m.gguf", "devices": ["CUDA0", "CUDA1"], "layers": [44, 37],
            "serving": SERVING, **arguments,
        }
        return call_module(llama_fit_params_info, arguments)

    return _run


def test_tells_each_device_and_the_difference_to_the_plan(run, tmp_path):
    log = tmp_path / "log"
    result = run(
        f'echo "$CUDA_DEVICE_ORDER $*" > {log}\ncat <<END\n{PRINTED}END',
        model=model_shapes.model("llama_3_3_70b_q4_k_m"), environment={"CUDA_DEVICE_ORDER": "PCI_BUS_ID"},
    )
    assert result["available"] and result["reason"] is None and not result["changed"]
    assert result["devices"][0] == {
        "device": "CUDA0", "model_mib": 21477, "kv_mib": 1408, "compute_mib": 312, "mib": 23197,
    }
    assert result["dry_run"] == {"mib": [23197, 20079], "difference_mib": [1, 2]}
    assert log.read_text().startswith("PCI_BUS_ID -m /m.gguf -dev CUDA0,CUDA1 -sm layer -ts 44,37 -c 8192 -ngl 99 ")


def test_compares_only_with_a_model(run):
    assert run(f"cat <<END\n{PRINTED}END")["dry_run"] == {"mib": [23197, 20079], "difference_mib": None}


def test_experts_in_ram_are_asked_about_and_compared(run, tmp_path):
    log, model = tmp_path / "log", model_shapes.model("qwen3_30b_a3b_q4_k_m")
    # as tests/fixtures/dry_run/copied_b11312.json has it
    result = run(
        f'echo "$*" > {log}\nprintf "CUDA0 7834 512 225 \\nCUDA1 6103 256 300 \\nHost 3753 0 16 \\n"',
        model=model, layers=[32, 17],
        experts_in_ram={"kind": "experts", "blocks": list(range(10)), "partial": None, "threads": 8, "no_host": True,
                        "override": ""},
    )
    assert result["available"] and result["fitted"] is None
    first, second = result["dry_run"]["difference_mib"]
    # MiB of the largest tensor of experts, and of what CUDA's fused sum may keep, which the recorded device does not
    assert 0 <= first <= 158 and -18 <= second <= 18 + 64
    words = log.read_text()
    assert " -ot blk[.](0|1|2|3|4|5|6|7|8|9)[.]ffn_(up|gate|gate_up|down)_(ch|)exps=CPU " in words
    assert " -t 8 " in words and " -lm none " in words and " --no-host " in words


def test_llama_cpps_own_placement_is_a_result(run, tmp_path):
    log = tmp_path / "log"
    moved = r"blk\.24\.ffn_down.*=CUDA1,blk\.45\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU"
    printed = f'-c 8192 -ngl 49 -ts 25,24 -ot "{moved}"'
    result = run(
        f"echo \"$*\" > {log}\ncat <<'END'\n{printed}\nEND", fit=True, margins_mib=[512, 1024],
        model=model_shapes.model("qwen3_next_80b_a3b_q4_k_m"),
    )
    assert result["fitted"]["layers"] == [25, 24] and result["fitted"]["context_size"] == 8192
    assert result["fitted"]["experts_in_ram"]["blocks"] == [45] and result["dry_run"] is None
    words = log.read_text()
    assert " -fitt 512,1024 -fit on" in words and " -ts " not in words and " -ngl " not in words


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "there is no program"),
        ("echo 'error: invalid argument: -fitp' >&2; exit 1", "ended with 1: error: invalid argument: -fitp."),
        ("kill -ABRT $$", "llama-fit-params was ended by signal 6"),
        ("echo all is well", "what it printed (all is well)."),
        ("echo Meta'()' 39979 2560 266; echo Host 1 2 3", "speaks of Meta()"),
        # llama.cpp prints through a thread, and may end before its words are out
        ("[ -e $0.again ] && echo error: no device && exit 1; touch $0.again; exit 1", "1: error: no device."),
        ("exit 1", "ended with 1: it said nothing."),
        ("sleep 600", "was ended after 1 seconds or killed"),
    ],
)
def test_what_went_wrong_is_a_result(run, script, words):
    result = run(script, timeout_seconds=1 if "sleep" in (script or "") else 60)
    assert not result.get("failed") and result["available"] is False
    assert result["devices"] == [] and result["dry_run"] is None
    assert words in result["reason"] and "\n" not in result["reason"]


def test_split_mode_tensor_is_asked_for_and_has_no_figures_of_a_device(run, tmp_path):
    log = tmp_path / "log"
    result = run(f"echo $* > {log}\necho 'Meta() 39979 2560 266'; echo 'Host 1 2 3'", split_mode="tensor")
    assert "-sm tensor -ts 44,37" in log.read_text()
    assert (result["available"], result["refused"], result["dry_run"]) == (False, False, None)
    assert "one sum for all devices" in result["reason"]
    error = "0.1 E llama_model_load: error loading model: LLAMA_SPLIT_MODE_TENSOR not implemented for architecture"
    result = run(f"echo \"{error} 'olmo2'\" >&2; kill -ABRT $$", split_mode="tensor")
    assert (result["available"], result["refused"]) == (False, True)
    assert result["reason"] == "LLAMA_SPLIT_MODE_TENSOR not implemented for architecture 'olmo2'."


def test_a_refusal_whose_words_were_lost_is_one(run):
    result = run("echo '  what():  failed to create llama_context from model' >&2; kill -ABRT $$", split_mode="tensor")
    assert (result["refused"], result["reason"]) == (True, "llama.cpp refuses the model (it names no reason).")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"layers": [81]}, "1 layer counts do not belong to 2 devices"),
        ({"serving": {}}, "serving.context_size is missing"),
        ({"timeout_seconds": 0}, "give at least 1"),
    ],
)
def test_what_cannot_be_asked_fails(run, arguments, words):
    result = run("exit 0", **arguments)
    assert result["failed"] and words in result["msg"]
