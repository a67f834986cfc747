# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an upgrade does next. Private to this collection. Pure functions only.

The record is that of upgrade_stages.py, on the host that serves. A step is {do, sentence}, for that host and its
lenders alike:

  begin       compare the host with its baseline, then install
  install     install the new version
  revalidate  measure the new version and judge it
  accept      make what was measured the baseline
  measure     measure again, and make that the baseline: what an interrupted run measured went with it
  restore     bring the former version back and revalidate it
  nothing     all hosts have what is asked for
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


class Host(t.NamedTuple):
    """What a run knows of a host."""

    #: By the component, what its role plans: C(nvidia_driver_planned), C(llama_cpp_planned). Missing where unknown.
    planned: Table = {}
    #: Why its installation failed, or "".
    failure: str = ""
    #: Whether it waits for a reboot.
    reboot_required: bool = False
    #: The address at which it lends devices, or "".
    lends_at: str = ""
    #: C(llama_cpp_copy_planned) of a lender: whether it copies the build of the box, which one (C(wanted)), and why.
    copy: Table = {}


#: The hosts that move together, by name: the one that serves, then its lenders.
Hosts = t.Mapping[str, Host]


def opening(
    record: Table, component: str, version: str, sha256: str, on_resume: str, lenders: t.Collection[str] = ()
) -> Opening:
    """Return what can be said before anything is looked at.

    `component`, `version` and `sha256` are what is asked for, "" where nothing is; `lenders` take part in the run.
    Raises UserError where that cannot go together with the upgrade that is under way.
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
    if set(lenders) != set(upgrade["lenders"]):
        begun = f"began with {words.listed(upgrade['lenders'])}" if upgrade["lenders"] else "began without lenders"
        now = words.listed(lenders) if lenders else "no lender"
        raise UserError(
            f"{where}. It {begun}, and this run has {now}: run upgrade over the same hosts (--limit,"
            " mixed_gpu_lenders) to end it"
        )
    if component and component != upgrade["component"]:
        raise UserError(f"{where}. It comes before {stages.NAMES[component]}: {words.ways_out(upgrade)}")
    if backwards and version and version not in (asked.get("version"), upgrade["to"]["version"]):
        raise UserError(f"{where}. It comes before {version}: {words.ways_out(upgrade)}")
    if not version:
        version = asked.get("version", "")
        sha256 = sha256 or asked.get("sha256", "")
    return _opening(upgrade["component"], version, sha256, not backwards, f"{where}.")


def refuse_alone(record: Table, component: str, served_over: t.Iterable[str], hosts: Hosts) -> None:
    """Raise UserError where llama.cpp of a box would be upgraded without lenders (addresses) that it serves over.

    RPC wants the same build on all of them. An upgrade that is under way may end: it says which lenders it has.
    """
    taking_part = {host.lends_at for host in hosts.values()}
    alone = [address for address in served_over if address not in taking_part]
    if component == "llama_cpp" and alone and record["under_way"] is None:
        raise UserError(
            f"this host serves over {words.listed(alone)}, and llama.cpp's RPC wants the same build on all hosts: add"
            " what is missing to mixed_gpu_lenders, with its llama_rpc_address, and run upgrade without --limit; all"
            " hosts move then, or none"
        )


def _opening(component: str, version: str, sha256: str, plan: bool, sentence: str) -> Opening:
    way = "" if component == "driver" or not version else "sdist" if sha256 else "git"
    asked = {"version": version, "sha256": sha256}
    return {"component": component, "asked": asked, "way": way, "plan": plan, "sentence": sentence}


def places(component: str, name: str, host: Host) -> tuple[Table, Table]:
    """Return (what the host of this name has, what is asked for) of what the component's role plans.

    That is C(nvidia_driver_planned), {present, wanted, foreign}, or C(llama_cpp_planned), {present, wanted}. Raises
    UserError for what could not be gone back from.
    """
    planned = host.planned[component]
    there = planned["present"] if component == "driver" else planned["present"]["builds"]
    if not there:
        what = stages.NAMES[component].removeprefix("the ")
        raise UserError(f"{name} has no {what} to upgrade: install one with the playbook site")
    if component == "driver":
        if planned["foreign"]:
            raise UserError(f"{planned['foreign'].rstrip('.')}, so this collection does not upgrade it")
        return {"version": planned["present"], "builds": {}}, {"version": planned["wanted"], "builds": {}}
    if planned["wanted"]["version"] == "package":
        raise UserError(
            "llama_cpp_source is package, and what apt upgrades cannot be gone back from in seconds: upgrade to a"
            " source of another kind (sdist, git, archive)"
        )
    wanted = host.copy["wanted"] if host.copy and host.copy["taken"] else planned["wanted"]
    if not wanted["builds"]:
        why = f" {host.copy['why']}" if host.copy else ""
        raise UserError(
            f"{name} lacks the tools that building llama.cpp takes, so what it would build is not known.{why} Run site"
            " once with -e '{llama_cpp_copy: false}', which builds on it"
        )
    return planned["present"], wanted


def ends(component: str, hosts: Hosts) -> list[stages.Ends]:
    """Return what each host has and is to have; nothing without a plan. Raises UserError as `places` does."""
    if any(component not in host.planned for host in hosts.values()):
        return []
    return [stages.Ends(name, *places(component, name, host)) for name, host in hosts.items()]


def same_place(one: Table, other: Table) -> bool:
    """Return whether two places are the same version in the same builds."""
    return one["version"] == other["version"] and dict(one["builds"]) == dict(other["builds"])


def decide(record: Table, known: t.Sequence[stages.Ends], on_resume: str) -> Step:
    """Return what to do first.

    `known` is what each host has and is to have; nothing where `opening` asked for no plan. Raises UserError for what
    cannot go together with the upgrade that is under way.
    """
    upgrade = record["under_way"]
    there = all(same_place(one.present, one.wanted) for one in known)
    if upgrade is None:
        if not known:
            raise UserError("nothing is under way, and nothing was planned")
        own, lenders = known[0], [one.host for one in known[1:]]
        if there:
            has = f"this host and {words.listed(lenders)} have" if lenders else "this host has"
            sentence = f"Nothing to upgrade: {own.present['version']} is what is asked for, and what {has}."
            return {"do": "nothing", "sentence": sentence}
        together = f", together with {words.listed(lenders)}" if lenders else ""
        return {"do": "begin", "sentence": f"Upgrading {words.ends(own.present, own.wanted)}{together}."}
    if upgrade["stage"] in BACKWARDS:
        return {"do": "restore", "sentence": "Going on with the rollback."}
    if on_resume == "rollback":
        if upgrade["stage"] == "keeping":
            raise UserError(
                f"{words.stopped(upgrade)}. It was accepted, so there is nothing to roll back: run upgrade with"
                f" -e component={upgrade['component']}, then upgrade to {upgrade['from']['version']} if you want that"
            )
        return {"do": "restore", "sentence": "Rolling back."}
    if not known:
        raise UserError(f"{words.stopped(upgrade)}. Asked for now is nothing: {words.ways_out(upgrade)}")
    for one in known:
        to = stages.of_host(upgrade, one.host)["to"]
        if not same_place(one.wanted, to):
            asked = _place_name(one.wanted, to)
            raise UserError(f"{words.stopped(upgrade)}. Asked for now is {asked}: {words.ways_out(upgrade)}")
    if upgrade["stage"] == "keeping" and there:
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


def failed(record: Table, hosts: Hosts, now: str, keep: int) -> tuple[stages.Record, Step | None]:
    """Return the record, and the step after an installation that failed; None where the upgrade ends or waits.

    One host that failed leads all of them back. llama.cpp is switched to only when it is built and runs: where all
    hosts have what they had, there is nothing to go back from, unless the server of a box with lenders was stopped for
    the switch: going back starts it. A driver that waits for a reboot is gone on with after it.
    """
    upgrade = stages.under_way(record)
    failure = why_failed(hosts)
    if any(host.failure and host.reboot_required for host in hosts.values()):
        return dict(record), None
    serves = ("building",) if upgrade["lenders"] else stages.OUTCOMES["untouched"]
    if upgrade["stage"] in serves and _untouched(upgrade, hosts):
        return stages.finish(record, "untouched", now, keep, None, failure), None
    broken = {"verdict": "broken", "accepted": False, "summary": failure}
    return stages.advance(record, "rolling_back", now, broken), {"do": "restore", "sentence": failure}


def why_failed(hosts: Hosts) -> str:
    """Return what failed, with the names of the hosts where there are several; "" where nothing did."""
    failures = {name: host.failure for name, host in hosts.items() if host.failure}
    return " ".join(f"{name}: {text}" if len(hosts) > 1 else text for name, text in failures.items())


def places_of(record: Table, hosts: t.Iterable[str]) -> dict[str, dict[str, Table]]:
    """Return by the name of each host what it had (C(former)) and what it is to have (C(wanted)), without what asks."""
    upgrade = record["under_way"]
    if upgrade is None:
        return {"former": {}, "wanted": {}}
    both = {name: stages.of_host(upgrade, name) for name in hosts}
    return {
        "former": {name: one["from"] for name, one in both.items()},
        "wanted": {name: one["to"] for name, one in both.items()},
    }


def _untouched(upgrade: Table, hosts: Hosts) -> bool:
    """Return whether all hosts have the builds that they had."""
    if upgrade["component"] != "llama_cpp":
        return False
    known = ((name, host.planned.get("llama_cpp")) for name, host in hosts.items())
    return all(
        plan is not None and plan["present"]["builds"] == stages.of_host(upgrade, name)["from"]["builds"]
        for name, plan in known
    )


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
