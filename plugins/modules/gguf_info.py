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
  - What it does not understand is said in RV(model.notes), never miscounted in silence. The header is read without
    knowledge of architectures and tensor types, so a model that is newer than this collection is described too.
  - A file that is no model for llama.cpp is refused with the cause. Examples are a quantisation of another engine, a
    file of Ollama's own engine, a projector, an adapter, an importance matrix and a drafting head.
  - Memory and time are bounded whatever the file holds.
  - Results are cached by path, size and modification time.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: This action does not modify state. In check mode its cache is read, but not written.
options:
  path:
    description: The GGUF file; any shard of a split model.
    type: path
    required: true
  draft:
    description: Whether the file drafts for another model. Then an EAGLE-3 head is read, too.
    type: bool
    default: false
  cache_dir:
    description: Directory of the cache. A damaged entry is read anew.
    type: path
    default: /var/lib/mixed_gpu/gguf_cache
  host_python:
    description: As for the other modules of models. The header is read with the standard library, so it is not needed.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
seealso:
  - module: homelab.mixed_gpu.model_file
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
    - V(false) only in check mode, when the file is not there yet.
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
    shards:
      description: All its files, in order.
      type: list
      elements: str
    size_bytes:
      description: Size of all files.
      type: int
    name:
      description: The model's name.
      type: str
      sample: Llama 3.3 70B Instruct
    architecture:
      description: llama.cpp's name of the architecture.
      type: str
      sample: llama
    file_type:
      description: Name of the quantisation, or V(none).
      type: str
      sample: Q4_K_M
    block_count:
      description: Number of repeating blocks.
      type: int
    block_bytes:
      description: Bytes of weights, per repeating block.
      type: list
      elements: int
    block_read_bytes:
      description: Bytes of weights that one token reads, per repeating block; of experts only those in use.
      type: list
      elements: int
    block_ffn_bytes:
      description:
        - Bytes of all experts per repeating block, by their part, V(up), V(gate), V(down), or V(gate_up) for both.
        - Of a model without experts those of its feed-forward layers. They are what may stay in RAM.
      type: dict
    block_weights:
      description: Weights that one token is multiplied with, per repeating block; of experts only those in use.
      type: list
      elements: int
    output_weights:
      description: Weights of the output matrix.
      type: int
    output_bytes:
      description:
        - Bytes of the output slot.
        - With tied embeddings the token embedding counts here once more, as llama.cpp loads it twice.
      type: int
    token_embedding_bytes:
      description: Bytes that stay in host memory.
      type: int
    embedding_length:
      description: Width of the model.
      type: int
    vocabulary_size:
      description: Number of tokens.
      type: int
    feed_forward_length:
      description: Width of the feed-forward layer; the largest where it differs between blocks.
      type: int
    expert_feed_forward_length:
      description: Width of one expert, or 0.
      type: int
    expert_count:
      description: Number of experts, or 0.
      type: int
    expert_used_count:
      description: Number of experts that a token uses, or 0.
      type: int
    head_count:
      description: Number of attention heads; the largest where it differs between blocks.
      type: int
    head_count_kv:
      description: Number of attention heads that have a K and a V of their own; the largest where it differs.
      type: int
    key_length:
      description: Elements of one head's K.
      type: int
    context_length_train:
      description: Tokens of context that the model was trained for.
      type: int
    kv_k_elements_per_token:
      description: Elements of K per token, per block.
      type: list
      elements: int
    kv_v_elements_per_token:
      description: Elements of V per token, per block.
      type: list
      elements: int
    block_sequence_bytes:
      description: Bytes per repeating block that each sequence keeps whatever its length is; 0 for attention.
      type: list
      elements: int
    window_tokens:
      description: Tokens that a block's attention looks back on, per block; 0 where that is the whole context.
      type: list
      elements: int
    estimated:
      description: Whether memory is an estimate, because architecture or tensor types are not modelled here.
      type: bool
    notes:
      description: What was not understood, one sentence each. Empty means that everything was counted.
      type: list
      elements: str
"""

import contextlib
import hashlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_file, gguf_model


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "draft": {"type": "bool", "default": False},
            "cache_dir": {"type": "path", "default": "/var/lib/mixed_gpu/gguf_cache"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    result: dict[str, t.Any] = {"changed": False, "available": True, "reason": None, "cached": False, "model": None}
    try:
        path = os.path.abspath(module.params["path"])
        first = gguf_file.shard_paths(path)[0]
        if module.check_mode and not os.path.exists(first):
            module.exit_json(**{**result, "available": False, "reason": f"{first} does not exist yet."})
        files = gguf_model.files_of(path)
        key = {"description": gguf_file.DESCRIPTION_VERSION, "files": [list(file) for file in files]}
        key["draft"] = module.params["draft"]
        name = hashlib.sha256(first.encode()).hexdigest()
        cache = os.path.join(module.params["cache_dir"], f"{name}.json")
        cached = None
        with contextlib.suppress(OSError, ValueError):       # a cache: what cannot be read is made again
            cached = json_file.from_text(json_file.read_text(cache) or "null")
        if isinstance(cached, dict) and cached.get("key") == key and isinstance(cached.get("model"), dict):
            module.exit_json(**{**result, "cached": True, "model": cached["model"]})
        model = gguf_model.read(files, module.params["draft"])
    except UserError as exc:
        module.fail_json(msg=str(exc))
    if not module.check_mode:
        with contextlib.suppress(OSError):                   # without a cache the next call is slower, nothing else
            text = json_file.to_text({"key": key, "model": model})
            json_file.write_text(cache, text, 0o644, module.atomic_move)
    module.exit_json(**{**result, "model": model})


if __name__ == "__main__":
    main()
