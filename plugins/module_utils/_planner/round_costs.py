# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a round of drafting and verifying costs, and how many tokens it gives. Private to this collection. Pure.

A round with n drafted tokens takes T (1 + alpha + epsilon) + n (v + d): T is what a token takes without speculation
with the same split, v what verifying one more token costs, d what drafting one costs. alpha and v belong to the target
and are shared by all drafts, in another split mode with an addition to each; d belongs to draft and device, and much of
it to the draft, whose launches count on every device. Measured on two H200: a line within 2 %, so an arm differs from
its line by as much, which measuring it tells.
All unknowns have a prior, so that every n-max of every draft is predicted from the first load on, with its error.
"""

from __future__ import annotations

import dataclasses
import math
import typing as t

from .._base import least_squares
from .._split import speculation
from .._split.speculation import Arm, Offer, ServedLoad

#: Prior of alpha: what a round costs beyond a token of the target, relative to that token (measured: 0.1 to 0.4).
ROUND_OVERHEAD, ROUND_OVERHEAD_ERROR = 0.15, 0.15
#: Prior of v, relative to a token of the target (measured: 0.08 to 0.15).
VERIFY, VERIFY_ERROR = 0.10, 0.07
#: Prior error of a family: of the split's own time.
FAMILY_ERROR: t.Final = 0.03
#: Prior error of the expected time of a drafted token: of the draft, whose launches count wherever it lies, and of its
#: device and split mode.
DRAFT_ERROR, DRAFT_DEVICE_ERROR = 0.5, 0.3
#: Prior errors of what another split mode adds to alpha and v (measured: 0.4 less and 0.06 more in tensor mode).
MODE_OVERHEAD_ERROR, MODE_VERIFY_ERROR = 0.2, 0.07
#: Beyond the scatter of loads a line misses a measured round by so much (measured: within 2 %).
LINE_ERROR: t.Final = 0.02

#: Prior of the acceptance of a drafted token, and its error, while no text was drafted.
ACCEPTANCE, ACCEPTANCE_ERROR = 0.7, 0.15


class Estimate(t.NamedTuple):
    """A value with its relative standard error."""

    value: float
    error: float


@dataclasses.dataclass(frozen=True)
class _Row:
    """One linear equation: coefficients of the unknowns, what they give, and how well that is known."""

    coefficients: t.Sequence[float]
    value: float
    error: float


class RoundCosts:
    """The line of every family on offer, from priors and from what was measured."""

    def __init__(self, offers: t.Sequence[Offer], loads: t.Sequence[ServedLoad], noise: float) -> None:
        """Take what is on offer, all loads with speculation, and the relative scatter between loads."""
        self._offers = {offer.family: offer for offer in offers}
        own = [load for load in loads if load.arm.family in self._offers]
        self._arms = list(dict.fromkeys(load.arm for load in own))
        names: list[t.Hashable] = ["alpha", "v", "mode alpha", "mode v"]
        for offer in offers:
            names += [("split", offer.family), ("draft", offer.family)]
        names += dict.fromkeys(("draft", offer.arm(0).source) for offer in offers)
        names += self._arms
        self._places = {name: place for place, name in enumerate(names)}
        rows = [_Row(self._vector({name: 1.0}), *self._prior(name)) for name in names]
        for load in own:
            parts, fixed = self._equation(load.arm)
            rows.append(_Row(self._vector(parts), load.round_ms - fixed, load.round_ms * noise))
        size = len(names)
        normal = [[0.0] * size for _row in range(size)]
        right = [0.0] * size
        for row in rows:
            weight = 1 / row.error**2
            for i, left in enumerate(row.coefficients):
                if left:
                    right[i] += weight * left * row.value
                    normal[i] = [
                        sum_ + weight * left * other for sum_, other in zip(normal[i], row.coefficients, strict=True)
                    ]
        self._lower = least_squares.cholesky(normal)
        self._known = least_squares.solve_transposed(self._lower, least_squares.solve_lower(self._lower, right))

    def _prior(self, name: t.Hashable) -> tuple[float, float]:
        """Return what is expected of an unknown before anything is measured, and the error of that."""
        shared = {
            "alpha": (ROUND_OVERHEAD, ROUND_OVERHEAD_ERROR),
            "v": (VERIFY, VERIFY_ERROR),
            "mode alpha": (0.0, MODE_OVERHEAD_ERROR),
            "mode v": (0.0, MODE_VERIFY_ERROR),
        }
        if isinstance(name, Arm):
            return 0.0, LINE_ERROR
        if isinstance(name, str):
            return shared[name]
        what, of = t.cast("tuple[str, tuple[str, ...]]", name)
        if what == "split":
            return 0.0, FAMILY_ERROR
        return 0.0, DRAFT_DEVICE_ERROR if of in self._offers else DRAFT_ERROR

    def _vector(self, parts: t.Mapping[t.Hashable, float]) -> list[float]:
        found = [0.0] * len(self._places)
        for name, value in parts.items():
            found[self._places[name]] = value
        return found

    def _equation(self, arm: Arm) -> tuple[dict[t.Hashable, float], float]:
        """Return the coefficients of the unknowns in the cost of a round, and the part that is fixed, in ms."""
        offer = self._offers[arm.family]
        target, draft = offer.target_ms, arm.n_max * offer.draft_ms
        fixed = target + draft
        parts: dict[t.Hashable, float] = {
            "alpha": target, "v": arm.n_max * target, ("split", arm.family): target,
            ("draft", arm.family): draft, ("draft", arm.source): draft,
        }  # fmt: skip
        if offer.mode:
            parts |= {"mode alpha": target, "mode v": arm.n_max * target}
        if arm in self._arms:
            parts[arm] = fixed
        return parts, fixed

    def round_ms(self, arm: Arm) -> Estimate:
        """Return what a round of an arm takes (ms). Raises KeyError for an arm that is not on offer."""
        parts, fixed = self._equation(arm)
        value = fixed + sum(part * self._known[self._places[name]] for name, part in parts.items())
        value = max(value, 0.2 * fixed)
        own = 0.0 if arm in self._arms else LINE_ERROR
        deviation = least_squares.solve_lower(self._lower, self._vector(parts))
        return Estimate(value, math.hypot(math.hypot(*deviation) / value, own))


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
        expected = 1 + sum(_prolonged([accepted / rounds for accepted, rounds in counts], arm.n_max))
        # the number of tokens that a round gives scatters by about half its size
        return Estimate(expected, math.hypot(0.5 / math.sqrt(counts[0][1]), 0.005))


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
