# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""GGUF files byte by byte, also such as no library would write."""

from __future__ import annotations

import struct
import typing as t

U8, U32, I32, STRING, ARRAY = 0, 4, 5, 8, 9


def text(value: str | bytes) -> bytes:
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, raw: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + raw


def value(name: str, held: t.Any) -> bytes:
    """One key with a value of the type that a converter would take."""
    if isinstance(held, bool):
        return key(name, 7, bytes([held]))
    if isinstance(held, int):
        return key(name, U32, struct.pack("<I", held)) if held >= 0 else key(name, I32, struct.pack("<i", held))
    if isinstance(held, list):
        if held and isinstance(held[0], str):
            return key(name, ARRAY, struct.pack("<IQ", STRING, len(held)) + b"".join(map(text, held)))
        return key(name, ARRAY, struct.pack("<IQ", I32, len(held)) + struct.pack(f"<{len(held)}i", *held))
    return key(name, STRING, text(held))


def tensor(name: str | bytes, dimensions: t.Sequence[int], kind: int = 0, offset: int = 0) -> bytes:
    sizes = b"".join(struct.pack("<Q", size) for size in dimensions)
    return text(name) + struct.pack("<I", len(dimensions)) + sizes + struct.pack("<IQ", kind, offset)


def file(
    keys: t.Sequence[bytes], tensors: t.Sequence[bytes], tail: bytes = bytes(4096), n_keys: int | None = None,
    n_tensors: int | None = None, version: int = 3,
) -> bytes:  # fmt: skip
    n_tensors = len(tensors) if n_tensors is None else n_tensors
    n_keys = len(keys) if n_keys is None else n_keys
    head = b"GGUF" + struct.pack("<IQQ", version, n_tensors, n_keys) + b"".join(keys) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + tail


def model(architecture: str = "llama", blocks: int = 2, changes: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    """The keys of a small model; ``changes``: others, None to leave one out."""
    own = {
        "block_count": blocks, "embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 2,
        "feed_forward_length": 64, "context_length": 256,
    }  # fmt: skip
    keys = {
        "general.architecture": architecture,
        **{f"{architecture}.{name}": held for name, held in own.items()},
        "tokenizer.ggml.tokens": ["a", "b", "c"],
        **(changes or {}),
    }
    return {name: held for name, held in keys.items() if held is not None}


NAMES = ("token_embd.weight", "blk.0.attn_norm.weight", "blk.0.ffn_up.weight", "blk.1.attn_norm.weight",
         "blk.1.ffn_up.weight", "output.weight")  # fmt: skip


def written(
    keys: dict[str, t.Any] | None = None, names: t.Sequence[str] = NAMES, kinds: dict[str, int] | None = None
) -> bytes:
    """A file whose tensors are all of 256 elements in 1024 bytes; ``kinds``: those of another type, at their places."""
    keys = model() if keys is None else keys
    kinds = kinds or {}
    tensors = [tensor(name, [256], kinds.get(name, 0), 1024 * index) for index, name in enumerate(names)]
    return file([value(name, held) for name, held in keys.items()], tensors, bytes(1024 * len(names)))
