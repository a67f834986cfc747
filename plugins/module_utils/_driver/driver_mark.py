# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The mark "this host needs revalidation" (docs/data_formats.md). Private to this collection.

Three use this one file: the modules revalidation_mark and revalidation_mark_info, and apt, for which the role
revalidation_timer installs it, with _driver_packages beside it, as a program of its own on the host (main, which reads
dpkg's database and writes two files). All else is pure. Standard library only.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import subprocess
import sys
import syslog
import typing as t

SCHEMA: t.Final = 1
PATH: t.Final = "/var/lib/mixed_gpu/needs_revalidation.json"
#: The driver's packages when apt was last done: what the next operation is compared with.
SEEN: t.Final = "/var/lib/mixed_gpu/driver_packages.json"
CURE: t.Final = "ansible-playbook homelab.mixed_gpu.revalidate"

Mark = dict[str, t.Any]


class MarkError(ValueError):
    """A mark that cannot be read; the message says why."""


# --- what it means (pure) ---------------------------------------------------------------------------------------------


def parse(text: str) -> Mark:
    """Return a mark from its file's text. Raises MarkError."""
    try:
        mark = json.loads(text)
    except ValueError as exc:
        raise MarkError(f"it is no JSON ({exc})") from exc
    if not isinstance(mark, dict) or mark.get("schema") != SCHEMA:
        raise MarkError(f"it is not of schema {SCHEMA}")
    packages = mark.get("packages")
    whole = isinstance(packages, list) and all(isinstance(entry, dict) and "name" in entry for entry in packages)
    if not whole or not isinstance(mark.get("since"), str):
        raise MarkError("it lacks since or packages")
    return mark


def state(text: str | None) -> dict[str, t.Any]:
    """Return {needed, since, packages, why, cure} of the mark's text, None where there is no file.

    A mark that cannot be read still says that a revalidation is due.
    """
    if text is None:
        return {"needed": False, "since": None, "packages": [], "why": None, "cure": None}
    try:
        mark = parse(text)
    except MarkError as exc:
        why = f"the host is marked for revalidation, though the mark is damaged: {exc}"
        return {"needed": True, "since": None, "packages": [], "why": why, "cure": CURE}
    return {"needed": True, "since": mark["since"], "packages": mark["packages"], "why": sentence(mark), "cure": CURE}


def sentence(mark: Mark) -> str:
    """Return what changed, in words."""
    if not mark["packages"]:
        return f"the host was marked for revalidation at {mark['since']}"
    first, *others = (f"{entry['name']} {_way(entry)}" for entry in mark["packages"])
    more = f" and {len(others)} more packages" if len(others) > 1 else f", {others[0]}" if others else ""
    return f"the driver changed at {mark['since']} ({first}{more}), and its speed was not compared since"


def _way(entry: t.Mapping[str, t.Any]) -> str:
    if entry.get("from") is None:
        return f"{entry.get('to')} was installed"
    return f"{entry['from']} was removed" if entry.get("to") is None else f"{entry['from']} -> {entry['to']}"


def changes(before: t.Mapping[str, str], after: t.Mapping[str, str]) -> list[dict[str, t.Any]]:
    """Return [{name, from, to}] of the packages whose version differs; from or to is None where it was or is absent."""
    return [
        {"name": name, "from": before.get(name), "to": after.get(name)}
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    ]


def merged(mark: Mark | None, found: t.Sequence[t.Mapping[str, t.Any]], now: str) -> Mark | None:
    """Return the mark after further changes: since the first of them, from the oldest version to the newest.

    A package that is back at the version it came from is no longer part of it. None when nothing is left of a mark that
    named packages: the driver is again the one that was validated.
    """
    if not found:
        return mark
    packages = {entry["name"]: dict(entry) for entry in (mark["packages"] if mark else [])}
    marked_for_another_reason = mark is not None and not packages
    for entry in found:
        first = packages.get(entry["name"], entry)["from"]
        packages[entry["name"]] = {"name": entry["name"], "from": first, "to": entry["to"]}
    left = [packages[name] for name in sorted(packages) if packages[name]["from"] != packages[name]["to"]]
    if not left and not marked_for_another_reason:
        return None
    return {"schema": SCHEMA, "since": mark["since"] if mark else now, "packages": left}


def driver_versions(dpkg_text: str) -> dict[str, str]:
    """Return the versions of the driver's packages by name, from what dpkg-query prints for DPKG_FORMAT."""
    packages = _driver_packages()
    found = packages.parse_dpkg(dpkg_text)
    return {name: entry["version"] for name, entry in found.items() if packages.is_driver(name, entry["source"])}


def _driver_packages() -> t.Any:
    """The module that knows the driver's packages: of the collection, or the file beside the installed program."""
    return importlib.import_module(f"{__package__}.driver_packages" if __package__ else "driver_packages")


# --- what apt runs ----------------------------------------------------------------------------------------------------


def _read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def _write(path: str, data: t.Any) -> None:
    """Write a file whole or not at all, readable by all."""
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    temporary = f"{path}.new"
    with open(temporary, "w", encoding="utf-8") as handle:
        json.dump(data, handle, indent=2, sort_keys=True)
        handle.write("\n")
        handle.flush()
        os.fsync(handle.fileno())
    os.chmod(temporary, 0o644)
    os.replace(temporary, path)


def _seen(path: str) -> dict[str, str] | None:
    """What the last operation left, None where that is not known."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return dict(json.loads(_read(path) or "")["packages"])
    return None


def hook(action: str, mark_path: str, seen_path: str, dpkg_text: str, now: str) -> str | None:
    """Do what apt asks for, before (`before`) or after (`after`) dpkg, and return a sentence where there is news.

    Before an operation only an unknown state is noted, so that a change by dpkg alone is found by the next operation.
    """
    present = driver_versions(dpkg_text)
    seen = _seen(seen_path)
    if action == "before" and seen is not None:
        return None
    news = None
    found = [] if seen is None else changes(seen, present)
    if found:
        text = _read(mark_path)
        try:
            mark = None if text is None else parse(text)
        except MarkError:
            mark = None
        new = merged(mark, found, now)
        if new is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mark_path)
            news = "the driver is again the one that was validated" if mark else None
        else:
            _write(mark_path, new)
            news = f"{sentence(new)}: {CURE}"
    if seen is None or found:
        _write(seen_path, {"schema": SCHEMA, "packages": present})
    return news


def main(arguments: t.Sequence[str] | None = None) -> int:
    """Compare the driver's packages with those of the last operation. Returns 0 whatever happens: apt must go on."""
    parser = argparse.ArgumentParser(description="Mark the host for revalidation when the NVIDIA driver changed.")
    parser.add_argument("action", choices=["before", "after"])
    parser.add_argument("--mark", default=PATH)
    parser.add_argument("--seen", default=SEEN)
    given = parser.parse_args(arguments)
    syslog.openlog("mixed-gpu-revalidation")
    try:
        query = ["dpkg-query", "-W", "-f", _driver_packages().DPKG_FORMAT]
        text = subprocess.run(query, check=True, capture_output=True, text=True, timeout=60).stdout
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        news = hook(given.action, given.mark, given.seen, text, now)
    except Exception as exc:  # noqa: BLE001
        syslog.syslog(syslog.LOG_ERR, f"whether the driver changed could not be found out: {exc!r}")
        return 0
    if news:
        syslog.syslog(syslog.LOG_WARNING, news)
        sys.stdout.write(f"mixed_gpu: {news}\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
