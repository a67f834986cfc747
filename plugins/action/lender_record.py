# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import lent_devices

#: Facts that the roles llama_rpc and llama_cpp set on a lender.
_FACTS: t.Final = ("llama_rpc_address", "llama_rpc_servers", "llama_cpp_installed")
#: Those of them that a box needs.
_OF_BOX: t.Final = ("llama_cpp_installed",)


class ActionModule(ActionBase):
    """Collects what lenders lend, and has it recorded on their box; see the module of this name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        variables = task_vars or {}
        result = super().run(tmp, variables)
        args = dict(self._task.args)
        box = str(variables["inventory_hostname"])
        _check_prepared(box, variables, _OF_BOX)
        lent = {}
        for name in args.get("lenders") or []:
            found = variables["hostvars"][name]
            _check_prepared(name, found, _FACTS)
            gpus = found["ansible_facts"].get("mixed_gpu_gpus", {"gpus": []})
            address, servers, installed = (found[fact] for fact in _FACTS)
            lent[name] = lent_devices.lent(address, servers, gpus, installed)
        module = {"lent": lent, **{key: value for key, value in args.items() if key != "lenders"}}
        module.update(box=box, installed=variables["llama_cpp_installed"])
        found = self._execute_module("homelab.mixed_gpu.lender_record", module, task_vars=variables)
        return {**result, **found}


def _check_prepared(name: str, found: t.Mapping[str, t.Any], facts: t.Iterable[str]) -> None:
    """Fail where roles that prepare a host did not run on it, which --tags may leave out."""
    missing = [fact for fact in facts if fact not in found]
    if missing:
        raise AnsibleActionFail(
            f"{name} has not been prepared in this run ({', '.join(missing)} is unknown): run homelab.mixed_gpu.site"
            " without --tags."
        )
