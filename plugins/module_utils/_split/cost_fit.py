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


#: How far apart two devices' speeds may be: ratios beyond it mean that the data are noise.
_LARGEST_RATIO = 100.0


def fit_decode(points: Points, prior: Prior | None = None) -> list[float]:
    """Return ms per average layer and token of each device, from (amounts, ms per token) of at least one split.

    Least squares of the relative errors, none below zero. What the splits leave open (fewer independent splits than
    devices) is set as near as possible to the ratios of C(prior), or to a common mean without one.
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
    return best[1] if best is not None else near


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
    points: Points,
    batches: int,
    start: t.Sequence[float] | None = None,
    overlap: float = 1.0,
    prior: Prior | None = None,
) -> list[float]:
    """Return ms per block and micro-batch of each device, from (amounts, ms per prompt of C(batches) micro-batches).

    Without overlap the form is linear, and fitted as decoding is.

    Least squares of the relative errors. Given the ratios between devices the common scale has a closed form, so only
    the logarithms of the ratios to the first device are searched: from a grid (two devices) or a few starts, among
    them C(start), then by steps that are halved until they are below 1e-7.
    """
    if overlap <= 0:
        return [value / batches for value in fit_decode(points, prior)]
    devices = len(points[0][0])
    if devices > 2:
        return _fit_many(points, batches, overlap, start, prior)

    def error_of(logs: t.Sequence[float]) -> float:
        shape = _prefill_shape(logs, points, batches, overlap)
        scale = _scale(shape)
        return sum((scale * value - 1) ** 2 for value in shape) + _pull(logs, prior)

    span = math.log(_LARGEST_RATIO)
    starts = [[0.0] * (devices - 1)]
    if start is not None and min(start) > 0:
        starts.append([least_squares.clamp(math.log(value / start[0]), -span, span) for value in start[1:]])
    if devices == 2:
        starts += [[span * step / 40] for step in range(-40, 41)]
    else:
        for device in range(devices - 1):
            starts += [[sign * 1.1 if other == device else 0.0 for other in range(devices - 1)] for sign in (-1, 1)]
    ranked = sorted(starts, key=error_of)
    bounds = [(-span, span)] * (devices - 1)
    logs = min((least_squares.descend(error_of, begin, bounds) for begin in ranked[:3]), key=error_of)
    scale = _scale(_prefill_shape(logs, points, batches, overlap))
    return [scale * value for value in (1.0, *(math.exp(value) for value in logs))]


def _pull(logs: t.Sequence[float], prior: Prior | None) -> float:
    """Return what logarithms of ratios to the first device cost for being far from the prior, or slightly from 0."""
    settled = 1e-12 * sum(value * value for value in logs)
    return settled if prior is None else settled + prior.penalty([1.0, *(math.exp(value) for value in logs)])


def _fit_many(
    points: Points,
    batches: int,
    overlap: float,
    start: t.Sequence[float] | None,
    prior: Prior | None = None,
) -> list[float]:
    """Return ms per block and micro-batch of three devices or more, where steps along axes would take seconds.

    While the longest stage of each point stays the same device, the form is linear and solved as decoding is; from
    there the longest stages are found again, and so on (Gauss-Newton, with steps that are halved until they help).
    """
    devices = len(points[0][0])
    of_sum, of_max = cost_model.prefill_weights(batches, overlap)

    def error_of(slot_ms: t.Sequence[float]) -> float:
        return _squared_error(_predicted(points, slot_ms, batches, overlap), points)

    def solved(slot_ms: t.Sequence[float]) -> list[float]:
        rows: list[tuple[list[float], float]] = []
        for counts, ms in points:
            longest = max(range(devices), key=lambda d: counts[d] * slot_ms[d])
            rows.append(([n * (of_sum + of_max * (d == longest)) for d, n in enumerate(counts)], ms))
        return fit_decode(rows, prior)

    begins = [[1.0] * devices]
    if prior is not None:
        begins.insert(0, list(prior.costs))
    if start is not None and min(start) > 0:
        begins.insert(0, list(start))
    begins += [[3.0 if other == device else 1.0 for other in range(devices)] for device in range(devices)]
    best: tuple[float, list[float]] | None = None
    for begin in begins:
        found = _settled(solved(begin), solved, error_of)
        if best is None or found[0] < best[0]:
            best = found
        if best[0] < 1e-12 * len(points):
            break
    return best[1] if best is not None else solved(begins[0])


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


def _prefill_shape(logs: t.Sequence[float], points: Points, batches: int, overlap: float) -> list[float]:
    """Return predicted over measured times for the ratios whose logarithms are C(logs), with the first cost as 1."""
    ratios = [1.0, *(math.exp(value) for value in logs)]
    return [cost_model.prefill_ms(ratios, layers, batches, overlap) / ms for layers, ms in points]


class PrefillFit(t.NamedTuple):
    """A fitted prefill: its form and overlap, ms per block and micro-batch, largest residual in percent."""

    form: str
    overlap: float
    slot_ms: list[float]
    residual_percent: float | None


def choose_prefill(
    points: Points,
    batches: int,
    noise: float,
    start: t.Sequence[float] | None = None,
    prior: Prior | None = None,
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
    starts = [(best[1].slot_ms, 0.75), (serial[1].slot_ms, 0.25), (best[1].slot_ms, 0.5)]
    if serial[0] < best[0] - price:
        best = serial
    if best[0] > price:
        slot_ms, overlap = _fit_overlap(points, batches, starts, prior)
        between = judged("between", overlap, slot_ms, devices + 1)
        if between[0] < best[0] - price:
            best = between
    return best[1]


def _fit_overlap(
    points: Points,
    batches: int,
    starts: t.Sequence[tuple[t.Sequence[float], float]],
    prior: Prior | None = None,
) -> tuple[list[float], float]:
    """Return (ms per block and micro-batch, overlap) by least squares, from C(starts) of the same shape."""
    if len(points[0][0]) > 2:
        return _fit_overlap_of_many(points, batches, starts, prior)
    span = math.log(_LARGEST_RATIO)

    def error_of(values: t.Sequence[float]) -> float:
        shape = _prefill_shape(values[:-1], points, batches, values[-1])
        scale = _scale(shape)
        return sum((scale * value - 1) ** 2 for value in shape) + _pull(values[:-1], prior)

    # the error has several minima in the overlap: a descent from the ends alone may miss one that fits exactly
    between = [(fit_prefill(points, batches, starts[0][0], step / 10, prior), step / 10) for step in (2, 4, 6, 8)]
    begins = [
        [*(least_squares.clamp(math.log(value / slot_ms[0]), -span, span) for value in slot_ms[1:]), overlap]
        for slot_ms, overlap in (*starts, *between)
        if min(slot_ms) > 0
    ] or [[0.0] * (len(points[0][0]) - 1) + [0.5]]
    bounds = [(-span, span)] * (len(begins[0]) - 1) + [(0.0, 1.0)]
    *logs, overlap = min((least_squares.descend(error_of, begin, bounds) for begin in begins), key=error_of)
    scale = _scale(_prefill_shape(logs, points, batches, overlap))
    return [scale * value for value in (1.0, *(math.exp(value) for value in logs))], overlap


def _fit_overlap_of_many(
    points: Points,
    batches: int,
    starts: t.Sequence[tuple[t.Sequence[float], float]],
    prior: Prior | None = None,
) -> tuple[list[float], float]:
    """Return what _fit_overlap does for three devices or more: the best of eleven overlaps, then golden sections."""
    known: dict[float, tuple[float, list[float]]] = {}

    def error_of(overlap: float) -> float:
        if overlap not in known:
            slot_ms = fit_prefill(points, batches, starts[0][0], overlap, prior)
            predicted = _predicted(points, slot_ms, batches, overlap)
            error = _squared_error(predicted, points) + (0.0 if prior is None else prior.penalty(slot_ms))
            known[overlap] = error, slot_ms
        return known[overlap][0]

    near = min((step / 10 for step in range(11)), key=error_of)
    low, high, golden = max(0.0, near - 0.1), min(1.0, near + 0.1), (math.sqrt(5) - 1) / 2
    while high - low > 0.01:
        left, right = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, right) if error_of(left) <= error_of(right) else (left, high)
    overlap = min(known, key=lambda value: known[value][0])
    return known[overlap][1], overlap


def _scale(shape: t.Sequence[float]) -> float:
    """Return the factor that brings all of C(shape) nearest to 1 in the least squares."""
    return sum(shape) / sum(value * value for value in shape)


def _squared_error(predicted: t.Sequence[float], points: Points) -> float:
    return sum((value / ms - 1) ** 2 for value, (_layers, ms) in zip(predicted, points, strict=True))
