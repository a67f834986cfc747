# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What changed between two configurations of a host, and between two baselines. Private to this collection.

Pure functions only. A configuration is what baselines.configuration returns.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import load_tests, speed


def signed(percent: float) -> str:
    """Return a change of a time in words: C(8.3 % more time)."""
    return f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'} time"


def interval(low: float | None, high: float | None, what: str = "98 % interval") -> str:
    """Return an interval in words: C(98 % interval 1.2 to 3.4 %)."""
    if low is None or high is None:
        return f"no {what}: too few samples, or too noisy"
    return f"{what} {low:.1f} to {high:.1f} %"


def changes(before: Mapping, now: Mapping) -> list[Json]:
    """Return what differs between two configurations: C({part, before, now}) each, cards told apart by UUID."""
    found = []
    for part in sorted(set(before) | set(now)):
        old, new = before.get(part), now.get(part)
        if old == new:
            continue
        if part == "gpus":
            found += _card_changes(old or [], new or [])
        elif part == "lenders":
            found += _lender_changes(old or {}, new or {})
        elif part == "serving":
            found += _field_changes("serving.{}", old or {}, new or {})
        else:
            found.append({"part": part, "before": old, "now": new})
    return found


def _field_changes(name: str, before: Mapping, now: Mapping) -> list[Json]:
    """Return a change per field that differs; C(name) has a place for the field."""
    return [
        {"part": name.format(field), "before": before.get(field), "now": now.get(field)}
        for field in sorted(set(before) | set(now))
        if before.get(field) != now.get(field)
    ]


def _lender_changes(before: Mapping, now: Mapping) -> list[Json]:
    """Return what changed on hosts that lend devices; which of them do is part of the endpoints."""
    found: list[Json] = []
    for name in sorted(set(before) & set(now)):
        old, new = before[name], now[name]
        own = _card_changes(old["cards"], new["cards"])
        own += _field_changes("{}", *({"driver_version": one["driver_version"]} for one in (old, new)))
        found += [{**change, "part": f"{change['part']} of {name}"} for change in own]
    return found


def _card_changes(before: t.Sequence[Mapping], now: t.Sequence[Mapping]) -> list[Json]:
    found: list[Json] = []
    old, new = ({card["id"]: card for card in cards} for cards in (before, now))
    for card_id, card in old.items():
        if card_id in new:
            found += _field_changes(f"{{}} of {card_id}", card, {name: new[card_id].get(name) for name in card})
        else:
            found.append({"part": f"card {card_id}", "before": card["name"], "now": None})
    found += [
        {"part": f"card {card_id}", "before": None, "now": card["name"]}
        for card_id, card in new.items()
        if card_id not in old
    ]
    order_before, order_now = (
        [card_id for card_id in old if card_id in new],
        [card_id for card_id in new if card_id in old],
    )
    if order_before != order_now:
        found.append({"part": "order of the cards", "before": order_before, "now": order_now})
    return found


def since(before: Mapping | None, after: Mapping) -> str | None:
    """Return in one sentence how the speed changed from one baseline to the next, or None without a former one.

    The split may be another: compared is the speed of what is served. The interval is that of a revalidation.
    """
    if before is None:
        return None
    said = []
    for key in load_tests.keys(after["loads"]):
        old, new = load_tests.samples(before["loads"], key), load_tests.samples(after["loads"], key)
        if old and new:
            change = speed.compare(old, new, 0.0)
            within = interval(change.low, change.high)
            if change.verdict in ("regressed", "improved"):
                said.append(f"{load_tests.test_name(key)} takes {signed(change.percent)} ({within})")
            else:
                said.append(f"{load_tests.test_name(key)} is the same within noise ({within})")
    moved = ", ".join(f"{c['part']} {c['before']} -> {c['now']}" for c in _named(before, after))
    speeds_now = "; ".join(said) or "nothing comparable was measured"
    return f"Against the baseline of {before['recorded_at']}: {speeds_now}. Changed since: {moved or 'nothing'}."


def _named(before: Mapping, after: Mapping) -> list[Json]:
    """Return the changes of two baselines' configurations, short enough for a sentence."""
    moved = changes(before["configuration"], after["configuration"])
    for change in moved:
        if change["part"] == "placement":
            for name in ("before", "now"):
                change[name] = "/".join(str(place["layers"]) for place in change[name] or [])
    return moved
