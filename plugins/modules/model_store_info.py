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
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
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

import glob
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_files
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record


def disk_bytes(directory: str) -> dict[str, int]:
    """Return the bytes that a directory occupies, unfinished and set-aside files also apart; hard links count once."""
    found = {"disk_bytes": 0, "unfinished_bytes": 0, "set_aside_bytes": 0}
    seen = set()
    for root, _directories, names in os.walk(directory):
        for name in names:
            status = os.lstat(os.path.join(root, name))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            used = status.st_blocks * 512
            found["disk_bytes"] += used
            if name.endswith(".part"):
                found["unfinished_bytes"] += used
            elif name.endswith(".corrupt"):
                found["set_aside_bytes"] += used
    return found


def served_path(module: AnsibleModule) -> str | None:
    """Return the path of the active deployment's model, or None."""
    text = json_file.read_text(module.params["fact_file"])
    if text is None:
        return None
    try:
        record = fact_record.parse(text, module.params["fact_file"])
    except fact_record.RecordError as exc:
        module.fail_json(msg=f"It is not known which model is served: {exc}.")
    return record["models"].get(record["active"], {}).get("model", {}).get("path")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/srv/models"},
            "manifest_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "fact_file": {"type": "path", "default": "/etc/ansible/facts.d/mixed_gpu.fact"},
        },
        supports_check_mode=True,
    )
    path = os.path.abspath(module.params["path"])
    served = served_path(module)
    manifests: dict[str, list[str]] = {}
    for file in sorted(glob.glob(os.path.join(glob.escape(module.params["manifest_dir"]), "*.json"))):
        of = (model_files.read_manifest(file, module.warn) or {}).get("path")
        if isinstance(of, str) and of.startswith(f"{path}/"):
            manifests.setdefault(of[len(path) + 1 :].split("/", 1)[0], []).append(file)
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_dir()) if os.path.isdir(path) else []
        directories: list[dict[str, t.Any]] = [
            {
                "name": name, "path": os.path.join(path, name), **disk_bytes(os.path.join(path, name)),
                "served": f"{served or ''}/".startswith(f"{path}/{name}/"), "manifests": manifests.get(name, []),
            }
            for name in names
        ]  # fmt: skip
        directory, free_bytes = model_files.free_space(os.path.join(path, "x"))
        status = os.statvfs(directory)
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename or path} cannot be looked at: {exc.strerror or exc}.")
    module.exit_json(
        changed=False, path=path, filesystem=model_files.filesystem(os.path.join(path, "x")), free_bytes=free_bytes,
        total_bytes=status.f_blocks * status.f_frsize, directories=directories,
    )  # fmt: skip


if __name__ == "__main__":
    main()
