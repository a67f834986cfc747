# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_bench
from hypothesis import given, settings
from hypothesis import strategies as st

RPC_PAIR = """Available devices:
  RPC0: 127.0.0.1:51152 (24105 MiB, 24105 MiB free)
  RPC1: 127.0.0.1:51153 (24105 MiB, 24104 MiB free)
"""
VIRTUAL_CUDA = """ggml_cuda_init: found 1 CUDA devices:
  Device 0: NVIDIA H200, compute capability 9.0, VMM: yes
ggml_cuda_init: emulating 2 virtual device(s)
Available devices:
  CUDA0: NVIDIA H200 (dev p0/v0) (71577 MiB, 71314 MiB free)
  CUDA1: NVIDIA H200 (dev p0/v1) (71577 MiB, 71314 MiB free)
"""
#: What `llama-bench --list-devices` prints -> (device, backend, description, total_mib, free_mib) of each.
LISTS = {
    "b11312-rpc-pair": (RPC_PAIR, [
        ("RPC0", "RPC", "127.0.0.1:51152", 24105, 24105), ("RPC1", "RPC", "127.0.0.1:51153", 24105, 24104),
    ]),
    "b11312-cuda-virtual-pair": (VIRTUAL_CUDA, [
        ("CUDA0", "CUDA", "NVIDIA H200 (dev p0/v0)", 71577, 71314),
        ("CUDA1", "CUDA", "NVIDIA H200 (dev p0/v1)", 71577, 71314),
    ]),
    "b11312-none": ("Available devices:\n  (none)\n", []),
    "mixed-with-accelerator": (
        "load_backend: loaded BLAS backend\nAvailable devices:\n"
        "  Vulkan0: AMD Radeon 780M (RADV PHOENIX) (15978 MiB, 9 MiB free)\n"
        "  BLAS: OpenBLAS (0 MiB, 0 MiB free)\n  RPC0: [::1]:50052 (7 MiB, 7 MiB free)\n",
        [("Vulkan0", "Vulkan", "AMD Radeon 780M (RADV PHOENIX)", 15978, 9), ("RPC0", "RPC", "[::1]:50052", 7, 7)],
    ),
}


@pytest.mark.parametrize("name", LISTS)
def test_device_lists_are_read(name):
    text, expected = LISTS[name]
    fields = ("device", "backend", "description", "total_mib", "free_mib")
    assert [tuple(device[field] for field in fields) for device in llama_bench.parse_devices(text)] == expected


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no line 'Available devices:'"),
        ("usage: llama-bench [options]\n", "no line 'Available devices:'"),
        ("Available devices:\n  CUDA0: NVIDIA (24 GiB)\n", "'CUDA0: NVIDIA \\(24 GiB\\)' has an unknown form"),
    ],
)
def test_lists_of_unknown_form_are_refused(text, words):
    with pytest.raises(UserError, match=words):
        llama_bench.parse_devices(text)


def line(total="10", free="10", description="127.0.0.1:50052"):
    return f"Available devices:\n  RPC0: {description} ({total} MiB, {free} MiB free)\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (line(free="17592186044415"), r"'RPC0' \('127.0.0.1:50052'\) claims '10' MiB with '17592186044415' MiB free"),
        (line(total="16777217"), "no device has"),
        (line(total="9" * 700), "no device has"),
        (line(total="9" * 10_000), r"has 100\d\d characters"),
        (line(description="x (1 MiB, " * 50_000), r"has 5000\d\d characters"),
        (line(description="(" * 30_000_000), r"it has 300000\d\d characters"),
        (line() + " " * 900_000 + "x", "has 900001 characters"),
        (line(total="\u0661\u0660"), "has an unknown form"),                  # digits of another script
        (line(description="\x1b[2J") + "  \x1b[2J\n", r"line '\\x1b\[2J' has an unknown form"),
    ],
)
def test_what_no_device_has_is_refused_in_one_sentence(text, words):
    with pytest.raises(UserError, match=words) as caught:
        llama_bench.parse_devices(text)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_more_free_memory_than_there_is_counts_as_all_of_it():
    (device,) = llama_bench.parse_devices(line(total="1000", free="1200"))
    assert (device["total_mib"], device["free_mib"]) == (1000, 1000)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200), st.sampled_from(["", "Available devices:\n", "Available devices:\n  RPC0: a (1 MiB, "]))
def test_any_text_gives_devices_or_one_error(text, start):
    try:
        devices = llama_bench.parse_devices(start + text)
    except UserError:
        return
    assert all(0 <= device["free_mib"] <= device["total_mib"] <= 1 << 24 for device in devices)


def test_rpc_comes_before_the_listing():
    assert llama_bench.list_devices_command("/b", ["a:1", "b:2"]) == ["/b", "--rpc", "a:1,b:2", "--list-devices"]
    assert llama_bench.list_devices_command("/b", []) == ["/b", "--list-devices"]


# --- one load

SERVING = {
    "context_size": 2048, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "q8_0", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}
PREFILL = {"kind": "prefill", "n_prompt": 256, "n_gen": 0, "n_depth": 0, "repetitions": 2}
DECODE = {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3}


def load(layers=(20, 13), tests=(PREFILL, DECODE), **changes):
    return {"label": "x", "split_mode": "layer", "layers": list(layers), "load": 1, "tests": list(tests), **changes}


def order(layers=(20, 13), tests=(PREFILL, DECODE), names=("RPC0", "RPC1")):
    return llama_bench.make_order(load(layers, tests), list(names), SERVING)


def command(layers=(20, 13), tests=(PREFILL, DECODE), endpoints=("a:1", "b:2"), names=("RPC0", "RPC1")):
    return " ".join(llama_bench.bench_command("/b", "/m.gguf", order(layers, tests, names), endpoints))


def test_the_command_has_every_flag_that_decides_speed():
    assert command() == (
        "/b -m /m.gguf --rpc a:1,b:2 -dev RPC0/RPC1 -sm layer -ts 20/13 -ngl 99 -b 2048 -ub 512 -fa on -ctk f16"
        " -ctv q8_0 -t 1 --poll 0 -lm auto -p 256 -n 32 -d 0 -r 3 -o jsonl"
    )


EXPERTS = {
    "kind": "experts", "blocks": [0, 1], "partial": {"block": 2, "parts": ["up"]}, "threads": 8, "no_host": True,
    "override": "",
}  # fmt: skip


def test_experts_in_ram_are_one_override_with_threads_of_their_own():
    tests = ({**PREFILL, "micro_batch_size": 4096, "threads": 16}, DECODE)
    given = llama_bench.make_order(load(tests=tests, experts_in_ram=EXPERTS), ["CUDA0", "CUDA1"], SERVING)
    words = llama_bench.bench_command("/b", "/m.gguf", given, [])
    said = " ".join(words)
    # a batch as large as the largest micro-batch
    assert " -b 4096 -ub 4096,512 " in said and " -t 16,8 " in said and " -lm none " in said
    override = "blk[.](0|1)[.]ffn_(up|gate|gate_up|down)_(ch|)exps=CPU;blk[.](2)[.]ffn_(up)_(ch|)exps=CPU"
    at = words.index("-ot")
    assert words[at : at + 4] == ["-ot", override, "--no-host", "1"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"experts_in_ram": {**EXPERTS, "blocks": [32]}}, "experts_in_ram.blocks must be .* 0 to 31"),
        ({"experts_in_ram": EXPERTS, "split_mode": "tensor"}, "weights in RAM and split mode tensor"),
    ],
)
def test_experts_that_cannot_be_in_ram_are_named(changes, words):
    with pytest.raises(UserError, match=words):
        llama_bench.make_order(load(**changes), ["CUDA0", "CUDA1"], SERVING)


@pytest.mark.parametrize(
    ("layers", "names", "words"),
    [
        ((33, 0), ("RPC0", "RPC1"), " -dev RPC0 -sm layer -ngl "),
        ((0, 33), ("RPC0", "RPC1"), " -dev RPC1 -sm layer -ngl "),
        ((33,), ("CUDA0",), " -dev CUDA0 -sm layer -ngl "),
        ((20, 0, 13), ("A", "B", "C"), " -dev A/C -sm layer -ts 20/13 -ngl "),
    ],
)
def test_a_device_without_layers_is_not_named(layers, names, words):
    assert words in command(layers, names=names)


def test_each_length_is_named_once_and_defaults_are_switched_off():
    deep = {**DECODE, "n_depth": 512, "repetitions": 7}
    pair = {"kind": "request", "n_prompt": 64, "n_gen": 16, "n_depth": 0, "repetitions": 1}
    assert command(tests=(DECODE, deep), endpoints=()).endswith(" -lm auto -p 0 -n 32 -d 0,512 -r 7 -o jsonl")
    assert command(tests=(pair,), endpoints=()).endswith(" -p 0 -n 0 -pg 64,16 -d 0 -r 1 -o jsonl")
    assert "--rpc" not in command(endpoints=())


def test_the_diagnosis_is_short_and_talkative():
    short = llama_bench.diagnosis_command(["/b", "-r", "5", "-o", "jsonl"])
    assert short == ["/b", "-r", "1", "-o", "jsonl", "--no-warmup", "-v"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers": [33]}, r"layers of x is \[33\]: it must hold one number for each of 2 devices"),
        ({"layers": [-1, 34]}, r"layers\[0\] of x is -1"),
        ({"layers": [20, "13"]}, r"layers\[1\] of x is '13'"),
        ({"layers": [True, 13]}, r"layers\[0\] of x is True"),
        ({"layers": [0, 0]}, "puts nothing on any device"),
        ({"layers": "20/13"}, "layers of x is '20/13'"),
        ({"load": 0}, "load of x is 0"),
        ({"split_mode": None}, "split_mode of x is None"),
        ({"split_mode": "layer,row"}, "split_mode of x is 'layer,row'"),
        ({"tests": []}, r"tests of x is \[\]"),
        ({"tests": ["pp512"]}, r"tests\[0\] of x is 'pp512'"),
        ({"tests": [{**DECODE, "n_gen": -1}]}, r"n_gen of tests\[0\] of x is -1"),
        ({"tests": [{**DECODE, "n_gen": 0}]}, "at least one token"),
        ({"tests": [{**DECODE, "repetitions": 0}]}, r"repetitions of tests\[0\] of x is 0"),
    ],
)
def test_a_load_that_makes_no_sense_is_named(changes, words):
    with pytest.raises(UserError, match=words):
        llama_bench.make_order({**load(), **changes}, ["RPC0", "RPC1"], SERVING)


@pytest.mark.parametrize("value", [None, True, 1.5])
def test_a_serving_profile_has_to_be_complete(value):
    with pytest.raises(UserError, match="serving.flash_attention is .* for -fa"):
        llama_bench.make_order(load(), ["RPC0", "RPC1"], {**SERVING, "flash_attention": value})


# --- the output

#: Recorded from b11312 (two RPC devices, 33/0 asked as -ts 33/0), shortened to what is read.
RECORDED = (
    '{"build_commit": "0c1e57098", "build_number": 11312, "model_filename": "/m.gguf", "n_batch": 2048,'
    ' "n_ubatch": 512, "n_threads": 1, "poll": 0, "type_k": "f16", "type_v": "q8_0", "n_gpu_layers": 99,'
    ' "split_mode": "layer",'
    ' "flash_attn": 1, "devices": "RPC0/RPC1", "tensor_split": "20.00/13.00", "load_mode": "auto",'
    ' "n_prompt": 256, "n_gen": 0, "n_depth": 0, "test_time": "2026-11-24T05:02:27Z",'
    ' "samples_ns": [ 850407914, 842192513, 842192511 ],'
    '"samples_ts": [ 75.258, 75.9921, 75.9921 ]}\n'
)
DECODE_ROW = RECORDED.replace('"n_prompt": 256, "n_gen": 0', '"n_prompt": 0, "n_gen": 32')
BOTH = RECORDED + DECODE_ROW


def judge(stdout=BOTH, rc=0, stderr="", limit=None, **kwargs):
    return llama_bench.judge(rc, stdout, stderr, limit, order(**kwargs))


def test_all_samples_are_kept_in_the_order_of_the_tests():
    verdict = judge(stdout=DECODE_ROW + RECORDED)
    assert (verdict.status, verdict.reason, verdict.build, verdict.warnings) == ("ok", None, "11312 (0c1e57098)", [])
    assert [(result["kind"], result["samples_ms"]) for result in verdict.results] == [
        ("prefill", [850.407914, 842.192513, 842.192511]), ("decode", [850.407914, 842.192513, 842.192511]),
    ]


def test_rows_that_nobody_asked_for_are_dropped():
    deeper = BOTH + BOTH.replace('"n_depth": 0', '"n_depth": 512')
    assert [result["n_depth"] for result in judge(stdout=deeper).results] == [0, 0]


def test_garbage_before_the_rows_is_a_warning():
    verdict = judge(stdout="warning: asserts enabled\n\n" + BOTH)
    assert verdict.status == "ok"
    assert verdict.warnings == ["llama-bench printed 'warning: asserts enabled' among its results"]


@pytest.mark.parametrize(
    ("printed", "shares", "same"),
    [
        ("20.00/13.00", (20, 13), True),
        ("33.00", (33, 0), True),
        ("0.00/33.00", (0, 33), True),
        ("0.00", (), True),
        ("20.00/13.00", (13, 20), False),
        ("33.00", (), False),
        ("20.00/13.00/1.00", (20, 13), False),
        ("auto", (20, 13), False),
        (None, (20, 13), False),
    ],
)
def test_a_printed_split_is_compared_without_its_zeros(printed, shares, same):
    assert llama_bench.same_split(printed, shares) is same


@pytest.mark.parametrize(
    ("stdout", "words"),
    [
        pytest.param("", "no row for the prefill test", id="nothing"),
        pytest.param("<html>", "no row for the prefill test", id="garbage"),
        pytest.param(RECORDED, r"no row for the decode test \(n_prompt 0, n_gen 32, n_depth 0\)", id="row missing"),
        pytest.param(BOTH[:-60], "no row for the decode test .* cut off", id="truncated"),
        pytest.param(BOTH + RECORDED[:70], "a row of its output is cut off", id="truncated after all rows"),
        pytest.param(BOTH.replace("RPC0/RPC1", "RPC1/RPC0"), "devices RPC1/RPC0 instead of RPC0/RPC1", id="order"),
        pytest.param(BOTH.replace("20.00/13", "21.00/12"), "split 21.00/12.00 instead of 20/13", id="split"),
        pytest.param(BOTH.replace('"layer"', '"row"'), "split mode row instead of layer", id="mode"),
        pytest.param(BOTH.replace('"type_v": "q8_0"', '"type_v": "f16"'), "type_v f16 instead of q8_0", id="flag"),
        pytest.param(BOTH.replace(", 842192511", ""), "does not hold 3 positive times", id="too few"),
        pytest.param(BOTH.replace("850407914", "-1"), "positive times", id="negative"),
        pytest.param(BOTH.replace("850407914", "NaN"), "positive times", id="not a number"),
        pytest.param(BOTH.replace("[ 850407914, 842192513, 842192511 ]", "7"), "positive times", id="no list"),
    ],
)
def test_output_that_cannot_be_trusted_is_unreadable(stdout, words):
    verdict = judge(stdout=stdout)
    assert (verdict.status, verdict.results) == ("unreadable", [])
    assert re.search(words, verdict.reason)


#: What failing programs print (llama.cpp b11312 where it could be provoked, else its source) -> status and words.
FAILURES = {
    "cuda-weights": (
        1,
        "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 23040.51 MiB on device 0: cudaMalloc failed: out of"
        " memory\n"
        "alloc_tensor_range: failed to allocate CUDA0 buffer of size 24159191040\n"
        "llama_model_load: error loading model: unable to allocate CUDA0 buffer\n"
        "llama_bench: error: failed to load model 'm'\n",
        "out_of_memory", "23041 MiB more were wanted on CUDA device 0",
    ),
    "rpc-kv-cache": (
        1,
        "alloc_tensor_range: failed to allocate RPC0[127.0.0.1:51154] buffer of size 259522560\n"
        "llama_init_from_model: failed to initialize the context: failed to allocate buffer for kv cache\n"
        "llama_bench: error: failed to create context with model 'm'\n",
        "out_of_memory", r"248 MiB more were wanted on RPC0\[127.0.0.1:51154\]",
    ),
    "compute-buffers": (
        1, "llama_init_from_model: failed to initialize the context: failed to allocate compute pp buffers\n",
        "out_of_memory", "compute pp buffers",
    ),
    "cuda-abort": (
        -6, "CUDA error: out of memory\n  current device: 1\nggml-cuda.cu:109: CUDA error\n", "out_of_memory", "CUDA",
    ),
    "vulkan": (
        1, "llama_model_load: error loading model: vk::Device::allocateMemory: ErrorOutOfDeviceMemory\n",
        "out_of_memory", "ErrorOutOfDeviceMemory",
    ),
    "rpc-died": (
        -6, "/s/ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response\n",
        "device_lost", r"a device was lost \(Remote RPC server crashed",
    ),
    "rpc-refused": (
        134, "/s/ggml-rpc.cpp:547: Failed to connect to 127.0.0.1:51159\n\n",
        "device_lost", r"RPC endpoint 127.0.0.1:51159 does not answer \(Failed to connect",
    ),
    "rpc-name": (
        134, "Cannot resolve host 'nohost'\n/s/ggml-rpc.cpp:547: Failed to connect to nohost:51152\n",
        "device_lost", "RPC endpoint nohost does not answer",
    ),
    "card-gone": (
        1, "error: invalid device: CUDA1\nerror: invalid parameter for argument: -dev\n",
        "device_lost", "no longer has the device CUDA1",
    ),
    "pinned-is-harmless": (
        -11, "ggml_cuda_host_malloc: failed to allocate 4.00 MiB of pinned memory: out of memory\n",
        "crashed", "SIGSEGV",
    ),
    "segfault": (-11, "", "crashed", r"was ended by SIGSEGV \(it printed nothing\)"),
    "shell-style": (139, "", "crashed", "SIGSEGV"),
    "wrong-processor": (-4, "", "crashed", "SIGILL, so it was built for another processor"),
    "killed": (-9, "", "crashed", "SIGKILL before its time limit, most likely by the kernel"),
    "cuda-fault": (
        -6,
        "CUDA error: an illegal memory access was encountered\n/s/ggml-cuda.cu:109: CUDA error\n"
        "/b/libggml-base.so.0(+0x198a5) [0x7f0798cac8a5]\n",
        "crashed", "SIGABRT: CUDA says an illegal memory access was encountered; this is no matter of memory",
    ),
    "no-model": (
        1,
        "gguf_init: failed to read magic\nllama_model_load: error loading model: not a GGUF\n"
        "llama_model_load_from_file_impl: failed to load model\nllama_bench: error: failed to load model 'm'\n",
        "crashed", r"exit status 1 \(llama_model_load: error loading model: not a GGUF\)",
    ),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failures_are_told_apart(name):
    rc, stderr, status, words = FAILURES[name]
    verdict = judge(stdout="", rc=rc, stderr=stderr)
    assert verdict.status == status, verdict.reason
    assert re.search(words, verdict.reason), verdict.reason
    assert verdict.results == [] and "\n" not in verdict.reason
    assert verdict.explained is (status != "crashed")


def test_results_of_a_process_that_failed_do_not_count():
    assert judge(rc=-6).status == "crashed"
    assert judge(limit=30, rc=-9).reason == "llama-bench was not done after 30 seconds and was ended"


@pytest.mark.parametrize(
    ("rc", "text", "words"),
    [
        (1, "error: invalid parameter for argument: -lm\n", "does not accept -lm"),
        (1, "error: failed to find RPC backend\nerror: invalid parameter for argument: --rpc\n", "built without RPC"),
        (127, "llama-bench: error while loading shared libraries: libgomp.so.1: cannot", "cannot be run .*libgomp"),
        (1, "error: invalid device: CUDA1\nerror: invalid parameter for argument: -dev\n", None),
        (-11, "", None),
    ],
)
def test_a_program_that_cannot_do_it_at_all_is_misuse(rc, text, words):
    sentence = llama_bench.explain_misuse(rc, text)
    assert sentence is None if words is None else re.search(words, sentence)


@pytest.mark.parametrize(
    ("rc", "text", "words"),
    [
        (134, "/s/ggml-rpc.cpp:547: Failed to connect to h:1\n", "the RPC endpoint h:1 does not answer"),
        (1, "error: failed to find RPC backend\n", "built without RPC"),
        (-11, "", "could not list the devices with the endpoints h:1: it was ended by SIGSEGV"),
    ],
)
def test_a_failed_listing_is_explained(rc, text, words):
    assert words in llama_bench.explain_list_failure(rc, text, ["h:1"])


# --- the store
