"""No name is both a role variable (defaults, vars) and a fact (set_fact, register).

A fact outlives the role that set it and wins over a role variable: a second inclusion of the role in the same play
would read what the first one left.
"""

from __future__ import annotations

import pathlib
import sys
import typing as t

import yaml

SET_FACT = ("ansible.builtin.set_fact", "set_fact")
ROLE_VARIABLES = ("defaults", "vars")


class _Loader(yaml.SafeLoader):
    """Reads playbooks: Ansible's own tags (!vault, !unsafe) are plain text here."""


_Loader.add_multi_constructor("!", lambda loader, _suffix, node: loader.construct_scalar(node))


def _load(path: pathlib.Path) -> t.Any:
    return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # derived from SafeLoader


def role_variables(root: pathlib.Path) -> dict[str, str]:
    """Each name in defaults/ or vars/ of a role, with the file that defines it."""
    found: dict[str, str] = {}
    for folder in ROLE_VARIABLES:
        for path in sorted(root.glob(f"roles/*/{folder}/**/*.yml")):
            found.update(dict.fromkeys(_load(path) or {}, str(path.relative_to(root))))
    return found


def _facts_of(node: t.Any) -> t.Iterator[str]:
    """The names that the tasks in a YAML tree set as facts or register."""
    if isinstance(node, list):
        for item in node:
            yield from _facts_of(item)
    elif isinstance(node, dict):
        if isinstance(node.get("register"), str):
            yield node["register"]
        for name in SET_FACT:
            yield from (key for key in node.get(name) or {} if key != "cacheable")
        for value in node.values():
            yield from _facts_of(value)


def facts(root: pathlib.Path) -> dict[str, set[str]]:
    """Each name that a task of a role or a playbook sets as a fact or registers, with the files that do."""
    found: dict[str, set[str]] = {}
    paths = [path for kind in ("tasks", "handlers") for path in root.glob(f"roles/*/{kind}/**/*.yml")]
    for path in [*paths, *root.glob("playbooks/**/*.yml")]:
        for name in _facts_of(_load(path)):
            found.setdefault(name, set()).add(str(path.relative_to(root)))
    return found


def conflicts(root: pathlib.Path) -> list[str]:
    """One sentence per name that is both."""
    variables = role_variables(root)
    return [
        f"{name} is a role variable ({variables[name]}) and a fact ({', '.join(sorted(where))}): rename one"
        for name, where in sorted(facts(root).items())
        if name in variables
    ]


def main() -> int:
    root = pathlib.Path()
    found = conflicts(root)
    print("\n".join(found) or f"variables: none of {len(facts(root))} facts is a role variable, too")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
