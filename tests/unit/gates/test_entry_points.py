# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Roles and playbooks include entry points that exist: Ansible notices a missing one only when it gets there."""

from __future__ import annotations

import pathlib
import typing as t

import yaml

ROOT = pathlib.Path(__file__).parents[3]
PREFIX = "homelab.mixed_gpu."


def included(node: t.Any) -> t.Iterator[tuple[str, str]]:
    """Yield (role, entry point) of every inclusion of a role of this collection below a parsed YAML node."""
    if isinstance(node, list):
        for item in node:
            yield from included(item)
    elif isinstance(node, dict):
        for key, value in node.items():
            if key.endswith(("include_role", "import_role")) and isinstance(value, dict):
                yield str(value.get("name", "")), str(value.get("tasks_from", "main"))
            yield from included(value)


def test_every_included_entry_point_exists() -> None:
    files = [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/**/*.yml"), *ROOT.glob("molecule/*/*.yml")]
    found = {
        (str(path.relative_to(ROOT)), role.removeprefix(PREFIX), entry)
        for path in files
        for role, entry in included(yaml.safe_load(path.read_text(encoding="utf-8")))
        if role.startswith(PREFIX) and "{{" not in role + entry
    }
    assert len(found) > 20
    missing = [item for item in found if not (ROOT / "roles" / item[1] / "tasks" / f"{item[2]}.yml").is_file()]
    assert missing == []
