#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: server_unit
short_description: Write the files of a server's unit, and restart the server when due
version_added: 0.1.0
description:
  - A restart is due when the server does not run, or when a file that it reads at its start changes. It is due as well
    when such a file was written after the start, because a run died before the restart.
  - In the way of a restart are a running measurement, another program on the server's port, and cards with less free
    memory than the recorded plan needs. The module fails then, writes nothing, and leaves the running server as it is.
  - It does not wait until a model is loaded, see M(homelab.mixed_gpu.llama_server_info).
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._host_python.nvml
attributes:
  diff_mode:
    support: partial
    details: Shows the unit; the other files may hold keys.
options:
  unit:
    description: Name of the unit.
    type: str
    required: true
  unit_text:
    description: Text of the unit's file, below C(/etc/systemd/system).
    type: str
    required: true
  files:
    description: Further files that the server reads when it starts.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: Path of the file.
        type: path
        required: true
      content:
        description: Text of the file. A file without content is removed.
        type: str
        required: true
      mode:
        description: Permissions, in octal digits.
        type: str
        default: "0600"
  api_key:
    description: The file of the key that the server asks for. Without the option the unit has none.
    type: dict
    suboptions:
      path:
        description: Path of the file, which only root may read.
        type: path
        required: true
      wanted:
        description: Whether the server asks for a key. Otherwise the file is removed.
        type: bool
        required: true
      given:
        description: The key. Without one, a file that holds a key stays, and else a key is generated.
        type: str
        default: ""
  port:
    description: TCP port that the server will listen on.
    type: int
    required: true
  conflicting_units:
    description:
      - Units that starting the server stops. They are disabled, or chance would decide which of the units runs after a
        boot.
    type: list
    elements: str
    default: []
  check_lease:
    description: Whether a running measurement is in the way of a restart.
    type: bool
    default: true
  entry:
    description:
      - Entry of the deployment, RV(homelab.mixed_gpu.split_record#module:entry). The memory that its plan counts on the
        cards must be free.
    type: dict
  must_start:
    description:
      - Whether the module fails, with the end of the journal, where systemd cannot start the server.
      - V(false) where the state of the server decides later, while a model is loaded for example.
    type: bool
    default: true
  unit_dir:
    description: Directory of units.
    type: path
    default: /etc/systemd/system
"""

EXAMPLES = r"""
- name: Run a server
  homelab.mixed_gpu.server_unit:
    unit: exllama-server.service
    unit_text: "{{ lookup('ansible.builtin.template', 'exllama-server.service.j2') }}"
    port: 5000
    conflicting_units: [llama-server.service]
    must_start: false
"""

RETURN = r"""
due:
  description: Why a restart was due, in words; V(none) when it was not.
  returned: success
  type: str
restarted:
  description: Whether the server was restarted, or would be in check mode.
  returned: success
  type: bool
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import (
    access_key,
    host_python,
    json_file,
    systemd,
    unit_end,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import cards, host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import restart_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import device_list

JOURNAL_LINES: t.Final = 20
KEY_MODE: t.Final = 0o600
PROPERTIES: t.Final = (
    "LoadState",
    "ActiveState",
    "SubState",
    "NeedDaemonReload",
    "ActiveEnterTimestampMonotonic",
    "MainPID",
    "UnitFileState",
)


class Server:
    """One server: its unit, the units that its start stops, and its files."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.unit = systemd.unit_name(self.params["unit"])
        self.others = [systemd.unit_name(name) for name in self.params["conflicting_units"]]
        self.units = {name: systemd.show(module, name, *PROPERTIES) for name in (self.unit, *self.others)}
        path = os.path.join(self.params["unit_dir"], self.unit)
        unit_file = {"path": path, "content": self.params["unit_text"], "mode": "0644"}
        self.modes = {file["path"]: int(file["mode"], 8) for file in [*self.params["files"], unit_file]}
        self.files = [self.file(file["path"], file["content"]) for file in [*self.params["files"], unit_file]]
        if self.params["api_key"]:
            self.files.insert(0, self.key_file(**self.params["api_key"]))

    def file(self, path: str, content: str) -> restart_check.File:
        """Return a file as it is and as it will be."""
        now = json_file.read_text(path)
        return restart_check.File(path, now, content or None, 0.0 if now is None else os.stat(path).st_mtime)

    def key_file(self, path: str, wanted: bool, given: str) -> restart_check.File:
        """Return the file of the key as it is and as it will be."""
        found = self.file(path, access_key.text(given, json_file.read_text(path)) if wanted else "")
        self.modes[path] = KEY_MODE
        self.module.no_log_values |= {text.strip() for text in (found.now, found.wanted) if text and text.strip()}
        return found

    def run(self) -> dict[str, t.Any]:
        """Write, and restart when due; return the module's result."""
        unit = self.units[self.unit]
        started = time.time() - (time.monotonic() - int(unit.get("ActiveEnterTimestampMonotonic") or 0) / 1e6)
        due = restart_check.due(unit, started, self.files)
        boot = [name for name in self.others if self.units[name].get("UnitFileState") == "enabled"]
        off = unit.get("UnitFileState") != "enabled"
        if not self.module.check_mode:
            if due and (obstacles := self.obstacles()):
                raise UserError(
                    f"{' '.join(obstacles)} The running server was left as it is; a restart is due, since {due}."
                )
            self.write()
            self.start(due is not None, boot, off)
        text = self.files[-1]
        diff = {"before_header": text.path, "before": text.now or "", "after_header": text.path, "after": text.wanted}
        return {"changed": bool(due or boot or off), "restarted": due is not None, "due": due, "diff": diff}

    def obstacles(self) -> list[str]:
        """Return what is in the way of a restart."""
        lease = systemd.show(self.module, lease_unit.UNIT, "ActiveState").get("ActiveState", "")
        port, ss = self.params["port"], self.module.get_bin_path("ss")
        listeners = host.listening(port, ss, self.module.run_command) or []
        return [
            *(restart_check.measurement(lease_unit.UNIT, lease) if self.params["check_lease"] else []),
            *restart_check.port(port, listeners, self.units),
            *self.memory_obstacles(),
            *self.ram_obstacles(),
        ]

    def ram_obstacles(self) -> list[str]:
        """Return whether RAM is missing for experts."""
        entry = self.params["entry"]
        if not entry or not entry.get("experts_in_ram"):
            return []
        found = host.memory(json_file.read_text("/proc/meminfo") or "")
        leaves = any(unit.get("ActiveState") in ("active", "activating") for unit in self.units.values())
        return restart_check.ram(entry, found["memory_available_mib"], found["memory_total_mib"], leaves)

    def memory_obstacles(self) -> list[str]:
        """Return which cards have no room for the plan; asks no driver where the plan needs no card."""
        entry = self.params["entry"]
        if not entry or not device_list.cuda_ids(entry["devices"]):
            return []
        found = cards.read(self.params["host_python"])
        if not found["available"]:
            return [f"The free memory of the cards is unknown: {found['reason']}"]
        leaving = {int(unit.get("MainPID") or 0) for unit in self.units.values()}
        return restart_check.memory(entry, found["gpus"], leaving)

    def write(self) -> None:
        """Write the files that differ, and remove those without content."""
        for file in self.files:
            if file.wanted is not None and file.now != file.wanted:
                json_file.write_text(file.path, file.wanted, self.modes[file.path], self.module.atomic_move)
            elif file.wanted is None and file.now is not None:
                os.unlink(file.path)

    def systemctl(self, *words: str) -> tuple[int, str]:
        """Run systemctl; return its exit status and error output."""
        rc, _out, err = self.module.run_command(["systemctl", *words])
        return rc, err.strip()

    def start(self, restart: bool, boot: list[str], off: bool) -> None:
        """Enable the server alone, and restart it when due. Raises UserError where that must work and does not."""
        for unit in boot:
            self.systemctl("disable", unit)
        if restart:
            self.systemctl("reset-failed", self.unit)
            self.systemctl("daemon-reload")
        if off:
            self.systemctl("enable", self.unit)
        rc, err = self.systemctl("restart", self.unit) if restart else (0, "")
        if rc != 0 and self.params["must_start"]:
            command = ["journalctl", "--no-pager", "--quiet", "-o", "cat", "-n", str(JOURNAL_LINES), "-u", self.unit]
            _rc, out, _err = self.module.run_command(command)
            ended = unit_end.why(self.unit, systemd.show(self.module, self.unit, *unit_end.PROPERTIES))
            reason = ended.rstrip(".") or (err or f"exit status {rc}").splitlines()[0]
            sentence = f"{self.unit} did not start ({reason}); the end of its journal:"
            raise UserError("\n".join([sentence, *out.splitlines()]))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "unit": {"type": "str", "required": True},
            "unit_text": {"type": "str", "required": True},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True, "no_log": True},
                    "mode": {"type": "str", "default": "0600"},
                },
            },
            "api_key": {
                "type": "dict",
                "no_log": False,
                "options": {
                    "path": {"type": "path", "required": True},
                    "wanted": {"type": "bool", "required": True},
                    "given": {"type": "str", "default": "", "no_log": True},
                },
            },
            "port": {"type": "int", "required": True},
            "conflicting_units": {"type": "list", "elements": "str", "default": []},
            "check_lease": {"type": "bool", "default": True},
            "entry": {"type": "dict"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "must_start": {"type": "bool", "default": True},
            "unit_dir": {"type": "path", "default": "/etc/systemd/system"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**Server(module).run())
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{exc.filename} cannot be written ({exc.strerror}): run as root, and make room there.")
    except (KeyError, TypeError, ValueError) as exc:
        module.fail_json(msg=f"The entry of the deployment is not complete ({exc}): run the tuning play again.")


if __name__ == "__main__":
    main()
