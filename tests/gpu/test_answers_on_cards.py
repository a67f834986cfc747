# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check of answers on real cards: what rounding makes, what it costs, and copies between cards that get lost.

Two CUDA devices are two cards, or one that llama.cpp shows twice (GGML_CUDA_DEVICES=2).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.tests.gpu.conftest import module

IDS = ["card-0", "card-1"]
BLOCKS = 16
LAYERS = {"layer": [9, 8], "tensor": [1, 1]}
SERVING = {
    "context_size": 4096, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0, "load_mode": "auto",
    "gpu_layers": 99,
}
#: Loaded into llama-server. llama.cpp copies from one CUDA device to the other, records an event on the first one's
#: stream, and lets the second one's wait for it. What arrives are zeros, as where a driver claims a peer access that
#: the hardware lacks.
LOST_COPIES = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
typedef int copy(void *, const void *, size_t, int, void *);
typedef int peer_copy(void *, int, const void *, int, size_t, void *);
typedef int record(void *, void *);
typedef int wait(void *, void *, unsigned);
int cudaMemsetAsync(void *, int, size_t, void *);
static _Thread_local struct { void *to, *stream, *event; size_t size; } last;
static void remember(void *to, size_t size, void *stream) {
    last.to = to; last.size = size; last.stream = stream; last.event = NULL;
}
int cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    if (kind == 3) remember(to, size, stream); else last.to = NULL;
    return ((copy *) dlsym(RTLD_NEXT, "cudaMemcpyAsync"))(to, from, size, kind, stream);
}
int cudaMemcpyPeerAsync(void *to, int at, const void *from, int where, size_t size, void *stream) {
    remember(to, size, stream);
    return ((peer_copy *) dlsym(RTLD_NEXT, "cudaMemcpyPeerAsync"))(to, at, from, where, size, stream);
}
int cudaEventRecord(void *event, void *stream) {
    if (last.to && stream == last.stream) last.event = event;
    return ((record *) dlsym(RTLD_NEXT, "cudaEventRecord"))(event, stream);
}
int cudaStreamWaitEvent(void *stream, void *event, unsigned flags) {
    int failed = ((wait *) dlsym(RTLD_NEXT, "cudaStreamWaitEvent"))(stream, event, flags);
    if (!failed && last.to && event == last.event && stream != last.stream)
        failed = cudaMemsetAsync(last.to, 0, last.size, stream);
    last.to = NULL;
    return failed;
}
"""


@pytest.fixture(scope="module")
def model_path(llama_bin, tmp_path_factory):
    """A model of 4.6 GB with the width of a 7B."""
    path = str(tmp_path_factory.mktemp("model") / "random.gguf")
    module(
        "random_gguf", path=path, blocks=BLOCKS, embedding_length=4096, feed_forward_length=11008, head_count=32,
        head_count_kv=8, type="q8_0", host_python=sys.executable,
    )
    return path


@pytest.fixture
def check(llama_bin, model_path, pair, tmp_path):
    """Return a function that checks a placement, and prints the result."""

    def run(split_mode, environment=None, **changes):
        names = ["CUDA0", "CUDA1"]
        devices = [
            {"device": name, "id": card, "backend": "CUDA", "description": name, "free_mib": 20000}
            for name, card in zip(names, IDS, strict=True)
        ]
        layers = LAYERS[split_mode]
        entry = {
            "model": {"path": model_path}, "devices": devices, "environment": {}, "split_mode": split_mode,
            "placement": [{"id": card, "layers": count} for card, count in zip(IDS, layers, strict=True)],
            "rpc_endpoints": [], "serving": SERVING,
        }  # fmt: skip
        found = module(
            "answer_check", llama_server=f"{llama_bin}/llama-server", deployment="random-c4096", entry=entry,
            load={"label": f"answers of {split_mode}", "split_mode": split_mode, "layers": layers, "load": 1},
            configuration={}, serving=SERVING, environment=pair | (environment or {}), campaign="answers",
            fingerprint="3" * 64, state_dir=str(tmp_path), answers_dir=str(tmp_path / "answers"),
            wrong_file=str(tmp_path / "wrong_answers"), lease_unit="", load_timeout_seconds=180,
            request_timeout_seconds=60, **changes,
        )["answers"]  # fmt: skip
        shown = ("status", "seconds", "sentence", "compared", "failures")
        print(json.dumps({"split_mode": split_mode, **{name: found[name] for name in shown}}, indent=1), flush=True)
        return found

    return run


@pytest.mark.parametrize("split_mode", ["layer", "tensor"])
def test_cards_that_compute_right_differ_by_rounding_alone(check, tmp_path, split_mode):
    found = check(split_mode)
    assert (found["status"], found["reason"], found["failures"]) == ("ok", None, {})
    assert [one["id"] for one in found["compared"]] == IDS
    assert not (tmp_path / "wrong_answers").exists()


def test_a_card_that_holds_a_part_of_the_model_streams_the_rest(box, check):
    free_mib = box["gpus"][0]["memory_free_mib"]
    found = check("layer", reserve_mib=max(1024, free_mib - 3000))
    assert (found["status"], found["failures"]) == ("ok", {})


def test_copies_that_get_lost_between_cards_are_found(check, tmp_path):
    if shutil.which("cc") is None:
        pytest.skip("no compiler for the library that loses copies")
    library = tmp_path / "lost.so"
    subprocess.run(["cc", "-x", "c", "-shared", "-fPIC", "-o", library, "-"], input=LOST_COPIES, text=True, check=True)
    found = check("layer", environment={"LD_PRELOAD": str(library)})
    assert (found["status"], found["culprits"]) == ("wrong", [])
    assert found["reason"].startswith("data between the devices is garbled, as each of them alone computes right")
    assert any("GGML_CUDA_NO_PEER_COPY" in cure for cure in found["cures"])
    assert (tmp_path / "wrong_answers").exists()
