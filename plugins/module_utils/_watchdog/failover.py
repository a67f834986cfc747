# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Notes which lenders a server runs without, and restarts it with all of them once they answer again.

Asking a lender is left to choose_placement.py, as it is when the unit starts.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import typing as t

from . import host, lenders, settings, stall, state
from .host import say


def ask(program: str, endpoints: t.Sequence[str]) -> bool:
    """Return whether all these lenders answer."""
    words = [sys.executable, "-E", "-s", "-B", program, "--ask", *(f"--lender={endpoint}" for endpoint in endpoints)]
    try:
        done = subprocess.run(words, capture_output=True, check=False, timeout=60, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.SubprocessError):
        return False
    return done.returncode == 0


class Failover:
    """The lenders of one server."""

    def __init__(self, wanted: settings.Settings, store: state.Store, notify: t.Callable[[str], None]) -> None:
        self.settings, self.store, self.notify = wanted, store, notify
        self.noted: tuple[str, lenders.Chosen] | None = None  # what the store has: start, and what it does without
        self.answering_since: float | None = None
        self.ports: dict[str, int] = state.of_unit(store.read(), wanted.unit)["lender_ports"]

    def step(self, look: stall.Look, status: str, pid: int) -> None:
        """Note what the server does without; restart it where all lenders answer again, or one has gone unnoticed.

        C(status) is that of the unit, C(pid) its main process.
        """
        if not self.settings.lenders or not look.start or not status or not pid:
            return  # of a unit that has stopped, systemd still knows the last status
        chosen = lenders.of_status(status, self.settings.lenders)
        if self.noted != (look.start, chosen):
            self.note(look.start, chosen)
        idle = look.answer == "metrics" and look.processing == 0
        there = lenders.connections(host.connections(pid), self.settings.lenders)
        self.remember(there)
        if not chosen.absent:
            self.answering_since = None
            ended = sorted({one.endpoint for one in there if one.ended}) if idle else []
            if ended:
                self.restart(look.start, f"{self.settings.unit} has lost the lender {' and '.join(ended)}")
        elif chosen.waits:
            self.free(chosen)
        else:
            self.wait(look, chosen, idle)

    def note(self, start: str, chosen: lenders.Chosen) -> None:
        """Record what a start does without, and tell it where that is new."""
        with self.store.changing() as known:
            own = state.of_unit(known, self.settings.unit)
            before = own["absent_lenders"]
            own["absent_lenders"], own["waits_for_lenders"] = list(chosen.absent), chosen.waits
            own["lender_losses_total"] += bool(set(chosen.absent) - set(before))
            back = bool(before) and not chosen.absent
            own["lender_returns_total"] += back
        self.noted, self.answering_since = (start, chosen), None
        if chosen.waits:
            say(3, f"{self.settings.unit} waits for the lender {chosen.hosts}: nothing fits without it")
        elif chosen.absent:
            say(4, f"{self.settings.unit} serves without the lender {chosen.hosts}: all are used once it answers again")
        elif back:
            say(5, f"{self.settings.unit} serves with all its lenders again")
        if chosen.absent:
            self.notify(self.settings.unit)

    def remember(self, there: t.Sequence[lenders.Connection]) -> None:
        """Remember from which ports the server talks to lenders."""
        ports = {one.endpoint: one.port for one in there}
        if {**self.ports, **ports} != self.ports:
            with self.store.changing() as known:
                own = state.of_unit(known, self.settings.unit)
                self.ports = own["lender_ports"] = {**own["lender_ports"], **ports}

    def free(self, chosen: lenders.Chosen) -> None:
        """Have lenders that do not answer forget a client that is gone."""
        for endpoint in chosen.absent:
            port = self.ports.get(endpoint)
            if port is not None and host.reset_connection(endpoint, port, self.settings.timeout_seconds):
                with self.store.changing() as known:
                    own = state.of_unit(known, self.settings.unit)
                    own["lender_ports"].pop(endpoint, None)
                    self.ports = own["lender_ports"]

    def wait(self, look: stall.Look, chosen: lenders.Chosen, idle: bool) -> None:
        """Restart the server with all lenders, where they have answered for a while and nobody waits for an answer."""
        if look.answer == "away":
            self.answering_since = None
            return
        if not ask(self.settings.lender_program, chosen.absent):
            self.answering_since = None
            self.free(chosen)
            return
        if self.answering_since is None:
            self.answering_since = look.at
        if idle and look.at - self.answering_since >= self.settings.return_seconds:
            self.restart(look.start, f"the lender {chosen.hosts} of {self.settings.unit} answers again")

    def restart(self, start: str, reason: str) -> None:
        """Restart the server for a reason, unless it was restarted too often, or somebody else does or measures."""
        now, boot, unit = time.monotonic(), state.boot_id(), self.settings.unit
        known = self.store.read()
        events = state.times(known, unit, boot) + state.times(known, unit, boot, "lender_restarts")
        if not lenders.may_return(events, now, self.settings.restarts_per_hour):
            return
        if not host.is_left_alone(host.show(unit, self.settings.lease_unit), unit, self.settings.lease_unit, start):
            return
        with self.store.changing() as known:
            state.add_lender_restart(known, unit, {"boot": boot, "monotonic": now, "at": time.time()})
        say(5, f"{reason}, and no request is in progress: restarting it")
        self.answering_since = None
        with contextlib.suppress(OSError):
            host.systemctl("--no-block", "try-restart", unit)
