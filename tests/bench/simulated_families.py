"""Families of simulated machines: any number of devices, uneven blocks, hops by cut, drift, two clocks, short memory.

Unlike simulated_pair the blocks may differ, devices may be more than two, and noise is not only normal.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import typing as t

import simulated_pair
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import split_problem
from simulated_pair import MICRO_BATCH, OBJECTIVES, TEST_KEYS, TESTS, Json, Layers

MIB = 2**20

#: name -> what is drawn differently
FAMILIES: t.Final[dict[str, dict[str, t.Any]]] = {
    "two": {"devices": (2,)},
    "two, uneven blocks": {"devices": (2,), "blocks": "tapered"},
    "two, heavy ends": {"devices": (2,), "blocks": "ends"},
    "two, hop 0.3 to 2 ms": {"devices": (2,), "hop": (0.3, 2.0)},
    "three and four, hop by cut": {"devices": (3, 4), "hop": (0.0, 2.0)},
    "two, short memory": {"devices": (2,), "short": True},
    "two, drift": {"devices": (2,), "drift": True},
    "two, two clocks": {"devices": (2,), "clocks": True},
    "two, slowest first": {"devices": (2,), "slowest_first": True},
    "two, fast with less memory": {"devices": (2,), "fast_small": True},
    "three": {"devices": (3,)},
    "four": {"devices": (4,)},
    "three and four, uneven": {"devices": (3, 4), "blocks": "tapered"},
    "three, short memory": {"devices": (3,), "short": True},
}


@dataclasses.dataclass
class Machine:
    """A machine whose true times follow from a few numbers: see true_ms."""

    name: str
    problem: Json
    noise: float
    decode_ms: list[float]  # of an average block and token, by device
    prefill_ms: list[float]  # of an average block and micro-batch
    decode_weights: list[float]  # by slot, the output layer last
    prefill_weights: list[float]
    hop_ms: list[float]  # from a device to the next one in use
    overlap: float
    held_mib: list[int]  # what each device really holds, by the plan's counting
    drift: float
    clocks: bool

    def __post_init__(self) -> None:
        self.checked = split_problem.read_problem(self.problem)
        self.done = 0

    def _sums(self, weights: t.Sequence[float], layers: Layers) -> list[float]:
        ends = list(itertools.accumulate(layers))
        return [sum(weights[end - count : end]) for end, count in zip(ends, layers, strict=True)]

    def _hops_ms(self, layers: Layers) -> float:
        used = [device for device, count in enumerate(layers) if count]
        return sum(self.hop_ms[device] for device in used[:-1])

    def decode_token_ms(self, layers: Layers) -> float:
        held = self._sums(self.decode_weights, layers)
        return sum(a * w for a, w in zip(self.decode_ms, held, strict=True)) + self._hops_ms(layers)

    def prefill_prompt_ms(self, layers: Layers, tokens: int) -> float:
        stage = [c * w for c, w in zip(self.prefill_ms, self._sums(self.prefill_weights, layers), strict=True)]
        batches = -(-tokens // MICRO_BATCH)
        fullness = tokens / (batches * MICRO_BATCH)
        pipelined = sum(stage) + (batches - 1) * max(stage)
        computed = self.overlap * pipelined + (1 - self.overlap) * batches * sum(stage)
        return fullness * computed + self._hops_ms(layers)

    def true_ms(self, layers: Layers) -> float:
        objective = self.problem["objective"]
        return simulated_pair.objective_ms(
            objective, self.decode_token_ms(layers), self.prefill_prompt_ms(layers, objective["prompt_tokens"])
        )

    def loads(self, layers: Layers) -> bool:
        mib = self.checked.memory.mib(layers)
        return all(used <= held for used, held in zip(mib, self.held_mib, strict=True))

    def full(self, layers: Layers) -> int:
        mib = self.checked.memory.mib(layers)
        return next(d for d, (used, held) in enumerate(zip(mib, self.held_mib, strict=True)) if used > held)

    def measure(self, wanted: Json, chance: random.Random) -> Json:
        layers = tuple(wanted["layers"])
        if not self.loads(layers):
            named = self.name.endswith("0") or self.name.endswith("5")
            reason = f"out of memory: 600 MiB more were wanted on CUDA device {self.full(layers)}" if named else "full"
            return {**wanted, "status": "out_of_memory", "reason": reason, "results": []}
        self.done += 1
        common = chance.gauss(0, self.noise * math.sqrt(0.5)) + self.drift * min(self.done, 4) / 4
        if self.clocks and chance.random() < 0.3:
            common += 0.04
        results = []
        for test in wanted["tests"]:
            if test["kind"] == "decode":
                true = self.decode_token_ms(layers) * test["n_gen"]
            else:
                true = self.prefill_prompt_ms(layers, test["n_prompt"])
            luck = common + chance.gauss(0, self.noise * math.sqrt(0.5))
            samples = [true * math.exp(luck + chance.gauss(0, self.noise / 3)) for _ in range(test["repetitions"])]
            results.append({key: test[key] for key in TEST_KEYS} | {"samples_ms": samples})
        return {**wanted, "status": "ok", "reason": None, "results": results}

    def all_that_load(self) -> list[Layers]:
        """Return every split that really loads; of many devices a sample beside what the plan lists."""
        slots, devices = self.checked.slots, len(self.held_mib)
        if devices == 2:
            every: t.Iterable[Layers] = ((n, slots - n) for n in range(slots + 1))
        else:
            every = itertools.chain(
                (c.layers for c in self.checked.fitting), (s for s in _compositions(slots, devices, 2))
            )
        return [layers for layers in every if self.loads(layers)]

    def best(self) -> Layers | None:
        """Return the true best: all of two devices, of more by descent from the best of a coarse grid."""
        loading = self.all_that_load()
        if not loading:
            return None
        if len(self.held_mib) == 2:
            return min(loading, key=self.true_ms)
        best: Layers | None = None
        for begin in sorted(loading, key=self.true_ms)[:5]:
            here = begin
            while True:
                near = [n for n in _neighbours(here) if self.loads(n)]
                there = min(near, key=self.true_ms, default=here)
                if self.true_ms(there) >= self.true_ms(here):
                    break
                here = there
            if best is None or self.true_ms(here) < self.true_ms(best):
                best = here
        return best


def _compositions(slots: int, devices: int, step: int) -> t.Iterator[Layers]:
    if devices == 1:
        yield (slots,)
        return
    for first in range(0, slots + 1, step * devices):
        for rest in _compositions(slots - first, devices - 1, step):
            yield (first, *rest)


def _neighbours(layers: Layers) -> t.Iterator[Layers]:
    for giver, taker in itertools.permutations(range(len(layers)), 2):
        for count in (1, 2, 4):
            if layers[giver] >= count:
                moved = list(layers)
                moved[giver] -= count
                moved[taker] += count
                yield tuple(moved)


def _weights(kind: str, blocks: int, chance: random.Random) -> list[float]:
    if kind == "tapered":
        steep = chance.uniform(0.2, 1.2)
        raw = [math.exp(-steep * i / (blocks - 1)) for i in range(blocks)]
        raw = raw if chance.random() < 0.5 else raw[::-1]
    elif kind == "ends":
        heavy, count = chance.uniform(1.5, 3.0), chance.randint(1, max(1, blocks // 8))
        raw = [heavy if i < count or i >= blocks - count else 1.0 for i in range(blocks)]
    else:
        # Q4_K_M: half of the blocks have somewhat larger tensors
        raw = [1.15 if i < blocks // 8 or i >= 7 * blocks // 8 or i % 3 == 2 else 1.0 for i in range(blocks)]
    mean = sum(raw) / blocks
    return [value / mean for value in raw]


def machine(family: str, seed: int) -> Machine:
    """Return the machine of this seed in one family of FAMILIES, with at least two splits that the plan allows."""
    chance = random.Random(f"{family} {seed}")
    while True:
        found = _draw(family, seed, chance)
        if found is not None:
            return found


def _draw(family: str, seed: int, chance: random.Random) -> Machine | None:
    how = FAMILIES[family]
    devices = chance.choice(how["devices"])
    blocks = chance.choice((24, 32, 48, 64, 80))
    model_mib = math.exp(chance.uniform(math.log(4000), math.log(60000)))
    name, prompt, generated = chance.choice(OBJECTIVES)
    weights = _weights(how.get("blocks", "q4_k_m"), blocks, chance)
    shares = [chance.uniform(0.6, 1.4) for _ in range(devices)]
    speeds = [math.exp(chance.uniform(0, math.log(5))) for _ in range(devices)]
    if how.get("slowest_first"):
        speeds.sort(reverse=True)
    if how.get("fast_small"):
        order = sorted(range(devices), key=lambda d: speeds[d])
        ranked = sorted(shares)
        for rank, device in enumerate(order):
            shares[device] = ranked[rank]
    low, high = how.get("hop", (0, 0.05))
    hop = [chance.uniform(low, high)] * devices if devices == 2 else [chance.uniform(low, high) for _ in range(devices)]
    tight = 1.05 if how.get("short") else 1.0
    total = (model_mib + blocks * 32 + 700 * devices) * chance.uniform(1.03, 2.0) * tight + 1024
    problem = simulated_pair.make_problem(
        blocks, model_mib, [int(total * s / sum(shares)) for s in shares],
        {"name": name, "prompt_tokens": prompt, "generated_tokens": generated}, TESTS,
        embedding=4096, vocabulary=chance.choice((32000, 128256)),
    )  # fmt: skip
    model = problem["model"]
    model["block_bytes"] = [int(value * model["block_bytes"][0]) for value in weights]
    model["block_read_bytes"], model["block_weights"] = list(model["block_bytes"]), list(model["block_bytes"])
    # every block costs a fixed share too: launching its kernels
    fixed = chance.uniform(0, 0.2)
    heavy = [fixed + (1 - fixed) * value for value in weights]
    output = model["output_bytes"] / (sum(model["block_bytes"]) / blocks)
    per_block = model_mib / blocks / chance.uniform(600, 1000)
    decode = [per_block * value for value in speeds]
    prefill = [per_block * 20 * value * math.exp(chance.gauss(0, 0.3)) for value in speeds]
    low, high = ((0, 1), (1, 2), (2, 5))[seed % 3]
    problem["device_probe"] = simulated_pair.probe_of(decode, prefill, random.Random(f"probe {family} {seed}"))
    if seed % 4 == 3:
        del problem["device_probe"]
    fitting = stages.plan(problem, [])["feasible"]
    if len(fitting) < 2:
        return None
    budgets = list(split_problem.read_problem(problem).budgets)
    if how.get("short"):
        device = chance.randrange(devices)
        budgets[device] = int(budgets[device] * chance.uniform(0.6, 0.99))
    found = Machine(
        f"{family} {seed}", problem, chance.uniform(low, high) / 100, decode, prefill, [*heavy, output],
        [*heavy, 0.0], hop, chance.choice((0.0, 1.0, 1.0, chance.uniform(0.2, 0.8))), budgets,
        chance.uniform(0.0, 0.05) if how.get("drift") else 0.0, bool(how.get("clocks")),
    )  # fmt: skip
    return found if found.all_that_load() else None
