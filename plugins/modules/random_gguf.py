#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: random_gguf
short_description: Make a GGUF model with random weights
version_added: 0.1.0
description:
  - Writes a model that llama.cpp loads and generates from, to try a host without a download. It is of the llama
    architecture, or of qwen3moe with O(expert_count).
  - What it says is noise; what it costs is that of a real model of the same shape.
  - The same options give the same file, byte for byte.
  - A file at O(path) that was not made by this module is never replaced.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._host_python
  - homelab.mixed_gpu._model_files
options:
  path:
    description: The file to write. It appears whole or not at all.
    type: path
    required: true
  blocks:
    description: Number of repeating blocks.
    type: int
    default: 16
  embedding_length:
    description: Width of the model. A multiple of 32, and of twice O(head_count).
    type: int
    default: 256
  feed_forward_length:
    description: Width of the feed-forward layers, or of each expert. A multiple of 32.
    type: int
    default: 512
  head_count:
    description: Number of attention heads.
    type: int
    default: 8
  head_count_kv:
    description: Number of key and value heads. A divisor of O(head_count).
    type: int
    default: 4
  vocabulary_size:
    description: Number of tokens. Special tokens, bytes and printable ASCII take 354; the rest is unused.
    type: int
    default: 512
  context_length:
    description: Tokens of context that the header declares.
    type: int
    default: 4096
  type:
    description: Type of the weights.
    type: str
    choices: [f16, q8_0, q4_0]
    default: f16
  seed:
    description: Seed of the random weights.
    type: int
    default: 0
  distinct_blocks:
    description:
      - Whether every block has weights of its own.
      - Otherwise all blocks repeat the first one, which is quicker to write.
    type: bool
    default: false
  expert_count:
    description: Number of experts of every block; V(0) for a model without.
    type: int
    default: 0
  expert_used_count:
    description: Number of experts that a token uses.
    type: int
    default: 0
  agreement:
    description:
      - For speculation without real weights. Makes a model whose next token is a known function of the last one, at the
        full cost of its shape, and as many texts as the list has elements.
      - V(1) everywhere makes the target. A draft has the share of each text's tokens that it predicts as the target
        does; O(seed) chooses which.
      - Target and draft need the same O(vocabulary_size). What it says is words of three letters.
    type: list
    elements: float
    default: []
requirements:
  - gguf >= 0.10 (the P(homelab.mixed_gpu.host_python#role) role installs it)
seealso:
  - module: homelab.mixed_gpu.gguf_info
"""

EXAMPLES = r"""
- name: Make a model of about 400 MB
  homelab.mixed_gpu.random_gguf:
    path: /var/lib/llm_models/sandbox/sandbox.gguf
    blocks: 32
    embedding_length: 1024
    feed_forward_length: 2816
    type: q8_0
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
present:
  description: Whether the file exists now, as asked for.
  returned: success
  type: bool
sha256:
  description: SHA-256 of the file. V(none) in check mode when it would be written.
  returned: success
  type: str
size_bytes:
  description: Size of the file. V(none) in check mode when it would be written.
  returned: success
  type: int
missing_bytes:
  description: Bytes of disk that had to be free before the file was written, V(0) when nothing was to be done.
  returned: success
  type: int
free_bytes:
  description: Bytes that were free on the file's filesystem.
  returned: success
  type: int
filesystem:
  description: Where the file's filesystem is mounted.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.random_model import ARGUMENTS, RandomModel


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            **ARGUMENTS,
            "manifest_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "trusted_owners": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    try:
        model = RandomModel(module, module.params)
        result = model.look()
        if result["changed"] and not module.check_mode:
            result = model.write(result)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
