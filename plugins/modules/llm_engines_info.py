#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llm_engines_info
short_description: Find vLLM and SGLang, running or set up to run
version_added: 0.1.0
description:
  - Looks for the two engines among the host's processes, those in containers included, and its systemd services, and
    says over how many cards each splits a model, and how.
  - Command lines and environments hold keys and tokens. Of both only what is listed here is returned.
  - A service whose command is a shell script, or that names a C(--config) file, is followed there. What a script
    computes is not known, and stopped containers are not looked at.
  - Stops nothing and asks no card.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
options: {}
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Look for other engines
  homelab.mixed_gpu.llm_engines_info:
  register: found

- name: Show those that split tensors
  ansible.builtin.debug:
    msg: "{{ found.engines | selectattr('tensor_parallel_size', 'ne', none) | list }}"
"""

RETURN = r"""
engines:
  description: One entry per process or service; a running service is one entry.
  type: list
  elements: dict
  returned: always
  contains:
    engine:
      description: V(vllm) or V(sglang).
      type: str
      returned: always
    pid:
      description: Process id, or none for a service that does not run.
      type: int
      returned: always
    unit:
      description: systemd unit, or none.
      type: str
      returned: always
      sample: vllm.service
    active:
      description: Whether it runs.
      type: bool
      returned: always
    model:
      description: Model as the command names it, or none.
      type: str
      returned: always
    tensor_parallel_size:
      description: Cards over which each layer is split; none where the command does not say, which means 1.
      type: int
      returned: always
    pipeline_parallel_size:
      description: Stages over which layers are shared out; none likewise.
      type: int
      returned: always
    layer_partition:
      description: C(VLLM_PP_LAYER_PARTITION) or C(SGLANG_PP_LAYER_PARTITION), or none.
      type: str
      returned: always
    visible_devices:
      description: C(CUDA_VISIBLE_DEVICES), or none.
      type: str
      returned: always
    device_order:
      description: C(CUDA_DEVICE_ORDER), or none.
      type: str
      returned: always
    hidden_layers:
      description: Layers of the model by its C(config.json), where that is on the host; or none.
      type: int
      returned: always
services_asked:
  description: Whether systemd could be asked about its services.
  type: bool
  returned: always
"""

import json
import os
import re
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import engine_commands

Json = dict[str, t.Any]

LOCAL_UNITS = ("etc/systemd/system", "run/systemd/system", "run/systemd/generator", "usr/local/lib/systemd/system")
PACKAGED_UNITS = ("usr/lib/systemd/system", "lib/systemd/system")
MOST_BYTES = 256 * 1024  # of a script, a configuration or a unit; larger ones are none
PROPERTIES = "Id,ActiveState,UnitFileState,ExecStart,Environment,EnvironmentFiles,WorkingDirectory"
SHELLS = ("sh", "bash", "dash", "zsh", "env")
UNIT = re.compile(r"([^/\s]+\.(?:service|scope))(?:/|$)", re.MULTILINE)
NOTHING: Json = {
    "engine": None, "pid": None, "unit": None, "active": False, "model": None, "tensor_parallel_size": None,
    "pipeline_parallel_size": None, "layer_partition": None, "visible_devices": None, "device_order": None,
    "hidden_layers": None,
}


def read(path: str, most: int = MOST_BYTES) -> str | None:
    """The text of a regular file of at most so many bytes, or None."""
    try:
        if not os.path.isfile(path):
            return None
        with open(path, encoding="utf-8", errors="replace") as handle:
            text = handle.read(most + 1)
    except OSError:
        return None
    return text if len(text) <= most else None


def words(path: str) -> list[str]:
    """The words of a file below /proc that separates them by zero bytes."""
    try:
        with open(path, "rb") as handle:
            return [word.decode(errors="replace") for word in handle.read().split(b"\0") if word]
    except OSError:  # gone while we looked, or not ours to see
        return []


def processes(root: str = "") -> list[Json]:
    """Engines among the processes below `root`/proc."""
    found: list[Json] = []
    workers: list[Json] = []
    for name in sorted((name for name in os.listdir(f"{root}/proc") if name.isdigit()), key=int):
        here = f"{root}/proc/{name}"
        command = words(f"{here}/cmdline")
        if not command:
            continue
        unit = UNIT.findall(read(f"{here}/cgroup") or "")
        known = {"pid": int(name), "unit": unit[-1] if unit else None, "active": True}
        titled = engine_commands.title(command[0])
        if titled is not None:
            workers.append({**NOTHING, **titled, **known})
            continue
        environment = dict(pair.split("=", 1) for pair in words(f"{here}/environ") if "=" in pair)
        engine = engine_commands.parse(command, environment)
        if engine is not None:
            try:
                directory = os.readlink(f"{here}/cwd")
            except OSError:
                directory = "/"
            # a process in a container has files of its own, which /proc shows below root
            place = f"{here}/root" if os.path.isdir(f"{here}/root/etc") else root
            found.append({**NOTHING, **completed(engine, directory, environment, place), **known})
    return _single(found) + _orphans(workers, found)


def _single(found: t.Sequence[Json]) -> list[Json]:
    """A program and the shell or launcher that started it are one: the last of equal entries, which is the program."""
    kept: dict[t.Any, Json] = {}
    for entry in found:
        kept[tuple(entry[key] for key in ("engine", "unit", "model", "tensor_parallel_size"))] = entry
    return list(kept.values())


def _orphans(workers: t.Sequence[Json], found: t.Sequence[Json]) -> list[Json]:
    """Workers whose command is not among what was found (started by a program of its own), the highest rank each."""
    known = {(entry["engine"], entry["unit"]) for entry in found}
    last: dict[t.Any, Json] = {}
    for worker in workers:
        key = (worker["engine"], worker["unit"])
        if key not in known and (
            key not in last or last[key]["tensor_parallel_size"] < worker["tensor_parallel_size"]
        ):
            last[key] = worker
    return list(last.values())


def completed(engine: Json, directory: str, environment: t.Mapping[str, str], root: str = "") -> Json:
    """An engine with what its configuration file and its model's config.json add; the command line wins."""
    path = engine.pop("config", None)
    if path:
        more = engine_commands.config(read(root + os.path.join(directory, path)) or "")
        engine = {**engine, **{key: value for key, value in more.items() if engine[key] is None}}
    engine["hidden_layers"] = hidden_layers(engine["model"], directory, environment, root)
    return engine


def hidden_layers(model: str | None, directory: str, environment: t.Mapping[str, str], root: str = "") -> int | None:
    """Layers of a model by its config.json: in its directory, or in Hugging Face's cache."""
    if not model:
        return None
    candidates = [os.path.join(directory, model)]
    home = environment.get("HOME", "/root")
    hub = environment.get("HF_HUB_CACHE") or os.path.join(
        environment.get("HF_HOME") or os.path.join(home, ".cache/huggingface"), "hub"
    )
    snapshots = os.path.join(hub, f"models--{model.replace('/', '--')}", "snapshots")
    if os.path.isdir(root + snapshots):
        candidates += [os.path.join(snapshots, name) for name in sorted(os.listdir(root + snapshots))]
    for candidate in candidates:
        try:
            config = json.loads(read(f"{root}{candidate}/config.json") or "null")
        except ValueError:
            continue
        if isinstance(config, dict):
            for holder in (config, config.get("text_config")):
                if isinstance(holder, dict) and isinstance(holder.get("num_hidden_layers"), int):
                    return holder["num_hidden_layers"]
    return None


def unit_names(root: str = "") -> list[str]:
    """Services of this host's own, and those of packages that name an engine; of templates their enabled instances."""
    names = set()
    for directory in (*LOCAL_UNITS, *PACKAGED_UNITS):
        for folder, _folders, files in os.walk(f"{root}/{directory}"):
            for name in files:
                path = f"{folder}/{name}"
                wanted = folder.endswith((".wants", ".requires"))
                if name.endswith(".service") and not name.endswith("@.service"):
                    # a link in .wants names an instance; elsewhere a link is another name, or leads to a package's unit
                    local = directory in LOCAL_UNITS and (not os.path.islink(path) or (wanted and "@" in name))
                    if local or _names_an_engine(path):
                        names.add(name)
                elif name.endswith(".conf") and folder.endswith(".service.d") and _names_an_engine(path):
                    names.add(os.path.basename(folder).removesuffix(".d"))
    return sorted(name for name in names if "@." not in name)


def _names_an_engine(path: str) -> bool:
    return re.search("vllm|sglang", read(path) or "", re.IGNORECASE) is not None


def services(shown: str, root: str = "") -> list[Json]:
    """Engines among the services that `systemctl show` printed."""
    found = []
    for unit in engine_commands.units(shown):
        environment = dict(unit["environment"])
        for path in unit["environment_files"]:
            environment.update(engine_commands.environment_file(read(root + path) or ""))
        for command in unit["commands"]:
            engine = engine_commands.parse(command, environment) or _script(command, unit, environment, root)
            if engine is not None:
                engine = completed(engine, unit["directory"], environment, root)
                found.append({**NOTHING, **engine, "unit": unit["id"], "active": unit["active"]})
                break
    return found


def _script(command: t.Sequence[str], unit: Json, environment: t.Mapping[str, str], root: str) -> Json | None:
    """The engine that a command's own script starts."""
    for word in command[:3]:
        if os.path.basename(word) in SHELLS or word.startswith("-"):
            continue
        text = read(root + os.path.join(unit["directory"], word))
        return engine_commands.script(text, environment) if text and text.startswith("#!") else None
    return None


def merged(running: t.Sequence[Json], set_up: t.Sequence[Json]) -> list[Json]:
    """All engines, a service that runs only once: as its process shows it, completed by what its unit says."""
    by_unit = {entry["unit"]: entry for entry in set_up}
    found = []
    for entry in running:
        unit = by_unit.pop(entry["unit"], None)
        more = {} if unit is None else {key: value for key, value in unit.items() if entry[key] is None}
        found.append({**entry, **more})
    return found + [entry for entry in set_up if entry["unit"] in by_unit]


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    systemctl, shown = module.get_bin_path("systemctl"), None
    names = unit_names()
    if systemctl is not None and os.path.isdir("/run/systemd/system"):
        shown = ""
        if names:
            rc, out, _err = module.run_command([systemctl, "show", f"--property={PROPERTIES}", "--", *names])
            shown = out if rc == 0 else None
    module.exit_json(
        changed=False, engines=merged(processes(), services(shown or "")), services_asked=shown is not None
    )


if __name__ == "__main__":
    main()
