#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_transaction
short_description: Install, downgrade and remove packages in one step of apt, and show the progress
version_added: 0.1.0
description:
  - Gives apt one command that installs O(packages) in any version and O(install) in exact versions, and removes
    O(remove), so that packages which replace one another do so at once. Held packages and downgrades are allowed;
    other packages follow as apt's pins say.
  - The step is simulated first. When apt cannot do it, or would remove what it may not, nothing is changed.
  - The step runs as a job on the host, and the newest line of apt's log is printed meanwhile. Where nothing is to be
    done, no job is started.
  - A failure is one message with the packages, apt's reason, and a cure.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
attributes:
  check_mode:
    details: With O(update_lists), a step that apt cannot simulate is no failure, since the package lists may be old.
options:
  packages:
    description: Packages to install in the version that apt prefers. An installed one is left as it is.
    type: list
    elements: str
    default: []
  install:
    description: Exact versions by package.
    type: dict
    default: {}
  files:
    description: For packages of O(install) that are not to come from apt's sources, the path of a package file on the
      host.
    type: dict
    default: {}
  remove:
    description: Packages to remove. Those that are not installed do not count.
    type: list
    elements: str
    default: []
  removable:
    description: Regular expression of further packages that apt may remove, matched against the whole name. Empty
      means none.
    type: str
    default: ""
  update_lists:
    description:
      - Whether to fetch the package lists first, where something is to be done. A source that cannot be reached fails
        the step only when packages are missing because of it.
    type: bool
    default: false
  pin_path:
    description: File of apt preferences to write before the step, and to put back as it was when the step fails.
    type: path
  pin:
    description: Text of O(pin_path).
    type: str
    default: ""
  label:
    description: What is printed in front of each line of progress.
    type: str
    default: installing packages
  timeout_seconds:
    description: After this many seconds apt is stopped, and the task fails.
    type: float
    default: 3600
  cure_unknown:
    description: End of the message where apt's sources do not have a package. Empty means to check these.
    type: str
    default: ""
  look_only:
    description: Only return whether something is to be done, without asking apt.
    type: bool
    default: false
"""

EXAMPLES = r"""
- name: Install the build tools
  homelab.mixed_gpu.apt_transaction:
    packages: [cmake, g++]
    update_lists: true
    label: installing the build tools

- name: Install an older driver
  homelab.mixed_gpu.apt_transaction:
    install:
      nvidia-dkms-580-open: 580.95.05-0ubuntu1
      libnvidia-compute-580: 580.95.05-0ubuntu1
    removable: (lib)?nvidia-.*
"""

RETURN = r"""
actions:
  description: What apt did, or would do in check mode.
  returned: success
  type: list
  elements: dict
  sample: [{action: install, name: nvidia-dkms-580-open, from: 580.105.08-0ubuntu1, to: 580.95.05-0ubuntu1}]
  contains:
    action:
      description: V(install) or V(remove).
      type: str
    name:
      description: Package.
      type: str
    from:
      description: Version before, or an empty text.
      type: str
    to:
      description: Version after, or an empty text where that is not known.
      type: str
"""

import contextlib
import os
import re
import signal
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import apt

OPTIONS: t.Final = (
    "-q", "-y", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", "--ignore-hold",
    "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
)  # fmt: skip


def _end(*_signal: t.Any) -> t.NoReturn:
    raise SystemExit(143)


@contextlib.contextmanager
def preferences(path: str | None, text: str) -> t.Iterator[None]:
    """Have `text` at `path` from now on, or what was there before again, when the body fails or is terminated."""
    if path is None:
        yield
        return
    before = json_file.read_text(path)
    # whoever stops a job that takes too long sends SIGTERM first
    signal.signal(signal.SIGTERM, _end)
    try:
        json_file.write_text(path, text, 0o644, os.replace)
        yield
    except BaseException:
        if before is None:
            os.unlink(path)
        else:
            json_file.write_text(path, before, 0o644, os.replace)
        raise


class Transaction:
    """One step of apt."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.update_problem = ""

    def run(self) -> dict[str, t.Any]:
        """Return the module's result."""
        there = self._installed()
        exact = {name: version for name, version in self.params["install"].items() if there.get(name) != version}
        any_version = [name for name in self.params["packages"] if not there.get(name) and name not in exact]
        gone = [name for name in self.params["remove"] if name in there]
        if not exact and not any_version and not gone:
            return {"changed": False, "actions": []}
        if self.params["look_only"]:
            return {"changed": True, "actions": []}
        files = self.params["files"]
        words = [files.get(name, f"{name}={version}") for name, version in sorted(exact.items())]
        words += [*sorted(any_version), *(f"{name}-" for name in sorted(gone))]
        names = sorted([*exact, *any_version]) or sorted(gone)
        with preferences(None if self.module.check_mode else self.params["pin_path"], self.params["pin"]):
            if self.params["update_lists"] and not self.module.check_mode:
                self.update_problem = apt.update_lists(self._run)
            return self._change(names, words, gone)

    def _change(self, names: list[str], words: list[str], gone: list[str]) -> dict[str, t.Any]:
        rc, out, err = self._apt(words, simulate=True)
        if rc != 0:
            if self.module.check_mode and self.params["update_lists"]:
                # the package lists of now may be empty or old: what comes along is not known yet
                actions = [{"action": "install", "name": name, "from": "", "to": ""} for name in names]
                return {"changed": True, "actions": actions}
            self._fail(names, out, err, changed=False)
        actions = apt.parse_simulation(out)
        removable = re.compile(self.params["removable"] or r"(?!)")
        removed = [entry["name"] for entry in actions if entry["action"] == "remove" and entry["name"] not in gone]
        lost = [name for name in removed if not removable.fullmatch(name)]
        if lost:
            cure = f"remove {', '.join(lost)} yourself, if not needed, then run the play again"
            self.module.fail_json(msg=apt.failure(names, f"apt would remove {', '.join(lost)} as well", False, cure))
        result: dict[str, t.Any] = {"changed": True, "actions": actions}
        if self.module._diff:
            result["diff"] = {
                "before": "".join(f"{entry['name']} {entry['from']}\n" for entry in actions if entry["from"]),
                "after": "".join(f"{entry['name']} {entry['to']}\n" for entry in actions if entry["to"]),
            }
        if not self.module.check_mode:
            rc, out, err = self._apt(words, simulate=False)
            if rc != 0:
                self._fail(names, out, err, changed=True)
        return result

    def _fail(self, names: list[str], out: str, err: str, changed: bool) -> None:
        unknown = apt.unknown_packages(err)
        why = f"the host's apt sources do not have {', '.join(unknown)}" if unknown else apt.reason(out, err)
        if self.update_problem:
            why += f" (package lists could not all be fetched: {self.update_problem})"
        # a source out of reach is a matter of the network, not of a source that is missing
        cure = self.params["cure_unknown"] if unknown and not self.update_problem else ""
        self.module.fail_json(msg=apt.failure(names, why, changed, cure))

    def _installed(self) -> dict[str, str]:
        """Versions of all installed packages; that of one which is only half there is empty."""
        show = "${db:Status-Status}\t${Package}\t${Version}\n"
        _rc, out, _err = self.module.run_command(["dpkg-query", "-W", "-f", show], check_rc=True)
        lines = (line.split("\t") for line in out.splitlines())
        gone = ("not-installed", "config-files")
        return {name: version if status == "installed" else "" for status, name, version in lines if status not in gone}

    def _apt(self, words: list[str], simulate: bool) -> tuple[int, str, str]:
        return self._run(["apt-get", *(["-s"] if simulate else []), *OPTIONS, "install", *words])

    def _run(self, command: list[str]) -> tuple[int, str, str]:
        lock = ["-o", f"DPkg::Lock::Timeout={apt.LOCK_SECONDS}"]
        return self.module.run_command([command[0], *lock, *command[1:]], environ_update=apt.ENVIRONMENT)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "packages": {"type": "list", "elements": "str", "default": []},
            "install": {"type": "dict", "default": {}},
            "files": {"type": "dict", "default": {}},
            "remove": {"type": "list", "elements": "str", "default": []},
            "removable": {"type": "str", "default": ""},
            "update_lists": {"type": "bool", "default": False},
            "pin_path": {"type": "path"},
            "pin": {"type": "str", "default": ""},
            "label": {"type": "str", "default": "installing packages"},
            "timeout_seconds": {"type": "float", "default": 3600},
            "cure_unknown": {"type": "str", "default": ""},
            "look_only": {"type": "bool", "default": False},
        },
        required_by={"pin_path": ("pin",)},
        supports_check_mode=True,
    )
    module.exit_json(**Transaction(module).run())


if __name__ == "__main__":
    main()
