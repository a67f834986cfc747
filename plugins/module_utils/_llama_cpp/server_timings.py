# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Requests that measure a llama-server, and the timings of its answers. Private to this collection. Pure functions."""

from __future__ import annotations

import random

from .._base.types import Json, Mapping


def prompt_tokens(count: int, vocabulary_size: int, seed: str) -> list[int]:
    """Return C(count) valid token ids that depend on the seed alone.

    The ids come from the middle of the vocabulary: special tokens are at its ends.
    """
    numbers = random.Random(seed)
    low, high = vocabulary_size // 4, max(vocabulary_size * 3 // 4, vocabulary_size // 4 + 1)
    return [numbers.randrange(low, high) for dummy in range(count)]


def does_not_fit(test: Mapping, context_per_slot: int) -> str | None:
    """Return why a test cannot run in one slot, or None."""
    needed = test["prompt_tokens"] + test["generated_tokens"]
    if needed <= context_per_slot:
        return None
    return f"needs {needed} tokens and a slot of this server has {context_per_slot}"


def sample(timings: Mapping, prompt_count: int) -> Json:
    """Turn the C(timings) of one answer into a sample.

    C(prompt_ms) ends when the first token is sampled from the logits of the prompt, so it is the time to the first
    token, without queueing and network; C(predicted_ms) holds the remaining C(predicted_n - 1) steps.
    Raises ValueError with one sentence when the answer is not what was asked for.
    """
    try:
        cached, evaluated = int(timings.get("cache_n", 0)), int(timings["prompt_n"])
        generated = int(timings["predicted_n"])
        prompt_ms, predicted_ms = float(timings["prompt_ms"]), float(timings["predicted_ms"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"the answer has no usable timings ({exc})") from None
    if cached or evaluated != prompt_count:
        raise ValueError(
            f"the server evaluated {evaluated} tokens and took {cached} from its cache, not {prompt_count} and none"
        )
    if prompt_ms <= 0 or generated < 1:
        raise ValueError(f"the server reports {prompt_ms} ms for the prompt and {generated} generated tokens")
    steps = generated - 1
    decode = steps * 1000.0 / predicted_ms if steps and predicted_ms > 0 else None
    return {
        "ttft_ms": round(prompt_ms, 3),
        "prompt_tokens_per_second": round(evaluated * 1000.0 / prompt_ms, 3),
        "decode_tokens_per_second": None if decode is None else round(decode, 3),
        "generated_tokens": generated,
    }
