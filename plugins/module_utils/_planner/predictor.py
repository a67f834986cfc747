# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a split would give, from memory bandwidth alone, without measuring. Private to this collection. Pure functions.

A prediction, never a decision. The memory of every split is that of _memory_plan. Times, for one request at a time:

- decode: the devices take turns, and each reads its weights (of experts those in use) and the KV cache of the tokens
  that its blocks look back on, once per token, at the fraction of its nominal memory bandwidth that published runs
  reached. Launching kernels takes time per block; what 70B runs need of it is part of their fraction already.
- prefill: two floating point operations per weight and token at the rate that published runs reached, through the
  pipeline of _cost_model. Attention's own work, which grows with the prompt, and the transfers between cards are left
  out.
"""

from __future__ import annotations

import typing as t

from .._base import text
from .._models import model_shapes
from .._split import (
    cost_model,
    layer_search,
    layer_split,
    memory_plan,
    model_weights,
    split_cost,
    split_problem,
    workload,
)

Json = dict[str, t.Any]

#: How far the plan may be off llama.cpp's dry run, and free memory off what published logs show: the width of marginal.
MARGIN_MIB = 256

#: What launching the kernels of a block takes per token, in ms. Published for one RTX 4090 and Qwen3-30B-A3B at Q4_K_M,
#: 48 blocks, are up to 196 tokens per second, and 167 for an RTX 3090 Ti; its bytes alone would give 393.
LAUNCH_MS: t.Final = 0.055

#: The fractions come from runs of a 70B at Q4_K_M, 80 blocks in 40 GB, and contain the launches of so many.
BLOCKS_PER_BYTE: t.Final = 80 / 40.3e9

#: Rows in a table of more than two devices.
MOST_ROWS = 25


def _stages(values: t.Sequence[float], layers: t.Sequence[int]) -> list[float]:
    """Return the sum of C(values), one per slot, on each device."""
    result, start = [], 0
    for count in layers:
        result.append(sum(values[start : start + count]))
        start += count
    return result


class _Speeds:
    """Predicted times of one problem's splits."""

    def __init__(self, problem: split_problem.Problem, devices: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        model = problem.raw["model"]
        self.prompt, self.generated = problem.prompt_tokens, problem.generated_tokens
        self.micro_batch = problem.micro_batch
        # half of the answer is there, on average, when a token is generated
        self.depth = problem.depth_tokens + self.prompt + self.generated // 2
        self.read = model_weights.bytes_read(model, problem.raw["serving"], self.depth)
        launched = LAUNCH_MS * (problem.slots - 1 - BLOCKS_PER_BYTE * sum(self.read))
        self.launch_ms = max(0.0, launched)
        # a server asks for the last token's output only, so the output layer costs a prompt next to nothing
        self.work = [2.0 * weights for weights in model["block_weights"]] + [0.0]
        self.bytes_per_ms = [
            device["bandwidth_gb_per_s"] * device["fraction"] * 1e6 if device["bandwidth_gb_per_s"] else None
            for device in devices
        ]
        self.operations_per_ms = [
            device["prefill_tflops"] * 1e9 if device["prefill_tflops"] and any(self.work) else None
            for device in devices
        ]

    def decode_ms(self, layers: t.Sequence[int]) -> float | None:
        """Return the time of one token, or None where a used device's bandwidth is unknown."""
        times = _divided(_stages(self.read, layers), self.bytes_per_ms)
        return None if times is None else sum(times) + self.launch_ms

    def ttft_ms(self, layers: t.Sequence[int]) -> float | None:
        """Return the time of the prompt, or None where a used device's rate is unknown or there is no prompt."""
        if not self.prompt:
            return None
        batches = cost_model.micro_batches(self.prompt, self.micro_batch)
        tokens = self.prompt / batches
        times = _divided([work * tokens for work in _stages(self.work, layers)], self.operations_per_ms)
        # the pipeline of _cost_model, with stages whose blocks differ
        return None if times is None else sum(times) + (batches - 1) * max(times)


def _with_the_best(problem: split_problem.Problem, speeds: _Speeds, devices: int) -> list[layer_split.Layers]:
    """Return the splits to show: beyond two devices, where only a grid is listed, with the best of all and its like.

    """
    if devices <= 2:
        return list(problem.splits)
    whole = [tuple(problem.slots if other == index else 0 for other in range(devices)) for index in range(devices)]
    decode = [speeds.decode_ms(layers) for layers in whole]
    ttft = [speeds.ttft_ms(layers) for layers in whole]
    prompt, generated = problem.counted(problem.objective)
    if (generated and None in decode) or (prompt and None in ttft):
        return list(problem.splits)
    batches = cost_model.micro_batches(prompt, problem.micro_batch) if prompt else 1
    stage = [(ms or 0.0) / batches / (problem.slots - 1) if prompt else 0.0 for ms in ttft]
    cost = split_cost.Cost(
        tuple(generated * (ms or 0.0) / problem.slots for ms in decode),
        tuple(stage),
        tuple((batches - 1) * ms for ms in stage),
        problem.weights,
    )
    best = problem.search.best(cost)
    found = [] if best is None else [best, *layer_search.moved_by_one(best)]
    return sorted({*problem.splits, *found})


def _divided(amounts: t.Sequence[float], rates: t.Sequence[float | None]) -> list[float] | None:
    result = []
    for amount, rate in zip(amounts, rates, strict=True):
        if amount and not rate:
            return None
        result.append(amount / rate if rate else 0.0)
    return result


def _verdict(mib: t.Sequence[int], free: t.Sequence[int], reserve: int) -> str:
    """Return how a split fits: C(fits), C(tight) (into the reserve), C(marginal) (beyond free, by little), C(no)."""
    least = min(have - need for need, have in zip(mib, free, strict=True) if need)
    if least >= reserve:
        return "fits"
    return "tight" if least >= 0 else "marginal" if least >= -MARGIN_MIB else "no"


def _objective_ms(objective: str, row: Json, generated: int) -> float | None:
    decode: float | None = row["decode_ms_per_token"]
    ttft: float | None = row["ttft_ms"]
    if objective == "decode":
        return decode
    if objective == "agent":
        return None if decode is None else generated * decode
    if objective == "prefill":
        return ttft
    if objective == "ttft":
        generated = 1
    return None if decode is None or ttft is None else ttft + generated * decode


def _typed(value: t.Any) -> t.Any:
    """Return C(value) with numbers and truth values that came as text, as from `-e name=value`, as what they are."""
    if isinstance(value, t.Mapping):
        return {key: _typed(entry) for key, entry in value.items()}
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return value.lower() == "true" if isinstance(value, str) and value.lower() in ("true", "false") else value


def predict(question: t.Mapping[str, t.Any], devices: t.Sequence[t.Mapping[str, t.Any]]) -> Json:
    """Return the C(prediction) of docs/data_formats.md.

    C(question): model (or the name of a shape of _model_shapes), serving, reserve_mib, and objective and bench as
    workload.plan takes them. C(devices): of profile_devices or host_devices. Raises ValueError naming what is
    wrong or unknown.
    """
    if not devices:
        raise ValueError("there are no devices: name a hardware profile, or a host with cards")
    missing = [key for key in ("model", "serving", "reserve_mib", "objective", "bench") if key not in question]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    model = question["model"]
    serving = _typed(question["serving"])
    problem = split_problem.read_problem({
        "schema": 1,
        "devices": list(devices),
        "model": model_shapes.model(model) if isinstance(model, str) else model,
        "serving": serving,
        "reserve_mib": _typed(question["reserve_mib"]),
        "split_modes": ["layer"],
        **workload.plan(_typed(question["objective"]), _typed(question["bench"]), serving),
        "indifference": 0.01,
        "max_loads": 1,
    })
    model = problem.raw["model"]
    if "block_read_bytes" not in model:
        raise ValueError("problem.model.block_read_bytes is missing: read the file again with gguf_info")
    reserve = problem.raw["reserve_mib"]
    free = memory_plan.budgets_mib(devices, 0)
    speeds = _Speeds(problem, devices)
    rows = []
    for layers in _with_the_best(problem, speeds, len(devices)):
        mib = problem.memory.mib(layers)
        decode, ttft = speeds.decode_ms(layers), speeds.ttft_ms(layers)
        rows.append({
            "layers": list(layers), "mib": mib, "headroom_mib": memory_plan.headroom_mib(mib, free),
            "verdict": _verdict(mib, free, reserve), "decode_ms_per_token": decode, "ttft_ms": ttft,
            "decode_tokens_per_second": 1000 / decode if decode else None,
            "prefill_tokens_per_second": 1000 * speeds.prompt / ttft if ttft else None,
        })
    for row in rows:
        row["objective_ms"] = _objective_ms(problem.objective, row, speeds.generated)
    best = _best(rows)
    prediction: Json = {
        "prediction": True,
        "model": {key: model[key] for key in ("name", "architecture", "file_type", "block_count", "notes")},
        "serving": problem.raw["serving"],
        "objective": problem.raw["objective"],
        "reserve_mib": reserve,
        "devices": [dict(device) for device in devices],
        "rows": _shown(rows),
        "feasible_splits": sum(1 for row in rows if row["verdict"] in ("fits", "tight")),
        "default_layers": list(problem.default),
        "best": best,
        "launch_ms": speeds.launch_ms,
        "why": _why(problem, rows, best, devices, free),
    }
    return {**prediction, "lines": table(prediction)}


def _best(rows: t.Sequence[Json]) -> Json | None:
    """Return the row that is predicted to be the fastest, of those that leave the reserve if there are any."""
    for verdict in ("fits", "tight"):
        able = [row for row in rows if row["verdict"] == verdict]
        known = [row for row in able if row["objective_ms"] is not None]
        if known:
            return min(known, key=lambda row: (row["objective_ms"], -min(row["headroom_mib"])))
        if able:
            return None
    return None


def _shown(rows: t.Sequence[Json]) -> list[Json]:
    """Return the rows of the table: what fits or nearly does, and the next one beyond each end of that."""
    many = bool(rows) and len(rows[0]["layers"]) > 2
    keep = [index for index, row in enumerate(rows) if row["verdict"] != "no"]
    if many:
        ranked = sorted(keep, key=lambda index: (rows[index]["objective_ms"] or 0, index))
        return [rows[index] for index in sorted(ranked[:MOST_ROWS])]
    beyond = {index + step for index in keep for step in (-1, 1) if 0 <= index + step < len(rows)}
    return [rows[index] for index in sorted({*keep, *beyond})]


_PER = {
    "decode": "per token", "prefill": "per prompt", "ttft": "to the first token", "request": "per request",
    "agent": "per answer",
}


def _why(
    problem: split_problem.Problem,
    rows: t.Sequence[Json],
    best: Json | None,
    devices: t.Sequence[t.Mapping[str, t.Any]],
    free: t.Sequence[int],
) -> str:
    able = [row for row in rows if row["verdict"] in ("fits", "tight")]
    if not able:
        return memory_plan.why_nothing_fits(
            devices, problem.raw["model"], problem.raw["serving"], problem.splits, problem.budgets,
            problem.raw["reserve_mib"],
        )  # fmt: skip
    if best is None:
        unknown = [device["device"] for device in devices if not device["bandwidth_gb_per_s"]]
        slow = [device["device"] for device in devices if not device["prefill_tflops"]]
        names = ", ".join(unknown or slow)
        what = "memory bandwidth" if unknown else "rate of prompt processing"
        return f"{len(able)} splits fit; which is fastest cannot be said, because the {what} of {names} is not known"
    pool = [row for row in able if row["verdict"] == best["verdict"]]
    worst = max(row["objective_ms"] for row in pool if row["objective_ms"] is not None)
    span = 100 * (worst / best["objective_ms"] - 1)
    name = layer_split.split_name(best["layers"])
    count = len(pool)
    if len(devices) > 2 and best["verdict"] == "fits":
        count = problem.search.count()
    sentence = f"{name} is predicted to be the fastest of {count} splits that fit"
    if best["verdict"] == "tight":
        sentence += f", none of which leaves {problem.raw['reserve_mib']} MiB free on every device"
    sentence += f"; the slowest of them takes {span:.1f} % longer {_PER[problem.objective]}"
    alone = [row for row in able if sum(1 for count in row["layers"] if count) == 1]
    if alone:
        fastest = min(alone, key=lambda row: row["objective_ms"] or 0)
        device = devices[layer_split.output_device(fastest["layers"])]
        sentence += f"; the model fits on {device['device']} ({device['description']}) alone"
    return sentence


# --- the table -------------------------------------------------------------------------------------------------------


def table(prediction: t.Mapping[str, t.Any]) -> list[str]:
    """Return a prediction as lines of text."""
    model, serving, devices = prediction["model"], prediction["serving"], prediction["devices"]
    objective = prediction["objective"]
    lines = [
        f"PREDICTION, nothing was measured: {' '.join(filter(None, (model['name'], model['file_type'])))}",
        f"  context {serving['context_size']} tokens, {serving['parallel_slots']} slot(s), KV cache"
        f" {serving['cache_type_k']}/{serving['cache_type_v']}, micro-batch {serving['micro_batch_size']},"
        f" {prediction['reserve_mib']} MiB to be kept free per device",
        f"  one request at a time, {objective['prompt_tokens']} tokens in and {objective['generated_tokens']} out, at a"
        f" depth of {objective['depth_tokens']}; best for: {objective['name']}",
    ]
    for device in devices:
        speed = device["bandwidth_gb_per_s"]
        lines.append(
            f"  {device['device']} {device['description']}: {device['free_mib']} MiB free"
            + (f", {speed:g} GB/s of which {device['fraction']:.0%} are expected" if speed else ", speed unknown")
            + (f", {device['prefill_tflops']:g} TFLOP/s for prompts" if device["prefill_tflops"] else "")
        )
    heads = ["layers", *(f"{device['device']} (left)" for device in devices)]
    heads += ["decode/s", "prompt/s", "ttft ms", "memory"]
    body = [heads]
    best = prediction["best"]
    for row in prediction["rows"]:
        marks = []
        if best and row["layers"] == best["layers"]:
            marks.append("best")
        if row["layers"] == prediction["default_layers"]:
            marks.append("default")
        body.append([
            layer_split.split_name(row["layers"]),
            *(f"{mib} ({left:+d})" for mib, left in zip(row["mib"], row["headroom_mib"], strict=True)),
            _number(row["decode_tokens_per_second"], 1), _number(row["prefill_tokens_per_second"], 0),
            _number(row["ttft_ms"], 0), ", ".join([row["verdict"], *marks]),
        ])
    lines += text.columns(body, right=range(len(heads) - 1))
    lines += [
        "  MiB per device, (left) of the free memory; decode/s and prompt/s: tokens per second; ttft: time to the first"
        " token",
        "  fits: the reserve stays free; tight: into the reserve; marginal: too much, but by no more than"
        f" {MARGIN_MIB} MiB; default: llama.cpp's own split by free memory",
        f"{prediction['why']}.",
    ]
    if prediction["launch_ms"] >= 0.5:
        lines.append(
            f"Note: {prediction['launch_ms']:.1f} ms of each token go into launching the kernels of"
            f" {model['block_count']} blocks, whatever the split (from published runs of one model of experts)."
        )
    lines += [f"Note: {note}" for note in model["notes"]]
    for device in {device["description"]: device for device in devices}.values():
        lines += [f"{device['description']}: {source}" for source in device["sources"]]
    return lines


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
