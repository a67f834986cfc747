# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The watchdog, main program of mixed-gpu-watchdog.service: ends a server that hangs, and systemd starts it again.

    python3 -m mixed_gpu_watchdog.watch [SETTINGS_FILE [STATE_DIRECTORY]]

Copied to the host with its room. Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
import typing as t

from . import failover, host, lenders, restarts, settings, stall, state
from .host import say

#: Ends the server for good: its unit names this signal in RestartPreventExitStatus=.
GIVE_UP_SIGNAL: t.Final = "SIGUSR2"
#: So often SIGKILL is sent before a process counts as stuck.
KILL_ATTEMPTS: t.Final = 2


def credential(name: str) -> str:
    """Return a credential of the unit; empty where it has none."""
    path = os.path.join(os.environ.get("CREDENTIALS_DIRECTORY", "/nonexistent"), name)
    with contextlib.suppress(OSError), open(path, encoding="utf-8") as file:
        lines = [line.strip() for line in file]
        return next((line for line in lines if line and not line.startswith("#")), "")
    return ""


class Watch:
    """One server, watched."""

    def __init__(self, wanted: settings.Settings, state_dir: str, server: host.Server) -> None:
        self.settings = wanted
        self.server = server
        self.store = state.Store(state_dir, wanted.metrics_path)
        self.limits = stall.Limits(wanted.stall_seconds, wanted.load_seconds)
        self.seen = stall.Seen()
        self.images = ("", False)  # of which start it was asked, and whether the model reads images
        self.unwritten = state.empty()  # what a full disk does not take
        self.failover = failover.Failover(wanted, self.store, self.notify)
        self.status, self.pid = "", 0  # of the unit, at the last look
        self.said = ""  # the last line about a wait, which is said once

    def look(self) -> stall.Look:
        """Look at the server once. Raises KeyRefusedError, and OSError where systemd does not answer."""
        at = time.monotonic()
        found = host.show(self.settings.unit, self.settings.lease_unit, *self.settings.peer_units)
        unit, lease = found[self.settings.unit], found[self.settings.lease_unit]
        start = unit.get("InvocationID", "")
        self.status, self.pid = unit.get("StatusText", ""), int(unit.get("MainPID") or 0)
        waits = lenders.of_status(self.status, self.settings.lenders).waits
        if not host.running(unit) or host.is_measured(lease) or waits:
            return stall.Look(at, start, "away")
        answer, reading = self.server.metrics()
        if reading is not None:
            if self.images[0] != start:
                self.images = (start, self.server.reads_images())
            coarse = reading.coarse or self.images[1]
            look = stall.Look(at, start, "metrics", reading.processing, reading.counters, coarse)
            exact = stall.wants_exact(self.seen, look, self.limits)
            return look._replace(exact=self.server.slots()) if exact else look
        look = stall.Look(at, start, t.cast("stall.Answer", answer))
        if answer == "no_metrics":
            if (self.seen.start, self.seen.state) != (start, "no_metrics"):
                return look
            token = self.server.gives_token(self.settings.stall_seconds)
            return look._replace(at=time.monotonic(), gave_token=token)
        pids = [int(found[name].get("MainPID") or 0) for name in (self.settings.unit, *self.settings.peer_units)]
        return look._replace(stopped=any(host.process_state(pid) in ("T", "t") for pid in pids))

    def step(self) -> None:
        """Look once, and act where the server hangs. Raises as look does."""
        look = self.look()
        judged = stall.judge(self.seen, look, self.limits)
        self.seen = judged.seen
        if judged.hung:
            self.act(look.start, f"{self.settings.unit} {judged.hung}")
        else:
            self.failover.step(look, self.status, self.pid)

    def act(self, start: str, reason: str) -> None:
        """End a server that hangs, unless it was ended already or another restart has to wait."""
        found = host.show(self.settings.unit, *self.settings.peer_units, self.settings.lease_unit)
        if not host.is_left_alone(found, self.settings.unit, self.settings.lease_unit, start):
            return
        decision = self.decide(start, reason)
        if decision is None:
            return
        if decision.action == "wait":
            self.say_once(f"{reason}: restarting it in {decision.wait_seconds:.0f} s, since it was restarted before")
            return
        self.say_metrics_error()
        pids = {name: int(found[name].get("MainPID") or 0) for name in (self.settings.unit, *self.settings.peer_units)}
        if decision.action == "restart":
            self.restart(reason, {name: pid for name, pid in pids.items() if host.running(found[name]) and pid})
        else:
            self.give_up(reason, pids[self.settings.unit])
        self.seen = stall.Seen()

    def decide(self, start: str, reason: str) -> restarts.Decision | None:
        """Return what to do with a server that hangs, recorded where it is a restart; None where it was ended before.

        A full disk must not keep a server from being restarted: what cannot be written is remembered here.
        """
        try:
            with self.store.changing() as known:
                return self.decided(known, start, reason)
        except OSError as exc:
            self.say_once(f"{self.store.path} cannot be written ({exc.strerror}): restarts are counted in memory")
            return self.decided(self.unwritten, start, reason)

    def decided(self, known: state.Json, start: str, reason: str) -> restarts.Decision | None:
        """Decide as decide does, by a state, and record a restart in it."""
        unit, boot, now = self.settings.unit, state.boot_id(), time.monotonic()
        if state.was_ended(known, unit, start):
            return None
        decision = restarts.decide(state.times(known, unit, boot), now, self.settings.restarts_per_hour)
        if decision.action == "restart":
            event = {"boot": boot, "monotonic": now, "at": time.time(), "start": start, "reason": reason}
            state.add_restart(known, unit, event)
        return decision

    def restart(self, reason: str, pids: dict[str, int]) -> None:
        """End the server and its RPC servers on this host, any of which may hang; systemd starts them again."""
        others = [name for name in pids if name != self.settings.unit]
        peers = f" and {', '.join(others)}" if others else ""
        say(3, f"{reason}: ending it{peers} by SIGKILL, systemd starts it again")
        begun = {pid: host.started_at(pid) for pid in pids.values()}
        there = list(pids.values())
        for _attempt in range(KILL_ATTEMPTS):
            # the server first: its RPC servers would restart it by a stop, for which a hung server has no ear
            for name in (name for name, pid in pids.items() if pid in there):
                self.kill(name, "SIGKILL")
            there = self.wait_for_end(begun)
            if not there:
                break
        for name in [name for name, pid in pids.items() if pid in there]:
            self.tell_stuck(name, pids[name])
        self.notify(self.settings.unit)

    def give_up(self, reason: str, pid: int) -> None:
        """End the server for good: its unit becomes failed, and OnFailure= tells."""
        say(
            2,
            f"{reason}, and was restarted {self.settings.restarts_per_hour} times within the last hour: it stays failed"
            f" until somebody starts it (systemctl restart {self.settings.unit})",
        )
        begun = {pid: host.started_at(pid)}
        self.kill(self.settings.unit, GIVE_UP_SIGNAL)
        self.kill(self.settings.unit, "SIGCONT")  # a process that was stopped ends when it goes on
        if self.wait_for_end(begun):
            self.kill(self.settings.unit, "SIGKILL")
            with contextlib.suppress(OSError):
                host.systemctl("--no-block", "stop", self.settings.unit)
            if self.wait_for_end(begun):
                self.tell_stuck(self.settings.unit, pid)
            self.notify(self.settings.unit)

    def kill(self, unit: str, signal: str) -> None:
        """Send a signal to a unit's main process; say so where that fails."""
        try:
            host.systemctl("kill", "--kill-whom=main", f"--signal={signal}", unit)
        except OSError as exc:
            say(4, f"{signal} did not reach {unit} ({exc.strerror})")

    def wait_for_end(self, begun: dict[int, str]) -> list[int]:
        """Return which processes are still there after end_seconds; C(begun) is when each was started."""
        deadline = time.monotonic() + self.settings.end_seconds
        while True:
            there = [pid for pid, started in begun.items() if host.is_there(pid, started)]
            if not there or time.monotonic() >= deadline:
                return there
            time.sleep(0.1)

    def tell_stuck(self, unit: str, pid: int) -> None:
        """Say that a process ignores SIGKILL, and wait until it is gone: nothing else can be done."""
        letter = host.process_state(pid)
        where = "waits in the kernel (state D)" if letter == "D" else f"is in state {letter or 'unknown'}"
        say(2, f"process {pid} of {unit} {where} and no signal ends it: reboot this host")
        with self.store.changing() as known:
            state.of_unit(known, unit)["stuck"] = True
        self.notify(unit)
        started = host.started_at(pid)
        while host.is_there(pid, started):
            time.sleep(self.settings.poll_seconds)
        with self.store.changing() as known:
            state.of_unit(known, unit)["stuck"] = False

    def notify(self, unit: str) -> None:
        """Have the notifier tell, where the role installed it."""
        with contextlib.suppress(OSError):
            host.systemctl("--no-block", "start", f"{self.settings.notify_unit}{unit}.service")

    def say_once(self, text: str) -> None:
        """Say something that holds for a while; the digits in it may change."""
        plain = "".join(letter for letter in text if not letter.isdigit())
        if plain != self.said:
            say(4, text)
        self.said = plain

    def say_metrics_error(self) -> None:
        if self.store.metrics_error:
            self.say_once(self.store.metrics_error)


def alone(directory: str) -> t.IO[str] | None:
    """Return a file that is locked while this program runs, or None where another watchdog runs."""
    file = open(os.path.join(directory, ".running"), "w", encoding="utf-8")  # noqa: SIM115 (held until the end)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


def main(words: t.Sequence[str]) -> int:
    """Watch until somebody ends this program; return 1 where the watch cannot go on."""
    path, state_dir = (*words, *(settings.PATH, settings.STATE_DIR)[len(words) :])
    try:
        wanted = settings.read(path)
        lock = alone(state_dir)
    except (OSError, ValueError) as exc:
        say(3, f"{path} cannot be used ({exc}): run the role server_watchdog")
        return 1
    if lock is None:
        say(4, "another watchdog runs: this one ends")
        return 1
    watch = Watch(wanted, state_dir, host.Server(wanted.url, credential("api_key"), wanted.timeout_seconds))
    with contextlib.suppress(OSError), watch.store.changing():
        pass  # the metrics are there from the beginning
    say(6, f"watching {wanted.unit}: it hangs when nothing moves for {wanted.stall_seconds:g} s while it has requests")
    while True:
        try:
            watch.step()
        except host.KeyRefusedError as exc:  # the key was changed: systemd starts this program with the new one
            say(4, f"{exc}: reading the key again")
            return 1
        except (OSError, KeyError) as exc:
            watch.say_once(f"cannot look at {wanted.unit} ({exc})")
        time.sleep(wanted.poll_seconds)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
