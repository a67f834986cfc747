# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Looks at a host while a load is measured, to see what else computes. Private to this collection.

It reads /proc and decides nothing (contention.py does).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import typing as t

from .._base.types import Json, Mapping
from . import contention

_INTERVAL_SECONDS: t.Final = 0.5
#: First words of the units that measure and of those that serve its devices.
UNITS: t.Final = ("mixed-gpu-run-", "ggml-rpc-server-")
SERVERS: t.Final = ("llama-server", "exllama-server")
#: systemd moves a process into its unit soon after it was started.
_LOOKS_AT_UNIT: t.Final = 4
#: RPC servers that run without a unit.
_NAMES: t.Final = ("rpc-server", "ggml-rpc-server")
#: Kernel threads have this parent (kthreadd); what they do, they do for anybody.
_KTHREADD: t.Final = 2


class Watch:
    """Watches a host in a thread, as a context; C(result) is there at its end, None where /proc cannot be read."""

    def __init__(self, units: t.Sequence[str] = UNITS, root: str = "/proc") -> None:
        self.result: Json | None = None
        self._units, self._root = tuple(units), root
        self._measures: dict[tuple[int, int], tuple[int, bool]] = {}
        self._names: dict[int, str] = {}
        self._account: contention.Account | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        """Take the first look, and begin to watch."""
        with contextlib.suppress(OSError, ValueError):
            self._account = contention.Account(self._look())
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Take the last look, and set the result."""
        if self._account is None:
            return
        self._ended.set()
        self._thread.join()
        with contextlib.suppress(OSError, ValueError):
            self._account.add(self._look())
        self.result = self._account.result(os.cpu_count() or 1)

    def with_cards(self, conditions: Mapping) -> Json | None:
        """Return the result with what the cards said meanwhile, the C(conditions) of a load."""
        if self.result is None or self._account is None:
            return None
        return {**self.result, "cards": contention.of_cards(conditions, self._account.ours, self._names)}

    def _watch(self) -> None:
        while self._account is not None and not self._ended.wait(_INTERVAL_SECONDS):
            with contextlib.suppress(OSError, ValueError):
                self._account.add(self._look())

    def _look(self) -> contention.Look:
        processes = self._processes()
        self._names.update({pid: one.name for pid, one in processes.items()})
        roots = [pid for pid, one in processes.items() if self._is_ours(pid, one)]
        busy, steal, total = contention.cpu_times(self._read("stat"))
        return contention.Look(
            time.monotonic(), busy, steal, total,
            contention.stalled_us(self._pressure("cpu"), "some"),
            contention.stalled_us(self._pressure("memory"), "full"),
            processes, contention.family(processes, roots, os.getpid()),
        )  # fmt: skip

    def _processes(self) -> dict[int, contention.Process]:
        found = {}
        for pid in map(int, filter(str.isdigit, os.listdir(self._root))):
            one = self._process(pid)
            if one is not None and _KTHREADD not in (one.parent, pid):
                found[pid] = one
        return found

    def _process(self, pid: int) -> contention.Process | None:
        """Return one process, or None when it has ended meanwhile."""
        try:
            return contention.process(self._read(f"{pid}/stat"))
        except (OSError, ValueError):
            return None

    def _is_ours(self, pid: int, one: contention.Process) -> bool:
        """Return whether a process is of a unit that measures, or serves one of its devices."""
        if one.name in _NAMES:
            return True
        key = (pid, one.started)
        asked, ours = self._measures.get(key, (0, False))
        if not ours and asked < _LOOKS_AT_UNIT:
            with contextlib.suppress(OSError):
                # a line per hierarchy where cgroups are not unified; not all of them are systemd's
                places = self._read(f"{pid}/cgroup").splitlines()
                ours = any(place.rpartition("/")[2].startswith(self._units) for place in places)
            self._measures[key] = (asked + 1, ours)
        return ours

    def _pressure(self, what: str) -> str:
        try:
            return self._read(f"pressure/{what}")
        except OSError:  # a kernel without CONFIG_PSI
            return ""

    def _read(self, name: str) -> str:
        with open(f"{self._root}/{name}", encoding="utf-8", errors="replace") as file:
            return file.read()
