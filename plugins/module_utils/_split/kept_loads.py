# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which measurements of the host's store are still needed. Private to this collection. Pure functions only.

Measurements of one fingerprint and campaign belong together: they stay or go together.
"""

from __future__ import annotations

import typing as t

from .._base.types import Mapping


class Stored(t.NamedTuple):
    """One file of the store; the campaign of a damaged one is empty, and its fingerprint is the name of the file."""

    name: str
    fingerprint: str
    campaign: str
    written_ns: int


def _needed(record: Mapping, baselines: t.Iterable[Mapping]) -> tuple[set[tuple[str, str]], list[str]]:
    """Return the (fingerprint, campaign) that are referred to, and when the recorded entries were recorded."""
    entries = list(record["models"].values())
    probes = [entry["device_probe"] for entry in entries if entry.get("device_probe")]
    loads = [load for baseline in baselines for load in baseline["loads"]]
    pairs = {(str(one.get("fingerprint")), str(one.get("campaign"))) for one in [*entries, *probes, *loads]}
    return pairs, [str(entry["recorded_at"]) for entry in entries if entry.get("recorded_at")]


def superfluous(
    stored: t.Iterable[Stored], record: Mapping, baselines: t.Iterable[Mapping], keep_campaigns: int
) -> list[str]:
    """Return the names of the files to remove, sorted.

    What the record (the host's fact) and the baselines refer to stays: tunings, device probes, the loads of baselines.
    So do campaigns that began with a recorded entry and are named after it, such as a retune that was interrupted or a
    power sweep. Of all others the newest C(keep_campaigns) stay, at least one, since it may go on.
    """
    pairs, times = _needed(record, baselines)
    others: dict[tuple[str, str], list[Stored]] = {}
    for one in stored:
        group = (one.fingerprint, one.campaign)
        if group not in pairs and not any(time in one.campaign for time in times):
            others.setdefault(group, []).append(one)
    newest_first = sorted(others.values(), key=lambda group: max(one.written_ns for one in group), reverse=True)
    return sorted(one.name for group in newest_first[max(keep_campaigns, 1) :] for one in group)
