# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the network between hosts costs a split. Private to this collection. Pure functions only.

Layer mode. The activations of each token, embedding length times 4 bytes, go from the box to each lent device and come
back from it: through the box, also between two lent devices. Where the last device is lent, what comes back of each
generated token are its logits, vocabulary size times 4 bytes. A prompt sends its activations one micro-batch after the
other. A device that holds the first layers gets the tokens' embeddings, since the box has the embedding table.
"""

from __future__ import annotations

import typing as t

from .._base import addresses
from .._base.types import Json, Mapping
from . import device_list, workload

_BYTES: t.Final = 4
#: Exchanges that the box waits for, per token or micro-batch and lent device: the rest is sent without an answer.
WAITS: t.Final = 1


class Cost(t.NamedTuple):
    """Time on the network in ms: of one generated token, and of one micro-batch of a prompt."""

    token_ms: float
    micro_batch_ms: float


def remote(endpoints: t.Iterable[str]) -> list[str]:
    """Return the endpoints of other hosts."""
    return [one for one in endpoints if not addresses.is_loopback(addresses.host_of(one))]


def protocol(links: t.Mapping[str, Mapping]) -> str:
    """Return the version of the protocol, as C(major.minor), that llama.cpp here speaks; empty where none is known.

    It has listed the devices of these servers, so it speaks the newest of theirs; lender_record wants one build of all.
    """
    known = [tuple(map(int, link["protocol"].split(".")[:2])) for link in links.values() if link["protocol"]]
    return "{}.{}".format(*max(known)) if known else ""


def cost(
    model: Mapping, layers: t.Sequence[int], ids: t.Sequence[str], links: t.Mapping[str, Mapping], tokens: int
) -> Cost:
    """Return what the network costs a split.

    C(ids) are those of the devices in order, C(links) by the endpoints of other hosts as rpc_link_info returns them,
    C(tokens) the size of a micro-batch.
    """
    used = [identity for identity, count in zip(ids, layers, strict=True) if count]
    hidden, logits = model["embedding_length"] * _BYTES, model["vocabulary_size"] * _BYTES
    token = batch = 0.0
    for identity in used:
        link = links.get(device_list.endpoint_of(identity))
        if link is None:
            continue
        back = logits if identity == used[-1] else hidden
        waited = WAITS * link["round_trip_ms"]
        token += waited + _ms(hidden, link["to_mb_per_s"]) + _ms(back, link["from_mb_per_s"])
        # of a prompt the logits of the last token alone are wanted
        last = 0 if identity == used[-1] else tokens * hidden
        batch += waited + _ms(tokens * hidden, link["to_mb_per_s"]) + _ms(last, link["from_mb_per_s"])
    return Cost(token, batch)


def _ms(size: float, mb_per_s: float | None) -> float:
    return size / (mb_per_s * 1e3) if mb_per_s else 0.0


def ordered(
    devices: t.Sequence[Json], links: t.Mapping[str, Mapping], model: Mapping, objective: Mapping
) -> list[Json]:
    """Return the devices in the order in which least crosses the network; those of one host keep theirs.

    The last device sends logits for each generated token, any other one the activations of all tokens: devices of other
    hosts come first where logits would be more. Experts in RAM are computed beside the first device, which stays.
    """
    lent = [device for device in devices if device_list.endpoint_of(str(device["id"])) in links]
    own = [device for device in devices if device not in lent]
    if not lent or not own or model.get("expert_count"):
        return list(devices)
    tokens, answers = workload.counted(
        objective["name"], int(objective["prompt_tokens"]), int(objective["generated_tokens"])
    )
    first = answers * model["vocabulary_size"] > (tokens + answers) * model["embedding_length"]
    return lent + own if first else own + lent


def named(link: Mapping) -> str:
    """Return a link as people call it."""
    if not (link["to_mb_per_s"] and link["from_mb_per_s"]):
        return f"link ({link['round_trip_ms']:.2g} ms)"
    gigabit = 8 * min(link["to_mb_per_s"], link["from_mb_per_s"]) / 1000
    usual = [rate for rate in (0.1, 1, 2.5, 5, 10, 25, 40, 100) if 0.7 * rate <= gigabit <= rate]
    name = f"{usual[0]:g} GbE" if usual else f"{gigabit:.2g} Gbit/s"
    return f"{name} link ({link['round_trip_ms']:.2g} ms)"


def alone(
    model: Mapping, links: t.Mapping[str, Mapping], prompt: int, micro_batch: int
) -> dict[str, Json]:
    """Return what the network costs each device of another host that holds all layers, by its endpoint.

    C(decode) is in ms per generated token, C(prefill) in ms per token of a prompt of that many tokens.
    """
    found = {}
    for endpoint in links:
        tokens = min(prompt, micro_batch)
        crossing = cost(model, [1], [endpoint], links, tokens)
        found[endpoint] = {"decode": crossing.token_ms, "prefill": crossing.micro_batch_ms / tokens}
    return found


def line(links: t.Mapping[str, Mapping]) -> str:
    """Return what is shown of measured links."""
    return "; ".join(f"{endpoint}: {named(link)}" for endpoint, link in links.items())


def worth(
    decision: Mapping, model: Mapping, devices: t.Sequence[Mapping], links: t.Mapping[str, Mapping], prompt_tokens: int
) -> Json | None:
    """Return what the network costs a decided split and what it buys, with C(why), a sentence; None without links.

    C(decode_percent) and C(prefill_percent) are shares of the measured times, None where nothing was measured.
    """
    if not links:
        return None
    layers, ids = decision["layers"], [str(device["id"]) for device in devices]
    endpoints = [device_list.endpoint_of(identity) for identity in ids]
    lent = [index for index, endpoint in enumerate(endpoints) if endpoint in links]
    names = " and ".join(dict.fromkeys(named(links[endpoints[index]]) for index in lent))
    used = [index for index in lent if layers[index]]
    if not used:
        why = f"the devices of other hosts hold no layer: over the {names} they would not help"
        return {"decode_percent": 0.0, "prefill_percent": 0.0, "mib": 0, "why": why}
    micro_batch = min(int(decision["micro_batch_size"]), prompt_tokens)
    found = cost(model, layers, ids, links, micro_batch)
    batches = -(-prompt_tokens // micro_batch)
    known = all(link["to_mb_per_s"] and link["from_mb_per_s"] for link in links.values())
    rates = [decision.get(f"{kind}_tokens_per_second") if known else None for kind in ("decode", "prefill")]
    decode, prefill = rates
    shares = {
        "decode_percent": None if not decode else found.token_ms * decode / 10,
        "prefill_percent": None if not prefill else found.micro_batch_ms * batches * prefill / prompt_tokens / 10,
    }
    mib = sum(int(decision["mib"][index]) for index in used)
    said = [
        f"{share:.0f} % of {what}"
        for what, share in (("prompts", shares["prefill_percent"]), ("decode", shares["decode_percent"]))
        if share is not None
    ]
    memory = f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib} MiB"
    why = f"the {names} costs {' and '.join(said) or 'an unknown share'}; it buys {memory} of memory"
    return {**shares, "mib": mib, "why": why}
