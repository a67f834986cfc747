# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import verdict

#: Facts that the roles of the components set, by the component.
_PLANNED: t.Final = {"driver": "nvidia_driver_planned", "llama_cpp": "llama_cpp_planned"}


class ActionModule(ActionBase):
    """Collects what is known of the hosts that are upgraded together; see the module of this name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        variables = task_vars or {}
        result = super().run(tmp, variables)
        args = dict(self._task.args)
        hosts = list(args.get("hosts") or [variables["inventory_hostname"]])
        args["found"] = {name: _found(variables["hostvars"][name]) for name in hosts}
        args["lost"] = [name for name in hosts if name not in variables["ansible_play_hosts"]]
        found = self._execute_module("homelab.mixed_gpu.upgrade_record", args, task_vars=variables)
        return {**result, **found}


def _found(facts: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return what the tasks of this run have found on a host."""
    return {
        "planned": {component: facts[name] for component, name in _PLANNED.items() if name in facts},
        "failure": verdict.failure_text(facts.get("__upgrade_failure", "")),
        "reboot_required": facts.get("nvidia_driver_reboot_required", False),
        "lends_at": facts.get("llama_rpc_address", ""),
        "copy": facts.get("llama_cpp_copy_planned", {}),
    }
