#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_info
short_description: Tell what a GGUF model weighs, block by block
version_added: 0.1.0
description:
  - Reads the header of a GGUF model and returns its bytes per repeating block, the bytes of its output slot, and the
    elements of KV cache per token and block.
  - The shards of a split model are found by their names and counted together.
  - What it does not understand is said in RV(model.notes), never miscounted in silence.
  - Results are cached by path, size and modification time, since reading a large vocabulary takes seconds.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state. In check mode its cache is read, but not written.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
options:
  path:
    description: The GGUF file; any shard of a split model.
    type: path
    required: true
  cache_dir:
    description: Directory of the cache. A damaged entry is read anew.
    type: path
    default: /var/lib/mixed_gpu/gguf_cache
  host_python:
    description: Python interpreter with the C(gguf) library, used when the module's own has no such library.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - gguf >= 0.10 (the P(homelab.mixed_gpu.host_python#role) role installs it)
seealso:
  - module: homelab.mixed_gpu.model_file
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Read the model's header
  homelab.mixed_gpu.gguf_info:
    path: /var/lib/llm_models/example/example.gguf
  register: example_gguf

- name: Show what was not understood
  ansible.builtin.debug:
    var: example_gguf.model.notes
"""

RETURN = r"""
available:
  description:
    - Whether the model could be read.
    - V(false) only in check mode, when the file or the C(gguf) library is not there yet.
  returned: success
  type: bool
reason:
  description: Why RV(available=false), in one sentence, or V(none).
  returned: success
  type: str
cached:
  description: Whether the answer comes from the cache.
  returned: success
  type: bool
model:
  description: What the header says. V(none) when RV(available=false).
  returned: success
  type: dict
  contains:
    path:
      description: The model's first file.
      type: str
      returned: success
    shards:
      description: All its files, in order.
      type: list
      elements: str
      returned: success
    size_bytes:
      description: Size of all files.
      type: int
      returned: success
    name:
      description: The model's name.
      type: str
      returned: success
      sample: Llama 3.3 70B Instruct
    architecture:
      description: llama.cpp's name of the architecture.
      type: str
      returned: success
      sample: llama
    file_type:
      description: Name of the quantisation, or V(none).
      type: str
      returned: success
      sample: Q4_K_M
    block_count:
      description: Number of repeating blocks.
      type: int
      returned: success
    block_bytes:
      description: Bytes of weights, per repeating block.
      type: list
      elements: int
      returned: success
    block_read_bytes:
      description: Bytes of weights that one token reads, per repeating block; of experts only those in use.
      type: list
      elements: int
      returned: success
    block_weights:
      description: Weights that one token is multiplied with, per repeating block; of experts only those in use.
      type: list
      elements: int
      returned: success
    output_weights:
      description: Weights of the output matrix.
      type: int
      returned: success
    output_bytes:
      description:
        - Bytes of the output slot.
        - With tied embeddings the token embedding counts here once more, as llama.cpp loads it twice.
      type: int
      returned: success
    token_embedding_bytes:
      description: Bytes that stay in host memory.
      type: int
      returned: success
    embedding_length:
      description: Width of the model.
      type: int
      returned: success
    vocabulary_size:
      description: Number of tokens.
      type: int
      returned: success
    feed_forward_length:
      description: Width of the feed-forward layer; the largest where it differs between blocks.
      type: int
      returned: success
    expert_feed_forward_length:
      description: Width of one expert, or 0.
      type: int
      returned: success
    expert_count:
      description: Number of experts, or 0.
      type: int
      returned: success
    expert_used_count:
      description: Number of experts that a token uses, or 0.
      type: int
      returned: success
    head_count:
      description: Number of attention heads; the largest where it differs between blocks.
      type: int
      returned: success
    head_count_kv:
      description: Number of attention heads that have a K and a V of their own; the largest where it differs.
      type: int
      returned: success
    key_length:
      description: Elements of one head's K.
      type: int
      returned: success
    context_length_train:
      description: Tokens of context that the model was trained for.
      type: int
      returned: success
    kv_k_elements_per_token:
      description: Elements of K per token, per block.
      type: list
      elements: int
      returned: success
    kv_v_elements_per_token:
      description: Elements of V per token, per block.
      type: list
      elements: int
      returned: success
    window_tokens:
      description: Tokens that a block's attention looks back on, per block; 0 where that is the whole context.
      type: list
      elements: int
      returned: success
    notes:
      description: What was not understood, one sentence each. Empty means that everything was counted.
      type: list
      elements: str
      returned: success
"""

import contextlib
import hashlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_file

# Long, and nothing in them matters for memory but the number of tokens.
_TOKEN_LISTS = ("tokenizer.ggml.tokens", "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges")


def _sizes(paths: list[str]) -> list[tuple[str, int, int]]:
    """Return (path, bytes, mtime in ns) of every shard, or raise UserError naming the one that cannot be read."""
    found = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError as exc:
            whole = f", shard {paths.index(path) + 1} of {len(paths)}," if len(paths) > 1 else ""
            raise UserError(
                f"{path}{whole} cannot be read ({exc.strerror}): check the path, or download the file."
            ) from exc
        if not os.path.isfile(path):
            raise UserError(f"{path} is no file: name the GGUF file itself.")
        found.append((path, status.st_size, status.st_mtime_ns))
    return found


def _read_shard(path: str, size_bytes: int) -> tuple[dict[str, t.Any], list[tuple[str, int, int]], int | None]:
    """Return (fields, [(tensor, bytes, elements)], number of tokens) of one file."""
    import gguf

    class HeaderReader(gguf.GGUFReader):
        """Keeps where tensors lie instead of mapping them, so that a truncated file can say what it lacks."""

        extents: list[tuple[str, int, int]]
        elements: list[int]

        def _build_tensors(self, start_offs: int, fields: list[gguf.ReaderField]) -> None:
            self.extents, self.elements = [], []
            for field in fields:
                _length, name, _count, dimensions, raw_type, offset = field.parts
                per_block, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(int(raw_type[0]))]
                elements = 1
                for dimension in dimensions.tolist():
                    elements *= dimension
                n_bytes = elements // per_block * block_bytes
                self.extents.append((bytes(name).decode(), start_offs + int(offset[0]), n_bytes))
                self.elements.append(elements)

    try:
        with open(path, "rb") as handle:
            gguf_file.check_preamble(path, handle.read(gguf_file.PREAMBLE_BYTES))
        reader = HeaderReader(path)
        fields = {
            key: field.contents()
            for key, field in reader.fields.items()
            if key not in _TOKEN_LISTS and not key.startswith("GGUF.")
        }
    except UserError:
        raise
    except OSError as exc:
        raise UserError(
            f"{path} cannot be read ({exc.strerror or exc}): check its permissions and its disk."
        ) from exc
    except (ValueError, LookupError, TypeError, OverflowError) as exc:
        raise UserError(
            f"The header of {path} cannot be read ({exc}): the file of {size_bytes} bytes is cut off or damaged, or "
            "newer than the gguf library; download it again, or update this collection and run its host_python role."
        ) from exc
    gguf_file.check_extent(path, size_bytes, reader.extents)
    tokens = reader.get_field("tokenizer.ggml.tokens")
    sizes = zip(reader.extents, reader.elements, strict=True)
    found = [(name, n_bytes, elements) for (name, _offset, n_bytes), elements in sizes]
    return fields, found, len(tokens.data) if tokens else None


def _read(files: list[tuple[str, int, int]]) -> dict[str, t.Any]:
    import gguf

    fields: dict[str, t.Any] = {}
    tensors: list[tuple[str, int, int]] = []
    token_count = None
    for index, (path, size_bytes, _mtime) in enumerate(files):
        shard_fields, shard_tensors, shard_tokens = _read_shard(path, size_bytes)
        if index == 0:
            fields, token_count = shard_fields, shard_tokens
        tensors += shard_tensors
    count = fields.get("split.count", 1)
    if isinstance(count, int) and count > 1 and count != len(files):
        raise UserError(
            f"{files[0][0]} is one of {count} shards, and its name does not tell where the others are: "
            f"keep llama.cpp's names (NAME-00001-of-{count:05d}.gguf)."
        )
    declared = fields.get("split.tensors.count")
    if isinstance(declared, int) and count > 1 and declared != len(tensors):
        raise UserError(
            f"The shards of {files[0][0]} hold {len(tensors)} tensors and should hold {declared}: "
            "they are not of one model; download them again."
        )
    file_types = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    file_type = file_types.get(fields.get("general.file_type", -1))
    known = set(gguf.MODEL_ARCH_NAMES.values())
    return gguf_file.describe(fields, tensors, [file[:2] for file in files], token_count, file_type, known)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "cache_dir": {"type": "path", "default": "/var/lib/mixed_gpu/gguf_cache"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    result: dict[str, t.Any] = {"changed": False, "available": True, "reason": None, "cached": False, "model": None}
    try:
        paths = gguf_file.shard_paths(os.path.abspath(module.params["path"]))
        if module.check_mode and not os.path.exists(paths[0]):
            module.exit_json(**{**result, "available": False, "reason": f"{paths[0]} does not exist yet."})
        files = _sizes(paths)
        key = {"description": gguf_file.DESCRIPTION_VERSION, "files": [list(file) for file in files]}
        name = hashlib.sha256(paths[0].encode()).hexdigest()
        cache = os.path.join(module.params["cache_dir"], f"{name}.json")
        cached = None
        with contextlib.suppress(OSError, ValueError):       # a cache: what cannot be read is made again
            cached = json_file.from_text(json_file.read_text(cache) or "null")
        if isinstance(cached, dict) and cached.get("key") == key and isinstance(cached.get("model"), dict):
            module.exit_json(**{**result, "cached": True, "model": cached["model"]})

        reason = host_python.enter(["gguf", "numpy"], module.params["host_python"])
        if reason and module.check_mode:
            module.exit_json(**{**result, "available": False, "reason": reason})
        if reason:
            module.fail_json(msg=f"{paths[0]} cannot be read: {reason}")
        model = _read(files)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    if not module.check_mode:
        with contextlib.suppress(OSError):                   # without a cache the next call is slower, nothing else
            text = json_file.to_text({"key": key, "model": model})
            json_file.write_text(cache, text, 0o644, module.atomic_move)
    module.exit_json(**{**result, "model": model})


if __name__ == "__main__":
    main()
