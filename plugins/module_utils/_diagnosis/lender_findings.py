# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What holds up a box on the other side of the network: a link, or a lender. Private to this collection.

Pure functions only. The diagnosis of the box itself comes first; these findings are added to it.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import lent_devices, link_changes
from . import card_findings, diagnosis
from .finding import finding

_CURE_SLOW: t.Final = (
    "see on that host what else computes (top, nvidia-smi), its power limits and its heat;"
    " homelab.mixed_gpu.revalidate -e revalidate_measure=true measures each device alone"
)
_UNKNOWN: t.Final = lent_devices.Unseen("it is not in the inventory", "add it there, under this name")
_RPC_SERVER: t.Final = "ggml-rpc-server"


class Group(t.NamedTuple):
    """What was seen of the lenders of a box."""

    #: Those of the record, by name (split_record), and what each was at the baseline (lent_devices.configuration).
    recorded: t.Mapping[str, Mapping]
    before: t.Mapping[str, Mapping]
    looks: lent_devices.Looks
    #: What rpc_link_info returned; None where the links were not measured.
    measured: Mapping | None
    #: Why they were not.
    why_not: str


def added(judged: Mapping, entry: Mapping, group: Group, tolerance_percent: float) -> Json:
    """Return the diagnosis of a box with what was found of its lenders; what explains the slowness comes first.

    C(judged) is of the module llama_server_diagnosis, C(entry) the recorded deployment.
    """
    links = link_changes.compared(entry, (group.measured or {}).get("links", {}))
    cards = _cards(group)
    found = [
        *_links(links, (group.measured or {}).get("unmeasured", {})),
        *_slow_hosts(judged, links, group, [one for one in cards if one["severity"] != "ok"], tolerance_percent),
        *cards,
        *judged["findings"],
    ]
    said = [f"{link.sentence()[0].upper()}{link.sentence()[1:]}." for link in links]
    shown = {**judged["cards"], "lent": _at_work(group)}
    return diagnosis.with_findings({**judged, "lenders": said or [group.why_not], "cards": shown}, found)


def _links(links: t.Iterable[link_changes.Change], unmeasured: t.Mapping[str, str]) -> list[Json]:
    found = [
        finding(
            "network", "link", "problem" if link.to_blame else "note" if link.slower else "ok", link.sentence(),
            link_changes.CURE if link.to_blame else None,
        )
        for link in links
    ]  # fmt: skip
    return found + [
        finding("network", "link", "problem", why.rstrip("."), None) for why in unmeasured.values()
    ]


def _slow_hosts(
    judged: Mapping, links: t.Sequence[link_changes.Change], group: Group, hints: t.Sequence[Mapping], tolerance: float
) -> list[Json]:
    """Return the lenders where tokens take more time than the box's own devices and the links account for.

    What happens on a lender is not seen from here, so this is what remains. It has to be the larger part: of the box's
    devices as much as the tolerance may be unseen, and what a link costs is reckoned.
    """
    phase = next((one for one in judged["phases"] if one["kind"] == "decode"), None)
    if phase is None or phase["verdict"] != "slower" or not links:
        return []
    lent = {server["endpoint"] for lender in group.recorded.values() for server in lender["servers"]}
    own = [row for row in phase["devices"] if row["id"] not in lent]
    if not all(row["seen"] for row in own):
        return []
    more_ms = phase["ms"] - phase["expected_ms"]
    known = [max(0.0, row["ms"] * (1 + tolerance / 100) - row["expected_ms"]) for row in own]
    known += [max(0.0, link.token_ms) for link in links if link.slower]
    if 2 * sum(known) >= more_ms:
        return []
    names = [name for name, one in group.recorded.items() if _computes(one, phase)]
    if not names:
        return []
    detail = (
        f"a token takes {phase['change_percent']:.0f} % more time than recorded, which this host's devices and the"
        f" link{'s' * (len(links) > 1)} do not explain, so it computes slower"
    )
    words = [f"{hint['subject']}: {hint['detail']}" for hint in hints]
    detail += f" ({'; '.join(words)})" if words else ""
    return [finding(" or ".join(names), "slower", "problem", detail, _CURE_SLOW)]


def _computes(lender: Mapping, phase: Mapping) -> bool:
    """Return whether a lender holds layers of what is served."""
    there = {row["id"] for row in phase["devices"]}
    return any(server["endpoint"] in there for server in lender["servers"])


def _lent(name: str, group: Group) -> list[Json]:
    """Return the cards that a lender lends, as they were seen; none where they were not."""
    lent = {server["card"]["id"] for server in group.recorded[name]["servers"] if server["card"]}
    gpus = group.looks.gpus.get(name) or {"gpus": []}
    return [gpu for gpu in gpus["gpus"] if gpu["id"] in lent]


def _at_work(group: Group) -> Json:
    """Return what the cards of lenders did while the server worked, as the diagnosis has it of cards of the box."""
    return {
        card_findings.called(gpu, {gpu["id"]: name}): {"sampled": gpu["sampled"], "throttled_percent": None}
        for name in group.recorded for gpu in _lent(name, group) if gpu.get("sampled")
    }  # fmt: skip


def _cards(group: Group) -> list[Json]:
    """Return the findings about the cards of lenders, their driver, and what else uses them."""
    found: list[Json] = []
    for name, lender in group.recorded.items():
        gpus = group.looks.gpus.get(name)
        if gpus is None:
            why, cure = group.looks.unseen.get(name, _UNKNOWN)
            found.append(finding(name, "seen", "note", f"its cards are not seen: {why}", cure))
        elif gpus["available"]:
            before = group.before.get(name) or {"driver_version": None, "cards": []}
            found += _of_lender(name, _lent(name, group), gpus, before)
        elif any(server["card"] for server in lender["servers"]):
            found.append(finding(name, "driver", "problem", str(gpus["reason"]), "run homelab.mixed_gpu.site"))
    return found


def _of_lender(name: str, lent: t.Sequence[Json], gpus: Mapping, before: Mapping) -> list[Json]:
    found = []
    had = before["driver_version"]
    if lent and had and gpus["driver_version"] != had:
        detail = f"its driver is {gpus['driver_version']}, at the baseline it was {had}"
        found.append(finding(name, "driver", "note", detail, "homelab.mixed_gpu.revalidate compares the speed"))
    cards = {card["id"]: card for card in before["cards"]}
    for gpu in lent:
        names = {gpu["id"]: name}
        sampled = gpu.get("sampled") or {"count": 0}
        phases = {"work": {"sampled": sampled, "throttled_percent": None}}
        found += card_findings.card(gpu, phases, cards.get(gpu["id"]), names)
        reasons = sampled.get("throttle_reasons") or gpu.get("throttle_reasons") or []
        found += [_throttle(card_findings.called(gpu, names), reason) for reason in reasons if reason != "gpu_idle"]
        found += _others(card_findings.called(gpu, names), gpu)
    return found


def _throttle(subject: str, reason: str) -> Json:
    unknown = ("note", "a reason that this release does not know", None)
    severity, meaning, cure = card_findings.THROTTLES.get(reason, unknown)
    return finding(subject, "throttle", severity, f"{reason}: {meaning}", cure)


def _others(subject: str, gpu: Mapping) -> list[Json]:
    """Return which other programs use a card that is lent."""
    others = [one for one in gpu.get("processes") or [] if _RPC_SERVER not in str(one["name"])]
    if not others:
        return []
    named = ", ".join(f"{one['name'] or 'pid ' + str(one['pid'])} ({one['memory_mib'] or '?'} MiB)" for one in others)
    return [finding(subject, "process", "note", f"{named} uses it, too", "stop that while the box serves")]
