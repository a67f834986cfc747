# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a private llama-server is asked for the check of answers. Private to this collection. It talks HTTP."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.types import Json, Mapping
from . import answer_check, llama_client
from .trial_server import Server, TrialError

#: Tokens between two places in the text. From 32 tokens on, a card computes layers that lie in host memory.
STEP: t.Final = 32
_SPARE_TOKENS: t.Final = 16
#: A fixed text. It is ASCII, so each of its tokens is a whole character.
TEXT: t.Final = """\
A ship that leaves the harbour at night is seen first as two lights, one red and one green, and only later as a hull. \
The pilot counts the flashes of the beacon on the northern rock: three short ones, then darkness for ten seconds. \
Whoever has learned the coast by day finds that distances are larger after sunset, because nothing in between can be \
seen. For this reason the old books advise to trust the lead and the compass, to write down each sounding with its \
time, and to compare the result with the chart before the next course is set. A sounding of twelve fathoms over sand \
means the bank, a sounding of forty over mud means the channel. If the two disagree with the compass, the compass is \
looked at last, since iron on deck can turn it by half a point without anybody noticing. In the morning the log is \
read aloud: wind from the west, four knots, the barometer falling slowly, one sail in sight to the south. The cook \
lights the stove, the watch below comes up, and the captain decides whether to run for shelter or to keep the sea. \
Water, flour and salted meat are counted every Sunday; what is missing must be found or explained, and the number is \
written beside the date. So a voyage of two hundred days becomes a column of figures that any clerk can add, and in \
the end the owners know what the journey has cost, how far the ship has come, and which of her stores ran out first.
"""


class NoNumbersError(Exception):
    """A server gives probabilities that are no numbers, or none."""


@dataclasses.dataclass(frozen=True)
class Questions:
    """The text as token ids, and how many tokens the placement generates after it."""

    text: t.Sequence[int]
    generated: int

    @property
    def context(self) -> int:
        """How many tokens of context they need."""
        return len(self.text) + self.generated + _SPARE_TOKENS

    @property
    def ends(self) -> list[int]:
        """Where the text is cut."""
        return list(range(STEP, len(self.text) + 1, STEP))


def questions(server: Server, text_tokens: int, generated: int) -> Questions:
    """Return the questions that fit into a slot of the server. Raises TrialError where none do."""
    try:
        context = server.client.context_per_slot()
    except llama_client.ServerError as error:
        raise TrialError("unstable", str(error)) from error
    tokens = server.tokens(TEXT)
    room = min(text_tokens, len(tokens), context - generated - _SPARE_TOKENS) // STEP * STEP
    if room < STEP:
        raise TrialError("refused", f"a slot of {context} tokens has no room for {STEP} and {generated} tokens")
    return Questions(tokens[:room], generated)


def of_placement(server: Server, asked: Questions) -> tuple[list[int], answer_check.Answers]:
    """Return the placement's greedy answer to the text, and its candidates. Raises TrialError and NoNumbersError."""
    text = _in_text(server, asked)
    tokens: list[int] = []
    own = []
    for _count in range(asked.generated):
        own.append(_next(server, [*asked.text, *tokens], asked))
        tokens.append(own[-1][0][0])
    return tokens, answer_check.Answers(text, own)


def of_device(server: Server, asked: Questions, tokens: t.Sequence[int]) -> answer_check.Answers:
    """Return the candidates of a device that is given the placement's answer token by token.

    Raises TrialError and NoNumbersError.
    """
    text = _in_text(server, asked)
    own = [_next(server, [*asked.text, *tokens[:count]], asked) for count in range(len(tokens))]
    return answer_check.Answers(text, own)


def _in_text(server: Server, asked: Questions) -> list[answer_check.Top]:
    return [_next(server, asked.text[:end], asked) for end in asked.ends]


def _next(server: Server, prompt: t.Sequence[int], asked: Questions) -> answer_check.Top:
    try:
        # the last token of the text is a whole character, as the text is ASCII
        return answer_check.parse(server.next_token(prompt, answer_check.CANDIDATES, asked.text[-1]))
    except ValueError as error:
        raise NoNumbersError(str(error)) from error


def alone(
    entry: Mapping, device: Mapping, context: int, reserve_mib: int, threads: int
) -> tuple[Json, list[str]]:
    """Return the deployment of one device alone, and the words that keep in host memory what does not fit.

    llama.cpp itself finds how many layers fit (--fit) beside C(reserve_mib). C(threads) compute what stays on the CPU.
    No memory is locked: what a device alone leaves in host memory is far more than what is served does.
    """
    load_mode = entry["serving"]["load_mode"]
    layers = sum(int(place["layers"]) for place in entry["placement"])
    serving = {
        **entry["serving"], "context_size": context, "parallel_slots": 1, "kv_unified": True, "batch_size": 512,
        "micro_batch_size": 512, "threads": threads, "load_mode": "auto" if "mlock" in load_mode else load_mode,
    }  # fmt: skip
    served = {
        **{name: entry[name] for name in ("model", "devices", "environment", "rpc_endpoints")},
        "serving": serving, "placement": [{"id": device["id"], "layers": layers}], "split_mode": "layer",
    }  # fmt: skip
    return served, ["-ngl", "auto", "-fit", "on", "-fitt", str(reserve_mib)]


def processor(entry: Mapping, context: int, threads: int) -> tuple[Json, list[str]]:
    """Return the deployment of the host's CPU alone, and the words that keep everything off the devices."""
    served, _words = alone(entry, entry["devices"][0], context, 0, threads)
    return served, ["-dev", "none", "-ngl", "0", "--no-op-offload"]
