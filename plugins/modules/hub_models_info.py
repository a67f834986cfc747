#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: hub_models_info
short_description: Read what the GGUF models of a hub repository weigh, without a download
version_added: 1.0.0
description:
  - Lists the models of a repository of the Hugging Face hub, one per quant, and reads the header of each by ranges of
    bytes.
  - The vocabulary, which is most of a header, is read once for all quants. A file of 40 GB costs some MB, each further
    quant less than one.
  - The shards of a split model are counted together.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
options:
  repo:
    description: The repository, as C(owner/name).
    type: str
    required: true
  revision:
    description: Branch, tag or commit.
    type: str
    default: main
  quant:
    description: Name of the only quantisation to read, such as V(Q4_K_M), in any case.
    type: str
  endpoint:
    description:
      - Address of the hub, or of a mirror of it.
      - What is not set is the environment variable E(HF_ENDPOINT), or V(https://huggingface.co).
    type: str
  token_file:
    description:
      - File with an access token, for gated and private repositories. Only its owner may read it.
      - A file that is missing counts as no token.
    type: path
  attempts:
    description: How often to ask while the hub does not answer, or answers with a passing fault.
    type: int
    default: 3
  retry_seconds:
    description: Pause before the second attempt. It doubles with every further one.
    type: float
    default: 1
  timeout_seconds:
    description: How long the hub may stay silent.
    type: int
    default: 20
  host_python:
    description: Python interpreter with the C(huggingface_hub) library, used when the module's own has no such library.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - huggingface_hub >= 1.0
seealso:
  - module: homelab.mixed_gpu.gguf_info
  - module: homelab.mixed_gpu.hub_files
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Read the headers of all quants
  homelab.mixed_gpu.hub_models_info:
    repo: bartowski/Llama-3.3-70B-Instruct-GGUF
  register: example_models

- name: Show the quants
  ansible.builtin.debug:
    msg: "{{ example_models.models | map(attribute='quant') }}"
"""

RETURN = r"""
commit:
  description: The commit that the revision names now.
  returned: success
  type: str
endpoint:
  description: The hub that answered.
  returned: success
  type: str
read_bytes:
  description: How many bytes of files were read.
  returned: success
  type: int
models:
  description: The models of the repository, the largest first.
  returned: success
  type: list
  elements: dict
  contains:
    quant:
      description: Name of the quantisation, or of the whole file where that does not tell models apart.
      type: str
    files:
      description: The model's files, in order.
      type: list
      elements: str
    size_bytes:
      description: Size of all its files.
      type: int
    model:
      description:
        - What the header says, as RV(homelab.mixed_gpu.gguf_info#module:model).
        - V(none) where there is a problem.
      type: dict
    problem:
      description: Why it is no model that can be planned for, in one sentence, or V(none).
      type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.hub_models import HubModels


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "repo": {"type": "str", "required": True},
            "revision": {"type": "str", "default": "main"},
            "quant": {"type": "str"},
            "endpoint": {"type": "str"},
            "token_file": {"type": "path", "no_log": False},
            "attempts": {"type": "int", "default": 3},
            "retry_seconds": {"type": "float", "default": 1},
            "timeout_seconds": {"type": "int", "default": 20},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    failure = host_python.enter(["huggingface_hub"], module.params["host_python"])
    if failure:
        module.fail_json(
            msg=f"{module.params['repo']} cannot be looked up without the Python library huggingface_hub: install it "
            "for the Python that runs ansible-playbook (python -m pip install huggingface_hub), or, on a host, run the "
            "homelab.mixed_gpu.host_python role."
        )
    try:
        result = HubModels(module, module.params).models()
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
