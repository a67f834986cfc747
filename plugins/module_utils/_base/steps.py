# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the action plugin campaign and its planners hand to each other. Private to this collection. Pure.

A planner is a pure function of its settings and of the steps that were done. It answers with the next steps, or with
the result. It keeps no state, so a campaign that was killed and is run again comes to the same steps; measurements that
the host has stored are not repeated.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .types import Json, Mapping


@dataclasses.dataclass(frozen=True)
class Step:
    """One module to run on the host."""

    #: Name of the step, unique within the campaign; planners find results by it.
    name: str
    #: Name of the module without the collection's; the action plugin has a list of those that are allowed.
    module: str
    args: Mapping
    #: What is shown while the step runs, such as "20/13 load 2".
    label: str
    #: About how long it takes. A step that takes longer than a few seconds runs as a job that is followed.
    expected_seconds: float = 5.0
    #: When a followed job is stopped.
    limit_seconds: int = 7200
    #: Whether a failure of the module is a result that the planner judges; else it ends the campaign.
    tolerated: bool = False


@dataclasses.dataclass(frozen=True)
class Done:
    """A step and what its module returned; C(at) is when it ended (UTC, C(2026-11-24T04:35:00Z))."""

    step: Step
    result: Mapping
    at: str


@dataclasses.dataclass(frozen=True)
class Lease:
    """The lease that steps need.

    It is held from the first plan that names one to a plan that releases it, or to the end of the campaign.
    """

    #: First words of the owner's name; the host, the time and the process follow.
    title: str
    #: Options of the module measurement_lease but C(owner) and C(state).
    options: Mapping


@dataclasses.dataclass(frozen=True)
class Store:
    """Where the host keeps measurements, and those of which campaigns are to be read before the first one is made."""

    state_dir: str
    campaigns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Plan:
    """The answer of a planner: steps in their order, or a result, or a failure."""

    steps: tuple[Step, ...] = ()
    #: One sentence for the person who watches; shown when it is a new one.
    why: str = ""
    lease: Lease | None = None
    store: Store | None = None
    #: About how many measurements the campaign takes in all; 0 when unknown.
    measurements: int = 0
    #: What the task returns, when nothing is left to do.
    result: Json | None = None
    #: Why the campaign ends without a result: one sentence.
    failure: str | None = None
    #: Whether the lease is released before the steps, which then see the services as they come back.
    release: bool = False


class Planner(t.Protocol):
    """What the module of a planner offers: C(planner(settings)) returns an object with these functions, all pure.

    C(plan) and C(predict) return the next steps after C(done), in which every step of the earlier plans stands once.
    Only the first step of a plan is certain to be run: the planner is asked again after each.
    """

    def plan(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next; raise ValueError with one sentence for settings that make no sense."""

    def predict(self, done: t.Sequence[Done]) -> Plan:
        """Return what comes next in check mode: steps whose modules change nothing, then a result."""

    def line(self, done: Done) -> str:
        """Return what is shown of a step that ended well, such as "decode 19.2 tokens/s"; nothing when empty."""


_State = t.TypeVar("_State")


def first_plan(state: _State, stages: t.Iterable[t.Callable[[_State], Plan | None]]) -> Plan | None:
    """Return the plan of the first stage that has one."""
    return next((plan for stage in stages if (plan := stage(state)) is not None), None)


def result_of(done: t.Sequence[Done], name: str) -> Mapping | None:
    """Return what the step with this name returned, or None while it was not done."""
    return next((item.result for item in done if item.step.name == name), None)
