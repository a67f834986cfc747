# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models whose greedy next token is a known function of the last one, at full compute cost. Private to this collection.

A draft that agrees with its target on a known share of the tokens of each text has an acceptance that can be computed,
and greedy answers that can be compared word for word. Such a model proves copies between devices, placement and
speculation; it does not prove the sums inside blocks, whose output is multiplied by zero.

Why it holds: what blocks add (SILENT) is zero, so the residual stream stays the embedding of the token. The RMS norm
gives sqrt(width) times its direction. The row of a successor in the output matrix is the sum of its predecessors'
directions, so its logit exceeds every other by far (23 at a width of 1024, against rounding errors of 0.2).
"""

from __future__ import annotations

import itertools
import random
import string
import typing as t

#: The matrices of a block, by llama.cpp's tensor name, that are zero.
SILENT: t.Final = ("attn_output", "ffn_down", "ffn_down_exps")
#: Special tokens, the tokens of single bytes, the word separator: what comes after them is text.
FIRST_WORD: t.Final = 3 + 256 + 1
#: Fewest words of a text: with fewer of them the sums of a row would have too many parts.
LEAST_WORDS: t.Final = 20


class Function(t.NamedTuple):
    """The next token of each token, and the texts: cycles of tokens, one for each kind."""

    following: list[int]
    texts: list[list[int]]


def words(count: int) -> list[str]:
    """Return so many different words of one width, at most 17576."""
    spelled = itertools.product(string.ascii_lowercase, repeat=3)
    return ["".join(letters) for letters in itertools.islice(spelled, count)]


def target(vocabulary: int, kinds: int, seed: int) -> Function:
    """Return the function of the model that is to be predicted.

    Every token that is no word leads into a text, by its number modulo C(kinds), so no answer ends by itself.
    """
    tokens = list(range(FIRST_WORD, vocabulary))
    random.Random(seed).shuffle(tokens)
    texts = [tokens[kind::kinds] for kind in range(kinds)]
    following = [0] * vocabulary
    for token in range(FIRST_WORD):
        text = texts[token % kinds]
        following[token] = text[token // kinds % len(text)]
    for text in texts:
        for token, after in zip(text, [*text[1:], text[0]], strict=True):
            following[token] = after
    return Function(following, texts)


def draft(of: Function, agreement: t.Sequence[float], seed: int) -> tuple[Function, list[set[int]]]:
    """Return the function of a model that agrees on a share of each text, and the tokens that it gets wrong.

    They are drawn: misses at even distances would fall on the same place of every round.
    """
    numbers = random.Random(f"draft {seed}")
    following, wrong = list(of.following), []
    for text, share in zip(of.texts, agreement, strict=True):
        missed = set(numbers.sample(text, round(len(text) * (1 - share))))
        for token in sorted(missed):
            following[token] = numbers.choice([other for other in text if other not in (of.following[token], token)])
        wrong.append(missed)
    return Function(following, of.texts), wrong
