# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Small linear systems, and the descent for forms that are not linear. Private to this collection. Pure functions only.

Standard library alone: numpy is no part of a host's Python.
"""

from __future__ import annotations

import math
import typing as t


def solve(matrix: list[list[float]], right: list[float]) -> list[float] | None:
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


def cholesky(matrix: t.Sequence[t.Sequence[float]]) -> list[list[float]]:
    """Return the lower triangle whose product with its transposed is C(matrix), symmetric and positive definite."""
    size = len(matrix)
    lower = [[0.0] * size for _row in range(size)]
    for i in range(size):
        for j in range(i + 1):
            rest = matrix[i][j] - sum(lower[i][k] * lower[j][k] for k in range(j))
            lower[i][j] = math.sqrt(max(rest, 1e-12)) if i == j else rest / lower[j][j]
    return lower


def solve_lower(lower: t.Sequence[t.Sequence[float]], right: t.Sequence[float]) -> list[float]:
    """Return x of lower * x = right, for a lower triangle."""
    found: list[float] = []
    for i, row in enumerate(lower):
        found.append((right[i] - sum(row[k] * found[k] for k in range(i))) / row[i])
    return found


def solve_transposed(lower: t.Sequence[t.Sequence[float]], right: t.Sequence[float]) -> list[float]:
    """Return x of transposed(lower) * x = right, for a lower triangle."""
    size = len(lower)
    found = [0.0] * size
    for i in reversed(range(size)):
        rest = right[i] - sum(lower[k][i] * found[k] for k in range(i + 1, size))
        found[i] = rest / lower[i][i]
    return found


def rank(vectors: t.Iterable[t.Sequence[int]]) -> int:
    """Return how many of the vectors are linearly independent: as many coefficients as they determine."""
    rows = [[float(value) for value in vector] for vector in vectors]
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


def clamp(value: float, low: float, high: float) -> float:
    """Return C(value), or the end of the range that it is beyond."""
    return max(low, min(high, value))
