# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Repositories of models of which only the headers exist: as many quants as a real one, each with its vocabulary.

The files are sparse. What they hold is a header of the size that such files have; llama.cpp's dry run reads no more.
"""

from __future__ import annotations

import functools
import os
import pathlib
import struct
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes, tensor_types
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._models import gguf_bytes as made

#: Name of a quant -> (general.file_type, type of the matrices); the output matrix is kept better, as quantising does.
QUANTS: t.Final[dict[str, tuple[int, str]]] = {
    "BF16": (32, "BF16"), "F16": (1, "F16"), "Q8_0": (7, "Q8_0"), "Q6_K": (18, "Q6_K"), "Q5_K_M": (17, "Q5_K"),
    "Q5_K_S": (16, "Q5_K"), "Q5_0": (8, "Q5_0"), "Q4_K_M": (15, "Q4_K"), "Q4_K_S": (14, "Q4_K"), "Q4_0": (2, "Q4_0"),
    "IQ4_NL": (25, "IQ4_NL"), "IQ4_XS": (30, "IQ4_XS"), "Q3_K_M": (12, "Q3_K"), "IQ3_XXS": (23, "IQ3_XXS"),
    "Q2_K": (10, "Q2_K"), "IQ2_XS": (20, "IQ2_XS"), "IQ1_S": (24, "IQ1_S"),
}  # fmt: skip
_OUTPUT = {"BF16": "BF16", "F16": "F16", "Q8_0": "Q8_0"}
#: Larger files come in shards.
SHARD_BYTES: t.Final = 50_000_000_000


@functools.cache
def _vocabulary(size: int) -> tuple[bytes, ...]:
    """Return the arrays of a vocabulary of so many tokens, as long as those of a real one."""
    tokens = [f"Ġtoken{number}" for number in range(size)]
    merges = [f"Ġt{number} oken{number}" for number in range(2 * size)]
    return (
        made.value("tokenizer.ggml.tokens", tokens),
        made.key("tokenizer.ggml.token_type", made.ARRAY, struct.pack("<IQ", made.I32, size) + bytes(4 * size)),
        made.value("tokenizer.ggml.merges", merges),
    )


def _keys(shape: model_shapes.Shape, file_type: int, vocabulary: int) -> list[bytes]:
    found = []
    for name, held in {**model_shapes.fields(shape), "general.file_type": file_type}.items():
        number = isinstance(held, float)
        found.append(made.key(name, 6, struct.pack("<f", held)) if number else made.value(name, held))
    # llama.cpp fills a vocabulary of this kind with dummies
    return [*found, made.value("tokenizer.ggml.model", "no_vocab"), *_vocabulary(vocabulary)]


def _typed(tensor: model_shapes.Tensor, matrix: str) -> model_shapes.Tensor:
    if tensor.kind == "F32":
        return tensor
    wanted = _OUTPUT.get(matrix, "Q6_K") if tensor.name.startswith("output.") else matrix
    elements = tensor_types.BY_NAME[wanted.lower()].elements
    return tensor._replace(kind=wanted if tensor.columns % elements == 0 else "Q8_0")


def _write(path: pathlib.Path, keys: t.Sequence[bytes], tensors: t.Sequence[model_shapes.Tensor]) -> None:
    """Write one file, or one shard."""
    listed, end = [], 0
    for tensor in tensors:
        plain = tensor.rows == 1 and not tensor.experts
        dimensions = [tensor.columns] if plain else [tensor.columns, tensor.rows]
        dimensions += [tensor.experts] if tensor.experts else []
        listed.append(made.tensor(tensor.name, dimensions, tensor_types.NUMBERS[tensor.kind.lower()], end))
        end += -(-tensor.n_bytes // 32) * 32
    head = made.file(keys, listed, b"")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head)
    os.truncate(path, len(head) + end)


def write(
    folder: pathlib.Path, name: str, shape: str, quants: t.Mapping[str, tuple[int, str]] | None = None
) -> dict[str, pathlib.Path]:
    """Write a repository's files below a folder, C(name)-QUANT.gguf; return the first file of each quant."""
    form, found = model_shapes.SHAPES[shape], {}
    for quant, (file_type, matrix) in (QUANTS if quants is None else quants).items():
        tensors = [_typed(tensor, matrix) for tensor in model_shapes.tensors(form)]
        keys = _keys(form, file_type, form.vocabulary_size)
        count = -(-sum(tensor.n_bytes for tensor in tensors) // SHARD_BYTES)
        if count == 1:
            found[quant] = folder / f"{name}-{quant}.gguf"
            _write(found[quant], keys, tensors)
            continue
        each = -(-len(tensors) // count)
        for index in range(count):
            own = [
                made.key("split.no", 2, struct.pack("<H", index)), made.key("split.count", 2, struct.pack("<H", count)),
                made.key("split.tensors.count", made.I32, struct.pack("<i", len(tensors))),
            ]  # fmt: skip
            path = folder / f"{name}-{quant}" / f"{name}-{quant}-{index + 1:05d}-of-{count:05d}.gguf"
            _write(path, [*(keys if index == 0 else []), *own], tensors[index * each : (index + 1) * each])
            found.setdefault(quant, path)
    return found
