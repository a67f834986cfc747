#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: unattended_revalidation
short_description: Decide whether an unattended revalidation is due, and record how it ended
version_added: 0.1.0
description:
  - Owns C(state.json) in O(state_dir), which says when the last unattended revalidation ended, and how.
  - Tells the verdict, or that the host was in use, to the journal in one line, and writes it as a metric.
  - The journal and the metric are logs, so writing to them counts as no change.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
options:
  action:
    description:
      - V(due) only reads. V(skip) notes that the host was in use, V(finish) that a revalidation ended.
    type: str
    choices: [due, skip, finish]
    required: true
  host:
    description: Name of the host in the journal and in the metric.
    type: str
    required: true
  every_hours:
    description:
      - Before so many hours are over since the last revalidation, V(due) means that another NVIDIA driver is loaded.
    type: float
    default: 0
  trigger:
    description: The systemd unit that started this run; empty means a person, for whom it is due in any case.
    type: str
    default: ""
  why:
    description: Who uses the host, for V(skip).
    type: str
  revalidation:
    description: The fact C(revalidate_result) of the role P(homelab.mixed_gpu.revalidate#role), for V(finish).
    type: dict
  metrics_path:
    description: File for the textfile collector of node_exporter. Empty means none.
    type: str
    default: ""
  state_dir:
    description: Directory of the state.
    type: path
    default: /var/lib/mixed_gpu/unattended
"""

EXAMPLES = r"""
- name: Check whether a revalidation is due
  homelab.mixed_gpu.unattended_revalidation:
    action: due
    host: "{{ inventory_hostname }}"
    every_hours: 156
    trigger: "{{ lookup('ansible.builtin.env', 'TRIGGER_UNIT') }}"
  register: example_due
"""

RETURN = r"""
due:
  description: Whether to revalidate now.
  returned: action is due
  type: bool
why:
  description: Why, or why not.
  returned: action is due
  type: str
line:
  description: What the journal was told.
  returned: action is skip or finish
  type: str
"""

import errno
import os
import syslog
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import due, unattended

IDENTIFIER: t.Final = "mixed-gpu-revalidate"


def tell(priority: int, text: str) -> None:
    """Write a line to the journal."""
    syslog.openlog(IDENTIFIER)
    syslog.syslog(priority | syslog.LOG_DAEMON, text)
    syslog.closelog()


def check(params: t.Mapping[str, t.Any], state: unattended.State | None, now: str) -> dict[str, t.Any]:
    """Return whether to revalidate now."""
    if not params["trigger"]:
        return {"due": True, "why": "it was started by hand"}
    is_due, why = unattended.is_due(state, due.of_host(), params["every_hours"], now)
    return {"due": is_due, "why": why}


def record(module: AnsibleModule, state: unattended.State | None, now: str) -> dict[str, t.Any]:
    """Record a skipped or finished revalidation."""
    params = module.params
    if params["action"] == "skip":
        priority, line = unattended.skipped_line(params["host"], params["why"])
    else:
        state = unattended.new_state(unattended.outcome(params["revalidation"]), now)
        priority, line = unattended.line(params["host"], state["outcome"])
    if module.check_mode:
        return {"line": line}
    tell(priority, line)
    if params["action"] == "finish":
        path = os.path.join(params["state_dir"], "state.json")
        json_file.write_text(path, json_file.to_text(state), 0o644, module.atomic_move)
    if params["metrics_path"]:
        write_metrics(module, unattended.metrics(params["host"], state, due.of_host()["needed"], now))
    return {"line": line}


def write_metrics(module: AnsibleModule, text: str) -> None:
    """Write the metric; one that cannot be written is told, and ends nothing."""
    path = module.params["metrics_path"]
    try:
        if not os.path.isdir(os.path.dirname(path)):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), os.path.dirname(path))
        json_file.write_text(path, text, 0o644, module.atomic_move)
    except OSError as exc:
        why = f"the metric {path} cannot be written ({exc.strerror}): make its directory"
        tell(syslog.LOG_ERR, why)
        module.warn(f"{why[0].upper()}{why[1:]}.")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "action": {"type": "str", "choices": ["due", "skip", "finish"], "required": True},
            "host": {"type": "str", "required": True},
            "every_hours": {"type": "float", "default": 0},
            "trigger": {"type": "str", "default": ""},
            "why": {"type": "str"},
            "revalidation": {"type": "dict"},
            "metrics_path": {"type": "str", "default": ""},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/unattended"},
        },
        required_if=[("action", "skip", ("why",)), ("action", "finish", ("revalidation",))],
        supports_check_mode=True,
    )
    now = json_file.utc_now()
    try:
        state = unattended.parse_state(json_file.read_text(os.path.join(module.params["state_dir"], "state.json")))
        if module.params["action"] == "due":
            module.exit_json(changed=False, **check(module.params, state, now))
        module.exit_json(changed=False, **record(module, state, now))
    except OSError as exc:
        place = exc.filename or module.params["state_dir"]
        module.fail_json(
            msg=f"{place} cannot be read or written ({exc.strerror}): run as root, and make its directory."
        )


if __name__ == "__main__":
    main()
