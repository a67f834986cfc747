"""Sizes that keep a file readable on a screen or two: plugins, files of roles, and task files.

A file of code has at most 400 lines, a function 60 lines and blocks nested 3 deep, a task file 80 lines, and there are
at most 12 filter files. What cannot be smaller without getting harder to read is in EXCEPTIONS, each with its reason.
"""

from __future__ import annotations

import ast
import pathlib
import sys
import typing as t

FILE_LINES: t.Final = 400
FUNCTION_LINES: t.Final = 60
DEPTH: t.Final = 3
TASK_FILE_LINES: t.Final = 80
FILTER_FILES: t.Final = 12
MOST_EXCEPTIONS: t.Final = 5

#: path, or path:function -> why it is larger. Not more than MOST_EXCEPTIONS.
EXCEPTIONS: t.Final[dict[str, str]] = {}

_BLOCKS = (ast.If, ast.For, ast.While, ast.With, ast.Try, ast.Match)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def depth(node: ast.AST) -> int:
    """Return how deep blocks are nested below a node; elif continues its if, and an inner function starts anew."""
    deepest = 0
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            continue
        inner = depth(child)
        if isinstance(child, _BLOCKS) and not _is_elif(child, node):
            inner += 1
        deepest = max(deepest, inner)
    return deepest


def _is_elif(child: ast.AST, parent: ast.AST) -> bool:
    return isinstance(child, ast.If) and isinstance(parent, ast.If) and parent.orelse == [child]


def of_code(path: pathlib.Path) -> list[tuple[str, str]]:
    """Return (name, sentence) of everything in a Python file that is too large."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = len(text.splitlines())
    found = []
    if lines > FILE_LINES:
        found.append((str(path), f"{path}: {lines} lines, at most {FILE_LINES}"))
    for node in ast.walk(tree):
        if not isinstance(node, _FUNCTIONS):
            continue
        name, where = f"{path}:{node.name}", f"{path}:{node.lineno}: {node.name}"
        length, deep = (node.end_lineno or node.lineno) - node.lineno + 1, depth(node)
        if length > FUNCTION_LINES:
            found.append((name, f"{where} has {length} lines, at most {FUNCTION_LINES}"))
        if deep > DEPTH:
            found.append((name, f"{where} nests blocks {deep} deep, at most {DEPTH}"))
    return found


def main() -> int:
    """Check the repository; return 1 where something is too large."""
    code = [*pathlib.Path("plugins").rglob("*.py"), *pathlib.Path("roles").glob("*/files/**/*.py")]
    found = [entry for path in sorted(code) for entry in of_code(path)]
    for path in sorted(pathlib.Path("roles").glob("*/tasks/**/*.yml")):
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > TASK_FILE_LINES:
            found.append((str(path), f"{path}: {lines} lines, at most {TASK_FILE_LINES}"))
    filters = len(list(pathlib.Path("plugins/filter").glob("*.py")))
    if filters > FILTER_FILES:
        found.append(("plugins/filter", f"plugins/filter: {filters} files, at most {FILTER_FILES}"))
    sentences = [sentence for name, sentence in found if name not in EXCEPTIONS]
    sentences += [f"{name}: is no exception any more" for name in sorted(set(EXCEPTIONS) - {name for name, _ in found})]
    if len(EXCEPTIONS) > MOST_EXCEPTIONS:
        sentences.append(f"EXCEPTIONS has {len(EXCEPTIONS)} entries, at most {MOST_EXCEPTIONS}")
    print("\n".join(sentences), end="\n" if sentences else "")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
