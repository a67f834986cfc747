# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Is a revalidation due, since the NVIDIA driver changed? Private to this collection.

Compares the driver with which the speed was validated last (C(recorded)) with the one that is loaded and the one that
is installed. docs/decisions/0021-driver-comparison.md says what that sees. All but of_host, read and history are pure.
"""

from __future__ import annotations

import os
import typing as t

from .._base import fields, json_file
from .._base.types import Mapping
from .._driver import driver_versions
from .._split import fact_record, host_record

STATE_DIR: t.Final = "/var/lib/mixed_gpu"
#: What is read of a revalidation; trend.py takes the checks.
_RESULT: t.Final = {
    "at": str, "verdict?": str, "driver_version?": (None, str),
    "checks?": [{
        "name": str, "change_percent?": (None, *fields.NUMBER), "interval_percent?": (None, [(None, *fields.NUMBER)]),
    }],
}  # fmt: skip
REVALIDATE: t.Final = "ansible-playbook homelab.mixed_gpu.revalidate"


class Driver(t.TypedDict):
    """Versions of the driver; C(recorded) is None where none was recorded, as on a host without cards."""

    recorded: str | None
    loaded: str
    installed: str | None


class Due(t.TypedDict):
    """Whether a revalidation is due; C(why) and C(cure) are None when not."""

    needed: bool
    #: Whether another driver is loaded than the recorded one: then a revalidation does not have to wait for a reboot.
    now: bool
    why: str | None
    cure: str | None
    driver: Driver


def recorded_driver(entry: Mapping | None, results: t.Iterable[Mapping]) -> str | None:
    """Return the driver with which the speed of a deployment was validated last, or None where none was recorded.

    C(entry) is the fact's, or None without one. C(results) are its revalidations, newest first; of those that were
    accepted after the entry was recorded, the newest counts.
    """
    if entry is None:
        return None
    for result in results:
        if result["at"] <= entry.get("recorded_at", ""):
            break
        if result.get("accepted") and result.get("driver_version"):
            return str(result["driver_version"])
    version = entry["fingerprint_parts"].get("driver_version")
    return None if version is None else str(version)


def compare(recorded: str | None, loaded: str, installed: str | None) -> Due:
    """Return whether a revalidation is due.

    A record without a driver is of devices that need none. An installed version that is not known (None) says nothing.
    """
    why = cure = None
    last = f"the speed was last compared with {recorded}"
    now = recorded is not None and loaded != recorded
    if now:
        why = (
            f"the NVIDIA driver {loaded} is loaded, and {last}" if loaded else f"no NVIDIA driver is loaded, and {last}"
        )
        cure = REVALIDATE
    elif recorded is not None and installed is not None and installed != recorded:
        why = f"no NVIDIA driver is installed for the next boot, and {last}"
        if installed:
            why = f"the NVIDIA driver {installed} is installed and loads at the next boot, and {last}"
        cure = f"reboot, then run {REVALIDATE}"
    driver: Driver = {"recorded": recorded, "loaded": loaded, "installed": installed}
    return {"needed": why is not None, "now": now, "why": why, "cure": cure, "driver": driver}


def history(state_dir: str, deployment: str, unreadable: list[OSError] | None = None) -> t.Iterator[Mapping]:
    """Yield the revalidations of a deployment that can be read, newest first.

    C(unreadable) gains the errors of files that cannot be opened.
    """
    directory = os.path.join(state_dir, "revalidations")
    names = os.listdir(directory) if os.path.isdir(directory) else []
    for name in sorted((name for name in names if name.startswith(f"{deployment}@")), reverse=True):
        try:
            result = json_file.from_text(json_file.read_text(os.path.join(directory, name)) or "")
            fields.check_shape(name, result, _RESULT)
        except OSError as exc:
            if unreadable is not None:
                unreadable.append(exc)
            continue
        except ValueError:
            continue
        yield result


def read(record: Mapping, state_dir: str) -> Due:
    """Return whether a revalidation of the active deployment of this host is due; C(record) is the host's fact."""
    active = record["active"]
    entry = record["models"].get(active)
    recorded = recorded_driver(entry, history(state_dir, active) if active else [])
    return compare(recorded, *driver_versions.read("/"))


def of_host(fact_path: str = fact_record.PATH, state_dir: str = STATE_DIR) -> Due:
    """Return the same for the fact in a file; one that is missing, damaged or no file counts as none."""
    return read(host_record.usable(fact_path), state_dir)
