# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import re
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import serving_checks, variable_checks

_ROOT: t.Final = pathlib.Path(__file__).parents[2]
_WORD: t.Final = re.compile(r"\b[a-z][a-z0-9]*_[a-z0-9_]+")


def specs() -> dict[str, dict[str, t.Any]]:
    """Return the options of the argument specs of all roles, by role; those of all entry points together."""
    found: dict[str, dict[str, t.Any]] = {}
    for path in sorted(_ROOT.glob("roles/*/meta/argument_specs.yml")):
        entry_points = yaml_load(path.read_text(encoding="utf-8"))["argument_specs"].values()
        found[path.parents[1].name] = {
            name: option for entry in entry_points for name, option in (entry.get("options") or {}).items()
        }
    return found


def words() -> set[str]:
    """Return every name that the tasks of the roles and the playbooks use, results that they register included."""
    files = [*_ROOT.glob("roles/*/tasks/**/*.yml"), *_ROOT.glob("playbooks/**/*.yml")]
    return {word for path in files for word in _WORD.findall(path.read_text(encoding="utf-8"))}


class ActionModule(ActionBase):
    """Judges the variables of the roles, on the controller."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        variables = task_vars or {}
        result = super().run(tmp, variables)
        self.validate_argument_spec(argument_spec={})
        roles = specs()
        names = [name for options in roles.values() for name in options]
        values = self.values(variables, [*names, "mixed_gpu_engine"])
        found = [
            *variable_checks.problems(values, variables, roles, words()),
            *serving_checks.problems(values),
        ]
        if found:
            raise AnsibleActionFail("\n".join(dict.fromkeys(found)))
        return {**result, "changed": False}

    def values(self, variables: t.Mapping[str, t.Any], names: t.Iterable[str]) -> dict[str, t.Any]:
        """Return the values of the roles' variables that are known now, without their templates."""
        known = {}
        for name in names:
            if name in variables:
                try:
                    known[name] = self._templar.template(variables[name])
                except AnsibleError:
                    continue  # what a later role sets; it says so itself where that is missing for good
        return known
