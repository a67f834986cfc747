# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for exllamav3: it places whole blocks by what they weigh here, with a transient of its own.

With tensor parallelism each attention is divided in the ratio of what is left of the cards' numbers, and FAKE_SYNC_MS
is what adding up takes per block and way.
"""

from __future__ import annotations

import os
import types

import torch

MODE = os.environ.get("FAKE_MODE", "ok")
CHUNK = int(os.environ.get("FAKE_CHUNK", "1024"))
BLOCKS = int(os.environ.get("FAKE_BLOCKS", "12"))
BLOCK_GB = float(os.environ.get("FAKE_BLOCK_GB", "0"))
HEAD_GB = float(os.environ.get("FAKE_HEAD_GB", "0"))
TRANSIENT_GB = float(os.environ.get("FAKE_OVERHEAD_GB", "0"))
BLOCK_MS = [float(number) for number in os.environ.get("FAKE_BLOCK_MS", "0,0").split(",")]
SYNC_MS = dict(pair.split(":") for pair in os.environ.get("FAKE_SYNC_MS", "native:0,nccl:0").split(","))
HEADS = int(os.environ.get("FAKE_HEADS", "8"))
#: what each card needs alone, so that the ratio of what is left is another one
ALONE_GB = float(os.environ.get("FAKE_ALONE_GB", "0"))


class CacheLayer_quant:
    pass


class Config:
    vocab_size = 64

    @classmethod
    def from_directory(cls, path):
        assert os.path.exists(f"{path}/config.json")
        return cls()


class Model:
    def __init__(self):
        self.caps = {}
        self.plan = None
        blocks = [types.SimpleNamespace(layer_idx=number, caps={}) for number in range(BLOCKS)]
        head = types.SimpleNamespace(layer_idx=None, caps={"logits_output": True})
        self.modules = [types.SimpleNamespace(layer_idx=None, caps={}), *blocks, head]

    @classmethod
    def from_config(cls, config):
        return cls()

    def load(self, use_per_device, max_chunk_size, tensor_p=False, tp_backend="nccl"):
        assert max_chunk_size == CHUNK
        self.way = tp_backend if tensor_p else None
        if tensor_p:
            return self.share(use_per_device)
        card, left = 0, [share - TRANSIENT_GB for share in use_per_device]
        for module in self.modules[1:]:
            size = BLOCK_GB if module.layer_idx is not None else HEAD_GB
            while size > left[card]:
                card += 1
                if card == len(left):
                    raise RuntimeError("Insufficient VRAM in split for model and cache")
            left[card] -= size
            torch.used[card] += int(size * 2**30)
            module.device = f"cuda:{card}"

    def share(self, use_per_device):
        if os.environ.get("FAKE_MODE") == "refuses":
            raise NotImplementedError("Tensor-parallel is not currently implemented for Stand-in")
        if os.environ.get("FAKE_MODE") == "oom in tensor":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1.00 GiB.")
        left, self.plan = list(use_per_device), [{} for _card in use_per_device]
        for module in self.modules[1:]:
            weights = [max(0.0, gigabytes - ALONE_GB) for gigabytes in left]
            first = round(HEADS * weights[0] / sum(weights))
            size = BLOCK_GB if module.layer_idx is not None else HEAD_GB
            if module.layer_idx is not None:
                self.plan[0][f"{module.layer_idx}"] = (0, first, "heads")
                self.plan[1][f"{module.layer_idx}"] = (first, HEADS, "heads")
            for card, share in enumerate((first / HEADS, 1 - first / HEADS)):
                left[card] -= size * share
        for card in range(2):
            torch.used[card] += int((use_per_device[card] - left[card]) * 2**30)

    def unload(self):
        self.plan = None
        torch.used[:] = [0] * len(torch.used)

    def warmup(self, cache, max_chunk_size, max_batch_size, long_context):
        assert self.plan is not None and max_chunk_size == CHUNK and max_batch_size == 1 and not long_context

    def tp_drain_acks(self):
        assert self.plan is not None

    def pass_time(self):
        """As long as the blocks take, one card after the other, or at once with their shares."""
        blocks = [module for module in self.modules if module.layer_idx is not None]
        if self.way is None:
            each = sum(BLOCK_MS[torch.device(module.device).index] for module in blocks)
        else:
            heads = [self.plan[card]["0"] for card in range(2)]
            shares = [(end - start) / HEADS for start, end, _unit in heads]
            each = BLOCKS * (max(s * ms for s, ms in zip(shares, BLOCK_MS, strict=True)) + float(SYNC_MS[self.way]))
        torch.passes(each / 1000)

    def prefill(self, ids, params):
        self.pass_time()
        assert ids.shape[-1] <= CHUNK and params["past_len"] + ids.shape[-1] <= params["cache"].max_num_tokens

    def forward(self, ids, params):
        self.pass_time()
        assert ids.shape[-1] <= 16 and params["attn_mode"] == "flash_attn"
        wrong = MODE == "wrong in tensor" and self.way is not None
        return torch.next_token(ids, 64, "wrong" if wrong else MODE)


class Tokenizer:
    @classmethod
    def from_config(cls, config):
        return cls()

    def encode(self, text, add_bos):
        raise FileNotFoundError("a model without a tokenizer")


class Cache:
    def __init__(self, model, max_num_tokens, layer_type=None, max_batch_size=16, k_bits=None, v_bits=None):
        assert (layer_type is None) == (k_bits is None) and max_batch_size == 4
        self.max_num_tokens = max_num_tokens
