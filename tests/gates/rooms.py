"""Rooms of plugins/module_utils: every file is in a room, and imports follow the table below (docs/architecture.md).

A room is a folder with an underscore; its files have none. A room is never imported as a name (`from .. import _x`):
Ansible ships only the files that it sees imported, so such a module works on the controller and breaks on a host.
"""

from __future__ import annotations

import ast
import pathlib
import sys
import typing as t

PACKAGE: t.Final = "ansible_collections.homelab.mixed_gpu.plugins.module_utils"
_BELOW_REPORT: t.Final = {
    "_base", "_hardware", "_driver", "_models", "_measuring", "_split", "_planner", "_llama_cpp", "_exllama",
    "_revalidation",
}  # fmt: skip
#: room -> the other rooms that its files may import
MAY_IMPORT: t.Final[dict[str, set[str]]] = {
    "_base": set(),
    "_programs": set(),
    "_watchdog": set(),
    "_hardware": {"_base"},
    "_driver": {"_base", "_hardware"},
    "_models": {"_base"},
    "_measuring": {"_base"},
    "_split": {"_base", "_hardware", "_measuring", "_models"},
    "_planner": {"_base", "_measuring", "_models", "_split"},
    "_llama_cpp": {"_base", "_driver", "_measuring", "_programs", "_split"},
    "_exllama": {"_base", "_driver", "_measuring", "_split"},
    "_revalidation": {"_base", "_driver", "_measuring", "_planner", "_split"},
    "_report": _BELOW_REPORT,
    "_preflight": _BELOW_REPORT,
    "_diagnosis": _BELOW_REPORT,
    "_watch": _BELOW_REPORT,
}


def imported(node: ast.AST, room: str) -> t.Iterator[str]:
    """Yield what an import statement of a file in `room` imports, as a dotted path below module_utils."""
    if isinstance(node, ast.Import):
        yield from (alias.name.removeprefix(f"{PACKAGE}.") for alias in node.names if alias.name.startswith(PACKAGE))
    if not isinstance(node, ast.ImportFrom):
        return
    module = node.module or ""
    if node.level:
        base = {1: [room] if room else [], 2: []}[node.level]
        path = [*base, *module.split(".")] if module else base
    elif module == PACKAGE or module.startswith(f"{PACKAGE}."):
        path = module.removeprefix(PACKAGE).strip(".").split(".") if module != PACKAGE else []
    else:
        return
    if len(path) >= 2:  # from .._room.file import name
        yield ".".join(path[:2])
    else:  # from .._room import file, from .. import _room
        yield from (".".join([*path, alias.name]) for alias in node.names)


def problems(path: pathlib.Path, room: str) -> list[str]:
    """Return one sentence per import of one file that the table does not allow; `room` is "" outside module_utils."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for name in imported(node, room):
            target, _dot, file = name.partition(".")
            where = f"{path}:{getattr(node, 'lineno', 0)}"
            if not file:
                found.append(f"{where}: imports the room {target} as a name; import one of its files")
            elif room and target != room and target not in MAY_IMPORT.get(room, set()):
                found.append(f"{where}: {room} may not import {target} ({name})")
    return found


def main() -> int:
    """Check all Python files of plugins/; return 1 where one breaks the rules."""
    rooms = pathlib.Path("plugins/module_utils")
    found = [f"{path}: is in no room of plugins/module_utils" for path in sorted(rooms.glob("*.py"))]
    unknown = {path.name for path in rooms.iterdir() if path.is_dir() and path.name != "__pycache__"} - set(MAY_IMPORT)
    found += [f"plugins/module_utils/{name}: is a room that tests/gates/rooms.py does not know" for name in unknown]
    for path in sorted(pathlib.Path("plugins").rglob("*.py")):
        found += problems(path, path.parent.name if path.is_relative_to(rooms) else "")
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
