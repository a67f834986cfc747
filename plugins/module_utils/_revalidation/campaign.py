# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The campaign of the role revalidate, from the first look to the verdict. Private to this collection. Pure.

    host -> server, use, served, acceptance -> (lease) devices -> answers -> device probe -> loads until the verdict is
    clear -> (no lease) server again -> verdict

Each stage is a function that returns a plan, or None when the stage has nothing more to ask (_base/steps.py). What
ends measuring is a finding about the host, and the verdict says it: it fails no task.
"""

from __future__ import annotations

import typing as t

from .._base.steps import Done, Lease, Mapping, Plan, Step, first_plan
from .._base.types import Json
from .._measuring import contention
from .._planner import probe_stage, tuning_steps
from .._split import engines
from . import answers, campaign_settings, campaign_steps, contended, next_load, verdict
from .observation import Observation


def planner(settings: Mapping) -> Revalidation:
    """Return the planner for the variables of the role. Raises ValueError naming the variable that is wrong."""
    return Revalidation(campaign_settings.read(settings))


class Revalidation:
    """The planner of one host's revalidation."""

    def __init__(self, settings: campaign_settings.Settings) -> None:
        self.settings = settings

    def plan(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next."""
        seen = Observation(self.settings, done)
        return first_plan(seen, (_look, _measure, _look_again)) or _judged(seen)

    def predict(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next in check mode: a look that asks the server for nothing, then the verdict."""
        seen = Observation(self.settings, done)
        return _look(seen, predict=True) or _judged(seen)

    def line(self, done: Done) -> str:
        """Return what is shown of a step: speeds of a load, or how it ended; what a check of the answers found."""
        if done.step.name == answers.STEP:
            return str((done.result.get("answers") or {}).get("sentence", ""))
        return tuning_steps.measured(done.result["load"]) if "load" in done.result else ""


def _look(seen: Observation, predict: bool = False) -> Plan | None:
    """Return the steps that disturb nobody."""
    if not seen.done:
        return Plan((campaign_steps.host(seen),))
    if seen.host["why"] is not None:
        return Plan(failure=f"{seen.host['why']}.")
    server = seen.result("server")
    if server is None:
        return Plan((campaign_steps.server(seen),))
    if seen.result("use") is None:
        return Plan((campaign_steps.use(seen),))
    if server["state"] != "ready" or predict:
        return None
    if seen.result("served") is None:
        return Plan((campaign_steps.served(seen),))
    counted = campaign_steps.drafted(seen)
    if counted is not None and seen.result(counted.name) is None:
        return Plan((counted,))
    return None


def _wish(seen: Observation) -> tuple[bool, str]:
    """Return whether to measure under the lease, and a sentence about it."""
    settings, observed = seen.settings, seen.observed
    # the decision rests on what was seen before anything was measured
    before = {**observed, "loads": [], "device_probe": None, "failure": None, "server": seen.result("server")}
    asked = next_load.step(before, settings.limits)
    if asked["blocked"] is not None:
        return False, f"Nothing is measured: {asked['blocked']}."
    if settings.replace_baseline:
        return True, "The recorded split is measured under the lease, to make a baseline."
    if settings.measure == "true":
        return True, "The recorded split is measured under the lease, as asked for."
    if asked["suspicion"] is None:
        return False, "Nothing is measured: the serving instance is as fast as in the baseline."
    if settings.measure == "false":
        return False, "Nothing is measured: measuring was not asked for (revalidate_measure)."
    if observed["busy"]["busy"]:
        return False, f"Nothing is measured now, since the server is in use ({observed['busy']['why']})."
    if (others := contended.of_serving(observed)) is not None:
        return False, f"Nothing is measured now: {contention.sentence(others)}."
    return True, f"The recorded split is measured under the lease: {asked['suspicion']}."


def _measure(seen: Observation) -> Plan | None:
    """Return the steps under the lease that are missing for a clear verdict."""
    wanted, why = _wish(seen)
    if not wanted or seen.failure is not None or seen.wrong_answers:
        return None
    missing = [step for step in campaign_steps.before_loads(seen) if seen.result(step.name) is None]
    if missing:
        return _under_lease(seen, missing[0], why)
    checked = campaign_steps.answers(seen)
    if checked is not None and seen.result(checked.name) is None:
        return _under_lease(seen, checked, why)
    step = _probe(seen)
    if step is None:
        load = next_load.step(seen.observed, seen.settings.limits)["load"]
        step = None if load is None else campaign_steps.load(seen, load)
    return None if step is None else _under_lease(seen, step, why)


def _probe(seen: Observation) -> Step | None:
    """Return the next step of the device probe; without a probe the verdict lacks the explanation, and nothing else."""
    recorded, devices = seen.recorded_probe, seen.result("devices")
    if recorded is None or devices is None or seen.probe_failed:
        return None
    sizes = seen.result("probe sizes")
    if sizes is None:
        return campaign_steps.probe_sizes(seen, recorded)
    loads = probe_stage.loads(devices["devices"], sizes["model"], recorded["tests"], seen.settings.reserve_mib)
    steps = [campaign_steps.probe(seen, recorded, load) for load in loads]
    return next((step for step in steps if seen.result(step.name) is None), None)


def _under_lease(seen: Observation, step: Step, why: str) -> Plan:
    settings = seen.settings
    options = {
        "conflicts": settings.conflicting_units,
        "max_seconds": settings.lease_seconds,
        "wait_seconds": settings.lease_wait_seconds,
        "lock_file": f"{settings.measurements_dir}/.lock",
    }
    probes = len(seen.entry["devices"]) if seen.recorded_probe is not None else 0
    return Plan((step,), why, Lease("revalidation of", options), measurements=probes + settings.min_loads)


def _look_again(seen: Observation) -> Plan | None:
    """Return the steps that look at the server once the lease has been released and the server restarted."""
    before = (seen.result("server") or {}).get("state")
    # with wrong answers the server stays off
    if seen.wrong_answers or seen.result("devices") is None or before not in ("ready", "loading"):
        return None
    again = seen.result("server again")
    if again is None:
        step = campaign_steps.server(seen, "server again", seen.settings.load_timeout_seconds)
        return Plan((step,), release=True)
    if again["state"] == "ready" and seen.result("completion again") is None:
        return Plan((campaign_steps.served(seen, again=True),))
    return None


def _judged(seen: Observation) -> Plan:
    """Return the verdict, and what becomes of it where it is accepted as the baseline, or tuned again."""
    result = verdict.judge(seen.observed, seen.settings.judging)
    measuring, why = _wish(seen)
    return Plan(result={
        "changed": False,
        "deployment": seen.host["deployment"],
        "revalidation": result,
        "accepted": _accepted(seen, result),
        "retuned": _retuned(seen, result),
        "why": result["summary"],
        "lines": [*([] if measuring else [why]), *result["lines"]],
    })  # fmt: skip


def _renamed(result: Mapping, how: str) -> Json:
    """Return the verdict after something made it an accepted one."""
    return {**result, "accepted": True, "summary": f"{how}: {result['summary']}"}


def _accepted(seen: Observation, result: Mapping) -> Json:
    """Return C({obstacle, renewal, ...}): what makes this measurement the baseline.

    C(obstacle) says why that cannot be done, else it is None. C(renewal) is what split_record takes; the rest is for
    revalidation_record.
    """
    if result["verdict"] == "broken" or not result["measured"]:
        since = result["baseline_at"] or "nobody"
        return {"obstacle": f"The baseline stays that of {since}, because {result['summary']}. Repair that first."}
    others = contended.obstacle(seen.loads)
    if others is not None:
        return {"obstacle": f"The baseline stays that of {result['baseline_at'] or 'nobody'}, because {others}."}
    host, observed = seen.host, seen.observed
    renewal = {
        "build": host["build"],
        "rpc_protocol": host["rpc_protocol"],
        "gpus": host["gpus"],
        "extra": seen.settings.fingerprint_extra,
        "device_probe": observed["device_probe"],
        "allreduce": seen.added_up,
    }
    in_use = contended.of_serving(observed) is not None
    return {
        "obstacle": None,
        "renewal": renewal,
        "build": host["build"],
        "versions": host["versions"],
        "lenders": seen.lenders,
        "gpus": host["gpus"],
        "host": host["host"],
        "loads": contended.judged_loads(seen.loads),
        "server": observed["server"]["server"],
        "completions": {"tests": None if in_use else observed["served"], "answer": observed["served_answer"]},
        "acceptance": observed["acceptance"],
        "revalidation": _renamed(result, "new baseline"),
    }


def _retuned(seen: Observation, result: Mapping) -> Json:
    """Return C({obstacle, family, engine, serving, cards, ...}): what tunes this deployment again."""
    blocked = next_load.blocked(seen.observed, for_baseline=True)
    entry, extra = seen.entry, seen.settings.fingerprint_extra
    return {
        "obstacle": None if blocked is None else f"Nothing was tuned: {blocked}.",
        "family": engines.of(entry["serving"]).family,
        "engine": engines.of(entry["serving"]).name,
        "serving": entry["serving"],
        "cards": [device["id"] for device in entry["devices"]],
        "model": {**entry["model"], "sha256": seen.host["model"]["sha256"] or ""},
        "rpc_endpoints": entry["rpc_endpoints"],
        "fingerprint_extra": extra or entry["fingerprint_parts"].get("extra", {}),
        "revalidation": _renamed(result, "tuned again after"),
    }
