# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How often a server is tried, and why it does not run. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

#: File that is there while the placement computes wrong; the unit of llama-server does not start then.
WRONG_ANSWERS: t.Final = "/var/lib/mixed_gpu/wrong_answers"
#: How often systemd starts a server that ends each time, before the unit is `failed` for good.
START_BURST: t.Final = 10
#: RestartSec= of the servers.
RESTART_SECONDS: t.Final = 5
# Ending requests, and giving back memory that is locked or pinned: far quicker than reading it from a disk.
_STOP_SECONDS: t.Final = 30
#: How long one look at a server that loads may take; then the screen shows that it goes on.
_LOOK_SECONDS: t.Final = 10
_LOAD_SECONDS_PER_STOP_SECOND: t.Final = 10

#: What why() reads, for `systemctl show`.
PROPERTIES: t.Final = (
    "ActiveState",
    "SubState",
    "Result",
    "NRestarts",
    "StartLimitBurst",
    "StartLimitIntervalUSec",
    "ExecMainCode",
    "ExecMainStatus",
    "ExecMainStartTimestampMonotonic",
    "ExecMainExitTimestampMonotonic",
    "AssertResult",
    "AssertTimestampMonotonic",
    "ConditionResult",
    "ConditionTimestampMonotonic",
)

_EXITED: t.Final = "1"  # CLD_EXITED; all other codes are signals
_ENDS: t.Final = {
    "oom-kill": "the kernel killed a process of it, because the memory of the host or of the unit was used up",
    "timeout": "it neither started nor stopped in time, and was killed",
    "watchdog": "it did not answer its watchdog",
    "resources": "systemd could not set up its sandbox or read a file that the unit names",
}


class Limits(t.TypedDict):
    """What a unit says about its starts and its stop, and how often a role looks whether the model is loaded."""

    start_burst: int
    start_interval_seconds: int
    stop_seconds: int
    look_seconds: int
    looks: int


def limits(load_seconds: int) -> Limits:
    """Return the limits of a server that may take `load_seconds` to load its model.

    The interval holds all tries of a server that dies at the very end of each load: a shorter one would never count
    to the burst, and the unit would be started for ever.
    """
    stop_seconds = _STOP_SECONDS + load_seconds // _LOAD_SECONDS_PER_STOP_SECOND
    return {
        "start_burst": START_BURST,
        "start_interval_seconds": START_BURST * (load_seconds + RESTART_SECONDS + stop_seconds),
        "stop_seconds": stop_seconds,
        "look_seconds": _LOOK_SECONDS,
        "looks": max(1, -(-load_seconds // _LOOK_SECONDS)),
    }


def why(unit: str, said: t.Mapping[str, str]) -> str:
    """Return one sentence that says why a unit does not run, or "" where it runs or was stopped on purpose.

    `said` are its PROPERTIES.
    """
    if said.get("ActiveState") in ("active", "reloading", "deactivating"):
        return ""
    if _refused(said, "Condition"):
        return (
            f"{unit} was not started, because the last check found wrong answers: {WRONG_ANSWERS} names the causes and "
            "their cures; then run site (with llama_server_answers: true), which checks again."
        )
    if _refused(said, "Assert"):
        return (
            f"{unit} was not started, because /dev/nvidia-uvm is missing, without which CUDA finds no card: see "
            "'systemctl status mixed-gpu-nodes.service', and run site."
        )
    result = said.get("Result", "success")
    if result in ("", "success"):
        return ""
    last = _last_end(result, said)
    if said.get("SubState") == "auto-restart":
        times = int(said.get("NRestarts") or 0) + 1
        return f"{unit} ended and is started again (end {times} in a row): {last}."
    # systemd keeps the result of the last end where its own restart met the limit, after which nothing is tried
    if result == "start-limit-hit" or int(said.get("NRestarts") or 0) > 0:
        return (
            f"{unit} is not started any more, because it ended after each of {said.get('StartLimitBurst') or 'its'} "
            f"starts: the last time {last}. Correct what the end of its journal names, then run site."
        )
    return f"{unit} failed: {last}. Correct what the end of its journal names, then run site."


def _refused(said: t.Mapping[str, str], what: str) -> bool:
    """Return whether the last start failed at a Condition or Assert of the unit."""
    return said.get(f"{what}Result") == "no" and said.get(f"{what}TimestampMonotonic", "0") not in ("", "0")


def _last_end(result: str, said: t.Mapping[str, str]) -> str:
    """Return how the main process ended, with how long it had run."""
    if result in _ENDS:
        return _ENDS[result]
    code, status = said.get("ExecMainCode", ""), said.get("ExecMainStatus", "")
    if code in ("", "0"):
        return f"no process of it ran ({result})"
    how = f"it ended with exit status {status}" if code == _EXITED else f"it was killed by signal {status}"
    began, ended = (int(said.get(f"ExecMain{name}TimestampMonotonic") or 0) for name in ("Start", "Exit"))
    return f"{how}, {(ended - began) / 1e6:.0f} s after its start" if ended >= began > 0 else how
