# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import subprocess

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import fit_params, llama_bench, llama_server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

SERVING = {
    "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "q8_0", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}
PRINTED = "RPC0 21477 1408 312 \nRPC1 18501 1152 426 \nHost 563 0 112 \n"       # llama-fit-params b11312


def test_asks_with_the_flags_of_the_server() -> None:
    devices, endpoints = ["RPC0", "RPC1", "RPC2"], ["a:1", "b:2", "c:3"]
    words = fit_params.command("fit", "m.gguf", devices, [20, 0, 13], SERVING, endpoints, "layer", None)
    assert words == [
        "fit", "-m", "m.gguf", "--rpc", "a:1,b:2,c:3", "-dev", "RPC0,RPC2", "-sm", "layer", "-ts", "20,13",
        "-c", "8192", "-ngl", "99", "-b", "2048", "-ub", "512", "-fa", "on", "-ctk", "f16", "-ctv", "q8_0", "-t", "1",
        "--poll", "0", "-lm", "auto", "-np", "1", "-fit", "off", "-fitp", "on",
    ]
    deployment = {
        "model": {"path": "m.gguf"}, "serving": SERVING, "environment": {}, "split_mode": "layer",
        "rpc_endpoints": ["a:1", "b:2", "c:3"],
        "devices": [{"device": f"RPC{index}", "id": str(index), "backend": "RPC"} for index in range(3)],
        "placement": [{"id": str(index), "layers": count} for index, count in enumerate((20, 0, 13))],
    }
    settings = {
        "cache_ram_mib": 0, "alias": "m", "host": "127.0.0.1", "port": 8080, "cors_origins": "localhost",
        "log_verbosity": 4, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 900,
    }
    served = llama_server.command(deployment, settings)["arguments"]
    for flag in ("-dev", "-sm", "-ts", "-ngl", "-c", "-b", "-ub", "-fa", "-ctk", "-ctv", "-t", "--poll", "-lm", "-fit"):
        assert words[words.index(flag) + 1] == served[served.index(flag) + 1], flag


def test_one_device_needs_no_vector_and_slots_of_their_own_are_told() -> None:
    serving = {**SERVING, "parallel_slots": 4, "kv_unified": False}
    words = fit_params.command("fit", "m", ["CUDA0", "CUDA1"], [0, 33], serving, (), "layer", None)
    assert "-ts" not in words and words[words.index("-dev") + 1] == "CUDA1" and words[words.index("-sm") + 1] == "none"
    assert words[words.index("-np") + 1] == "4"


@pytest.mark.parametrize(
    ("layers", "serving", "sentence"),
    [
        ([20], SERVING, "1 layer counts do not belong to 2 devices"),
        ([0, 0], SERVING, "at least one of them more"),
        ([-1, 34], SERVING, "whole numbers of zero or more"),
        ([20, 13], {key: value for key, value in SERVING.items() if key != "poll"}, "serving.poll is missing"),
    ],
)
def test_refuses_what_makes_no_command(layers: list[int], serving: dict, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit_params.command("fit", "m", ["A", "B"], layers, serving, (), "layer", None)


def test_reads_what_the_program_prints() -> None:
    assert fit_params.parse("a warning of the loader\n" + PRINTED, ["RPC0", "RPC1"]) == [
        {"device": "RPC0", "model_mib": 21477, "kv_mib": 1408, "compute_mib": 312, "mib": 23197},
        {"device": "RPC1", "model_mib": 18501, "kv_mib": 1152, "compute_mib": 426, "mib": 20079},
    ]
    assert fit_params.parse(PRINTED, ["RPC0", "RPC1", "RPC2"])[2]["mib"] == 0


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "no lines of the form .* \\(nothing\\)"),
        ("Host 4 0 26\n", "no lines of the form"),
        ("RPC0 " + "1 2 3 " * 2_000_000 + "x\nHost 4 0 26\n", "no lines of the form"),
        ("RPC0 " + "9" * 10_000 + " 1 1\nHost 4 0 26\n", "no lines of the form"),
        ("RPC0 " + "9" * 500 + " 1 1\nHost 4 0 26\n", "no lines of the form"),
        ("segmentation fault\n", "\\(segmentation fault\\)"),
        ("Meta() 39979 2560 266\nHost 563 0 112\n", "Meta\\(\\), which is none of the devices \\(RPC0, RPC1\\)"),
    ],
)
def test_says_what_it_cannot_read(text: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit_params.parse(text, ["RPC0", "RPC1"])


def test_tells_the_difference_to_our_plan() -> None:
    model = model_shapes.model("llama_3_3_70b_q4_k_m")
    serving = {**SERVING, "cache_type_v": "f16"}
    assert fit_params.compare([23197, 20079], model, serving, [44, 37], None, True) == [1, 2]
    assert fit_params.compare([23000, 21000], model, serving, [44, 37], None, True) == [198, -919]


@pytest.mark.parametrize(
    ("mib", "difference", "words"),
    [
        ([20000, 500], [-900, 200], None),
        ([20000, 500], [1200, 0], "CUDA0 by +1200 of 20000 MiB"),
        ([20000, 500], [0, -300], "CUDA1 by -300 of 500 MiB"),
    ],
)
def test_a_plan_that_is_off_is_said_to_be(mib: list[int], difference: list[int], words: str | None) -> None:
    sentence = fit_params.disagreement(mib, difference, ["CUDA0", "CUDA1"])
    assert (sentence is None) if words is None else (sentence is not None and words in sentence)


def test_a_refused_model_is_told_from_a_program_that_fails():
    output = "x E llama_model_load: error loading model: unknown model architecture: 'new'\nterminate called\n"
    said = fit_params.failure("/b/llama-fit-params", -6, output, "layer")
    assert said == ("llama.cpp refuses the model (unknown model architecture: 'new')", True)
    assert fit_params.failure("/b/p", -4, "Illegal\n", "layer") == ("/b/p was ended by signal 4: Illegal", False)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("0.00.011.993 E llama_model_load: error loading model: LLAMA_SPLIT_MODE_TENSOR not implemented for"
         " architecture 'olmo2'\nterminate called after throwing\n  what():  failed to load model\n",
         "LLAMA_SPLIT_MODE_TENSOR not implemented for architecture 'olmo2'"),
        ("0.00.018.366 E llama_init_from_model: SPLIT_MODE_TENSOR requires flash_attn to be enabled\n"
         "terminate called\n  what():  failed to create llama_context from model\n",
         "SPLIT_MODE_TENSOR requires flash_attn to be enabled"),
        # its last words were lost
        ("terminate called\n  what():  failed to create llama_context from model\n", fit_params.SILENT),
    ],
)
def test_split_mode_tensor_is_refused_in_the_words_of_llama_cpp(output, words):
    assert fit_params.failure("/b/llama-fit-params", -6, output, "tensor") == (words, True)


def _moved(*blocks: int) -> str:
    return ",".join(rf"blk\.{block}\.ffn_(up|down|gate_up|gate)_(ch|)exps=CPU" for block in blocks)


def test_reads_llama_cpps_own_placement() -> None:
    # llama-fit-params b11312 about the shape of gpt-oss-120b on two RPC devices of 24000 and 20000 MiB
    parts = r"blk\.14\.ffn_(gate|gate_up|down).*=RPC0[127.0.0.1:40817],blk\.25\.ffn_(gate|gate_up|down).*=CPU,"
    line = f'-c 8192 -ngl 37 -ts 15,22 -ot "{parts}{_moved(*range(26, 36))}"'
    context, placed = fit_params.parse_fit(f"noise\n{line}\n", ["RPC0", "RPC1"], 36)
    assert (context, placed.layers, placed.blocks, placed.partial) == (8192, (15, 22), tuple(range(26, 36)), None)
    rendered = expert_placement.render(placed, "llama_bench")
    assert rendered.startswith("blk[.]14[.]ffn_(gate|gate_up|down).*=RPC0[127.0.0.1:40817];blk[.]25[.]ffn_(gate|")
    assert rendered.count("=") == rendered.count(";") + 1 == 12 and "\\" not in rendered
    assert expert_placement.from_json(placed.layers, expert_placement.as_json(placed)) == placed


def test_the_output_layer_is_no_block_of_the_model() -> None:
    # b11312 on two RPC devices of 40 MiB and a model of 16 blocks: it names blk.16, which does not exist
    _context, placed = fit_params.parse_fit(f'-c 512 -ngl 17 -ts 5,12 -ot "{_moved(*range(8, 17))}"', ["A", "B"], 16)
    assert placed.blocks == tuple(range(8, 16)) and "blk[.]16[.]" in placed.override
    assert expert_placement.from_json(placed.layers, expert_placement.as_json(placed)) == placed


def test_a_single_device_has_no_shares() -> None:
    _context, placed = fit_params.parse_fit(f'-c 4096 -ngl 37 -ot "{_moved(0, 1)}"', ["CUDA0"], 36)
    assert (placed.layers, placed.blocks) == ((37,), (0, 1))


@pytest.mark.parametrize(
    ("printed", "sentence"),
    [
        ("-c 8192 -ngl -1", "the model fits as it is"),
        ("-c 8192 -ngl 47 -ts 20,27", "leaves 1 whole layers in RAM"),
        ("-c 8192 -ngl 48 -ts 0,0", r"its shares are 0,0 for 2 devices \(CUDA0, CUDA1\)"),
        ("-c 8192 -ngl 48 -ts 20,20,8", "its shares are 20,20,8 for 2 devices"),
        (f"-c 8192 -ngl {'4' * 5000}", "no line of the form"),
        ("-c 8192 -ngl 48 -ts 20,", "no line of the form"),
        (r'-c 8192 -ngl 48 -ts 20,28 -ot "output\.weight=CPU"', r"a form that is not known \(output"),
        ("all is well", r"no line of the form .* in its output \(all is well\)"),
    ],
)
def test_an_own_placement_that_cannot_be_measured_says_why(printed: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        fit_params.parse_fit(printed, ["CUDA0", "CUDA1"], 47)


@pytest.mark.live
def test_the_real_programs_own_placement_fills_the_devices_and_ram(
    llama_bin: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    name, path = "qwen3_next_80b_a3b_q4_k_m", tmp_path / "m.gguf"
    record.header_only(path, name)
    model, devices = model_shapes.model(name), ["RPC0", "RPC1"]
    with record.rpc_servers(llama_bin, 2) as endpoints:
        listed = subprocess.run(
            llama_bench.list_devices_command(str(llama_bin / "llama-bench"), endpoints),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        free = [device["free_mib"] for device in llama_bench.parse_devices(listed.stdout)]
        # as if there were 20000 and 16000 MiB, whatever this machine has
        margins = [value - have for value, have in zip(free, (20000, 16000), strict=True)]
        program = str(llama_bin / "llama-fit-params")
        words = fit_params.fit_command(program, str(path), devices, SERVING, endpoints, margins)
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if min(margins) < 0:
            pytest.skip(f"this machine has {free} MiB free, too little to limit")
        assert done.returncode == 0, done.stderr[-500:]
        _context, placed = fit_params.parse_fit(done.stdout, devices, model["block_count"])
        told, _host = record.ask(llama_bin, path, list(placed.layers), SERVING, endpoints, placed)
    assert placed.blocks and all(sum(parts) <= have for parts, have in zip(told, (20000, 16000), strict=True))
