#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: model_store_info
short_description: Tell what the models on a host use of its disk
version_added: 0.1.0
description:
  - Adds up each directory below that of the models, unfinished downloads and what was set aside apart.
  - Reads no file but the manifests.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  path:
    description: Directory of the models, with one directory per model.
    type: path
    default: /srv/models
  manifest_dir:
    description: Directory of the manifests.
    type: path
    default: /var/lib/mixed_gpu/models
  fact_file:
    description: The host's recorded splits, which tell which model is served.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
seealso:
  - module: homelab.mixed_gpu.model_file
"""

EXAMPLES = r"""
- name: Look what the models use
  homelab.mixed_gpu.model_store_info:
  register: example_store

- name: Show it
  ansible.builtin.debug:
    msg: "{{ example_store.directories | map(attribute='name') }}"
"""

RETURN = r"""
path:
  description: The directory.
  returned: success
  type: str
filesystem:
  description: Where its filesystem is mounted.
  returned: success
  type: str
free_bytes:
  description: Bytes that are free there.
  returned: success
  type: int
total_bytes:
  description: Size of the filesystem in bytes.
  returned: success
  type: int
directories:
  description: One dict per directory, by name.
  returned: success
  type: list
  elements: dict
  contains:
    name:
      description: Name of the directory, which is the id of a model.
      type: str
    path:
      description: The directory.
      type: str
    disk_bytes:
      description: Bytes that it occupies, with what follows.
      type: int
    unfinished_bytes:
      description: Bytes of unfinished downloads.
      type: int
    set_aside_bytes:
      description: Bytes of files that were found to be wrong and kept.
      type: int
    served:
      description: Whether the active deployment's model is in it.
      type: bool
    manifests:
      description: Manifests of files in it, whether the files are there or not.
      type: list
      elements: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/srv/models"},
            "manifest_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "fact_file": {"type": "path", "default": fact_record.PATH},
        },
        supports_check_mode=True,
    )
    path = os.path.abspath(module.params["path"])
    try:
        served = fact_record.served_path(host_record.read(module.params["fact_file"]))
        found = store.look(path, module.params["manifest_dir"], served, module.warn)
    except UserError as exc:
        module.fail_json(msg=f"It is not known which model is served: {exc}.")
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or path} cannot be read: {exc.strerror or exc}.")
    module.exit_json(changed=False, **found)


if __name__ == "__main__":
    main()
