# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of a plan: what a model would give, before anything is downloaded, bought or measured. Private. Pure.

Of a repository of the hub every quant is told of, by the headers of its files. Configurations of cards are compared
side by side. What is asked about a shape, a file or the model of a host is answered by the planner of the tuning, in
check mode.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.steps import Done, Plan, Step, result_of
from .._base.types import Json
from .._split import known_devices, pipeline_start
from .._split.types import KnownDevice
from . import (
    comparison,
    known_costs,
    pipeline_plan,
    planning_settings,
    predictor,
    quant_table,
    tuning,
    tuning_experts,
    tuning_settings,
    tuning_steps,
)
from .tuning_state import State

_MODELS: t.Final = "models of the repository"
_NO_MODEL: t.Final = (
    "Nothing says which model to plan for: give -e model_repo=OWNER/NAME for one of the hub, -e model_shape=NAME for a"
    " well-known one, or -e model_gguf=PATH."
)


def planner(settings: t.Mapping[str, t.Any]) -> Planning:
    """Return the planner of a plan; C(settings) are the variables of the role split_tuning."""
    return Planning(settings)


class Planning:
    """Planner of a plan. It measures nothing and changes nothing."""

    def __init__(self, given: t.Mapping[str, t.Any]) -> None:
        self.settings = tuning_settings.read(given)
        self.question = planning_settings.read(given)
        self._tuning = tuning.planner(given)

    def plan(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next: as in check mode, since nothing is measured either way."""
        return self.predict(done)

    def predict(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next: the look at a host, the headers of the model, and the prediction."""
        if self.question.start_engine == "vllm_ray":
            return self._started(State(self.settings, done))
        if not self.question.repo and not self.question.profiles:
            if not self.settings.shape and not self.settings.model_path:
                return Plan(failure=_NO_MODEL)
            return self._tuning.predict(done)
        state = State(self.settings, done)
        looks = self.question.measured_here if self.question.profiles else not self.settings.profile
        if looks and result_of(done, "look") is None:
            return Plan((tuning_steps.look(state),))
        if self.question.repo and result_of(done, _MODELS) is None:
            return Plan((self._ask(),))
        return self._compared(state) if self.question.profiles else self._quants(state, state.needed(_MODELS))

    def line(self, done: Done) -> str:
        """Return what is shown of a step."""
        if done.step.name != _MODELS:
            return self._tuning.line(done)
        return f"{len(done.result['models'])} models, {done.result['read_bytes'] / 1e6:.1f} MB read"

    def _ask(self) -> Step:
        asked = self.question
        options = {
            "repo": asked.repo, "revision": asked.revision, "host_python": self.settings.host_python,
            "quant": asked.quant or None, "endpoint": asked.hub_endpoint or None,
            "token_file": asked.hub_token_file or None,
        }  # fmt: skip
        given = {name: value for name, value in options.items() if value is not None}
        return Step(_MODELS, "hub_models_info", given, f"read the headers of {asked.repo}", 20)

    def _asked(self, state: State) -> Json:
        """Return the question that predictions answer, without the model."""
        return {
            "serving": state.family.serving({}), "reserve_mib": self.settings.reserve_mib,
            "objective": self.settings.asked, "bench": self.settings.bench,
        }  # fmt: skip

    @property
    def _reads_file(self) -> bool:
        return bool(self.settings.model_path) and not self.question.repo and not self.settings.shape

    @property
    def _uncounted(self) -> list[str]:
        """The sentence about memory budgets where cards are looked at that nobody can give one."""
        if not self.settings.device_budget_mib:
            return []
        return ["split_tuning_device_budget_mib does not count here: it is about one host with llama.cpp."]

    def _models(self, state: State) -> list[t.Any]:
        """Return the models of interest. Raises UserError where a repository has several, or a file is no model."""
        if self._reads_file:
            weighed = state.needed("weigh")
            if not weighed["available"]:
                raise UserError(f"No prediction: {weighed['reason']}")
            return [weighed["model"]]
        if not self.question.repo:
            named = [self.settings.shape] if self.settings.shape else comparison.USUAL
            return [comparison.shape(name) for name in named]
        found = state.needed(_MODELS)["models"]
        if len(found) == 1 and found[0]["problem"]:
            raise UserError(f"No prediction for {found[0]['quant']} of {self.question.repo}: {found[0]['problem']}")
        if len(found) != 1:
            names = ", ".join(each["quant"] for each in found)
            raise UserError(f"{self.question.repo} has {names}: name one with -e quant=NAME.")
        return [found[0]["model"]]

    def _compared(self, state: State) -> Plan:
        """Return the comparison of configurations, or the step that it needs."""
        if self._reads_file and state.result("weigh") is None:
            return Plan((state.family.weigh(),))
        try:
            models = self._models(state)
        except UserError as exc:
            return Plan(failure=str(exc))
        record = state.look["record"] if self.question.measured_here else None
        # cards that are not here, in a box that nobody describes
        question = {**self._asked(state), "experts_in_ram": tuning_experts.expected(self.settings, None, [])}
        result = comparison.compare(
            self.question.profiles, models, question, self.question.costs, self.question.users, record
        )
        lines = [*result["lines"], *self._uncounted]
        return Plan(result={"needed": True, "comparison": result, "lines": lines, "why": result["advice"][0]})

    def _started(self, state: State) -> Plan:
        """Return the start of vLLM over the named hosts, cards or the host's own, or the step that it needs."""
        if not (self.question.repo or self.settings.shape or self.settings.model_path):
            return Plan(failure=_NO_MODEL)
        try:
            nodes = pipeline_start.read_nodes(self.question.nodes)
            if not (nodes or self.settings.profile) and state.result("look") is None:
                return Plan((tuning_steps.look(state),))
            if self.question.repo and state.result(_MODELS) is None:
                return Plan((self._ask(),))
            if self._reads_file and state.result("weigh") is None:
                return Plan((state.family.weigh(),))
            devices = [
                device for node in nodes for device in known_devices.profile_devices(node.profile)
            ] or self._devices(state)
            context = self.settings.context_size
            if not isinstance(context, int):
                raise UserError(f"split_tuning_context_size is {context}: vLLM needs a number of tokens, give one")
            found = pipeline_plan.plan(self._models(state)[0], devices, nodes, context, self.question.start_model)
        except UserError as exc:
            return Plan(failure=f"{str(exc).rstrip('.')}.")
        return Plan(result={"needed": True, **found, "lines": [*found["lines"], *self._uncounted]})

    def _quants(self, state: State, found: t.Mapping[str, t.Any]) -> Plan:
        """Return the table of all quants, or the prediction of the only one that was asked for."""
        devices = tuning.budgeted(state, self._devices(state))
        if not devices:
            return Plan(failure=tuning.NO_CARD)
        question = {**self._asked(state), "experts_in_ram": state.expected_experts_in_ram}
        read = {each["quant"]: each["model"] for each in found["models"] if each["model"]}
        known = {quant: self._known(state, model, devices) for quant, model in read.items()}
        rows = quant_table.rows(found["models"], question, devices, known)
        lines = quant_table.lines(self.question.repo, rows, question, devices)
        if self.question.quant and (only := found["models"][0])["model"] is not None:
            lines += predictor.predict({**question, "model": only["model"]}, devices, known[only["quant"]])["lines"]
        result = {
            "needed": True, "quants": rows, "read_bytes": found["read_bytes"], "commit": found["commit"],
            "lines": lines, "why": quant_table.advice(rows),
        }  # fmt: skip
        return Plan(result=result)

    def _known(self, state: State, model: t.Any, devices: t.Sequence[KnownDevice]) -> known_costs.Known | None:
        """Return what a tuning of this host has measured that tells of a model; nothing tells of cards by name."""
        if self.settings.profile:
            return None
        return known_costs.for_plan(*state.comparable, [device["id"] for device in devices], model)

    def _devices(self, state: State) -> list[KnownDevice]:
        profile = self.settings.profile
        return known_devices.profile_devices(profile) if profile else tuning.expected_devices(state)
