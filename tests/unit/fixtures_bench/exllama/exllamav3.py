# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for exllamav3: it places whole blocks by what they weigh here, with a transient of its own."""

from __future__ import annotations

import os
import types

import torch

MODE = os.environ.get("FAKE_MODE", "ok")
BLOCKS = int(os.environ["FAKE_BLOCKS"])
BLOCK_GB = float(os.environ["FAKE_BLOCK_GB"])
HEAD_GB = float(os.environ.get("FAKE_HEAD_GB", "0"))
TRANSIENT_GB = float(os.environ.get("FAKE_OVERHEAD_GB", "0"))


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
        blocks = [types.SimpleNamespace(layer_idx=number, caps={}) for number in range(BLOCKS)]
        head = types.SimpleNamespace(layer_idx=None, caps={"logits_output": True})
        self.modules = [types.SimpleNamespace(layer_idx=None, caps={}), *blocks, head]

    @classmethod
    def from_config(cls, config):
        return cls()

    def load(self, use_per_device, max_chunk_size):
        assert max_chunk_size == 1024
        card, left = 0, [share - TRANSIENT_GB for share in use_per_device]
        for module in self.modules[1:]:
            size = BLOCK_GB if module.layer_idx is not None else HEAD_GB
            while size > left[card]:
                card += 1
                if card == len(left):
                    raise RuntimeError("Insufficient VRAM in split for model and cache")
            left[card] -= size
            module.device = f"cuda:{card}"

    def unload(self):
        pass

    def prefill(self, ids, params):
        assert ids.shape[-1] <= 1024 and params["past_len"] + ids.shape[-1] <= params["cache"].max_num_tokens

    def forward(self, ids, params):
        assert ids.shape[-1] <= 16 and params["attn_mode"] == "flash_attn"
        return torch.next_token(ids, 64, MODE)


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
