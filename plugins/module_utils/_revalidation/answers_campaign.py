# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check of answers before a placement is served. Private to this collection. Pure functions only.

    host -> (lease) answers -> verdict

The role llama_server asks for it before it starts the server. Where nothing changed since the last check, nothing is
done and no lease is taken.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import unit_end, variables
from .._base.steps import Done, Lease, Mapping, Plan, Step, result_of
from .._base.types import Json
from . import answers as checks_of_answers
from . import baselines
from .due import STATE_DIR

_LEASE_SECONDS: t.Final = 7200
_LEASE_WAIT_SECONDS: t.Final = 300


@dataclasses.dataclass(frozen=True)
class Settings:
    """Variables of the role without C(llama_server_); roles/llama_server/meta/argument_specs.yml describes them."""

    program: str
    deployment: str
    conflicting_units: list[str]
    load_timeout_seconds: int
    answers: bool
    answers_tokens: int
    answers_text_tokens: int
    answers_tolerance_percent: float

    @property
    def llama_cpp(self) -> str:
        """The folder of the build that the program is of."""
        return self.program.removesuffix("/bin/llama-server")

    @property
    def options(self) -> checks_of_answers.Options:
        """What the check is made with."""
        return checks_of_answers.Options(
            self.program, STATE_DIR, self.answers_text_tokens, self.answers_tokens, self.answers_tolerance_percent,
            self.load_timeout_seconds,
        )  # fmt: skip


def planner(settings: Mapping) -> AnswersCheck:
    """Return the planner for the variables of the role. Raises ValueError naming the variable that is wrong."""
    return AnswersCheck(variables.read(Settings, settings, "llama_server"))


class AnswersCheck:
    """The planner of one host's check."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    def plan(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next."""
        if not self.settings.answers:
            return _result("The answers are not checked (llama_server_answers).", None)
        if not done:
            return Plan((self._look(),))
        host, checked = done[0].result, result_of(done, checks_of_answers.STEP)
        if host["why"] is not None:
            return _result(f"The answers are not checked: {host['why']}.", None)
        if checked is not None:
            return _judged(checked, host["wrong_answers"])
        configuration = baselines.configuration(host["entry"], host["build"], host["gpus"], host["host"])
        today = checks_of_answers.subject({**configuration, "model_sha256": host["model"]["sha256"]}, host["entry"])
        why = checks_of_answers.due(
            host["answers"], host["wrong_answers"], today, self.settings.answers_tolerance_percent, done[0].at
        )  # fmt: skip
        if why is None:
            return _result(f"Nothing changed since the answers were checked: {host['answers']['sentence']}.", None)
        environment = {**host["entry"]["environment"], **host["entry"]["fingerprint_parts"].get("environment", {})}
        step = checks_of_answers.step(host, today, environment, self.settings.options)
        return Plan((step,), f"The answers are checked before they are served: {why}.", self._lease())

    def predict(self, done: t.Sequence[Done]) -> Plan:  # noqa: ARG002
        """Return what is said in check mode, in which nothing is asked."""
        return _result("In check mode the answers are not checked.", None)

    def line(self, done: Done) -> str:
        """Return what is shown of a step."""
        found = done.result.get("answers") if done.step.name == checks_of_answers.STEP else None
        return str(found["sentence"]) if found else ""

    def _look(self) -> Step:
        arguments = {
            "deployment": self.settings.deployment,
            "llama_cpp": self.settings.llama_cpp,
            "state_dir": STATE_DIR,
            "served_only": False,
        }
        return Step("host", "revalidation_info", arguments, "read what the answers were checked with", 5)

    def _lease(self) -> Lease:
        options = {
            "conflicts": ["llama-server.service", *self.settings.conflicting_units],
            "max_seconds": _LEASE_SECONDS,
            "wait_seconds": _LEASE_WAIT_SECONDS,
            "lock_file": f"{STATE_DIR}/measurements/.lock",
        }
        return Lease("check of answers on", options)


def _judged(checked: Mapping, marked: bool) -> Plan:
    """Return the end: a placement that computes wrong is not served. C(marked): whether an earlier check found that."""
    if checked.get("failed"):
        return Plan(failure=f"the answers could not be checked: {checked.get('msg')}")
    found = checked["answers"]
    if found["status"] == "wrong":
        return Plan(failure=f"BROKEN, not served: {found['sentence']}.")
    if marked and found["status"] != "ok":
        return Plan(
            failure=f"Not served: an earlier check found wrong answers, and this one cannot tell ({found['sentence']});"
            f" remove {unit_end.WRONG_ANSWERS} once the cause that it names is mended, then run site."
        )
    return _result(f"The answers were checked: {found['sentence']}.", found)


def _result(why: str, found: Json | None) -> Plan:
    return Plan(result={"changed": False, "answers": found, "why": why, "lines": [why]})
