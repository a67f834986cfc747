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
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._hub
requirements:
  - huggingface_hub >= 1.0
seealso:
  - module: homelab.mixed_gpu.gguf_info
  - module: homelab.mixed_gpu.hub_files
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
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_lookup
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.hub_models import HubModels


def main() -> None:
    module = AnsibleModule(
        argument_spec=hub_lookup.ARGUMENTS,
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
