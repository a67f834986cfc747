# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of upgrades of a host: its form, and how it changes. Private to this collection. Pure functions only.

record  = {schema: 1, under_way: null | upgrade, finished: [upgrade, ...] (oldest first)}
upgrade = {component, stage, from: place, to: place with asked, lenders: {name: {from, to}}, started_at, stage_at,
           verdicts: {before, after, back}, why, outcome, finished_at}
place   = {version, builds: {name: directory}}; of a driver, builds is empty
verdict = {verdict, accepted, summary} or null

The host is the one that serves. Its lenders, hosts that move with it or not at all, keep no record of their own.
docs/data_formats.md (section upgrade) says the rest. upgrade_steps.py decides what comes next, upgrade_words.py has the
sentences.
"""

from __future__ import annotations

import textwrap
import typing as t

from .._base import json_state
from .._base.errors import UserError
from .._base.fields import choice

SCHEMA: t.Final = 1
PATH: t.Final = "/var/lib/mixed_gpu/upgrade.json"
COMPONENTS: t.Final = ("driver", "llama_cpp")
NAMES: t.Final = {"driver": "the driver", "llama_cpp": "llama.cpp"}
#: What a host does in each stage, in words that follow "it stopped while".
STAGES: t.Final = {
    "building": "the new version was being built",
    "installing": "the new version was being installed",
    "revalidating": "the new version was being revalidated",
    "keeping": "the accepted version was being made the baseline",
    "rolling_back": "the former version was being restored",
    "proving": "the former version, which had been restored, was being revalidated",
}
#: Stages that a stage may lead to. Each stage's work can be done twice.
NEXT: t.Final = {
    "building": ("installing", "rolling_back"),
    "installing": ("revalidating", "rolling_back"),
    "revalidating": ("installing", "keeping", "rolling_back"),
    "keeping": ("installing", "revalidating", "rolling_back"),
    "rolling_back": ("proving",),
    "proving": ("rolling_back",),
}
#: Stages that end in each outcome. `untouched`: the new version could not be installed, and nothing had been switched.
OUTCOMES: t.Final = {
    "kept": ("keeping",), "rolled_back": ("proving",), "broken": ("proving",), "untouched": ("building", "installing")
}  # fmt: skip
#: Longest text of a verdict or a failure that the record keeps.
MOST_CHARACTERS: t.Final = 600
Record = dict[str, t.Any]
Table = t.Mapping[str, t.Any]


class Ends(t.NamedTuple):
    """What a host has, and what it is to have; both are places."""

    host: str
    present: Table
    wanted: Table


def empty() -> Record:
    """Return the record of a host on which nothing was upgraded."""
    return {"schema": SCHEMA, "under_way": None, "finished": []}


_PLACE: t.Final = {"version": str, "builds": {str: str}}
_VERDICT: t.Final = (None, {"verdict": str, "accepted": bool, "summary": str})
_UPGRADE: t.Final = {
    "component": str, "stage": str, "from": _PLACE, "to": {**_PLACE, "asked": {str: (None, str)}},
    "lenders": {str: {"from": _PLACE, "to": _PLACE}}, "started_at": str, "stage_at": str, "verdicts": {str: _VERDICT},
    "why": (None, str),
}  # fmt: skip


def _check(record: Record) -> None:
    if record["under_way"] is not None:
        choice("under_way.component", record["under_way"]["component"], COMPONENTS)
        choice("under_way.stage", record["under_way"]["stage"], STAGES)


FORM: t.Final = json_state.Form(
    SCHEMA, "run upgrade again: it begins with what is installed now", _check,
    {"under_way": (None, _UPGRADE), "finished": [{}]},
)


def begin(record: Table, component: str, ends: t.Sequence[Ends], asked: Table, before: Table, now: str) -> Record:
    """Return the record with an upgrade under way.

    `ends` has the place that each host leaves and the one that it is to have, first of the host that serves, then of
    its lenders. `before` is the verdict on the state that the upgrade starts from.
    """
    if record["under_way"] is not None:
        raise UserError(f"an upgrade of {NAMES[record['under_way']['component']]} is under way already")
    if component not in COMPONENTS:
        raise UserError(f"{component} is no component, only {', '.join(COMPONENTS)} are")
    hosts = {one.host: {"from": _place(one.present), "to": _place(one.wanted)} for one in ends}
    own = hosts.pop(ends[0].host)
    upgrade = {
        "component": component,
        "stage": "building",
        "from": own["from"],
        "to": {**own["to"], "asked": dict(asked)},
        "lenders": hosts,
        "started_at": now,
        "stage_at": now,
        "verdicts": {"before": verdict_of(before), "after": None, "back": None},
        "why": None,
        "outcome": None,
        "finished_at": None,
    }
    return {**record, "under_way": upgrade}


def advance(record: Table, stage: str, now: str, after: Table | None = None) -> Record:
    """Return the record with its upgrade in a stage. The stage that it is in already changes nothing but the verdict.

    `after` is the verdict on the new version, when it is known. Raises UserError for a stage that the present one does
    not lead to.
    """
    upgrade = under_way(record)
    if stage != upgrade["stage"] and stage not in NEXT[upgrade["stage"]]:
        raise UserError(f"the upgrade is at {upgrade['stage']}, which does not lead to {stage}")
    verdicts = upgrade["verdicts"] if after is None else {**upgrade["verdicts"], "after": verdict_of(after)}
    stage_at = now if stage != upgrade["stage"] else upgrade["stage_at"]
    return {**record, "under_way": {**upgrade, "stage": stage, "stage_at": stage_at, "verdicts": verdicts}}


def finish(
    record: Table, outcome: str, now: str, keep: int, back: Table | None = None, why: str | None = None
) -> Record:
    """Return the record with its upgrade at its end. `back` is the verdict on the version that was restored."""
    upgrade = under_way(record)
    if upgrade["stage"] not in OUTCOMES.get(outcome, ()):
        raise UserError(f"the upgrade is at {upgrade['stage']}, which does not end as {outcome}")
    verdicts = upgrade["verdicts"] if back is None else {**upgrade["verdicts"], "back": verdict_of(back)}
    done = {**upgrade, "verdicts": verdicts, "outcome": outcome, "finished_at": now, "why": why or upgrade["why"]}
    return {**record, "under_way": None, "finished": [*record["finished"], done][-max(keep, 1) :]}


def _place(place: Table) -> Record:
    return {"version": place["version"], "builds": dict(place["builds"])}


def of_host(upgrade: Table, host: str) -> Table:
    """Return what has C(from) and C(to) of a host: a lender, or else the one that serves."""
    return t.cast(Table, upgrade["lenders"].get(host, upgrade))


def under_way(record: Table) -> Table:
    """Return the upgrade that is under way. Raises UserError without one."""
    if record["under_way"] is None:
        raise UserError("no upgrade is under way")
    return t.cast(Table, record["under_way"])


def verdict_of(revalidation: Table) -> dict[str, t.Any]:
    """Return what an upgrade keeps of a revalidation."""
    return {
        "verdict": revalidation["verdict"],
        "accepted": revalidation["accepted"],
        "summary": textwrap.shorten(revalidation["summary"], MOST_CHARACTERS, placeholder=" ..."),
    }
