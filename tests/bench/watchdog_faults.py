"""watchdog_faults.py PAGE < OUTPUT: write what watchdog_faults_host.py saw into its section of the page of benchmarks.

Ends with 1 where a fault was not answered as it should be, or load was taken for one.
"""

from __future__ import annotations

import json
import pathlib
import sys
import typing as t

import page

#: How far a clock that was set back is away, with the time that the fault lasted.
SET_BACK_SECONDS: t.Final = -3600


def problems(found: t.Mapping[str, t.Any]) -> list[str]:
    """Return one sentence for each thing that should not be. How long something took is none of them."""
    said = []
    for fault in found["faults"]:
        wanted = int(fault["by"] == "watchdog")
        if fault["restarts"] != wanted:
            said.append(f"{fault['name']}, restarts by the watchdog: {fault['restarts']} instead of {wanted}")
        if "clock" in fault["name"] and fault["clock_seconds"] > SET_BACK_SECONDS:
            said.append(f"{fault['name']}: the watchdog's clock was not set back")
    starts, allowed = found["dies"]["starts"], found["dies"]["allowed"]
    if starts != allowed:
        said.append(f"a server that dies in each load was started {starts} times instead of {allowed}")
    for quiet in found["quiet"]:
        if quiet["restarts"]:
            said.append(f"{quiet['name']}, restarts by the watchdog: {quiet['restarts']} instead of 0")
        if not quiet.get("kept", True) or quiet.get("starts", 1) != 1 + quiet.get("leases", 0):
            said.append(f"{quiet['name']}: the server was started again")
    return said


def text(found: t.Mapping[str, t.Any]) -> str:
    """Return the section."""
    rows = "\n".join(
        f"| {fault['name']} | {fault['by']} | {fault['noticed_seconds']:.0f} | {fault['served_seconds']:.0f} |"
        for fault in found["faults"]
    )
    load, mixed = found["quiet"]
    dies = found["dies"]
    return f"""## Faults

Written by `make watchdog-test`: real faults on a sandbox without cards, each in mid-decode, with the watchdog's own
settings: a hang is {found["stall_seconds"]:g} s without progress, and it looks every {found["poll_seconds"]:g} s.
Noticed means that the server was ended; served again means that it gave tokens.

Measured {page.today()} on {page.machine()}.

| fault | noticed by | noticed after s | served again after s |
|---|---|---|---|
{rows}

During a load of {load["seconds"]:.0f} s the clock jumped forward by two hours. Restarts: {load["restarts"]}.

A server that dies in each load is given up after {dies["starts"]} starts. The notice says: "{dies["told"]}"

The mixed load took {mixed["seconds"] / 60:.0f} minutes: {mixed["requests"]} requests, {mixed["tokens"]} tokens and
{mixed["leases"]} leases. It has chats, streams, long prompts, thirty requests at once, clients that leave,
and idle times. Restarts: {mixed["restarts"]}.
"""


def main() -> int:
    """Write the section and say what should not be."""
    found = json.load(sys.stdin)
    page.write_section(pathlib.Path(sys.argv[1]), "faults", text(found))
    said = problems(found)
    print("\n".join(said), file=sys.stderr)
    return int(bool(said))


if __name__ == "__main__":
    raise SystemExit(main())
