# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a model would give with experts, or FFN weights, in RAM, without measuring it. Private. Pure functions only.

Memory is that of the plan. Times, for one request at a time:

- decode: cards take turns, each reading its weights and its part of the KV cache and launching its blocks; the CPU
  reads the experts in RAM that a token uses. How fast that is, is a range of ram_speed.
- prefill: every micro-batch copies all experts in RAM once over the link of the first card, which computes them. Runs
  were within PROMPT_RANGE of that.
"""

from __future__ import annotations

import math
import typing as t

from .._base import stats, text
from .._base.types import Json, Mapping
from .._split import cost_model, expert_placement, layer_split, memory_plan, model_weights, workload
from .._split.expert_placement import ExpertPlacement
from .._split.split_problem import Problem
from . import expected_speeds, expert_costs, expert_plane, expert_why, prediction_table, ram_speed

#: What a PCIe 4.0 link of 16 lanes reaches (31.5), where nothing is known of the first card's.
LINK_GB_PER_S: t.Final = 25.0
#: What a known link reaches of its rate.
LINK_SHARE: t.Final = 0.8
#: Time of a prompt against what is expected: published runs of gpt-oss-120b on one RTX 3090 (380, 1113 and 1683 tokens
#: per second in micro-batches of 512, 2048 and 4096) took 0.75 to 0.92 of it, own ones on two H200 twice and more.
PROMPT_RANGE: t.Final = (0.75, 2.2)


class Speeds:
    """Expected times of placements of one problem, by what an earlier tuning of its model has fitted, if one did."""

    def __init__(self, problem: Problem, devices: t.Sequence[Mapping]) -> None:
        self.prompt, self.generated = problem.counted(problem.objective)
        self.model, serving = problem.memory.model, problem.memory.serving
        objective = workload.read_objective("objective", problem.raw["objective"])
        given = problem.raw.get("experts_in_ram") or {}
        self.measured: Mapping | None = given.get("measured")
        rates, self.ram, self.prompt_range = expected_speeds.published(devices), ram_speed.of(given), PROMPT_RANGE
        self.side = 0.0
        if self.measured is not None:
            self.side = stats.NORMAL_95 * self.measured["error"]
            self.prompt_range = (1 - self.side, 1 + self.side)
            rates, self.ram = _measured(self.measured["fit"], rates)
        whole = expected_speeds.Speeds(self.model, serving, objective, rates)
        self.rates, self.launch_ms = rates, whole.launch_ms
        self.serving, self.depth = serving, whole.depth
        self.weigher = expert_costs.Weigher(problem)
        links = given.get("links_gb_per_s")
        self.link_gb_per_s = LINK_SHARE * links[0] if links and links[0] else LINK_GB_PER_S

    def decode_ms(
        self, placement: ExpertPlacement, depth: int | None = None
    ) -> tuple[float, float, float] | None:
        """Return the time of a token: least, expected, most; None where a used device's bandwidth is not known.

        C(depth): tokens in the cache, instead of those of the objective.
        """
        read = model_weights.bytes_read(self.model, self.serving, self.depth if depth is None else depth)
        in_ram = [*expert_placement.block_ram_bytes(self.model, placement), 0]
        used, total, start = self.weigher.used, self.launch_ms(placement.layers), 0
        for count, rate in zip(placement.layers, self.rates.read_bytes, strict=True):
            own = slice(start, start + count)
            start += count
            if count and not rate:
                return None
            total += max(0.0, sum(read[own]) - used * sum(in_ram[own])) / rate if count and rate else 0.0
        fast, slow = self.ram.ms(used * sum(in_ram), sum(1 for size in in_ram if size))
        expected = total + ram_speed.middle((fast, slow))
        if self.measured is not None:
            return expected * (1 - self.side), expected, expected * (1 + self.side)
        return total + fast, expected, total + slow

    def prefill_ms(self, placement: ExpertPlacement, micro_batch: int, prompt: int) -> float | None:
        """Return the time of a prompt, or None where a used device's rate is not known."""
        if self.measured is not None:
            return self._fitted(self.measured["fit"]["prefill_ms"], placement, micro_batch, prompt)
        in_ram = [*expert_placement.block_ram_bytes(self.model, placement), 0]
        batches = cost_model.micro_batches(prompt, micro_batch)
        total, start = batches * sum(in_ram) / (self.link_gb_per_s * 1e6), 0
        first = next(rate for rate, count in zip(self.rates.operations, placement.layers, strict=True) if count)
        for count, rate in zip(placement.layers, self.rates.operations, strict=True):
            own = range(start, start + count)
            start += count
            if not count:
                continue
            if not (rate and first):
                return None
            away = sum(self.weigher.expert_work(block, in_ram[block]) for block in own)
            # two operations per weight and token
            here = sum(self.weigher.work[block] for block in own) - away
            total += 2 * prompt * (here / rate + away / first)
        return total

    def _fitted(self, costs: Mapping, placement: ExpertPlacement, micro_batch: int, prompt: int) -> float:
        """Return the time of a prompt by the costs of expert_decision.fit_of."""
        slow = self.weigher.rates["prefill"]
        cards = [cost / rate for cost, rate in zip(costs["compute"], slow, strict=True)]
        features = self.weigher.amounts(placement).prefill(prompt, micro_batch)
        return cost_model.decode_ms((costs["start"], costs["copy"], costs["handle"], 0.0, *cards), features)

    def sources(self) -> list[str]:
        """Return where decode and prompts come from."""
        if self.measured is not None:
            named = self.measured["deployment"]
            return [f"  speeds: by the costs that the tuning of {named} measured, with intervals of 95 %"]
        low, high = self.prompt_range
        return [
            f"  decode/s: {self.ram.source}",
            f"  prompt/s: what is in RAM is copied once per micro-batch, at {self.link_gb_per_s:.0f} GB/s",
            f"  ttft: {low:g} to {high:g} times what that takes, as in runs",
        ]

    def objective_ms(self, placement: ExpertPlacement, micro_batch: int) -> float | None:
        """Return the objective in the middle of the range, or None where something is not known."""
        total = 0.0
        if self.generated:
            decode = self.decode_ms(placement)
            total += self.generated * decode[1] if decode is not None else float("nan")
        if self.prompt:
            prefill = self.prefill_ms(placement, micro_batch, self.prompt)
            total += prefill if prefill is not None else float("nan")
        return None if math.isnan(total) else total


def _measured(fit: Mapping, rates: expected_speeds.Rates) -> tuple[expected_speeds.Rates, ram_speed.RamSpeed]:
    """Return the rates that a fit tells of cards and CPU, which contain launches and handing over."""
    read = tuple(fit["read_bytes"] / ms if ms else None for ms in fit["decode_ms_per_device"])
    rate = fit["bytes_per_block_in_ram"] / fit["decode_ms_per_block_in_ram"] / 1e6
    own = ram_speed.RamSpeed((rate, rate), (0.0, 0.0), "measured")
    return rates._replace(read_bytes=read, launch_ms=(0.0,) * len(read)), own


def expect(problem: Problem, devices: t.Sequence[Mapping]) -> Json | None:
    """Return what predictor.expect does, or None where no experts go into RAM.

    Raises UserError for a wrong problem.experts_in_ram.
    """
    if not expert_plane.wanted(problem):
        return None
    given = problem.raw.get("experts_in_ram") or {}
    plane = expert_plane.Plane(problem, problem.budgets, given.get("ram_mib"))
    speeds = Speeds(problem, devices)
    rows = []
    for size in expert_plane.micro_batches(problem):
        found = [_row(problem, plane, speeds, placement, size) for placement in plane.candidates(size)]
        rows += [min(found, key=_rank)] if found else []
    best = min(rows, key=_rank, default=None)
    model = problem.raw["model"]
    prediction: Json = {
        **prediction_table.subject(problem.raw, devices, (speeds.measured or {}).get("deployment")),
        "rows": rows,
        "feasible_splits": len(rows),
        "default_layers": None,
        "best": best,
        "link_gb_per_s": speeds.link_gb_per_s,
        "sources": speeds.sources(),
        "experts_in_ram": expert_placement.name_of(model),
    }
    if best is None:
        why = expert_why.nothing_fits(problem, plane)
    else:
        where = layer_split.split_name(best["layers"])
        needed = (
            f"{model['name'] or model['path']} does not fit the devices: with {where} the "
            f"{expert_placement.name_of(model)} of {best['blocks_in_ram']:g} of {expert_plane.movable_count(problem)} "
            f"blocks, {best['ram_mib']} MiB with the token embedding, have to be in RAM{_of_a_token(speeds, best)}; "
            f"a micro-batch of {best['micro_batch_size']} is expected to be the best, and a real run measures "
            "placements, micro-batches and threads"
        )
        why = "; ".join([needed, *expert_why.instead(problem)])
    return {**prediction, "why": why}


def _of_a_token(speeds: Speeds, best: Mapping) -> str:
    """Return what a token takes to read the FFN weights of a row in RAM; nothing of experts, of which it reads few."""
    placement = expert_placement.from_json(best["layers"], best["experts_in_ram"])
    if placement is None or placement.kind == expert_placement.EXPERTS:
        return ""
    in_ram = expert_placement.block_ram_bytes(speeds.model, placement)
    fast, slow = speeds.ram.ms(sum(in_ram), sum(1 for size in in_ram if size))
    return f", where every token reads all of them, in {text.span([fast, slow])} ms"


def _row(
    problem: Problem, plane: expert_plane.Plane, speeds: Speeds, placement: ExpertPlacement, size: int
) -> Json:
    mib = plane.mib(placement, size)
    fast, typical, slow = speeds.decode_ms(placement) or (None, None, None)
    prompt = problem.prompt_tokens
    ttft = speeds.prefill_ms(placement, size, prompt) if prompt else None
    blocks = sum(expert_placement.block_ram_bytes(speeds.model, placement))
    each = [size for size in plane.expert_bytes if size]
    return {
        "layers": list(placement.layers),
        "experts_in_ram": expert_placement.as_json(placement),
        "blocks_in_ram": round(blocks * len(each) / sum(each), 1),
        "micro_batch_size": size,
        "mib": mib,
        "headroom_mib": memory_plan.headroom_mib(mib, problem.budgets),
        "ram_mib": expert_plane.ram_mib(speeds.model, placement),
        "verdict": "fits",
        "launch_ms": speeds.launch_ms(placement.layers),
        "decode_ms_per_token": typical,
        "decode_tokens_per_second": None if typical is None else 1000 / typical,
        "decode_interval": [1000 / slow, 1000 / fast] if slow and fast else None,
        "ttft_ms": ttft,
        "ttft_interval": [share * ttft for share in speeds.prompt_range] if ttft else None,
        "prefill_tokens_per_second": 1000 * prompt / ttft if ttft else None,
        "objective_ms": speeds.objective_ms(placement, size),
    }


def _rank(row: Mapping) -> tuple[float, float]:
    """Return the order of rows: the least objective; where none is known, the fewest experts in RAM."""
    value = row["objective_ms"]
    return (0.0 if value is None else value), row["blocks_in_ram"]


def table(prediction: Mapping) -> list[str]:
    """Return a prediction as lines of text."""
    lines = prediction_table.head(prediction)
    names = [device["device"] for device in prediction["devices"]]
    body = [["micro-batch", "layers", "blocks in RAM", "RAM MiB", *names, "decode/s", "prompt/s", "ttft ms", ""]]
    for row in prediction["rows"]:
        body.append([
            str(row["micro_batch_size"]), layer_split.split_name(row["layers"]), f"{row['blocks_in_ram']:g}",
            str(row["ram_mib"]),
            *(f"{mib} ({left:+d})" for mib, left in zip(row["mib"], row["headroom_mib"], strict=True)),
            text.span(row["decode_interval"]), text.number(row["prefill_tokens_per_second"], "-"),
            text.span(row["ttft_interval"]),
            "best" if row is prediction["best"] or row == prediction["best"] else "",
        ])  # fmt: skip
    if prediction["rows"]:
        lines += text.columns(body, right=range(len(body[0]) - 1))
        lines += [
            "  MiB per device, (left) of the budget; decode/s and prompt/s: tokens per second; ttft: time to the first"
            " token",
            *prediction["sources"],
        ]
    notes = [f"Note: {note}" for note in prediction["model"]["notes"]]
    return [*lines, f"{prediction['why']}.", *prediction_table.contexts(prediction), *notes]
