"""Families of simulated machines with experts, or FFN weights, in RAM: models that do not fit, planned in integers.

What they simulate, and what the planner does not know of them: cards and RAM of any bandwidth, a cost of each block in
RAM beside its bytes, threads with an optimum that may lie between those measured, links of x16 and x4, copies that
overlap with computing in part, host memory that is slower or faster when it is not pinned, noise, and cards that hold
less than they say.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import typing as t

import simulated_pair
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_plane
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    expert_placement,
    model_weights,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.expert_placement import ExpertPlacement
from simulated_pair import Json

MIB: t.Final = 2**20

#: name -> what is drawn differently
FAMILIES: t.Final[dict[str, dict[str, t.Any]]] = {
    "MoE plane": {"devices": (1, 2, 2, 2)},
    "MoE plane, first card on x4": {"devices": (2,), "link": (4.0, 8.0)},
    "MoE plane, unlike cards": {"devices": (2,), "unlike": True},
    "MoE plane, odd threads": {"devices": (2,), "odd_threads": True},
    "MoE plane, short memory": {"devices": (2,), "short": True},
    "MoE plane, two clocks": {"devices": (2,), "clocks": True},
    "MoE plane, three and four": {"devices": (3, 4)},
    "dense plane": {"devices": (1, 2, 2, 3), "dense": True},
}

#: What a user may want: name, prompt tokens, generated tokens.
OBJECTIVES: t.Final = (*simulated_pair.OBJECTIVES, ("request", 4096, 512), ("ttft", 2048, 1))
TEST_KEYS: t.Final = (*simulated_pair.TEST_KEYS, "micro_batch_size", "threads")


@dataclasses.dataclass
class Machine:
    """A machine whose true times follow from a few numbers."""

    name: str
    problem: Json
    noise: float
    card_bytes_per_ms: list[float]
    card_work_per_ms: list[float]
    ram_bytes_per_ms: float
    block_ms: float  # of a block in RAM beside its bytes, per token
    launch_ms: float
    link_bytes_per_ms: float
    start_ms: float  # of a micro-batch
    handle_ms: float  # of 1000 tokens through a block in RAM
    overlap: float  # of copies with computing
    saturation: float  # threads at which RAM is nearly saturated
    optimum: float  # threads beyond which they are in each other's way
    crowd: float
    no_host: tuple[float, float]  # factor of the CPU's time, of copies
    held_mib: list[int]
    clocks: bool

    def __post_init__(self) -> None:
        self.checked = split_problem.read_problem(self.problem)
        self.plane = expert_plane.Plane(self.checked, self.held_mib)
        self.read = model_weights.bytes_read(self.checked.memory.model, self.checked.memory.serving, 64)
        self.used = expert_placement.share_used(self.problem["model"])

    def thread_factor(self, threads: int) -> float:
        """Return the time of the CPU with some threads in that with very many that are not in each other's way."""
        return (1 + (self.saturation / threads) ** 2) ** 0.5 + self.crowd * max(0.0, threads / self.optimum - 1)

    @functools.cached_property
    def best_threads(self) -> int:
        return min(range(1, 1 + max(self.problem["experts_in_ram"]["threads"])), key=self.thread_factor)

    def _blocks(self, placement: ExpertPlacement) -> list[int]:
        return expert_placement.block_ram_bytes(self.checked.memory.model, placement)

    def decode_token_ms(self, placement: ExpertPlacement) -> float:
        in_ram = [*self._blocks(placement), 0]
        total, start = self.launch_ms, 0
        for count, rate in zip(placement.layers, self.card_bytes_per_ms, strict=True):
            own = slice(start, start + count)
            start += count
            total += (sum(self.read[own]) - self.used * sum(in_ram[own])) / rate
        cpu = self.used * sum(in_ram) / self.ram_bytes_per_ms + self.block_ms * sum(1 for size in in_ram if size)
        factor = self.no_host[0] if placement.no_host else 1.0
        return total + cpu * factor * self.thread_factor(placement.threads)

    def prefill_prompt_ms(self, placement: ExpertPlacement, tokens: int, micro_batch: int) -> float:
        in_ram = self._blocks(placement)
        work = self.problem["model"]["block_weights"]
        batches = -(-tokens // micro_batch)
        compute, start = 0.0, 0
        for count, rate in zip(placement.layers, self.card_work_per_ms, strict=True):
            own = range(start, min(start + count, len(work)))
            start += count
            # what is in RAM is computed by the first card
            away = sum(work[b] * min(1.0, self.used * in_ram[b] / work[b]) for b in own)
            compute += tokens / batches * (sum(work[b] for b in own) - away) / rate
            compute += tokens / batches * away / self.card_work_per_ms[0]
        slower = self.no_host[1] if placement.no_host else 1.0
        copies = sum(in_ram) / self.link_bytes_per_ms * slower
        blocks = sum(in_ram) / max(in_ram, default=1) if sum(in_ram) else 0.0
        handled = self.handle_ms * tokens / batches / 1000 * blocks
        away = sum(1 for block, size in enumerate(in_ram) if size and block >= placement.layers[0])
        hops = 0.2 * away * tokens / batches / 1000
        hidden = self.overlap * min(copies, compute)
        return batches * (self.start_ms + compute + copies + handled + hops - hidden)

    def true_ms(self, placement: ExpertPlacement, micro_batch: int) -> float:
        name = self.problem["objective"]["name"]
        prompt, generated = self.checked.counted(name)
        total = 0.0
        if generated:
            total += generated * self.decode_token_ms(placement)
        if prompt:
            total += self.prefill_prompt_ms(placement, prompt, micro_batch)
        return total

    def loads(self, placement: ExpertPlacement, micro_batch: int) -> bool:
        mib = self.plane.mib(placement, micro_batch)
        return all(used <= held for used, held in zip(mib, self.held_mib, strict=True))

    def measure(self, wanted: Json, chance: random.Random) -> Json:
        placement = expert_placement.from_json(wanted["layers"], wanted["experts_in_ram"])
        # with more than two devices one may hold all, which no listed split says
        placement = placement or ExpertPlacement(tuple(wanted["layers"]), (), threads=1)
        sizes = [test.get("micro_batch_size", simulated_pair.MICRO_BATCH) for test in wanted["tests"]]
        mib = self.plane.mib(placement, max(sizes))
        full = next((d for d, (used, held) in enumerate(zip(mib, self.held_mib, strict=True)) if used > held), None)
        if full is not None:
            # weights are one piece, the cache and compute buffers others
            short = mib[full] - self.held_mib[full]
            more = 0.95 * mib[full] if chance.random() < 0.5 else short * chance.uniform(1, 4)
            reason = f"out of memory: {more:.0f} MiB more were wanted on CUDA device {full}"
            return {**wanted, "status": "out_of_memory", "reason": reason, "results": []}
        common = chance.gauss(0, self.noise * math.sqrt(0.5))
        if self.clocks and chance.random() < 0.3:
            common += 0.04
        results = []
        for test in wanted["tests"]:
            own = dataclasses.replace(placement, threads=test.get("threads", placement.threads))
            if test["kind"] == "decode":
                true = self.decode_token_ms(own) * test["n_gen"]
            else:
                true = self.prefill_prompt_ms(
                    own, test["n_prompt"], test.get("micro_batch_size", simulated_pair.MICRO_BATCH)
                )
            luck = common + chance.gauss(0, self.noise * math.sqrt(0.5))
            samples = [true * math.exp(luck + chance.gauss(0, self.noise / 3)) for _ in range(test["repetitions"])]
            results.append({key: test[key] for key in TEST_KEYS if key in test} | {"samples_ms": samples})
        return {**wanted, "status": "ok", "reason": None, "results": results}

    @functools.cached_property
    def best_ms(self) -> float | None:
        """The true least of the objective over splits, parts, micro-batches, threads and kinds of host memory."""
        least: float | None = None
        for size in expert_plane.micro_batches(self.checked):
            for placement in self._placements(size):
                for no_host in (False, True) if self.problem["experts_in_ram"]["no_host"] else (False,):
                    own = dataclasses.replace(placement, threads=self.best_threads, no_host=no_host)
                    value = self.true_ms(own, size)
                    least = value if least is None or value < least else least
        return least

    def _placements(self, size: int) -> t.Iterator[ExpertPlacement]:
        slots, devices = self.checked.slots, len(self.held_mib)
        splits: t.Iterable[tuple[int, ...]] = self.plane.splits(size)
        if devices > 2:
            splits = {*splits, *split_problem.layer_split.enumerate_splits(slots, devices)}
        found = [self.plane.least(layers, size) for layers in splits]
        if not any(found):
            found = [self.plane.least(layers, size, spill=True) for layers in splits]
        yield from (placement for placement in found if placement is not None)


def _model(chance: random.Random) -> Json:
    blocks = chance.choice((24, 36, 46, 48, 62))
    experts, used = chance.choice(((128, 4), (128, 8), (64, 8), (256, 8)))
    block_mib = math.exp(chance.uniform(math.log(250), math.log(1800)))
    up, down = block_mib * MIB * 0.32, block_mib * MIB * 0.36
    parts = {"up": up, "gate": up, "down": down}
    lead = chance.choice((0, 0, 1))
    sizes = {part: [0 if b < lead else int(size) for b in range(blocks)] for part, size in parts.items()}
    dense = int(block_mib * MIB * chance.uniform(0.03, 0.25))
    whole = [sum(own[b] for own in sizes.values()) for b in range(blocks)]
    weights = [dense + size * used // experts for size in whole]
    vocabulary = chance.choice((151552, 151936, 201088))
    return {
        "path": "/srv/models/simulated.gguf", "name": "simulated", "block_count": blocks, "architecture": "qwen3moe",
        "block_bytes": [dense + size for size in whole], "block_read_bytes": weights, "block_weights": weights,
        "block_ffn_bytes": sizes, "output_bytes": int(vocabulary * 2880 * 0.82),
        "token_embedding_bytes": int(vocabulary * 2880 * 0.6), "embedding_length": 2880,
        "vocabulary_size": vocabulary, "feed_forward_length": 2880, "expert_feed_forward_length": 2880,
        "expert_count": experts, "expert_used_count": used, "head_count": 64,
        "kv_k_elements_per_token": [512] * blocks, "kv_v_elements_per_token": [512] * blocks, "notes": [],
    }  # fmt: skip


def _dense(chance: random.Random) -> Json:
    """Return a model without experts: like a MoE whose only expert is always in use."""
    model = _model(chance)
    smaller = chance.uniform(0.2, 0.4)  # of blocks of 250 to 1800 MiB
    sizes = {part: [int(size * smaller) for size in own] for part, own in model["block_ffn_bytes"].items()}
    whole = [sum(own) for own in zip(*sizes.values(), strict=True)]
    attention = int(max(whole) * chance.uniform(0.15, 0.5))
    weights = [attention + (size or max(whole)) for size in whole]
    return {
        **model, "architecture": "llama", "block_bytes": weights, "block_read_bytes": weights, "block_weights": weights,
        "block_ffn_bytes": sizes, "expert_feed_forward_length": 0, "expert_count": 0, "expert_used_count": 0,
    }  # fmt: skip


def machine(family: str, seed: int) -> Machine:
    """Return the machine of this seed in one family of FAMILIES: experts have to be in RAM, and may be."""
    chance = random.Random(f"{family} {seed}")
    while True:
        found = _draw(family, seed, chance)
        if found is not None:
            return found


def _draw(family: str, seed: int, chance: random.Random) -> Machine | None:
    how = FAMILIES[family]
    devices, model = chance.choice(how["devices"]), (_dense if how.get("dense") else _model)(chance)
    name, prompt, generated = chance.choice(OBJECTIVES)
    shares = [chance.uniform(0.5, 1.5) for _ in range(devices)]
    weights = (sum(model["block_bytes"]) + model["output_bytes"]) / MIB
    # a dense model is a little too large, one of experts may be far too large
    total = weights * chance.uniform(0.75 if how.get("dense") else 0.3, 0.97) + 1500 * devices
    problem = simulated_pair.make_problem(
        model["block_count"], 4000, [int(total * share / sum(shares)) for share in shares],
        {"name": name, "prompt_tokens": prompt, "generated_tokens": generated}, simulated_pair.TESTS,
    )  # fmt: skip
    problem["model"] = model
    cores = chance.choice((4, 6, 8, 12, 16, 24))
    link = chance.uniform(*how.get("link", (4.0, 50.0)))
    problem["experts_in_ram"] = {
        "mode": "auto",
        "threads": sorted({max(1, cores // 4), cores // 2, 3 * cores // 4, cores, 3 * cores // 2, 2 * cores}),
        "default_threads": cores, "no_host": True, "ram_mib": None, "links_gb_per_s": [link] * devices,
        "own": None,
    }  # fmt: skip
    spread = 8.0 if how.get("unlike") else 2.5
    cards = [1e6 * math.exp(chance.uniform(math.log(1000 / spread), math.log(1000))) for _ in range(devices)]
    work = [rate * chance.uniform(60, 120) for rate in cards]
    if not expert_plane.wanted(split_problem.read_problem(problem)):
        return None
    if seed % 4 != 3:
        # a model of 1e9 bytes, read once per token
        read = [1e9 / rate for rate in cards]
        multiplied = [1e9 / rate for rate in work]
        problem["device_probe"] = simulated_pair.probe_of(read, multiplied, random.Random(f"probe {family} {seed}"))
        problem["device_probe"]["weights_bytes"] = 1e9
    budgets = list(split_problem.read_problem(problem).budgets)
    if how.get("short"):
        device = chance.randrange(devices)
        budgets[device] = int(budgets[device] * chance.uniform(0.85, 0.99))
    low, high = ((0.5, 1), (1, 2), (2, 5))[seed % 3]
    ram = 1e6 * math.exp(chance.uniform(math.log(35), math.log(250)))
    optimum = cores * (chance.choice((0.4, 0.6, 0.8, 1.0, 1.3)) if how.get("odd_threads") else 1.0)
    found = Machine(
        f"{family} {seed}", problem, chance.uniform(low, high) / 100, cards,
        work, ram, chance.uniform(0.01, 0.15),
        chance.uniform(0.01, 0.05) * model["block_count"], 1e6 * link * chance.uniform(0.6, 0.95),
        chance.uniform(1, 30), chance.uniform(0, 6), chance.uniform(0, 0.5), cores * chance.uniform(0.15, 0.6), optimum,
        chance.uniform(0.2, 1.5), (chance.uniform(0.85, 1.2), chance.uniform(1.0, 2.5)), budgets,
        bool(how.get("clocks")),
    )  # fmt: skip
    return found if found.best_ms is not None else None
