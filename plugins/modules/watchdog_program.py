#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: watchdog_program
short_description: Write the program of the watchdog
version_added: 0.1.0
description:
  - Writes the files of the watchdog, which come with this module, into a directory. A file that is as it should be is
    left alone.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
options:
  directory:
    description: Directory of the program. It is made where it is missing, with those above it.
    type: path
    required: true
"""

EXAMPLES = r"""
- name: Write the program of the watchdog
  homelab.mixed_gpu.watchdog_program:
    directory: /opt/mixed_gpu/lib/mixed_gpu_watchdog
"""

RETURN = r"""
written:
  description: Names of the files that were written, or would be in check mode.
  returned: success
  type: list
  elements: str
"""

import inspect
import os
import types
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import (
    failover,
    host,
    lenders,
    notify,
    progress,
    restarts,
    settings,
    stall,
    state,
    watch,
)

#: All files of the room: what is imported here comes with the module.
FILES: t.Final[tuple[types.ModuleType, ...]] = (
    failover, host, lenders, notify, progress, restarts, settings, stall, state, watch,
)  # fmt: skip
MODE: t.Final = 0o644


def texts() -> dict[str, str]:
    """Return the text of each file by its name."""
    return {f"{file.__name__.rpartition('.')[2]}.py": inspect.getsource(file) for file in FILES}


def write(module: AnsibleModule, directory: str) -> tuple[bool, list[str]]:
    """Write what differs; return whether anything changed, and the names of the written files. OSError as it comes."""
    written, changed = [], False
    for name, text in texts().items():
        path = os.path.join(directory, name)
        if json_file.read_text(path) != text:
            written.append(name)
            if not module.check_mode:
                json_file.write_text(path, text, MODE, module.atomic_move)
        if os.path.exists(path):
            changed = module.set_mode_if_different(path, MODE, changed)
    return changed or bool(written), written


def main() -> None:
    module = AnsibleModule(
        argument_spec={"directory": {"type": "path", "required": True}},
        supports_check_mode=True,
    )
    try:
        changed, written = write(module, module.params["directory"])
    except OSError as exc:
        module.fail_json(msg=f"The program of the watchdog cannot be written to {module.params['directory']}: {exc}.")
    module.exit_json(changed=changed, written=written)


if __name__ == "__main__":
    main()
