# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one loop that plans, measures and shows, until a planner has decided.

A planner is a module that offers ``planner(settings)``; what that returns is described by the Planner protocol in
plugins/module_utils/_base/steps.py: pure functions ``plan``, ``predict`` and ``line``. The action plugin runs the first
step of each plan on the host, keeps what it returned in a list, and asks the planner again. A new planner needs an
entry in PLANNERS, and one in MODULES for each module that none of the others uses.

The state of a campaign is the store on the host. A campaign that was killed and is run again reads the store once, and
goes on where it was. Nothing here has to run for the host to recover: the lease is a heartbeat that is renewed at each
poll, and a lease that nobody renews ends itself (plugins/module_utils/_programs/hold_lease.py).
"""

from __future__ import annotations

import importlib
import os
import shlex
import threading
import time
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store, types
from ansible_collections.homelab.mixed_gpu.plugins.plugin_utils import job, lines

display = Display()

_COLLECTION: t.Final = "homelab.mixed_gpu"
_ROOMS: t.Final = "ansible_collections.homelab.mixed_gpu.plugins.module_utils"
#: Name of a planner -> the module that offers it.
PLANNERS: t.Final = {
    "tuning": f"{_ROOMS}._planner.tuning",
    "planning": f"{_ROOMS}._planner.planning",
    "revalidation": f"{_ROOMS}._revalidation.campaign",
    "answers": f"{_ROOMS}._revalidation.answers_campaign",
    "power_sweep": f"{_ROOMS}._hardware.power_sweep_campaign",
    "diagnosis": f"{_ROOMS}._diagnosis.lender_campaign",
}
#: Modules that measure under the lease and store what they found -> their option that names the measurement.
MEASURING: t.Final = {
    "answer_check": "load", "exllama_draft_benchmark": "load", "speculation_benchmark": "load",
    "split_benchmark": "load", "split_mode_trial": "trial",
}  # fmt: skip
#: Modules of this collection that a step may name.
MODULES: t.Final = frozenset(MEASURING) | {
    "draft_acceptance_info", "exl_model_info", "exllama_devices_info", "exllama_server_benchmark", "gguf_info",
    "gpu_facts", "gpu_power", "host_info", "hub_models_info", "llama_devices_info", "llama_fit_params_info",
    "llama_server_benchmark", "llama_server_busy_info", "llama_server_info", "random_gguf", "revalidation_info",
    "rpc_link_info", "split_record",
    "split_tuning_info",
}  # fmt: skip

#: A step that takes longer than this runs as a job that is followed: a lost connection does not end it.
_SHORT_SECONDS: t.Final = 25.0
_POLL_SECONDS: t.Final = 2.0
#: At least one line in so many seconds.
_LINE_SECONDS: t.Final = 30.0
#: Defaults of the module measurement_lease.
_LEASE_FILE: t.Final = "/run/mixed_gpu/lease.json"
_LEASE_IDLE_SECONDS: t.Final = 90
_LEASE_MODULE: t.Final = "measurement_lease"
_STORE_MODULE: t.Final = "measurement_store_info"


class ParentGone(BaseException):
    """ansible-playbook has ended without this process: nobody waits for the result."""


class ActionModule(ActionBase):
    """Runs a campaign: plan, measure, show, until decided."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._parent = os.getppid()
        self._vars = task_vars or {}
        result = super().run(tmp, self._vars)
        args = self.validate_argument_spec(
            argument_spec={
                "planner": {"type": "str", "choices": sorted(PLANNERS), "required": True},
                "settings": {"type": "dict", "required": True},
                "label": {"type": "str", "default": ""},
            },
        )[1]
        self._label = args["label"] or args["planner"].replace("_", " ")
        self._owner = ""
        self._lease: steps.Lease | None = None
        self._renewed = 0.0
        self._stored: dict[str, types.Load] | None = None
        self._warnings: list[t.Any] = []
        self._changed = False
        try:
            settled = self._settle(args["planner"], args["settings"])
        finally:
            # A courtesy: Ctrl-C and SIGKILL skip it. The lease ends itself.
            self._release()
        for line in settled.get("lines") or []:
            lines.say(self._vars, "", line)
        return {**result, "changed": self._changed, **settled, "warnings": self._warnings}

    @property
    def _host(self) -> str:
        return str(self._vars.get("inventory_hostname", ""))

    # --- the loop ----------------------------------------------------------------------------------------------------

    def _settle(self, name: str, settings: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        """Ask the planner and run its steps until it has a result."""
        done: list[steps.Done] = []
        shown = ""
        try:
            planner: steps.Planner = importlib.import_module(PLANNERS[name]).planner(settings)
        except ValueError as error:
            raise AnsibleActionFail(f"{self._label}: {error}.") from None
        while True:
            plan = self._ask(planner, done)
            if plan.failure is not None:
                raise AnsibleActionFail(f"{self._label}: {plan.failure}")
            if plan.result is not None:
                return plan.result
            if plan.why and plan.why != shown:
                shown = plan.why
                lines.say(self._vars, self._label, plan.why)
            if plan.release:
                self._release()
            if plan.lease is not None:
                self._acquire(plan.lease)
            if plan.store is not None and self._stored is None:
                self._read_store(plan.store)
            step = plan.steps[0]
            finished = steps.Done(step, self._run(step, _place(done, plan, step)), json_file.utc_now())
            done.append(finished)
            line = planner.line(finished)
            if line and not finished.result.get("failed"):
                lines.say(self._vars, self._label, f"{_place(done[:-1], plan, step)}{step.label}: {line}")

    def _ask(self, planner: steps.Planner, done: t.Sequence[steps.Done]) -> steps.Plan:
        """Return the next plan; a planner that names no step and no result is a defect, not a loop without end."""
        self._check_parent()
        try:
            plan = planner.predict(done) if self._task.check_mode else planner.plan(done)
        except ValueError as error:
            raise AnsibleActionFail(f"{self._label}: {error}.") from None
        if not plan.steps and plan.result is None and plan.failure is None:
            raise AnsibleActionFail(f"{self._label}: the planner has no next step and no result: report this.")
        repeated = [step.name for step in plan.steps[:1] if steps.result_of(done, step.name) is not None]
        if repeated:
            raise AnsibleActionFail(f"{self._label}: the planner repeats the step {repeated[0]!r}: report this.")
        return plan

    def _check_parent(self) -> None:
        if os.getppid() != self._parent:
            raise ParentGone

    # --- one step ----------------------------------------------------------------------------------------------------

    def _run(self, step: steps.Step, place: str) -> dict[str, t.Any]:
        """Run one step and return what its module returned; AnsibleActionFail with one sentence when it failed."""
        if step.module not in MODULES:
            raise AnsibleActionFail(f"{self._label}: the module {step.module} is not one that a campaign may run.")
        known = self._from_store(step)
        if known is not None:
            return known
        arguments = self._arguments(step)
        for again in (True, False):
            self._renew()
            result = self._execute(step, arguments, place)
            # a controller that slept longer than the lease lasts: the lease has ended, and is acquired once more
            if not (again and result.get("lease_lost") and self._lease is not None):
                break
            self._acquire(self._lease, anew=True)
            arguments = self._arguments(step)
        if result.get("failed") and not step.tolerated:
            raise AnsibleActionFail(f"{self._label}, {step.label}: {result.get('msg') or 'the module failed'}")
        self._changed = self._changed or bool(result.get("changed"))
        return result

    def _arguments(self, step: steps.Step) -> dict[str, t.Any]:
        """Return the step's arguments; a module that measures is told whose lease it is to find."""
        if step.module not in MEASURING or self._lease is None:
            return dict(step.args)
        return {**step.args, "lease_owner": self._owner, "lease_file": self._lease_file}

    def _from_store(self, step: steps.Step) -> dict[str, t.Any] | None:
        """Return the result of a measurement that the host has stored, or None."""
        if step.module not in MEASURING or not self._stored:
            return None
        wanted = step.args[MEASURING[step.module]]
        key = store.load_key(step.args["fingerprint"], step.args["campaign"], wanted)
        found = self._stored.get(store.file_name(key))
        failures = step.args.get("reuse_failures", True)
        if found is None or not store.reusable(found, wanted.get("tests") or ()):
            return None
        if found["status"] != "ok" and not failures:
            return None
        return {"changed": False, "load": {**found, **wanted, "reused": True}}

    def _execute(self, step: steps.Step, arguments: dict[str, t.Any], place: str) -> dict[str, t.Any]:
        if step.expected_seconds > _SHORT_SECONDS:
            return self._follow(step, arguments, place)
        with _SignsOfLife(lambda seconds: self._show(f"{place}{step.label}: still running, {seconds} s")):
            return self._module(step.module, arguments)

    def _module(self, name: str, arguments: dict[str, t.Any], **options: t.Any) -> dict[str, t.Any]:
        result = t.cast(
            "dict[str, t.Any]",
            self._execute_module(f"{_COLLECTION}.{name}", arguments, task_vars=self._vars, **options),
        )
        self._warnings += result.pop("warnings", None) or []
        return result

    def _follow(self, step: steps.Step, arguments: dict[str, t.Any], place: str) -> dict[str, t.Any]:
        """Start a step as a job of the host, and follow it; a task that is ended stops the job."""
        self._task.async_val = step.limit_seconds
        try:
            started = self._module(step.module, arguments, wrap_async=True)
        finally:
            self._task.async_val = 0
        if not started.get("ansible_job_id"):
            return started
        about = f" of about {step.expected_seconds:.0f}" if step.expected_seconds else ""

        def show(text: str) -> None:
            self._show(f"{place}{step.label}: {text}{about if text.startswith('still running') else ''}")

        label = f"{self._label}, {step.label}"
        followed = job.Job(self, self._vars, started["ansible_job_id"], label, show, also=self._touch())
        try:
            result = followed.wait(_POLL_SECONDS, _LINE_SECONDS, step.limit_seconds + 60, self._check_parent)
        except (ParentGone, AnsibleConnectionFailure):
            raise  # the job goes on, and stores what it measures
        except BaseException:
            followed.stop()
            raise
        self._renewed = time.monotonic()
        self._warnings += result.pop("warnings", None) or []
        return result

    # --- lease and store ---------------------------------------------------------------------------------------------

    @property
    def _lease_file(self) -> str:
        return str(self._lease.options.get("lease_file", _LEASE_FILE)) if self._lease is not None else _LEASE_FILE

    def _touch(self) -> str:
        """Return the shell command that renews the lease; nothing without one."""
        return f"touch -c -- {shlex.quote(self._lease_file)} 2>/dev/null\n" if self._lease is not None else ""

    def _renew(self) -> None:
        if self._lease is None:
            return
        idle = float(self._lease.options.get("idle_seconds", _LEASE_IDLE_SECONDS))
        if time.monotonic() - self._renewed > idle / 6:
            self._low_level_execute_command(self._touch())
            self._renewed = time.monotonic()

    def _acquire(self, lease: steps.Lease, anew: bool = False) -> None:
        """Take the lease, once per campaign."""
        if self._lease is not None and not anew:
            return
        if not self._owner:
            self._owner = f"{lease.title} {self._host} {json_file.utc_now()} {os.getpid()}"
        with _SignsOfLife(lambda seconds: self._show(f"waiting for the lease on the devices, {seconds} s")):
            result = self._module(_LEASE_MODULE, {**lease.options, "owner": self._owner, "state": "present"})
        if result.get("failed"):
            raise AnsibleActionFail(f"{self._label}: {result.get('msg')}")
        self._lease, self._renewed = lease, time.monotonic()

    def _release(self) -> None:
        """Release the lease, if this campaign has one."""
        lease, self._lease = self._lease, None
        if lease is None or os.getppid() != self._parent:
            return
        options = {key: value for key, value in lease.options.items() if key != "max_seconds"}
        result = self._module(_LEASE_MODULE, {**options, "owner": self._owner, "state": "absent"})
        if result.get("failed"):
            display.warning(f"{self._label}: {result.get('msg')} The lease ends by itself.")

    def _read_store(self, wanted: steps.Store) -> None:
        arguments = {"state_dir": wanted.state_dir, "campaigns": list(wanted.campaigns)}
        result = self._module(_STORE_MODULE, arguments)
        if result.get("failed"):
            raise AnsibleActionFail(f"{self._label}: {result.get('msg')}")
        self._stored = result["loads"]

    def _show(self, text: str) -> None:
        lines.show(self, self._vars, self._label, text)


def _place(done: t.Sequence[steps.Done], plan: steps.Plan, step: steps.Step) -> str:
    """Return "3 of about 7, " for a measurement; nothing for another step."""
    if step.module not in MEASURING or not plan.measurements:
        return ""
    number = 1 + sum(1 for item in done if item.step.module in MEASURING)
    return f"{number} of about {max(number, plan.measurements)}, "


class _SignsOfLife:
    """Shows that a short step has not ended, should it take longer than expected."""

    def __init__(self, show: t.Callable[[int], None]) -> None:
        self._show_after, self._ended = show, threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._wait, daemon=True)

    def _wait(self) -> None:
        while not self._ended.wait(_LINE_SECONDS):
            self._show_after(int(time.monotonic() - self._started))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._ended.set()
        self._thread.join(timeout=5)
