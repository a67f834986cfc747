# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for exllamav2: it places halves of blocks by what they weigh here, and misbehaves as FAKE_MODE says."""

from __future__ import annotations

import os
import sys
import time
import types

import torch

MODE = os.environ.get("FAKE_MODE", "ok")
BLOCKS = int(os.environ.get("FAKE_BLOCKS", "12"))
HALF_GB = float(os.environ.get("FAKE_BLOCK_GB", "0")) / 2
HEAD_GB = float(os.environ.get("FAKE_HEAD_GB", "0"))
#: what a block takes on each card
BLOCK_MS = [float(number) for number in os.environ.get("FAKE_BLOCK_MS", "0,0").split(",")]
OVERHEAD_GB = float(os.environ.get("FAKE_OVERHEAD_GB", "0"))
print(" -- words of the engine on standard output")


class ExLlamaV2Config:
    vocab_size = 64

    def __init__(self, model_dir):
        assert os.path.exists(f"{model_dir}/config.json")

    def arch_compat_overrides(self):
        pass


class ExLlamaV2:
    def __init__(self, config):
        self.config = config
        parts = [types.SimpleNamespace(layer_idx=number // 2) for number in range(2 * BLOCKS)]
        self.modules = [types.SimpleNamespace(), *parts, types.SimpleNamespace(), types.SimpleNamespace()]
        self.head_layer_idx = len(self.modules) - 1

    def load(self, gpu_split, lazy=False):
        assert self.config.max_attention_size == self.config.max_input_len**2 > 0
        card, left = 0, [share - OVERHEAD_GB for share in gpu_split]
        for module in self.modules[1:]:
            size = HALF_GB if hasattr(module, "layer_idx") else HEAD_GB * (module is self.modules[-1])
            while size > left[card]:
                card += 1
                assert card < len(left), "Insufficient space in device allocation"
            left[card] -= size
            module.device_idx = card
        if lazy:
            return
        if MODE == "oom":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB")
        if MODE == "crash":
            print("RuntimeError: CUDA error: device-side assert triggered", file=sys.stderr)
            os.abort()
        if MODE == "hang":
            time.sleep(60)
        for module in self.modules[1:]:
            torch.used[module.device_idx] += int(HALF_GB * 2**30)

    def forward(self, ids, cache=None, preprocess_only=False):
        cache.current_seq_len += ids.shape[-1]
        assert cache.current_seq_len <= cache.max_seq_len
        halves = [module.device_idx for module in self.modules if hasattr(module, "layer_idx")]
        torch.passes(sum(BLOCK_MS[card] for card in halves) / 2 / 1000)
        return torch.next_token(ids, self.config.vocab_size, MODE)


class ExLlamaV2Tokenizer:
    def __init__(self, config):
        self.vocabulary = config.vocab_size

    def encode(self, text, add_bos):
        assert add_bos
        return torch.tensor([[ord(letter) % self.vocabulary for letter in text]])


class ExLlamaV2Cache:
    def __init__(self, model, max_seq_len):
        self.max_seq_len, self.current_seq_len = max_seq_len, 0


class ExLlamaV2Cache_Q8(ExLlamaV2Cache):
    pass
