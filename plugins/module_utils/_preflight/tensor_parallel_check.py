# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What vLLM or SGLang with tensor parallelism means on unlike cards, and how to run them instead. Private to this
collection. Pure functions.

Tensor parallelism gives every card the same share of every layer: neither engine can divide it unevenly. Pipeline
parallelism gives each card whole layers, as many as one says.
"""

from __future__ import annotations

import typing as t

from .._base.text import card_name
from .._base.types import Json
from .._split import known_devices, layer_split, pipeline_start

#: Layers of the model, where nothing is recorded for these cards.
ASSUMED_LAYERS: t.Final = 80
#: What was measured and what is only said; the collection has measured neither.
MEASURED = (
    "measured by others (club-3090): with vLLM an RTX 5090 and a 3090 Ti gave 68.2 tokens per second, two RTX 3090"
    " 68.5, so usually the pair runs at the slower card's pace, with prompts 29 to 33 % slower; a model of experts fell"
    " to half under power limits of 400 and 290 W; that it is 2 to 3 times slower than a layer split is a claim of"
    " guides that these runs do not bear out"
)


def unlike(gpus: t.Sequence[t.Mapping[str, t.Any]]) -> bool:
    """Whether the cards differ in name or compute capability."""
    return len({(gpu.get("name"), gpu.get("compute_capability")) for gpu in gpus}) > 1


def visible(gpus: t.Sequence[t.Mapping[str, t.Any]], engine: t.Mapping[str, t.Any]) -> list[t.Mapping[str, t.Any]]:
    """Return the cards that an engine may use, as far as its environment says; all of them where it does not.

    `gpus` are in PCI order. Numbers say which cards they mean only with CUDA_DEVICE_ORDER=PCI_BUS_ID: without it CUDA
    counts from the fastest card.
    """
    names = [name.strip() for name in (engine.get("visible_devices") or "").split(",") if name.strip()]
    if not names:
        return list(gpus)
    if all(name.isdigit() for name in names):
        by_bus = engine.get("device_order") == "PCI_BUS_ID" or len(names) >= len(gpus)
        return [gpus[int(name)] for name in names if int(name) < len(gpus)] if by_bus else list(gpus)
    found = [gpu for name in names for gpu in gpus if (gpu.get("id") or "").startswith(name)]
    return found or list(gpus)


def order(gpus: t.Sequence[t.Mapping[str, t.Any]]) -> list[t.Mapping[str, t.Any]]:
    """Return the cards as vLLM should count them: the oldest compute capability first.

    vLLM 0.33 picks kernels by the capability of its first device for all workers, so a newer card in front selects FP8
    kernels that an RTX 3090 does not have.
    """
    return sorted(gpus, key=lambda gpu: _numbers(gpu.get("compute_capability")))


def _numbers(text: str | None) -> tuple[int, ...]:
    return tuple(int(part) for part in (text or "").split(".") if part.isdigit())


def partition(gpus: t.Sequence[t.Mapping[str, t.Any]], recorded: t.Any) -> Json:
    """Return how many whole layers each card should get: {counts, layers, source}, counts in the order of `gpus`.

    `recorded` is the host fact mixed_gpu, or anything else where there is none; a deployment over exactly these cards
    says how many layers each holds, the active one before others. Without one, 80 layers are shared by memory
    bandwidth. The output layer sits on vLLM's last stage, so that one gets one layer less. Every card gets a layer at
    least. Raises ValueError where there are more cards than layers.
    """
    entry = _deployment(gpus, recorded)
    if entry is not None:
        weights = [float(_placed(entry)[gpu["id"]]) for gpu in gpus]
        total = int(entry["model"]["block_count"])
        source = f"the split that was measured here for {entry['model']['id']}, whose {total} layers are assumed"
    else:
        devices = known_devices.host_devices([], gpus)
        speeds = [(device["bandwidth_gb_per_s"] or 0) * device["fraction"] for device in devices]
        weights = speeds if all(speeds) else [1.0] * len(speeds)
        total = ASSUMED_LAYERS
        source = "the cards' memory bandwidth, not measured" if all(speeds) else "nothing: their speed is not known"
        source += f", for a model of {total} layers"
    if len(gpus) > total:
        raise ValueError(f"{total} layers do not give each of {len(gpus)} cards one")
    counts = list(layer_split.layers_from_shares(weights, total + 1))
    counts[-1] -= 1
    for number, count in enumerate(counts):
        if count < 1:
            counts[counts.index(max(counts))] -= 1 - count
            counts[number] = 1
    return {"counts": counts, "layers": total, "source": source}


def _placed(entry: t.Mapping[str, t.Any]) -> dict[str, int]:
    return {row["id"]: int(row["layers"]) for row in entry["placement"] if row["layers"]}


def _deployment(gpus: t.Sequence[t.Mapping[str, t.Any]], recorded: t.Any) -> t.Mapping[str, t.Any] | None:
    """Return the recorded deployment over exactly these cards, the active one first. A damaged record counts as none.

    What does not add up to the model's layers is no layer split: in split mode tensor a placement holds shares.
    """
    try:
        entries = sorted(recorded["models"].items(), key=lambda item: item[0] != recorded.get("active"))
        cards = {gpu["id"] for gpu in gpus}
        return next(
            (
                entry for _name, entry in entries
                if set(_placed(entry)) == cards and sum(_placed(entry).values()) == entry["model"]["block_count"] + 1
            ),
            None,
        )
    except (KeyError, TypeError, AttributeError):
        return None


def instead(
    engine: t.Mapping[str, t.Any], gpus: t.Sequence[t.Mapping[str, t.Any]], recorded: t.Any, p2p: bool
) -> str:
    """Return what to run instead, in one sentence: environment, command, and where the layer numbers come from."""
    cards = order(gpus)
    try:
        plan = partition(cards, recorded)
    except ValueError as error:
        return f"serve the model from one card, because {error}"
    variables = pipeline_start.environment(engine["engine"], cards, plan["counts"], p2p)
    names = ", ".join(f"{count} on the {short_name(gpu)}" for gpu, count in zip(cards, plan["counts"], strict=True))
    return (
        "pipeline parallelism gives each card as many layers as suit it: "
        + " ".join(f"{key}={value}" for key, value in variables.items())
        + f" {pipeline_start.command(engine['engine'], engine.get('model'), len(cards))}"
        + f" ({names}, from {plan['source']}; the numbers must add up to the model's layers, here {plan['layers']}"
        + ("; docs/vllm.md of the collection explains each word)" if engine["engine"] == "vllm" else ")")
    )


def short_name(gpu: t.Mapping[str, t.Any]) -> str:
    """A card's name without its maker."""
    return card_name(gpu.get("name") or gpu.get("id") or "unnamed card")


def where(engine: t.Mapping[str, t.Any]) -> str:
    """Return which program of the host is meant, by unit and process."""
    name = {"vllm": "vLLM", "sglang": "SGLang"}[engine["engine"]]
    return f"{name} ({engine['unit'] + ', ' if engine['unit'] else ''}pid {engine['pid']})"


def judge(
    engines: t.Sequence[t.Mapping[str, t.Any]], gpus: t.Sequence[t.Mapping[str, t.Any]], recorded: t.Any, p2p: bool
) -> list[Json]:
    """Return {ok, detail, cure} for each engine of other_engines.running.

    `gpus` are the host's cards in PCI order, of gpu_facts, or dicts with a name where there is no driver yet; `p2p` is
    whether they reach each other's memory. Tensor parallelism over unlike cards is not ok, and neither is a pipeline
    over unlike cards whose layers are shared out evenly because nothing says otherwise. What was measured is said once,
    of the first that it is about.
    """
    found: list[Json] = []
    for engine in engines:
        cards = visible(gpus, engine)
        tensor, stages = engine.get("tensor_parallel_size") or 1, engine.get("pipeline_parallel_size") or 1
        names = " and ".join(short_name(gpu) for gpu in cards)
        if tensor > 1 and unlike(cards):
            told = any(MEASURED in each["detail"] for each in found)
            detail = f"{where(engine)} splits each layer evenly over {names} (tensor parallel {tensor})"
            detail += "" if told else f"; {MEASURED}"
        elif stages > 1 and unlike(cards) and not engine.get("layer_partition"):
            detail = f"{where(engine)} gives {names} as many layers each"
        else:
            sizes = f"tensor parallel {tensor}, pipeline parallel {stages}"
            found.append({"ok": True, "detail": f"{where(engine)}: {sizes} on {names or 'no card'}", "cure": None})
            continue
        found.append({"ok": False, "detail": detail, "cure": instead(engine, cards, recorded, p2p)})
    return found
