# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which all-reduce ran, by the lines that llama.cpp b11312 and NCCL print."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import allreduce_log

NCCL = """
NCCL version 2.32.3+cuda13.0
box:812:830 [0] NCCL INFO Channel 00/02 : 0 1
box:812:830 [0] NCCL INFO ncclCommInitAll comm 0x5 rank 0 nranks 2 cudaDev 0 nvmlDev 0 busId 1000 - Init COMPLETE
"""
SHM = """
box:812:841 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct
box:812:842 [1] NCCL INFO Channel 01 : 1[1] -> 0[0] via SHM/direct/direct
"""
FAILED = "0.01.2 W NCCL init failed (unhandled system error); falling back to internal AllReduce\n"
INTERNAL = (
    "0.01.3 I ggml_cuda_ar_pipeline_init: initialized AllReduce pipeline: 2 GPUs, 256 KB chunked kernel staging + 4 MB "
    "copy-engine staging per GPU\n"
)
NO_INTERNAL = "W internal AllReduce init failed (n_devices != 2?); falling back to meta-backend butterfly\n"


@pytest.mark.parametrize(
    ("text", "asked", "ran", "transport", "fallback"),
    [
        (NCCL + SHM, "nccl", "nccl", "SHM", None),
        (NCCL, "", "nccl", None, None),
        (NCCL + "b:1:2 [0] NCCL INFO Channel 00/0 : 0[0] -> 1[1] via P2P/CUMEM/read\n", "nccl", "nccl", "P2P", None),
        # one slow channel is what everything waits for
        (NCCL + SHM + "b:1:2 [0] NCCL INFO Channel 02/0 : 0[0] -> 1[1] [send] via NET/Socket/0\n", "nccl", "nccl",
         "NET", None),
        (INTERNAL, "internal", "internal", None, None),
        (FAILED + INTERNAL, "nccl", "internal", None, "NCCL init failed (unhandled system error)"),
        ("NCCL not compiled in; falling back to internal AllReduce.  Recompile\n" + NO_INTERNAL, "nccl", "none", None,
         "NCCL not compiled in, internal AllReduce init failed"),
        ("NCCL disabled: virtual devices in use; falling back to internal AllReduce\n" + INTERNAL, "", "internal", None,
         "NCCL disabled: virtual devices in use"),
        ("unknown GGML_CUDA_ALLREDUCE value: fast\n", "fast", "none", None, "unknown GGML_CUDA_ALLREDUCE value: fast"),
        (FAILED, "nccl", None, None, "NCCL init failed (unhandled system error)"),
    ],
)  # fmt: skip
def test_what_ran_is_told_from_what_was_asked_for(text, asked, ran, transport, fallback):
    assert allreduce_log.read(text, asked) == {
        "asked": asked or None, "ran": ran, "transport": transport, "fallback": fallback,
    }  # fmt: skip


def test_a_program_that_says_nothing_of_it_is_not_judged():
    assert allreduce_log.read("load_tensors: offloaded 33/33 layers to GPU\n", "internal") is None


def test_lines_of_nccl_are_told_from_results():
    assert all(allreduce_log.is_of_nccl(line) for line in (NCCL + SHM).splitlines() if line)
    warned = "[2026-11-29 03:00:00] box:1:2 [0] init.cc:12 (ncclInit) NCCL WARN Cuda failure"
    assert allreduce_log.is_of_nccl(warned)
    assert not allreduce_log.is_of_nccl('{"backends": "CUDA", "model_filename": "/srv/NCCL.gguf"}')


def test_only_cards_in_tensor_mode_say_it():
    assert allreduce_log.environment(True, "tensor") == {"NCCL_DEBUG": "INFO"}
    assert allreduce_log.environment(True, "layer") == allreduce_log.environment(False, "tensor") == {}
