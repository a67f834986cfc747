# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is to be fast, and the tests that measure it. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.errors import UserError
from .._base.fields import choice, field
from .._base.types import Json, Mapping
from . import memory_plan
from .types import Serving

OBJECTIVES = ("decode", "prefill", "ttft", "request", "agent")

#: Tokens of a context, a prompt or an answer: the longest that a model was trained for are 10 million (Llama 4 Scout).
MOST_TOKENS: t.Final = 1 << 24
MOST_SLOTS: t.Final = 256  # LLAMA_MAX_SEQ of llama.cpp b11312
MOST_REPETITIONS: t.Final = 1000

#: The agent preset: a conversation this many tokens deep in a warm cache, and an answer of this many.
AGENT_DEPTH_TOKENS = 8192
AGENT_GENERATED_TOKENS = 512


@dataclasses.dataclass(frozen=True)
class Test:
    """One test that every load runs."""

    kind: str
    n_prompt: int
    n_gen: int
    n_depth: int


class Objective(t.NamedTuple):
    """What is to be fast: a prompt and an answer, after so many tokens that are in the cache already."""

    name: str
    prompt_tokens: int
    generated_tokens: int
    depth_tokens: int


def needed_kinds(objective: str) -> tuple[str, ...]:
    """Return the kinds of test that an objective is made of."""
    return {"decode": ("decode",), "agent": ("decode",), "prefill": ("prefill",)}.get(objective, ("decode", "prefill"))


def counted(objective: str, prompt: int, generated: int) -> tuple[int, int]:
    """Return (prompt tokens, generated tokens) that an objective counts; ttft counts the first generated token."""
    return 0 if objective in ("decode", "agent") else prompt, {"prefill": 0, "ttft": 1}.get(objective, generated)


def plan(objective: t.Any, bench: t.Any, serving: t.Any) -> Json:
    """Return what is to be fast and what measures it: {objective, tests} of docs/data_formats.md.

    C(objective) is {name, prompt_tokens, generated_tokens, depth_tokens}, C(bench) {prompt_tokens, generated_tokens,
    repetitions}. The preset agent takes its own numbers, and the depth where one is given. All tests run at the depth
    of the objective. Raises UserError, with the remedy, for what does not fit the context.
    """
    wanted = read_objective("objective", objective)
    if wanted.name == "agent":
        depth = wanted.depth_tokens or AGENT_DEPTH_TOKENS
        wanted = Objective("agent", 0, AGENT_GENERATED_TOKENS, depth)
    repetitions = field("bench", bench, "repetitions", int, 1, MOST_REPETITIONS)
    bench_prompt = field("bench", bench, "prompt_tokens", int, 1, MOST_TOKENS)
    bench_generated = field("bench", bench, "generated_tokens", int, 1, MOST_TOKENS)
    depth = wanted.depth_tokens
    tests = [
        {"kind": "prefill", "n_prompt": bench_prompt, "n_gen": 0, "n_depth": depth, "repetitions": repetitions},
        {"kind": "decode", "n_prompt": 0, "n_gen": bench_generated, "n_depth": depth, "repetitions": repetitions},
    ]
    fits_context(wanted, read_tests(tests), read_serving(serving))
    return {"objective": wanted._asdict(), "tests": tests}


def read_objective(where: str, objective: t.Any) -> Objective:
    """Return a checked objective. Raises UserError naming the wrong field."""
    name = choice(f"{where}.name", field(where, objective, "name", str), OBJECTIVES)
    prompt = field(where, objective, "prompt_tokens", int, 0 if name in ("decode", "agent") else 1, MOST_TOKENS)
    least = 0 if name in ("prefill", "ttft") else 1
    generated = field(where, objective, "generated_tokens", int, least, MOST_TOKENS)
    depth = field(where, {"depth_tokens": 0, **objective}, "depth_tokens", int, 0, MOST_TOKENS)
    return Objective(name, prompt, generated, depth)


def context_of(serving: Mapping) -> int:
    """Return the tokens that one request can have."""
    return int(serving["context_size"] // (1 if serving["kv_unified"] else serving["parallel_slots"]))


def fits_context(objective: Objective, tests: t.Sequence[Test], serving: Serving) -> None:
    """Raise UserError when a request at a depth, or a test there, needs more context than a request can have.

    Without a depth nothing is refused: the split of a short context may be judged by a longer prompt.
    """
    _name, prompt, generated, depth = objective
    if not depth:
        return
    room = context_of(serving)
    has = f"a request can have {room} (context size {serving['context_size']})"
    needed = depth + prompt + generated
    if needed > room:
        raise UserError(
            f"a depth of {depth} with {prompt} prompt and {generated} generated tokens needs a context of {needed} "
            f"tokens, but {has}: raise the context size or lower the depth"
        )
    longest = max(test.n_depth + test.n_prompt + test.n_gen for test in tests)
    if longest > room:
        raise UserError(
            f"the longest test needs a context of {longest} tokens with its depth, but {has}: raise the context size, "
            "or lower the depth or the tokens of the tests"
        )


def read_serving(serving: Mapping) -> Serving:
    where = "problem.serving"
    for key in ("context_size", "batch_size", "micro_batch_size"):
        field(where, serving, key, int, 1, MOST_TOKENS)
    field(where, serving, "parallel_slots", int, 1, MOST_SLOTS)
    field(where, serving, "kv_unified", bool)
    choice(f"{where}.flash_attention", field(where, serving, "flash_attention", str), ("on", "off", "auto"))
    for key in ("cache_type_k", "cache_type_v"):
        choice(f"{where}.{key}", field(where, serving, key, str), memory_plan.cache_types(serving.get("cache_mode")))
    return t.cast(Serving, serving)


def read_tests(tests: t.Sequence[t.Any]) -> tuple[Test, ...]:
    result = []
    for index, test in enumerate(tests):
        where = f"problem.tests[{index}]"
        kind = choice(f"{where}.kind", field(where, test, "kind", str), ("prefill", "decode"))
        result.append(
            Test(
                kind,
                field(where, test, "n_prompt", int, 1 if kind == "prefill" else 0, MOST_TOKENS),
                field(where, test, "n_gen", int, 1 if kind == "decode" else 0, MOST_TOKENS),
                field(where, test, "n_depth", int, 0, MOST_TOKENS),
            )
        )
    return tuple(result)
