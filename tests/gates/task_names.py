"""Names of tasks, blocks and plays: a verb of the list, then its object by its own name, since they are the progress.

In a task file of a role or a playbook the name begins with `<file> | `, except in main.yml.

task_names.py [ROOT] prints what differs.
"""

from __future__ import annotations

import pathlib
import re
import sys
import typing as t

import yaml

MAX_LENGTH: t.Final = 80
VERBS: t.Final = frozenset({
    "Acquire", "Assert", "Build", "Check", "Compare", "Configure", "Copy", "Create", "Download", "Ensure", "Fail",
    "Flush", "Gather", "Group", "Import", "Include", "Install", "Measure", "Plan", "Read", "Record", "Release",
    "Reload", "Remove", "Render", "Restart", "Restore", "Run", "Schedule", "Set", "Show", "Start", "Stop", "Upgrade",
    "Validate", "Verify", "Wait", "Write",
})  # fmt: skip
PRONOUNS: t.Final = frozenset({"it", "its", "them", "they", "that", "this", "these", "those", "there", "both", "one"})
#: After these the word "that" begins a clause and stands for nothing.
_BEFORE_A_CLAUSE: t.Final = ("Assert that ", "Check that ", "Ensure that ", "Verify that ")
_CHILDREN: t.Final = ("block", "rescue", "always", "pre_tasks", "tasks", "post_tasks", "handlers")
_FOLDERS: t.Final = ("roles/*/tasks", "roles/*/handlers", "playbooks", "molecule", "tests")


class Name(t.NamedTuple):
    """A name and where it stands."""

    line: int
    text: str


def names(node: yaml.Node | None) -> t.Iterator[Name]:
    """Yield the names of all plays, tasks and blocks of a playbook or task file; other YAML has none."""
    for item in node.value if isinstance(node, yaml.SequenceNode) else ():
        fields = {key.value: value for key, value in item.value} if isinstance(item, yaml.MappingNode) else {}
        if isinstance(name := fields.get("name"), yaml.ScalarNode):
            yield Name(name.start_mark.line + 1, name.value)
        for child in _CHILDREN:
            yield from names(fields.get(child))


def faults(name: str, stem: str = "") -> list[str]:
    """Return what is wrong with a name, in words; `stem` is the file's name where the prefix is due, or empty."""
    prefix = f"{stem} | " if stem else ""
    found = [] if name.startswith(prefix) else [f'does not begin with "{prefix}"']
    text = name.removeprefix(prefix)
    words = re.findall(r"[A-Za-z0-9_.'/-]+", re.sub(r"\{\{.*?\}\}", "", text))
    first = words[0] if words else ""
    if first not in VERBS or (first == "Wait" and words[1:2] != ["for"]):
        found.append(f'begins with "{first}", which is no verb of the list')
    for opening in _BEFORE_A_CLAUSE:
        text = text.removeprefix(opening)
    used = PRONOUNS.intersection(re.findall(r"[a-z]+", text.lower()))
    found += [f'says "{word}" and not what' for word in sorted(used)]
    length = len(name.removeprefix(prefix))
    return [*found, f"has {length} characters, {MAX_LENGTH} are enough"] if length > MAX_LENGTH else found


def violations(root: pathlib.Path) -> dict[str, list[str]]:
    """Return a sentence per faulty name, by role or, outside roles, by folder."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for folder in _FOLDERS for path in root.glob(f"{folder}/**/*.yml")):
        parts = path.relative_to(root).parts
        in_tasks = parts[0] == "roles" or parts[:2] == ("playbooks", "tasks")
        stem = path.stem if in_tasks and path.stem != "main" else ""
        for line, name in names(yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)):
            where = "/".join(parts[: 2 if len(parts) > 2 else 1])
            sentences = [f"{'/'.join(parts)}:{line}: {name!r} {fault}" for fault in faults(name, stem)]
            if sentences:
                found.setdefault(where, []).extend(sentences)
    return found


def main(root: str = ".") -> int:
    """Print every violation and a count per role; return 1 where there is one."""
    found = violations(pathlib.Path(root))
    lines = [sentence for sentences in found.values() for sentence in sentences]
    lines += [f"{where}: {len(sentences)}" for where, sentences in found.items()]
    print("\n".join(lines) or "task names: every name is a verb and its object")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
