#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_cpp_copy
short_description: Take the build of llama.cpp of another host where it runs here
version_added: 0.1.0
description:
  - One host offers its build, others take it. A build is taken where source, options, distribution and CUDA toolkit
    are the same. This CPU must have all instructions of the other one, and the build the architecture of each card
    here.
  - The role P(homelab.mixed_gpu.llama_cpp#role) carries the archive from the one host over the controller to the
    others, never in the other direction.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
  - homelab.mixed_gpu._host_python.nvml
options:
  state:
    description:
      - V(described) says what decides here whether a build is taken, for the host that builds.
      - V(offered) says what this host offers, V(packed) writes that as O(archive); with O(record), of a build that need
        not be in use.
      - V(planned) says whether O(offer) is taken here, and what is missing. Like V(described) and V(offered), it
        changes nothing.
      - V(built) takes O(offer) from O(archive), and V(present) switches to it, too. The archive is removed then.
    type: str
    choices: [described, offered, packed, planned, built, present]
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
  record:
    description:
      - For V(offered) and V(packed), the build as the C(planned) of M(homelab.mixed_gpu.llama_cpp_build) describes it.
        It need not be built yet to be offered. Empty means the build in use.
    type: dict
    default: {}
  offer:
    description: For V(planned), V(built) and V(present), what another host has returned for V(offered).
    type: dict
    default: {}
  archive:
    description: For V(packed), V(built) and V(present), a file on this host.
    type: path
  sha256:
    description: For V(built) and V(present), the SHA-256 of O(archive) as V(packed) has returned it on the other host.
    type: str
    default: ""
  upgrade_record:
    description: Record of the upgrades of the host. The builds of an upgrade under way are not removed.
    type: path
    default: /var/lib/mixed_gpu/upgrade.json
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
description:
  description: An entry of C(llama_cpp_offer_to) of the role P(homelab.mixed_gpu.llama_cpp#role) on the other host.
  returned: state is described
  type: dict
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
      C(missing_packages) of its libraries. C(wanted) is the version and the directories of a build that is taken, as in
      the C(planned) of M(homelab.mixed_gpu.llama_cpp_build), and empty else.
  returned: state is planned
  type: dict
"""

import os
import pathlib
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError, explained
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import compile_host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    build_archive,
    build_copy,
    build_job,
    build_plan,
    build_state,
)

Result = dict[str, t.Any]
STATES: t.Final = ["described", "offered", "packed", "planned", "built", "present"]


class Host:
    """The builds of one host, and what another one offers."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.offer = module, module.params["offer"]
        self.settings = module.params["settings"]
        self.prefix = pathlib.Path(self.settings["prefix"])

    def machine(self) -> build_copy.Machine:
        """Return what decides here whether a build runs."""
        toolkit, targets = "", None
        if build_plan.uses_cuda(self.settings):
            tool = build_plan.tools(self.settings)[-1]
            try:
                rc, out, _err = self.module.run_command(list(tool.argv), handle_exceptions=False)
            except OSError:  # it is not installed, as in check mode on a new host
                rc, out = 127, ""
            toolkit = build_plan.summarise_toolchain({tool.name: out})[tool.name] if rc == 0 else ""
            given = [str(one) for one in self.settings["cuda_architectures"]]
            python, left_out = self.module.params["host_python"], self.settings.get("slots_left_out") or ()
            targets = given or compile_host.targets(python, left_out).architectures
        return build_copy.Machine(*compile_host.system(), toolkit, targets)

    def described(self) -> Result:
        """Say what decides here whether a build of another host is taken."""
        return {"changed": False, "description": build_copy.described(self.settings, self.machine())}

    def offered(self) -> Result:
        """Say what this host has built, or will build."""
        record = self.record()
        programs = self.prefix / (build_plan.directory(record) if record else "") / "bin"
        packages = self.packages(programs) if record and programs.exists() else []
        offer = build_copy.offer(self.module.params["host"], record, self.machine(), packages)
        return {"changed": False, "offer": offer}

    def record(self) -> build_state.Record | None:
        """Return what the build to offer says of itself, or will say; None without one."""
        planned: build_state.Record = self.module.params["record"]
        if not planned:
            return build_state.read(self.prefix, build_plan.MAIN)
        directory = build_plan.directory(planned)
        built = build_state.exists(self.prefix, directory)
        return build_state.parse(self.prefix / directory / "build.json") if built else planned

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
        """Write the build to offer as an archive."""
        if self.module.check_mode:
            return {"changed": True, "sha256": ""}
        record = self.record()
        if record is None:
            raise UserError(f"{self.prefix} has no build to offer: run the role llama_cpp.")
        directory = build_plan.directory(record)
        archive = pathlib.Path(self.module.params["archive"])
        return {"changed": True, "sha256": build_archive.pack(self.prefix / directory, archive)}

    def planned(self) -> Result:
        """Say whether the offered build is taken, and what is missing for that."""
        why_not = build_copy.why_not(self.offer, self.settings, self.machine())
        if why_not:
            why = f"llama.cpp is built on {self.module.params['host']}, and not copied: {why_not}."
            plan = {"taken": False, "changed": False, "why": why, "missing": False, "missing_packages": []}
            return {"changed": False, "plan": plan | {"wanted": {}}}
        directory = build_plan.directory(self.offer["record"])
        show = "${Package} ${db:Status-Status}\n"
        _rc, out, _err = self.module.run_command(["dpkg-query", "-W", "-f", show, "dpkg", *self.offer["packages"]])
        lacking = [name for name in self.offer["packages"] if f"{name} installed" not in out.splitlines()]
        missing = not build_state.exists(self.prefix, directory)
        own, other = self.module.params["host"], self.offer["host"]
        why = f"llama.cpp is not built on {own}: {directory} is copied from {other}."
        changed = missing or bool(lacking) or build_state.in_use(self.prefix, build_plan.MAIN) != directory
        plan = {"taken": True, "changed": changed, "why": why, "missing": missing, "missing_packages": lacking}
        wanted = {"version": self.offer["record"]["version"], "builds": {build_plan.MAIN: directory}}
        return {"changed": changed, "plan": plan | {"wanted": wanted}}

    def built(self) -> Result:
        """Take the offered build, and switch nothing."""
        return self.present(switch=False)

    def present(self, switch: bool = True) -> Result:
        """Take the offered build, and switch to it unless C(switch) says no."""
        why_not = build_copy.why_not(self.offer, self.settings, self.machine())
        if why_not:
            raise UserError(f"The build is not for {self.module.params['host']} ({why_not}): run the role llama_cpp.")
        record = self.offer["record"]
        directory, now = build_plan.directory(record), build_state.in_use(self.prefix, build_plan.MAIN)
        missing = not build_state.exists(self.prefix, directory)
        moves = switch and now != directory
        if self.module.check_mode or not (missing or moves):
            return {"changed": missing or moves}
        os.umask(0o022)
        work = self.prefix / ".work"
        lock = job.Lock(work / "lock", directory, "llama.cpp")
        try:
            log = job.Log(work / "build.log")
            if missing:
                archive = pathlib.Path(self.module.params["archive"])
                build_job.receive(record, archive, self.module.params["sha256"], self.prefix, log)
                archive.unlink()
            build_state.check(self.prefix / directory, record, self.settings["required_flags"])
            removed = self.switch(directory, now) if moves else []
        finally:
            lock.release()
        return {"changed": True, "removed": removed}

    def switch(self, directory: str, now: str) -> list[str]:
        """Lead the link to a build, and return what was removed of those before it; C(now) is the one in use."""
        build_state.switch(self.prefix, build_plan.MAIN, directory)
        upgrade = pathlib.Path(self.module.params["upgrade_record"])
        return build_state.prune(self.prefix, self.settings["keep_builds"], [now] if now else [], upgrade)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": STATES, "default": "planned"},
            "settings": {"type": "dict", "required": True},
            "host": {"type": "str", "required": True},
            "record": {"type": "dict", "default": {}},
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
