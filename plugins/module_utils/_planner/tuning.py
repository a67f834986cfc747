# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The campaign of the role split_tuning, from the first look to the baseline. Private to this collection. Pure.

    look -> weigh -> (lease) links -> devices -> estimates -> largest context -> device probe
    -> layers, micro-batch, tensor mode -> speculation -> dry run -> baseline

Each stage is a function that returns a plan, or None when the stage has nothing more to ask (_base/steps.py).
"""

from __future__ import annotations

import typing as t

from .._base.steps import Done, Lease, Plan, Step, Store, first_plan
from .._base.types import Mapping
from .._models import model_shapes
from .._split import device_list, fallbacks, known_devices, network_links, split_problem
from .._split.types import KnownDevice
from . import context_stage, known_costs, predictor, tuning_effort, tuning_links, tuning_settings, tuning_steps
from .tuning_state import OWN_PLACEMENT, TENSOR_QUESTION, State

_MEASURING: t.Final = ("split_benchmark", "split_mode_trial", *tuning_steps.ANSWERING)
#: About how many loads the layer split, the micro-batch, tensor mode, speculation and the rest of a baseline take.
_USUAL_LOADS: t.Final = {"layers": 5, "micro_batch": 2, "mode": 4, "speculation": 4, "baseline": 1}
#: Why there is nothing to predict.
NO_CARD: t.Final = "This host has no card that is known: name cards with -e mixed_gpu_profile=NAME."


def planner(settings: Mapping) -> Tuning:
    """Return the planner for the variables of the role. Raises ValueError naming the variable that is wrong."""
    return Tuning(tuning_settings.read(settings))


class Tuning:
    """The planner of one deployment's tuning."""

    def __init__(self, settings: tuning_settings.Settings) -> None:
        self.settings = settings

    def plan(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next."""
        state = State(self.settings, done)
        before = (_look, _obstacle, _headers, _unchanged, _weigh, _draft_headers, _probe_model)
        stages = (*before, _links, _devices, _estimate, _context, _probe, _decide, _drafts, _speculate, _finish)
        return first_plan(state, stages) or _tuned(state)

    def predict(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next in check mode: the first look, the layer sizes, and what they let expect."""
        state, settings = State(self.settings, done), self.settings
        if settings.profile:
            return _prediction(state, [])
        if (plan := _look(state)) is not None:
            return plan
        if settings.shape or settings.predict_only:
            return _prediction(state, [])
        missing = state.missing
        if missing:
            return _said(f"The split is unknown until {' and '.join(missing)} exists: a real run installs it first.")
        would = f"Would measure splits of {settings.model_id} now: {state.due}."
        return first_plan(state, (_obstacle, _headers, _unchanged)) or _prediction(state, [would])

    def line(self, done: Done) -> str:
        """Return what is shown of a step."""
        return tuning_steps.line(done)


# --- before the lease ------------------------------------------------------------------------------------------------


def _look(state: State) -> Plan | None:
    return Plan((tuning_steps.look(state),)) if state.result("look") is None else None


def _obstacle(state: State) -> Plan | None:
    """Return the failure of a host that cannot be tuned."""
    missing = state.missing
    if missing:
        return Plan(failure=f"{' and '.join(missing)} does not exist. {state.family.cure()}")
    if state.look["record_problem"]:
        return Plan(failure=f"{state.look['record_problem']}.")
    if state.look["build"] is None:
        return Plan(failure=f"{state.build_file} holds no key of a build. {state.family.cure()}")
    device_list.check_budgets(state.settings.device_budget_mib, state.look["gpus"], state.settings.rpc_endpoints)
    return None


def _headers(state: State) -> Plan | None:
    return _weigh(state) if state.family.headers_first else None


def _unchanged(state: State) -> Plan | None:
    """Return the result where the recorded split still holds."""
    settings = state.settings
    if state.due is not None:
        return None
    activate = settings.active and state.look["record"].get("active") != settings.deployment
    why = f"nothing changed since {settings.deployment} was measured"
    return Plan(result={"needed": False, "activate": activate, "lines": [], "why": why})


def _weigh(state: State) -> Plan | None:
    # before the lease: a model that cannot be planned for must not cost the running server a restart
    return Plan((state.family.weigh(),)) if state.result("weigh") is None else None


def _draft_headers(state: State) -> Plan | None:
    """Return what is to be read of the drafts of an engine that has no dry run: a folder that is none costs no load."""
    if state.engine.dry_run or not state.speculation.kinds:
        return None
    steps = [tuning_steps.draft_sizes(state, draft) for draft in state.settings.own_drafts]
    missing = tuple(step for step in steps if state.result(step.name) is None)
    return Plan(missing) if missing else None


def _probe_model(state: State) -> Plan | None:
    if not state.probing:
        return None
    if state.result("probe model") is None:
        return Plan((tuning_steps.probe_model(state),))
    return Plan((tuning_steps.probe_sizes(state),)) if state.result("probe sizes") is None else None


# --- under the lease -------------------------------------------------------------------------------------------------


def _links(state: State) -> Plan | None:
    """Return the measurement of the network to other hosts; none where all devices are here."""
    step = tuning_links.step(state)
    if step is None or state.result(step.name) is not None:
        return None
    return _under_lease(state, [step], str(state.due))


def _devices(state: State) -> Plan | None:
    if state.result("devices") is not None:
        return None
    return _under_lease(state, [tuning_steps.devices(state)], str(state.due))


def _estimate(state: State) -> Plan | None:
    """Return the dry runs of a model that is not modelled here, or the failure of one that llama.cpp does not load."""
    others = [item.result for item in state.done if item.step.name not in (TENSOR_QUESTION, OWN_PLACEMENT)]
    refused = next((result for result in others if result.get("refused")), None)
    if refused is not None:
        return Plan(failure=f"{state.settings.model_path} cannot be planned for: {refused['reason']}")
    steps = [tuning_steps.estimate(state, layers) for layers in state.estimates]
    missing = [step for step in steps if state.result(step.name) is None]
    why = "the memory of this model is not modelled here: llama.cpp's dry run is asked"
    return _under_lease(state, missing, why) if missing else None


def _context(state: State) -> Plan | None:
    """Return the dry run that the largest context still needs; none where a context was named."""
    if not context_stage.asked(state.asked_serving) or state.context.ask is None:
        return None
    why = f"the largest context: by the plan about {state.context.context} tokens fit, and llama.cpp's dry run decides"
    return _under_lease(state, [tuning_steps.context(state, state.context.ask)], why)


def _probe(state: State) -> Plan | None:
    """Return the loads of the probe model that are missing, or the failure of a device that does not work."""
    if not state.probing:
        return None
    steps = [tuning_steps.probe(state, load) for load in state.probe_loads]
    missing = [step for step in steps if state.result(step.name) is None]
    if missing:
        return _under_lease(state, missing, "measure each device alone with a small model")
    failure = state.probed["failure"]
    return None if failure is None else Plan(failure=failure)


def _decide(state: State) -> Plan | None:
    """Return the measurements that the decision needs, or why there is none."""
    plan = state.plan
    if plan["done"]:
        return Plan(failure=f"{plan['why']}.") if plan["decision"] is None else None
    if plan.get("experts") and state.result(OWN_PLACEMENT) is None:
        return _under_lease(state, [tuning_steps.own_placement(state)], "a rival of what will be measured")
    if plan["stage"] == "tensor" and state.engine.dry_run and state.result(TENSOR_QUESTION) is None:
        return _under_lease(state, [tuning_steps.tensor_question(state, plan["loads"][0])], "")
    steps = [tuning_steps.load(state, load) for load in plan["loads"]]
    steps += [tuning_steps.trial(state, trial) for trial in plan["trials"]]
    return _under_lease(state, steps, f"{plan['stage']}: {plan['why']}")


def _drafts(state: State) -> Plan | None:
    """Return what is still to be read of the drafts, and asked of the dry run about each."""
    if not state.speculation.tried or not state.engine.dry_run:
        return None
    for draft in state.settings.own_drafts:
        sizes = tuning_steps.draft_sizes(state, draft)
        read = state.result(sizes.name)
        if read is None:
            return _under_lease(state, [sizes], "")
        asked = tuning_steps.draft_dry_run(state, draft, read["model"]["block_count"])
        if state.result(asked.name) is None:
            return _under_lease(state, [asked], "")
    return None


def _speculate(state: State) -> Plan | None:
    """Return the next load of llama-server with one way to speculate, or none."""
    stage = state.speculation.stage
    load = stage.next_load if stage is not None else None
    if load is None:
        trial = stage.next_trial if stage is not None else None
        return None if trial is None else _under_lease(state, [tuning_steps.trial(state, trial)], trial["label"])
    why = f"speculation: {load['label']}"
    return _under_lease(state, [tuning_steps.speculation(state, load)], why)


def _finish(state: State) -> Plan | None:
    """Return what is measured and asked once the split is decided."""
    if state.engine.dry_run and state.result("dry run") is None:
        return _under_lease(state, [tuning_steps.dry_run(state)], "")
    if state.baseline is None:
        return None
    if not state.baseline["done"]:
        steps = [tuning_steps.load(state, load) for load in state.baseline["loads"]]
        return _under_lease(state, steps, f"baseline: {state.baseline['why']}")
    return _under_lease(state, [tuning_steps.host()], "") if state.result("host") is None else None


def _under_lease(state: State, steps: t.Sequence[Step], why: str) -> Plan:
    settings = state.settings
    options = {
        "conflicts": settings.conflicting_units,
        "max_seconds": settings.lease_seconds,
        "wait_seconds": settings.lease_wait_seconds,
        "lock_file": f"{settings.measurements_dir}/.lock",
        "lease_file": settings.lease_file,
        "idle_seconds": settings.lease_idle_seconds,
    }
    probed = (state.recorded.get("device_probe") or {}).get("campaign")
    campaigns = tuple(dict.fromkeys([state.campaign, *([probed] if probed else [])]))
    measured = sum(1 for item in state.done if "load" in item.result)
    open_now = sum(1 for step in steps if step.module in _MEASURING)
    measurements = max(measured + open_now, _usual_measurements(state))
    store = Store(settings.measurements_dir, campaigns)
    return Plan(tuple(steps), why, Lease("tuning of", options), store, measurements)


def _usual_measurements(state: State) -> int:
    """Return about how many measurements a tuning like this takes."""
    settings, stages = state.settings, set(state.engine.stages)
    devices = len((state.result("devices") or {}).get("devices") or ())
    if settings.objective in ("decode", "agent") or not state.micro_batches:
        stages.discard("micro_batch")
    if "tensor" not in state.modes:
        stages.discard("mode")
    if not state.speculation.kinds:
        stages.discard("speculation")
    usual = sum(loads for stage, loads in _USUAL_LOADS.items() if stage in stages)
    more = split_problem.LOADS_PER_DEVICE * max(0, devices - 2)
    most = settings.max_loads + more
    return min(usual + more, most + usual - _USUAL_LOADS["layers"]) + (devices if state.probing else 0)


# --- results ---------------------------------------------------------------------------------------------------------


def _tuned(state: State) -> Plan:
    """Return what split_record and revalidation_record take of a finished tuning."""
    settings, decision = state.settings, tuning_links.judged(state, state.decision)
    dry_run = state.result("dry run")
    probe = {"model_path": settings.probe_model_path, "serving": state.probe_serving, "tests": state.probe_tests}
    shown = {"contexts": state.contexts, "effort": tuning_effort.of(state.done, "devices")}
    tuning = {
        "model": {"id": settings.model_id, "path": settings.model_path, "sha256": settings.model_sha256},
        "problem": state.problem,
        "plan": {"decision": {**decision, **shown}, "feasible": state.plan["feasible"]},
        "loads": state.loads,
        "rpc_endpoints": settings.rpc_endpoints,
        "dry_run": None if dry_run is None else dry_run["dry_run"],
        "device_probe": state.probed if state.probing else None,
        "probe_settings": probe if state.probing else None,
        "fingerprint_parts": state.parts,
        "campaign": state.campaign,
    }
    lines, measured = [decision["why"]], None
    if "network" in decision:
        lines.append(f"Network: {decision['network']['why']}.")
    lines += [fallbacks.line(one) for one in fallbacks.of_tuning(state.problem, decision, settings.rpc_endpoints)]
    if decision["speculation"] is not None:
        lines.append(decision["speculation"]["why"])
    if state.baseline is not None:
        lines.insert(0, state.baseline["why"])
        measured = {
            "build": state.look["build"],
            "versions": state.look["versions"],
            "gpus": state.look["gpus"],
            "host": state.needed("host")["host"],
            "loads": state.baseline["reference"],
            "reason": "tuned",
            "most_loads": settings.baseline_max_loads,
        }
    result = {"needed": True, "tuning": tuning, "baseline": measured, "why": decision["why"], "lines": lines}
    return Plan(result=result)


def _prediction(state: State, lines: list[str]) -> Plan:
    """Return what is to be expected from memory and bandwidth alone, or the step that this needs."""
    settings = state.settings
    devices = known_devices.profile_devices(settings.profile) if settings.profile else expected_devices(state)
    if not devices and settings.predict_only:
        return Plan(failure=NO_CARD)
    if not devices or not state.engine.dry_run:
        return _said(*lines, needed=True)
    weighed = state.result("weigh")
    if not settings.shape and weighed is None:
        return Plan((state.family.weigh(),))
    if weighed is not None and not weighed["available"]:
        return _said(*lines, f"No prediction: {weighed['reason']}", needed=True)
    model: t.Any = model_shapes.model(settings.shape) if weighed is None else weighed["model"]
    question = {
        "model": model,
        "serving": state.family.serving({}) if settings.profile else state.asked_serving,
        "reserve_mib": settings.reserve_mib,
        "objective": settings.asked,
        "bench": settings.bench,
        "experts_in_ram": state.expected_experts_in_ram,
    }
    known = None
    if not settings.profile:
        lines = [*lines, *_lent_before(state)]
        own = (*state.comparable, [device["id"] for device in devices], model)
        known = known_costs.for_plan(*own)
        question["experts_in_ram"] = {**question["experts_in_ram"], "measured": known_costs.of_experts(*own)}
    prediction = predictor.predict(question, budgeted(state, devices), known)
    shown = [*lines, *prediction["lines"]]
    return Plan(result={"needed": True, "prediction": prediction, "lines": shown, "why": prediction["why"]})


def expected_devices(state: State) -> list[KnownDevice]:
    """Return the devices of a host as far as they are known without asking the engine, with those of lenders.

    A host that was tuned has its lenders' devices in its record.
    """
    own = _host_devices(state)
    return own if _recorded_lenders(own) or not own else [*own, *known_devices.read_lent(state.settings.lent)]


def budgeted(state: State, devices: t.Sequence[KnownDevice]) -> list[KnownDevice]:
    """Return the devices of a prediction with their budgets. Raises UserError for one of a device that is not there.

    Budgets of lenders that were not asked yet, and of cards that came after the record, count in the next tuning. With
    a profile those by UUID or endpoint are of this host, and do not count.
    """
    settings = state.settings
    there = {name for device in devices for name in (device["device"], device["id"])}
    absent = [key for key in map(str, settings.device_budget_mib) if key not in there]
    if settings.profile:
        left = [key for key in absent if key.startswith("GPU-") or ":" in key]
    else:
        lent = bool(settings.lent) and not _recorded_lenders(_host_devices(state))
        asked = {device_list.endpoint_of(str(device["id"])) for device in devices}
        silent = {endpoint for endpoint in settings.rpc_endpoints if endpoint not in asked}
        cards = {name for n, gpu in enumerate(state.look["gpus"]["gpus"]) for name in (f"CUDA{n}", gpu["id"])}
        left = [key for key in absent if (
            key in cards or device_list.endpoint_of(key) in settings.rpc_endpoints or (lent and ":" in key)
            or ((lent or silent) and key.startswith("RPC"))
        )]  # fmt: skip
    own = {key: budget for key, budget in settings.device_budget_mib.items() if key not in left}
    return device_list.set_budgets(devices, own)


def _host_devices(state: State) -> list[KnownDevice]:
    return known_devices.host_devices(state.reference.get("devices") or [], state.gpus)


def _recorded_lenders(devices: t.Sequence[KnownDevice]) -> list[str]:
    return network_links.remote(str(device["id"]) for device in devices if device["backend"] == "RPC")


def _lent_before(state: State) -> list[str]:
    """Return the sentence about lent cards by name that do not count, since the host's record has its lenders."""
    if not state.settings.lent or not _recorded_lenders(_host_devices(state)):
        return []
    named = ", ".join(state.settings.lent)
    return [f"Lenders are those that this host was tuned with; {named} by name would count where it had none."]


def _said(*lines: str, needed: bool = False) -> Plan:
    return Plan(result={"needed": needed, "activate": False, "lines": list(lines), "why": " ".join(lines)})
