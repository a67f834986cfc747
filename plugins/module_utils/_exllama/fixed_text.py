# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The text by which wrong answers of an ExLlama are noticed. Private to this collection. Pure functions only.

Every load tells how unlikely the model finds the second half of the text, and what it says itself after the first half;
_revalidation/text_answers.py compares that with the baseline.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping

#: Known to every model of a language, so that it is very likely to a model that works, and to no other.
TEXT: t.Final = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be in want of a"
    " wife. However little known the feelings or views of such a man may be on his first entering a neighbourhood, this"
    " truth is so well fixed in the minds of the surrounding families, that he is considered as the rightful property"
    ' of some one or other of their daughters. "My dear Mr. Bennet," said his lady to him one day, "have you heard that'
    ' Netherfield Park is let at last?" Mr. Bennet replied that he had not. "But it is," returned she; "for Mrs. Long'
    ' has just been here, and she told me all about it." Mr. Bennet made no answer. "Do not you want to know who has'
    ' taken it?" cried his wife impatiently. "You want to tell me, and I have no objection to hearing it." This was'
    " invitation enough."
)
#: Tokens of the text; half of them are judged.
TEXT_TOKENS: t.Final = 192
#: Tokens that the model says itself.
ANSWER_TOKENS: t.Final = 32


def order(context_size: int) -> Json:
    """Return what the worker is told of the text; with a context of C(context_size) tokens it may be shorter."""
    return {
        "text": TEXT,
        "text_tokens": min(TEXT_TOKENS, context_size - ANSWER_TOKENS),
        "answer_tokens": ANSWER_TOKENS,
    }


def checked(said: Mapping) -> Json:
    """Return what the worker says of the text, C({text, judged_tokens, nats_per_token, tokens}).

    C(text) is a hash of its tokens: others are not compared. Raises KeyError, TypeError or ValueError for another form.
    """
    nats = said["nats_per_token"]
    return {
        "text": str(said["text"]),
        "judged_tokens": int(said["judged_tokens"]),
        "nats_per_token": None if nats is None else float(nats),
        "tokens": [int(token) for token in said["tokens"]],
    }
