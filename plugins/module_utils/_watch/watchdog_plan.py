# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a host's server is watched, and for how long nothing may move. Private to this collection. Pure.

A batch of a prompt is the longest step that a server makes between two changes of its counters. The record says how
long a token of a prompt took at most; deeper in the context it takes longer than what was recorded, hence the factor.
"""

from __future__ import annotations

import ipaddress
import math
import typing as t
import urllib.parse

from .._base.types import Mapping
from .._split import fallbacks, network_links, placement

BATCHES: t.Final = 3


class Plan(t.NamedTuple):
    """What a watchdog is to do on a host."""

    wanted: bool
    why: str  # one sentence
    stall_seconds: int


def slowest_ms_per_token(loads: t.Iterable[Mapping], shortest_prompt: int) -> float | None:
    """Return how long a token of a prompt took at most, of measured loads; None where none measured a prompt.

    Prompts shorter than C(shortest_prompt) tokens say little, and count only where there is no other.
    """
    found: list[tuple[int, float]] = []
    for load in loads:
        if load.get("status") != "ok":
            continue
        for row in load["results"]:
            tokens = int(row["n_prompt"])
            if row["kind"] == "prefill" and tokens > 0 and row["samples_ms"]:
                found.append((tokens, max(row["samples_ms"]) / tokens))
    long = [ms for tokens, ms in found if tokens >= shortest_prompt]
    return max(long or [ms for _tokens, ms in found], default=None)


def plan(state: str, entry: Mapping | None, loads: t.Iterable[Mapping], least_seconds: int) -> Plan:
    """Return whether to watch the server of a recorded deployment.

    C(state) is auto, present or absent, C(entry) the recorded deployment of llama.cpp or None, C(loads) those of its
    baseline, C(least_seconds) the shortest time after which it hangs. Raises KeyError for an entry that is not whole.
    """
    if entry is None:
        why = "no deployment of llama.cpp is served, and of other engines progress cannot be read"
        return Plan(False, why, least_seconds)
    serving = entry["serving"]
    batch = int(serving["batch_size"])
    slowest = slowest_ms_per_token(loads, int(serving["micro_batch_size"]))
    seconds = max(least_seconds, math.ceil(BATCHES * batch * (slowest or 0.0) / 1000))
    if state != "auto":
        return Plan(state == "present", f"server_watchdog_state is {state}", seconds)
    if entry["split_mode"] == "tensor":
        return Plan(True, "the devices share each layer (tensor mode)", seconds)
    count = len(placement.served_endpoints(entry))
    if count:
        return Plan(True, f"the server uses {count} RPC device{'' if count == 1 else 's'}", seconds)
    return Plan(
        False, "the server uses neither tensor mode nor RPC (server_watchdog_state: present watches it)", seconds
    )


def reachable(url: str, lenders: t.Iterable[str] = ()) -> list[str]:
    """Return what IPAddressAllow= needs to reach a URL on its own host, and endpoints of other hosts.

    It is any where a name may be anything.
    """
    found = ["localhost"]
    for host in (urllib.parse.urlsplit(url).hostname or "localhost", *fallbacks.lenders(lenders)):
        if host == "localhost":
            continue
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            return ["any"]
        found += [] if address.is_loopback else [str(address)]
    return list(dict.fromkeys(found))


def lender_placements(entry: Mapping | None) -> list[list[str]]:
    """Return the endpoints of other hosts that each recorded way to serve a deployment uses.

    The preferred way is the first and uses all of them. Without any the list is empty.
    """
    served = fallbacks.ways(entry) if entry and entry.get("fallbacks") else []
    return [network_links.remote(placement.served_endpoints(way)) for way in served]
