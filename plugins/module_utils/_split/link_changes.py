# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which way to a lender is slower than when it was tuned, and what that costs. Private to this collection. Pure.

Links are those of rpc_link_info. One measurement of a link takes some milliseconds, and a lender's processor may sleep
before it: only what is clearly slower is called so.
"""

from __future__ import annotations

import typing as t

from .._base import addresses
from .._base.steps import Step
from .._base.text import number
from .._base.types import Mapping
from . import deployment, network_links

#: A rate below this part of the recorded one is slow.
SLOW_RATE: t.Final = 0.7
#: A round trip of so many times the recorded one, and so many ms more, is slow.
SLOW_ROUND_TRIP: t.Final = 2.0
SLOW_ROUND_TRIP_MS: t.Final = 0.5
#: What a slow link costs at least, in percent of generation or prompts, where it is to blame for anything.
COSTLY_PERCENT: t.Final = 1.0
CURE: t.Final = (
    "look at cable, switch and speed of the port on both hosts (ethtool), and at what else uses the network; where the"
    " link stays as it is, homelab.mixed_gpu.revalidate -e retune=true splits for it"
)
_RATES: t.Final = ("to_mb_per_s", "from_mb_per_s")


class Change(t.NamedTuple):
    """The way to a lender, at the tuning and now."""

    host: str
    endpoint: str
    before: Mapping
    now: Mapping
    slower: bool
    #: What it costs more, by the placement and the speeds of the tuning: per generated token in ms and in percent, and
    #: of a prompt in percent. The percentages are None where no speed was measured.
    token_ms: float
    decode_percent: float | None
    prefill_percent: float | None

    @property
    def to_blame(self) -> bool:
        """Whether a slower link costs so much that somebody notices; also where that is not known."""
        known = [one for one in (self.decode_percent, self.prefill_percent) if one is not None]
        return self.slower and (not known or max(known) >= COSTLY_PERCENT)

    def sentence(self) -> str:
        """Return both measurements in words, and what a slower one costs; without a full stop."""
        rates = [[number(link[name], "?") for name in _RATES] for link in (self.now, self.before)]
        trips = [f"{link['round_trip_ms']:.2g} ms" for link in (self.now, self.before)]
        said = (
            f"{rates[0][0]} MB/s there and {rates[0][1]} back, {rates[1][0]} and {rates[1][1]} when it was tuned;"
            f" round trip {trips[0]}, then {trips[1]}"
        )
        if _loses(self.before, self.now):
            said += f"; packets that are lost add {self.now['stalls_ms']:.2g} ms to each exchange"
        if not self.slower:
            return f"the link to {self.host} is as it was tuned: {said}"
        share = "" if self.decode_percent is None else f" ({self.decode_percent:+.0f} %)"
        costs = [f"{self.token_ms:.2g} ms more per token{share}"] if self.token_ms > 0 else []
        costs += [f"{self.prefill_percent:.0f} % more time per prompt"] if (self.prefill_percent or 0) > 0 else []
        cost = f"; that costs {' and '.join(costs)}, by the speeds of the tuning" if costs else ""
        return f"the link to {self.host} became slow: {said}{cost}"


def recorded(entry: Mapping) -> t.Mapping[str, Mapping]:
    """Return the links that a tuning measured and priced, by the endpoint of each lender's RPC server."""
    network = entry["decision"].get("network") or {}
    return t.cast("t.Mapping[str, Mapping]", network["links"] if "work" in network else {})


def step(entry: Mapping, tolerated: bool = False) -> Step | None:
    """Return the step C(links), which measures those links again; None where none is recorded."""
    endpoints = list(recorded(entry))
    asked, label = {"endpoints": endpoints, "required": False}, "measure the links to the lenders"
    own = Step("links", "rpc_link_info", asked, label, 5 * len(endpoints), tolerated=tolerated)
    return own if endpoints else None


def compared(entry: Mapping, links: t.Mapping[str, Mapping]) -> list[Change]:
    """Return what became of the way to each lender of an entry of the host's record, in its order.

    C(links) are those of today; a lender of which none was measured is left out. Of several cards of a lender that
    one counts whose link is the slowest today.
    """
    before = recorded(entry)
    hosts = dict.fromkeys(addresses.host_of(endpoint) for endpoint in before if endpoint in links)
    return [_compared(entry, host, links) for host in hosts]


def _compared(entry: Mapping, host: str, links: t.Mapping[str, Mapping]) -> Change:
    before = recorded(entry)
    own = {name: links[name] for name in before if name in links and addresses.host_of(name) == host}
    endpoint = min(own, key=lambda name: own[name]["to_mb_per_s"] or 0.0)
    ids = [str(device["id"]) for device in entry["devices"]]
    tuned, layers = entry["decision"]["network"], deployment.layers(entry)
    asked = network_links.Work(**tuned["work"])
    then, now = (network_links.cost(tuned["model"], layers, ids, way, asked) for way in (before, {**before, **own}))
    token, batch = now.token_ms - then.token_ms, now.micro_batch_ms - then.micro_batch_ms
    decode, prefill = (entry["decision"].get(f"{kind}_tokens_per_second") for kind in ("decode", "prefill"))
    return Change(
        host, endpoint, before[endpoint], own[endpoint], any(_slower(before[name], own[name]) for name in own), token,
        token * decode / 10 if decode else None, batch / asked.tokens * prefill / 10 if prefill else None,
    )  # fmt: skip


def _slower(before: Mapping, now: Mapping) -> bool:
    rates = any(before[name] and now[name] and now[name] < SLOW_RATE * before[name] for name in _RATES)
    trip, usual = now["round_trip_ms"], before["round_trip_ms"]
    far = trip > SLOW_ROUND_TRIP_MS + usual and trip > SLOW_ROUND_TRIP * usual
    return rates or far or _loses(before, now)


def _loses(before: Mapping, now: Mapping) -> bool:
    return bool(now["stalls_ms"] > before["stalls_ms"] + SLOW_ROUND_TRIP_MS)
