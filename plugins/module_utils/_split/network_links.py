# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the network between hosts costs a split. Private to this collection. Pure functions only.

Layer mode. The activations of each token, embedding length times 4 bytes, go from the box to each lent device and come
back from it: through the box, also between two lent devices. With them goes the mask of attention, one number for each
token that is looked back on. Where the last device is lent, what comes back of each generated token are its logits,
vocabulary size times 4 bytes. A prompt sends its activations one micro-batch after the other, each with the graph. A
device that holds the first layers gets the tokens' embeddings, since the box has the embedding table. Of a prompt the
last block gives on the last token alone, so a device with nothing but the output layer gets no more.
"""

from __future__ import annotations

import statistics
import typing as t

from .._base import addresses
from .._base.types import Json, Mapping
from . import cost_model, device_list, memory_plan, workload

_BYTES: t.Final = 4
#: Exchanges that the box waits for, per token or micro-batch and lent device: the rest is sent without an answer.
WAITS: t.Final = 1
#: Bytes that describe one block to a lender, sent with every graph that differs from the one before: counted for b11312
#: and the architecture llama. Each micro-batch of a prompt has its own graph, a generated token has not.
GRAPH_BYTES: t.Final = 13_000
#: Bytes that the sockets of Linux take while the server computes and does not read. The box waits for what a device
#: gives back before it sends the next micro-batch, so nothing waits there for a device in front.
SOCKET_BYTES: t.Final = 4 << 20
#: What llama.cpp's RPC itself takes per token and lent device, in ms: 63 tokens per second on a card became 60 over
#: loopback (llama.cpp PR 6829), and small models on processors differ by as much. Measured speeds contain it.
RPC_MS: t.Final = 0.8
#: Networks as people call them, in Gbit/s, and what a plan takes for one that nobody has measured.
USUAL_GIGABIT: t.Final = (0.1, 1, 2.5, 5, 10, 25, 40, 100)
ASSUMED_ROUND_TRIP_MS: t.Final = 0.4
#: Of the micro-batches of a longer prompt every second, third... is averaged over.
_MOST_AVERAGED: t.Final = 4096
#: What TCP carries of the rate of a cable.
CARRIED: t.Final = 0.94


class Cost(t.NamedTuple):
    """Time on the network in ms: of one generated token, and of one micro-batch of a prompt.

    C(hidden_ms) is the part of the latter that crosses while the device computes the micro-batch before it.
    """

    token_ms: float
    micro_batch_ms: float
    hidden_ms: float = 0.0


class Work(t.NamedTuple):
    """What is computed: tokens of a micro-batch, and bytes of the mask for one of them and for a generated token."""

    tokens: int
    prompt_mask: float = 0.0
    token_mask: float = 0.0


def work(prompt: int, micro_batch: int, before: float, depth: float, fused: bool) -> Work:
    """Return what a prompt and the tokens after it are.

    C(prompt) tokens begin where C(before) are in the cache; a token is generated where C(depth) are, on average. The
    mask has 2 bytes for each token that is looked back on, 4 without flash attention (C(fused)). The micro-batches of a
    prompt look back on ever more tokens: this is their mean.
    """
    tokens = max(1, min(prompt, micro_batch))
    batches = cost_model.micro_batches(prompt, micro_batch)
    step = -(-batches // _MOST_AVERAGED)
    seen = statistics.fmean(_stepped(before + number * tokens) for number in range(1, batches + 1, step))
    one = 2 if fused else 4
    return Work(tokens, one * seen, one * _stepped(depth))


def _stepped(tokens: float) -> float:
    """Return how many tokens llama.cpp looks back on: whole steps of its cache."""
    return -(-tokens // memory_plan.CONTEXT_STEP) * memory_plan.CONTEXT_STEP


def remote(endpoints: t.Iterable[str]) -> list[str]:
    """Return the endpoints of other hosts."""
    return [one for one in endpoints if not addresses.is_loopback(addresses.host_of(one))]


def assumed(name: str) -> Json:
    """Return a link by its name, C(1gbe), as rpc_link_info would. Raises ValueError with the known ones."""
    known = {f"{rate:g}gbe": rate for rate in USUAL_GIGABIT}
    if name not in known:
        raise ValueError(f"there is no link {name!r}; known are {', '.join(known)}, named as in rtx3090@1gbe")
    mb_per_s = CARRIED * known[name] * 1000 / 8
    return {
        "protocol": "", "round_trip_ms": ASSUMED_ROUND_TRIP_MS, "stalls_ms": 0.0, "to_mb_per_s": mb_per_s,
        "from_mb_per_s": mb_per_s, "assumed": True,
    }  # fmt: skip


def protocol(links: t.Mapping[str, Mapping]) -> str:
    """Return the version of the protocol, as C(major.minor), that llama.cpp here speaks; empty where none is known.

    It has listed the devices of these servers, so it speaks the newest of theirs; lender_record wants one build of all.
    """
    known = [tuple(map(int, link["protocol"].split(".")[:2])) for link in links.values() if link["protocol"]]
    return "{}.{}".format(*max(known)) if known else ""


def cost(
    model: Mapping, layers: t.Sequence[int], ids: t.Sequence[str], links: t.Mapping[str, Mapping], asked: Work
) -> Cost:
    """Return what the network costs a split.

    C(ids) are those of the devices in order, C(links) by the endpoints of other hosts as rpc_link_info returns them.
    """
    each = costs(model, layers, [links.get(device_list.endpoint_of(identity)) for identity in ids], asked)
    return Cost(*(sum(column) for column in zip(*each, strict=True)))


def costs(
    model: Mapping, layers: t.Sequence[int], links: t.Sequence[Mapping | None], asked: Work
) -> list[Cost]:
    """Return what the network costs each device of a split; C(links) has None for the devices of the box."""
    hidden, logits = model["embedding_length"] * _BYTES, model["vocabulary_size"] * _BYTES
    result, left = [], sum(layers)
    for link, count in zip(links, layers, strict=True):
        left -= count
        if link is None or not count:
            result.append(Cost(0.0, 0.0))
            continue
        waited = WAITS * (link["round_trip_ms"] + link["stalls_ms"])
        there, back = link["to_mb_per_s"], link["from_mb_per_s"]
        if count > 1 or left:
            sent, mask = asked.tokens * (hidden + asked.prompt_mask) + GRAPH_BYTES * count, asked.token_mask
        else:  # the output layer alone looks back on nothing, and gets the last token of a prompt
            sent, mask = hidden, 0.0
        token = _ms(hidden + mask, there) + _ms(hidden if left else logits, back)
        # nothing but the output layer follows, or nothing: it wants the last token alone
        returns = left > 1
        batch = _ms(sent, there) + _ms(asked.tokens * hidden if returns else 0, back)
        aside = 0.0 if returns else _ms(min(sent, SOCKET_BYTES), there)
        result.append(Cost(waited + token, waited + batch, aside))
    return result


def _ms(size: float, mb_per_s: float | None) -> float:
    return size / (mb_per_s * 1e3) if mb_per_s else 0.0


def ordered(
    devices: t.Sequence[Json], links: t.Mapping[str, Mapping], model: Mapping, objective: Mapping, in_ram: bool
) -> list[Json]:
    """Return the devices in the order in which least crosses the network; those of one host keep theirs.

    The last device sends logits for each generated token, any other one the activations of all tokens: devices of other
    hosts come first where logits would be more. What is in RAM (C(in_ram): context_room.needs_ram) is computed beside
    the first device, which stays.
    """
    lent = [device for device in devices if device_list.endpoint_of(str(device["id"])) in links]
    own = [device for device in devices if device not in lent]
    if not lent or not own or in_ram:
        return list(devices)
    tokens, answers = workload.counted(
        objective["name"], int(objective["prompt_tokens"]), int(objective["generated_tokens"])
    )
    first = answers * model["vocabulary_size"] > (tokens + answers) * model["embedding_length"]
    return lent + own if first else own + lent


def named(link: Mapping) -> str:
    """Return a link as people call it."""
    more = ", assumed" if link.get("assumed") else ", loses packets" if link["stalls_ms"] else ""
    waited = f"({link['round_trip_ms']:.2g} ms{more})"
    if not (link["to_mb_per_s"] and link["from_mb_per_s"]):
        return f"link {waited}"
    gigabit = 8 * min(link["to_mb_per_s"], link["from_mb_per_s"]) / 1000
    usual = [rate for rate in USUAL_GIGABIT if 0.7 * rate <= gigabit <= rate]
    name = f"{usual[0]:g} GbE" if usual else f"{gigabit:.2g} Gbit/s"
    return f"{name} link {waited}"


def alone(
    model: Mapping, links: t.Mapping[str, Mapping], prompt: int, micro_batch: int
) -> dict[str, Json]:
    """Return what the network costs each device of another host that holds all layers, by its endpoint.

    C(decode) is in ms per generated token, C(prefill) in ms per token of a prompt of that many tokens.
    """
    found = {}
    for endpoint in links:
        asked = work(prompt, micro_batch, 0, 0, True)
        layers = [int(model["block_count"]) + 1]
        crossing = cost(model, layers, [endpoint], links, asked)
        found[endpoint] = {"decode": crossing.token_ms, "prefill": crossing.micro_batch_ms / asked.tokens}
    return found


def line(links: t.Mapping[str, Mapping]) -> str:
    """Return what is shown of measured links."""
    return "; ".join(f"{endpoint}: {named(link)}" for endpoint, link in links.items())


def worth(
    decision: Mapping,
    model: Mapping,
    devices: t.Sequence[Mapping],
    links: t.Mapping[str, Mapping],
    prompt_tokens: int,
    asked: Work,
) -> Json:
    """Return what the network costs a decided split and what it buys, with C(why), a sentence.

    C(prompt_tokens) and C(asked) are those of the test whose speeds the decision has. C(decode_percent) and
    C(prefill_percent) are shares of the measured times, None where nothing was measured.
    """
    layers, ids = decision["layers"], [str(device["id"]) for device in devices]
    found = cost(model, layers, ids, links, asked)
    batches = cost_model.micro_batches(prompt_tokens, asked.tokens)
    prompt_ms = batches * found.micro_batch_ms - (batches - 1) * found.hidden_ms
    known = all(link["to_mb_per_s"] and link["from_mb_per_s"] for link in links.values())
    decode, prefill = (decision.get(f"{kind}_tokens_per_second") if known else None for kind in ("decode", "prefill"))
    shares = (
        None if not decode else found.token_ms * decode / 10,
        None if not prefill else prompt_ms * prefill / prompt_tokens / 10,
    )
    return said([links.get(device_list.endpoint_of(identity)) for identity in ids], layers, decision["mib"], shares)


def said(
    links: t.Sequence[Mapping | None],
    layers: t.Sequence[int],
    mib: t.Sequence[int],
    shares: tuple[float | None, float | None],
) -> Json:
    """Return C(decode_percent), C(prefill_percent), C(mib) on devices of other hosts and C(why), a sentence.

    C(links), C(layers) and C(mib) are by device; C(shares) are of decode and of a prompt, in percent.
    """
    ways = list(dict.fromkeys(named(link) for link in links if link is not None))
    names = " and ".join(ways)
    used = [index for index, link in enumerate(links) if link is not None and layers[index]]
    if not used:
        why = f"the devices of other hosts hold no layer: over the {names} they would not help"
        return {"decode_percent": 0.0, "prefill_percent": 0.0, "mib": 0, "why": why}
    decode, prefill = shares
    both = ((prefill, "prompts"), (decode, "decode"))
    costs_of = [f"{share:.0f} % of {what}" for share, what in both if share is not None]
    bought = sum(int(mib[index]) for index in used)
    memory = f"{bought / 1024:.1f} GiB" if bought >= 1024 else f"{bought} MiB"
    verbs = ("cost", "they buy") if len(ways) > 1 else ("costs", "it buys")
    why = f"the {names} {verbs[0]} {' and '.join(costs_of) or 'an unknown share'}; {verbs[1]} {memory} of memory"
    return {"decode_percent": decode, "prefill_percent": prefill, "mib": bought, "why": why}
