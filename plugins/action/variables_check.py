# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import re
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError, AnsibleUndefinedVariable
from ansible.module_utils.common.yaml import yaml_load
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import (
    serving_checks,
    value_checks,
    variable_checks,
)

_ROOT: t.Final = pathlib.Path(__file__).parents[2]
_WORD: t.Final = re.compile(r"\b[a-z][a-z0-9]*_[a-z0-9_]+")
_UNDEFINED: t.Final = re.compile(r"'([A-Za-z]\w*)' is undefined")


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
        _validated, args = self.validate_argument_spec({"roles": {"type": "list", "elements": "str", "default": []}})
        roles = specs()
        names = [name for role in args["roles"] or roles for name in roles[role]]
        own = words()
        values, partly, missing = self.values(variables, [*names, "mixed_gpu_engine"])
        lacking = variable_checks.undefined(missing, variables, roles, own, self._running_role(variables))
        found = [
            *variable_checks.problems(values, variables, roles, own, partly),
            *lacking.refused,
            *serving_checks.problems(values),
            *value_checks.problems(values),
        ]
        if found:
            raise AnsibleActionFail("\n".join(variable_checks.told_once(found, variables)))
        return {**result, "changed": False, "warnings": lacking.left}

    @staticmethod
    def _running_role(variables: t.Mapping[str, t.Any]) -> str | None:
        """Return the role that runs; None in a playbook of the collection, in which nobody else sets a variable."""
        if pathlib.Path(str(variables.get("playbook_dir", ""))).resolve() == _ROOT.resolve() / "playbooks":
            return None
        return str(variables.get("ansible_role_name", "")).rpartition(".")[2]

    def values(
        self, variables: t.Mapping[str, t.Any], names: t.Iterable[str]
    ) -> tuple[dict[str, t.Any], dict[str, t.Any], dict[str, str]]:
        """Return the values of the roles' variables that are known now, those of which a part is, and what others lack.

        The last is the first variable that a template needs and that is not set, by the name of the roles' variable.
        """
        known: dict[str, t.Any] = {}
        partly: dict[str, t.Any] = {}
        missing: dict[str, str] = {}
        for name in (name for name in names if name in variables):
            unknown: list[str] = []
            value = self._value(variables[name], unknown)
            (partly if unknown else known)[name] = value
            if any(unknown):
                missing[name] = next(filter(None, unknown))
        return known, partly, missing

    def _value(self, value: t.Any, unknown: list[str]) -> t.Any:
        """Return a value with LATER for what is not known yet.

        Adds to C(unknown) the variable that it lacks, empty where something else is missing, such as a file.
        """
        try:
            return self._templar.template(value)
        except AnsibleError as error:
            if isinstance(value, dict):
                return {key: self._value(inner, unknown) for key, inner in value.items()}
            if isinstance(value, list):
                return [self._value(inner, unknown) for inner in value]
            found = _UNDEFINED.search(str(error)) if isinstance(error, AnsibleUndefinedVariable) else None
            unknown.append(found[1] if found else "")
            return variable_checks.LATER
