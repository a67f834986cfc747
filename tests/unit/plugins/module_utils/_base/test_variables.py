# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The variables of a role as a dataclass: what comes as text is read, what is wrong is named."""

from __future__ import annotations

import dataclasses
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import variables


@dataclasses.dataclass(frozen=True)
class Example:
    name: str
    count: int
    share: float
    on: bool
    words: list[str]
    sizes: list[int]
    tests: list[dict[str, t.Any]]
    extra: dict[str, t.Any]


GIVEN = {
    "x_name": "n", "x_count": "3", "x_share": "2.5", "x_on": "no", "x_words": ["a"], "x_sizes": [1, "2"],
    "x_tests": [{"a": 1}], "x_extra": {"b": 2}, "x_other": "ignored",
}  # fmt: skip


def test_text_of_the_command_line_is_read():
    assert variables.read(Example, GIVEN, "x") == Example("n", 3, 2.5, False, ["a"], [1, 2], [{"a": 1}], {"b": 2})


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("name", None, "text"), ("count", "many", "a whole number"), ("count", True, "a whole number"),
        ("count", 2.5, "a whole number"), ("share", "wide", "a number"), ("share", float("nan"), "a number"),
        ("share", "inf", "a number"), ("share", 10**400, "a number"), ("count", float("inf"), "a whole number"),
        ("on", "perhaps", "true or false"),
        ("words", "a", "a list of words"), ("sizes", ["a"], "a list of whole numbers"),
        ("tests", ["a"], "a list of dicts"), ("extra", [], "a dict"),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_named(name, value, words):
    with pytest.raises(ValueError, match=f"x_{name} is .* it must be {words}"):
        variables.read(Example, {**GIVEN, f"x_{name}": value}, "x")


def test_a_missing_variable_is_named():
    with pytest.raises(ValueError, match="x_name is missing: include the role x"):
        variables.read(Example, {}, "x")
