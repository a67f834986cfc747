# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""vLLM and SGLang among the host's running processes, for tensor_parallel_check. Private to this collection.

Reads /proc. Command lines and environments hold API keys, so only the keys of NOTHING are passed on.
"""

from __future__ import annotations

import os
import re
import typing as t

from .._base.types import Json

#: What is known of an engine before its process was read.
NOTHING: t.Final[Json] = {
    "engine": None, "pid": None, "unit": None, "model": None, "tensor_parallel_size": None,
    "pipeline_parallel_size": None, "layer_partition": None, "visible_devices": None, "device_order": None,
}
#: Options of `vllm serve` (0.33) and `sglang.launch_server`, spelled with hyphens; both engines accept underscores.
_OPTIONS: t.Final = {
    "tensor-parallel-size": "tensor_parallel_size", "tp": "tensor_parallel_size", "tp-size": "tensor_parallel_size",
    "pipeline-parallel-size": "pipeline_parallel_size", "pp": "pipeline_parallel_size",
    "pp-size": "pipeline_parallel_size", "model": "model", "model-path": "model",
}
#: The only environment variables that are read.
_VARIABLES: t.Final = {
    "CUDA_VISIBLE_DEVICES": "visible_devices", "CUDA_DEVICE_ORDER": "device_order",
    "VLLM_PP_LAYER_PARTITION": "layer_partition", "SGLANG_PP_LAYER_PARTITION": "layer_partition",
}
_MODULE: t.Final = re.compile(r"(vllm)\.entrypoints\.[\w.]+|(sglang)\.launch_server")
#: Title of a worker process: VLLM::Worker_TP1, VLLM::Worker_PP0_TP3, sglang::scheduler_TP0.
_WORKER: t.Final = re.compile(r"(?P<engine>vllm|sglang)::\S*?TP(?P<rank>\d+)", re.IGNORECASE)
_UNIT: t.Final = re.compile(r"([^/\s]+\.(?:service|scope))(?:/|$)", re.MULTILINE)


def parse(argv: t.Sequence[str], environment: t.Mapping[str, str]) -> Json | None:
    """Return what a command line starts, with the keys of NOTHING, or None where it starts neither engine."""
    start = _program(argv)
    if start is None:
        return None
    engine, arguments, serve = start
    found = {**NOTHING, "engine": engine, **_options(arguments)}
    if serve and found["model"] is None and arguments and not arguments[0].startswith("-"):
        found["model"] = arguments[0]
    for size in ("tensor_parallel_size", "pipeline_parallel_size"):
        found[size] = int(found[size]) if (found[size] or "").isdigit() else None
    if found["model"] and "://" in found["model"]:  # without user, password and query
        found["model"] = re.sub(r"//[^/@\s]*@", "//", found["model"]).split("?", 1)[0]
    found.update({key: environment[name] for name, key in _VARIABLES.items() if environment.get(name)})
    return found


def _program(argv: t.Sequence[str]) -> tuple[str, t.Sequence[str], bool] | None:
    """Return (engine, its arguments, whether the first of them may be the model)."""
    for number, (word, following) in enumerate(zip(argv, argv[1:], strict=False)):
        if os.path.basename(word) in ("vllm", "sglang") and following == "serve":
            return os.path.basename(word), argv[number + 2 :], True
        module = _MODULE.fullmatch(following) if word == "-m" else None
        if module:
            return module[1] or module[2], argv[number + 2 :], False
    return None


def _options(arguments: t.Sequence[str]) -> Json:
    found: Json = {}
    for word, following in zip(arguments, [*arguments[1:], ""], strict=True):
        name, equals, value = word.lstrip("-").partition("=")
        key = _OPTIONS.get(name.replace("_", "-")) if word.startswith("-") else None
        if key is not None:
            found[key] = value if equals else following
    return found


def running(root: str = "") -> list[Json]:
    """Return the engines among the processes below `root`/proc, those in containers included.

    A size that the command does not state (a configuration file may) follows from the highest rank among the workers
    of the same unit. Workers without such a command, of a program that uses the engine as a library, are an entry too.
    """
    found: dict[t.Any, Json] = {}
    workers: dict[tuple[str, str | None], tuple[int, int]] = {}
    for pid in sorted(int(name) for name in os.listdir(f"{root}/proc") if name.isdigit()):
        command = _words(f"{root}/proc/{pid}/cmdline")
        unit = _unit(f"{root}/proc/{pid}/cgroup")
        worker = _WORKER.match(command[0]) if command else None
        if worker:
            kind = (worker["engine"].lower(), unit)
            workers[kind] = max(workers.get(kind, (0, 0)), (int(worker["rank"]) + 1, pid))
            continue
        environment = dict(pair.split("=", 1) for pair in _words(f"{root}/proc/{pid}/environ") if "=" in pair)
        engine = parse(command, environment)
        if engine is not None:
            # a launcher and the program that it started are one engine: the later one is the program
            same = (engine["engine"], unit, engine["model"], engine["tensor_parallel_size"])
            found[same] = {**engine, "pid": pid, "unit": unit}
    return _with_workers(list(found.values()), workers)


def _with_workers(found: list[Json], workers: t.Mapping[tuple[str, str | None], tuple[int, int]]) -> list[Json]:
    """Return the engines with the sizes that their workers show, and entries for workers without a command."""
    orphans = []
    for (engine, unit), (size, pid) in workers.items():
        own = [entry for entry in found if (entry["engine"], entry["unit"]) == (engine, unit)]
        for entry in own:
            entry["tensor_parallel_size"] = entry["tensor_parallel_size"] or size
        if not own:
            orphans.append({**NOTHING, "engine": engine, "pid": pid, "unit": unit, "tensor_parallel_size": size})
    return found + orphans


def _words(path: str) -> list[str]:
    """Return the words of a file that separates them by zero bytes; none of a process that has ended."""
    try:
        with open(path, "rb") as handle:
            return [word.decode(errors="replace") for word in handle.read().split(b"\0") if word]
    except OSError:
        return []


def _unit(path: str) -> str | None:
    """Return the systemd unit that a cgroup file names."""
    found = _UNIT.findall(" ".join(_words(path)))
    return found[-1] if found else None
