# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a serving TabbyAPI is asked, and what its answers say of its speed. Private to this collection. Pure functions.

TabbyAPI rounds its own timings to 10 ms, so whole requests are timed; it takes text and counts the tokens itself.
"""

from __future__ import annotations

import random
import typing as t

from .._base.types import Json, Mapping
from . import fixed_text

#: A question with one answer: a model that works is sure of each next number, whatever the order of a sum.
QUESTION: t.Final = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20,"
QUESTION_TOKENS: t.Final = 12
#: An answer with a draft may end that many tokens early: ExLlamaV2 stops where it has no room left for a whole draft.
MOST_DRAFTED: t.Final = 16
#: Tokens that a word of the prompts has at least.
_TOKENS_PER_WORD: t.Final = 1.1


def prompt(tokens: int, seed: str) -> str:
    """Return words of about C(tokens) tokens that depend on the seed alone, so that no cache answers them."""
    numbers, words = random.Random(seed), sorted(set(fixed_text.TEXT.split()))
    return " ".join(numbers.choice(words) for dummy in range(max(1, round(tokens / _TOKENS_PER_WORD))))


def request(text: str, tokens: int) -> Json:
    """Return the body of a request for exactly C(tokens) tokens, each the most likely one."""
    return {
        "prompt": text,
        "max_tokens": tokens,
        "min_tokens": tokens,
        "temperature": 0,
        "top_k": 1,
        # without it nothing is counted, also where nothing is streamed
        "stream_options": {"include_usage": True},
    }


def text_of(answer: Mapping) -> str:
    """Return the text of an answer. Raises ValueError with one sentence where it has none."""
    try:
        return str(answer["choices"][0]["text"])
    except (IndexError, KeyError, TypeError) as exc:
        raise ValueError(f"the answer has no text ({exc!r})") from exc


def whole(written: int, wanted: int) -> bool:
    """Return whether an answer has the tokens that were asked for, but for those that a draft leaves out."""
    return max(1, wanted - MOST_DRAFTED) <= written <= wanted


def sample(answer: Mapping, wanted: int, seconds: float) -> Json:
    """Return a sample as those of llama_server_benchmark, of an answer that took so long.

    With one token it tells the speed of the prompt, else that of generation with a prompt that is short beside it.
    Raises ValueError with one sentence where the server did not do what was asked.
    """
    try:
        read, written = int(answer["usage"]["prompt_tokens"]), int(answer["usage"]["completion_tokens"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"the answer does not count its tokens ({exc!r})") from exc
    if not whole(written, wanted) or read < 1 or seconds <= 0:
        raise ValueError(f"the server wrote {written} tokens after {read} in {seconds:.3f} s, and {wanted} were wanted")
    return {
        "ttft_ms": round(seconds * 1000, 3) if wanted == 1 else None,
        "prompt_tokens_per_second": round(read / seconds, 3) if wanted == 1 else None,
        "decode_tokens_per_second": round(written / seconds, 3) if wanted > 1 else None,
        "generated_tokens": written,
    }
