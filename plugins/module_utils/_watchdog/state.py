# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What watchdog and notifier remember: restarts, failures, and the metrics made of them.

One JSON file, written under a lock and synced, so that two writers lose nothing and a restart is recorded before it
happens. Times of the monotonic clock count in the boot in which they were taken.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import typing as t

SCHEMA: t.Final = 2
#: Restarts that are kept: more than can happen in an hour.
KEEP: t.Final = 50
#: No time and no count is larger; NaN is not smaller.
_LARGEST: t.Final = 1e15

Json = dict[str, t.Any]


def boot_id() -> str:
    """Return the kernel's name of this boot; empty where it has none."""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="utf-8") as file:
        return file.read().strip()
    return ""


def empty() -> Json:
    """Return the state of a host on which nothing happened yet."""
    return {"schema": SCHEMA, "units": {}}


def of_unit(state: Json, unit: str) -> Json:
    """Return what is remembered of a unit, a part of the state."""
    own = state["units"].setdefault(unit, {})
    for name, value in _fresh().items():
        own.setdefault(name, value)
    return own


def _fresh() -> Json:
    return {
        "restarts": [], "restarts_total": 0, "failed_at": None, "failures_total": 0, "stuck": False, "told": [],
        "absent_lenders": [], "waits_for_lenders": False, "lender_restarts": [], "lender_losses_total": 0,
        "lender_returns_total": 0, "lender_ports": {}, "lenders": [],
    }  # fmt: skip


def _sound(own: t.Any) -> bool:
    """Return whether what is remembered of a unit is what this program writes: it must not end by it at each look."""
    if not isinstance(own, dict):
        return False
    whole = {**_fresh(), **own}
    kinds = all(
        _is_number(whole[name]) if usual is None else isinstance(whole[name], type(usual))
        for name, usual in _fresh().items()
        if not (usual is None and whole[name] is None)
    )
    return (
        kinds
        and all(_is_event(one) and isinstance(one.get("start"), str) for one in whole["restarts"])
        and all(_is_event(one) for one in whole["lender_restarts"])
        and all(isinstance(one, str) for name in ("told", "absent_lenders", "lenders") for one in whole[name])
        and all(_is_number(one) for one in whole["lender_ports"].values())
        and all(_is_number(whole[name]) for name in whole if name.endswith("_total"))
    )


def _is_event(one: t.Any) -> bool:
    return (
        isinstance(one, dict) and isinstance(one.get("boot"), str)
        and _is_number(one.get("monotonic")) and _is_number(one.get("at"))
    )  # fmt: skip


def _is_number(value: t.Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _LARGEST


def add_restart(state: Json, unit: str, restart: Json) -> None:
    """Record a restart: C(boot), C(monotonic), C(at) (seconds since 1970), C(start), C(reason)."""
    own = of_unit(state, unit)
    own["restarts"] = [*own["restarts"], restart][-KEEP:]
    own["restarts_total"] += 1


def add_lender_restart(state: Json, unit: str, restart: Json) -> None:
    """Record a restart since a lender came or went: C(boot), C(monotonic), C(at) (seconds since 1970)."""
    own = of_unit(state, unit)
    own["lender_restarts"] = [*own["lender_restarts"], restart][-KEEP:]


def add_failure(state: Json, unit: str, at: float) -> None:
    """Record that a unit failed, at seconds since 1970."""
    own = of_unit(state, unit)
    own["failed_at"] = at
    own["failures_total"] += 1


def times(state: Json, unit: str, boot: str, kind: str = "restarts") -> list[float]:
    """Return when a unit was restarted in this boot, seconds of the monotonic clock."""
    return [restart["monotonic"] for restart in of_unit(state, unit)[kind] if restart["boot"] == boot]


def was_ended(state: Json, unit: str, start: str) -> bool:
    """Return whether this start of a unit was ended before: nobody ends it twice."""
    return any(restart["start"] == start for restart in of_unit(state, unit)["restarts"])


def metrics(state: Json) -> str:
    """Return the state in Prometheus' text format, for the textfile collector of node_exporter."""
    rows = (
        ("restarts_total", "counter", "Restarts of a hung unit by the watchdog", "restarts_total"),
        ("failures_total", "counter", "How often a unit ended as failed", "failures_total"),
        ("last_failure_timestamp_seconds", "gauge", "When a unit ended as failed last", "failed_at"),
        ("absent_lenders", "gauge", "RPC devices of other hosts that a unit does without", "absent_lenders"),
        ("lender_losses_total", "counter", "How often a unit was started without a lender", "lender_losses_total"),
        ("lender_returns_total", "counter", "How often a unit had all its lenders again", "lender_returns_total"),
        ("reboot_needed", "gauge", "Whether a process of a unit ignores SIGKILL", "stuck"),
    )
    lines = []
    for name, kind, text, field in rows:
        lines += [f"# HELP mixed_gpu_watchdog_{name} {text}.", f"# TYPE mixed_gpu_watchdog_{name} {kind}"]
        for unit, own in sorted(state["units"].items()):
            value = len(own[field]) if isinstance(own[field], list) else own[field]
            if value is not None:
                lines.append(f'mixed_gpu_watchdog_{name}{{unit="{unit}"}} {float(value):.15g}')
    return "\n".join([*lines, *_lenders(state)]) + "\n"


def _lenders(state: Json) -> list[str]:
    """Return whether each lender of a unit is absent; nothing without lenders."""
    lines = [
        f'mixed_gpu_watchdog_lender_absent{{unit="{unit}",lender="{lender}"}} {float(lender in own["absent_lenders"])}'
        for unit, own in sorted(state["units"].items()) for lender in own.get("lenders", [])
    ]  # fmt: skip
    head = "mixed_gpu_watchdog_lender_absent"
    about = [f"# HELP {head} Whether a unit does without this RPC device of another host.", f"# TYPE {head} gauge"]
    return [*about, *lines] if lines else []


def replace(path: str, text: str, mode: int) -> None:
    """Write a file whole or not at all, and synced, its name included."""
    directory, new = os.path.dirname(path), f"{path}.{os.getpid()}"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with open(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.rename(new, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new)
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Store:
    """The state in a directory, and the metrics' file beside it where one is wanted."""

    def __init__(self, directory: str, metrics_path: str = "") -> None:
        self.path = os.path.join(directory, "state.json")
        self.lock = os.path.join(directory, ".lock")
        self.metrics_path = metrics_path
        self.metrics_error = ""  # why the metrics could not be written last

    def read(self) -> Json:
        """Return the state; an empty one where there is none, a damaged one, or one of another schema.

        A unit whose part is damaged is forgotten.
        """
        with contextlib.suppress(OSError, ValueError, RecursionError), open(self.path, encoding="utf-8") as file:
            state = json.load(file)
            if isinstance(state, dict) and state.get("schema") == SCHEMA and isinstance(state.get("units"), dict):
                units = {unit: own for unit, own in state["units"].items() if _sound(own)}
                for unit in units:
                    of_unit({"units": units}, unit)
                return {"schema": SCHEMA, "units": units}
        return empty()

    @contextlib.contextmanager
    def changing(self) -> t.Iterator[Json]:
        """Give the state, and write what the body made of it. Raises OSError where it cannot be written."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            state = self.read()
            yield state
            replace(self.path, json.dumps(state, indent=2) + "\n", 0o644)
            self.write_metrics(state)
        finally:
            os.close(descriptor)

    def write_metrics(self, state: Json) -> None:
        """Write the metrics where they are wanted; a full disk there must not keep a server from being restarted."""
        self.metrics_error = ""
        if self.metrics_path:
            try:
                replace(self.metrics_path, metrics(state), 0o644)
            except OSError as exc:
                self.metrics_error = f"{self.metrics_path} cannot be written ({exc.strerror})"
