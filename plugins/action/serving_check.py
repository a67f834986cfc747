# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import re
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleError
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import serving_checks

_ROLES: t.Final = pathlib.Path(__file__).parents[2] / "roles"
_DEFAULT: t.Final = re.compile(r"^([a-z][a-z0-9_]*):", re.MULTILINE)


def names() -> list[str]:
    """Return the names of the variables of all roles."""
    files = sorted(_ROLES.glob("*/defaults/main.yml"))
    return [name for path in files for name in _DEFAULT.findall(path.read_text(encoding="utf-8"))]


class ActionModule(ActionBase):
    """Judges the variables of the roles, on the controller."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        variables = task_vars or {}
        result = super().run(tmp, variables)
        self.validate_argument_spec(argument_spec={})
        found = serving_checks.problems(self.values(variables))
        if found:
            raise AnsibleActionFail(" ".join(found))
        return {**result, "changed": False}

    def values(self, variables: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Return the values of the roles' variables that are known now, without their templates."""
        known = {}
        for name in names():
            if name in variables:
                try:
                    known[name] = self._templar.template(variables[name])
                except AnsibleError:
                    continue  # what a later role sets; it says so itself where that is missing for good
        return known
