# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an upgrade does next. Private to this collection. Pure functions only.

The record is that of upgrade_stages.py. A step is {do, sentence}:

  begin       compare the host with its baseline, then install
  install     install the new version
  revalidate  measure the new version and judge it
  accept      make what was measured the baseline
  measure     measure again, and make that the baseline: what an interrupted run measured went with it
  restore     bring the former version back and revalidate it
  nothing     the host has what is asked for
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from . import upgrade_stages as stages
from . import upgrade_words as words

Table = t.Mapping[str, t.Any]
BACKWARDS: t.Final = ("rolling_back", "proving")


class Step(t.TypedDict):
    """What comes next, and a sentence about it."""

    do: str
    sentence: str


class Opening(t.TypedDict):
    """What is known before the host is looked at."""

    component: str
    #: C(version) and C(sha256) that count: those of an interrupted upgrade where nothing else is asked for.
    asked: dict[str, str]
    #: Which variables of the role llama_cpp say what to install: those of the inventory (""), git or sdist.
    way: str
    #: Whether it has to be found out what would be installed.
    plan: bool
    #: Where an upgrade stopped, or "".
    sentence: str


def opening(record: Table, component: str, version: str, sha256: str, on_resume: str) -> Opening:
    """Return what can be said before anything is looked at.

    `component`, `version` and `sha256` are what is asked for, "" where nothing is. Raises UserError where that cannot
    go together with the upgrade that is under way.
    """
    upgrade = record["under_way"]
    if upgrade is None:
        if not component:
            raise UserError(
                "nothing says what to upgrade, and no upgrade is under way: give -e component=driver or -e"
                " component=llama_cpp"
            )
        return _opening(component, version, sha256, True, "")
    asked = upgrade["to"]["asked"]
    backwards = on_resume == "rollback" or upgrade["stage"] in BACKWARDS
    where = words.stopped(upgrade)
    if component and component != upgrade["component"]:
        raise UserError(f"{where}. It comes before {stages.NAMES[component]}: {words.ways_out(upgrade)}")
    if backwards and version and version not in (asked.get("version"), upgrade["to"]["version"]):
        raise UserError(f"{where}. It comes before {version}: {words.ways_out(upgrade)}")
    if not version:
        version = asked.get("version", "")
        sha256 = sha256 or asked.get("sha256", "")
    return _opening(upgrade["component"], version, sha256, not backwards, f"{where}.")


def refuse_alone(record: Table, component: str, lenders: t.Collection[str]) -> None:
    """Raise UserError where llama.cpp of a box would be upgraded without the lenders (hosts) that it serves over.

    RPC wants the same build on all of them. An upgrade that is under way may end: it began without lenders.
    """
    if component == "llama_cpp" and lenders and record["under_way"] is None:
        plural = "s" if len(lenders) > 1 else ""
        raise UserError(
            f"this host serves over the lender{plural} {', '.join(lenders)}, and llama.cpp's RPC wants the same build"
            " on all hosts: set the new version in the variables llama_cpp_* and run site, which"
            " moves all of them or none"
        )


def _opening(component: str, version: str, sha256: str, plan: bool, sentence: str) -> Opening:
    way = "" if component == "driver" or not version else "sdist" if sha256 else "git"
    asked = {"version": version, "sha256": sha256}
    return {"component": component, "asked": asked, "way": way, "plan": plan, "sentence": sentence}


def places(component: str, host: str, planned: Table) -> tuple[Table, Table]:
    """Return (what the host has, what is asked for) of what the component's role plans.

    That is C(nvidia_driver_planned), {present, wanted, foreign}, or C(llama_cpp_planned), {present, wanted}. Raises
    UserError for what could not be gone back from.
    """
    name = stages.NAMES[component]
    there = planned["present"] if component == "driver" else planned["present"]["builds"]
    if not there:
        raise UserError(f"{host} has no {name.removeprefix('the ')} to upgrade: install one with the playbook site")
    if component == "driver":
        if planned["foreign"]:
            raise UserError(f"{planned['foreign'].rstrip('.')}, so this collection does not upgrade it")
        return {"version": planned["present"], "builds": {}}, {"version": planned["wanted"], "builds": {}}
    if planned["wanted"]["version"] == "package":
        raise UserError(
            "llama_cpp_source is package, and what apt upgrades cannot be gone back from in seconds: upgrade to a"
            " source of another kind (sdist, git, archive)"
        )
    return planned["present"], planned["wanted"]


def same_place(one: Table, other: Table) -> bool:
    """Return whether two places are the same version in the same builds."""
    return one["version"] == other["version"] and dict(one["builds"]) == dict(other["builds"])


def decide(record: Table, present: Table | None, wanted: Table | None, on_resume: str) -> Step:
    """Return what to do first.

    `present` is what the host has, `wanted` what is asked for; None where `opening` asked for no plan. Raises UserError
    for what cannot go together with the upgrade that is under way.
    """
    upgrade = record["under_way"]
    if upgrade is None:
        if wanted is None or present is None:
            raise UserError("nothing is under way, and nothing was planned")
        if same_place(present, wanted):
            sentence = f"Nothing to upgrade: {present['version']} is what is asked for, and what this host has."
            return {"do": "nothing", "sentence": sentence}
        return {"do": "begin", "sentence": f"Upgrading {words.ends(present, wanted)}."}
    if upgrade["stage"] in BACKWARDS:
        return {"do": "restore", "sentence": "Going on with the rollback."}
    if on_resume == "rollback":
        if upgrade["stage"] == "keeping":
            raise UserError(
                f"{words.stopped(upgrade)}. It was accepted, so there is nothing to roll back: run upgrade with"
                f" -e component={upgrade['component']}, then upgrade to {upgrade['from']['version']} if you want that"
            )
        return {"do": "restore", "sentence": "Rolling back."}
    if wanted is None or not same_place(wanted, upgrade["to"]):
        other = "nothing" if wanted is None else _place_name(wanted, upgrade["to"])
        raise UserError(f"{words.stopped(upgrade)}. Asked for now is {other}: {words.ways_out(upgrade)}")
    if upgrade["stage"] == "keeping" and present is not None and same_place(present, upgrade["to"]):
        return {"do": "measure", "sentence": "Going on with the new baseline."}
    return {"do": "install", "sentence": "Going on with the installation."}


def _place_name(place: Table, other: Table) -> str:
    if place["version"] != other["version"]:
        return str(place["version"])
    return f"another build of {place['version']} ({', '.join(place['builds'].values())})"


def judged(record: Table, revalidation: Table, now: str) -> tuple[stages.Record, Step]:
    """Return the record and the step after the revalidation of the new version."""
    if revalidation["accepted"]:
        record = stages.advance(record, "keeping", now, revalidation)
        return record, {"do": "accept", "sentence": "The new version is accepted."}
    record = stages.advance(record, "rolling_back", now, revalidation)
    return record, {"do": "restore", "sentence": "The new version is not accepted."}


def failed(
    record: Table, failure: str, present: Table | None, reboot_required: bool, now: str, keep: int
) -> tuple[stages.Record, Step | None]:
    """Return the record, and the step after an installation that failed; None where the upgrade ends or waits.

    llama.cpp is switched to only when it is built and runs: where `present` (None for a driver) is what the host had,
    there is nothing to go back from. A driver that waits for a reboot is gone on with after it.
    """
    upgrade = stages.under_way(record)
    if reboot_required:
        return dict(record), None
    if present is not None and upgrade["stage"] == "installing" and present["builds"] == upgrade["from"]["builds"]:
        return stages.finish(record, "untouched", now, keep, None, failure), None
    broken = {"verdict": "broken", "accepted": False, "summary": failure}
    return stages.advance(record, "rolling_back", now, broken), {"do": "restore", "sentence": failure}


def finished(record: Table, revalidation: Table | None, now: str, keep: int) -> stages.Record:
    """Return the record with its upgrade at its end; `revalidation` is that of the version that was restored."""
    if revalidation is None:
        return stages.finish(record, "kept", now, keep)
    return stages.finish(record, "rolled_back" if revalidation["accepted"] else "broken", now, keep, revalidation)


def ended_well(upgrade: Table) -> bool:
    """Return whether an upgrade that ended did what was asked for: it was kept, or a rollback was asked for."""
    return upgrade["outcome"] == "kept" or (
        upgrade["outcome"] == "rolled_back" and upgrade["verdicts"]["after"] is None
    )
