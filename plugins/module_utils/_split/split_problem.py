# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks what the split planner is given. Private to this collection. Pure functions only.

The problem and the loads of docs/data_formats.md become typed, checked values; whatever is not as described there is a
ValueError that names the field.
"""

from __future__ import annotations

import dataclasses
import statistics
import typing as t

from . import engines, exl_split, layer_search, layer_split, memory_plan
from .layer_split import Layers

OBJECTIVES = ("decode", "prefill", "ttft", "request", "agent")

#: The agent preset: a conversation this many tokens deep in a warm cache, and an answer of this many.
AGENT_DEPTH_TOKENS = 8192
AGENT_GENERATED_TOKENS = 512

STATUSES = ("ok", "out_of_memory", "crashed", "timed_out", "unreadable", "device_lost")

Json = dict[str, t.Any]


# --- reading the problem ---------------------------------------------------------------------------------------------


def _field(where: str, holder: t.Any, key: str, kinds: type | tuple[type, ...], least: float | None = None) -> t.Any:
    """Return holder[key] if it is of C(kinds) and at least C(least); else raise ValueError naming the field."""
    if not isinstance(holder, t.Mapping):
        raise ValueError(f"{where} must be a dict, not {type(holder).__name__}")
    name = f"{where}.{key}"
    if key not in holder:
        raise ValueError(f"{name} is missing")
    value = holder[key]
    wanted = kinds if isinstance(kinds, tuple) else (kinds,)
    if (isinstance(value, bool) and bool not in wanted) or not isinstance(value, wanted):
        raise ValueError(f"{name} must be {' or '.join(_KIND_NAMES[kind] for kind in wanted)}, not {value!r}")
    if least is not None and isinstance(value, (int, float)) and value < least:
        raise ValueError(f"{name} must be at least {least}, not {value!r}")
    return value


_KIND_NAMES: dict[type, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    list: "a list",
    dict: "a dict",
    type(None): "null",
}


def _choice(where: str, value: t.Any, known: t.Iterable[str]) -> str:
    names = list(known)
    if value not in names:
        raise ValueError(f"{where} must be one of {', '.join(names)}, not {value!r}")
    return str(value)


@dataclasses.dataclass(frozen=True)
class Test:
    """One test that every load runs."""

    kind: str
    n_prompt: int
    n_gen: int
    n_depth: int


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A split that memory allows."""

    layers: Layers
    mib: tuple[int, ...]
    headroom: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A checked problem, with what follows from it alone."""

    raw: t.Mapping[str, t.Any]
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
    tests: tuple[Test, ...]
    decode_test: Test | None
    prefill_test: Test | None
    indifference: float
    max_loads: int
    repeat_disturbed: int
    #: kind of test -> what a small model alone on each device says of the devices' costs, in any unit
    probed: t.Mapping[str, tuple[float, ...]]

    @property
    def engine(self) -> str:
        """What people call the engine that is measured."""
        return engines.of(self.raw["serving"]).display

    def counted(self, name: str) -> tuple[int, int]:
        """Return (prompt tokens, generated tokens) that an objective counts; ttft counts the first generated token.

        An objective that the problem leaves empty (no prompt while decoding is asked for) counts what the tests run.
        """
        prompt = self.prompt_tokens or (self.prefill_test.n_prompt if self.prefill_test else 0)
        generated = self.generated_tokens or (self.decode_test.n_gen if self.decode_test else 0)
        return (
            0 if name in ("decode", "agent") else prompt,
            {"prefill": 0, "ttft": 1}.get(name, generated),
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of test that the objective is made of."""
        return needed_kinds(self.objective)

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


def needed_kinds(objective: str) -> tuple[str, ...]:
    """Return the kinds of test that an objective is made of."""
    return {"decode": ("decode",), "agent": ("decode",), "prefill": ("prefill",)}.get(objective, ("decode", "prefill"))


def workload(objective: t.Any, bench: t.Any, serving: t.Any) -> Json:
    """Return what is to be fast and what measures it: {objective, tests} of docs/data_formats.md.

    C(objective) is {name, prompt_tokens, generated_tokens, depth_tokens}, C(bench) {prompt_tokens, generated_tokens,
    repetitions}. The preset agent takes its own numbers, and the depth where one is given. All tests run at the depth
    of the objective. Raises ValueError, with the remedy, for what does not fit the context.
    """
    name, prompt, generated, depth = _read_objective("objective", objective)
    if name == "agent":
        prompt, generated, depth = 0, AGENT_GENERATED_TOKENS, depth or AGENT_DEPTH_TOKENS
    repetitions = _field("bench", bench, "repetitions", int, 1)
    bench_prompt = _field("bench", bench, "prompt_tokens", int, 1)
    bench_generated = _field("bench", bench, "generated_tokens", int, 1)
    checked = {"name": name, "prompt_tokens": prompt, "generated_tokens": generated, "depth_tokens": depth}
    tests = [
        {"kind": "prefill", "n_prompt": bench_prompt, "n_gen": 0, "n_depth": depth, "repetitions": repetitions},
        {"kind": "decode", "n_prompt": 0, "n_gen": bench_generated, "n_depth": depth, "repetitions": repetitions},
    ]
    _fits_context(depth, prompt, generated, _read_tests(tests), _read_serving(serving))
    return {"objective": checked, "tests": tests}


def _read_objective(where: str, objective: t.Any) -> tuple[str, int, int, int]:
    """Return (name, prompt tokens, generated tokens, tokens in the cache before) of an objective."""
    name = _choice(f"{where}.name", _field(where, objective, "name", str), OBJECTIVES)
    prompt = _field(where, objective, "prompt_tokens", int, 0 if name in ("decode", "agent") else 1)
    generated = _field(where, objective, "generated_tokens", int, 0 if name in ("prefill", "ttft") else 1)
    depth = _field(where, {"depth_tokens": 0, **objective}, "depth_tokens", int, 0)
    return name, prompt, generated, depth


def _fits_context(
    depth: int, prompt: int, generated: int, tests: t.Sequence[Test], serving: t.Mapping[str, t.Any]
) -> None:
    """Raise ValueError when a request at a depth, or a test there, needs more context than a request can have.

    Without a depth nothing is refused: the split of a short context may be judged by a longer prompt.
    """
    if not depth:
        return
    room = serving["context_size"] // (1 if serving["kv_unified"] else serving["parallel_slots"])
    has = f"a request can have {room} (context size {serving['context_size']})"
    needed = depth + prompt + generated
    if needed > room:
        raise ValueError(
            f"a depth of {depth} with {prompt} prompt and {generated} generated tokens needs a context of {needed} "
            f"tokens, but {has}: raise the context size or lower the depth"
        )
    longest = max(test.n_depth + test.n_prompt + test.n_gen for test in tests)
    if longest > room:
        raise ValueError(
            f"the longest test needs a context of {longest} tokens with its depth, but {has}: raise the context size, "
            "or lower the depth or the tokens of the tests"
        )


def read_problem(raw: t.Any) -> Problem:
    """Check a problem of docs/data_formats.md and work out its splits; raises ValueError naming the wrong field."""
    if _field("problem", raw, "schema", int) != 1:
        raise ValueError(f"problem.schema must be 1, not {raw['schema']!r}")
    devices = _read_devices(_field("problem", raw, "devices", list))
    model = _read_model(_field("problem", raw, "model", dict))
    serving = _read_serving(_field("problem", raw, "serving", dict))
    reserve = _field("problem", raw, "reserve_mib", int, 0)
    modes = _field("problem", raw, "split_modes", list)
    if "layer" not in modes or not set(modes) <= {"layer", "tensor"}:
        raise ValueError(f"problem.split_modes must be ['layer'] or ['layer', 'tensor'], not {modes!r}")
    name, prompt, generated, depth = _read_objective("problem.objective", _field("problem", raw, "objective", dict))
    tests = _read_tests(_field("problem", raw, "tests", list))
    by_kind = {kind: [test for test in tests if test.kind == kind] for kind in ("decode", "prefill")}
    for kind in needed_kinds(name):
        if not by_kind[kind]:
            raise ValueError(f"problem.tests has no {kind} test, which the objective {name} needs")
    _fits_context(depth, prompt, generated, tests, serving)
    slots = model["block_count"] + 1
    memory = memory_plan.MemoryPlan(model, serving)
    budgets = memory_plan.budgets_mib(devices, reserve)
    search = layer_search.LayerSearch(memory, budgets, slots)
    splits = layer_split.enumerate_splits(slots, len(devices))
    if engines.of(serving).family == "llama_cpp":
        default = layer_split.default_layers([device["free_mib"] for device in devices], slots)
    else:
        default = exl_split.own_split(memory, budgets, slots)
    known = set(splits)
    # a coarse grid of many devices may not contain llama.cpp's own choice
    splits += [s for s in (default, *layer_split.single_device_splits(slots, len(devices))) if s not in known]
    if len(devices) > 2:
        # nor the splits at the edges of what memory allows, or, where nothing fits, the one that comes nearest
        whole = search.extremes()
        splits += whole if len(whole) > 1 else [*whole, *search.extremes(whole=False)] or [search.nearest_miss()]
    splits = sorted(set(splits))
    problem = Problem(
        raw=raw,
        names=tuple(device["device"] for device in devices),
        slots=slots,
        budgets=tuple(budgets),
        memory=memory,
        search=search,
        splits=tuple(splits),
        fitting=(),
        default=default,
        objective=name,
        prompt_tokens=prompt,
        generated_tokens=generated,
        depth_tokens=depth,
        tests=tests,
        # decoding follows the prompt, so the test at about that depth tells the most about it
        decode_test=min(by_kind["decode"], key=lambda test: abs(test.n_depth - depth - prompt), default=None),
        prefill_test=min(
            by_kind["prefill"],
            key=lambda test: (abs(test.n_depth - depth), abs(test.n_prompt - prompt)),
            default=None,
        ),
        indifference=_field("problem", raw, "indifference", (int, float), 0),
        max_loads=_field("problem", raw, "max_loads", int, 1),
        repeat_disturbed=_field("problem", {"repeat_disturbed": 2, **raw}, "repeat_disturbed", int, 0),
        probed=_read_probe(raw.get("device_probe"), len(devices)),
    )
    fitting = (problem.candidate(layers) for layers in splits)
    return dataclasses.replace(problem, fitting=tuple(candidate for candidate in fitting if candidate is not None))


def _read_probe(probe: t.Any, devices: int) -> dict[str, tuple[float, ...]]:
    """Return what each device costs by the device probe: ms per generated token, ms per prompt token.

    Nothing when there is no probe, or it could not measure every device; ValueError when it is about other devices.
    """
    if probe is None:
        return {}
    where = "problem.device_probe"
    entries = _field(where, probe, "devices", list)
    if len(entries) != devices:
        raise ValueError(f"{where}.devices must have one entry per device, {devices}, not {len(entries)}")
    if any(_field(f"{where}.devices", entry, "status", str) != "ok" for entry in entries):
        return {}
    decode = tuple(float(_field(where, entry["decode_ms_per_token"], "median", (int, float))) for entry in entries)
    speed = tuple(float(_field(where, entry, "prefill_tokens_per_second", (int, float))) for entry in entries)
    if min(*decode, *speed) <= 0:
        raise ValueError(f"{where}.devices must hold positive times and speeds")
    return {"decode": decode, "prefill": tuple(1000 / value for value in speed)}


def _read_devices(devices: t.Sequence[t.Any]) -> list[Json]:
    if not devices:
        raise ValueError("problem.devices is empty: the engine sees no device")
    result = []
    for index, device in enumerate(devices):
        where = f"problem.devices[{index}]"
        name, free = _field(where, device, "device", str), _field(where, device, "free_mib", int, 0)
        budget = _field(where, {"budget_mib": None, **device}, "budget_mib", (int, type(None)), 0)
        result.append({"device": name, "free_mib": free, "budget_mib": budget})
    return result


def _read_model(model: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    where = "problem.model"
    blocks = _field(where, model, "block_count", int, 1)
    for key in ("block_bytes", "kv_k_elements_per_token", "kv_v_elements_per_token"):
        values = _field(where, model, key, list)
        if len(values) != blocks:
            raise ValueError(f"{where}.{key} must have one number per block, {blocks}, not {len(values)}")
        if any(isinstance(value, bool) or not isinstance(value, int) or value < 0 for value in values):
            raise ValueError(f"{where}.{key} must hold whole numbers of zero or more")
    for key in ("output_bytes", "vocabulary_size", "feed_forward_length", "head_count"):
        _field(where, model, key, int, 0)
    _field(where, model, "embedding_length", int, 1)
    _field(where, model, "path", str)
    _field(where, model, "name", (str, type(None)))
    return model


def _read_serving(serving: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any]:
    where = "problem.serving"
    for key in ("context_size", "parallel_slots", "batch_size", "micro_batch_size"):
        _field(where, serving, key, int, 1)
    _field(where, serving, "kv_unified", bool)
    _choice(f"{where}.flash_attention", _field(where, serving, "flash_attention", str), ("on", "off", "auto"))
    for key in ("cache_type_k", "cache_type_v"):
        _choice(f"{where}.{key}", _field(where, serving, key, str), memory_plan.CACHE_TYPES)
    return serving


def _read_tests(tests: t.Sequence[t.Any]) -> tuple[Test, ...]:
    result = []
    for index, test in enumerate(tests):
        where = f"problem.tests[{index}]"
        kind = _choice(f"{where}.kind", _field(where, test, "kind", str), ("prefill", "decode"))
        result.append(
            Test(
                kind,
                _field(where, test, "n_prompt", int, 1 if kind == "prefill" else 0),
                _field(where, test, "n_gen", int, 1 if kind == "decode" else 0),
                _field(where, test, "n_depth", int, 0),
            )
        )
    return tuple(result)


# --- reading the loads -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Load:
    """One load, checked: where it stands, and what it measured."""

    layers: Layers
    number: int
    purpose: str
    status: str
    reason: str
    decode_samples: tuple[float, ...]  # ms per token
    prefill_samples: tuple[float, ...]  # ms per prompt of the test

    @property
    def ok(self) -> bool:
        """Whether it was measured."""
        return self.status == "ok"

    def samples(self, kind: str) -> tuple[float, ...]:
        """Return the samples of C(kind), decode or prefill."""
        return self.decode_samples if kind == "decode" else self.prefill_samples

    @property
    def decode(self) -> float | None:
        """Median ms per token: one disturbed repetition must not decide."""
        return statistics.median(self.decode_samples) if self.decode_samples else None

    @property
    def prefill(self) -> float | None:
        """Median ms per prompt of the test."""
        return statistics.median(self.prefill_samples) if self.prefill_samples else None


def read_loads(problem: Problem, loads: t.Any) -> list[Load]:
    """Check the measured loads; raises ValueError naming the field that is wrong. A load given twice counts once."""
    if not isinstance(loads, (list, tuple)):
        raise ValueError(f"loads must be a list, not {type(loads).__name__}")
    result: dict[tuple[Layers, int], Load] = {}
    for index, load in enumerate(loads):
        where = f"loads[{index}]"
        _choice(f"{where}.split_mode", _field(where, load, "split_mode", str), ("layer",))
        layers = tuple(_field(where, load, "layers", list))
        if (
            len(layers) != len(problem.names)
            or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in layers)
            or sum(layers) != problem.slots
        ):
            raise ValueError(
                f"{where}.layers must be {len(problem.names)} whole numbers with sum {problem.slots}, "
                f"not {list(layers)}"
            )
        number = _field(where, load, "load", int, 1)
        status = _choice(f"{where}.status", _field(where, load, "status", str), STATUSES)
        reason = load.get("reason") or ""
        samples: dict[str, tuple[float, ...]] = {"decode": (), "prefill": ()}
        if status == "ok":
            results = _field(where, load, "results", list)
            for kind, test in (("decode", problem.decode_test), ("prefill", problem.prefill_test)):
                if test is not None:
                    samples[kind] = _samples(f"{where}.results", results, test)
                    if not samples[kind]:
                        status, reason = "unreadable", f"it reports ok, but holds no {kind} result"
        result.setdefault(
            (layers, number),
            Load(layers, number, str(load.get("purpose", "")), status, reason, samples["decode"], samples["prefill"]),
        )
    return list(result.values())


def _samples(where: str, results: t.Sequence[t.Any], test: Test) -> tuple[float, ...]:
    """Return the samples of one test: ms per token of a decode test, ms per prompt of a prefill test."""
    values: list[float] = []
    for index, result in enumerate(results):
        if not isinstance(result, t.Mapping):
            raise ValueError(f"{where}[{index}] must be a dict")
        if all(result.get(key) == getattr(test, key) for key in ("kind", "n_prompt", "n_gen", "n_depth")):
            for value in _field(f"{where}[{index}]", result, "samples_ms", list):
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                    raise ValueError(f"{where}[{index}].samples_ms must hold positive numbers, not {value!r}")
                values.append(value / test.n_gen if test.kind == "decode" else float(value))
    return tuple(values)
