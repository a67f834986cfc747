# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Writes models in folders as ExLlama reads them: config.json and safetensors, with the standard library alone.

EXL2 and EXL3 ones have tensors of the right names and sizes for planning, and no weights that make sense; float16 ones
can be loaded (their weights are random), which is what the tests on cards do.
"""

from __future__ import annotations

import json
import math
import pathlib
import random
import struct
import typing as t

Shape = tuple[int, ...]
BYTES = {"F16": 2, "F32": 4, "I32": 4, "I16": 2}


def n_bytes(kind: str, shape: Shape) -> int:
    return BYTES[kind] * math.prod(shape)


def write_safetensors(path: pathlib.Path, tensors: dict[str, tuple[str, Shape]], fill: t.Callable[[str, int], bytes]):
    """Write tensors of (dtype, shape); C(fill) gives the bytes of one. The header is padded to 8."""
    header, offset = {}, 0
    for name, (kind, shape) in tensors.items():
        end = offset + n_bytes(kind, shape)
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as handle:
        handle.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            first, end = entry["data_offsets"]
            handle.write(fill(name, end - first))


def _linear(kind: str, key: str, columns: int, rows: int, bits: int) -> dict[str, tuple[str, Shape]]:
    if kind == "exl2":
        return {
            f"{key}.q_weight": ("I32", (columns * bits // 32, rows)),
            f"{key}.q_invperm": ("I32", (columns,)),
            f"{key}.q_scale": ("I32", (columns // 128, rows // 8)),
            f"{key}.q_scale_max": ("F16", (columns // 128,)),
            f"{key}.q_groups": ("I16", (2 * columns // 128,)),
        }
    if kind == "exl3":
        return {
            f"{key}.trellis": ("I16", (columns // 16, rows // 16, 16 * bits)),
            f"{key}.suh": ("F16", (columns,)),
            f"{key}.svh": ("F16", (rows,)),
        }
    return {f"{key}.weight": ("F16", (rows, columns))}


def write_model(
    folder,
    kind="f16",
    blocks=3,
    hidden=256,
    forward=512,
    heads=4,
    kv_heads=2,
    vocabulary=1024,
    bits=4,
    tied=False,
    shards=1,
    seed=0,
    words=0,
):
    """Write a Llama model of C(kind) exl2, exl3 or f16 and return its tensors' bytes by name.

    C(words): of how many tokens a tokenizer.json tells; 0 for none.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    head = hidden // heads
    tensors: dict[str, tuple[str, Shape]] = {"model.embed_tokens.weight": ("F16", (vocabulary, hidden))}
    for number in range(blocks):
        key = f"model.layers.{number}"
        tensors[f"{key}.input_layernorm.weight"] = ("F16", (hidden,))
        for name, rows in (("q", heads * head), ("k", kv_heads * head), ("v", kv_heads * head)):
            tensors |= _linear(kind, f"{key}.self_attn.{name}_proj", hidden, rows, bits)
        tensors |= _linear(kind, f"{key}.self_attn.o_proj", heads * head, hidden, bits)
        tensors[f"{key}.post_attention_layernorm.weight"] = ("F16", (hidden,))
        tensors |= _linear(kind, f"{key}.mlp.gate_proj", hidden, forward, bits)
        tensors |= _linear(kind, f"{key}.mlp.up_proj", hidden, forward, bits)
        tensors |= _linear(kind, f"{key}.mlp.down_proj", forward, hidden, bits)
    tensors["model.norm.weight"] = ("F16", (hidden,))
    if not tied:
        tensors |= _linear(kind, "lm_head", hidden, vocabulary, 6 if kind != "f16" else bits)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": forward,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": tied,
        "torch_dtype": "float16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    if kind != "f16":
        config["quantization_config"] = {"quant_method": kind, "bits": float(bits), "head_bits": 6}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    if words:
        known = {"type": "BPE", "vocab": {f"word{number}": number for number in range(words)}}
        (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": known}), encoding="utf-8")
    luck = random.Random(seed)
    # a random table, repeated: floats of up to 0.05, whose products neither vanish nor overflow
    table = struct.pack("<4096e", *(luck.uniform(-0.05, 0.05) for _value in range(4096)))

    def fill(name: str, size: int) -> bytes:
        if kind == "f16" and "norm" in name:
            return struct.pack("<e", 1.0) * (size // 2)
        start = 2 * luck.randrange(4096)
        return (table[start:] + table * (size // len(table) + 1))[:size] if kind == "f16" else bytes(size)

    names = list(tensors)
    for number in range(shards):
        own = {name: tensors[name] for name in names[number::shards]}
        file = "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, own, fill)
    if shards > 1:
        index = {name: f"model-{names.index(name) % shards + 1:05d}-of-{shards:05d}.safetensors" for name in names}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    return {name: n_bytes(*tensor) for name, tensor in tensors.items()}
