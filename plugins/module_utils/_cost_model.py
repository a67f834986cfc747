# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a split costs in time, and how sure that is. Private to this collection. Pure functions only.

Layer mode, single stream. With n_i slots on device i:

- decode: the devices take turns, so one token takes t = sum(n_i * a_i), a_i in ms per slot and token. A hop between
  devices costs the same in every split that uses all devices, and so does the output layer on the last of them.
  Neither can be told apart from such splits: both are spread over the a_i, and the prediction for one device alone
  contains them.
- prefill: a prompt runs as m = ceil(prompt / micro-batch) micro-batches through a pipeline, so it takes
  t = sum(n_i * c_i) + (m - 1) * max(n_i * c_i), c_i in ms per slot and micro-batch. This is the form
  [sum + (m - 1) * max] / m with c_i for the whole prompt. Where stages cannot overlap it is off, and the residual says
  so.
"""

from __future__ import annotations

import itertools
import math
import statistics
import typing as t

Point = tuple[t.Sequence[int], float]

#: Student's t, two-sided 95 %, by degrees of freedom from 1 (NIST/SEMATECH e-Handbook of Statistical Methods,
#: 1.3.6.7.2).
_T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

#: How far apart two devices' speeds may be: ratios beyond it mean that the data are noise.
_LARGEST_RATIO = 100.0


def t_quantile_95(degrees: int) -> float:
    """Return Student's t for a two-sided 95 % interval; a table up to 10 degrees of freedom, beyond it the expansion
    26.7.5 of Abramowitz and Stegun around the normal quantile. Raises ValueError below 1."""
    if degrees < 1:
        raise ValueError("an interval needs at least one degree of freedom")
    if degrees <= len(_T_95):
        return _T_95[degrees - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    return (
        z
        + (z**3 + z) / (4 * degrees)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * degrees**3)
    )


def micro_batches(prompt_tokens: int, micro_batch: int) -> int:
    """Return how many micro-batches a prompt makes."""
    return max(1, -(-prompt_tokens // micro_batch))


def decode_ms(slot_ms: t.Sequence[float], layers: t.Sequence[int]) -> float:
    """Return the predicted time of one token."""
    return sum(a * n for a, n in zip(slot_ms, layers, strict=True))


def prefill_ms(slot_ms: t.Sequence[float], layers: t.Sequence[int], batches: int) -> float:
    """Return the predicted time of a prompt of C(batches) micro-batches."""
    stages = [c * n for c, n in zip(slot_ms, layers, strict=True)]
    return sum(stages) + (batches - 1) * max(stages)


def prefill_scale(
    slot_ms: t.Sequence[float] | None, layers: t.Sequence[int], tested: int, asked: int, micro_batch: int
) -> float:
    """Return the factor from the time of a prompt of C(tested) tokens to that of one of C(asked) tokens.

    The pipeline form of both is compared, with micro-batches as full on average as each prompt makes them, so a split
    that is badly balanced pays more for a longer prompt. Without a fit it is the ratio of the tokens. Attention's own
    growth with the prompt is left out: measure a prompt of about the size that you ask for.
    """
    if tested == asked:
        return 1.0
    if slot_ms is None:
        return asked / tested
    tested_batches, asked_batches = micro_batches(tested, micro_batch), micro_batches(asked, micro_batch)
    fullness = (asked / asked_batches) / (tested / tested_batches)
    before = prefill_ms(slot_ms, layers, tested_batches)
    return fullness * prefill_ms(slot_ms, layers, asked_batches) / before if before > 0 else asked / tested


def fit_decode(points: t.Sequence[Point]) -> list[float]:
    """Return ms per slot and token of each device, from (layers, ms per token) of at least one split.

    Least squares of the relative errors, none below zero. What the splits leave open (fewer independent splits than
    devices) is set as near as possible to the common mean.
    """
    devices = len(points[0][0])
    mean = statistics.fmean(ms / sum(layers) for layers, ms in points)
    best: tuple[float, list[float]] | None = None
    for size in range(devices, 0, -1):
        for used in itertools.combinations(range(devices), size):
            slot_ms = _least_squares(points, used, mean)
            if slot_ms is None or min(slot_ms) < 0:
                continue
            error = _squared_error([decode_ms(slot_ms, layers) for layers, _ms in points], points)
            if best is None or error < best[0]:
                best = (error, slot_ms)
        if best is not None and size == devices:
            break
    return best[1] if best is not None else [mean] * devices


def _least_squares(points: t.Sequence[Point], used: t.Sequence[int], mean: float) -> list[float] | None:
    """Solve for the devices in C(used), the others zero: deviations from the mean, with a slight pull towards it."""
    size = len(used)
    matrix = [[1e-9 if row == column else 0.0 for column in range(size)] for row in range(size)]
    right = [0.0] * size
    for layers, ms in points:
        row = [layers[device] * mean / ms for device in used]
        rest = 1.0 - sum(row)
        for i in range(size):
            right[i] += row[i] * rest
            for j in range(size):
                matrix[i][j] += row[i] * row[j]
    solution = _solve(matrix, right)
    if solution is None:
        return None
    result = [0.0] * len(points[0][0])
    for device, value in zip(used, solution, strict=True):
        result[device] = mean * (1 + value)
    return result


def _solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
    """Solve a small linear system by Gaussian elimination with pivots; None when it is singular."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for column in range(size):
        pivot = max(range(column, size), key=lambda r: abs(rows[r][column]))
        if abs(rows[pivot][column]) < 1e-15:
            return None
        rows[column], rows[pivot] = rows[pivot], rows[column]
        for r in range(size):
            if r != column:
                factor = rows[r][column] / rows[column][column]
                rows[r] = [value - factor * top for value, top in zip(rows[r], rows[column], strict=True)]
    return [rows[r][size] / rows[r][r] for r in range(size)]


def rank(splits: t.Iterable[t.Sequence[int]]) -> int:
    """Return how many of C(splits) are linearly independent: as many coefficients as they determine."""
    rows = [[float(count) for count in layers] for layers in splits]
    found = 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = max(range(found, len(rows)), key=lambda r: abs(rows[r][column]), default=None)
        if pivot is None or abs(rows[pivot][column]) < 1e-9:
            continue
        rows[found], rows[pivot] = rows[pivot], rows[found]
        for r in range(found + 1, len(rows)):
            factor = rows[r][column] / rows[found][column]
            rows[r] = [value - factor * top for value, top in zip(rows[r], rows[found], strict=True)]
        found += 1
    return found


def fit_prefill(points: t.Sequence[Point], batches: int, start: t.Sequence[float] | None = None) -> list[float]:
    """Return ms per slot and micro-batch of each device, from (layers, ms per prompt of C(batches) micro-batches).

    Least squares of the relative errors. Given the ratios between devices the common scale has a closed form, so only
    the logarithms of the ratios to the first device are searched: from a grid (two devices) or a few starts, among
    them C(start), then by steps that are halved until they are below 1e-7.
    """
    devices = len(points[0][0])

    def error_of(logs: t.Sequence[float]) -> float:
        shape = _prefill_shape(logs, points, batches)
        scale = _scale(shape)
        # the slight pull settles what the splits leave open
        return sum((scale * value - 1) ** 2 for value in shape) + 1e-12 * sum(value * value for value in logs)

    span = math.log(_LARGEST_RATIO)
    starts = [[0.0] * (devices - 1)]
    if start is not None and min(start) > 0:
        starts.append([_clamp(math.log(value / start[0]), span) for value in start[1:]])
    if devices == 2:
        starts += [[span * step / 40] for step in range(-40, 41)]
    else:
        for device in range(devices - 1):
            starts += [[sign * 1.1 if other == device else 0.0 for other in range(devices - 1)] for sign in (-1, 1)]
    ranked = sorted(starts, key=error_of)
    logs = min((_descend(error_of, begin, span) for begin in ranked[:3]), key=error_of)
    scale = _scale(_prefill_shape(logs, points, batches))
    return [scale * value for value in (1.0, *(math.exp(value) for value in logs))]


def _prefill_shape(logs: t.Sequence[float], points: t.Sequence[Point], batches: int) -> list[float]:
    ratios = [1.0, *(math.exp(value) for value in logs)]
    return [prefill_ms(ratios, layers, batches) / ms for layers, ms in points]


def _scale(shape: t.Sequence[float]) -> float:
    """Return the factor that brings all of C(shape) nearest to 1 in the least squares."""
    return sum(shape) / sum(value * value for value in shape)


def _clamp(value: float, span: float) -> float:
    return max(-span, min(span, value))


def _descend(error_of: t.Callable[[t.Sequence[float]], float], begin: t.Sequence[float], span: float) -> list[float]:
    """Walk downhill along the axes and their diagonals in steps that are halved when none helps."""
    axes = range(len(begin))
    moves = [tuple(sign if axis == other else 0 for other in axes) for axis in axes for sign in (-1, 1)]
    moves += [
        tuple(a if k == i else b if k == j else 0 for k in axes)
        for i, j in itertools.combinations(axes, 2)
        for a in (-1, 1)
        for b in (-1, 1)
    ]
    here, error, step = list(begin), error_of(begin), 0.25
    while step > 1e-7 and moves:
        tries = [[_clamp(value + step * move, span) for value, move in zip(here, way, strict=True)] for way in moves]
        best = min(tries, key=error_of)
        if error_of(best) < error:
            here, error = best, error_of(best)
        else:
            step /= 2
    return here


def _squared_error(predicted: t.Sequence[float], points: t.Sequence[Point]) -> float:
    return sum((value / ms - 1) ** 2 for value, (_layers, ms) in zip(predicted, points, strict=True))


def residual_percent(predicted: t.Sequence[float], measured: t.Sequence[float]) -> float:
    """Return the largest |predicted - measured| / measured, in percent."""
    return 100 * max(abs(p - m) / m for p, m in zip(predicted, measured, strict=True))


def pooled_spread(arms: t.Iterable[t.Sequence[float]]) -> tuple[float, int]:
    """Return (relative standard deviation between loads, its degrees of freedom) from the load means of many splits.

    Loads of one split differ by their noise alone, so what they say about it is pooled over splits; logarithms make it
    relative. (0.0, 0) when no split has two loads.
    """
    squares, degrees = 0.0, 0
    for means in arms:
        logs = [math.log(value) for value in means]
        if len(logs) > 1:
            centre = statistics.fmean(logs)
            squares += sum((value - centre) ** 2 for value in logs)
            degrees += len(logs) - 1
    return (math.sqrt(squares / degrees), degrees) if degrees else (0.0, 0)


class Comparison(t.NamedTuple):
    """How much less time one split takes than another, in percent of the other's time."""

    percent: float
    low: float | None
    high: float | None
    smallest_visible: float | None


def compare(chosen: t.Sequence[float], other: t.Sequence[float], spread: tuple[float, int]) -> Comparison:
    """Compare the load means of two splits; the 95 % interval is Student's, with the load as the unit.

    C(spread) comes from pooled_spread. Without degrees of freedom the interval is unknown.
    """
    ratio = statistics.fmean(map(math.log, chosen)) - statistics.fmean(map(math.log, other))
    percent = 100 * (1 - math.exp(ratio))
    deviation, degrees = spread
    if not degrees:
        return Comparison(percent, None, None, None)
    half = t_quantile_95(degrees) * deviation * math.sqrt(1 / len(chosen) + 1 / len(other))
    return Comparison(
        percent, 100 * (1 - math.exp(ratio + half)), 100 * (1 - math.exp(ratio - half)), 100 * (math.exp(half) - 1)
    )
