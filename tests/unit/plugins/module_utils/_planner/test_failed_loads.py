# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import outcome

CUDA = "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 612.50 MiB on device 1: cudaMalloc failed: out of memory"
RPC = "alloc_tensor_range: failed to allocate RPC0[127.0.0.1:50052] buffer of size 16777216"


@pytest.mark.parametrize(
    ("text", "device", "mib"),
    [(CUDA, "CUDA1", 612), (RPC, "RPC0[127.0.0.1:50052]", 16), ("terminate called: std::bad_alloc", "", 0)],
)
def test_the_sentence_about_memory_is_read_back(text: str, device: str, mib: float) -> None:
    reason = outcome.out_of_memory(text)
    assert reason is not None
    name, wanted = outcome.memory_wanted(reason)
    assert (name, round(wanted)) == (device, mib)
