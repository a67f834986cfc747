#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: apt_transaction
short_description: Install, downgrade and remove packages in exact versions, in one step of apt
version_added: 0.1.0
description:
  - Gives apt one command that installs O(install) in exactly these versions and removes O(remove), so that packages
    which replace
    one another do so at once. Held packages and downgrades are allowed; other packages follow as apt's pins say.
  - The step is simulated first. When apt cannot do it, or would remove what it may not, nothing is changed.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  install:
    description: Versions by package.
    type: dict
    default: {}
  files:
    description: For packages of O(install) that are not to come from apt's sources, the path of a package file on
      the host.
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
  lock_timeout_seconds:
    description: How long to wait for another program that uses apt or dpkg.
    type: int
    default: 600
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Go back to a version
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
      returned: success
    name:
      description: Package.
      type: str
      returned: success
    from:
      description: Version before, or an empty text.
      type: str
      returned: success
    to:
      description: Version after, or an empty text.
      type: str
      returned: success
"""

import re
import typing as t

from ansible.module_utils.basic import AnsibleModule

ENVIRONMENT = {"DEBIAN_FRONTEND": "noninteractive", "LC_ALL": "C.UTF-8", "APT_LISTCHANGES_FRONTEND": "none"}
INSTALL = re.compile(r"Inst (\S+?)(?::\S+)? (?:\[(\S+)\] )?\((\S+) ")
REMOVE = re.compile(r"(?:Remv|Purg) (\S+?)(?::\S+)? (?:\[(\S+)\])?")


def parse_simulation(text: str) -> list[dict[str, str]]:
    """What `apt-get -s` says it would do, one dict per package: {action, name, from, to}."""
    actions = []
    for line in text.splitlines():
        if found := INSTALL.match(line):
            actions.append({"action": "install", "name": found[1], "from": found[2] or "", "to": found[3]})
        elif found := REMOVE.match(line):
            actions.append({"action": "remove", "name": found[1], "from": found[2] or "", "to": ""})
    return actions


def reason(out: str, err: str) -> str:
    """Why apt refuses, on one line."""
    lines = [line.strip() for line in (out + "\n" + err).splitlines()]
    depends = [line for line in lines if re.search(r"(Depends|Conflicts|Breaks|PreDepends): ", line)]
    errors = [line[3:] for line in lines if line.startswith("E: ")]
    return " / ".join((depends[:3] + errors)[:5])[:600] or "no message"


class Transaction:
    """One step of apt."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params

    def installed(self) -> dict[str, str]:
        """Versions of all installed packages; that of one which is only half there is empty."""
        show = "${db:Status-Status}\t${Package}\t${Version}\n"
        _rc, out, _err = self.module.run_command(["dpkg-query", "-W", "-f", show], check_rc=True)
        lines = (line.split("\t") for line in out.splitlines())
        gone = ("not-installed", "config-files")
        return {name: version if status == "installed" else "" for status, name, version in lines if status not in gone}

    def apt(self, words: list[str], simulate: bool) -> tuple[int, str, str]:
        options = [
            "-q", "-y", "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages",
            "--ignore-hold",
            "-o", f"DPkg::Lock::Timeout={self.params['lock_timeout_seconds']}",
            "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold",
        ]  # fmt: skip
        command = ["apt-get", *(["-s"] if simulate else []), *options, "install", *words]
        return self.module.run_command(command, environ_update=ENVIRONMENT)

    def run(self) -> dict[str, t.Any]:
        there, files = self.installed(), self.params["files"]
        wanted = {name: version for name, version in self.params["install"].items() if there.get(name) != version}
        gone = [name for name in self.params["remove"] if name in there]
        if not wanted and not gone:
            return {"changed": False, "actions": []}
        words = [files.get(name, f"{name}={version}") for name, version in sorted(wanted.items())]
        words += [f"{name}-" for name in sorted(gone)]
        rc, out, err = self.apt(words, simulate=True)
        if rc != 0:
            self.module.fail_json(msg=f"apt cannot do this ({reason(out, err)}); nothing was changed.")
        actions = parse_simulation(out)
        removable = re.compile(self.params["removable"]) if self.params["removable"] else None
        lost = [
            entry["name"]
            for entry in actions
            if entry["action"] == "remove"
            and entry["name"] not in gone
            and not (removable and removable.fullmatch(entry["name"]))
        ]
        if lost:
            self.module.fail_json(
                msg=f"apt would remove {', '.join(lost)} as well, so nothing was changed: remove them yourself "
                "first, if they are not "
                "needed."
            )
        result: dict[str, t.Any] = {"changed": True, "actions": actions}
        if self.module._diff:
            result["diff"] = {
                "before": "".join(f"{entry['name']} {entry['from']}\n" for entry in actions if entry["from"]),
                "after": "".join(f"{entry['name']} {entry['to']}\n" for entry in actions if entry["to"]),
            }
        if not self.module.check_mode:
            rc, out, err = self.apt(words, simulate=False)
            if rc != 0:
                self.module.fail_json(
                    msg=f"apt failed ({reason(out, err)}); its whole output is in /var/log/apt/term.log."
                )
        return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "install": {"type": "dict", "default": {}},
            "files": {"type": "dict", "default": {}},
            "remove": {"type": "list", "elements": "str", "default": []},
            "removable": {"type": "str", "default": ""},
            "lock_timeout_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    module.exit_json(**Transaction(module).run())


if __name__ == "__main__":
    main()
