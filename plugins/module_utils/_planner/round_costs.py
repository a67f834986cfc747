# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a round of drafting and verifying costs, and how many tokens it gives. Private to this collection. Pure.

A round with n drafted tokens takes T (1 + alpha) + n (v + d), and small steps from one n to the next: T is what a token
takes without speculation with the same split, v what verifying one more token costs, d what drafting one costs. alpha
and v belong to the target in a split mode; d belongs to draft and device, and much of it to the draft, whose launches
count on every device. Measured on two H200: a line within 2 %.
A load tells a round of n-max tokens by its texts, rounds of fewer by its short answers, and d by what the server says
of drafting; all of them scatter together from load to load.
All unknowns have a prior, so that every n-max of every draft is predicted from the first load on, with its error.
Errors grow where loads show them to be larger, and what disagrees all the same is told (misfit).
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from .._base import least_squares
from .._split import speculation
from .._split.speculation import Arm, Offer, ServedLoad

#: Prior of alpha: what a round costs beyond a token of the target, relative to that token (measured: 0.0 to 0.6). A
#: part of its error belongs to all split modes together, the other one to each.
ROUND_OVERHEAD, ROUND_OVERHEAD_ERROR, MODE_OVERHEAD_ERROR = 0.15, 0.08, 0.13
#: Prior error of what a round without drafted tokens costs beside others, relative to a token of the target.
UNDRAFTED_ERROR: t.Final = 0.1
#: Prior error of a family: of the split's own time.
FAMILY_ERROR: t.Final = 0.03
#: Prior error of the expected time of a drafted token: of the draft, whose launches count wherever it lies, of its
#: device, and of the split mode of its target.
DRAFT_ERROR, DRAFT_DEVICE_ERROR, DRAFT_MODE_ERROR = 0.4, 0.2, 0.2
#: Prior error of a step of a line from one drafted token to the next, relative to a token of the target (measured: a
#: line within 2 %).
STEP_ERROR: t.Final = 0.015
#: Prior error of what rounds of short answers cost more or less than those of texts; answers of n-max tell.
SHORT_ERROR: t.Final = 0.05
#: How well the time that the server says of a drafted token is what it costs a round: of itself, and of a token of the
#: target.
DRAFTING_ERROR, DRAFTING_OF_TARGET = 0.05, 0.1
#: How well a load tells one length of drafts against another, at best.
WITHIN_A_LOAD: t.Final = 0.007
#: Degrees of freedom that the errors of this page count for, where loads tell them as well.
USUAL_DEGREES: t.Final = 4
#: A round computes what a token takes at least (measured: 1.0), relative to that.
LEAST_ROUND: t.Final = 0.8
#: Kinds of rows whose errors loads may show to be larger than usual: times of short answers, steps, costs of drafts.
#: What these leave open is how loads scatter.
_SHOWN: t.Final = ("short answer", "step", "draft")
_SCATTER: t.Final = "load"
#: How often errors are corrected by what they left over; they hardly change then.
_CORRECTIONS: t.Final = 4

#: Prior of the acceptance of a drafted token, and its error, while no text was drafted.
ACCEPTANCE, ACCEPTANCE_ERROR = 0.7, 0.15


class Estimate(t.NamedTuple):
    """A value with its relative standard error."""

    value: float
    error: float


class Verify(t.NamedTuple):
    """The prior of v, relative to a token of the target, with its error."""

    value: float
    error: float


#: With all weights on devices (measured: 0.08 to 0.15). A part of the error belongs to each split mode.
VERIFY, MODE_VERIFY_ERROR = Verify(0.10, 0.05), 0.05


@dataclasses.dataclass(frozen=True)
class _Row:
    """One linear equation: coefficients of the unknowns, what they give, and how well that is known.

    Of a C(kind) the error is a usual one, which loads may show to be larger.
    """

    parts: t.Mapping[t.Hashable, float]
    value: float
    error: float
    kind: str = ""


class RoundCosts:
    """The line of every family on offer, from priors and from what was measured."""

    def __init__(
        self, offers: t.Sequence[Offer], loads: t.Sequence[ServedLoad], noise: float, verify: Verify = VERIFY,
        within: float = 0.0,
    ) -> None:  # fmt: skip
        """Take what is on offer, all loads with speculation, the relative scatter between loads, and the prior of v.

        C(within): how much the texts of a load scatter together.
        """
        self._within = max(WITHIN_A_LOAD, within)
        self._offers = {offer.family: offer for offer in offers}
        own = [load for load in loads if load.arm.family in self._offers]
        self._measured = {load.arm.family for load in own}
        priors: dict[t.Hashable, tuple[float, float]] = {
            "alpha": (ROUND_OVERHEAD, ROUND_OVERHEAD_ERROR), "v": verify,
            "undrafted": (0.0, UNDRAFTED_ERROR),
        }  # fmt: skip
        for offer in offers:
            priors["alpha", offer.mode], priors["v", offer.mode] = (0.0, MODE_OVERHEAD_ERROR), (0.0, MODE_VERIFY_ERROR)
            priors["split", offer.family] = 0.0, FAMILY_ERROR
            priors["draft", offer.family] = 0.0, DRAFT_MODE_ERROR
            priors["draft", offer.family[:3]] = 0.0, DRAFT_DEVICE_ERROR
            priors["draft", offer.arm(0).source] = 0.0, DRAFT_ERROR
            if offer.family in self._measured:
                steps = range(2, offer.most_drafted + 1)
                priors |= {("step", offer.family, place): (0.0, STEP_ERROR) for place in steps}
        for number in range(len(own)):
            priors["load", number], priors["short", number] = (0.0, noise), (0.0, SHORT_ERROR)
        self._places = {name: place for place, name in enumerate(priors)}
        self._rows = [
            _Row({name: 1.0}, *prior, str(name[0]) if isinstance(name, tuple) else "") for name, prior in priors.items()
        ]
        for number, load in enumerate(own):
            self._rows += self._of_load(number, load)
        # by how much the errors of a kind are larger than usual
        self._larger: dict[str, float] = {}
        self._solve()
        for kinds in [*[_SHOWN] * _CORRECTIONS, *[(*_SHOWN, _SCATTER)] * _CORRECTIONS] if own else ():
            if self._misfit() <= 1:
                break
            self._larger = {kind: self._shown(kind) for kind in kinds}
            self._solve()
        #: By how much loads disagree, 1 where they do not: residuals by their errors (Birge's ratio), or how loads
        #: scatter by what was taken for it.
        self.misfit = max(1.0, self._misfit(), self._larger.get(_SCATTER, 1.0)) if own else 1.0

    def _error(self, row: _Row) -> float:
        return row.error * self._larger.get(row.kind, 1.0)

    def _solve(self) -> None:
        size = len(self._places)
        normal = [[0.0] * size for _row in range(size)]
        right = [0.0] * size
        for row in self._rows:
            weight = 1 / self._error(row) ** 2
            parts = [(self._places[name], value) for name, value in row.parts.items()]
            for i, left in parts:
                right[i] += weight * left * row.value
                for j, other in parts:
                    normal[i][j] += weight * left * other
        self._lower = least_squares.cholesky(normal)
        self._known = least_squares.solve_transposed(self._lower, least_squares.solve_lower(self._lower, right))

    def _left(self, row: _Row) -> float:
        """Return what a row leaves over."""
        return row.value - sum(part * self._known[self._places[name]] for name, part in row.parts.items())

    def _misfit(self) -> float:
        """Return the root of chi-square by its degrees of freedom: each unknown has a prior, so the loads' rows."""
        squares = sum((self._left(row) / self._error(row)) ** 2 for row in self._rows)
        return math.sqrt(squares / (len(self._rows) - len(self._places)))

    def _shown(self, kind: str) -> float:
        """Return by how much larger than usual the errors of a kind are, by what its rows leave over."""
        own = [row for row in self._rows if row.kind == kind]
        squares = sum((self._left(row) / row.error) ** 2 for row in own)
        free = sum(1 - self._leverage(row) for row in own)
        return math.sqrt(max(1.0, (USUAL_DEGREES + squares) / (USUAL_DEGREES + free)))

    def _leverage(self, row: _Row) -> float:
        """Return how far a row is followed, from 0 to 1."""
        return sum(part**2 for part in self._spread(row.parts, self._error(row)))

    def _of_load(self, number: int, load: ServedLoad) -> t.Iterator[_Row]:
        """Yield what a load says of a round of its texts, and of shorter ones."""
        arm, whole = load.arm, load.arm.kind in speculation.WHOLE_DRAFTS
        target_ms = self._offers[arm.family].target_ms
        least_ms = LEAST_ROUND * target_ms
        measured = [(load.round_ms, float(arm.n_max), float(arm.n_max), 1.0, False)]
        for short in load.short:
            if not short.rounds or not short.decode_ms:
                continue
            drafts, checked = short.drafts / short.rounds, short.drafted / short.rounds
            drafted = drafts * arm.n_max if whole else checked
            measured.append((short.decode_ms / short.rounds, checked, drafted, drafts, True))
        for value, checked, drafted, drafts, is_short in measured:
            parts, fixed = self._equation(arm, checked, drafted)
            parts["undrafted"] = (1 - drafts) * target_ms
            parts["load", number] = value
            if is_short:
                parts["short", number] = value
            error = WITHIN_A_LOAD if is_short else self._within
            # what is impossibly short is known no better for that
            yield _Row(parts, value - fixed, error * max(value, least_ms), "short answer" if is_short else "")
        if load.draft_ms:
            expected = self._offers[arm.family].draft_ms
            drafting: dict[t.Hashable, float] = {
                ("draft", arm.family): expected, ("draft", arm.source): expected, ("draft", arm.family[:3]): expected,
                ("load", number): load.draft_ms,
            }  # fmt: skip
            error = DRAFTING_ERROR * math.hypot(load.draft_ms, DRAFTING_OF_TARGET * target_ms)
            yield _Row(drafting, load.draft_ms - expected, error)

    def _equation(self, arm: Arm, checked: float, drafted: float) -> tuple[dict[t.Hashable, float], float]:
        """Return the coefficients of the unknowns in the cost of a round, and the part that is fixed, in ms.

        C(checked) tokens are verified of C(drafted) ones, both in the mean of several rounds.
        """
        offer = self._offers[arm.family]
        target, draft = offer.target_ms, drafted * offer.draft_ms
        parts: dict[t.Hashable, float] = {
            "alpha": target, ("alpha", offer.mode): target, "v": checked * target, ("v", offer.mode): checked * target,
            ("split", arm.family): target, ("draft", arm.family): draft, ("draft", arm.source): draft,
            ("draft", arm.family[:3]): draft,
        }  # fmt: skip
        if arm.family in self._measured:
            for place in range(2, offer.most_drafted + 1):
                parts["step", arm.family, place] = target * min(1.0, max(0.0, checked - place + 1))
        return parts, target + draft

    def round_ms(self, arm: Arm) -> Estimate:
        """Return what a round of an arm takes (ms), no less than rounds of shorter drafts.

        Raises KeyError for an arm that is not on offer.
        """
        value = max(self._cost(*self._equation(arm, n_max, n_max)) for n_max in range(1, arm.n_max + 1))
        steps = 0.0 if arm.family in self._measured else STEP_ERROR * math.sqrt(max(0, arm.n_max - 1))
        return Estimate(value, math.hypot(*self.deviation(arm), steps * self._offers[arm.family].target_ms / value))

    def deviation(self, arm: Arm) -> list[float]:
        """Return the relative error of a round of an arm, in parts of variance one that are the same for all arms."""
        parts, fixed = self._equation(arm, arm.n_max, arm.n_max)
        return self._spread(parts, self._cost(parts, fixed))

    def _spread(self, parts: t.Mapping[t.Hashable, float], unit: float) -> list[float]:
        """Return the error of a sum of unknowns, in units, in parts of variance one that are the same for all sums."""
        vector = [0.0] * len(self._places)
        for name, part in parts.items():
            vector[self._places[name]] = part / unit
        return least_squares.solve_lower(self._lower, vector)

    def _cost(self, parts: t.Mapping[t.Hashable, float], fixed: float) -> float:
        value = fixed + sum(part * self._known[self._places[name]] for name, part in parts.items())
        return max(value, LEAST_ROUND * parts["alpha"])


class Acceptance:
    """How many tokens a round gives, per source of drafts and kind of text."""

    def __init__(self, loads: t.Sequence[ServedLoad]) -> None:
        """Take all loads with speculation.

        Drafts of any length show how often the first, second, ... token is accepted, so all loads of a source count
        together; the rates of a smaller n-max are the beginning of a larger one's nearly: rounds start elsewhere.
        """
        self._counts: dict[tuple[tuple[str, str], str], list[tuple[float, int]]] = {}
        for load in loads:
            for found in load.results:
                counts = self._counts.setdefault((load.arm.source, found.text), [])
                rates = found.positions[: load.arm.n_max] or _geometric(found.accepted / found.rounds, load.arm.n_max)
                counts += [(0.0, 0)] * (len(rates) - len(counts))
                for position, rate in enumerate(rates):
                    accepted, rounds = counts[position]
                    counts[position] = (accepted + rate * found.rounds, rounds + found.rounds)

    def known(self, source: tuple[str, str]) -> bool:
        """Return whether anything of this source was measured."""
        return any(own == source for own, _text in self._counts)

    def tokens_per_round(self, arm: Arm, text: str) -> Estimate:
        """Return the tokens that a round gives: one, and one more with the rate of acceptance of each position."""
        counts = self._counts.get((arm.source, text))
        if not counts:
            expected = 1 + sum(ACCEPTANCE**position for position in range(1, arm.n_max + 1))
            steep = sum(position * ACCEPTANCE ** (position - 1) for position in range(1, arm.n_max + 1))
            return Estimate(expected, ACCEPTANCE_ERROR * steep / expected)
        rates = _prolonged([accepted / rounds for accepted, rounds in counts], arm.n_max)
        expected = 1 + sum(rates)
        # the rates are the chances of at least one, two, ... right tokens
        scatter = max(0.0, sum((2 * place + 1) * rate for place, rate in enumerate(rates)) - (expected - 1) ** 2)
        return Estimate(expected, math.hypot(math.sqrt(scatter / counts[0][1]) / expected, 0.005))


def _geometric(accepted_per_round: float, n_max: int) -> tuple[float, ...]:
    """Return rates by position, each a power of one acceptance, that together give C(accepted_per_round)."""
    low, high = 0.0, 1.0
    for _step in range(40):
        middle = (low + high) / 2
        reached = sum(middle**position for position in range(1, n_max + 1))
        low, high = (middle, high) if reached < accepted_per_round else (low, middle)
    return tuple(low**position for position in range(1, n_max + 1))


def _prolonged(rates: t.Sequence[float], n_max: int) -> list[float]:
    """Return the first C(n_max) rates, the missing ones by the last step."""
    found = list(rates[:n_max])
    step = rates[-1] / rates[-2] if len(rates) > 1 and rates[-2] > 0 else (rates[-1] if rates else 0.0)
    while len(found) < n_max:
        found.append((found[-1] if found else 1.0) * min(step, 1.0))
    return found


def without(loads: t.Sequence[ServedLoad]) -> list[ServedLoad]:
    """Return the loads that did not speculate."""
    return [load for load in loads if load.arm.kind == speculation.NONE]
