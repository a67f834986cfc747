# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Experts in RAM: the blocks whose expert weights stay in host memory, where the CPU computes them.

Private to this collection. Pure functions only. A block keeps its attention, router, shared experts and KV cache on its
device. Only up, gate and down of its experts move, all of them, or, in one block at most, some. Of a dense model the
same is done with its feed-forward (FFN) weights: a block has one expert then, so to speak, that every token uses. Forms
are those of llama.cpp b11312.
"""

from __future__ import annotations

import dataclasses
import re
import typing as t

from .._base.fields import is_whole
from .._base.types import Json, Mapping
from .layer_split import Layers
from .types import Model, Serving

MIB: t.Final = 1024 * 1024

#: What stands between the overrides in each program's `-ot`. In llama-bench a comma separates whole tests.
SEPARATORS: t.Final[dict[str, str]] = {"llama_bench": ";", "llama_fit_params": ",", "llama_server": ","}

#: What is in RAM of a block: experts of a MoE, or the feed-forward weights of a dense model.
EXPERTS: t.Final = "experts"
FFN: t.Final = "ffn"
#: How sentences call that.
NAMES: t.Final[dict[str, str]] = {EXPERTS: "experts", FFN: "FFN weights"}

#: Pattern of the tensors of such blocks and parts: those of --n-cpu-moe and --n-cpu-ffn.
_TENSORS: t.Final[dict[str, str]] = {
    EXPERTS: "blk[.]({blocks})[.]ffn_({parts})_(ch|)exps",
    FFN: "blk[.]({blocks})[.]ffn_({parts})[.]",
}

#: Parts of a block's experts, as llama.cpp names their tensors: some architectures have up and gate in one.
PARTS: t.Final = ("up", "gate", "gate_up", "down")

#: What a host needs beside the weights in RAM: compute buffers, libraries, and its own programs.
RAM_KEPT_FREE_MIB: t.Final = 1024

#: serving.load_mode with experts in RAM: memory maps cannot be pinned, and double what the page cache holds.
LOAD_MODE: t.Final = "none"


@dataclasses.dataclass(frozen=True)
class PartialBlock:
    """A block of which only these parts of the experts are in RAM."""

    block: int
    parts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class ExpertPlacement:
    """Layers per device, and the blocks whose experts are in RAM: all of them, or of one block some parts.

    C(threads) of the CPU compute them; 0 where that is not chosen yet. C(no_host) keeps them out of pinned buffers,
    which llama.cpp needs to repack them for the CPU. C(override) is the `-ot` of llama.cpp's own fit as it printed it,
    which may move what no plan moves; it is empty for placements of the planner. C(kind) is EXPERTS or FFN.
    """

    layers: Layers
    blocks: tuple[int, ...]
    partial: PartialBlock | None = None
    threads: int = 0
    no_host: bool = False
    override: str = ""
    kind: str = EXPERTS

    @property
    def any(self) -> bool:
        """Whether any expert is in RAM."""
        return bool(self.blocks or self.partial or self.override)


def kind_of(model: Mapping) -> str:
    """Return what of a model may be in RAM: EXPERTS or FFN."""
    return EXPERTS if model.get("expert_count") else FFN


def name_of(model: Mapping) -> str:
    """Return how sentences call what of a model may be in RAM."""
    return NAMES[kind_of(model)]


def parts_of(model: Mapping) -> dict[str, list[int]]:
    """Return the bytes of each block that may be in RAM, by part; empty where nothing may."""
    return model.get("block_ffn_bytes") or {}


def blocks_in_words(count: int, parts: t.Sequence[str] | None) -> str:
    """Return C(12 blocks), C(12 blocks and up of another), or C(a part of one block (up))."""
    some = " and ".join(parts or ())
    if some and not count:
        return f"a part of one block ({some})"
    text = f"{count} block{'' if count == 1 else 's'}"
    return f"{text} and {some} of another" if some else text


def share_used(model: Mapping) -> float:
    """Return the share of them that a token reads: all, or, of experts, those in use."""
    return float(model["expert_used_count"] / model["expert_count"]) if model.get("expert_count") else 1.0


def all_in_ram(model: Model) -> ExpertPlacement:
    """Return the placement with all in RAM that may be there, the least that devices can hold."""
    blocks = [block for block, own in enumerate(zip(*parts_of(model).values(), strict=True)) if any(own)]
    return ExpertPlacement((), tuple(blocks), kind=kind_of(model))


def movable_blocks(model: Model, layers: t.Sequence[int], device: int) -> list[int]:
    """Return the blocks on C(device) that have experts, in order. Dense lead blocks and the output layer have none."""
    by_part = parts_of(model)
    start = sum(layers[:device])
    end = min(start + layers[device], model["block_count"])
    return [block for block in range(start, end) if any(sizes[block] for sizes in by_part.values())]


def place(
    model: Model, layers: Layers, counts: t.Sequence[int], partial: tuple[int, tuple[str, ...]] | None = None
) -> ExpertPlacement:
    """Return the placement with the experts of the first C(counts) blocks of each device in RAM.

    C(partial): (device, parts) of one block more. Raises ValueError where a device has fewer blocks with experts, or
    the model no such part.
    """
    known, name = tuple(part for part in PARTS if part in parts_of(model)), name_of(model)
    if partial and (not partial[1] or not set(partial[1]) < set(known)):
        raise ValueError(f"a part of the {name} is some of {', '.join(known)}, not {', '.join(partial[1])}")
    chosen: list[int] = []
    started = None
    for device, count in enumerate(counts):
        blocks = movable_blocks(model, layers, device)
        wanted = count + bool(partial and partial[0] == device)
        if wanted > len(blocks):
            raise ValueError(
                f"the {name} of {wanted} blocks of device {device} cannot be in RAM: it has {len(blocks)} blocks with "
                f"{name}"
            )
        chosen += blocks[:count]
        if partial and wanted > count:
            started = PartialBlock(blocks[count], tuple(part for part in known if part in partial[1]))
    return ExpertPlacement(layers, tuple(chosen), started, kind=kind_of(model))


def on_first_device(model: Model, layers: Layers, count: int) -> ExpertPlacement:
    """Return the placement with the experts of C(count) blocks in RAM, all on layers of the first device in use.

    Prompts copy experts over the link of the first device alone, so there they cross it once.
    """
    first = next(device for device, own in enumerate(layers) if own)
    return place(model, layers, [count if device == first else 0 for device in range(len(layers))])


def block_ram_bytes(model: Model, placement: ExpertPlacement | None) -> list[int]:
    """Return the bytes of experts in RAM, per block."""
    taken = [0] * model["block_count"]
    if placement is None:
        return taken
    by_part = parts_of(model)
    for block in placement.blocks:
        taken[block] = sum(sizes[block] for sizes in by_part.values())
    if placement.partial:
        block = placement.partial.block
        taken[block] = sum(sizes[block] for part, sizes in by_part.items() if part in placement.partial.parts)
    return taken


def ram_bytes(model: Model, placement: ExpertPlacement | None) -> int:
    """Return the bytes of weights in RAM: experts, and the token embedding of any model."""
    return sum(block_ram_bytes(model, placement)) + model["token_embedding_bytes"]


def ram_missing_mib(needed_bytes: int, available_mib: int) -> int:
    """Return the MiB of RAM that are missing, 0 where there are enough.

    C(available_mib) is MemAvailable: what the page cache can give back counts, swap does not, because a token reads all
    the experts that it uses.
    """
    return max(0, -(-needed_bytes // MIB) + RAM_KEPT_FREE_MIB - available_mib)


class Copies(t.NamedTuple):
    """What a card holds of experts in RAM while it computes a prompt: bytes of their largest tensor, and of two."""

    largest: int
    two: int  # 0 where there is never more than one


NO_COPIES: t.Final = Copies(0, 0)


def copies(model: Model, placement: ExpertPlacement, layers: t.Sequence[int]) -> Copies:
    """Return what the first device copies for prompts of 32 tokens or more (llama.cpp's op offload).

    The buffer is reused from tensor to tensor. By llama.cpp b11312's dry run (tests/fixtures/dry_run) there may be two
    where experts belong to blocks of another device, or tensors of one part differ in size, as in most Q4_K_M.
    """
    first = next(count for count in layers if count)
    parts: dict[int, tuple[str, ...]] = dict.fromkeys(placement.blocks, PARTS)
    if placement.partial:
        parts[placement.partial.block] = placement.partial.parts
    by_part = parts_of(model)
    sizes = {part: {own[block] for block in parts if part in parts[block]} for part, own in by_part.items()}
    ranked = sorted((max(own) for own in sizes.values() if own), reverse=True)
    if not ranked:
        return NO_COPIES
    if any(len(own) > 1 for own in sizes.values()):
        return Copies(ranked[0], 2 * ranked[0])
    elsewhere = any(block >= first for block in parts)
    return Copies(ranked[0], sum(ranked[:2]) if elsewhere else 0)


def render(placement: ExpertPlacement, program: str) -> str:
    """Return the value of C(program)'s `-ot`, or "" where no expert is in RAM. ValueError for an unknown program.

    One pattern names the whole blocks. C([.]) is used where C(\\.) is usual, because systemd takes backslashes away.
    """
    if program not in SEPARATORS:
        raise ValueError(f"unknown program {program!r}: known are {', '.join(sorted(SEPARATORS))}")
    if placement.override:
        return SEPARATORS[program].join(placement.override.split(","))
    moved: list[tuple[tuple[int, ...], tuple[str, ...]]] = [(placement.blocks, PARTS)] if placement.blocks else []
    if placement.partial:
        moved += [((placement.partial.block,), placement.partial.parts)]
    return SEPARATORS[program].join(
        f"{_TENSORS[placement.kind].format(blocks='|'.join(map(str, blocks)), parts='|'.join(parts))}=CPU"
        for blocks, parts in moved
    )


def serving_with(serving: Serving, placement: ExpertPlacement | None, micro_batch: int = 0) -> Serving:
    """Return the serving profile as it holds with experts in RAM: threads of the CPU, and no memory map.

    The batch holds C(micro_batch), the largest one, which may be larger than any batch without.
    """
    if placement is None or not placement.any:
        return serving
    changed: Serving = {**serving, "load_mode": LOAD_MODE}
    if micro_batch > serving["batch_size"]:
        changed["batch_size"] = micro_batch
    if placement.threads:
        changed["threads"] = placement.threads
    return changed


def of_decision(serving: Serving, decision: Mapping) -> Serving:
    """Return the serving profile of a decision, or of a load: with its micro-batch, and as weights in RAM want it."""
    size = decision["micro_batch_size"]
    own: Serving = {**serving, "micro_batch_size": size}
    return serving_with(own, from_json(decision["layers"], decision.get("experts_in_ram")), size or 0)


# --- in loads, decisions and records: C(experts_in_ram) ---------------------------------------------------------------


def as_json(placement: ExpertPlacement | None) -> Json | None:
    """Return C({kind, blocks, partial, threads, no_host, override}), or None where no expert is in RAM.

    The layers stand beside it.
    """
    if placement is None or not placement.any:
        return None
    partial = placement.partial
    return {
        "kind": placement.kind,
        "blocks": list(placement.blocks),
        "partial": {"block": partial.block, "parts": list(partial.parts)} if partial else None,
        "threads": placement.threads,
        "no_host": placement.no_host,
        "override": placement.override,
    }


def from_json(layers: t.Sequence[int], experts: Mapping | None) -> ExpertPlacement | None:
    """Return what as_json wrote, or None. Raises ValueError in one sentence where it cannot be."""
    if experts is None:
        return None
    kind, blocks, partial = experts.get("kind"), experts.get("blocks"), experts.get("partial")
    threads, override = experts.get("threads", 0), experts.get("override", "")
    last = sum(layers) - 1  # the output layer
    if kind not in NAMES:
        raise ValueError(f"experts_in_ram.kind must be {' or '.join(NAMES)}, not {kind!r}")
    if not isinstance(blocks, list) or not all(is_whole(block, 0, last - 1) for block in blocks):
        raise ValueError(f"experts_in_ram.blocks must be blocks of the model, 0 to {last - 1}, not {blocks!r}")
    if partial is not None and not _is_partial(partial, last):
        raise ValueError(f"experts_in_ram.partial must name a block and parts of {', '.join(PARTS)}, not {partial!r}")
    if not is_whole(threads, 0):
        raise ValueError(f"experts_in_ram.threads must be a whole number, not {threads!r}")
    if not isinstance(override, str) or not re.fullmatch(r"[\x21-\x7e]*", override):
        raise ValueError(f"experts_in_ram.override must be the value of -ot, not {override!r}")
    return ExpertPlacement(
        tuple(layers),
        tuple(blocks),
        PartialBlock(partial["block"], tuple(partial["parts"])) if partial else None,
        threads,
        bool(experts.get("no_host", False)),
        override,
        str(kind),
    )


def _is_partial(partial: t.Any, last: int) -> bool:
    if not isinstance(partial, dict) or not isinstance(partial.get("parts"), list) or not partial["parts"]:
        return False
    return is_whole(partial.get("block"), 0, last - 1) and set(partial["parts"]) < set(PARTS)
