# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import least_squares


def test_rank() -> None:
    assert least_squares.rank([]) == 0
    assert least_squares.rank([(20, 13), (20, 13)]) == 1
    assert least_squares.rank([(20, 13), (13, 20)]) == 2
    assert least_squares.rank([(20, 12, 1), (12, 20, 1), (16, 16, 1)]) == 2
    assert least_squares.rank([(20, 12, 1), (12, 20, 1), (16, 15, 2)]) == 3


def test_a_system_is_solved_and_a_singular_one_is_none() -> None:
    assert least_squares.solve([[0.0, 2.0], [1.0, 1.0]], [4.0, 5.0]) == pytest.approx([3, 2])
    assert least_squares.solve([[1.0, 2.0], [2.0, 4.0]], [1.0, 2.0]) is None


def test_a_triangle_gives_its_matrix_back() -> None:
    lower = least_squares.cholesky([[4.0, 2.0], [2.0, 10.0]])
    assert lower == [[2.0, 0.0], [1.0, 3.0]]
    # transposed(lower) * x = right
    assert least_squares.solve_transposed(lower, [5.0, 6.0]) == pytest.approx([1.5, 2.0])
