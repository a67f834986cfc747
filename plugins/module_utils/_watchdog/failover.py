# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Notes which lenders a server runs without, and restarts it with those that a placement uses once they answer again.

Asking a lender is left to choose_placement.py, as it is when the unit starts.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
import typing as t

from . import host, lenders, restarts, settings, stall, state
from .host import say


def ask(program: str, endpoints: t.Sequence[str], protocol: str) -> list[str]:
    """Return which of these lenders answer, in the protocol that the server speaks where it is known."""
    words = [sys.executable, "-E", "-s", "-B", program, "--ask", *(f"--lender={endpoint}" for endpoint in endpoints)]
    words += [f"--protocol={protocol}"] if protocol else []
    try:
        done = subprocess.run(words, capture_output=True, check=True, timeout=60, stdin=subprocess.DEVNULL, text=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


class Failover:
    """The lenders of one server."""

    def __init__(self, wanted: settings.Settings, store: state.Store, notify: t.Callable[[str], None]) -> None:
        self.settings, self.store, self.notify = wanted, store, notify
        self.noted: tuple[str, lenders.Chosen] | None = None  # what the store has: start, and what it does without
        self.answering: dict[str, float] = {}  # absent lenders that answer, and since when
        self.ports: dict[str, int] = state.of_unit(store.read(), wanted.unit)["lender_ports"]

    def step(self, look: stall.Look, status: str, pid: int) -> None:
        """Note what the server does without; restart it where lenders answer again, or one has gone unnoticed.

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
            self.answering = {}
            ended = sorted({one.endpoint for one in there if one.ended}) if idle else []
            if ended:
                self.restart(look.start, f"{self.settings.unit} has lost the lender {' and '.join(ended)}")
        elif chosen.waits:
            self.free(chosen.absent)
        else:
            self.wait(look, chosen, idle)

    def note(self, start: str, chosen: lenders.Chosen) -> None:
        """Record what a start does without, and tell it where that is new."""
        with self.store.changing() as known:
            own = state.of_unit(known, self.settings.unit)
            before = own["absent_lenders"]
            own["lenders"] = self.settings.lenders
            own["absent_lenders"], own["waits_for_lenders"] = list(chosen.absent), chosen.waits
            own["lender_losses_total"] += bool(set(chosen.absent) - set(before))
            back = bool(before) and not chosen.absent
            own["lender_returns_total"] += back
        self.noted, self.answering = (start, chosen), {}
        if chosen.waits:
            say(3, f"{self.settings.unit} waits for the lender {chosen.hosts}: nothing fits without it")
        elif chosen.absent:
            say(4, f"{self.settings.unit} serves without the lender {chosen.hosts}: it is used once it answers again")
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

    def free(self, silent: t.Iterable[str]) -> None:
        """Have lenders that do not answer forget a client that is gone."""
        for endpoint in silent:
            port = self.ports.get(endpoint)
            if port is not None and host.reset_connection(endpoint, port, self.settings.timeout_seconds):
                with self.store.changing() as known:
                    own = state.of_unit(known, self.settings.unit)
                    own["lender_ports"].pop(endpoint, None)
                    self.ports = own["lender_ports"]

    def wait(self, look: stall.Look, chosen: lenders.Chosen, idle: bool) -> None:
        """Restart the server where lenders have answered for a while that a better placement uses, and it is idle."""
        if look.answer == "away":
            self.answering = {}
            return
        there = ask(self.settings.lender_program, chosen.absent, self.settings.lender_protocol)
        self.free(endpoint for endpoint in chosen.absent if endpoint not in there)
        self.answering = {endpoint: self.answering.get(endpoint, look.at) for endpoint in there}
        lasting = [one for one, since in self.answering.items() if look.at - since >= self.settings.return_seconds]
        back = lenders.back(self.settings.lender_placements, chosen.absent, lasting)
        if back and idle:
            hosts = lenders.Chosen(back).hosts
            self.restart(look.start, f"the lender {hosts} of {self.settings.unit} answers again")

    def restart(self, start: str, reason: str) -> None:
        """Restart the server for a reason, unless it was restarted too often, or somebody else does or measures."""
        now, boot, unit = time.monotonic(), state.boot_id(), self.settings.unit
        known = self.store.read()
        events = state.times(known, unit, boot) + state.times(known, unit, boot, "lender_restarts")
        # a lender that comes and goes would else use up the restarts of a server that hangs, which then stays failed
        if len(restarts.recent(events, now)) >= self.settings.restarts_per_hour:
            return
        if not host.is_left_alone(host.show(unit, self.settings.lease_unit), unit, self.settings.lease_unit, start):
            return
        with self.store.changing() as known:
            state.add_lender_restart(known, unit, {"boot": boot, "monotonic": now, "at": time.time()})
        say(5, f"{reason}, and no request is in progress: restarting it")
        self.answering = {}
        with contextlib.suppress(OSError):
            host.systemctl("--no-block", "try-restart", unit)
