# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Keeps the server of a trial busy, with idle gaps. Private to this collection. It talks HTTP to the server.

A known hang of split mode tensor (llama.cpp issue 27110) comes with a request after 40 seconds or more without one, so
work and rest take turns. Now and then, and after each rest, the first prompt comes again: its answer must not change.
"""

from __future__ import annotations

import statistics
import time
import typing as t

from .._base.types import Json
from . import llama_client, mode_trial, server_timings
from .trial_server import Server, TrialError

#: Every so many requests of a time of work are the first prompt again.
REPEAT_EVERY: t.Final = 5


class Soak:
    """The soak of one server."""

    def __init__(
        self, server: Server, prompt: t.Sequence[int], answer: t.Sequence[int], generated: int, micro_batch: int
    ) -> None:
        """Take the first prompt with its answer (tokens), the tokens of an answer and those of a micro-batch."""
        self.server, self.prompt, self.answer = server, prompt, answer
        self.generated, self.micro_batch = generated, micro_batch
        self._speeds: list[float] = []
        self._requests = self._tokens = self._gaps = self._lengths = 0
        self._started = time.monotonic()

    @property
    def found(self) -> Json:
        """What was seen so far, for the record."""
        speeds = self._speeds
        return {
            "seconds": round(time.monotonic() - self._started),
            "idle_gaps": self._gaps,
            "requests": self._requests,
            "tokens": self._tokens,
            "decode_tokens_per_second": {
                "min": round(min(speeds), 3), "median": round(statistics.median(speeds), 3),
                "max": round(max(speeds), 3),
            } if speeds else None,
        }  # fmt: skip

    def run(self, work_seconds: float, gaps: int, idle_seconds: float) -> None:
        """Work for C(work_seconds) in all, interrupted by C(gaps) rests. Raises TrialError."""
        client = self.server.client
        try:
            vocabulary, context = client.vocabulary_size(), client.context_per_slot()
        except llama_client.ServerError as error:
            raise TrialError("unstable", str(error)) from error
        for turn in range(gaps + 1):
            if turn:
                time.sleep(idle_seconds)
                self._gaps += 1
            self._work(work_seconds / (gaps + 1), vocabulary, context)

    def _work(self, seconds: float, vocabulary: int, context: int) -> None:
        started, number = time.monotonic(), 0
        while number == 0 or time.monotonic() - started < seconds:
            reply = self._repeat() if number % REPEAT_EVERY == 0 else self._other(vocabulary, context)
            number += 1
            self._requests += 1
            timings = llama_client.timings(reply)
            self._tokens += int(timings.get("prompt_n", 0)) + int(timings.get("predicted_n", 0))
            if timings.get("predicted_per_second"):
                self._speeds.append(float(timings["predicted_per_second"]))

    def _other(self, vocabulary: int, context: int) -> Json:
        """Return the answer to a prompt of another length."""
        length = mode_trial.soak_prompt_tokens(self._lengths, context, self.generated, self.micro_batch)
        self._lengths += 1
        return self.server.answer(
            server_timings.prompt_tokens(length, vocabulary, str(self._requests)), self.generated
        )

    def _repeat(self) -> Json:
        """Return the answer to the first prompt. Raises TrialError where it is not what it was."""
        reply = self.server.answer(self.prompt, self.generated)
        place = mode_trial.first_divergence(self.answer, reply["tokens"])
        if place is None:
            return reply
        after = f"after {self._requests} requests and {self._gaps} idle gaps"
        raise TrialError("unstable", f"the same prompt got another answer from token {place} on, {after}")
