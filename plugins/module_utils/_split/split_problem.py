# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The problem that the split planner is given, checked. Private to this collection. Pure functions only.

Whatever is not as docs/data_formats.md describes it is a UserError that names the field.
"""

from __future__ import annotations

import dataclasses
import functools
import typing as t

from .._base.errors import UserError
from .._base.fields import field, is_whole
from .._base.types import Json, Mapping
from .._models import gguf_file
from . import (
    cost_model,
    engines,
    exl_split,
    layer_search,
    layer_split,
    layer_weights,
    memory_plan,
    model_weights,
    workload,
)
from .layer_split import Layers
from .types import Model

#: max_loads is for two devices. Each further one is one more cost to learn, by a load, and one more load to check it.
LOADS_PER_DEVICE: t.Final = 2
MOST_DEVICES: t.Final = 16  # LLAMA_MAX_DEVICES of llama.cpp b11312
MOST_MIB: t.Final = 1 << 30
MOST_BYTES: t.Final = MOST_MIB << 20
MOST_LOADS: t.Final = 1000
#: At least this share of a probe's time is computing, however slow the network was when it was measured.
LEAST_COMPUTING: t.Final = 0.1


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A split that memory allows."""

    layers: Layers
    mib: tuple[int, ...]
    headroom: tuple[int, ...]


class KnownCosts(t.NamedTuple):
    """Costs of an average layer by device and kind of test (ms), their relative error, and the overlap of prefill.

    C(spread) is by kind how loads scattered (relative standard deviation) and the degrees of freedom of that.
    C(scale_error) is by kind how far all costs together may be off (logarithm of a factor), beside C(error).
    """

    costs: dict[str, tuple[float, ...]]
    error: float
    overlap: float
    spread: dict[str, tuple[float, int]]
    scale_error: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A checked problem, with what follows from it alone."""

    raw: Mapping
    names: tuple[str, ...]
    slots: int
    budgets: tuple[int, ...]
    memory: memory_plan.MemoryPlan
    search: layer_search.LayerSearch
    splits: tuple[Layers, ...]
    fitting: tuple[Candidate, ...]
    default: Layers
    objective: str
    prompt_tokens: int
    generated_tokens: int
    depth_tokens: int
    decode_test: workload.Test | None
    prefill_test: workload.Test | None
    indifference: float
    max_loads: int
    repeat_disturbed: int
    #: kind of test -> what a small model alone on each device says of the devices' costs, in any unit
    probed: t.Mapping[str, tuple[float, ...]]
    #: what an earlier tuning of the model has measured, in ms per average layer
    known: KnownCosts | None

    @property
    def asked(self) -> Json:
        """The objective, as a decision has it."""
        names = ("prompt_tokens", "generated_tokens", "depth_tokens")
        return {"name": self.objective, **{name: getattr(self, name) for name in names}}

    @functools.cached_property
    def weights(self) -> layer_weights.LayerWeights:
        """How heavy the layers are, one against another, at the depth of the decode test."""
        return model_weights.of_model(self.memory.model, self.memory.serving, self.tested_depth)

    @property
    def tested_depth(self) -> float:
        """How many tokens the KV cache holds in the decode test, on average."""
        return 0.0 if self.decode_test is None else self.decode_test.n_depth + self.decode_test.n_gen / 2

    @property
    def average_layer(self) -> dict[str, float]:
        """What an average layer is to a device in the tests (model_weights.of_average_layer)."""
        tokens = self.prefill_test.n_prompt if self.prefill_test else self.micro_batch
        batch = tokens / cost_model.micro_batches(tokens, self.micro_batch)
        return model_weights.of_average_layer(self.memory.model, self.memory.serving, self.tested_depth, batch)

    @property
    def engine(self) -> str:
        """What people call the engine that is measured."""
        return engines.of(self.raw["serving"]).display

    def device_named(self, buffer: str) -> int | None:
        """Return the device of a buffer as llama.cpp names it, C(CUDA1) or C(RPC0[127.0.0.1:50052]); None if unknown.

        An RPC device's number in that name counts the devices of its endpoint, so the endpoint alone tells.
        """
        name, _bracket, endpoint = buffer.rstrip("]").partition("[")
        for index, device in enumerate(self.raw["devices"]):
            if device.get("id") == endpoint if endpoint else device["device"] == name:
                return index
        return None

    def counted(self, name: str) -> tuple[int, int]:
        """Return (prompt tokens, generated tokens) that an objective counts, as workload.counted.

        An objective that the problem leaves empty (no prompt while decoding is asked for) counts what the tests run.
        """
        prompt = self.prompt_tokens or (self.prefill_test.n_prompt if self.prefill_test else 0)
        generated = self.generated_tokens or (self.decode_test.n_gen if self.decode_test else 0)
        return workload.counted(name, prompt, generated)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of test that the objective is made of."""
        return workload.needed_kinds(self.objective)

    @property
    def two_devices(self) -> bool:
        """Whether splits are one line between two devices: decision 0059 was seen to help there, and not with more."""
        return len(self.names) == 2

    @property
    def micro_batch(self) -> int:
        """Tokens of one micro-batch."""
        return memory_plan.micro_batch_tokens(self.memory.serving)

    @property
    def room_price(self) -> float:
        """How much slower, relatively, a split may be by the fit and still be taken for its room.

        A quarter of the indifference: the rest is left for the error of the fit, which predicts both.
        """
        return self.indifference / 4

    @property
    def max_anchors(self) -> int:
        """How many anchors are measured at most: some loads must be left for what the fit predicts."""
        return max(2, self.max_loads - 3)

    def candidate(self, layers: Layers) -> Candidate | None:
        """Return a split with its memory, or None where it does not fit."""
        mib = self.memory.mib(layers)
        headroom = memory_plan.headroom_mib(mib, self.budgets)
        if min(left for left, count in zip(headroom, layers, strict=True) if count) < 0:
            return None
        return Candidate(layers, tuple(mib), tuple(headroom))


def read_problem(raw: t.Any) -> Problem:
    """Check a problem of docs/data_formats.md and work out its splits; raises UserError naming the wrong field."""
    if field("problem", raw, "schema", int) != 1:
        raise UserError(f"problem.schema must be 1, not {raw['schema']!r}")
    devices = _read_devices(field("problem", raw, "devices", list))
    model = _read_model(field("problem", raw, "model", dict))
    serving = workload.read_serving(field("problem", raw, "serving", dict))
    reserve = field("problem", raw, "reserve_mib", int, 0, MOST_MIB)
    modes = field("problem", raw, "split_modes", list)
    if "layer" not in modes or not set(modes) <= {"layer", "tensor"}:
        raise UserError(f"problem.split_modes must be ['layer'] or ['layer', 'tensor'], not {modes!r}")
    objective = workload.read_objective("problem.objective", field("problem", raw, "objective", dict))
    tests = workload.read_tests(field("problem", raw, "tests", list))
    decode_test, prefill_test = _tests_of(objective, tests)
    workload.fits_context(objective, tests, serving)
    slots = model["block_count"] + 1
    memory = memory_plan.MemoryPlan(model, serving)
    search = layer_search.LayerSearch(memory, memory_plan.budgets_mib(devices, reserve), slots)
    if engines.of(serving).family == "llama_cpp":
        default = layer_split.default_layers([device["free_mib"] for device in devices], slots)
    else:
        default = exl_split.own_split(memory, search.budgets, slots)
    splits = _splits(search, default)
    problem = Problem(
        raw=raw,
        names=tuple(device["device"] for device in devices),
        slots=slots,
        budgets=search.budgets,
        memory=memory,
        search=search,
        splits=tuple(splits),
        fitting=(),
        default=default,
        objective=objective.name,
        prompt_tokens=objective.prompt_tokens,
        generated_tokens=objective.generated_tokens,
        depth_tokens=objective.depth_tokens,
        decode_test=decode_test,
        prefill_test=prefill_test,
        indifference=field("problem", raw, "indifference", (int, float), 0),
        max_loads=field("problem", raw, "max_loads", int, 1, MOST_LOADS) + LOADS_PER_DEVICE * max(0, len(devices) - 2),
        repeat_disturbed=field("problem", {"repeat_disturbed": 2, **raw}, "repeat_disturbed", int, 0),
        probed=_read_probe(raw.get("device_probe"), len(devices)),
        known=_read_known(raw.get("known_costs"), len(devices), objective.name),
    )
    fitting = (problem.candidate(layers) for layers in splits)
    return dataclasses.replace(problem, fitting=tuple(candidate for candidate in fitting if candidate is not None))


def _tests_of(
    objective: workload.Objective, tests: t.Sequence[workload.Test]
) -> tuple[workload.Test | None, workload.Test | None]:
    """Return the tests of decoding and of a prompt that tell the most about the objective."""
    by_kind = {kind: [test for test in tests if test.kind == kind] for kind in ("decode", "prefill")}
    for kind in workload.needed_kinds(objective.name):
        if not by_kind[kind]:
            raise UserError(f"problem.tests has no {kind} test, which the objective {objective.name} needs")
    depth, prompt = objective.depth_tokens, objective.prompt_tokens
    # decoding follows the prompt, so the test at about that depth tells the most about it
    decode = min(by_kind["decode"], key=lambda test: abs(test.n_depth - depth - prompt), default=None)
    prefill = min(
        by_kind["prefill"], key=lambda test: (abs(test.n_depth - depth), abs(test.n_prompt - prompt)), default=None
    )
    return decode, prefill


def _splits(search: layer_search.LayerSearch, default: Layers) -> list[Layers]:
    """Return the splits to look at one by one: all of two devices, of more a coarse grid and what it may leave out."""
    slots, devices = search.slots, len(search.budgets)
    splits = [*layer_split.enumerate_splits(slots, devices), default, *layer_split.single_device_splits(slots, devices)]
    if devices > 2:
        # the splits at the edges of what memory allows, or, where nothing fits, the one that comes nearest
        whole = search.extremes()
        splits += whole if len(whole) > 1 else [*whole, *search.extremes(whole=False)] or [search.nearest_miss()]
    return sorted(set(splits))


def _read_probe(probe: t.Any, devices: int) -> dict[str, tuple[float, ...]]:
    """Return what each device costs by the device probe: ms per generated token, ms per prompt token.

    Nothing when there is no probe, or it could not measure every device; ValueError when it is about other devices.
    """
    if probe is None:
        return {}
    where = "problem.device_probe"
    entries = field(where, probe, "devices", list)
    if len(entries) != devices:
        raise UserError(f"{where}.devices must have one entry per device, {devices}, not {len(entries)}")
    if any(field(f"{where}.devices", entry, "status", str) != "ok" for entry in entries):
        return {}
    decode = [float(field(where, entry["decode_ms_per_token"], "median", (int, float))) for entry in entries]
    speed = [float(field(where, entry, "prefill_tokens_per_second", (int, float))) for entry in entries]
    if min(*decode, *speed) <= 0:
        raise UserError(f"{where}.devices must hold positive times and speeds")
    times = {"decode": decode, "prefill": [1000 / value for value in speed]}
    return {kind: tuple(map(_computing, entries, own, [kind] * devices)) for kind, own in times.items()}


def _computing(entry: Mapping, measured_ms: float, kind: str) -> float:
    """Return the time of a probe without its way over the network, which does not grow with the layers of a model."""
    network = entry.get("network_ms") or {kind: 0.0}
    return max(measured_ms - float(network[kind]), LEAST_COMPUTING * measured_ms)


def _read_known(known: t.Any, devices: int, objective: str) -> KnownCosts | None:
    """Return the known costs; nothing where a kind of test that the objective needs is not among them."""
    if known is None:
        return None
    where = "problem.known_costs"
    costs = {kind: tuple(map(float, known[kind])) for kind in ("decode", "prefill") if known.get(kind)}
    if any(len(own) != devices or min(own) <= 0 for own in costs.values()):
        raise UserError(f"{where} must have one positive number per device, {devices}")
    if not set(workload.needed_kinds(objective)) <= set(costs):
        return None
    error = float(field(where, known, "error", (int, float)))
    spread = {kind: (float(deviation), int(degrees)) for kind, (deviation, degrees) in known["spread"].items()}
    scale = {kind: float(value) for kind, value in known.get("scale_error", {}).items()}
    return KnownCosts(costs, error, float(field(where, known, "overlap", (int, float), 0)), spread, scale)


def _read_devices(devices: t.Sequence[t.Any]) -> list[Json]:
    if not devices:
        raise UserError("problem.devices is empty: the engine sees no device")
    if len(devices) > MOST_DEVICES:
        raise UserError(f"problem.devices has {len(devices)} devices, and {MOST_DEVICES} are the most")
    result = []
    for index, device in enumerate(devices):
        where = f"problem.devices[{index}]"
        name, free = field(where, device, "device", str), field(where, device, "free_mib", int, 0, MOST_MIB)
        budget = field(where, {"budget_mib": None, **device}, "budget_mib", (int, type(None)), 0, MOST_MIB)
        result.append({"device": name, "free_mib": free, "budget_mib": budget})
    return result


def _read_model(model: Mapping) -> Model:
    where = "problem.model"
    blocks = field(where, model, "block_count", int, 1, gguf_file.MOST_BLOCKS)
    for key in ("block_bytes", "kv_k_elements_per_token", "kv_v_elements_per_token"):
        values = field(where, model, key, list)
        if len(values) != blocks:
            raise UserError(f"{where}.{key} must have one number per block, {blocks}, not {len(values)}")
        if not all(is_whole(value, 0, MOST_BYTES) for value in values):
            raise UserError(f"{where}.{key} must hold whole numbers from 0 to {MOST_BYTES}")
    for key in ("block_read_bytes", "block_weights"):
        if len(field(where, {key: [0] * blocks, **model}, key, list)) != blocks:
            raise UserError(f"{where}.{key} must have one number per block, {blocks}, not {len(model[key])}")
    for key in ("output_bytes", "vocabulary_size", "feed_forward_length", "head_count"):
        field(where, model, key, int, 0, MOST_BYTES)
    field(where, model, "embedding_length", int, 1, gguf_file.LARGEST_VALUE)
    field(where, model, "path", str)
    field(where, model, "name", (str, type(None)))
    return t.cast(Model, model)


# --- reading the loads -----------------------------------------------------------------------------------------------
