# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What vLLM and Ray understand, derived from their wheels: options, and types of options. No code of theirs is kept.

python -m ansible_collections.homelab.mixed_gpu.tests.vllm_wheel writes tests/fixtures/vllm.json, for machines without
the wheels.
"""

from __future__ import annotations

import ast
import functools
import json
import pathlib
import typing as t
import zipfile

from ansible_collections.homelab.mixed_gpu.tests import pinned_wheels

FIXTURE = pathlib.Path(__file__).parent / "fixtures/vllm.json"
VLLM = next(name for name in pinned_wheels.WHEELS if name.startswith("vllm-"))
RAY = next(name for name in pinned_wheels.WHEELS if name.startswith("ray-"))
#: What the fixture keeps: all that a start that this collection writes has.
USED = {
    "serve": (
        "model_tag", "--disable-custom-all-reduce", "--distributed-executor-backend", "--gpu-memory-utilization",
        "--host", "--max-model-len", "--pipeline-parallel-size", "--port", "--tensor-parallel-size",
    ),
    "environment": ("VLLM_HOST_IP", "VLLM_PP_LAYER_PARTITION"),
    "start": (
        "--address", "--disable-usage-stats", "--head", "--include-dashboard", "--node-ip-address", "--num-gpus",
        "--port",
    ),
    "get-auth-token": ("--generate",),
}  # fmt: skip
_PARSERS = ("vllm/engine/arg_utils.py", "vllm/entrypoints/common/cli_args.py", "vllm/entrypoints/cli/serve.py")


def _calls(tree: ast.AST, name: str) -> t.Iterator[ast.Call]:
    """Yield the calls of a function or method of that name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
            yield node


def _texts(nodes: t.Iterable[ast.AST]) -> list[str]:
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def _annotations(archive: zipfile.ZipFile) -> dict[str, ast.expr]:
    """Return the types of the fields of vLLM's configuration classes, and of the names that these types use."""
    found: dict[str, ast.expr] = {}
    for member in archive.namelist():
        if member.startswith("vllm/config/") and member.endswith(".py"):
            tree = ast.parse(archive.read(member))
            for node in ast.walk(tree):
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    found.setdefault(node.target.id, node.annotation)
            for line in tree.body:
                if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
                    found.setdefault(line.targets[0].id, line.value)
    return found


def _kind(annotation: ast.expr | None, known: dict[str, ast.expr]) -> str | list[str]:
    """Return bool, int, float, or the words of a Literal; str for everything else."""
    if annotation is None:
        return "str"
    used = [node.id for node in ast.walk(annotation) if isinstance(node, ast.Name)]
    inside = [annotation, *(known[name] for name in used if name in known)]
    for node in (found for part in inside for found in ast.walk(part)):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "Literal":
            return _texts(ast.walk(node.slice))
    names = {node.id for part in inside for node in ast.walk(part) if isinstance(node, ast.Name)}
    return next((kind for kind in ("bool", "int", "float") if kind in names), "str")


@functools.cache
def serve_options() -> dict[str, str | list[str]]:
    """Return the options of vllm serve with the kind of their values; C(model_tag) is what stands without a dash."""
    archive = pinned_wheels.wheel(VLLM)
    known, found = _annotations(archive), {}
    for member in _PARSERS:
        for call in _calls(ast.parse(archive.read(member)), "add_argument"):
            fields = [
                text for keyword in call.keywords if keyword.arg is None for text in _texts(ast.walk(keyword.value))
            ]
            kind = _kind(known.get(fields[0]) if fields else None, known)
            found |= {option: kind for option in _texts(call.args) if option.startswith("--") or option == "model_tag"}
    # fields of a class of options of the server, which becomes a parser field by field
    for node in ast.walk(ast.parse(archive.read(_PARSERS[1]))):
        if isinstance(node, ast.ClassDef):
            for field in node.body:
                if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                    found.setdefault(f"--{field.target.id.replace('_', '-')}", _kind(field.annotation, known))
    return dict(sorted(found.items()))


@functools.cache
def environment() -> list[str]:
    """Return the variables that vLLM reads."""
    tree = ast.parse(pinned_wheels.wheel(VLLM).read("vllm/envs.py"))
    return sorted({
        text for node in ast.walk(tree) if isinstance(node, ast.Dict) for text in _texts(filter(None, node.keys))
        if text.startswith("VLLM_")
    })  # fmt: skip


@functools.cache
def ray_options() -> dict[str, list[str]]:
    """Return the options of the commands of ray by command."""
    tree = ast.parse(pinned_wheels.wheel(RAY).read("ray/scripts/scripts.py"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            options = [one for call in node.decorator_list for one in _calls(call, "option")]
            words = [text for option in options for text in _texts(option.args)]
            named = [
                text for call in node.decorator_list for one in _calls(call, "command")
                for keyword in one.keywords if keyword.arg == "name" for text in _texts([keyword.value])
            ]  # fmt: skip
            found[next(iter(named), node.name)] = sorted(word for word in words if word.startswith("--"))
    return {name: found[name] for name in ("start", "get-auth-token")}


def derived() -> dict[str, t.Any]:
    """Return what the fixture holds."""
    ray = ray_options()
    return {
        "wheels": {name: pinned_wheels.WHEELS[name] for name in (RAY, VLLM)},
        "serve": {name: kind for name, kind in serve_options().items() if name in USED["serve"]},
        "environment": [name for name in environment() if name in USED["environment"]],
        **{command: [name for name in ray[command] if name in USED[command]] for command in ray},
    }


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(derived(), indent=1) + "\n", encoding="utf-8")
