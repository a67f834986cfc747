# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.fields import (
    NUMBER,
    Positive,
    check_shape,
    is_number,
    is_whole,
)

SHAPE = {"name": str, "rows": [{"count?": int, "ms": (None, [NUMBER])}], "by_name?": {str: bool}, "any": {}}
GOOD = {"name": "a", "rows": [{"ms": [1, 2.5]}, {"count": 3, "ms": None}], "by_name": {"x": True}, "any": {"y": 1}}


def test_what_has_the_shape_is_taken_with_what_else_it_holds():
    check_shape("", GOOD, SHAPE)
    check_shape("", {"name": "", "rows": [], "any": {}, "more": object()}, SHAPE)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([GOOD], "record must be a dict, not [{"),
        ({**GOOD, "name": None}, "record.name must be text, not None"),
        ({**GOOD, "rows": {}}, "record.rows must be a list, not {}"),
        ({**GOOD, "rows": [{"ms": [1, True]}]}, "record.rows[0].ms[1] must be a whole number or a number, not True"),
        ({**GOOD, "rows": [{"ms": "1"}]}, "record.rows[0].ms must be null or a list, not '1'"),
        ({**GOOD, "rows": [{"count": 3}]}, "record.rows[0].ms is missing"),
        ({**GOOD, "by_name": {"x": 1}}, "record.by_name.x must be true or false, not 1"),
        ({"rows": []}, "record.name is missing"),
    ],
)
def test_the_field_that_is_wrong_is_named(value, words):
    with pytest.raises(UserError) as told:
        check_shape("record", value, SHAPE)
    assert str(told.value).startswith(words)


def test_whole_numbers_and_numbers_are_told_from_what_python_takes_for_them():
    assert [value for value in (0, 3, -1, True, 2.0, "3", None) if is_whole(value)] == [0, 3, -1]
    assert [value for value in range(5) if is_whole(value, 1, 3)] == [1, 2, 3]
    assert [value for value in (0, 2.5, True, float("nan"), float("inf"), "1") if is_number(value, 0, 9)] == [0, 2.5]
    for value in (0, -1, float("inf"), float("nan"), True):
        with pytest.raises(UserError, match="x must be a number above 0"):
            check_shape("", {"x": value}, {"x": Positive})


def test_a_huge_value_is_named_in_brief():
    with pytest.raises(UserError) as told:
        check_shape("record", {"name": [0] * 10_000}, {"name": str})
    assert len(str(told.value)) < 120
