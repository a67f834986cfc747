#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: measurement_lease
short_description: Acquire or release the exclusive use of the devices
version_added: 0.1.0
description:
  - Only one thing uses the devices at a time. The lease is a transient systemd unit, C(mixed-gpu-lease.service), that
    conflicts with the services in O(conflicts), so that systemd stops them while it is held.
  - However the lease ends (released, expired, unused, or its unit stopped by hand), systemd starts again those
    services that were running when it was acquired. These starts do not count against their C(StartLimitBurst=). After
    a reboot the lease is gone and enabled services start as usual.
  - The lease ends itself when nobody touched it for O(idle_seconds) and nothing is measuring, that is nobody holds
    O(lock_file). So the services come back when a play was killed or lost the host. Acquiring the lease again touches
    it, as does M(homelab.mixed_gpu.split_benchmark) at the start and the end of each load.
  - A second owner waits for the lease to end, and is refused after O(wait_seconds).
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
attributes:
  check_mode:
    details: Does not wait in check mode.
options:
  state:
    description:
      - V(present) acquires the lease, or touches it when O(owner) has it already.
      - V(absent) releases it. A lease of another owner is left alone.
    type: str
    choices: [present, absent]
    default: present
  owner:
    description: Who acquires the lease, as text that is the same within a run and different in any other.
    type: str
    required: true
  conflicts:
    description: Services that must not run while the lease is held. They need not exist.
    type: list
    elements: str
    default: [llama-server.service]
  max_seconds:
    description: Time after which systemd ends the lease by itself.
    type: int
    default: 14400
  wait_seconds:
    description:
      - How long to wait for the lease of another owner to end.
      - When releasing the lease, how long to wait for a measurement that still runs.
    type: int
    default: 60
  idle_seconds:
    description: The lease ends when nobody touched it for this long, and nothing is measured.
    type: int
    default: 90
  lease_file:
    description:
      - State file of the lease, with owner and the services to start again. Its modification time is when the lease
        was touched last. The program that waits for that is kept beside it.
    type: path
    default: /run/mixed_gpu/lease.json
  lock_file:
    description: The lock that a running measurement holds, as in M(homelab.mixed_gpu.split_benchmark).
    type: path
    default: /var/lib/mixed_gpu/measurements/.lock
requirements:
  - systemd (C(systemctl), C(systemd-run))
seealso:
  - module: homelab.mixed_gpu.split_benchmark
"""

EXAMPLES = r"""
- name: Measure under a lease
  block:
    - name: Acquire the lease
      homelab.mixed_gpu.measurement_lease:
        owner: "{{ example_campaign }}"

    - name: Measure
      ansible.builtin.include_tasks: measure.yml
  always:
    - name: Release the lease
      homelab.mixed_gpu.measurement_lease:
        owner: "{{ example_campaign }}"
        state: absent
"""

RETURN = r"""
unit:
  description: The unit that is the lease.
  returned: success
  type: str
  sample: mixed-gpu-lease.service
owner:
  description: Who holds the lease now, or V(none) when nobody does.
  returned: success
  type: str
acquired_at:
  description: Since when the owner holds it (UTC), or V(none).
  returned: success
  type: str
restart:
  description: Services that start again when the lease ends, or that were started again when it was given back.
  returned: success
  type: list
  elements: str
"""

import inspect
import os
import sys
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state, systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import hold_lease

#: Stopping the unit only waits for a sleeping program to end; longer than this means that systemd itself is stuck.
GONE_SECONDS = 30
#: Something else may queue the start of a service again between looking and starting the lease.
START_TRIES = 5


class MeasurementLease:
    """The lease unit, its state file, and who may have it."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.owner: str = self.params["owner"]
        self.conflicts = [systemd.unit_name(name) for name in self.params["conflicts"]]
        self.file: str = self.params["lease_file"]
        if not self.owner.strip():
            module.fail_json(msg="owner is empty: give a text that names this run, such as its campaign.")
        for name, least in (("max_seconds", 1), ("wait_seconds", 0), ("idle_seconds", 0)):
            if self.params[name] < least:
                module.fail_json(msg=f"{name} is {self.params[name]}: give at least {least}.")
        self.systemctl = module.get_bin_path("systemctl", required=True)

    # What is there

    def show(self, unit: str) -> dict[str, str]:
        return systemd.show(self.module, unit, "ActiveState", "LoadState")

    def active(self) -> bool:
        return self.show(lease_unit.UNIT).get("ActiveState") in systemd.ACTIVE

    def read_state(self) -> dict[str, t.Any] | None:
        """Return the state file's content, or None when it is missing or damaged."""
        try:
            text = json_file.read_text(self.file)
            return None if text is None else lease_unit.FORM.data(text)
        except UserError as exc:
            self.module.warn(f"{self.file} is damaged: {exc}; the lease unit itself decides.")
            return None
        except OSError as exc:
            self.module.fail_json(msg=f"{self.file} cannot be read ({exc.strerror}): run as root.")

    def write_state(self, state: dict[str, t.Any]) -> None:
        json_file.write_text(self.file, json_file.to_text(state), 0o644, self.module.atomic_move)

    # Acquiring it

    def acquire(self) -> dict[str, t.Any]:
        """Acquire the lease, or touch it; waits for another owner and ends the module when that takes too long."""
        deadline = time.monotonic() + self.params["wait_seconds"]
        while True:
            guard = self.guard()
            try:
                result, state = self.try_to_acquire()
            finally:
                if guard is not None:
                    json_file.release_lock(guard)
            if result is not None:
                return result
            if self.module.check_mode:
                return self.result(True, state, after="would wait for it")
            if time.monotonic() >= deadline:
                holder = f"{state['owner']} since {state['acquired_at']}" if state else "somebody unknown"
                self.module.fail_json(
                    msg=f"The devices are leased to {holder} (unit {lease_unit.UNIT}), and that did not change within"
                    f" {self.params['wait_seconds']} seconds: wait until that run has ended, or end its lease with"
                    f" 'systemctl stop {lease_unit.UNIT}'.",
                    owner=state["owner"] if state else None, acquired_at=state["acquired_at"] if state else None,
                )
            time.sleep(1)

    def guard(self) -> int | None:
        """Lock the decision and the change that follows it against other runs of this module."""
        if self.module.check_mode:
            return None
        guard = json_file.take_lock(f"{self.file}.lock", GONE_SECONDS + self.params["wait_seconds"])
        if guard is None:
            self.module.fail_json(
                msg=f"{self.file}.lock stays locked by another run of this module: look for it in the process list."
            )
        return guard

    def try_to_acquire(self) -> tuple[dict[str, t.Any] | None, dict[str, t.Any] | None]:
        """Return the result, or None and the state of the lease that is in the way."""
        activity = self.show(lease_unit.UNIT).get("ActiveState")
        active = activity in systemd.ACTIVE
        state = self.read_state() if active else None
        answer = lease_unit.decide(active, state, self.owner)
        if answer == "wait" or activity == "deactivating":
            return None, state
        if answer == "ours":
            if not self.module.check_mode:
                os.utime(self.file)
            return self.result(False, state), state
        return self.take(), None

    def take(self) -> dict[str, t.Any]:
        """Start the lease unit."""
        running = [name for name in self.conflicts if self.show(name).get("ActiveState") in systemd.RUNNING]
        state = lease_unit.new_state(self.owner, json_file.utc_now(), [*running, *self.start_jobs()])
        if not self.module.check_mode:
            self.write_state(state)
            self.start_unit(state["restart"])
        return self.result(True, state)

    def start_jobs(self) -> dict[str, str]:
        """Return the queued start jobs of the services in conflict; none where systemd cannot list them."""
        stdout = self.module.run_command(
            [self.systemctl, "list-jobs", "--no-legend", "--no-pager", "--plain", *self.conflicts]
        )[1]
        return lease_unit.start_jobs(stdout)

    def start_unit(self, restart: list[str]) -> None:
        program = os.path.join(os.path.dirname(self.file), "hold_lease.py")
        json_file.write_text(program, inspect.getsource(hold_lease), 0o644, self.module.atomic_move)
        lock_dir = os.path.dirname(self.params["lock_file"])
        os.makedirs(lock_dir, mode=0o755, exist_ok=True)
        command = lease_unit.start_command(
            self.module.get_bin_path("systemd-run", required=True), self.systemctl,
            [sys.executable, program, self.file, self.params["lock_file"], str(self.params["idle_seconds"])],
            self.owner, self.conflicts, restart, self.params["max_seconds"], lock_dir,
        )  # fmt: skip
        cancelled: set[str] = set()
        for _attempt in range(START_TRIES):
            # systemd-run does not replace a queued start by the stop that the lease implies: it refuses
            for unit, job in self.start_jobs().items():
                self.module.run_command([self.systemctl, "cancel", job])
                cancelled.add(unit)
            rc, stdout, stderr = self.module.run_command(command)
            if rc == 0 or "destructive" not in stderr:
                break
            time.sleep(1)
        if rc != 0 or self.show(lease_unit.UNIT).get("ActiveState") != "active":
            if os.path.exists(self.file):
                os.unlink(self.file)
            for unit in sorted(cancelled):
                self.module.run_command([self.systemctl, "--no-block", "start", unit])
            self.module.fail_json(
                msg=f"systemd did not start the lease {lease_unit.UNIT} ({(stderr or stdout).strip() or 'it ended'}):"
                " run as root, and look at the journal of that unit."
            )

    # Releasing it

    def release(self) -> dict[str, t.Any]:
        """Release the lease, so that systemd starts what was running; a lease of another owner stays."""
        guard = self.guard()
        try:
            state = self.read_state() if os.path.exists(self.file) else None
            if not self.active():
                leftover = state is not None and state["owner"] == self.owner
                if leftover and not self.module.check_mode:
                    os.unlink(self.file)
                return self.result(False, None)
            if state is None or state["owner"] != self.owner:
                return self.result(False, state)
            if not self.module.check_mode:
                self.wait_for_measurement()
                self.stop_unit()
                os.unlink(self.file)
            return self.result(True, None, before=state, restart=state["restart"])
        finally:
            if guard is not None:
                json_file.release_lock(guard)

    def wait_for_measurement(self) -> None:
        """Wait until nothing measures any more: a server that came back now would find the devices' memory taken."""
        path = self.params["lock_file"]
        if not os.path.exists(path):
            return
        lock = json_file.take_lock(path, self.params["wait_seconds"])
        if lock is None:
            self.module.fail_json(
                msg=f"A measurement still runs under this lease ({path} is locked): wait for it to end, or end its"
                f" llama-bench; the lease ends by itself {self.params['idle_seconds']} seconds later."
            )
        json_file.release_lock(lock)

    def stop_unit(self) -> None:
        """Stop the lease unit and wait until it is gone, so that another one can take its name."""
        rc, stdout, stderr = self.module.run_command([self.systemctl, "stop", lease_unit.UNIT])
        deadline = time.monotonic() + GONE_SECONDS
        while True:
            properties = self.show(lease_unit.UNIT)
            if properties.get("ActiveState") not in systemd.ACTIVE and properties.get("LoadState") != "loaded":
                return
            if time.monotonic() >= deadline:
                self.module.fail_json(
                    msg=f"The lease {lease_unit.UNIT} does not stop"
                    f" ({(stderr or stdout).strip() or f'exit status {rc}'}):"
                    f" look at 'systemctl status {lease_unit.UNIT}'."
                )
            time.sleep(0.1)

    # The answer

    def result(
        self, changed: bool, state: dict[str, t.Any] | None, before: dict[str, t.Any] | None = None,
        restart: list[str] | None = None, after: str | None = None,
    ) -> dict[str, t.Any]:
        names = restart if restart is not None else (state["restart"] if state else [])
        result: dict[str, t.Any] = {
            "changed": changed,
            "unit": lease_unit.UNIT,
            "owner": state["owner"] if state else None,
            "acquired_at": state["acquired_at"] if state else None,
            "restart": names,
        }
        if self.module._diff:
            old = before if changed else state
            result["diff"] = {
                "before": {"owner": old["owner"] if old else None},
                "after": {"owner": self.owner, "how": after} if after else {"owner": state["owner"] if state else None},
            }
        return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "owner": {"type": "str", "required": True},
            "conflicts": {"type": "list", "elements": "str", "default": ["llama-server.service"]},
            "max_seconds": {"type": "int", "default": 14400},
            "wait_seconds": {"type": "int", "default": 60},
            "idle_seconds": {"type": "int", "default": 90},
            "lease_file": {"type": "path", "default": "/run/mixed_gpu/lease.json"},
            "lock_file": {"type": "path", "default": "/var/lib/mixed_gpu/measurements/.lock"},
        },
        supports_check_mode=True,
    )
    lease = MeasurementLease(module)
    with json_state.failures_told(module, module.params["lease_file"]):
        result = lease.acquire() if module.params["state"] == "present" else lease.release()
    module.exit_json(**result)


if __name__ == "__main__":
    main()
