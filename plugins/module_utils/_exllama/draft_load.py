# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a load of TabbyAPI with or without a draft is asked, in order. Private to this collection. It talks HTTP."""

from __future__ import annotations

import http
import time
import typing as t

from .._base.types import Json, Mapping
from .._measuring.served_load import EndedError
from . import draft_log, served_times, text_times
from .private_server import Server

#: Tokens of the short answer that comes first, as the first one of a load is slower than all others.
_WARM_UP: t.Final = 8
#: Words may have more tokens than those of the texts; a prompt has to fit the context all the same.
_SURELY: t.Final = 0.7
#: How often a log is read in which a line is missing, and the time in between.
_LOOKS, _LOOK_SECONDS = 10, 0.2


def measure(server: Server, texts: t.Sequence[Mapping], generated: int, prompt_tokens: int) -> list[Json]:
    """Return tokens and times per kind of text, in the order of first mention, and of a long prompt unless it is 0.

    Raises EndedError.
    """
    chat = _has_template(server)
    of_kind: dict[str, list[str]] = {}
    for text in texts:
        of_kind.setdefault(str(text["name"]), []).append(str(text["prompt"]))
    rows = [_kind(server, name, prompts, generated, chat) for name, prompts in of_kind.items()]
    if prompt_tokens < 1:
        return rows
    # by the texts so far, with what the template adds: how long a word is in tokens depends on the vocabulary
    letters = sum(len(str(text["prompt"])) for text in texts) / max(1, sum(row["prompt_tokens"] for row in rows))
    words = served_times.prompt(prompt_tokens, "long")[: max(1, round(_SURELY * letters * prompt_tokens))]
    long = _ask(server, words, 1, chat=False)
    if long.prompt_tokens < 1 or long.prompt_ms <= 0:
        return rows  # shorter than what TabbyAPI rounds to
    return [*rows, {"kind": "prompt", "prompt_tokens": long.prompt_tokens, "prompt_ms": round(long.prompt_ms, 3)}]


def _has_template(server: Server) -> bool:
    """Have a short answer written; return whether chats go through a template of the model."""
    path, body = text_times.request("Say hello.", _WARM_UP, chat=True)
    status, answer = server.asked(path, body)
    if status == http.HTTPStatus.OK:
        return True
    if text_times.NO_TEMPLATE not in str(answer):
        raise EndedError("unstable", f"TabbyAPI answered {path} with {status}: {str(answer)[:300]}")
    _ask(server, "Say hello.", _WARM_UP, chat=False)
    return False


def _kind(server: Server, name: str, prompts: t.Sequence[str], generated: int, chat: bool) -> Json:
    start = server.size()
    answers = [_ask(server, prompt, generated, chat) for prompt in prompts]
    if not all(served_times.whole(answer.tokens, generated) for answer in answers):
        said = ", ".join(str(answer.tokens) for answer in answers)
        raise EndedError("unstable", f"the answers to {name} have {said} tokens, and {generated} were asked for")
    drafted, accepted = _counted(server, start, len(answers))
    try:
        return text_times.row(name, answers, drafted, accepted)
    except ValueError as exc:
        raise EndedError("unstable", str(exc)) from exc


def _counted(server: Server, start: int, answers: int) -> tuple[int, int]:
    """Return drafted and accepted tokens of the last answers; the last line may come after its answer."""
    counts = draft_log.counts(server.text())
    for _look in range(_LOOKS if counts else 0):
        found = draft_log.counted(server.text(start), answers)
        if found != (0, 0):
            return found
        time.sleep(_LOOK_SECONDS)
    return 0, 0


def _ask(server: Server, prompt: str, tokens: int, chat: bool) -> text_times.Answer:
    path, body = text_times.request(prompt, tokens, chat)
    status, answer = server.asked(path, body)
    if status != http.HTTPStatus.OK:
        raise EndedError("unstable", f"TabbyAPI answered {path} with {status}: {str(answer)[:300]}")
    try:
        return text_times.read(answer)
    except ValueError as exc:
        raise EndedError("unstable", str(exc)) from exc
