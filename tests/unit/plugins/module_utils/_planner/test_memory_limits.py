# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.memory_limits import Failure, MemoryLimits

BUDGETS = (1000, 1000, 1000)


def within(boxes: list[tuple[int, ...]], *mib: int) -> bool:
    return any(all(used <= budget for used, budget in zip(mib, box, strict=True)) for box in boxes)


def test_what_one_explanation_allows_is_not_ruled_out() -> None:
    """Any of three devices may have been full: only more on all three is out."""
    limits = MemoryLimits(BUDGETS, (0, 0, 0), [Failure((900, 800, 700), frozenset({0, 1, 2}))])
    boxes = limits.boxes()
    assert within(boxes, 950, 850, 600) and within(boxes, 950, 500, 950) and within(boxes, 800, 900, 900)
    assert not within(boxes, 900, 800, 700) and not within(boxes, 950, 850, 750)
    assert 0 < limits.chance((950, 850, 600)) < limits.chance((500, 850, 600)) < 1


def test_a_device_that_holds_little_is_hardly_suspected() -> None:
    limits = MemoryLimits(BUDGETS, (0, 0, 0), [Failure((950, 200, 200), frozenset({0, 1, 2}))])
    assert limits.chance((400, 700, 700)) > 0.8 > limits.chance((940, 100, 100))


def test_two_failures_point_at_what_they_have_in_common() -> None:
    """The second device is over its limit in both; where it holds less, loads succeed."""
    failures = [Failure((900, 800, 100), frozenset({0, 1, 2})), Failure((100, 800, 900), frozenset({0, 1, 2}))]
    limits = MemoryLimits(BUDGETS, (0, 0, 0), failures)
    assert limits.short_count == 1
    assert limits.chance((900, 500, 900)) > 0.7 > limits.chance((500, 790, 500))


def test_two_devices_are_short_where_one_explains_nothing() -> None:
    failures = [Failure((900, 100, 600), frozenset({0})), Failure((100, 900, 600), frozenset({1}))]
    limits = MemoryLimits(BUDGETS, (500, 500, 600), failures)
    assert limits.short_count == 2
    assert limits.chance((500, 500, 600)) == pytest.approx(1) and limits.chance((890, 890, 600)) < 0.1
    assert within(limits.boxes(), 890, 890, 1000) and not within(limits.boxes(), 900, 500, 100)


@pytest.mark.parametrize("more", [1, 10, 40])
def test_a_failure_just_above_what_was_held_is_explained(more: int) -> None:
    """Two cards whose limits are known to a layer are not taken to hold all that is planned."""
    one, other = Failure((500 + more, 100, 600), frozenset({0})), Failure((100, 500 + more, 600), frozenset({1}))
    for failures in ([one], [one, other]):
        limits = MemoryLimits(BUDGETS, (500, 500, 600), failures)
        assert limits.short_count == len(failures) and limits.chance((501 + more, 100, 100)) < 0.1
        assert not within(limits.boxes(), 501 + more, 100, 100) and within(limits.boxes(), 500, 500, 1000)


def test_budgets_between_what_was_held_and_what_failed_are_looked_at() -> None:
    """Else one load follows the other, a layer less each."""
    boxes = MemoryLimits(BUDGETS, (200, 0, 0), [Failure((900, 100, 100), frozenset({0}))]).boxes()
    assert sorted(box[0] for box in boxes) == [409, 619, 899] and {box[1:] for box in boxes} == {(1000, 1000)}


def test_what_nothing_explains_rules_nothing_out() -> None:
    limits = MemoryLimits(BUDGETS, BUDGETS, [Failure((900, 900, 900), frozenset({0, 1, 2}))])
    assert limits.chance((1000, 1000, 1000)) == 1 and limits.boxes() == [BUDGETS]


def test_many_failures_that_name_no_device_are_explained_at_once() -> None:
    # the ways to the same budgets double with each failure: 40 of them would never end
    failures = [Failure((20000 - 100 * n, 20000 - 100 * n, 9000 + n), frozenset({0, 1, 2})) for n in range(40)]
    limits = MemoryLimits((24000, 24000, 24000), (8000, 8000, 8000), failures)
    boxes = limits.boxes(unlikely=0.0)
    for failure in failures:
        assert not any(all(a <= b for a, b in zip(failure.mib, box, strict=True)) for box in boxes)
    assert (16099, 24000, 24000) in boxes and (24000, 24000, 8999) in boxes
