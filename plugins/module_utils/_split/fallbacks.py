# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The placements that are served while a lender is absent. Private to this collection. Pure functions only.

A lender is another host whose RPC devices hold layers. Without it llama-server cannot start, so a placement over the
devices that stay is planned beside the decision: with the same context where that fits, else with the largest one.
"""

from __future__ import annotations

import typing as t

from .._base import addresses
from .._base.types import Json, Mapping
from . import context_room, device_list, memory_plan, network_links, placement, split_cost, split_problem
from .layer_split import Layers
from .types import Serving


def lenders(endpoints: t.Iterable[str]) -> dict[str, list[str]]:
    """Return the endpoints (C(host:port)) of other hosts, by host."""
    found: dict[str, list[str]] = {}
    for endpoint in network_links.remote(endpoints):
        found.setdefault(addresses.host_of(endpoint), []).append(endpoint)
    return found


def of_tuning(problem: Mapping, decision: Mapping, endpoints: t.Sequence[str]) -> list[Json]:
    """Return the placement without each lender, then without all, for the entry (docs/data_formats.md).

    Lenders to which the server does not connect since nothing is on them are as if they were not there.
    Where nothing fits without them, its C(placement) is None, and C(why) says so. Raises UserError as read_problem.
    """
    draft = ((decision.get("speculation") or {}).get("served") or {}).get("device")
    places = placement.by_id(problem["devices"], decision["layers"])
    endpoints = placement.without_idle_lenders(endpoints, places, draft)
    hosts = list(lenders(endpoints))
    absences = [[host] for host in hosts] + ([hosts] if len(hosts) > 1 else [])
    return [_without(problem, decision, endpoints, absent) for absent in absences]


def _without(problem: Mapping, decision: Mapping, endpoints: t.Sequence[str], absent: t.Sequence[str]) -> Json:
    """Return the placement without some lenders."""
    gone = {endpoint for host in absent for endpoint in lenders(endpoints)[host]}
    stay = [name for name in endpoints if name not in gone]
    kept = [
        index for index, device in enumerate(problem["devices"])
        if device["backend"] != "RPC" or device_list.endpoint_of(device["id"]) in stay
    ]  # fmt: skip
    names = " and ".join(absent)
    base: Json = {"absent": list(absent), "rpc_endpoints": stay}
    nothing: Json = {"placement": None, "context_size": None, "mib": None, "slower_percent": None}
    if decision.get("experts_in_ram"):
        why = f"without {names} the server waits: a placement with weights in RAM is planned over all devices alone"
        return {**base, **nothing, "why": why}
    asked = t.cast("Serving", {**problem["serving"], "micro_batch_size": decision["micro_batch_size"]})
    budgets = memory_plan.budgets_mib([problem["devices"][index] for index in kept], problem["reserve_mib"])
    serving, room = _roomy(problem, asked, budgets)
    if room is None:
        return {**base, **nothing, "why": f"without {names} the server waits: no context fits on what is left"}
    read = split_problem.read_problem(problem)
    layers = _best(room, _cost(read, decision, kept))
    context = serving["context_size"]
    smaller = f", with a context of {context} instead of {asked['context_size']}" if serving != asked else ""
    devices = [problem["devices"][index] for index in kept]
    counted = [f"{count} on {device['device']}" for device, count in zip(devices, layers, strict=True) if count]
    places = placement.by_id(devices, layers)
    return {
        **base,
        "rpc_endpoints": placement.without_idle_lenders(stay, places, None),
        "placement": places,
        "context_size": context,
        "mib": room.plan.mib(layers),
        "slower_percent": _slower(read, decision, kept, layers),
        "why": f"without {names} the layers are {' and '.join(counted)}{smaller}",
    }


def _roomy(problem: Mapping, asked: Serving, budgets: t.Sequence[int]) -> tuple[Serving, context_room.Room | None]:
    """Return the profile as asked, or with the largest context that fits on what is left; no room where none does."""
    if not budgets:
        return asked, None
    room = context_room.Room(problem["model"], asked, budgets)
    if room.fits:
        return asked, room
    most = context_room.largest(problem["model"], asked, budgets)
    if not most:
        return asked, None
    serving = context_room.with_context(asked, most)
    return serving, context_room.Room(problem["model"], serving, budgets)


def _cost(read: split_problem.Problem, decision: Mapping, kept: t.Sequence[int]) -> split_cost.Cost | None:
    """Return what the objective costs on some of the devices by the fit of the tuning; None without a fit."""
    fit = decision.get("fit") or {}
    costs = {
        kind: [fit[f"{kind}_ms_per_layer"][index] for index in kept] if fit.get(f"{kind}_ms_per_layer") else None
        for kind in ("decode", "prefill")
    }
    if any(costs[kind] is None for kind in read.kinds):
        return None
    tested = read.prefill_test.n_prompt if read.prefill_test else 1
    overlap = fit.get("prefill_overlap")
    return split_cost.workload_cost(
        costs["decode"], costs["prefill"], *read.counted(read.objective), tested, decision["micro_batch_size"],
        1.0 if overlap is None else overlap, read.weights,
    )  # fmt: skip


def _best(room: context_room.Room, cost: split_cost.Cost | None) -> Layers:
    """Return the cheapest split that fits; the roomiest where no cost is known."""
    if cost is None:
        return room.roomiest()
    if len(room.budgets) > 2:
        return room.search.best(cost) or room.roomiest()
    return min(room.listed(), key=lambda layers: (cost.ms(layers), layers))


def _slower(read: split_problem.Problem, decision: Mapping, kept: t.Sequence[int], layers: Layers) -> float | None:
    """Return how much longer the objective takes than with all devices, in percent by the fit; None where unknown."""
    everything, left = _cost(read, decision, range(len(read.names))), _cost(read, decision, kept)
    if everything is None or left is None or decision["split_mode"] != "layer":
        return None
    return round(100 * (left.ms(layers) / everything.ms(decision["layers"]) - 1), 1)


def line(fallback: Mapping) -> str:
    """Return what a fallback is, as a line for people."""
    speed = _speed(fallback)
    return f"W{fallback['why'][1:]}{speed and f' ({speed})'}."


def _speed(fallback: Mapping) -> str:
    """Return how much slower a fallback is, in words; empty where that is not known."""
    slower = fallback["slower_percent"]
    return "" if slower is None else f"{abs(slower):g} % {'slower' if slower >= 0 else 'faster'} by the fit"


def entry_without(entry: Mapping, fallback: Mapping) -> Json:
    """Return the recorded deployment as it is served by a fallback that has a placement.

    It drafts nothing: what a draft takes of the devices was planned for all of them.
    """
    there = {place["id"] for place in fallback["placement"]}
    return {
        **{name: value for name, value in entry.items() if name != "speculation"},
        "serving": {**entry["serving"], "context_size": fallback["context_size"]},
        "devices": [device for device in entry["devices"] if device["id"] in there],
        "placement": fallback["placement"],
        "split_mode": "layer",
        "rpc_endpoints": fallback["rpc_endpoints"],
        "decision": {**entry["decision"], "mib": fallback["mib"]},
    }


def ways(entry: Mapping) -> list[Mapping]:
    """Return a deployment and how it is served without each of its lenders, the most lenders first.

    A placement without one lender may leave another idle: it must not be chosen where that other one alone is absent.
    """
    planned = [fallback for fallback in entry.get("fallbacks") or [] if fallback["placement"]]
    planned.sort(key=lambda fallback: -len(fallback["rpc_endpoints"]))
    return [entry, *(entry_without(entry, fallback) for fallback in planned)]


def serving_without(entry: Mapping, absent: t.Collection[str]) -> Json | None:
    """Return the deployment as it is served without some endpoints; None where nothing is recorded for that."""
    fallback = _of(entry, absent)
    return None if fallback is None else entry_without(entry, fallback)


def sentence(entry: Mapping, absent: t.Collection[str], since: str, waits: bool) -> str:
    """Return what a server without some endpoints means to its owner, empty where none is absent.

    C(since) is when it was started so, C(waits) says that it serves nothing until they answer.
    """
    if not absent:
        return ""
    hosts = list(dict.fromkeys(map(addresses.host_of, absent)))
    named = f"lender{'s' if len(hosts) > 1 else ''} {' and '.join(hosts)}"
    if waits:
        return f"It waits for {named}: nothing fits without."
    words = f"It serves without {named}"
    words += f" since {since}" if since else ""
    fallback = _of(entry, absent)
    if fallback is None:
        return f"{words}."
    speed, context = _speed(fallback), fallback["context_size"]
    words += f", {speed}" if speed else ""
    if context != entry["serving"]["context_size"]:
        words += f", with a context of {context} instead of {entry['serving']['context_size']}"
    return f"{words}."


def _of(entry: Mapping, absent: t.Collection[str]) -> Mapping | None:
    """Return the fallback without exactly these endpoints that can be served."""
    for fallback in entry.get("fallbacks") or []:
        gone = set(placement.served_endpoints(entry)) - set(fallback["rpc_endpoints"])
        if gone == set(absent) and fallback["placement"]:
            return fallback
    return None
