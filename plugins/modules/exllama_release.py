#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: exllama_release
short_description: Install ExLlama with PyTorch and TabbyAPI, and switch to the new release atomically
version_added: 0.1.0
description:
  - A release is a directory named after a key, the hash of packages, Python, nvcc, architectures and TabbyAPI's
    commit. A release whose key exists is never made again.
  - A new release counts when engine and extension can be imported. The link to the release in use is switched last,
    and old releases are removed then.
  - The role P(homelab.mixed_gpu.exllamav2#role) installs the packages that this needs, and runs O(state=present) as a
    job.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
options:
  state:
    description:
      - V(planned) says what is missing, and changes nothing. What stops a release from being made or used is a
        failure; in check mode an earlier role may still change that, and it is one of the RV(actions).
      - V(present) makes the release, switches the link and removes old releases. Start it with C(async) and watch
        C(PREFIX/release.log) with M(homelab.mixed_gpu.follow).
      - V(verified) fails unless a release is in use.
    type: str
    choices: [planned, present, verified]
    default: planned
  settings:
    description:
      - The variables of the role P(homelab.mixed_gpu.exllamav2#role), without the prefix C(exllamav2_).
      - C(prefix) is the directory of all releases of the engine, C(requirements) the text of the requirements file.
    type: dict
    required: true
  try_import:
    description: For V(verified), whether engine and extension are imported too, which takes some seconds.
    type: bool
    default: true
  cards:
    description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts), for V(planned) and V(present).
    type: dict
"""

EXAMPLES = r"""
- name: Plan the release
  homelab.mixed_gpu.exllama_release:
    settings: "{{ example_settings }}"
    cards: "{{ ansible_facts['mixed_gpu_gpus'] }}"
  register: example_plan
"""

RETURN = r"""
actions:
  description: What would be done, one sentence each.
  returned: state is planned
  type: list
  elements: str
packages:
  description: Packages that making the release needs; empty where the release exists.
  returned: state is planned
  type: list
  elements: str
path:
  description: Directory of the release.
  returned: state is planned
  type: str
installed:
  description: >-
    The release in use, as C(present), C(venv), C(python), C(path), C(version), C(torch), C(torch_cuda), C(arch_list),
    C(key) and C(server_commit).
  returned: state is verified
  type: dict
"""

import os
import pathlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError, explained
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import release_job, release_plan

Result = dict[str, t.Any]
_SAY_VERSION = "import sys; print('%d.%d' % sys.version_info[:2])"


class Host:
    """The releases of one host, and what the variables ask for."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.settings = module.params["settings"]
        self.prefix = pathlib.Path(self.settings["prefix"])

    def say(self, *argv: str) -> str:
        """Return what a program prints, or "" where it does not run."""
        try:
            rc, out, _err = self.module.run_command(list(argv), handle_exceptions=False)
        except OSError:
            return ""
        return out.strip() if rc == 0 else ""

    def plan(self) -> tuple[release_plan.Record, list[str]]:
        """Return the release, and in check mode what stops it as yet. Raises UserError for what stops it otherwise."""
        found = self.module.params["cards"]
        python = self.say(self.settings["python"], "-c", _SAY_VERSION)
        release_plan.check_python(self.settings["python"], python)
        obstacles, wanted = [], []
        try:
            wanted = release_plan.architectures(self.settings, found)
        except UserError as exc:
            obstacles.append(str(exc))
        nvcc = self.say(f"{self.settings['cuda_root']}/bin/nvcc", "--version")
        record = release_plan.plan(self.settings, python, nvcc, wanted)
        driver = found["driver_version"] if found["available"] else ""
        obstacles += [text] if (text := release_plan.obstacle(record, driver)) else []
        if obstacles and not self.module.check_mode:
            raise UserError(obstacles[0])
        return record, obstacles

    def in_use(self) -> str:
        """Return the directory that the link leads to, or "" where there is none."""
        try:
            return os.readlink(self.prefix / "current")
        except OSError:
            return ""

    def is_complete(self, directory: str) -> bool:
        """Return whether the release in a directory is complete."""
        return (self.prefix / directory / "build.json").exists()

    def planned(self) -> Result:
        """Say what is missing."""
        record, obstacles = self.plan()
        directory, in_use = release_plan.directory(record), self.in_use()
        actions, packages = [], []
        if not self.is_complete(directory):
            packages = release_plan.packages(self.settings)
            what = f"{record['package']} {record['version']} with PyTorch {record['torch']}"
            actions.append(f"Install {what} into {self.prefix / directory}.")
            actions += [f"Unless an earlier role changes that: {text}" for text in obstacles]
            if not self.module.check_mode:
                release_job.check_disk(self.prefix)
        if in_use != directory:
            actions.append(f"Switch {self.prefix}/current to {directory}.")
            actions += self.removals(directory, in_use)
        return {
            "changed": bool(actions),
            "actions": actions,
            "packages": packages,
            "path": str(self.prefix / directory),
            "diff": {"before": f"current -> {in_use}\n" if in_use else "", "after": f"current -> {directory}\n"},
        }

    def removals(self, directory: str, in_use: str) -> list[str]:
        """Return what a switch to a directory will remove, one sentence each."""
        old = release_job.superfluous(self.prefix, self.settings["keep_releases"], directory, in_use)
        cache, most_mib = pathlib.Path(self.settings["pip_cache_dir"]), self.settings["pip_cache_mib"]
        _files, mib = job.oldest_files(cache, most_mib)
        names = ", ".join(str(path) for path in sorted(old))
        return [
            *([f"Remove {names} (exllamav2_keep_releases)."] if old else []),
            *([f"Remove the oldest {mib} MiB from {cache} (exllamav2_pip_cache_mib)."] if mib else []),
        ]

    def present(self) -> Result:
        """Make the release unless it exists, switch, and remove old releases."""
        record, _obstacles = self.plan()
        directory = release_plan.directory(record)
        if self.module.check_mode:
            return {"changed": not self.is_complete(directory) or self.in_use() != directory}
        os.umask(0o022)
        lock = job.Lock(self.prefix / ".lock", directory, "ExLlama")
        try:
            shell = job.Shell(job.Log(self.prefix / "release.log"), lock)
            made = not self.is_complete(directory)
            if made:
                release_job.make(record, self.settings, shell)
            in_use, removed = self.in_use(), []
            if in_use != directory:
                json_file.replace_link(str(self.prefix / "current"), directory)
                json_file.replace_link(str(self.prefix / "venv"), "current/venv")
                removed = release_job.prune(self.prefix, self.settings["keep_releases"], in_use)
                old, _mib = job.oldest_files(
                    pathlib.Path(self.settings["pip_cache_dir"]), self.settings["pip_cache_mib"]
                )
                for path in old:
                    path.unlink(missing_ok=True)
        finally:
            lock.release()
        return {"changed": made or in_use != directory, "removed": removed}

    def verified(self) -> Result:
        """Prove that the release in use can be imported."""
        path = self.prefix / "current/build.json"
        if not path.exists():
            raise UserError(f"{self.prefix} holds no release of ExLlama that is in use; run the role exllamav2.")
        venv = self.prefix / "venv"
        record = release_job.FORM.parse(json_file.read_text(str(path)) or "", str(path.resolve()))
        try:
            found = {name: record[name] for name in ("version", "torch", "torch_cuda", "arch_list", "key")}
            found |= {"path": str(self.prefix / release_plan.directory(record)), "present": True}
            found |= {"server_commit": record["server"]["commit"], "venv": str(venv), "python": f"{venv}/bin/python"}
        except (KeyError, TypeError) as exc:
            raise UserError(f"{path} lacks {exc}: remove {path.resolve().parent} and run the role again.") from exc
        if self.module.params["try_import"]:
            release_job.try_import(record, path.resolve().parent / "venv")
        return {"changed": False, "installed": found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["planned", "present", "verified"], "default": "planned"},
            "settings": {"type": "dict", "required": True},
            "try_import": {"type": "bool", "default": True},
            "cards": {"type": "dict"},
        },
        required_if=[("state", "planned", ("cards",)), ("state", "present", ("cards",))],
        supports_check_mode=True,
    )
    try:
        with explained("exllamav2", "ExLlama cannot be installed here"):
            result = getattr(Host(module), module.params["state"])()
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
