# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import lender_group

_DEFAULTS: t.Final = pathlib.Path(__file__).parents[2] / "roles/llama_cpp/defaults/main.yml"


class ActionModule(ActionBase):
    """Looks at the hosts of a group of lenders, and judges them; see the module of this name."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._vars = task_vars or {}
        result = super().run(tmp, self._vars)
        names = {"type": "list", "elements": "str", "required": True}
        together = {"type": "bool", "default": False}
        spec = {"lenders": names, "boxes": names, "registered": {"type": "str"}, "together": together}
        args = self.validate_argument_spec(argument_spec=spec)[1]
        own = str(self._vars["inventory_hostname"])
        lenders, boxes = (self._hosts(args[kind]) for kind in ("lenders", "boxes"))
        defaults = yaml_load(_DEFAULTS.read_text(encoding="utf-8"))
        if args["registered"] is None:
            self._judge(own, lender_group.problems_of_inventory(lenders, boxes, defaults))
            wanted = {"routes_to": lender_group.routes(own, lenders, boxes)}
            found = self._execute_module("homelab.mixed_gpu.network_info", wanted, task_vars=self._vars)
            return {**result, **found}
        hosts = self._vars["hostvars"]
        looks = {name: hosts[name].get(args["registered"]) for name in self._vars["ansible_play_hosts"]}
        run = self._vars["ansible_play_hosts_all"]
        self._judge(own, lender_group.problems_of_hosts(lenders, boxes, looks, run, args["together"]))
        found = {"changed": False, **lender_group.member(own, lenders, boxes, looks)}
        batches = lender_group.batches(lenders, boxes, looks)
        found["order"] = [name for batch in batches for name in batch]
        found["serial"] = [len(batch) for batch in batches]
        found["variables"] = {}
        if own in lenders:
            pins = lender_group.pins_of(own, lenders, boxes, defaults)
            found["variables"] = lender_group.variables_of(pins, found["clients"])
        return {**result, **found}

    def _judge(self, own: str, problems: dict[str, str]) -> None:
        if own in problems:
            raise AnsibleActionFail(problems[own])

    def _hosts(self, names: t.Iterable[str]) -> dict[str, dict[str, t.Any]]:
        """Return the variables of hosts that a group is judged by."""
        return {name: self._values(self._vars["hostvars"][name]) for name in names}

    def _values(self, variables: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        known = {}
        for name in lender_group.VARIABLES:
            try:
                if name in variables:
                    known[name] = variables[name]
            except AnsibleError:
                continue  # what a later role sets
        return known
