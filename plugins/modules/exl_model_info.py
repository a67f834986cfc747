#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: exl_model_info
short_description: Tell what an EXL2 or EXL3 model weighs, block by block
version_added: 0.1.0
description:
  - Reads C(config.json) and the headers of the safetensors files in a folder, and returns the same description of a
    model as M(homelab.mixed_gpu.gguf_info). It has the bytes of each block's attention beside that, because ExLlamaV2
    places a block in two halves.
  - Blocks need not be alike. What each attends to and keeps is read from C(config.json), with the defaults of its class
    where it names none, and compared with the tensors.
  - Models in float16 are read too. What is not understood is said in C(model.notes), never miscounted in silence.
  - Nothing is cached, since headers are read in milliseconds.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  path:
    description: The folder of the model.
    type: path
    required: true
seealso:
  - module: homelab.mixed_gpu.gguf_info
"""

EXAMPLES = r"""
- name: Read the model's headers
  homelab.mixed_gpu.exl_model_info:
    path: /srv/models/example-exl2
  register: example_exl2
"""

RETURN = r"""
available:
  description: Whether the model could be read. V(false) only in check mode, when the folder is not there yet.
  returned: success
  type: bool
reason:
  description: Why RV(available=false), in one sentence, or V(none).
  returned: success
  type: str
model:
  description: As RV(homelab.mixed_gpu.gguf_info#module:model), with C(block_attention_bytes), and C(block_state_bytes)
    where blocks keep a state or a window instead of a cache. V(none) when RV(available=false).
  returned: success
  type: dict
headers_sha256:
  description:
    - SHA-256 of the names and sizes of the files, their headers and C(config.json).
    - Another quantisation or another model has another one; the weights themselves are not read.
  returned: when available
  type: str
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import exl_folder


def main() -> None:
    module = AnsibleModule(
        argument_spec={"path": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    folder = os.path.abspath(module.params["path"])
    result: dict[str, t.Any] = {"changed": False, "available": True, "reason": None, "model": None}
    if module.check_mode and not os.path.exists(folder):
        module.exit_json(**{**result, "available": False, "reason": f"{folder} does not exist yet."})
    try:
        model, digest = exl_folder.read(folder)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**{**result, "model": model, "headers_sha256": digest})


if __name__ == "__main__":
    main()
