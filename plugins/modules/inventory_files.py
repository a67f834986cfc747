#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: inventory_files
short_description: Write the first inventory of a box
version_added: 0.1.0
description:
  - Writes C(hosts.yml), C(group_vars/mixed_gpu/main.yml) and C(group_vars/mixed_gpu/vault.yml) below O(directory), with
    comments, from what the kernel of the box says and what its owner wishes.
  - A file that is there is never changed.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
options:
  directory:
    description: Directory of the inventory on the controller.
    type: path
    required: true
  host:
    description: What M(homelab.mixed_gpu.host_info) found on the box.
    type: dict
    required: true
  name:
    description: Name of the box in the inventory.
    type: str
    required: true
  address:
    description: Address of the box. Empty means that Ansible runs on the box itself.
    type: str
    default: ""
  user:
    description: User that Ansible logs in as.
    type: str
    default: ""
  model:
    description: Id of the catalogue. Empty means the largest one that fits the cards.
    type: str
    default: ""
  context_size:
    description: Tokens that a conversation may have.
    type: int
    default: 8192
  networks:
    description: Networks that may ask the server. An empty list means the box alone.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Read the box
  homelab.mixed_gpu.host_info:
  register: found

- name: Write its inventory
  homelab.mixed_gpu.inventory_files:
    directory: inventories/llm-box
    host: "{{ found.host }}"
    name: llm-box
  delegate_to: localhost
"""

RETURN = r"""
lines:
  description: What to do next, one line each.
  type: list
  elements: str
  returned: always
written:
  description: Files that were written, or would be in check mode, below O(directory).
  type: list
  elements: str
  returned: always
kept:
  description: Files that were there and stay as they are.
  type: list
  elements: str
  returned: always
"""

import pathlib
import re

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import first_inventory

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def write(root: pathlib.Path, texts: dict[str, str]) -> None:
    """Write each text to its path below the root; FileExistsError for a file that came meanwhile."""
    for path, text in texts.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with (root / path).open("x", encoding="utf-8") as handle:
            handle.write(text)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "directory": {"type": "path", "required": True},
            "host": {"type": "dict", "required": True},
            "name": {"type": "str", "required": True},
            "address": {"type": "str", "default": ""},
            "user": {"type": "str", "default": ""},
            "model": {"type": "str", "default": ""},
            "context_size": {"type": "int", "default": 8192},
            "networks": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not NAME.fullmatch(params["name"]):
        module.fail_json(
            msg=f"The name of the box is {params['name']!r}; set box_name to one of letters, digits, dots and dashes."
        )
    wishes = first_inventory.Wishes(
        params["name"], params["address"], params["user"], params["model"], params["context_size"],
        tuple(params["networks"]),
    )  # fmt: skip
    try:
        texts = first_inventory.files(params["host"], wishes)
    except UserError as error:
        module.fail_json(msg=str(error))
    root = pathlib.Path(params["directory"])
    new = {path: text for path, text in texts.items() if not (root / path).exists()}
    kept = sorted(set(texts) - set(new))
    try:
        write(root, {} if module.check_mode else new)
    except OSError as error:
        module.fail_json(msg=f"{error.filename} cannot be written: {error.strerror}.")
    module.exit_json(
        changed=bool(new), written=sorted(new), kept=kept,
        lines=first_inventory.next_steps(params["directory"], wishes, kept),
        diff=[{"before": "", "after": text, "after_header": str(root / path)} for path, text in sorted(new.items())],
    )  # fmt: skip


if __name__ == "__main__":
    main()
