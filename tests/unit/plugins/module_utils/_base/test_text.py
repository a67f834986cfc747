# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import math

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import text


@pytest.mark.parametrize(
    ("value", "words"),
    [(57.91, "57.9"), (811.7, "812"), (0.4549, "0.45"), (9.996, "10.0"), (99.96, "100"), (None, "–"), (math.nan, "–")],
)
def test_numbers_have_about_three_digits(value: float | None, words: str) -> None:
    assert text.number(value) == words


@pytest.mark.parametrize(
    ("percents", "words"),
    [
        ((15.4, 1.2, 27.5), ("15.4", "less", "1.2 to 27.5")),
        ((-195.0, -208.4, -182.1), ("195.0", "more", "182.1 to 208.4")),
        ((-3.0, -9.0, 2.5), ("3.0", "more", "-2.5 to 9.0")),
        ((-0.01, -0.02, 0.04), ("0.0", "more", "0.0 to 0.0")),
        ((2.0, None, None), ("2.0", "less", "")),
    ],
)
def test_an_interval_is_of_what_is_said_of_the_time(
    percents: tuple[float, float | None, float | None], words: tuple[str, str, str]
) -> None:
    assert text.less_time(*percents) == words


def test_cells_of_a_column_end_at_one_place():
    assert text.columns([["", "ms"], ["one", "9.5"], ["other", "10"]], right={1}) == [
        "        ms", "one    9.5", "other   10",
    ]


@pytest.mark.parametrize(
    ("value", "most", "line"),
    [
        ("plain", 10, "plain"),
        ("two\r\n\tlines\u2028 more", 20, "two lines more"),
        ("\x1b[31mred\u202e\x00\u200b", 10, "[31mred"),
        ("0123456789", 10, "0123456789"),
        ("0123456789a", 10, "0123456..."),
        ("\x1b" * 10**6, 10, "..."),
        (None, 10, "None"),
        ("Größe 漢字", 10, "Größe 漢字"),
    ],
)
def test_a_text_of_unknown_origin_becomes_one_line(value, most, line):
    assert text.one_line(value, most) == line
