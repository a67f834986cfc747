# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Recognises vLLM and SGLang by their command lines. Private to this collection. Pure functions.

Command lines hold API keys and tokens. Nothing is passed on but what is named here: engine, model, parallel sizes,
layer partition, and which cards the program may see.
"""

from __future__ import annotations

import os
import re
import shlex
import typing as t

from .._base import systemd

Json = dict[str, t.Any]

#: Options of `vllm serve` (0.33) and `sglang.launch_server`, spelled with hyphens; both accept underscores.
_OPTIONS = {
    "tensor-parallel-size": "tensor_parallel_size", "tp": "tensor_parallel_size", "tp-size": "tensor_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size", "pp": "pipeline_parallel_size",
    "pp-size": "pipeline_parallel_size",
    "model": "model", "model-path": "model", "config": "config",
}

#: The only environment variables that are looked at, and what they become.
_VARIABLES = {
    "CUDA_VISIBLE_DEVICES": "visible_devices", "CUDA_DEVICE_ORDER": "device_order",
    "VLLM_PP_LAYER_PARTITION": "layer_partition", "SGLANG_PP_LAYER_PARTITION": "layer_partition",
}

_ENDS = {"&&", "||", ";", "|", "&", ">", ">>", "2>&1", "2>", "<"}
_MODULES = (
    (re.compile(r"vllm\.entrypoints\.[\w.]+"), "vllm"),
    (re.compile(r"sglang\.launch_server"), "sglang"),
)
_SCRIPTS = (
    (re.compile(r"(?:.*/)?vllm/entrypoints/(?:[\w]+/)*[\w]+\.py"), "vllm"),
    (re.compile(r"(?:.*/)?sglang/launch_server\.py"), "sglang"),
)
_IMAGES = (
    (re.compile(r"\S+/(?:vllm-openai|vllm)(?:[:@]\S+)?"), "vllm"),
    (re.compile(r"\S+/sglang(?:[:@]\S+)?"), "sglang"),
)
_ASSIGNMENT = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)=(.*)", re.DOTALL)
_REFERENCE = re.compile(r"\$(?:\{(\w+)(?::?-([^}]*))?\}|(\w+))")
_TITLE = re.compile(r"(?P<engine>vllm|sglang)::\S*?TP(?P<rank>\d+)", re.IGNORECASE)


def parse(argv: t.Sequence[str], environment: t.Mapping[str, str]) -> Json | None:
    """Return what a command line starts, or None where it starts neither engine.

    The result has engine (vllm or sglang), model, config, tensor_parallel_size, pipeline_parallel_size,
    visible_devices, device_order and layer_partition; what is not given is None. `$NAME` and `${NAME:-default}` are
    taken from `environment`, and so is what the command line sets before the program (`env NAME=value`, `docker -e`).
    """
    words = _flat(argv)
    start = _program(words)
    if start is None:
        return None
    engine, position, serve = start
    known = dict(environment)
    for word in words[:position]:
        assigned = _ASSIGNMENT.fullmatch(word.removeprefix("--env=").removeprefix("-e="))
        if assigned:
            known[assigned[1]] = assigned[2]
    found: Json = {
        "engine": engine, "model": None, "config": None, "tensor_parallel_size": None, "pipeline_parallel_size": None,
        "visible_devices": None, "device_order": None, "layer_partition": None,
    }
    found.update(_options(words[position:], known))
    if serve and found["model"] is None and words[position:] and not words[position].startswith("-"):
        found["model"] = _expand(words[position], known)
    for size in ("tensor_parallel_size", "pipeline_parallel_size"):
        found[size] = int(found[size]) if (found[size] or "").isdigit() else None
    if found["model"]:
        found["model"] = _without_secrets(found["model"])
    for name, key in _VARIABLES.items():
        if known.get(name):
            found[key] = known[name]
    return found


def title(command: str) -> Json | None:
    """Return {engine, tensor_parallel_size} for the title of a worker process, such as VLLM::Worker_TP1, or None.

    The size is the least that this rank lets conclude.
    """
    worker = _TITLE.match(command)
    if worker is None:
        return None
    return {"engine": worker["engine"].lower(), "tensor_parallel_size": int(worker["rank"]) + 1}


def script(text: str, environment: t.Mapping[str, str]) -> Json | None:
    """Return what parse returns for the first command of a shell script that starts an engine.

    Assignments before it count. A script is read, not run: what it computes is not known.
    """
    known = dict(environment)
    for line in text.replace("\\\n", " ").splitlines():
        line = line.strip()
        assigned = _ASSIGNMENT.fullmatch(line)
        words = _split(line)
        if assigned and len(words) <= 2:
            known[assigned[1]] = _expand((_split(assigned[2]) or [""])[0], known)
            continue
        found = parse(words, known)
        if found is not None:
            return found
    return None


def config(text: str) -> Json:
    """Return the sizes and the model of a `--config` file: plain `key: value` lines of YAML, comments left out."""
    found: Json = {}
    for key, value in re.findall(r"^([\w-]+)\s*:\s*([^#\n]+)", text, re.MULTILINE):
        name, value = _OPTIONS.get(key.replace("_", "-")), value.strip().strip("\"'")
        if name in ("tensor_parallel_size", "pipeline_parallel_size") and value.isdigit():
            found[name] = int(value)
        elif name == "model":
            found[name] = _without_secrets(value)
    return found


# --- units of systemd -------------------------------------------------------------------------------------------------


def units(text: str) -> list[Json]:
    """Return the services of `systemctl show -p Id,ExecStart,Environment,EnvironmentFiles,... UNIT...`.

    Each has id, active, enabled, directory, environment, environment_files and commands, a list of word lists. systemd
    prints a command's words without quotes, so a word that held spaces is several words here.
    """
    found = []
    for values in systemd.units(text):
        if not values.get("Id"):
            continue
        commands = re.findall(r"argv\[\]=(.*?) ; ignore_errors=", values.get("ExecStart", ""))
        pairs = [word.split("=", 1) for word in _split(values.get("Environment", "")) if "=" in word]
        found.append({
            "id": values["Id"],
            "active": values.get("ActiveState") in systemd.RUNNING,
            "enabled": values.get("UnitFileState") in ("enabled", "enabled-runtime", "generated"),
            "directory": values.get("WorkingDirectory", "").lstrip("!~-") or "/",
            "environment": dict(pairs),
            "environment_files": [
                value.rsplit(" (", 1)[0] for value in values.get("EnvironmentFiles", "").split("\n") if value
            ],
            "commands": [_split(command) for command in commands],
        })
    return found


def environment_file(text: str) -> dict[str, str]:
    """Return the assignments of an EnvironmentFile."""
    found = {}
    for line in text.replace("\\\n", "").splitlines():
        assigned = _ASSIGNMENT.fullmatch(line.strip())
        if assigned and not line.lstrip().startswith(("#", ";")):
            found[assigned[1]] = assigned[2].strip().strip("\"'")
    return found


# --- words ------------------------------------------------------------------------------------------------------------


def _split(text: str) -> list[str]:
    """Words as a shell splits them; at blanks where quotes do not match."""
    try:
        return shlex.split(text, comments=True)
    except ValueError:
        return text.split()


def _flat(argv: t.Sequence[str]) -> list[str]:
    """The words, with one that is a command line itself (`bash -c`) taken apart."""
    words: list[str] = []
    for number, word in enumerate(argv):
        if number and argv[number - 1] in ("-c", "-lc", "-ec", "-ic") and " " in word:
            words += _split(word)
        else:
            words.append(word)
    return words


def _program(words: t.Sequence[str]) -> tuple[str, int, bool] | None:
    """(engine, position of its first argument, whether that may be the model) of the first engine in the words."""
    for number, (word, following) in enumerate(zip(words, [*words[1:], ""], strict=False)):
        if os.path.basename(word) in ("vllm", "sglang") and following == "serve":
            return os.path.basename(word), number + 2, True
        if word == "-m":
            for pattern, engine in _MODULES:
                if pattern.fullmatch(following):
                    return engine, number + 2, False
        for pattern, engine in _SCRIPTS:
            if pattern.fullmatch(word):
                return engine, number + 1, False
    if any(os.path.basename(word) in ("docker", "podman", "nerdctl") for word in words[:3]) and "run" in words[:5]:
        for number, word in enumerate(words):
            for pattern, engine in _IMAGES:
                if not word.startswith("-") and pattern.fullmatch(word):
                    return engine, number + 1, engine == "vllm"
    return None


def _options(words: t.Sequence[str], known: t.Mapping[str, str]) -> Json:
    found: Json = {}
    for number, word in enumerate(words):
        if word in _ENDS:
            break
        if not word.startswith("-"):
            continue
        name, equals, value = word.lstrip("-").partition("=")
        key = _OPTIONS.get(name.replace("_", "-"))
        if key is None:
            continue
        if not equals:
            value = words[number + 1] if number + 1 < len(words) else ""
        found[key] = _expand(value, known)
    return found


def _expand(text: str, known: t.Mapping[str, str]) -> str:
    return _REFERENCE.sub(lambda match: known.get(match[1] or match[3]) or match[2] or "", text)


def _without_secrets(model: str) -> str:
    """A model's name; of a URL neither user, password nor query."""
    return re.sub(r"//[^/@\s]*@", "//", model).split("?", 1)[0] if "://" in model else model
