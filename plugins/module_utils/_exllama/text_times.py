# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Texts that a TabbyAPI answers, and how long it says that this took. Private to this collection. Pure functions only.

Unlike a whole request, TabbyAPI's own times tell generation and prompt apart. They are rounded to 10 ms, which is
little of an answer of some seconds.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping

CHAT: t.Final = "/v1/chat/completions"
PLAIN: t.Final = "/v1/completions"
#: What TabbyAPI answers to a chat where the model has no template.
NO_TEMPLATE: t.Final = "prompt template is not set"


def request(prompt: str, tokens: int, chat: bool) -> tuple[str, Json]:
    """Return path and body of a request for exactly C(tokens) tokens, sampled as the server does without wishes.

    TabbyAPI takes no seed. Without C(chat) the text goes to the model as it is.
    """
    body: Json = {"max_tokens": tokens, "min_tokens": tokens, "stream_options": {"include_usage": True}}
    if not chat:
        return PLAIN, {**body, "prompt": prompt}
    messages = [{"role": "user", "content": prompt}]
    return CHAT, {**body, "messages": messages, "chat_template_kwargs": {"enable_thinking": False}}


class Answer(t.NamedTuple):
    """What an answer says of itself."""

    tokens: int
    decode_ms: float
    prompt_tokens: int
    prompt_ms: float


def read(answer: Mapping) -> Answer:
    """Return what an answer says of itself. Raises ValueError with one sentence where it does not."""
    try:
        usage = answer["usage"]
        tokens, prompt_tokens = int(usage["completion_tokens"]), int(usage["prompt_tokens"])
        seconds, prompt_seconds = float(usage["completion_time"]), float(usage["prompt_time"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"the answer does not say how long it took ({exc!r})") from exc
    return Answer(tokens, 1000 * seconds, prompt_tokens, 1000 * prompt_seconds)


def row(name: str, answers: t.Sequence[Answer], drafted: int, accepted: int) -> Json:
    """Return what one kind of text took, as rows of speculation_benchmark are.

    C(drafted) and C(accepted) are 0 where nobody counts them. Raises ValueError with one sentence for answers that
    took no time. The first token of an answer comes from its prompt and is not counted.
    """
    tokens = sum(answer.tokens for answer in answers) - len(answers)
    decode_ms = sum(answer.decode_ms for answer in answers)
    if tokens < 1 or decode_ms <= 0:
        raise ValueError(f"the answers to {name} have {tokens + len(answers)} tokens in {decode_ms:.0f} ms")
    return {
        "kind": "text",
        "text": name,
        "tokens": tokens,
        "decode_ms": round(decode_ms, 3),
        "prompt_tokens": sum(answer.prompt_tokens for answer in answers),
        "prompt_ms": round(sum(answer.prompt_ms for answer in answers), 3),
        "drafted": drafted,
        "accepted": accepted,
        "drafts": 0,
        "positions": [],
    }
