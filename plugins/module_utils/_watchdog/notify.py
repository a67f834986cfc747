# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Tells the owner that a unit failed, was restarted since it hung, or cannot be ended: journal, metric, hooks.

    python3 -m mixed_gpu_watchdog.notify UNIT [SETTINGS_FILE [STATE_DIRECTORY]]

Main program of mixed-gpu-notify@.service, which the units name in OnFailure=. Standard library only.
"""

from __future__ import annotations

import http.client
import json
import os
import socket
import subprocess
import sys
import time
import typing as t
import urllib.request

from . import host, lenders, restarts, settings, state
from .host import say

HOOK_SECONDS: t.Final = 60
#: A restart by the watchdog that is older is not why this is called.
RECENT_SECONDS: t.Final = 120.0


class News(t.NamedTuple):
    """Something to tell: equal keys are the same event, which is told once."""

    key: str
    text: str


def news(unit: str, properties: t.Mapping[str, str], own: t.Mapping[str, t.Any], now: float) -> News | None:
    """Return what happened to a unit and is told first; None where systemd starts it again, and no watchdog ended it.

    Newer releases of systemd call C(OnFailure=) for each end that a restart follows, older ones do not. C(properties)
    are systemd's, C(own) is what the watchdog remembers of the unit, C(now) is in seconds since 1970.
    """
    look = f"see journalctl -u {unit} -u mixed-gpu-watchdog"
    none: dict[str, t.Any] = {"at": 0.0, "reason": "", "start": ""}
    last = own["restarts"][-1] if own["restarts"] else none
    if own["stuck"]:
        return News(f"stuck {last['start']}", f"a process of {unit} ignores SIGKILL: reboot this host; {look}")
    if properties.get("ActiveState") == "failed":
        hung = (
            f"; the last restart of the watchdog: {last['reason']}" if now - last["at"] < restarts.HOUR_SECONDS else ""
        )
        result = properties.get("Result") or "unknown"
        text = f"{unit} failed ({result}) and stays failed until somebody starts it{hung}; {look}"
        return News(f"failed {properties.get('InvocationID')}", text)
    found = []
    if own["absent_lenders"]:
        chosen = lenders.Chosen(tuple(own["absent_lenders"]), own["waits_for_lenders"])
        what = "waits for the lender {}: nothing fits without it" if chosen.waits else "serves without the lender {}"
        key = f"lenders {own['lender_losses_total']} {chosen.waits}"
        found.append(News(key, f"{unit} {what.format(chosen.hosts)}; it comes back by itself; {look}"))
    if last["start"] and now - last["at"] < RECENT_SECONDS:
        count = own["restarts_total"]
        text = f"{last['reason']}, so the watchdog restarted it (restart {count}); {look}"
        found.append(News(f"restart {count}", text))
    return next((one for one in found if one.key not in own["told"]), None)


def post(url: str, unit: str, text: str) -> str:
    """Send the message to a webhook as JSON; return why that failed, empty where it did not."""
    body = json.dumps({"host": socket.gethostname(), "unit": unit, "text": text}).encode()
    request = urllib.request.Request(url, data=body, headers={"Content-Type": "application/json"})
    try:
        with urllib.request.build_opener().open(request, timeout=HOOK_SECONDS):
            return ""
    except (OSError, ValueError, http.client.HTTPException) as exc:
        return f"server_watchdog_webhook_url did not take the message ({exc})"


def run(command: t.Sequence[str], unit: str, text: str) -> str:
    """Run the owner's command with the message as its last argument; return why that failed, or an empty text."""
    try:
        environment = {**os.environ, "MIXED_GPU_UNIT": unit}
        subprocess.run([*command, text], check=True, timeout=HOOK_SECONDS, stdin=subprocess.DEVNULL, env=environment)
    except (OSError, subprocess.SubprocessError) as exc:
        return f"server_watchdog_command did not take the message ({exc})"
    return ""


def tell(unit: str, wanted: settings.Settings, store: state.Store) -> int:
    """Tell what happened to a unit, once; return 1 where a hook failed."""
    properties = host.show(unit).get(unit, {})
    with store.changing() as known:
        own, now = state.of_unit(known, unit), time.time()
        found = news(unit, properties, own, now)
        if found is None or found.key in own["told"]:
            return 0
        own["told"] = [*own["told"], found.key][-state.KEEP :]
        if properties.get("ActiveState") == "failed":
            state.add_failure(known, unit, now)
    say(3, found.text)
    problems = [store.metrics_error]
    if wanted.command:
        problems.append(run(wanted.command, unit, found.text))
    if wanted.webhook_url:
        problems.append(post(wanted.webhook_url, unit, found.text))
    for problem in filter(None, problems):
        say(4, problem)
    return int(any(problems))


def main(words: t.Sequence[str]) -> int:
    """Tell about the unit that is named; return 1 where that failed."""
    unit, path, state_dir = (*words, *(settings.PATH, settings.STATE_DIR)[len(words) - 1 :])
    try:
        wanted = settings.read(path)
        return tell(unit, wanted, state.Store(state_dir, wanted.metrics_path))
    except (OSError, ValueError) as exc:
        say(3, f"{unit} failed, and telling it failed as well ({exc})")
        return 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
