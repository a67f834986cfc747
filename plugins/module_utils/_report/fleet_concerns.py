# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What of a host needs a person, for the table over many hosts. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base import systemd
from .._base.text import one_line
from .._base.types import Mapping
from . import fleet_rows

#: Of all that is said of one host.
MOST_CHARACTERS: t.Final = 400
MOST_CONCERNS: t.Final = 10
MOST_EACH: t.Final = 300

#: How the status of a server begins that lacks a lender, as _programs/choose_placement.py writes it.
LACKS: t.Final = ("without ", "waits for ")

Concern = tuple[str, str]


def of(seen: Mapping) -> tuple[str | None, list[str]]:
    """Return the state C(broken) or C(attention) and what to look at, worst first; None and nothing where all is well.

    Raises what Python does for an answer that is none.
    """
    found = [*_units(seen), *_verdict(seen["verdict"]), *_watchdog(seen["watchdog"], seen["units"]), *_waiting(seen)]
    if seen["wrong_answers"]:
        found.insert(0, ("broken", f"wrong answers: {seen['wrong_answers']}"))
    found += [("attention", str(problem)) for problem in seen["problems"]]
    found.sort(key=lambda concern: concern[0] != "broken")
    return found[0][0] if found else None, [one_line(words, MOST_EACH) for _state, words in found[:MOST_CONCERNS]]


def _units(seen: Mapping) -> t.Iterator[Concern]:
    """Yield units that fail or end again and again, and the served deployment's server where it does not run."""
    served = {one["unit"] for one in seen["deployments"] or [] if one["served"] is True}
    for unit in seen["units"] or []:
        name, state = unit["unit"], unit["state"]
        if unit["why"] and (name in served or state != "inactive"):
            yield "broken", str(unit["why"]).rstrip(".")
        elif name in served and state not in systemd.ACTIVE:
            yield "attention", f"{name} does not run ({state}): wait for a measurement to end, or start it"
        elif name in served and str(unit["status"]).startswith(LACKS):
            cure = "" if ";" in str(unit["status"]) else "; see whether that lender is on"
            yield "attention", f"{name}: {unit['status']}{cure}"


def _verdict(verdict: Mapping | None) -> t.Iterator[Concern]:
    if verdict is None or verdict["accepted"] is True:
        return
    ago = f"{fleet_rows.age(float(verdict['age_hours']))} ago"
    if verdict["verdict"] == "broken":
        yield "broken", f"broken {ago}: {one_line(verdict['summary'], 120)}; run homelab.mixed_gpu.diagnose"
    elif verdict["verdict"] == "regressed":
        yield "attention", f"regressed {ago}: {one_line(verdict['summary'], 120)}; run homelab.mixed_gpu.diagnose"


def _watchdog(watchdog: Mapping | None, units: t.Sequence[Mapping] | None) -> t.Iterator[Concern]:
    if watchdog is None:
        return
    for unit in watchdog["stuck"]:
        yield "broken", f"a process of {unit} ignores SIGKILL: reboot the host"
    if watchdog["restarts"]:
        times = "once" if watchdog["restarts"] == 1 else f"{int(watchdog['restarts'])} times"
        yield "attention", f"the watchdog restarted the server {times} within a day ({watchdog['reason']})"
    still = {unit["unit"] for unit in units or [] if unit["state"] == "failed"}
    for unit in (unit for unit in watchdog["failed"] if unit not in still):
        yield "attention", f"{unit} failed within a day: journalctl -u {unit}"


def _waiting(seen: Mapping) -> t.Iterator[Concern]:
    """Yield what waits for somebody: a reboot, a revalidation, the end of an upgrade."""
    due, upgrade = seen["due"], seen["upgrade"]
    if upgrade is not None:
        yield "attention", f"{upgrade['why']}: {upgrade['cure']}"
    if due is not None:
        yield "attention", f"{due['why']}: {due['cure']}"
    if seen["reboot_required"] is True and (due is None or due["now"]):
        yield "attention", "packages wait for a reboot (/run/reboot-required): reboot the host"
