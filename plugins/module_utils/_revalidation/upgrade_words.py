# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is said of an upgrade: where it stopped, how to go on, how it ended. Private to this collection. Pure functions.

The dicts are those of upgrade_stages.py.
"""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._driver import driver_packages
from . import upgrade_stages as stages

Table = t.Mapping[str, t.Any]


def describe(upgrade: Table) -> str:
    """Return C(the upgrade of llama.cpp from b11312 to b11313), with the lenders where there are any."""
    lenders = upgrade["lenders"]
    where = f" on this host and {listed(lenders)}" if lenders else ""
    return f"the upgrade of {stages.NAMES[upgrade['component']]}{where} {ends(upgrade['from'], upgrade['to'])}"


def listed(hosts: t.Collection[str]) -> str:
    """Return C(the lender pc2) or C(the lenders pc2 and pc3)."""
    return f"the lender{'s' if len(hosts) > 1 else ''} {' and '.join(hosts)}"


def lost(upgrade: Table | None, hosts: t.Collection[str]) -> str:
    """Return what is said where hosts do not answer any more, and the cure."""
    do, them = ("does", "it") if len(hosts) == 1 else ("do", "them")
    said = f"{' and '.join(hosts)} {do} not answer any more"
    if upgrade is None:
        together = f"a box and its lenders move together; wake {them}, then run upgrade again"
        return f"{said}, so nothing was changed: {together}."
    return f"{said}. {stopped(upgrade)}, and all hosts move or none. Wake {them}, then {ways_out(upgrade)}."


def ends(origin: Table, target: Table) -> str:
    """Return C(from b11312 to b11313)."""
    same = origin["version"] == target["version"]
    return f"from {origin['version']} to {'another build of it' if same else target['version']}"


def stopped(upgrade: Table, how: str = "it stopped") -> str:
    """Return where an upgrade stopped, as a sentence without its end."""
    return (
        f"{_capital(describe(upgrade))} of {upgrade['started_at']} is under way: {how} while "
        f"{stages.STAGES[upgrade['stage']]} (since {upgrade['stage_at']})"
    )


def unfinished(text: str | None) -> dict[str, t.Any]:
    """Return {needed, why, cure} of a record's text: whether somebody has to end an upgrade, and how."""
    try:
        upgrade = None if text is None else stages.FORM.data(text)["under_way"]
    except UserError as exc:
        why = f"the record of upgrades is damaged: {exc}"
        return {"needed": True, "why": why, "cure": f"move {stages.PATH} away"}
    if upgrade is None:
        return {"needed": False, "why": "", "cure": ""}
    why = stopped(upgrade, "another play is at work, or it stopped")
    return {"needed": True, "why": why, "cure": f"with the playbook homelab.mixed_gpu.upgrade {ways_out(upgrade)}"}


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def ways_out(upgrade: Table) -> str:
    """Return how to end an upgrade, as a sentence's end."""
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


def summary(upgrade: Table) -> str:
    """Return how an upgrade ended, in one sentence with both verdicts where it was rolled back."""
    origin, target, verdicts = upgrade["from"]["version"], upgrade["to"]["version"], upgrade["verdicts"]
    if origin == target:
        origin, target = f"the former build ({origin})", "the other build"
    name = _capital(describe(upgrade))
    if upgrade["outcome"] == "kept":
        return f"{name} is done: {_verdict(verdicts['after'])}."
    if upgrade["outcome"] == "untouched":
        return f"{name} failed before anything was changed ({_trimmed(upgrade['why'])}); {origin} is in use as before."
    again = "in use again on all hosts" if upgrade["lenders"] else "in use again"
    new = f"{target} was not accepted ({_verdict(verdicts['after'])})"
    if verdicts["after"] is None:
        new = f"{target} was given up (a rollback was asked for)"
    if upgrade["outcome"] == "rolled_back":
        return f"{name} was rolled back: {new}, and {origin} is {again}, as before ({_verdict(verdicts['back'])})."
    return (
        f"{name} was rolled back and this host is NOT proved to be as before: {new}, and with {origin} {again} it "
        f"is {_verdict(verdicts['back'])}; find out what else changed with the playbook diagnose, then run revalidate."
    )


def not_as_its_baseline(host: str, revalidation: Table) -> str:
    """Return why an upgrade does not begin on a host whose revalidation is not accepted, and the cure."""
    untouched = "so an upgrade could not be judged, and nothing was changed"
    if revalidation["contended"]:
        return f"{host} cannot be compared with its baseline now, {untouched}: {revalidation['contended']}."
    return (
        f"{host} is not as its baseline says ({_trimmed(revalidation['summary'])}), {untouched}: find out why with the"
        " playbook diagnose, or tune it again (site -e '{split_tuning_retune: true}'), or make the present state the"
        " baseline (revalidate -e accept=true)."
    )


def not_judged(upgrade: Table, revalidation: Table) -> str:
    """Return why the verdict on a version waits, and how to go on: contention accuses no version."""
    waits = f"{_capital(describe(upgrade))} waits with its verdict: {revalidation['contended']}"
    return f"{waits}. Then {ways_out(upgrade)}."


def _verdict(verdict: Table | None) -> str:
    if verdict is None:
        return "not revalidated"
    said = _trimmed(verdict["summary"])
    return said if said.startswith(verdict["verdict"]) else f"{verdict['verdict']}: {said}"


def _trimmed(text: str | None) -> str:
    return " ".join((text or "").split()).rstrip(".")


def inventory(upgrade: Table) -> str:
    """Return what to write into the inventory, so that the playbook site keeps an upgrade."""
    asked = upgrade["to"]["asked"]
    version, sha256 = asked.get("version", ""), asked.get("sha256", "")
    if upgrade["component"] == "driver":
        exact = upgrade["to"]["version"]
        return f'nvidia_driver_branch: "{driver_packages.branch_of(exact)}" and nvidia_driver_version: "{exact}"'
    if not version:
        return "what the variables llama_cpp_* were in this run"
    if not sha256:
        return f'llama_cpp_source: git and llama_cpp_git_version: "{version}"'
    return (
        f'llama_cpp_source: sdist, llama_cpp_sdist_version: "{version}", llama_cpp_sdist_sha256: "{sha256}",'
        ' llama_cpp_sdist_build_number: 0 and llama_cpp_sdist_build_commit: ""'
    )
