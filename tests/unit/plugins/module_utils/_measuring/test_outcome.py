# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import outcome

#: What ggml_cuda_error of llama.cpp b11312 prints.
ABORT = """CUDA error: {}
  current device: 1, in function ggml_backend_cuda_synchronize at /src/ggml-cuda.cu:3241
  cudaStreamSynchronize(cuda_ctx->stream())
/src/ggml-cuda.cu:109: CUDA error
"""


@pytest.mark.parametrize(
    ("message", "cure"),
    [
        ("an illegal memory access was encountered", "Xid"),
        ("unspecified launch failure", "Xid"),
        ("no kernel image is available for execution on the device", "build it for the cards"),
        ("CUDA driver version is insufficient for CUDA runtime version", "upgrade the driver"),
        ("peer access is not supported between these two devices", "GGML_CUDA_P2P"),
    ],
)
def test_an_error_of_cuda_is_named_with_its_cure(message: str, cure: str) -> None:
    text = ABORT.format(message)
    assert outcome.out_of_memory(text) is None and outcome.device_lost(text) is None
    said = outcome.crash("llama-bench", -6, text)
    assert said.startswith(f"llama-bench was ended by SIGABRT: CUDA says {message} on CUDA device 1; ")
    assert cure in said


def test_a_lender_of_another_protocol_is_named_and_not_called_absent() -> None:
    """As negotiate_hello and the dispatcher of ggml-rpc.cpp, b11312, print it."""
    text = (
        "RPC server version mismatch: 8.0.1\n"
        "/src/ggml/src/ggml-rpc/ggml-rpc.cpp:550: RPC handshake failed for 192.168.1.20:50052\n"
    )
    cure = "run homelab.mixed_gpu.site over both hosts, so that they have the same llama.cpp"
    said = f"speaks protocol 8.0.1, which this llama.cpp refuses: {cure}"
    assert outcome.device_lost(text) == f"the RPC endpoint 192.168.1.20:50052 {said}"
    assert outcome.device_lost(text.splitlines()[0]) == f"the RPC endpoint {said}"
    unreachable = outcome.device_lost(text.splitlines()[1])
    assert unreachable is not None and "192.168.1.20:50052 does not answer" in unreachable


def test_memory_that_ran_out_with_a_torn_number_is_told_as_it_is() -> None:
    said = outcome.out_of_memory("allocating 1.2.3 MiB on device 1: cudaMalloc failed: out of memory\n")
    assert said == "out of memory: allocating 1.2.3 MiB on device 1: cudaMalloc failed: out of memory"


def test_another_failure_is_told_by_its_last_words() -> None:
    said = outcome.crash("llama-bench", 1, "llama_model_load: error loading model: tensor 'x' not found\n")
    assert said == "llama-bench ended with exit status 1 (llama_model_load: error loading model: tensor 'x' not found)"


def test_lines_that_only_say_that_loading_failed_hide_no_reason() -> None:
    """As llama-server of b11312 ends where split mode tensor is asked for without flash attention."""
    text = (
        "0.03.138.344 E llama_init_from_model: SPLIT_MODE_TENSOR requires flash_attn to be enabled\n"
        "0.03.138.345 E cmn  common_init_: failed to create context with model '/srv/m.gguf'\n"
        "0.03.138.509 E srv    load_model: failed to create_context with model '/srv/m.gguf'\n"
        "0.03.138.526 I srv    operator(): operator(): cleaning up before exit...\n"
        "0.03.139.089 E srv  llama_server: exiting due to model loading error\n"
    )
    reason = "llama_init_from_model: SPLIT_MODE_TENSOR requires flash_attn to be enabled"
    assert outcome.crash("llama.cpp", 1, text) == f"llama.cpp ended with exit status 1 ({reason})"
