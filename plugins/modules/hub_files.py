#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: hub_files
short_description: Resolve a model of the Hugging Face hub to files with size and hash, once
version_added: 0.1.0
description:
  - Asks the hub which files a model is, and records the answer on the host, so that a later run means the same bytes.
    M(homelab.mixed_gpu.model_file) fetches them.
  - A branch or tag is resolved to its commit once; that commit is used until O(update).
  - A recorded answer is used without asking the hub.
  - Files in LFS have a SHA-256; of the others the hub knows the SHA-1 of their git blob.
  - Where O(revision) is a commit, O(files) one name, and O(sha256) is given, everything is known and nothing is asked.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._hub
attributes:
  check_mode:
    details: In check mode the hub is asked, too, and nothing is recorded.
options:
  files:
    description:
      - Names in the repository, or shell patterns over them. One shard of a split GGUF model stands for all of them.
      - Files that are not GGUF make a folder, such as an EXL2 or EXL3 model.
      - Without O(files) and O(quant) it is the only GGUF model of the repository, or the whole repository as a folder
        where it has none.
      - Patterns, and a whole repository, stand for what engines read, which is GGUF, safetensors, configuration and
        vocabulary. Pickled weights and programs have to be named.
      - Raw byte parts such as C(m.gguf.part1of2) are refused.
    type: list
    elements: str
    default: []
  sha256:
    description: SHA-256 that the model's only file must have.
    type: str
  size_bytes:
    description: Size of the model's only file; read only where nothing is asked.
    type: int
  update:
    description:
      - Whether to ask the hub anew, for what a branch names now. When it cannot be reached, the recorded answer is
        used, with a warning.
    type: bool
    default: false
  ask:
    description: Whether the hub may be asked. Without, RV(available=false) when nothing is recorded.
    type: bool
    default: true
  record_dir:
    description: Directory of the recorded answers.
    type: path
    default: /var/lib/mixed_gpu/models/hub
  source_dir:
    description: Directory that may hold recorded answers of another host, at its top.
    type: path
requirements:
  - huggingface_hub >= 1.0, when the hub is asked (the P(homelab.mixed_gpu.host_python#role) role installs it)
seealso:
  - module: homelab.mixed_gpu.model_file
"""

EXAMPLES = r"""
- name: Ask which files are the model
  homelab.mixed_gpu.hub_files:
    repo: bartowski/Llama-3.3-70B-Instruct-GGUF
    quant: Q4_K_M
  register: example_answer

- name: Fetch them
  homelab.mixed_gpu.model_file:
    path: "/srv/models/example/{{ item.name | basename }}"
    url: "{{ item.url }}"
    sha256: "{{ item.sha256 or omit }}"
    git_sha1: "{{ item.git_sha1 or omit }}"
    size_bytes: "{{ item.size_bytes }}"
  loop: "{{ example_answer.files }}"
"""

RETURN = r"""
available:
  description: Whether the files are known. V(false) where the hub must not be asked, or cannot be yet in check mode.
  returned: success
  type: bool
reason:
  description: Why the files are not known; V(none) when they are.
  returned: success
  type: str
source:
  description: Where the answer comes from, V(given), V(record), V(source_dir) or V(hub).
  returned: when available
  type: str
commit:
  description: The commit that the revision was resolved to.
  returned: when available
  type: str
format:
  description: V(gguf), one model in one file or in shards, or V(folder).
  returned: when available
  type: str
endpoint:
  description: The hub that serves the files.
  returned: success
  type: str
files:
  description:
    - In order, the files with C(name), C(size_bytes), C(sha256), C(git_sha1) (one of the hashes is V(none)) and C(url).
  returned: when available
  type: list
  elements: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.hub_lookup import ARGUMENTS, HubLookup


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **ARGUMENTS,
            "files": {"type": "list", "elements": "str", "default": []},
            "sha256": {"type": "str"},
            "size_bytes": {"type": "int"},
            "update": {"type": "bool", "default": False},
            "ask": {"type": "bool", "default": True},
            "record_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models/hub"},
            "source_dir": {"type": "path"},
        },
        supports_check_mode=True,
    )
    try:
        if module.params["sha256"]:
            module.params["sha256"] = transfer.check_sha256(module.params["sha256"], module.params["repo"])
        result = HubLookup(module, module.params).answer()
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or module.params['record_dir']} cannot be used: {exc.strerror or exc}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
