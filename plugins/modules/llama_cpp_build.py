#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_cpp_build
short_description: Build llama.cpp and switch to the new build atomically
version_added: 0.1.0
description:
  - Each build is a directory named after a key, the hash of source, flags, compilers, CPU and CUDA version. A build
    whose key exists is never built again.
  - A new build appears when it is complete and its programs run. The link to the build in use is switched last, and
    old builds are removed then.
  - The role P(homelab.mixed_gpu.llama_cpp#role) installs the packages that building needs, and runs O(state=present)
    as a job.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._host_python.nvml
options:
  state:
    description:
      - V(planned) says what is missing, V(offered) fails for a source that cannot be had. Both change nothing.
      - V(built) builds what is missing. V(present) does so too, switches the links and removes old builds. Start both
        with C(async) and watch C(PREFIX/.work/build.log) with M(homelab.mixed_gpu.follow).
      - V(verified) fails unless the builds in use are of the source asked for, run, and have the options that other
        roles use.
      - V(switched) leads links to the builds that O(use) names, and builds nothing. V(pruned) removes old builds; those
        that O(use) names count as used last.
    type: str
    choices: [planned, offered, built, present, verified, switched, pruned]
    default: planned
  settings:
    description:
      - The variables of the role P(homelab.mixed_gpu.llama_cpp#role), without the prefix C(llama_cpp_).
    type: dict
    required: true
  use:
    description: Directories below the prefix by the name of the build, V(main) for the main one.
    type: dict
    default: {}
  upgrade_record:
    description: Record of the upgrades of the host. The builds of an upgrade under way are not removed.
    type: path
    default: /var/lib/mixed_gpu/upgrade.json
"""

EXAMPLES = r"""
- name: Plan the builds
  homelab.mixed_gpu.llama_cpp_build:
    settings: "{{ example_settings }}"
  register: example_plan

- name: Start the build
  homelab.mixed_gpu.llama_cpp_build:
    state: present
    settings: "{{ example_settings }}"
  async: 86400
  poll: 0
  register: example_job
  when: example_plan.changed
"""

RETURN = r"""
missing_packages:
  description: Packages that building needs and the host lacks.
  returned: state is planned
  type: list
  elements: str
actions:
  description: What would be done, one sentence each.
  returned: state is planned
  type: list
  elements: str
planned:
  description:
    - C(present) and C(wanted), what is in use and what the variables ask for. Both have C(version), that of the main
      build, and C(builds), the directories by name. C(record) is what the C(build.json) of the main build will say.
      C(wanted) and C(record) are empty where a missing tool leaves the key unknown.
  returned: state is planned
  type: dict
installed:
  description:
    - The main build, as C(present), C(link), C(path), C(bin_dir), C(version), C(build), C(commit), C(key), and
      C(extra_builds), a dict from the name of each extra build to the same fields.
  returned: state is verified
  type: dict
"""

import http.client
import os
import pathlib
import typing as t

from ansible.module_utils import urls
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, job, package_index
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError, explained
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import compile_host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    build_copy,
    build_fetch,
    build_job,
    build_plan,
    build_source,
    build_state,
    web_ui_build,
)

Result = dict[str, t.Any]
STATES: t.Final = ["planned", "offered", "built", "present", "verified", "switched", "pruned"]


class Host:
    """The builds of one host, and what the variables ask for."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.settings = module.params["settings"]
        self.prefix = pathlib.Path(self.settings["prefix"])
        build_plan.validate(self.settings)

    def names(self) -> list[str]:
        """Return the names of the builds, the main one first."""
        return [build_plan.MAIN, *(build["name"] for build in self.settings["extra_builds"])]

    def packages(self) -> dict[str, str]:
        """Return the versions of the packages that matter and are installed."""
        show = "${Package} ${db:Status-Status} ${Version}\n"
        # dpkg: never an empty list
        argv = ["dpkg-query", "-W", "-f", show, "dpkg", *build_plan.packages(self.settings)]
        _rc, out, _err = self.module.run_command(argv)
        lines = [line.split(" ", 2) for line in out.splitlines()]
        return {name: version for name, status, version in lines if status == "installed"}

    def toolchain(self) -> tuple[dict[str, str], list[tuple[build_plan.Tool, str]]]:
        """Return what the tools print, and the tools that do not run, each with the reason."""
        said, broken = {}, []
        for tool in build_plan.tools(self.settings):
            try:
                rc, out, err = self.module.run_command(list(tool.argv), handle_exceptions=False)
            except OSError as exc:
                rc, out, err = 127, "", exc.strerror or str(exc)
            said[tool.name] = out
            if rc != 0:
                broken.append((tool, job.first_error([*err.splitlines(), *out.splitlines()])))
        return said, broken

    def architectures(self) -> tuple[list[t.Any], list[str]]:
        """Return the CUDA architectures to compile for, and what is missing to know them (in check mode)."""
        given = self.settings["cuda_architectures"]
        if given or not build_plan.uses_cuda(self.settings):
            return list(given), []
        left_out = self.settings.get("slots_left_out") or ()
        targets, reason = compile_host.targets(self.module.params["host_python"], left_out)
        if targets is not None:
            return targets, []
        if self.module.check_mode:
            return [], ["the NVIDIA driver"]
        raise UserError(
            f"The CUDA architecture of this host's cards is unknown ({reason}); correct that, or set "
            "llama_cpp_cuda_architectures, for a 3090 and a 4090 to [86, 89]."
        )

    def plan(self) -> tuple[list[build_plan.Build], list[str], list[str]]:
        """Return the builds, the missing packages, and what must be there before the builds are known (no builds then).

        Raises UserError for a tool that does not run, unless a missing package may bring the tool.
        """
        architectures, unknown = self.architectures()
        installed = self.packages()
        missing = [name for name in build_plan.packages(self.settings) if name not in installed]
        said, broken = self.toolchain()
        if broken and not missing and not self.module.check_mode:
            tool, reason = broken[0]
            raise UserError(f"{tool.argv[0]} does not run ({reason}); {tool.cure}")
        if missing and (broken or self.settings["source"] == "package"):
            unknown += missing
        elif broken:
            unknown += sorted({tool.argv[0] for tool, _reason in broken})
        if unknown:
            return [], missing, unknown
        source = build_plan.source(self.settings, installed)
        builds = build_plan.plan(self.settings, source, said, architectures)
        there = build_copy.Machine(*compile_host.system(), said.get("cuda", ""), None)
        now = build_state.read(self.prefix, build_plan.MAIN)
        further = build_copy.further_architectures(self.settings, builds[0].record, there, now)
        return build_plan.plan(self.settings, source, said, architectures, further), missing, []

    def links(self, builds: t.Iterable[tuple[str, str]]) -> dict[str, str]:
        """Return the diff of the links for pairs of name and directory."""
        pairs = list(builds)
        now = {name: build_state.in_use(self.prefix, name) for name, _directory in pairs}
        before = [f"{self.prefix / build_plan.link(name)} -> {now[name]}\n" for name, _directory in pairs if now[name]]
        after = [f"{self.prefix / build_plan.link(name)} -> {directory}\n" for name, directory in pairs]
        return {"before": "".join(before), "after": "".join(after)}

    def actions(self, builds: list[build_plan.Build], missing: list[str], unknown: list[str]) -> list[str]:
        """Return what has to be done, one sentence each."""
        found = [f"Install the packages {', '.join(missing)}."] if missing else []
        if unknown:
            found.append(
                f"Build llama.cpp from the source {self.settings['source']} into {self.prefix}; the key is unknown "
                f"until {', '.join(unknown)} can be used."
            )
        for build in builds:
            if not build_state.exists(self.prefix, build.directory):
                found.append(f"Build {build.directory} ({build.name}: {', '.join(build.record['targets'])}).")
            if build_state.in_use(self.prefix, build.name) != build.directory:
                found.append(f"Switch {self.prefix / build.link} to {build.directory}.")
        return found

    def removals(self, builds: list[build_plan.Build]) -> list[str]:
        """Return what a switch to these builds will remove, as at most one sentence."""
        moved = [build for build in builds if build_state.in_use(self.prefix, build.name) != build.directory]
        if not moved:
            return []
        previous = {build_state.in_use(self.prefix, build.name) for build in moved}
        needed = build_state.needed(self.prefix, pathlib.Path(self.module.params["upgrade_record"])) - previous
        needed |= {build.directory for build in builds}
        old = build_state.superfluous(self.prefix, self.settings["keep_builds"], previous, needed)
        downloads = build_state.spare_downloads(self.settings, [build.record for build in builds])
        names = [str(path) for path in [*sorted(old), *sorted(downloads)]]
        return [f"Remove {', '.join(names)} (llama_cpp_keep_builds, llama_cpp_keep_downloads)."] if names else []

    def planned(self) -> Result:
        """Say what is missing."""
        builds, missing, unknown = self.plan()
        actions = [*self.actions(builds, missing, unknown), *self.removals(builds)]
        if missing and not self.module.check_mode and (unknown or any(text.startswith("Build ") for text in actions)):
            build_job.check_resources(self.settings)
        there = {name: build_state.in_use(self.prefix, name) for name in self.names()}
        main = build_state.read(self.prefix, build_plan.MAIN)
        present = {"version": main["version"] if main else "", "builds": {k: v for k, v in there.items() if v}}
        version = builds[0].record["version"] if builds else ""
        wanted = {"version": version, "builds": {build.name: build.directory for build in builds}}
        return {
            "changed": bool(actions),
            "missing_packages": missing,
            "actions": actions,
            "planned": {"present": present, "wanted": wanted, "record": builds[0].record if builds else {}},
            "diff": self.links((build.name, build.directory) for build in builds),
        }

    def offered(self) -> Result:
        """Ask for the source of what has to be built."""
        builds, _missing, _unknown = self.plan()
        log = job.Log(self.prefix / ".work" / "offered.log")
        for build in builds:
            if not build_state.exists(self.prefix, build.directory):
                build_source.check_offered(self.settings, build.record["source"], log, self.open)
                if build.record["web_ui_node"]:
                    web_ui_build.check_offered(pathlib.Path(self.settings["download_dir"]), log, self.open)
        return {"changed": False}

    def present(self, switch: bool = True) -> Result:
        """Build what is missing; then check, switch, and remove old builds, unless C(switch) says no."""
        builds, missing, unknown = self.plan()
        if self.module.check_mode:
            actions = self.actions(builds, missing, unknown)
            return {"changed": any(switch or not action.startswith("Switch ") for action in actions)}
        if missing:
            raise UserError(f"The packages {', '.join(missing)} are missing; run the whole role llama_cpp.")
        os.umask(0o022)
        work = self.prefix / ".work"
        lock = job.Lock(work / "lock", " ".join(build.directory for build in builds), "llama.cpp")
        try:
            shell = job.Shell(job.Log(work / "build.log"), lock)
            made = [build for build in builds if not build_state.exists(self.prefix, build.directory)]
            for build in made:
                build_job.build(build, self.settings, shell, self.open)
            previous = self.switch({build.name: build.directory for build in builds}) if switch else None
            removed = [] if previous is None else self.clear(builds, previous)
        finally:
            lock.release()
        return {"changed": bool(made) or previous is not None, "removed": removed}

    def built(self) -> Result:
        """Build what is missing, and switch nothing."""
        return self.present(switch=False)

    def clear(self, builds: list[build_plan.Build], previous: t.Collection[str]) -> list[str]:
        """Remove what is not needed beside these builds and those that were used before; return what was removed."""
        record = pathlib.Path(self.module.params["upgrade_record"])
        removed = build_state.prune(self.prefix, self.settings["keep_builds"], previous, record)
        return removed + build_state.drop_downloads(self.settings, [build.record for build in builds])

    def pruned(self) -> Result:
        """Remove what is not needed beside the builds in use and those that were used last."""
        removed = [] if self.module.check_mode else self.clear(self.plan()[0], self.module.params["use"].values())
        return {"changed": bool(removed), "removed": removed}

    def switch(self, wanted: t.Mapping[str, str]) -> list[str] | None:
        """Check builds, then lead the links to them; return the builds used before, or None without a change."""
        moved = {name: to for name, to in wanted.items() if build_state.in_use(self.prefix, name) != to}
        for directory in moved.values():
            path = self.prefix / directory
            record = build_state.parse(path / "build.json")
            build_state.check(path, record, self.settings["required_flags"])
        previous = [build_state.in_use(self.prefix, name) for name in moved]
        for name, directory in moved.items():
            build_state.switch(self.prefix, name, directory)
        return [directory for directory in previous if directory] if moved else None

    def switched(self) -> Result:
        """Lead the links to builds that the host has."""
        use = self.module.params["use"]
        for name, directory in use.items():
            if not build_state.exists(self.prefix, directory):
                raise UserError(
                    f"{self.prefix / directory} does not exist any more, so llama.cpp ({name}) cannot be switched to "
                    "that build: build that version again with the role llama_cpp (llama_cpp_source and its variables)."
                )
        diff = self.links(use.items())
        if self.module.check_mode:
            return {"changed": diff["before"] != diff["after"], "diff": diff}
        for name, directory in use.items():
            if build_state.in_use(self.prefix, name) != directory:
                build_state.switch(self.prefix, name, directory)
        return {"changed": diff["before"] != diff["after"], "diff": diff}

    def verified(self) -> Result:
        """Prove that the builds in use are of the source asked for, and run."""
        records = {name: build_state.read(self.prefix, name) for name in self.names()}
        absent = [name for name, record in records.items() if record is None]
        if absent and not self.module.check_mode:
            raise UserError(
                f"{self.prefix} holds no build of llama.cpp named {', '.join(absent)}; run the role llama_cpp."
            )
        for record in records.values():
            if record is not None:
                self.verify(record)
        entries = {name: build_state.entry(self.prefix, name, record) for name, record in records.items()}
        main = entries.pop(build_plan.MAIN)
        extra = {name: entry for name, entry in entries.items() if entry["present"]}
        return {"changed": False, "installed": main | {"extra_builds": extra}}

    def verify(self, record: build_state.Record) -> None:
        """Raise UserError where a build is of another source, or does not run."""
        kind = self.settings["source"]
        if (
            kind != "package"
            and not self.module.check_mode
            and record["source"] != build_plan.source(self.settings, {})
        ):
            raise UserError(
                f"{self.prefix} holds llama.cpp {record['version']} from the source {record['source']['kind']}, which "
                "is not what the variables llama_cpp_* ask for; run the role llama_cpp to build that."
            )
        path = self.prefix / build_plan.directory(record)
        build_state.check(path, record, self.settings["required_flags"])
        build_state.check_version(path, record)

    def open(self, url: str, headers: t.Mapping[str, str]) -> build_fetch.Answer:
        """Open a URL with pip's certificates and proxy, so that one configuration serves all of the host's Python."""
        pip = package_index.settings(package_index.configuration_texts(os.environ), os.environ)
        if pip.proxy:
            os.environ.update(http_proxy=pip.proxy, https_proxy=pip.proxy)
        shown = package_index.without_password(url)
        try:
            answer = urls.open_url(
                url, headers=dict(headers), timeout=60, ca_path=pip.certificate or None, decompress=False,
                validate_certs=not pip.trusts(url),
            )  # fmt: skip
        except (OSError, ValueError, http.client.HTTPException) as exc:
            raise UserError(f"{shown} cannot be downloaded: {exc}; check the address and the network.") from exc
        length = str(answer.headers.get("Content-Length", ""))
        return build_fetch.Answer(answer, answer.geturl(), int(length) if length.isdecimal() else None)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": STATES, "default": "planned"},
            "settings": {"type": "dict", "required": True},
            "use": {"type": "dict", "default": {}},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "upgrade_record": {"type": "path", "default": "/var/lib/mixed_gpu/upgrade.json"},
        },
        supports_check_mode=True,
    )
    try:
        with explained("llama_cpp", "llama.cpp cannot be built here"):
            result = getattr(Host(module), module.params["state"])()
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
