#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_cpp_copy
short_description: Take the build of llama.cpp of another host where it runs here
version_added: 0.1.0
description:
  - One host offers its build in use, others take it. A build is taken where source, options, distribution and CUDA
    toolkit are the same, this CPU has all instructions of the other one, and the build has the architecture of each
    card here.
  - The role P(homelab.mixed_gpu.llama_cpp#role) carries the archive from the one host over the controller to the
    others, never in the other direction.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
options:
  state:
    description:
      - V(offered) says what this host offers, V(packed) writes that as O(archive).
      - V(planned) says whether O(offer) is taken here, and what is missing. V(offered) and V(planned) change nothing.
      - V(present) takes O(offer) from O(archive), and switches to it. The archive is removed then.
    type: str
    choices: [offered, packed, planned, present]
    default: planned
  settings:
    description:
      - The variables of the role P(homelab.mixed_gpu.llama_cpp#role), without the prefix C(llama_cpp_).
    type: dict
    required: true
  host:
    description: What sentences call this host.
    type: str
    required: true
  offer:
    description: For V(planned) and V(present), what another host has returned for V(offered).
    type: dict
    default: {}
  archive:
    description: For V(packed) and V(present), a file on this host.
    type: path
  sha256:
    description: For V(present), the SHA-256 of O(archive) as V(packed) has returned it on the other host.
    type: str
    default: ""
  host_python:
    description: Python interpreter that has C(nvidia-ml-py), used where the cards must tell their compute capability.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
  upgrade_record:
    description: Record of the upgrades of the host. The builds of an upgrade under way are not removed.
    type: path
    default: /var/lib/mixed_gpu/upgrade.json
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Plan the copy of a build
  homelab.mixed_gpu.llama_cpp_copy:
    settings: "{{ example_settings }}"
    host: pc2
    offer: "{{ example_offer }}"
  register: example_copy
"""

RETURN = r"""
offer:
  description: What this host offers, as O(offer) takes it; empty where it has built nothing.
  returned: state is offered
  type: dict
sha256:
  description: SHA-256 of O(archive).
  returned: state is packed
  type: str
plan:
  description:
    - Whether the offered build is C(taken) (else llama.cpp is to be built here) and whether that means a change
      (C(changed)), both with C(why), one sentence; whether the archive is needed (C(missing)), and the
      C(missing_packages) of its libraries.
  returned: state is planned
  type: dict
"""

import os
import pathlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError, explained
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages, cards, host, host_hardware
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    build_archive,
    build_copy,
    build_job,
    build_plan,
    build_state,
)

Result = dict[str, t.Any]


class Host:
    """The builds of one host, and what another one offers."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.offer = module, module.params["offer"]
        self.settings = module.params["settings"]
        self.prefix = pathlib.Path(self.settings["prefix"])

    def machine(self) -> build_copy.Machine:
        """Return what decides here whether a build runs."""
        system = host.operating_system(host_hardware.read("/etc/os-release") or "")
        toolkit, targets = "", None
        if build_plan.uses_cuda(self.settings):
            tool = build_plan.tools(self.settings)[-1]
            try:
                rc, out, _err = self.module.run_command(list(tool.argv), handle_exceptions=False)
            except OSError:  # it is not installed, as in check mode on a new host
                rc, out = 127, ""
            toolkit = build_plan.summarise_toolchain({tool.name: out})[tool.name] if rc == 0 else ""
            targets = [str(one) for one in self.settings["cuda_architectures"]] or self.targets()
        name = f"{system['id']} {system['version_id'] or 'without a release'}"
        return build_copy.Machine(name, host_hardware.cpu_flags(), toolkit, targets)

    def targets(self) -> list[str] | None:
        """Return the CUDA architectures of the cards here."""
        on_bus = card_ages.cards(host_hardware.nvidia_devices(), self.settings.get("slots_left_out") or ())
        return card_ages.targets(cards.read(self.module.params["host_python"]), on_bus)

    def offered(self) -> Result:
        """Say what this host has built."""
        record = build_state.read(self.prefix, build_plan.MAIN)
        packages = [] if record is None else self.packages(self.prefix / build_plan.directory(record) / "bin")
        offer = build_copy.offer(self.module.params["host"], record, self.machine(), packages)
        return {"changed": False, "offer": offer}

    def packages(self, programs: pathlib.Path) -> list[str]:
        """Return the packages whose libraries the programs of a build need; nothing of them is run."""
        files = sorted(path for path in programs.iterdir() if not path.is_symlink())
        if not files:  # links to programs of a package; then readelf may be missing, too
            return []
        _rc, out, _err = self.module.run_command(["readelf", "-d", *map(str, files)])
        names = build_copy.libraries(out, {path.name for path in programs.iterdir()})
        if not names:
            return []
        folder = f"*/{os.uname().machine}-linux-gnu"
        _rc, out, _err = self.module.run_command(["dpkg-query", "-S", *(f"{folder}/{name}" for name in names)])
        return build_copy.owners(out)

    def packed(self) -> Result:
        """Write the build in use as an archive."""
        directory = build_state.in_use(self.prefix, build_plan.MAIN)
        if self.module.check_mode:
            return {"changed": True, "sha256": ""}
        archive = pathlib.Path(self.module.params["archive"])
        return {"changed": True, "sha256": build_archive.pack(self.prefix / directory, archive)}

    def planned(self) -> Result:
        """Say whether the offered build is taken, and what is missing for that."""
        why_not = build_copy.why_not(self.offer, self.settings, self.machine())
        if why_not:
            why = f"llama.cpp is built on {self.module.params['host']}, and not copied: {why_not}."
            plan = {"taken": False, "changed": False, "why": why, "missing": False, "missing_packages": []}
            return {"changed": False, "plan": plan}
        directory = build_plan.directory(self.offer["record"])
        show = "${Package} ${db:Status-Status}\n"
        _rc, out, _err = self.module.run_command(["dpkg-query", "-W", "-f", show, "dpkg", *self.offer["packages"]])
        lacking = [name for name in self.offer["packages"] if f"{name} installed" not in out.splitlines()]
        missing = not build_state.exists(self.prefix, directory)
        own, other = self.module.params["host"], self.offer["host"]
        why = f"llama.cpp is not built on {own}: {directory} is copied from {other}."
        changed = missing or bool(lacking) or build_state.in_use(self.prefix, build_plan.MAIN) != directory
        plan = {"taken": True, "changed": changed, "why": why, "missing": missing, "missing_packages": lacking}
        return {"changed": changed, "plan": plan}

    def present(self) -> Result:
        """Take the offered build, and switch to it."""
        why_not = build_copy.why_not(self.offer, self.settings, self.machine())
        if why_not:
            raise UserError(f"The build is not for {self.module.params['host']} ({why_not}): run the role llama_cpp.")
        record = self.offer["record"]
        directory, now = build_plan.directory(record), build_state.in_use(self.prefix, build_plan.MAIN)
        missing = not build_state.exists(self.prefix, directory)
        if self.module.check_mode or not (missing or now != directory):
            return {"changed": missing or now != directory}
        os.umask(0o022)
        work = self.prefix / ".work"
        lock = job.Lock(work / "lock", directory, "llama.cpp")
        try:
            log = job.Log(work / "build.log")
            if missing:
                archive = pathlib.Path(self.module.params["archive"])
                build_job.receive(record, archive, self.module.params["sha256"], self.prefix, log)
                archive.unlink()
            path = self.prefix / directory
            build_state.check(path, record, self.settings["required_flags"])
            build_state.switch(self.prefix, build_plan.MAIN, directory)
            upgrade = pathlib.Path(self.module.params["upgrade_record"])
            removed = build_state.prune(self.prefix, self.settings["keep_builds"], [now] if now else [], upgrade)
        finally:
            lock.release()
        return {"changed": True, "removed": removed}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["offered", "packed", "planned", "present"], "default": "planned"},
            "settings": {"type": "dict", "required": True},
            "host": {"type": "str", "required": True},
            "offer": {"type": "dict", "default": {}},
            "archive": {"type": "path"},
            "sha256": {"type": "str", "default": ""},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "upgrade_record": {"type": "path", "default": "/var/lib/mixed_gpu/upgrade.json"},
        },
        required_if=[("state", "packed", ["archive"])],
        supports_check_mode=True,
    )
    try:
        with explained("llama_cpp", "A build of llama.cpp cannot be copied here", "settings or the offer"):
            result = getattr(Host(module), module.params["state"])()
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
