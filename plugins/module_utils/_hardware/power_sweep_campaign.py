# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The campaign of the role power_sweep: limits to set, and what to measure with each. Private to this collection.
Pure functions only.

    deployment -> cards -> (lease) each planned limit -> what was only predicted -> the first limit once more

Every limit is set by the module gpu_power, which has the limits that it found restored when the lease ends; then one
load of the recorded split is measured.
"""

from __future__ import annotations

import dataclasses
import json
import typing as t

from .._base import fingerprints, host_python, steps, variables
from .._base.types import Json, Mapping
from . import power_sweep

_LEASE_UNIT: t.Final = "mixed-gpu-lease.service"
_CARD_KEYS: t.Final = (
    "id", "name", "power_limit_watts", "power_limit_min_watts", "power_limit_max_watts", "power_limit_default_watts",
)  # fmt: skip
#: Seconds that the first load takes beside reading the file at so many bytes a second; after it, its own time counts.
_START_SECONDS: t.Final = 20.0
_READ_BYTES_PER_SECOND: t.Final = 500e6
#: How long a job may wait for the lock of another measurement, beside its own limit.
_WAIT_SECONDS: t.Final = 3600


@dataclasses.dataclass(frozen=True)
class Settings:
    """One field per variable, without C(power_sweep_); roles/power_sweep/meta/argument_specs.yml describes them."""

    fractions: list[float]
    limits_watts: dict[str, t.Any]
    tolerance_percent: float
    again: bool
    prompt_tokens: int
    generated_tokens: int
    repetitions: int
    settle_seconds: int
    load_timeout_seconds: int
    llama_bench: str
    environment: dict[str, t.Any]
    energy_meter: str
    host: str
    path: str
    state_dir: str
    conflicting_units: list[str]
    lease_seconds: int
    lease_wait_seconds: int

    @property
    def tests(self) -> list[Json]:
        """What each load measures. Without depth: the energy meter relies on samples that follow one another."""
        sizes = (("prefill", self.prompt_tokens, 0), ("decode", 0, self.generated_tokens))
        return [
            {"kind": kind, "n_prompt": prompt, "n_gen": generated, "n_depth": 0, "repetitions": self.repetitions}
            for kind, prompt, generated in sizes
        ]


def planner(settings: Mapping) -> Sweep:
    """Return the planner for the variables of the role. Raises UserError naming the variable that is wrong."""
    return Sweep(variables.read(Settings, settings, "power_sweep"))


class Sweep:
    """The planner of one sweep."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def plan(self, done: t.Sequence[steps.Done]) -> steps.Plan:
        """Return what comes next."""
        state = _State(self.settings, done)
        looking = _look(state, required=True)
        if looking is not None:
            return looking
        for index, (point, number) in enumerate(state.wanted()):
            following = [step for step in _measured_at(state, point, number) if not state.has(step)]
            if following:
                planned = f"{len(state.points)} limits, one load of the model each, and one or two more"
                return _under_lease(state, following, "" if index else planned)
        return steps.Plan(result=_result(state))

    def predict(self, done: t.Sequence[steps.Done]) -> steps.Plan:
        """Return what comes next in check mode: what is recorded, the cards, and what would be measured."""
        state = _State(self.settings, done)
        looking = _look(state, required=False)
        if looking is not None:
            return looking
        if state.entry is None:
            return _said(f"The power limits cannot be swept yet: {state.recorded['why']}.")
        labels = ", ".join(str(point["label"]) for point in state.points)
        stopped = ", ".join(self.settings.conflicting_units)
        return _said(f"Would stop {stopped} and measure {state.recorded['deployment']} at {labels}.")

    def line(self, done: steps.Done) -> str:
        """Return what is shown of a step."""
        if done.step.module != "split_benchmark":
            return ""
        load = done.result["load"]
        point = power_sweep.row({"label": "", "limits_watts": _energy_of(load), "loads": [load]})
        if point["status"] != "ok":
            return f"{point['status']}: {point['reason']}"
        words = [
            f"{kind} {phase['tokens_per_second']:.1f} tokens/s"
            + (f" at {phase['joules_per_token']:.3g} J each" if phase["joules_per_token"] is not None else "")
            for kind in ("prefill", "decode")
            if (phase := point[kind])
        ]
        return ", ".join(words)


def _energy_of(load: Mapping) -> Json:
    """Return the cards of which the results of a load have the energy."""
    return {card_id: 0 for result in load["results"] for card_id in (result.get("energy") or {"joules": {}})["joules"]}


class _State:
    """What the steps so far say."""

    def __init__(self, settings: Settings, done: t.Sequence[steps.Done]) -> None:
        self.settings = settings
        self.done = done

    def has(self, step: steps.Step) -> bool:
        """Whether a step was done."""
        return steps.result_of(self.done, step.name) is not None

    def result(self, name: str) -> Mapping:
        """Return what a step returned that was done."""
        found = steps.result_of(self.done, name)
        if found is None:
            raise KeyError(name)
        return found

    @property
    def recorded(self) -> Mapping:
        """The answer of split_record."""
        return self.result("deployment")

    @property
    def entry(self) -> Mapping | None:
        """The recorded deployment."""
        return self.recorded["entry"] if self.recorded["available"] else None

    @property
    def fact(self) -> Mapping:
        """The fact mixed_gpu_gpus."""
        return t.cast(Mapping, self.result("cards")["ansible_facts"]["mixed_gpu_gpus"])

    @property
    def cards(self) -> list[Mapping]:
        """The cards of the split. Of devices behind RPC servers the card is unknown: then it is all of the host."""
        entry = self.entry or {"placement": []}
        used = {place["id"] for place in entry["placement"] if place["layers"]}
        return [card for card in self.fact["gpus"] if card["id"] in used] or list(self.fact["gpus"])

    @property
    def points(self) -> list[Json]:
        """The planned limits. Raises UserError for those that a card does not take."""
        return power_sweep.plan(self.cards, self.settings.fractions, self.settings.limits_watts)

    @property
    def measurements(self) -> list[Json]:
        """What was measured, in order: C({label, limits_watts, load}), with the limits that were set before it."""
        found, limits = [], {}
        for item in self.done:
            if item.step.module == "gpu_power":
                limits = item.step.args["limits_watts"]
            elif item.step.module == "split_benchmark":
                load = item.result["load"]
                found.append({"label": load["label"], "limits_watts": limits, "load": load})
        return found

    def choose(self, measurements: t.Sequence[Mapping], measured_only: bool) -> Json:
        """Return the choice among what was measured. Raises UserError when the highest limits were not."""
        entry = self.entry or {}
        points, objective = power_sweep.group(measurements), entry["decision"]["objective"]
        return power_sweep.choose(points, self.cards, objective, self.settings.tolerance_percent, measured_only)

    def wanted(self) -> t.Iterator[tuple[Json, int]]:
        """Yield the points to measure with the number of the load, as far as they are known yet."""
        points = self.points
        yield from ((point, 1) for point in points)
        planned = self.measurements[: len(points)]
        if len(planned) < len(points):
            return
        choice = self.choose(planned, measured_only=False)
        if not choice["measured"]:
            yield {"label": choice["label"], "limits_watts": choice["limits_watts"]}, 1
        # what differs between this and the first load is noise, or drift
        yield points[0], 2


def _name(point: Mapping, number: int) -> str:
    return f"{point['label']} load {number}"


def _look(state: _State, required: bool) -> steps.Plan | None:
    """Return the steps that read what is recorded and which cards there are; None once they were done."""
    query = {"state": "query", "engine": "llama_cpp", "required": required}
    asked = (
        steps.Step("deployment", "split_record", query, "read the recorded deployment"),
        steps.Step("cards", "gpu_facts", {"required": required}, "read the cards"),
    )
    missing = tuple(step for step in asked if not state.has(step))
    return steps.Plan(missing) if missing else None


def _measured_at(state: _State, point: Json, number: int) -> list[steps.Step]:
    """Return the steps that set the limits of a point and measure one load with them."""
    settings, entry, name = state.settings, state.entry or {}, _name(point, number)
    limits = {
        "limits_watts": point["limits_watts"],
        "until_unit": _LEASE_UNIT,
        "settle_seconds": settings.settle_seconds,
    }
    parts = {
        "tuned": entry["fingerprint"],
        "driver_version": state.fact["driver_version"],
        "limits_watts": point["limits_watts"],
        "tests": settings.tests,
    }
    load = {
        "label": point["label"],
        "split_mode": entry["split_mode"],
        "layers": [place["layers"] for place in entry["placement"]],
        "load": number,
        "purpose": "power",
        "tests": settings.tests,
    }
    arguments = {
        "llama_bench": settings.llama_bench,
        "model_path": entry["model"]["path"],
        "load": load,
        "devices": [device["device"] for device in entry["devices"]],
        "rpc_endpoints": entry["rpc_endpoints"],
        "serving": entry["serving"],
        "environment": {**entry["environment"], **settings.environment},
        "campaign": _campaign(state),
        "fingerprint": fingerprints.fingerprint(parts),
        "state_dir": f"{settings.state_dir}/measurements",
        "wrapper": [host_python.DEFAULT, settings.energy_meter],
        "timeout_seconds": settings.load_timeout_seconds,
    }
    return [
        steps.Step(f"limits of {name}", "gpu_power", limits, f"set {point['label']}", 5.0 + settings.settle_seconds),
        steps.Step(name, "split_benchmark", arguments, str(point["label"]), _expected_seconds(state),
                   settings.load_timeout_seconds + _WAIT_SECONDS),
    ]  # fmt: skip


def _expected_seconds(state: _State) -> float:
    """Return about how long a load takes, from the last one."""
    for item in reversed(state.done):
        if item.step.module == "split_benchmark" and item.result["load"].get("wall_ms"):
            return float(item.result["load"]["wall_ms"]) / 1000
    return _START_SECONDS + float((state.entry or {})["model"]["size_bytes"]) / _READ_BYTES_PER_SECOND


def _campaign(state: _State) -> str:
    """Return the campaign of the store: the same for every sweep of a recorded split, until one is to measure again."""
    begun = next(item.at for item in state.done if item.step.name == "deployment")
    again = f" again {begun}" if state.settings.again else ""
    return f"power sweep {(state.entry or {})['recorded_at']}{again}"


def _under_lease(state: _State, following: t.Sequence[steps.Step], why: str) -> steps.Plan:
    settings = state.settings
    measurements = f"{settings.state_dir}/measurements"
    options = {
        "conflicts": settings.conflicting_units,
        "max_seconds": settings.lease_seconds,
        "wait_seconds": settings.lease_wait_seconds,
        "lock_file": f"{measurements}/.lock",
    }
    return steps.Plan(
        tuple(following), why, steps.Lease("power sweep of", options), steps.Store(measurements, (_campaign(state),)),
        len(state.points) + 2,
    )  # fmt: skip


def _result(state: _State) -> Json:
    """Return what the role writes and shows."""
    entry = state.entry or {}
    choice = state.choose(state.measurements, measured_only=True)
    found = next(item.result["found"] for item in state.done if item.step.module == "gpu_power")
    document = {
        "schema": 1,
        "host": state.settings.host,
        "deployment": state.recorded["deployment"],
        "driver_version": state.fact["driver_version"],
        "cards": [{key: card[key] for key in _CARD_KEYS} for card in state.cards],
        "layers": [place["layers"] for place in entry["placement"]],
        "objective": entry["decision"]["objective"],
        "tolerance_percent": state.settings.tolerance_percent,
        "tests": state.settings.tests,
        "result": choice,
    }
    keep = (
        f"To keep these limits, set gpu_power_limits_watts to {json.dumps(choice['limits_watts'])} and run site. The"
        f" result is in {state.settings.path}."
    )
    lines = [*power_sweep.table(choice, state.cards), *_lent(state), keep]
    return {"found": found, "document": document, "why": choice["why"], "lines": lines}


def _lent(state: _State) -> list[str]:
    """Return a sentence about cards of other hosts that the deployment uses."""
    names = " and ".join(state.recorded["lenders"])
    if not names:
        return []
    return [
        f"Cards of {names} kept their limits and their energy is not counted, since both are done on the host that"
        " measures: set gpu_power_limits_watts of that host, which site applies."
    ]


def _said(line: str) -> steps.Plan:
    return steps.Plan(result={"found": None, "document": None, "lines": [line], "why": line})
