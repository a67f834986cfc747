# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a split would give, without measuring it. Private to this collection. Pure functions only.

A prediction, never a decision. The memory of every split is that of memory_plan, the times those of expected_speeds:
from memory bandwidth alone, or from the costs that an earlier tuning of the host has measured.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._models import model_shapes
from .._split import (
    card_memory,
    context_room,
    expert_placement,
    layer_search,
    layer_split,
    memory_plan,
    split_problem,
    workload,
)
from .._split.types import Serving
from . import (
    context_stage,
    context_table,
    expected_speeds,
    expert_contexts,
    expert_prediction,
    known_costs,
    predicted_network,
    prediction_table,
)

#: Rows in a table of more than two devices.
MOST_ROWS = 25


def _with_the_best(
    problem: split_problem.Problem, speeds: expected_speeds.Speeds, devices: int
) -> list[layer_split.Layers]:
    """Return the splits to show: beyond two devices, where only a grid is listed, with the best of all and its like."""
    cost = speeds.cost(problem.weights) if devices > 2 else None
    best = None if cost is None else problem.search.best(cost)
    found = [] if best is None else [best, *layer_search.moved_by_one(best)]
    return sorted({*problem.splits, *found})


def _verdict(mib: t.Sequence[int], free: t.Sequence[int], reserve_mib: int) -> str:
    """Return how a split fits: C(fits), C(tight) (into the reserve), C(marginal) (beyond free, by little), C(no)."""
    least = min(have - need for need, have in zip(mib, free, strict=True) if need)
    if least >= reserve_mib:
        return "fits"
    return "tight" if least >= 0 else "marginal" if least >= -prediction_table.MARGIN_MIB else "no"


def _typed(value: t.Any) -> t.Any:
    """Return C(value) with numbers and truth values that came as text, as from `-e name=value`, as what they are."""
    if isinstance(value, t.Mapping):
        return {key: _typed(entry) for key, entry in value.items()}
    if isinstance(value, str) and value.isdigit():
        return int(value)
    return value.lower() == "true" if isinstance(value, str) and value.lower() in ("true", "false") else value


class _Asked(t.NamedTuple):
    """A question with what follows from it."""

    problem: split_problem.Problem
    devices: t.Sequence[t.Mapping[str, t.Any]]
    known: known_costs.Known | None
    objective: workload.Objective
    rates: expected_speeds.Rates


def _asked(
    question: t.Mapping[str, t.Any], devices: t.Sequence[t.Mapping[str, t.Any]], known: known_costs.Known | None
) -> _Asked:
    devices = in_order(question, devices)
    problem = _problem(question, devices)
    if "block_read_bytes" not in problem.raw["model"]:
        raise ValueError("problem.model.block_read_bytes is missing: read the file again with gguf_info")
    objective = workload.read_objective("objective", problem.raw["objective"])
    rates = expected_speeds.published(devices) if known is None else expected_speeds.measured(known, devices)
    return _Asked(problem, devices, known, objective, rates)


def in_order(question: t.Mapping[str, t.Any], devices: t.Sequence[t.Mapping[str, t.Any]]) -> list[Json]:
    """Return the devices as a prediction orders them: some may be in other hosts."""
    model, serving = _model(question), _typed(question["serving"])
    if context_stage.asked(serving):
        serving = context_room.with_context(serving, context_room.STEP)
    budgets = memory_plan.budgets_mib(devices, _typed(question["reserve_mib"]))
    mode = (question.get("experts_in_ram") or {}).get("mode", "auto")
    return predicted_network.ordered(
        devices, model, _typed(question.get("objective")),
        lambda: context_room.needs_ram(model, serving, budgets, mode),
    )  # fmt: skip


def predict(
    question: t.Mapping[str, t.Any], devices: t.Sequence[t.Mapping[str, t.Any]], known: known_costs.Known | None
) -> Json:
    """Return the C(prediction) of docs/data_formats.md: what C(expect) does, with C(contexts), C(memory) and C(lines).

    C(known): what an earlier tuning has measured on the devices.
    """
    asked = _asked(question, devices, known)
    expected = _expected(asked)
    with_experts = "experts_in_ram" in expected
    rates = expected_speeds.published(asked.devices) if with_experts else asked.rates
    table_of = context_table.Question(
        asked.problem.memory.model, asked.problem.memory.serving, list(asked.devices), expected["reserve_mib"],
        asked.objective, rates,
        _in_ram(asked, with_experts),
    )  # fmt: skip
    source = context_table.source(rates)
    if with_experts and expected["measured_by"]:
        source = f"by the costs that the tuning of {expected['measured_by']} measured, with intervals of 95 %"
    contexts = {"rows": context_table.rows(table_of), "source": source}
    prediction = {**expected, "contexts": contexts, "memory": _memory(asked, expected["best"]), "network": None}
    if with_experts:
        lines = [*expert_prediction.table(prediction), *predicted_network.left_out(asked.devices)]
        return {**prediction, "lines": lines}
    prediction["network"] = _network(asked, question, expected["best"])
    return {**prediction, "lines": prediction_table.lines(prediction)}


def _in_ram(asked: _Asked, with_experts: bool) -> t.Callable[[Serving], Json | None] | None:
    """Return what a table of contexts asks about RAM: of a dense model only where the asked context needs it."""
    sparse = expert_placement.kind_of(asked.problem.memory.model) == expert_placement.EXPERTS
    if asked.problem.raw["experts_in_ram"] is None or not (sparse or with_experts):
        return None
    return expert_contexts.Contexts(asked.problem, asked.devices).row


def expect(
    question: t.Mapping[str, t.Any],
    devices: t.Sequence[t.Mapping[str, t.Any]],
    known: known_costs.Known | None = None,
) -> Json:
    """Return what is to be expected of the splits: a prediction without C(contexts), C(memory) and C(lines).

    C(question): model (or the name of a shape of _model_shapes), serving, reserve_mib, objective and bench as
    workload.plan takes them, and experts_in_ram as in a problem, where experts may be in RAM. C(devices): of
    profile_devices or host_devices. Raises ValueError naming what is wrong or unknown.
    """
    return _expected(_asked(question, devices, known))


def _memory(asked: _Asked, best: Json | None) -> list[Json] | None:
    """Return what lies on which card in the best split; None where none is known."""
    if best is None:
        return None
    memory = asked.problem.memory
    return held(memory.model, memory.serving, best, asked.devices)


def held(model: t.Any, serving: Mapping, best: Mapping, devices: t.Sequence[Mapping]) -> list[Json]:
    """Return what lies on which card in a row of a prediction, which may have experts in RAM."""
    experts = expert_placement.from_json(best["layers"], best.get("experts_in_ram"))
    size = best.get("micro_batch_size", serving["micro_batch_size"])
    profile: t.Any = {**serving, "micro_batch_size": size, "batch_size": max(serving["batch_size"], size)}
    return card_memory.rows(model, profile, best["layers"], devices, experts)


def _network(asked: _Asked, question: t.Mapping[str, t.Any], best: Json | None) -> Json | None:
    """Return what the devices of other hosts cost and buy; None without such devices, or without a best split."""
    own = predicted_network.of_box(asked.devices)
    if best is None or len(own) == len(asked.devices):
        return None
    memory = asked.problem.memory
    speeds = expected_speeds.Speeds(memory.model, memory.serving, asked.objective, asked.rates)
    without = usable(expect(question, own)) if own else None
    return predicted_network.judged(speeds, best, asked.devices, without)


def usable(prediction: t.Mapping[str, t.Any]) -> Json | None:
    """Return the row to serve with: the best one that leaves the reserve, or None where none does.

    Where it cannot be said which is the fastest, it is the one that leaves the most.
    """
    best: Json | None = prediction["best"]
    if best is not None:
        return best if best["verdict"] == "fits" else None
    fitting = [row for row in prediction["rows"] if row["verdict"] == "fits"]
    return max(fitting, key=lambda row: min(row["headroom_mib"]), default=None)


def _expected(asked: _Asked) -> Json:
    problem, devices = asked.problem, asked.devices
    reserve_mib, free = problem.raw["reserve_mib"], memory_plan.budgets_mib(devices, 0)
    if problem.raw["experts_in_ram"] is not None:
        with_experts = expert_prediction.expect(problem, devices)
        if with_experts is not None:
            return with_experts
    speeds = expected_speeds.Speeds(problem.memory.model, problem.memory.serving, asked.objective, asked.rates)
    rows = [
        _row(problem, speeds, layers, free, reserve_mib) for layers in _with_the_best(problem, speeds, len(devices))
    ]
    best = _best(rows)
    return {
        **prediction_table.subject(problem.raw, devices, asked.known and asked.known.deployment),
        "rows": _shown(rows),
        "feasible_splits": sum(1 for row in rows if row["verdict"] in ("fits", "tight")),
        "default_layers": list(problem.default),
        "best": best,
        "why": _why(problem, rows, best, devices, free),
    }


def _problem(
    question: t.Mapping[str, t.Any], devices: t.Sequence[t.Mapping[str, t.Any]]
) -> split_problem.Problem:
    """Return the problem that a question is about."""
    if not devices:
        raise ValueError("there are no devices: name a hardware profile, or a host with cards")
    missing = [key for key in ("model", "serving", "reserve_mib", "objective", "bench") if key not in question]
    if missing:
        raise ValueError(f"{missing[0]} is missing")
    model, reserve_mib = _model(question), _typed(question["reserve_mib"])
    serving = _typed(question["serving"])
    if context_stage.asked(serving):
        # of a model that does not fit it is said what is missing for the least
        largest = context_room.largest(model, serving, memory_plan.budgets_mib(devices, reserve_mib))
        serving = context_room.with_context(serving, largest or context_room.STEP)
    return split_problem.read_problem({
        "schema": 1,
        "devices": list(devices),
        "model": model,
        "serving": serving,
        "reserve_mib": reserve_mib,
        "split_modes": ["layer"],
        **workload.plan(_typed(question["objective"]), _typed(question["bench"]), serving),
        "indifference": 0.01,
        "max_loads": 1,
        "experts_in_ram": question.get("experts_in_ram"),
    })


def _model(question: t.Mapping[str, t.Any]) -> t.Any:
    named = question.get("model")
    return model_shapes.model(named) if isinstance(named, str) else named


def _row(
    problem: split_problem.Problem,
    speeds: expected_speeds.Speeds,
    layers: layer_split.Layers,
    free: t.Sequence[int],
    reserve_mib: int,
) -> Json:
    """Return what is to be expected of one split."""
    mib = problem.memory.mib(layers)
    decode, ttft = speeds.decode(layers), speeds.ttft(layers)
    return {
        "layers": list(layers),
        "mib": mib,
        "headroom_mib": memory_plan.headroom_mib(mib, free),
        "verdict": _verdict(mib, free, reserve_mib),
        "launch_ms": speeds.launch_ms(layers),
        "decode_ms_per_token": decode.ms if decode else None,
        "ttft_ms": ttft.ms if ttft else None,
        "decode_tokens_per_second": 1000 / decode.ms if decode and decode.ms else None,
        "decode_interval": [1000 / decode.high, 1000 / decode.low] if decode and decode.low and decode.high else None,
        "prefill_tokens_per_second": 1000 * speeds.prompt / ttft.ms if ttft and ttft.ms else None,
        "ttft_interval": [ttft.low, ttft.high] if ttft and ttft.low is not None else None,
        "objective_ms": speeds.objective_ms(layers),
    }


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
