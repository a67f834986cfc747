# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of upgrades of a host, and what comes next. Private to this collection. Pure functions only.

record  = {schema: 1, under_way: null | upgrade, finished: [upgrade, ...] (oldest first)}
upgrade = {component, stage, from: place, to: place with asked, started_at, stage_at, verdicts: {before, after, back},
           why, outcome, finished_at}
place   = {version, builds: {name: directory}}; of a driver, builds is empty
verdict = {verdict, accepted, summary} or null

docs/data_formats.md (section upgrade) says the rest.
"""

from __future__ import annotations

import typing as t

from .._base import json_state
from .._base.errors import UserError

SCHEMA: t.Final = 1
PATH: t.Final = "/var/lib/mixed_gpu/upgrade.json"
COMPONENTS: t.Final = ("driver", "llama_cpp")
NAMES: t.Final = {"driver": "the driver", "llama_cpp": "llama.cpp"}
#: What a host does in each stage, in words that follow "it stopped while".
STAGES: t.Final = {
    "installing": "the new version was being installed",
    "revalidating": "the new version was being revalidated",
    "keeping": "the accepted version was being made the baseline",
    "rolling_back": "the version of before was being brought back",
    "proving": "the version of before, which had been brought back, was being revalidated",
}
#: Stages that a stage may lead to. Each stage's work can be done twice.
NEXT: t.Final = {
    "installing": ("revalidating", "rolling_back"),
    "revalidating": ("keeping", "rolling_back"),
    "keeping": ("revalidating", "rolling_back"),
    "rolling_back": ("proving",),
    "proving": ("rolling_back",),
}
#: Stage that each outcome ends. `untouched`: the new version could not be installed, and nothing had been switched.
OUTCOMES: t.Final = {"kept": "keeping", "rolled_back": "proving", "broken": "proving", "untouched": "installing"}
Table = t.Mapping[str, t.Any]


def empty() -> dict[str, t.Any]:
    """Return the record of a host on which nothing was upgraded."""
    return {"schema": SCHEMA, "under_way": None, "finished": []}


def _check(record: dict[str, t.Any]) -> None:
    upgrade = record.get("under_way", "")
    if not isinstance(record.get("finished"), list) or not (upgrade is None or _is_upgrade(upgrade)):
        raise UserError("what it says is not what this collection writes")


def _is_upgrade(upgrade: t.Any) -> bool:
    return (
        isinstance(upgrade, dict)
        and upgrade.get("component") in COMPONENTS
        and upgrade.get("stage") in list(STAGES)
        and all(isinstance(upgrade.get(name), str) for name in ("started_at", "stage_at"))
        and isinstance(upgrade.get("verdicts"), dict)
        and all(_is_place(upgrade.get(end)) for end in ("from", "to"))
        and isinstance(upgrade["to"].get("asked"), dict)
    )


def _is_place(place: t.Any) -> bool:
    return isinstance(place, dict) and isinstance(place.get("version"), str) and isinstance(place.get("builds"), dict)


FORM: t.Final = json_state.Form(SCHEMA, "run upgrade again: it begins with what is installed now", _check)


def same_place(one: Table, other: Table) -> bool:
    """Whether two places are the same version in the same builds."""
    return one["version"] == other["version"] and dict(one["builds"]) == dict(other["builds"])


def describe(upgrade: Table) -> str:
    """Return C(the upgrade of llama.cpp from b11312 to b11313)."""
    return f"the upgrade of {NAMES[upgrade['component']]} {_ends(upgrade['from'], upgrade['to'])}"


def _ends(origin: Table, target: Table) -> str:
    same = origin["version"] == target["version"]
    return f"from {origin['version']} to {'another build of it' if same else target['version']}"


def _stopped(upgrade: Table, how: str = "it stopped") -> str:
    return (
        f"{_capital(describe(upgrade))} of {upgrade['started_at']} is under way: {how} while "
        f"{STAGES[upgrade['stage']]} (since {upgrade['stage_at']})"
    )


def unfinished(text: str | None) -> dict[str, t.Any]:
    """Return {needed, why, cure} of a record's text: whether somebody has to end an upgrade, and how."""
    try:
        upgrade = None if text is None else FORM.data(text)["under_way"]
    except UserError as exc:
        return {"needed": True, "why": f"the record of upgrades is damaged: {exc}", "cure": f"move {PATH} away"}
    if upgrade is None:
        return {"needed": False, "why": "", "cure": ""}
    why = _stopped(upgrade, "another play is at work, or it stopped")
    return {"needed": True, "why": why, "cure": f"with the playbook homelab.mixed_gpu.upgrade {_ways_out(upgrade)}"}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ways_out(upgrade: Table) -> str:
    """Both ways to end an upgrade, as a sentence's end."""
    asked = upgrade["to"]["asked"]
    options = [f"-e component={upgrade['component']}"]
    options += [f"-e {name}={asked[name]}" for name in ("version", "sha256") if asked.get(name)]
    given = " ".join(options)
    variables = "" if asked.get("version") else ", with the inventory's variables as they were then"
    if upgrade["stage"] in ("rolling_back", "proving"):
        return f"run upgrade with -e component={upgrade['component']} and without a version to finish that first"
    finish = f"finish that first, with {given}{variables}"
    if upgrade["stage"] == "keeping":  # it was accepted, so there is nothing to go back from
        return finish
    return f"{finish}, or go back with -e component={upgrade['component']} -e upgrade_on_resume=rollback"


def opening(record: Table, component: str, version: str, on_resume: str) -> dict[str, t.Any]:
    """Return what can be said before anything is looked at: {error, component, version, sha256, plan, sentence}.

    `component` and `version` are what is asked for, "" where nothing is; what an interrupted upgrade was asked for
    then counts. `plan` says whether it has to be found out what would be installed. `sentence` tells where an
    upgrade stopped.
    """
    upgrade = record["under_way"]
    result = {"error": "", "component": component, "version": version, "sha256": "", "plan": True, "sentence": ""}
    if upgrade is None:
        if not component:
            result["error"] = (
                "Nothing says what to upgrade, and no upgrade is under way: give -e component=driver or -e "
                "component=llama_cpp."
            )
        return result
    asked = upgrade["to"]["asked"]
    backwards = on_resume == "rollback" or upgrade["stage"] in ("rolling_back", "proving")
    result.update(component=upgrade["component"], plan=not backwards, sentence=_stopped(upgrade) + ".")
    if not version:
        result.update(version=asked.get("version", ""), sha256=asked.get("sha256", ""))
    if component and component != upgrade["component"]:
        result["error"] = f"{_stopped(upgrade)}. It comes before {NAMES[component]}: {_ways_out(upgrade)}."
    elif backwards and version and version not in (asked.get("version"), upgrade["to"]["version"]):
        result["error"] = f"{_stopped(upgrade)}. It comes before {version}: {_ways_out(upgrade)}."
    return result


def decide(record: Table, present: Table | None, planned: Table | None, on_resume: str) -> dict[str, t.Any]:
    """Return what to do next: {do, sentence}.

    `present` is what the host has, `planned` what was asked for; None where `opening` asked for no plan. `do` is
    C(begin), C(install) (go on forwards), C(keep) (only what is left to write down), C(roll_back), C(nothing), or
    C(refuse) with the reason as the sentence.
    """
    upgrade = record["under_way"]
    if upgrade is None:
        if planned is None or present is None:
            raise UserError("nothing is under way, and nothing was planned")
        if same_place(present, planned):
            sentence = f"Nothing to upgrade: {present['version']} is what is asked for, and what this host has."
            return {"do": "nothing", "sentence": sentence}
        return {"do": "begin", "sentence": f"Upgrading {_ends(present, planned)}."}
    if upgrade["stage"] in ("rolling_back", "proving"):
        return {"do": "roll_back", "sentence": "Going on with that."}
    if on_resume == "rollback":
        if upgrade["stage"] == "keeping":
            return {
                "do": "refuse",
                "sentence": f"{_stopped(upgrade)}. It was accepted, so there is nothing to roll back: run upgrade with "
                f"-e component={upgrade['component']}, then upgrade to {upgrade['from']['version']} if you want that.",
            }
        return {"do": "roll_back", "sentence": "Rolling back."}
    if planned is None or not same_place(planned, upgrade["to"]):
        other = "nothing" if planned is None else _place_name(planned, upgrade["to"])
        return {"do": "refuse", "sentence": f"{_stopped(upgrade)}. Asked for now is {other}: {_ways_out(upgrade)}."}
    if upgrade["stage"] == "keeping" and present is not None and same_place(present, upgrade["to"]):
        return {"do": "keep", "sentence": "Going on with that."}
    return {"do": "install", "sentence": "Going on from there."}


def _place_name(place: Table, other: Table) -> str:
    if place["version"] != other["version"]:
        return str(place["version"])
    return f"another build of {place['version']} ({', '.join(place['builds'].values())})"


def begin(
    record: Table, component: str, origin: Table, target: Table, asked: Table, before: Table, now: str
) -> dict[str, t.Any]:
    """Return the record with an upgrade under way. `before` is the verdict on the state that it starts from."""
    if record["under_way"] is not None:
        raise UserError(f"{describe(record['under_way'])} is under way already")
    if component not in COMPONENTS:
        raise UserError(f"{component} is no component, only {', '.join(COMPONENTS)} are")
    upgrade = {
        "component": component,
        "stage": "installing",
        "from": {"version": origin["version"], "builds": dict(origin["builds"])},
        "to": {"version": target["version"], "builds": dict(target["builds"]), "asked": dict(asked)},
        "started_at": now,
        "stage_at": now,
        "verdicts": {"before": before, "after": None, "back": None},
        "why": None,
        "outcome": None,
        "finished_at": None,
    }
    return {**record, "under_way": upgrade}


def advance(record: Table, stage: str, now: str, verdict: Table | None = None) -> dict[str, t.Any]:
    """Return the record with its upgrade in a stage. The stage that it is in already changes nothing but the verdict.

    `verdict` is that on the new version, when it is known. Raises UserError for a stage that the present one does
    not lead to.
    """
    upgrade = _under_way(record)
    if stage != upgrade["stage"] and stage not in NEXT[upgrade["stage"]]:
        raise UserError(f"{describe(upgrade)} is at {upgrade['stage']}, which does not lead to {stage}")
    verdicts = upgrade["verdicts"] if verdict is None else {**upgrade["verdicts"], "after": dict(verdict)}
    stage_at = now if stage != upgrade["stage"] else upgrade["stage_at"]
    return {**record, "under_way": {**upgrade, "stage": stage, "stage_at": stage_at, "verdicts": verdicts}}


def finish(
    record: Table, outcome: str, now: str, keep: int, verdict: Table | None = None, why: str | None = None
) -> dict[str, t.Any]:
    """Return the record with its upgrade at its end. `verdict` is that on the version that was brought back."""
    upgrade = _under_way(record)
    if OUTCOMES.get(outcome) != upgrade["stage"]:
        raise UserError(f"{describe(upgrade)} is at {upgrade['stage']}, which does not end as {outcome}")
    verdicts = {**upgrade["verdicts"], "back": dict(verdict)} if verdict is not None else upgrade["verdicts"]
    done = {**upgrade, "verdicts": verdicts, "outcome": outcome, "finished_at": now, "why": why or upgrade["why"]}
    return {**record, "under_way": None, "finished": [*record["finished"], done][-max(keep, 1) :]}


def _under_way(record: Table) -> Table:
    if record["under_way"] is None:
        raise UserError("no upgrade is under way")
    return record["under_way"]


def summary(upgrade: Table) -> str:
    """Return how an upgrade ended, in one sentence with both verdicts where it was rolled back."""
    origin, target, verdicts = upgrade["from"]["version"], upgrade["to"]["version"], upgrade["verdicts"]
    if origin == target:
        origin, target = f"the build of before ({origin})", "the other build"
    name = _capital(describe(upgrade))
    if upgrade["outcome"] == "kept":
        return f"{name} is done: {_verdict(verdicts['after'])}."
    if upgrade["outcome"] == "untouched":
        return f"{name} failed before anything was changed ({_trimmed(upgrade['why'])}); {origin} is in use as before."
    new = f"{target} was not accepted ({_verdict(verdicts['after'])})"
    if verdicts["after"] is None:
        new = f"{target} was given up (a rollback was asked for)"
    if upgrade["outcome"] == "rolled_back":
        return f"{name} was rolled back: {new}, and {origin} is in use again, as before ({_verdict(verdicts['back'])})."
    return (
        f"{name} was rolled back and this host is NOT proved to be as before: {new}, and with {origin} in use again it "
        f"is {_verdict(verdicts['back'])}; find out what else changed with the playbook diagnose, then run revalidate."
    )


def _verdict(verdict: Table | None) -> str:
    if verdict is None:
        return "not revalidated"
    said = _trimmed(verdict["summary"])
    return said if said.startswith(verdict["verdict"]) else f"{verdict['verdict']}: {said}"


def _trimmed(text: str | None) -> str:
    return " ".join((text or "").split()).rstrip(".")
