# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Fits the forms of _split/cost_model to measured splits. Private to this collection. Pure functions only.

A Prior says what is known of the devices before: the device probe measures each alone with a small model. Only the
ratios of its costs are used, as one more observation whose error is Prior.error; so it settles what too few splits
leave open, and hardly moves what they determine well.
"""

from __future__ import annotations

import itertools
import math
import statistics
import typing as t

from .._base import least_squares
from . import cost_model

Points = t.Sequence[cost_model.Point]

#: How far the ratio of devices in a prompt is from that in decoding (relative standard deviation).
DECODE_ERROR: t.Final = 0.5

#: Ratios of decoding tell of a prompt where no device is faster than the slowest by more.
TELLING: t.Final = 0.02


class Prior(t.NamedTuple):
    """What is known of the devices' costs per slot before a split is measured: their ratios, and how sure these are.

    C(costs) has one positive number per device, in any unit; C(error) is the relative standard deviation of one of
    them; C(noise) that of one measured split, which the prior is weighed against.
    """

    costs: t.Sequence[float]
    error: float
    noise: float

    @property
    def weight(self) -> float:
        """How much a squared relative deviation from the prior counts, in squared relative errors of a split."""
        return (self.noise / self.error) ** 2

    def penalty(self, slot_ms: t.Sequence[float]) -> float:
        """Return the weighed squared deviation of costs from the prior's ratios, their common scale left free."""
        logs = [math.log(max(own, 1e-9) / cost) for own, cost in zip(slot_ms, self.costs, strict=True)]
        centre = statistics.fmean(logs)
        return self.weight * sum((value - centre) ** 2 for value in logs)


#: Where noise lets a device seem to take no time: of the largest cost of a device. No split takes no time.
LEAST: t.Final = 1e-6


def fit_decode(points: Points, prior: Prior | None) -> list[float]:
    """Return ms per average layer and token of each device, from (amounts, ms per token) of at least one split.

    Least squares of the relative errors, none below LEAST of the largest. What the splits leave open (fewer independent
    splits than devices) is set as near as possible to the ratios of C(prior), or to a common mean without one.
    """
    devices = len(points[0][0])
    shape = list(prior.costs) if prior is not None else [1.0] * devices
    scale = statistics.fmean(ms / cost_model.decode_ms(shape, layers) for layers, ms in points)
    near = [scale * own for own in shape]
    pull = max(1e-9, prior.weight) if prior is not None else 1e-9
    best: tuple[float, list[float]] | None = None
    for size in range(devices, 0, -1):
        for used in itertools.combinations(range(devices), size):
            slot_ms = _least_squares(points, used, near, pull)
            if slot_ms is None or min(slot_ms) < 0:
                continue
            error = _squared_error([cost_model.decode_ms(slot_ms, layers) for layers, _ms in points], points)
            if best is None or error < best[0]:
                best = (error, slot_ms)
        if best is not None and size == devices:
            break
    costs = best[1] if best is not None else near
    return [max(own, LEAST * max(costs)) for own in costs]


def _least_squares(
    points: Points, used: t.Sequence[int], near: t.Sequence[float], pull: float
) -> list[float] | None:
    """Solve for the devices in C(used), the others zero: relative deviations from C(near), pulled towards their mean.

    The mean itself is hardly pulled: the prior knows ratios, no scale.
    """
    size = len(used)
    matrix = [
        [1e-9 * (row == column) + pull * ((row == column) - 1 / size) for column in range(size)] for row in range(size)
    ]
    right = [0.0] * size
    for layers, ms in points:
        row = [layers[device] * near[device] / ms for device in used]
        rest = 1.0 - sum(row)
        for i in range(size):
            right[i] += row[i] * rest
            for j in range(size):
                matrix[i][j] += row[i] * row[j]
    solution = least_squares.solve(matrix, right)
    if solution is None:
        return None
    result = [0.0] * len(points[0][0])
    for device, value in zip(used, solution, strict=True):
        result[device] = near[device] * (1 + value)
    return result


def fit_prefill(
    points: Points, batches: int, start: t.Sequence[float] | None, overlap: float, prior: Prior | None
) -> list[float]:
    """Return ms per block and micro-batch of each device, from (amounts, ms per prompt of C(batches) micro-batches).

    Without overlap the form is linear, and fitted as decoding is. Else it is linear while the longest stage of each
    point stays the same device, and solved as decoding is; from there the longest stages are found again, and so on
    (Gauss-Newton, with steps that are halved until they help), from several starts, among them C(start).
    """
    best: tuple[float, list[float]] | None = None
    for found in _optima(points, batches, start, overlap, prior):
        best = found if best is None or found[0] < best[0] else best
        if best[0] < 1e-12 * len(points):
            break
    return best[1] if best is not None else []


def _optima(
    points: Points, batches: int, start: t.Sequence[float] | None, overlap: float, prior: Prior | None
) -> t.Iterator[tuple[float, list[float]]]:
    """Yield (error, costs) of each local optimum that the starts of fit_prefill lead to."""
    if overlap <= 0:
        yield 0.0, [value / batches for value in fit_decode(points, prior)]
        return
    devices = len(points[0][0])
    of_sum, of_max = cost_model.prefill_weights(batches, overlap)

    def error_of(slot_ms: t.Sequence[float]) -> float:
        error = _squared_error(_predicted(points, slot_ms, batches, overlap), points)
        return error if prior is None else error + prior.penalty(slot_ms)

    #: by the device of the longest stage at each point: nothing else of the costs at hand counts
    known: dict[tuple[int, ...], list[float]] = {}

    def solved(slot_ms: t.Sequence[float]) -> list[float]:
        longest = tuple(max(range(devices), key=lambda d: counts[d] * slot_ms[d]) for counts, _ms in points)
        if longest not in known:
            rows = [
                ([n * (of_sum + of_max * (d == device)) for d, n in enumerate(counts)], ms)
                for device, (counts, ms) in zip(longest, points, strict=True)
            ]
            known[longest] = fit_decode(rows, prior)
        return known[longest]

    begins = [[1.0] * devices]
    if prior is not None:
        begins.insert(0, list(prior.costs))
    if start is not None and min(start) > LEAST * max(start):
        begins.insert(0, list(start))
    begins += [[3.0 if other == device else 1.0 for other in range(devices)] for device in range(devices)]
    begun: list[list[float]] = []
    for first in map(solved, begins):
        if first not in begun:
            begun.append(first)
            yield _settled(first, solved, error_of)


def _distinct(optima: t.Iterable[tuple[float, list[float]]]) -> list[list[float]]:
    """Return the costs of optima, the best first, without those that are nearly the same as a better one."""
    found: list[list[float]] = []
    for _error, slot_ms in sorted(optima):
        apart = (max(abs(a - b) for a, b in zip(slot_ms, other, strict=True)) / max(other) for other in found)
        found += [slot_ms] if all(distance > SAME for distance in apart) else []
    return found


def _settled(
    here: list[float],
    solved: t.Callable[[t.Sequence[float]], list[float]],
    error_of: t.Callable[[t.Sequence[float]], float],
) -> tuple[float, list[float]]:
    """Return (error, costs) where no step from C(here) towards the solution at hand helps any more."""
    error = error_of(here)
    for _turn in range(30):
        aim = solved(here)
        for step in (1.0, 0.5, 0.25, 0.1, 0.03, 0.01):
            there = [a + step * (b - a) for a, b in zip(here, aim, strict=True)]
            if (value := error_of(there)) < error * (1 - 1e-6):
                here, error = there, value
                break
        else:
            break
    return error, here


def _predicted(points: Points, slot_ms: t.Sequence[float], batches: int, overlap: float) -> list[float]:
    return [cost_model.prefill_ms(slot_ms, layers, batches, overlap) for layers, _ms in points]


class PrefillFit(t.NamedTuple):
    """A fitted prefill: its form and overlap, ms per block and micro-batch, largest residual in percent."""

    form: str
    overlap: float
    slot_ms: list[float]
    residual_percent: float | None


def choose_prefill(
    points: Points, batches: int, noise: float, start: t.Sequence[float] | None, prior: Prior | None
) -> PrefillFit:
    """Fit the simplest form of prefill that the points (amounts, ms per prompt) support.

    C(noise) is the relative standard deviation of one point. The forms are tried in the order pipeline, serial,
    between, and a later one is taken when it lowers the sum of squared relative errors by more than 3.84 variances of
    the noise: the 95 % quantile of chi-square with one degree of freedom, so the likelihood ratio test of one
    coefficient more (Wilks), and for serial, which has as many as a pipeline, the price of leaving what llama.cpp is
    known to do. A C(prior) counts as an observation of each ratio between devices. With no more observations than
    devices, or one micro-batch, all forms agree: it is called a pipeline. The residual is None where the form has as
    many coefficients as there are points, so that it says nothing.
    """
    devices, count = len(points[0][0]), len(points)
    observations = count + (devices - 1 if prior is not None else 0)

    def judged(form: str, overlap: float, slot_ms: list[float], coefficients: int) -> tuple[float, PrefillFit]:
        predicted = _predicted(points, slot_ms, batches, overlap)
        residual = cost_model.residual_percent(predicted, [ms for _layers, ms in points])
        largest = residual if count > coefficients else None
        error = _squared_error(predicted, points) + (0.0 if prior is None else prior.penalty(slot_ms))
        return error, PrefillFit(form, overlap, slot_ms, largest)

    best = judged("pipeline", 1.0, fit_prefill(points, batches, start, 1.0, prior), devices)
    if observations <= devices or batches == 1:
        return best[1]
    price = 3.84 * noise**2
    serial = judged("serial", 0.0, fit_prefill(points, batches, start, 0.0, prior), devices)
    start = best[1].slot_ms
    if serial[0] < best[0] - price:
        best = serial
    if best[0] > price:
        slot_ms, overlap = _fit_overlap(points, batches, start, prior)
        between = judged("between", overlap, slot_ms, devices + 1)
        if between[0] < best[0] - price:
            best = between
    return best[1]


#: Optima less likely than this are left out.
UNLIKELY: t.Final = 0.02

#: Optima whose costs differ by less than this share of the largest are one.
SAME: t.Final = 0.02

#: How likely each overlap of prefill is before loads tell: a pipeline is what llama.cpp does, nearly so
#: where something else takes turns, serial where stages cannot overlap.
LIKELY_BETWEEN: t.Final = 0.05
OVERLAPS: t.Final = ((1.0, 0.5), (0.0, 0.15), (0.8, 0.15), (0.6, 0.08), (0.4, 0.06), (0.2, 0.06))


def likely_prefills(
    known: PrefillFit, points: Points, errors: t.Sequence[float], batches: int, prior: Prior | None
) -> list[tuple[float, PrefillFit]]:
    """Return how likely each overlap of OVERLAPS, and that of the fit C(known), is by the points, with its own fits.

    C(errors): relative standard deviations of the points. The probabilities have the sum 1.
    """
    if batches == 1:
        return [(1.0, known)]
    own = () if known.overlap in (0.0, 1.0) else ((known.overlap, LIKELY_BETWEEN),)
    found: list[tuple[float, float, PrefillFit]] = []
    for overlap, before in (*OVERLAPS, *own):
        for slot_ms in _distinct(_optima(points, batches, known.slot_ms, overlap, prior)):
            pairs = zip(_predicted(points, slot_ms, batches, overlap), points, errors, strict=True)
            square = sum((math.log(predicted / point[1]) / error) ** 2 for predicted, point, error in pairs)
            square += 0.0 if prior is None else prior.penalty(slot_ms) / prior.noise**2
            found.append((square, before, PrefillFit(known.form, overlap, slot_ms, None)))
    least = min(square for square, _before, _fit in found)
    weights = [(before * math.exp((least - square) / 2), fit) for square, before, fit in found]
    likely = [own for own in weights if own[0] > UNLIKELY * sum(weight for weight, _fit in weights)]
    return [(weight / sum(weight for weight, _fit in likely), fit) for weight, fit in likely]


def _fit_overlap(
    points: Points, batches: int, start: t.Sequence[float], prior: Prior | None
) -> tuple[list[float], float]:
    """Return (ms per block and micro-batch, overlap) by least squares: the best of six, then golden sections."""
    known: dict[float, tuple[float, list[float]]] = {}

    def error_of(overlap: float) -> float:
        if overlap not in known:
            slot_ms = fit_prefill(points, batches, start, overlap, prior)
            predicted = _predicted(points, slot_ms, batches, overlap)
            error = _squared_error(predicted, points) + (0.0 if prior is None else prior.penalty(slot_ms))
            known[overlap] = error, slot_ms
        return known[overlap][0]

    near = min((step / 5 for step in range(6)), key=error_of)
    low, high, golden = max(0.0, near - 0.2), min(1.0, near + 0.2), (math.sqrt(5) - 1) / 2
    while high - low > 0.01:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if error_of(left) <= error_of(right) else (left, high)
    overlap = min(known, key=lambda value: known[value][0])
    return known[overlap][1], overlap


def _squared_error(predicted: t.Sequence[float], points: Points) -> float:
    return sum((value / ms - 1) ** 2 for value, (_layers, ms) in zip(predicted, points, strict=True))
