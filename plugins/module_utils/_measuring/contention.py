# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether something else computed while a load was measured. Private to this collection. Pure functions only.

contention_watch.py looks at a host; here looks are read, added up and judged. The result is the C(contention) of a load
(docs/data_formats.md). A time that was measured in contention says nothing about a device: no cause and no baseline
follows from it.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping

#: Less of all CPUs' time moves a speed by no more than two loads differ anyway.
OTHERS_PERCENT: t.Final = 5.0
#: Others on idle CPUs cost nothing: so much of the time something has to wait for a CPU, too.
WAITING_PERCENT: t.Final = 5.0
#: Busy time that no process which was seen explains. Processes that end between two looks leave some of it, ours too.
UNSEEN_PERCENT: t.Final = 30.0
#: A load that is shorter says nothing of unseen work, since the end of each process is not seen.
UNSEEN_SECONDS: t.Final = 10.0
#: Time that a hypervisor gave to other machines. A virtual machine alone on its host sees less than 1 %.
STEAL_PERCENT: t.Final = 5.0
#: Share of a card's time. An idle desktop takes less.
CARD_PERCENT: t.Final = 5.0
#: After so many contended loads it is better to wait than to measure on.
MOST_CONTENDED: t.Final = 2
#: What holds clocks down without anybody's doing: nothing to do, and the power limit that was set.
_OWN_REASONS: t.Final = ("gpu_idle", "sw_power_cap")
#: Fields of /proc/stat's first line after C(cpu): user nice system idle iowait irq softirq steal (proc_stat(5)).
_IDLE: t.Final = (3, 4)
_STEAL: t.Final = 7


class Process(t.NamedTuple):
    """One process: its name, its parent, the CPU time that it had (clock ticks) and when it began (ticks of boot)."""

    name: str
    parent: int
    ticks: int
    started: int


Processes = t.Mapping[int, Process]


class Look(t.NamedTuple):
    """One look at a host. Times in clock ticks, stalls in microseconds; None where the kernel does not say."""

    seconds: float
    busy_ticks: int
    steal_ticks: int
    total_ticks: int
    cpu_waiting_us: int | None
    memory_stalled_us: int | None
    processes: Processes
    ours: frozenset[int]


def cpu_times(text: str) -> tuple[int, int, int]:
    """Return (busy, stolen, all) ticks of the first line of /proc/stat; what was stolen is not busy."""
    fields = [int(field) for field in text.split("\n", 1)[0].split()[1:9]]
    fields += [0] * (8 - len(fields))
    total, steal = sum(fields), fields[_STEAL]
    return total - steal - sum(fields[place] for place in _IDLE), steal, total


def stalled_us(text: str, kind: str) -> int | None:
    """Return the total of one line (C(some), C(full)) of a file of /proc/pressure, or None without it."""
    for line in text.splitlines():
        words = line.split()
        if words and words[0] == kind and words[-1].startswith("total="):
            return int(words[-1].removeprefix("total="))
    return None


def process(text: str) -> Process:
    """Return what /proc/PID/stat says; its name may hold blanks and brackets. Raises ValueError for anything else."""
    head, _bracket, tail = text.rpartition(")")
    fields = tail.split()
    if len(fields) < 20:  # noqa: PLR2004 (starttime is field 22, the 20th after the name)
        raise ValueError("this is no /proc/PID/stat")
    return Process(head.partition("(")[2], int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[19]))


def family(processes: Processes, roots: t.Iterable[int], own: int) -> frozenset[int]:
    """Return the pids that measure: C(roots), what they started, and the ancestors of C(own), which wait for it."""
    found = set(roots) | {own}
    grown = True
    while grown:
        children = {pid for pid, one in processes.items() if one.parent in found} - found
        found |= children
        grown = bool(children)
    pid = own
    while pid in processes and processes[pid].parent > 0:
        pid = processes[pid].parent
        found.add(pid)
    return frozenset(found)


class Account:
    """What was computed between the first look and the last one."""

    def __init__(self, first: Look) -> None:
        self._first = self._last = first
        self._others: dict[str, int] = {}
        self._ours = 0
        self.ours: set[int] = set(first.ours)

    def add(self, look: Look) -> None:
        """Add the CPU time of each process since the look before; one that is new had all of its time since."""
        self.ours |= look.ours
        for pid, now in look.processes.items():
            before = self._last.processes.get(pid)
            had = before.ticks if before is not None and before.started == now.started else 0
            ticks = now.ticks - had
            if pid in self.ours:
                self._ours += ticks
            elif ticks > 0:
                self._others[now.name] = self._others.get(now.name, 0) + ticks
        self._last = look

    def result(self, cpus: int) -> Json:
        """Return the C(contention) of a load, without what the cards say."""
        first, last = self._first, self._last
        elapsed = max(last.seconds - first.seconds, 1e-3)
        total = max(last.total_ticks - first.total_ticks, 1)
        others = sum(self._others.values())
        unseen = max(0, last.busy_ticks - first.busy_ticks - others - self._ours)
        name = max(self._others, key=lambda one: self._others[one], default=None)
        return {
            "seconds": round(elapsed, 1),
            "cpus": cpus,
            "others_percent": _percent(others, total),
            "top": None if name is None else {"name": name, "cpus": round(cpus * self._others[name] / total, 2)},
            "unseen_percent": _percent(unseen, total),
            "steal_percent": _percent(last.steal_ticks - first.steal_ticks, total),
            "cpu_waiting_percent": _stall(first.cpu_waiting_us, last.cpu_waiting_us, elapsed),
            "memory_stalled_percent": _stall(first.memory_stalled_us, last.memory_stalled_us, elapsed),
        }


def _percent(part: int, whole: int) -> float:
    return round(min(100.0, 100 * max(part, 0) / whole), 1)


def _stall(before: int | None, after: int | None, seconds: float) -> float | None:
    if before is None or after is None:
        return None
    return round(min(100.0, (after - before) / seconds / 1e4), 1)


def of_cards(conditions: Mapping, ours: t.Container[int], known: t.Mapping[int, str]) -> Json:
    """Return what others did on each card, and what held its clocks down, by UUID.

    C(conditions) are those of a load, C(known) the names of the processes of this host by pid. A process that is not
    among them runs on the other side of a container's wall, where ours cannot be told from others: it is left out.
    """
    found = {}
    for card_id, seen in conditions.items():
        others = [
            {"name": known[one["pid"]], "memory_mib": one["memory_mib"], "gpu_percent": one["gpu_percent"]}
            for one in seen.get("processes") or []
            if one["pid"] in known and one["pid"] not in ours
        ]
        held = [reason for reason in seen.get("throttle_reasons") or [] if reason not in _OWN_REASONS]
        found[card_id] = {"processes": others, "clocks_held_down": held}
    return found


# --- the judgement ---------------------------------------------------------------------------------------------------


def who(seen: Mapping | None) -> str | None:
    """Return who computed beside a load, with the share, or None for nobody (or where nothing was looked at).

    Clocks that are held down and memory that stalls are nobody's work: other checks say what they mean.
    """
    if not seen:
        return None
    return ", ".join([*_on_cards(seen.get("cards") or {}), *_on_cpus(seen)]) or None


def _on_cards(cards: Mapping) -> list[str]:
    return [
        f"{one['name']} {one['gpu_percent']:.0f} % of the card {card_id}"
        for card_id, card in cards.items()
        for one in card["processes"]
        if (one["gpu_percent"] or 0) >= CARD_PERCENT
    ]


def _on_cpus(seen: Mapping) -> list[str]:
    found = []
    if seen["steal_percent"] >= STEAL_PERCENT:
        found.append(f"other machines of the hypervisor {seen['steal_percent']:.0f} % of the CPU time")
    waiting, cpus = seen["cpu_waiting_percent"], seen["cpus"]
    if waiting is not None and waiting < WAITING_PERCENT:
        return found
    if seen["others_percent"] >= OTHERS_PERCENT:
        top, all_cpus = seen["top"], cpus * seen["others_percent"] / 100
        more = "" if all_cpus - top["cpus"] < 0.1 else f", all others together {all_cpus:.1f}"  # noqa: PLR2004
        found.append(f"{top['name']} {top['cpus']:.1f} of {cpus} CPUs{more}")
    elif seen["unseen_percent"] >= UNSEEN_PERCENT and seen["seconds"] >= UNSEEN_SECONDS:
        unseen = cpus * seen["unseen_percent"] / 100
        found.append(f"processes that end quickly or that this container does not show {unseen:.1f} of {cpus} CPUs")
    return found


def of_load(load: Mapping) -> str | None:
    """Return who computed beside a load, or None; a load of before this was looked at is as it was."""
    return who(load.get("contention"))


def calm(loads: t.Iterable[Mapping]) -> list[Json]:
    """Return the loads beside which nobody computed."""
    return [dict(load) for load in loads if of_load(load) is None]


def contended(loads: t.Iterable[Mapping]) -> list[str]:
    """Return who computed, once for each load beside which somebody did."""
    return [said for load in loads if (said := of_load(load)) is not None]


def sentence(whose: str) -> str:
    """Return the finding: who computed, and the cure."""
    return f"something else computes ({whose}): wait or stop it"
