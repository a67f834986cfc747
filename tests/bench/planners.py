"""planners.py --pairs N [--seed N] [--raw FILE] PAGE: compare planners on recorded and simulated pairs of devices.

Every planner gets the same pairs. Regret is how much longer the objective truly takes with the split that a planner
took than with the best of all splits that load (the oracle, which no planner sees), in percent. A planner whose choice
does not load has no regret, it has failed; failures are counted apart.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import json
import math
import pathlib
import random
import statistics
import time
import typing as t

import optuna
import page
import simulated_pair
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_split, memory_plan
from simulated_pair import Layers, Pair, RecordedPair

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "llama_bench"

#: The ratios of the guide that this project implements, first card to second.
GUIDE_RATIOS = (1.0, 1.1, 1.2, 1.3)
OPTUNA_TRIALS = 20
#: What llama.cpp's --fit leaves free on every device.
FIT_MARGIN_MIB = 1024


@dataclasses.dataclass
class Outcome:
    """What one planner made of one pair."""

    planner: str
    pair: str
    band: str
    regret: float
    layers: Layers | None
    loads: int
    traits: tuple[str, ...]
    before_confirmation: int = 0
    anchors: int = 0
    verdict: str = ""
    ms: float = 0.0


# --- the planners ----------------------------------------------------------------------------------------------------


def ours(pair: Pair, chance: random.Random) -> Outcome:
    plan, loads = simulated_pair.drive(pair, chance)
    decision = plan["decision"] or {"layers": None, "verdict": "impossible"}
    purposes = [load["purpose"] for load in loads]
    before = purposes.index("confirm") if "confirm" in purposes else len(loads)
    layers = None if decision["layers"] is None else tuple(decision["layers"])
    anchors = sum(purpose in ("anchor", "single") for purpose in purposes)
    return _outcome(pair, layers, len(loads), before_confirmation=before, anchors=anchors, verdict=decision["verdict"])


def unprobed(pair: Pair, chance: random.Random) -> Outcome:
    """The same without the device probe, as with split_tuning_probe false; a recorded pair has none anyway."""
    bare = copy.copy(pair)
    bare.problem = {key: value for key, value in pair.problem.items() if key != "device_probe"}
    return ours(bare, chance)


def default_split(pair: Pair) -> Layers:
    """Return llama.cpp's own split, by free memory."""
    free = [device["free_mib"] for device in pair.problem["devices"]]
    return layer_split.default_layers(free, pair.problem["model"]["block_count"] + 1)


def by_memory(pair: Pair, _chance: random.Random) -> Outcome:
    return _outcome(pair, default_split(pair), 0)


def fit(pair: Pair, _chance: random.Random) -> Outcome:
    """llama.cpp's --fit: its default while every device keeps its margin, else the last device is filled first."""
    problem = pair.problem
    memory = memory_plan.MemoryPlan(problem["model"], problem["serving"])
    free = [device["free_mib"] for device in problem["devices"]]
    layers: Layers | None = default_split(pair)
    if not _within(memory, layers, free):
        slots = problem["model"]["block_count"] + 1
        options = [(slots - count, count) for count in range(slots, -1, -1)]
        layers = next((option for option in options if _within(memory, option, free)), None)
    return _outcome(pair, layers, 0)


def _within(memory: memory_plan.MemoryPlan, layers: t.Any, free: t.Sequence[int]) -> bool:
    return all(
        not count or used <= limit - FIT_MARGIN_MIB
        for used, limit, count in zip(memory.mib(layers), free, layers, strict=True)
    )


def guide(pair: Pair, chance: random.Random) -> Outcome:
    """The guide's four ratios in favour of the faster card, which we are kind enough to name, each measured once."""
    slots = pair.problem["model"]["block_count"] + 1
    # the faster card is the one whose side of the range is the faster
    first, second = pair.true_ms(max(pair.feasible)), pair.true_ms(min(pair.feasible))
    best: tuple[float, Layers] | None = None
    for ratio in GUIDE_RATIOS:
        layers = layer_split.layers_from_shares((ratio, 1.0) if first <= second else (1.0, ratio), slots)
        ms = pair.measured_ms(layers, chance)
        if ms is not None and (best is None or ms < best[0]):
            best = (ms, layers)
    return _outcome(pair, best[1] if best else None, len(GUIDE_RATIOS))


def tpe(pair: Pair, chance: random.Random) -> Outcome:
    """Optuna's TPE over the splits that memory allows; a load that fails is a failed trial."""
    allowed = sorted(layers[0] for layers in simulated_pair.planned_splits(pair.problem))
    slots = pair.problem["model"]["block_count"] + 1

    def objective(trial: optuna.Trial) -> float:
        first = trial.suggest_int("first", allowed[0], allowed[-1])
        ms = pair.measured_ms((first, slots - first), chance)
        return math.nan if ms is None else ms

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=chance.randrange(2**31)))
    study.optimize(objective, n_trials=OPTUNA_TRIALS)
    done = study.get_trials(deepcopy=False, states=[optuna.trial.TrialState.COMPLETE])
    layers = (study.best_params["first"], slots - study.best_params["first"]) if done else None
    return _outcome(pair, layers, OPTUNA_TRIALS)


PLANNERS: dict[str, t.Callable[[Pair, random.Random], Outcome]] = {
    "this collection": ours,
    "this collection, no device probe": unprobed,
    "llama.cpp's default (by memory)": by_memory,
    "llama.cpp --fit": fit,
    "the guide's four ratios": guide,
    f"Optuna TPE, {OPTUNA_TRIALS} trials": tpe,
}
OURS = "this collection"
SHORT = "less memory than promised"
QUIET = ("0 to 1 %", "1 to 2 %", "2 to 5 %")


def _outcome(pair: Pair, layers: Layers | None, loads: int, **more: t.Any) -> Outcome:
    return Outcome("", pair.name, band_of(pair), pair.regret_percent(layers), layers, loads, pair.traits, **more)


def band_of(pair: Pair) -> str:
    """Return the noise band of a pair."""
    for low, high in simulated_pair.NOISE_BANDS:
        if 100 * pair.noise <= high:
            return f"{low:g} to {high:g} %"
    return f"over {simulated_pair.NOISE_BANDS[-1][1]:g} %"


# --- the pairs -------------------------------------------------------------------------------------------------------


def recorded_pairs() -> list[RecordedPair]:
    """Return the recorded pairs, each under what objectives it was recorded for and several limits of memory."""
    request = [
        {"name": "decode", "prompt_tokens": 2048, "generated_tokens": 256},
        {"name": "prefill", "prompt_tokens": 2048, "generated_tokens": 0},
        {"name": "request", "prompt_tokens": 2048, "generated_tokens": 256},
    ]
    short = [{**objective, "prompt_tokens": 256} for objective in request]
    pairs = []
    for name, slots, objectives, ranges in (
        ("h200_mps_pair", 25, request, ((4, 22), (4, 25), (7, 16), (10, 19))),
        ("cpu_avx_pair", 33, short, ((0, 33), (1, 29), (9, 23))),
        ("cpu_sleep_shim_3to1_decode", 33, request[:1], ((0, 33), (5, 29), (13, 21))),
        ("cpu_isa_pair_decode", 33, request[:1], ((0, 33), (5, 29), (13, 21))),
    ):
        for objective in objectives:
            pairs += [RecordedPair(FIXTURES / f"{name}.jsonl", slots, objective, *limits) for limits in ranges]
    return pairs


def run(pairs: t.Iterable[Pair], seed: int, times: int = 1) -> list[Outcome]:
    """Run every planner on every pair, C(times) times with other luck."""
    outcomes = []
    for pair in pairs:
        for number in range(times):
            for name, planner in PLANNERS.items():
                started = time.perf_counter()
                outcome = planner(pair, random.Random(f"{seed} {pair.name} {number} {name}"))
                outcome.planner, outcome.ms = name, 1000 * (time.perf_counter() - started)
                outcomes.append(outcome)
    return outcomes


# --- the page --------------------------------------------------------------------------------------------------------


def _number(value: float) -> str:
    return "-" if math.isnan(value) else "fails" if math.isinf(value) else f"{value + 0.0:.2f}"


def _row(outcomes: t.Sequence[Outcome]) -> str:
    good = [o.regret for o in outcomes if math.isfinite(o.regret)]
    loads = [o.loads for o in outcomes]
    return (
        f"{len(outcomes)} | {len(outcomes) - len(good)} | {_number(page.percentile(good, 50))}"
        f" | {_number(page.percentile(good, 95))} | {_number(max(good, default=math.nan))}"
        f" | {statistics.median(loads):g} | {max(loads)} |"
    )


def regret_table(outcomes: t.Sequence[Outcome], column: str, group_of: t.Callable[[Outcome], str]) -> list[str]:
    """Return the lines of a table, planner by planner within each group."""
    lines = [
        f"| {column} | planner | runs | fails | regret % median | 95th | max | loads median | max |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for group in dict.fromkeys(group_of(o) for o in outcomes):
        for planner in PLANNERS:
            here = [o for o in outcomes if o.planner == planner and group_of(o) == group]
            lines.append(f"| {group} | {planner} | {_row(here)}")
    return lines


def bars(outcomes: t.Sequence[Outcome]) -> list[tuple[str, str, bool]]:
    """Return the bars that our planner is held to: (bar, measured, whether it is met)."""
    mine = [o for o in outcomes if o.planner == OURS]
    quiet = [o.regret for o in mine if o.band in QUIET]
    median, high = page.percentile(quiet, 50), page.percentile(quiet, 95)
    loads = [o.loads for o in mine]
    usual, more = (max((o.loads for o in mine if (SHORT in o.traits) is short), default=0) for short in (False, True))
    # where memory is less than promised, anchors fail and are replaced
    before, anchors, short = (
        max((getattr(o, key) for o in mine if (SHORT in o.traits) is failing), default=0)
        for key, failing in (("before_confirmation", False), ("anchors", False), ("before_confirmation", True))
    )
    same = [o.loads for o in mine if o.verdict == "no_difference"]
    of_same = statistics.median(same) if same else math.nan
    return [
        ("regret, noise up to 5 %: median 0", f"{_number(median)} %", median < 0.005),
        ("regret, noise up to 5 %: 95th percentile at most 1 %", f"{_number(high)} %", high <= 1.0),
        (
            "loads before the confirmation: at most 3",
            f"{before}, and {anchors} with the anchors after it; {short} where memory is less than promised",
            max(before, anchors) <= 3,
        ),
        (
            "loads in all: at most 7, and two more where memory is less than promised",
            f"{usual}, and {more}",
            usual <= 7 and more <= 9,
        ),
        ("loads in all: median 6 or fewer", f"{statistics.median(loads):g}", statistics.median(loads) <= 6),
        (
            "loads when there is no difference worth having: 3",
            f"median {of_same:g}, {min(same, default=0)} to {max(same, default=0)}, of {len(same)} runs",
            of_same <= 3,
        ),
    ]


def text_of(simulated: t.Sequence[Outcome], recorded: t.Sequence[Outcome], seed: int, seconds: float) -> str:
    """Return the section."""
    pairs = len({o.pair for o in simulated})
    plan_ms = statistics.median(o.ms for o in simulated if o.planner == OURS)
    lines = [
        "## Planners",
        "",
        "Written by `make bench-planners`. How good is the split that a planner takes, and how many loads of the",
        "model does it take to find it? Regret is how much longer the objective takes than with the best split that",
        "loads, in percent of the true times, which no planner sees. A planner fails when its choice does not load.",
        "",
        f"Run {page.today()} on {page.machine()}, one process, {seconds:.0f} s; seed {seed}. Planning itself took"
        f" {plan_ms:.0f} ms per pair in the median.",
        "",
        "| bar | measured on the simulated pairs | |",
        "|---|---|---|",
        *(f"| {name} | {measured} | {'met' if met else '**missed**'} |" for name, measured, met in bars(simulated)),
        "",
        "Three loads can show that there is no difference worth having only where loads repeat within about 1 %; where",
        "they scatter more, more are needed to say so.",
        "",
        "The planner is told what the device probe found, which is off by up to 30 % of the faster device's time, and",
        "by 5 % of each device's cost; what it does without, a row of its own shows.",
        "",
        "Part of the regret is bought on purpose: of splits that are practically equal (within 0.25 % by the fit)",
        "this collection takes the one that leaves the most memory free. Where its regret comes from, at noise up to",
        "5 %:",
        "",
        *traits_table(simulated),
        "",
        f"### {pairs} simulated pairs",
        "",
        "Speed ratios 1 to 8 (one of eight pairs is of like cards with little room), 24 to 80 blocks, memory for 1.03",
        "to 2 times the model, prefill that overlaps wholly, in part or not at all, heavy-tailed outliers in three of",
        "ten pairs, less memory than promised in one of ten; decode, prefill and requests of 512 to 4096 tokens in and",
        "up to 512 out. What a load measures is what the role measures by default. `tests/bench/simulated_pair.py` has",
        "the particulars.",
        "",
        *regret_table(simulated, "noise", lambda o: o.band),
        *regret_table(simulated, "noise", lambda o: "all")[2:],
        "",
        f"Verdicts of this collection: {verdicts(simulated)}.",
        "",
        f"### {len({o.pair for o in recorded})} recorded problems",
        "",
        "Samples of real llama.cpp processes (`tests/fixtures/llama_bench/README.md` says of which), drawn at random;",
        "between recorded splits the times are interpolated, so on the noisy CPU pairs the true best is itself a",
        "matter of luck, and a pair that was recorded once per split shows no more noise than that between samples.",
        "",
        *regret_table(recorded, "recording", lambda o: o.pair.split(",")[0]),
    ]
    return "\n".join(lines) + "\n"


def traits_table(outcomes: t.Sequence[Outcome]) -> list[str]:
    """Return the lines of a table of our planner's regret by what is out of the ordinary in a pair."""
    mine = [o for o in outcomes if o.planner == OURS and o.band in QUIET]
    lines = ["| pairs in which | runs | regret over 1 % | median | 95th | max |", "|---|---|---|---|---|---|"]
    for trait in [None, *sorted({trait for o in mine for trait in o.traits})]:
        regrets = [o.regret for o in mine if trait is None or trait in o.traits]
        lines.append(
            f"| {trait or 'all'} | {len(regrets)} | {sum(1 for value in regrets if value > 1)}"
            f" | {_number(page.percentile(regrets, 50))} | {_number(page.percentile(regrets, 95))}"
            f" | {_number(max(regrets))} |"
        )
    return lines


def verdicts(outcomes: t.Sequence[Outcome]) -> str:
    """Return how often each verdict was given, and after how many loads in the median."""
    loads: dict[str, list[int]] = collections.defaultdict(list)
    for outcome in outcomes:
        if outcome.planner == OURS:
            loads[outcome.verdict].append(outcome.loads)
    return ", ".join(
        f"{verdict} {len(counts)} ({statistics.median(counts):g} loads)" for verdict, counts in sorted(loads.items())
    )


def main() -> None:
    """Run all, write the section, and say whether the bars are met."""
    parser = argparse.ArgumentParser(description="Compare planners on recorded and simulated pairs of devices.")
    parser.add_argument("page", type=pathlib.Path, help="the page whose section is replaced")
    parser.add_argument("--pairs", type=int, required=True, help="simulated pairs")
    parser.add_argument("--seed", type=int, default=1, help="seed of all luck")
    parser.add_argument("--raw", type=pathlib.Path, help="also write every outcome there, as JSON")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    started = time.monotonic()
    print(f"planners | seed {arguments.seed}, {arguments.pairs} simulated pairs", flush=True)
    first = arguments.seed * 1_000_000
    simulated = run((simulated_pair.simulated_pair(first + n) for n in range(arguments.pairs)), arguments.seed)
    recorded = run(recorded_pairs(), arguments.seed, times=8)
    if arguments.raw:
        rows = [dataclasses.asdict(outcome) for outcome in (*simulated, *recorded)]
        arguments.raw.write_text(json.dumps(rows), encoding="utf-8")
    text = text_of(simulated, recorded, arguments.seed, time.monotonic() - started)
    page.write_section(arguments.page, "planners", text)
    for name, measured, met in bars(simulated):
        print(f"planners | {'met   ' if met else 'MISSED'} {name}: {measured}")
    print(f"planners | written to {arguments.page}")


if __name__ == "__main__":
    main()
