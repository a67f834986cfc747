"""Two unlike devices whose true times are known, simulated or recorded, and what measuring them would say.

What a pair simulates, and what the planners do not know of it: a slot costs what its bytes cost, so the output layer
costs more or less than a block; one hop between devices; prefill that overlaps wholly, in part or not at all; noise
between loads and, a third as large, between the repetitions of a load; in some pairs heavy-tailed outliers, of
repetitions and of whole loads; in some, less memory on one device than it says.
"""

from __future__ import annotations

import collections
import dataclasses
import json
import math
import pathlib
import random
import statistics
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages

Json = dict[str, t.Any]
Layers = tuple[int, ...]

MICRO_BATCH = 512
MIB = 2**20

TEST_KEYS = ("kind", "n_prompt", "n_gen", "n_depth")


class Pair:
    """A problem for the planners, the true cost of each split, and loads that measure it with noise."""

    name: str
    problem: Json
    #: The splits that really load.
    feasible: list[Layers]
    #: Standard deviation between loads, relative; of a recorded pair as it was recorded.
    noise: float
    #: What is out of the ordinary.
    traits: tuple[str, ...] = ()

    def true_ms(self, layers: Layers) -> float:
        """Return the true mean of the objective."""
        raise NotImplementedError

    def results(self, load: Json, chance: random.Random) -> list[Json]:
        """Return the results of a load that succeeds."""
        raise NotImplementedError

    def measure(self, wanted: Json, chance: random.Random) -> Json:
        """Return what measuring one load says, as split_benchmark would."""
        if tuple(wanted["layers"]) not in self.feasible:
            return {**wanted, "status": "out_of_memory", "reason": "the device is full", "results": []}
        return {**wanted, "status": "ok", "reason": None, "results": self.results(wanted, chance)}

    def measured_ms(self, layers: Layers, chance: random.Random) -> float | None:
        """Return the objective as one load measures it, at the objective's own prompt length; None if it fails."""
        objective = self.problem["objective"]
        tests = [dict(test) for test in self.problem["tests"]]
        for test in tests:
            if test["kind"] == "prefill":
                test["n_prompt"] = objective["prompt_tokens"]
        load = self.measure({"layers": list(layers), "tests": tests}, chance)
        if load["status"] != "ok":
            return None
        ms = {r["kind"]: statistics.median(r["samples_ms"]) / (r["n_gen"] or 1) for r in load["results"]}
        return objective_ms(objective, ms.get("decode", 0.0), ms.get("prefill", 0.0))

    def regret_percent(self, layers: Layers | None) -> float:
        """Return how much longer a split takes than the best of all, in percent; infinite if it does not load."""
        if layers is None or layers not in self.feasible:
            return math.inf
        best = min(self.true_ms(other) for other in self.feasible)
        return 100 * (self.true_ms(layers) / best - 1)


class Measured(t.Protocol):
    """What can be tuned: a problem, and loads of it."""

    problem: Json

    def measure(self, wanted: Json, chance: random.Random) -> Json:
        """Return the load that was asked for with its results."""


def drive(machine: Measured, chance: random.Random) -> tuple[Json, list[Json]]:
    """Plan and measure in rounds, as the action plugin campaign does; return the last plan and all loads."""
    loads: list[Json] = []
    while True:
        plan = stages.plan(machine.problem, loads)
        loads += [machine.measure(wanted, chance) for wanted in plan["loads"]]
        if plan["done"]:
            return plan, loads


def objective_ms(objective: t.Mapping[str, t.Any], decode_ms: float, prefill_ms: float) -> float:
    """Return the objective from the times of one token and of one prompt of its length."""
    total = 0.0
    if objective["name"] != "prefill":
        total += objective["generated_tokens"] * decode_ms
    if objective["name"] != "decode":
        total += prefill_ms
    return total


def make_problem(
    blocks: int,
    model_mib: float,
    free_mib: t.Sequence[int],
    objective: Json,
    tests: t.Sequence[Json],
    *,
    reserve_mib: int = 512,
    embedding: int = 4096,
    vocabulary: int = 32000,
) -> Json:
    """Return a problem of docs/data_formats.md for a model of C(blocks) equal blocks; the rest as roles default it."""
    output = int(vocabulary * embedding * 0.82)
    block = max(1, int((model_mib * MIB - output) / blocks))
    return {
        "schema": 1,
        "devices": [
            {"device": f"CUDA{i}", "id": f"GPU-{i}", "backend": "CUDA", "description": "simulated",
             "total_mib": mib, "free_mib": mib, "budget_mib": None}
            for i, mib in enumerate(free_mib)
        ],
        "model": {
            "path": "/srv/models/simulated.gguf", "name": "simulated", "block_count": blocks,
            "block_bytes": [block] * blocks, "output_bytes": output, "embedding_length": embedding,
            "vocabulary_size": vocabulary, "feed_forward_length": 7 * embedding // 2, "head_count": embedding // 128,
            "kv_k_elements_per_token": [1024] * blocks, "kv_v_elements_per_token": [1024] * blocks,
        },
        "serving": {
            "context_size": 8192, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048,
            "micro_batch_size": MICRO_BATCH, "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
            "threads": 1, "poll": 0, "load_mode": "auto", "gpu_layers": 99,
        },
        "reserve_mib": reserve_mib,
        "split_modes": ["layer"],
        "objective": objective,
        "tests": [dict(test) for test in tests],
        "indifference": 0.01,
        "max_loads": 7,
    }  # fmt: skip


def planned_splits(problem: Json) -> list[Layers]:
    """Return the splits that the memory plan allows."""
    return [tuple(row["layers"]) for row in stages.plan(problem, [])["feasible"]]


# --- simulated -------------------------------------------------------------------------------------------------------

#: What a user may want: name, prompt tokens, generated tokens.
OBJECTIVES = (
    ("decode", 1024, 256),
    ("prefill", 1024, 0),
    ("prefill", 4096, 0),
    ("request", 1024, 256),
    ("request", 4096, 128),
    ("request", 512, 512),
)

#: What a load measures, as the role's defaults say.
TESTS = (
    {"kind": "prefill", "n_prompt": 2048, "n_gen": 0, "n_depth": 0, "repetitions": 3},
    {"kind": "decode", "n_prompt": 0, "n_gen": 128, "n_depth": 0, "repetitions": 3},
)

#: Noise between loads, percent, in equal shares of the pairs.
NOISE_BANDS = ((0.0, 1.0), (1.0, 2.0), (2.0, 5.0), (5.0, 10.0))


@dataclasses.dataclass
class SimulatedPair(Pair):
    """A pair whose true times follow from a few numbers."""

    name: str
    problem: Json
    feasible: list[Layers]
    noise: float
    decode_ms: tuple[float, float]  # of one block and token, per device
    prefill_ms: tuple[float, float]  # of one block and micro-batch
    output_blocks: float  # what the output layer costs in decode, in blocks
    hop_ms: float
    overlap: float  # 1: the stages of prefill overlap wholly, 0: not at all
    outliers: bool
    short: bool  # a device has less memory than it says

    def __post_init__(self) -> None:
        how = "wholly" if self.overlap == 1 else "not at all" if self.overlap == 0 else "in part"
        kind = self.problem["objective"]["name"]
        best = min(self.feasible, key=self.true_ms, default=())
        facts = {
            "only decode counts": kind == "decode",
            f"prefill counts and overlaps {how}": kind != "decode",
            "one device alone is the best": 0 in best,
            "outliers": self.outliers,
            "less memory than promised": self.short,
            "like cards with little room": max(self.decode_ms) < 1.03 * min(self.decode_ms) and len(self.feasible) < 20,
        }
        self.traits = tuple(fact for fact, holds in facts.items() if holds)

    def decode_token_ms(self, layers: Layers) -> float:
        """Return the true time of one token."""
        used = [device for device, count in enumerate(layers) if count]
        total = sum(self.decode_ms[device] * layers[device] for device in used)
        total += self.decode_ms[used[-1]] * (self.output_blocks - 1)
        return total + self.hop_ms * (len(used) - 1)

    def prefill_prompt_ms(self, layers: Layers, tokens: int) -> float:
        """Return the true time of a prompt. Its output layer runs for the last token alone: next to nothing."""
        used = [device for device, count in enumerate(layers) if count]
        blocks = [count - (1 if device == used[-1] else 0) for device, count in enumerate(layers)]
        stages = [cost * count for cost, count in zip(self.prefill_ms, blocks, strict=True)]
        batches = -(-tokens // MICRO_BATCH)
        fullness = tokens / (batches * MICRO_BATCH)
        pipelined = sum(stages) + (batches - 1) * max(stages)
        return fullness * (self.overlap * pipelined + (1 - self.overlap) * batches * sum(stages))

    def true_ms(self, layers: Layers) -> float:
        objective = self.problem["objective"]
        return objective_ms(
            objective, self.decode_token_ms(layers), self.prefill_prompt_ms(layers, objective["prompt_tokens"])
        )

    def results(self, load: Json, chance: random.Random) -> list[Json]:
        layers = tuple(load["layers"])
        # half of a load's luck is common to its tests
        common = chance.gauss(0, self.noise * math.sqrt(0.5))
        if self.outliers and chance.random() < 0.03:
            common += math.log(heavy_tail(chance))
        results = []
        for test in load["tests"]:
            if test["kind"] == "decode":
                true = self.decode_token_ms(layers) * test["n_gen"]
            else:
                true = self.prefill_prompt_ms(layers, test["n_prompt"])
            luck = common + chance.gauss(0, self.noise * math.sqrt(0.5))
            samples = []
            for _repetition in range(test["repetitions"]):
                sample = true * math.exp(luck + chance.gauss(0, self.noise / 3))
                if self.outliers and chance.random() < 0.05:
                    sample *= heavy_tail(chance)
                samples.append(sample)
            results.append({key: test[key] for key in TEST_KEYS} | {"samples_ms": samples})
        return results


def heavy_tail(chance: random.Random) -> float:
    """Return the factor of a disturbance: 1.16 in the median, 1.74 for one of twenty, at most 5."""
    return min(5.0, 1 + 0.1 * chance.paretovariate(1.5))


def simulated_pair(seed: int) -> SimulatedPair:
    """Return the pair of this seed. Pairs for which memory leaves no choice are drawn again."""
    chance = random.Random(f"pair {seed}")
    while True:
        pair = _draw(seed, chance)
        if len(pair.feasible) >= 2:
            return pair


def probe_of(decode_ms: t.Sequence[float], prefill_ms: t.Sequence[float], chance: random.Random) -> Json:
    """Return what the device probe says of such devices, as the filter device_probe would.

    It is off by what a small model does: launching kernels takes up to 30 % of the faster device's time, the same on
    both, and another type of weights changes each device's cost by 5 % in the standard deviation.
    """
    launching = chance.uniform(0, 0.3)
    devices = []
    for decode, prefill in zip(decode_ms, prefill_ms, strict=True):
        token = decode * chance.lognormvariate(0, 0.05) + launching * min(decode_ms)
        prompt = prefill * chance.lognormvariate(0, 0.05) + launching * min(prefill_ms) / 4
        devices.append({
            "status": "ok", "decode_ms_per_token": {"median": token}, "prefill_tokens_per_second": 1000 / prompt
        })
    return {"devices": devices}


def _draw(seed: int, chance: random.Random) -> SimulatedPair:
    blocks = chance.choice((24, 32, 48, 64, 80))
    model_mib = math.exp(chance.uniform(math.log(4000), math.log(60000)))
    name, prompt, generated = chance.choice(OBJECTIVES)
    vocabulary, embedding = chance.choice(((32000, 4096), (128256, 4096), (128256, 8192), (152064, 5120)))
    share = 0.5 if chance.random() < 0.5 else chance.uniform(0.3, 0.7)
    need = model_mib + blocks * 32 + 1500
    # one of eight is a pair of like cards with little room, where there is next to nothing to choose
    alike = chance.random() < 0.125
    total = need * chance.uniform(1.03, 1.1 if alike else 2.0) + 1024
    problem = make_problem(
        blocks, model_mib, (int(total * share), int(total * (1 - share))),
        {"name": name, "prompt_tokens": prompt, "generated_tokens": generated}, TESTS,
        embedding=embedding, vocabulary=vocabulary,
    )  # fmt: skip
    ratio = math.exp(chance.uniform(0, math.log(8)))
    prefill_ratio = min(8.0, max(1.0, ratio * math.exp(chance.gauss(0, 0.4))))
    if alike:
        ratio = prefill_ratio = chance.uniform(1.0, 1.03)
    fast_first = chance.random() < 0.5
    batch = math.exp(chance.uniform(math.log(4), math.log(40)))
    model = problem["model"]
    token_ms = blocks * (1 + ratio) / 2
    low, high = NOISE_BANDS[seed % len(NOISE_BANDS)]
    decode_ms = (1.0, ratio) if fast_first else (ratio, 1.0)
    prefill_ms = (batch, batch * prefill_ratio) if fast_first else (batch * prefill_ratio, batch)
    problem["device_probe"] = probe_of(decode_ms, prefill_ms, random.Random(f"probe {seed}"))
    feasible = planned_splits(problem)
    # a device that has less than it says: the last slot or two do not load
    short = bool(feasible) and chance.random() < 0.1
    if short:
        device, missing = chance.randrange(2), chance.choice((1, 2))
        most = max(layers[device] for layers in feasible) - missing
        feasible = [layers for layers in feasible if layers[device] <= most]
    return SimulatedPair(
        name=f"simulated {seed}",
        problem=problem,
        feasible=feasible,
        noise=chance.uniform(low, high) / 100,
        decode_ms=decode_ms,
        prefill_ms=prefill_ms,
        output_blocks=model["output_bytes"] / model["block_bytes"][0],
        hop_ms=chance.uniform(0, 0.02) * token_ms,
        overlap=chance.choice((0.0, 1.0, 1.0, chance.uniform(0.2, 0.8))),
        outliers=chance.random() < 0.3,
        short=short,
    )


# --- recorded --------------------------------------------------------------------------------------------------------


class RecordedPair(Pair):
    """A recorded pair: a load is one recorded process of its split; of a split that was recorded once, its samples are
    drawn again. Splits between recorded ones are interpolated, times of the two neighbours on a straight line. Memory
    is set so that exactly the splits from C(least) to C(most) slots on the first device fit."""

    def __init__(self, path: pathlib.Path, slots: int, objective: Json, least: int, most: int) -> None:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        #: (prompt tokens, generated tokens) -> slots on the first device -> processes -> samples in ms
        self.recorded: dict[tuple[int, int], dict[int, list[list[float]]]] = collections.defaultdict(dict)
        for row in rows:
            first = round(float(row["tensor_split"].split("/")[0]))
            test = self.recorded[row["n_prompt"], row["n_gen"]]
            test.setdefault(first, []).append([ns / 1e6 for ns in row["samples_ns"]])
        self.slots = slots
        self.name = f"{path.stem}, {objective['name']}, {least} to {most}"
        tests = [
            {"kind": "prefill" if prompt else "decode", "n_prompt": prompt, "n_gen": generated, "n_depth": 0,
             "repetitions": len(next(iter(known.values()))[0])}
            for (prompt, generated), known in sorted(self.recorded.items())
            if not prompt or prompt == objective["prompt_tokens"]
        ]  # fmt: skip
        self.problem = _recorded_problem(slots, objective, tests, least, most)
        self.problem["serving"]["micro_batch_size"] = rows[0]["n_ubatch"]
        self.feasible = [(n, slots - n) for n in range(least, most + 1)]
        self.noise = self._noise()

    def _noise(self) -> float:
        """Return the relative deviation between recorded processes of one split; between samples if there is one."""
        spreads = []
        for known in self.recorded.values():
            for runs in known.values():
                means = [statistics.fmean(run) for run in runs] if len(runs) > 1 else runs[0]
                if len(means) > 1:
                    spreads.append(statistics.variance(map(math.log, means)))
        return math.sqrt(statistics.fmean(spreads))

    def _neighbours(self, test: tuple[int, int], first: int) -> tuple[int, int, float]:
        known = self.recorded[test]
        if first in known:
            return first, first, 0.0
        # a prompt's output layer costs next to nothing, so for prefill it is the blocks that lie between
        most = self.slots - 1 if test[0] else self.slots
        here = min(first, most)
        low = max(n for n in known if min(n, most) <= here)
        high = min(n for n in known if min(n, most) >= here)
        span = min(high, most) - min(low, most)
        return low, high, (here - min(low, most)) / span if span > 0 else 0.0

    def _true(self, test: tuple[int, int], first: int) -> float:
        low, high, weight = self._neighbours(test, first)
        a, b = (statistics.fmean(statistics.fmean(run) for run in self.recorded[test][n]) for n in (low, high))
        return a + weight * (b - a)

    def true_ms(self, layers: Layers) -> float:
        objective = self.problem["objective"]
        decode = next(((self._true(test, layers[0]) / test[1]) for test in self.recorded if test[1]), 0.0)
        prompt = (objective["prompt_tokens"], 0)
        return objective_ms(objective, decode, self._true(prompt, layers[0]) if prompt in self.recorded else 0.0)

    def results(self, load: Json, chance: random.Random) -> list[Json]:
        results = []
        for test in load["tests"]:
            recorded = (test["n_prompt"], test["n_gen"])
            low, high, weight = self._neighbours(recorded, load["layers"][0])
            runs = []
            # both neighbours from the same sweep, so that its luck stays in the load
            number = chance.randrange(64)
            for n in (low, high):
                known = self.recorded[recorded][n]
                run = known[number % len(known)]
                runs.append(run if len(known) > 1 else [chance.choice(run) for _sample in run])
            samples = [a + weight * (b - a) for a, b in zip(*runs, strict=True)]
            results.append({key: test[key] for key in TEST_KEYS} | {"samples_ms": samples})
        return results


def _recorded_problem(slots: int, objective: Json, tests: t.Sequence[Json], least: int, most: int) -> Json:
    """Return a problem for which memory allows exactly C(least) to C(most) slots on the first of two devices."""
    roomy = make_problem(slots - 1, 400 * slots, (10**6, 10**6), objective, tests, reserve_mib=0)
    rows = {tuple(r["layers"]): r["mib"] for r in stages.plan(roomy, [])["feasible"]}
    free = rows[most, slots - most][0], rows[least, slots - least][1]
    return make_problem(slots - 1, 400 * slots, free, objective, tests, reserve_mib=0)
