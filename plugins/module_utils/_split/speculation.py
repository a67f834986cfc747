# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculative decoding as a part of a placement: which kind drafts, with which model, on which device, how far ahead.

Private to this collection. Pure functions only. Names of kinds are those of llama.cpp's C(--spec-type) (b11312).
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.types import Json, Mapping
from .layer_split import Layers

NONE: t.Final = "none"
#: Kinds whose rounds draft exactly n-max tokens, so that a round costs a + b x n-max (measured within 2 %).
LINE_KINDS: t.Final = ("draft-simple", "draft-mtp", "draft-eagle3")
#: Of these, kinds that draft n-max tokens even where fewer are checked.
WHOLE_DRAFTS: t.Final = ("draft-mtp", "draft-eagle3")
#: Kinds that draft from the text so far: no model, drafts of any length.
NGRAM_KINDS: t.Final = ("ngram-mod", "ngram-simple", "ngram-map-k", "ngram-map-k4v", "ngram-cache")
KINDS: t.Final = (NONE, *LINE_KINDS, *NGRAM_KINDS)
#: TabbyAPI's draft_mode "model". What ExLlamaV2 accepts of it is not told, so no line of costs is fitted.
OF_EXLLAMA: t.Final = "draft-model"
#: Matrix-vector kernels end at a batch of 8 tokens: the drafted ones and the one that is known.
MOST_DRAFTED: t.Final = 7
#: Kind, draft, device, split mode where it is another one.
Family = tuple[str, str, str, str]


@dataclasses.dataclass(frozen=True)
class Arm:
    """One way to speculate. C(draft) is the id of the draft's model, C(device) the id of the device that holds it.

    C(mode) is the split mode where that is another one than without speculation, else empty.
    """

    kind: str = NONE
    draft: str = ""
    device: str = ""
    n_max: int = 0
    mode: str = ""

    @property
    def source(self) -> tuple[str, str]:
        """What the acceptance belongs to: drafts are the same on every device, in every split mode."""
        return self.kind, self.draft

    @property
    def family(self) -> Family:
        """What a line of costs belongs to: everything but n-max."""
        return self.kind, self.draft, self.device, self.mode

    def name(self, device: str = "") -> str:
        """Return the arm in words, as labels and sentences have it; C(device) is what its device is called."""
        if self.kind == NONE:
            return "no speculation"
        place = device or self.device
        words = [self.kind, self.draft, f"on {place}" if place else "", f"n-max {self.n_max}" if self.n_max else ""]
        words += [f"in {self.mode} mode"] if self.mode else []
        return " ".join(word for word in words if word)


@dataclasses.dataclass(frozen=True)
class Offer:
    """A family of arms that memory allows, with what is expected of it before it is measured.

    C(layers) is the target's split beside this draft, C(target_ms) what a token takes with that split without
    speculation, C(draft_ms) what a drafted token is expected to take on its device.
    """

    kind: str
    draft: str
    device: str
    layers: Layers
    target_ms: float
    draft_ms: float
    most_drafted: int = MOST_DRAFTED
    mode: str = ""

    @property
    def family(self) -> Family:
        """As of its arms."""
        return self.arm(0).family

    def arm(self, n_max: int) -> Arm:
        """Return the arm of this family with C(n_max)."""
        return Arm(self.kind, self.draft, self.device, n_max, self.mode)

    def arms(self) -> list[Arm]:
        """Return all arms of this family; an n-gram kind has one, whose drafts have any length."""
        if self.kind not in LINE_KINDS:
            return [self.arm(0)]
        return [self.arm(n_max) for n_max in range(1, self.most_drafted + 1)]


@dataclasses.dataclass(frozen=True)
class TextResult:
    """What one load measured on one kind of text.

    C(tokens) were generated in C(decode_ms), C(accepted) of the C(drafted) tokens were right; C(positions) are the
    shares of rounds in which the draft's first, second, ... token was accepted, empty where the server does not say.
    """

    text: str
    tokens: int
    decode_ms: float
    drafted: int = 0
    accepted: int = 0
    positions: tuple[float, ...] = ()

    @property
    def rounds(self) -> int:
        """How often the target computed: each round gives one token of its own besides those that were accepted."""
        return max(1, self.tokens - self.accepted)


@dataclasses.dataclass(frozen=True)
class ShortAnswers:
    """What answers took that are too short for whole drafts, so that their rounds draft fewer tokens than n-max.

    C(rounds) of the target took C(decode_ms), C(drafts) of them checked C(drafted) tokens together.
    """

    rounds: int
    drafts: int
    drafted: int
    decode_ms: float


@dataclasses.dataclass(frozen=True)
class ServedLoad:
    """One load of llama-server with one arm, and what it measured on each kind of text.

    C(prompt_ms) is what a token of a long prompt took, 0 where none was measured, C(draft_ms) what drafting a token
    took, 0 where the server did not say.
    """

    arm: Arm
    results: tuple[TextResult, ...]
    prompt_ms: float = 0.0
    short: tuple[ShortAnswers, ...] = ()
    draft_ms: float = 0.0

    @property
    def round_ms(self) -> float:
        """What a round takes (ms), over all texts; without speculation a round is a token."""
        return sum(found.decode_ms for found in self.results) / sum(found.rounds for found in self.results)


def as_json(arm: Arm) -> Json:
    """Return C({kind, draft, device, n_max, mode})."""
    return dataclasses.asdict(arm)


def from_json(stored: Mapping) -> Arm:
    """Return what as_json wrote. Raises ValueError in one sentence where it cannot be."""
    kind, n_max = stored.get("kind"), stored.get("n_max")
    known = (*KINDS, OF_EXLLAMA)
    if kind not in known:
        raise ValueError(f"speculation.kind must be one of {', '.join(known)}, not {kind!r}")
    if isinstance(n_max, bool) or not isinstance(n_max, int) or n_max < 0:
        raise ValueError(f"speculation.n_max must be a whole number, not {n_max!r}")
    names = [str(stored.get(name, "")) for name in ("draft", "device", "mode")]
    return Arm(kind, names[0], names[1], n_max, names[2])
