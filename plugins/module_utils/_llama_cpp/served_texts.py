# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Has a llama-server answer texts and reads what that took. Private to this collection. It talks HTTP."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from . import llama_client, speculation_flags
from .trial_server import Server, TrialError

#: Sampled as served, but the same in every load.
_SEED: t.Final = 1
#: How long the greedy answer is at most, which is compared with that of a server without speculation.
GREEDY_TOKENS: t.Final = 64
#: Answers with so few drafted tokens in their first round, besides those with n-max, and how many of each length.
_SHORT_LENGTHS: t.Final = (0, 1, 3, 5)
SHORT_ANSWERS: t.Final = 6
#: Tokens of a long prompt: ids in no order that repeats soon.
_FIRST_ID, _IDS, _STEP = 10, 211, 89


def short_lengths(n_max: int) -> list[int]:
    """Return for how many drafted tokens short answers have room, of drafts of C(n_max) tokens."""
    return [*(length for length in _SHORT_LENGTHS if length < n_max), n_max]


def measure(
    server: Server, texts: t.Sequence[Mapping], generated: int, prompt_tokens: int, n_max: int
) -> list[Json]:
    """Return tokens, times and acceptance per kind of text, in the order of first mention. Raises TrialError.

    Of drafts of C(n_max) tokens, 0 for none or of any length, follow what drafting took, and short answers. Then comes
    what a prompt of C(prompt_tokens) took, unless that is 0, and a greedy answer to the first text.

    A short answer to a text of no use comes first: the first request of a load is slower than all others.
    """
    with server.its_end():
        _ask(server.client, [1] * 8, 8)
        rows = answered(server.client, texts, generated)
        if n_max:
            drafting = speculation_flags.drafting(server.text())
            rows += [{"kind": "drafting", **drafting}] if drafting else []
            rows += [_short(server.client, texts[0]["prompt"], length) for length in short_lengths(n_max)]
        long = [_prompt(server.client, prompt_tokens)] if prompt_tokens else []
    greedy = server.answer(texts[0]["prompt"], min(generated, GREEDY_TOKENS))["tokens"]
    return [*rows, *long, {"kind": "greedy", "tokens": greedy}]


def answered(client: llama_client.Client, texts: t.Sequence[Mapping], generated: int) -> list[Json]:
    """Return tokens, times and acceptance per kind of text, in the order of first mention.

    Raises ServerError, and TrialError where the answers have too few tokens.
    """
    of_kind: dict[str, list[t.Any]] = {}
    for text in texts:
        of_kind.setdefault(str(text["name"]), []).append(text["prompt"])
    return [_kind(client, name, prompts, generated) for name, prompts in of_kind.items()]


def _prompt(client: llama_client.Client, tokens: int) -> Json:
    """Return what a prompt of so many tokens takes: single bytes or letters, which every vocabulary has."""
    ids = [_FIRST_ID + place * _STEP % _IDS for place in range(tokens)]
    timing = _ask(client, ids, 1)
    if not timing.get("prompt_n") or not timing.get("prompt_ms"):
        raise TrialError("unstable", f"the server did not say what a prompt of {tokens} tokens took")
    return {"kind": "prompt", "prompt_tokens": int(timing["prompt_n"]), "prompt_ms": round(timing["prompt_ms"], 3)}


def _kind(client: llama_client.Client, name: str, prompts: t.Sequence[t.Any], generated: int) -> Json:
    before = client.text("/metrics")
    timings = [_ask(client, prompt, generated) for prompt in prompts]
    after = client.text("/metrics")
    sums = {
        field: sum(float(timing.get(field) or 0) for timing in timings)
        for field in ("prompt_n", "prompt_ms", "predicted_n", "predicted_ms", "draft_n", "draft_n_accepted")
    }
    tokens = int(sums["predicted_n"]) - len(prompts)
    if tokens < 1 or sums["predicted_ms"] <= 0:
        raise TrialError("unstable", f"the answers to {name} have {int(sums['predicted_n'])} tokens")
    return {
        "kind": "text",
        "text": name,
        "tokens": tokens,
        "decode_ms": round(sums["predicted_ms"], 3),
        "prompt_tokens": int(sums["prompt_n"]),
        "prompt_ms": round(sums["prompt_ms"], 3),
        "drafted": int(sums["draft_n"]),
        "accepted": int(sums["draft_n_accepted"]),
        "drafts": min(int(sums["draft_n"]), _drafts(before, after, tokens, int(sums["draft_n_accepted"]))),
        "positions": speculation_flags.rates(before, after),
    }


def _drafts(before: str, after: str, tokens: int, accepted: int) -> int:
    """Return in how many rounds was drafted: all of them where the counters do not tell."""
    counted = speculation_flags.drafts(before, after)
    # of a server that others use as well, the counters say more than these answers can have
    return tokens - accepted if counted is None else min(tokens, counted)


def _short(client: llama_client.Client, prompt: t.Any, length: int) -> Json:
    """Return what rounds took of answers that have room for drafts of C(length) tokens at most.

    llama-server drafts no more tokens than an answer may still have, less the one that a round gives anyway; the first
    token comes from the prompt. A draft that is right ends the answer; after others come rounds with fewer tokens.
    """
    before = client.text("/metrics")
    timings = [_ask(client, prompt, length + 2, _SEED + place) for place in range(SHORT_ANSWERS)]
    after = client.text("/metrics")
    tokens, ms, drafted, accepted = (
        sum(float(timing.get(field) or 0) for timing in timings)
        for field in ("predicted_n", "predicted_ms", "draft_n", "draft_n_accepted")
    )
    if tokens != SHORT_ANSWERS * (length + 2) or ms <= 0:
        raise TrialError("unstable", f"{SHORT_ANSWERS} answers of {length + 2} tokens have {int(tokens)} together")
    rounds = int(tokens) - SHORT_ANSWERS - int(accepted)
    return {
        "kind": "short", "length": length, "rounds": rounds, "drafted": int(drafted), "decode_ms": round(ms, 3),
        "drafts": min(rounds, _drafts(before, after, rounds, 0)),
    }  # fmt: skip


def _ask(client: llama_client.Client, prompt: t.Any, generated: int, seed: int = _SEED) -> Json:
    """Return the timings of the answer to a text (through the chat template, if there is one) or to token ids."""
    body: Json = {"ignore_eos": True, "cache_prompt": False, "seed": seed, "stream": False}
    if isinstance(prompt, str):
        chat = {"messages": [{"role": "user", "content": prompt}], "chat_template_kwargs": {"enable_thinking": False}}
        path, body = "/v1/chat/completions", {**body, **chat, "max_tokens": generated}
    else:
        path, body = "/completion", {**body, "prompt": prompt, "n_predict": generated}
    return llama_client.timings(client.ask(path, body))
