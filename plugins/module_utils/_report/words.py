# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Sentences about a recorded split. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.text import less_time, number, vector
from .._base.types import Mapping
from .._models import transfer
from .._split import expert_placement
from .recorded import engine_name, when

#: An interval of the gain that reaches further says nothing.
_WIDEST_PERCENT: t.Final = 100.0


def effort_words(entry: Mapping) -> str:
    """Return in one sentence how long the tuning took, as far as it is recorded."""
    decision, before = entry["decision"], str(entry["campaign"]).removeprefix("after ")
    which = "The first tuning" if before == "nothing" else f"The tuning after that of {when(before)} UTC"
    effort = decision.get("effort")
    if effort is None:
        loads = decision.get("loads_used")
        return f"{which} took {loads} loads of the model." if loads else ""
    kept = f", of which {effort['kept_loads']} were kept of a run that was interrupted" if effort["kept_loads"] else ""
    measured, leased = (transfer.duration_text(effort[f"{name}_seconds"]) for name in ("measuring", "leased"))
    return (
        f"{which} measured {measured} in {effort['loads']} loads{kept}. It had the devices for {leased}: so long a"
        " server that runs is stopped."
    )


def objective_words(objective: Mapping) -> str:
    """Return in words what was optimised."""
    prompt, generated = objective["prompt_tokens"], objective["generated_tokens"]
    words = {
        "request": f"a request of {prompt} prompt and {generated} generated tokens",
        "ttft": f"the first token after a prompt of {prompt} tokens",
        "decode": "generating one token",
        "agent": "generating one token for an agent",
        "prefill": "reading a prompt",
    }.get(objective["name"], str(objective["name"]))
    depth = objective.get("depth_tokens")
    return f"{words}, {depth} tokens deep in a conversation" if depth else words


def placement_words(entry: Mapping) -> str:
    """Return where the layers are: 45 of 81 layers on CUDA0 and 36 on CUDA1; in tensor mode, 5/8 of each on CUDA0."""
    decision = entry["decision"]
    total = sum(decision["layers"])
    parts = [
        f"{count} on {device['device']}"
        for count, device in zip(decision["layers"], entry["devices"], strict=True)
        if count > 0
    ]
    if decision["split_mode"] == "tensor":
        shares = [part.replace(" on ", f"/{total} on ", 1) for part in parts]
        return f"of every layer {', '.join(shares[:-1])} and {shares[-1]} (split mode tensor)"
    experts = _experts_words(decision.get("experts_in_ram"))
    if len(parts) == 1:
        return f"all {total} layers {parts[0].split(' ', 1)[1]}{experts}"
    first = parts[0].replace(" on ", f" of {total} layers on ", 1)
    return ", ".join([first, *parts[1:-1]]) + f" and {parts[-1]}{experts}"


def _experts_words(experts: Mapping | None) -> str:
    """Return what is in RAM: C(, with the experts of 12 blocks in RAM); nothing where nothing is."""
    if not experts:
        return ""
    partial = experts["partial"]
    blocks = expert_placement.blocks_in_words(len(experts["blocks"]), partial and partial["parts"])
    name = expert_placement.NAMES[experts["kind"]]
    return f", with the {name} of {blocks} in RAM"


def gain_words(entry: Mapping) -> str:
    """Return in one sentence what the chosen split is worth against the engine's own."""
    decision, engine = entry["decision"], engine_name(entry)
    gain, bounds = decision.get("gain_over_default_percent"), decision.get("gain_interval_percent")
    default, experts = decision.get("default_layers"), decision.get("experts_in_ram")
    name = f"{engine}'s own placement of experts" if experts else f"{engine}'s default split"
    if decision["verdict"] == "only_choice":
        return "It is the only split that was possible, so there is nothing to compare it with."
    if default is None and experts and experts["kind"] == expert_placement.FFN:
        return f"{engine} by itself leaves whole layers of such a model in RAM, which is not measured."
    if default is None:
        return f"{name} {'is not known' if experts else 'does not fit in memory here'}."
    if list(default) == list(decision["layers"]) and (not experts or gain == 0.0):
        return f"{engine} would have chosen the same split ({vector(default)})."
    if gain is None:
        return f"It was not compared with {name} {vector(default)}."
    size, word, interval = less_time(gain, *(bounds or ()))
    # beyond that, the loads were too few or too different to say anything
    told = max(map(abs, bounds or [0.0])) < _WIDEST_PERCENT
    within = f" (95% interval {f'{interval}%' if told else 'too wide to tell'})" if bounds else ""
    difference = f"{size}% {word} time"
    if decision["verdict"] == "faster":
        return f"It takes {difference} than {name} {vector(default)}{within}."
    if decision["verdict"] == "no_difference":
        return f"No difference that matters to {name} {vector(default)}: {difference}{within}."
    return f"Whether it beats {name} {vector(default)} is not settled: {difference}{within}."


def verdict_words(entry: Mapping) -> str:
    """Return the sentence that the report opens with."""
    opening = placement_words(entry)
    return f"{opening[0].upper()}{opening[1:]}. {gain_words(entry)}"


def later_stages(decision: Mapping) -> list[str]:
    """Return a sentence each on micro-batch, tensor mode, speculation and network, where measured or asked for."""
    found = []
    if (decision.get("micro_batches") or {}).get("loads"):
        found.append(f"Micro-batch: {decision['micro_batches']['why']}")
    tensor = decision.get("tensor")
    if tensor:
        trial = (tensor.get("trial") or {}).get("results") or [{}]
        words = tensor["why"]
        if trial[0].get("answers"):
            words += f"; its log-probabilities differ by {number(trial[0]['answers']['difference_percent'])} %"
        found.append(f"Split mode tensor: {words}")
    if decision.get("speculation"):
        found.append(f"Speculation: {decision['speculation']['why']}")
    if decision.get("network"):
        found.append(f"Network: {decision['network']['why']}")
    return found
