# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the modules that measure have in common: the store, the lock, the lease. Private to this collection.

It acts on the host on behalf of a module (split_benchmark, split_mode_trial), which it is given: files of the store,
the state of systemd units, processes. Nothing here decides anything about splits.
"""

from __future__ import annotations

import contextlib
import os
import time
import typing as t

from .._base import json_file, sandboxed_run, systemd, unit_sandbox
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import contention_watch, lease_unit, store
from .types import Load

#: Options that every measuring module has.
ARGUMENTS: dict[str, Json] = {
    "rpc_endpoints": {"type": "list", "elements": "str", "default": []},
    "serving": {"type": "dict", "required": True},
    "environment": {"type": "dict", "default": {}},
    "campaign": {"type": "str", "required": True},
    "fingerprint": {"type": "str", "required": True},
    "reuse_failures": {"type": "bool", "default": True},
    "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/measurements"},
    "lock_wait_seconds": {"type": "int", "default": 1800},
    "lease_unit": {"type": "str", "default": lease_unit.UNIT},
    "lease_owner": {"type": "str", "default": ""},
    "lease_file": {"type": "path", "default": "/run/mixed_gpu/lease.json"},
}


class StoredLoad:
    """One load: look it up, or measure and store it. Subclasses say how it is measured."""

    def __init__(self, module: t.Any, load: Json) -> None:
        """Take an AnsibleModule with the options of ARGUMENTS, and the load that is wanted."""
        self.module = module
        self.params = module.params
        self.load = load
        if self.params["lock_wait_seconds"] < 0:
            module.fail_json(msg=f"lock_wait_seconds is {self.params['lock_wait_seconds']}: give at least 0.")
        self.key = store.load_key(self.params["fingerprint"], self.params["campaign"], load)
        self.path = os.path.join(self.params["state_dir"], store.file_name(self.key))
        self.build: str | None = None
        self.watch = contention_watch.Watch()

    def fail(self, message: str) -> t.NoReturn:
        """End the module."""
        self.module.fail_json(msg=message)
        raise SystemExit(1)  # fail_json has not returned

    def check_programs(self) -> None:
        """End the module when a program or file that measuring needs is not there."""
        raise NotImplementedError

    def answers(self, stored: Load) -> bool:
        """Return whether a stored load answers what is asked now."""
        raise NotImplementedError

    def measure(self, lock: int) -> Json:
        """Measure and store the load, and return it. The caller holds the lock."""
        raise NotImplementedError

    def run(self) -> Json:
        """Return the result of the module."""
        stored = self.look_up()
        if stored is not None:
            return self.reused(stored)
        if self.module.check_mode:
            return self.result(True, None)
        self.check_programs()
        lock_file = os.path.join(self.params["state_dir"], ".lock")
        wait = self.params["lock_wait_seconds"]
        lock = json_file.take_lock(lock_file, wait)
        if lock is None:
            self.fail(
                f"Another measurement has held {lock_file} for {wait} seconds: wait for it to end (its llama-bench"
                " is in the process list), or end it, and run this again."
            )
        try:
            # The holder of the lock may have been a killed play's measurement of this very load.
            stored = self.look_up()
            if stored is not None:
                return self.reused(stored)
            return self.result(True, self.measure(lock))
        finally:
            json_file.release_lock(lock)

    def reused(self, stored: Load) -> Json:
        """Return the result for a stored load: today's words (label, purpose), the stored numbers."""
        return self.result(False, {**stored, **self.load, "reused": True})

    def result(self, changed: bool, load: Json | None) -> Json:
        result: Json = {"changed": changed, "load": load, "path": self.path}
        if self.module._diff:
            result["diff"] = {
                "before_header": self.path, "after_header": self.path,
                "before": {} if changed else load,
                "after": load or {"label": self.load.get("label"), "status": "would be measured"},
            }
        return result

    def look_up(self) -> Load | None:
        """Return the stored load, or None where there is none of use; a damaged file is set aside."""
        try:
            text = json_file.read_text(self.path)
        except OSError as exc:
            self.module.fail_json(msg=f"{self.path} cannot be read ({exc.strerror}): make it readable for this user.")
        if text is None:
            return None
        try:
            stored = store.read_stored(text, self.key)
        except UserError as exc:
            self.set_aside(str(exc))
            return None
        wanted = stored["status"] == "ok" or self.params["reuse_failures"]
        return stored if wanted and self.answers(stored) else None

    def set_aside(self, why: str) -> None:
        """Rename a damaged file, so that it can be looked at and the load is measured again."""
        if self.module.check_mode:
            self.module.warn(f"{self.path} is damaged: {why}; it would be set aside and the load measured again.")
            return
        aside = f"{self.path}.damaged-{time.time_ns()}"
        os.rename(self.path, aside)
        self.module.warn(f"{self.path} is damaged: {why}; it is kept as {aside} and the load is measured again.")

    def need(self, path: str, what: str, remedy: str, mode: int = os.R_OK) -> None:
        """End the module unless there is a file that can be read, or run where C(mode) is os.X_OK."""
        if not os.path.isfile(path) or not os.access(path, mode):
            self.module.fail_json(msg=f"There is no {what} {path}: {remedy}.")

    def sandbox(
        self, devices: t.Sequence[str], split_mode: str, files: t.Sequence[str], engine: str = "llama_cpp",
        cards: bool = False,
    ) -> sandboxed_run.Sandbox:  # fmt: skip
        """Return what a program of this load may use.

        C(devices) are llama.cpp's names; C(cards) opens the NVIDIA cards whatever the devices are.
        """
        nodes = unit_sandbox.nodes([*devices, *(["CUDA"] if cards else [])])
        wanted = self.params["lease_unit"]
        return sandboxed_run.Sandbox(
            engine=engine, device_nodes=nodes, endpoints=self.params["rpc_endpoints"], files=files,
            nccl=unit_sandbox.uses_nccl(nodes, split_mode),
            lock_memory="mlock" in str(self.params["serving"].get("load_mode")),
            lease=systemd.unit_name(wanted) if wanted else "",
        )  # fmt: skip

    def environment(self, given: Mapping) -> dict[str, str]:
        """Return variables of a program, with those of the load."""
        return {name: str(value) for name, value in {**given, **(self.load.get("environment") or {})}.items()}

    def run_limited(
        self, command: t.Sequence[str], sandbox: sandboxed_run.Sandbox, environment: Mapping, limit_seconds: int,
        lock: int,
    ) -> sandboxed_run.Ended:  # fmt: skip
        """Run a program for at most C(limit_seconds), with nothing of it left behind."""
        try:
            return sandboxed_run.run(command, sandbox, self.environment(environment), limit_seconds, lock)
        except UserError as exc:
            self.fail(f"{self.load.get('label')} cannot be measured: {exc}.")

    @contextlib.contextmanager
    def leased(self) -> t.Iterator[None]:
        """Hold the caller to the lease, which must be there before and after and be the same one; watch the host."""
        wanted = bool(self.params["lease_unit"])
        before = ""
        if wanted:
            before = self.lease()
            self.touch_lease()
        with self.watch:
            yield
        if wanted:
            if self.lease() != before:
                self.no_lease(f"the measurement lease {self.params['lease_unit']} was replaced by another meanwhile")
            self.touch_lease()

    def store(
        self, load: Json, command: t.Sequence[str], warnings: t.Sequence[str] = ()
    ) -> Json:
        """Write a finished load to the store, complete it, and return it."""
        load = {
            **load,
            "contention": self.watch.with_cards(load.get("conditions") or {}),
            "campaign": self.params["campaign"],
            "fingerprint": self.params["fingerprint"],
            "measured_at": json_file.utc_now(),
            "reused": False,
            "sandboxed": sandboxed_run.booted(),
        }
        stored = store.stored_form(self.key, load, self.build, command, warnings)
        try:
            json_file.write_text(self.path, json_file.to_text(stored), 0o644, self.module.atomic_move)
        except OSError as exc:
            self.module.fail_json(
                msg=f"The measurement cannot be stored as {self.path} ({exc.strerror}): make room there and run again."
            )
        return load

    def lease(self) -> str:
        """Return what identifies the lease that is held now; ends the module when there is none, or somebody else's."""
        unit = systemd.unit_name(self.params["lease_unit"])
        try:
            properties = systemd.show(self.module, unit, "ActiveState", "InvocationID")
        except UserError as exc:
            self.fail(f"The measurement lease cannot be looked up: {exc}.")
        if properties.get("ActiveState") != "active":
            self.no_lease(f"the measurement lease {unit} is {properties.get('ActiveState', 'unknown')}")
        owner = self.params["lease_owner"]
        if owner:
            try:
                text = json_file.read_text(self.params["lease_file"])
                found = lease_unit.FORM.data(text)["owner"] if text is not None else "nobody"
            except (UserError, OSError):
                found = "nobody who can be read"
            if found != owner:
                self.no_lease(f"the measurement lease {unit} belongs to {found}, not to {owner}")
        return properties.get("InvocationID", "")

    def no_lease(self, what: str) -> None:
        self.module.fail_json(
            msg=f"No sample was kept for {self.load.get('label')}: {what}, so something else may use the devices; take"
            " the lease (module measurement_lease) and run this again, what was measured before is reused.",
            lease_lost=True,
        )

    def touch_lease(self) -> None:
        """Touch the lease's state file: the lease ends when nobody does (_programs/hold_lease.py)."""
        with contextlib.suppress(OSError):
            os.utime(self.params["lease_file"])
