# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import datetime
import hashlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import fingerprints
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from hypothesis import given
from hypothesis import strategies as st


def test_the_form_is_sorted_json_without_spaces():
    assert fingerprints.canonical({"b": [1, 2.5, None, True], "a": {"y": "ü", "x": ""}}) == (
        '{"a":{"x":"","y":"\\u00fc"},"b":[1,2.5,null,true]}'
    )


def test_the_hash_is_that_of_the_form():
    assert fingerprints.fingerprint({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_the_order_of_keys_is_nothing(parts):
    backwards = dict(reversed(list(parts.items())))
    assert fingerprints.fingerprint(parts) == fingerprints.fingerprint(backwards)


@pytest.mark.parametrize(
    "other", [{"gpus": ["b", "a"]}, {"gpus": ["a"]}, {"gpus": ["a", "b"], "x": None}, {"gpus": "ab"}]
)
def test_a_different_configuration_has_another_hash(other):
    assert fingerprints.fingerprint({"gpus": ["a", "b"]}) != fingerprints.fingerprint(other)


def test_numbers_text_and_truth_are_told_apart():
    values = [1, "1", True, 1.5, None, [1]]
    assert len({fingerprints.fingerprint({"v": value}) for value in values}) == len(values)


def test_subclasses_of_text_hash_like_text():
    class Tagged(str):
        __slots__ = ()

    assert fingerprints.fingerprint({Tagged("k"): Tagged("v")}) == fingerprints.fingerprint({"k": "v"})
    assert not isinstance(fingerprints.plain(Tagged("v")), Tagged)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"power": {"limit": float("nan")}}, "parts.power.limit is nan"),
        ({"x": [1, float("inf")]}, r"parts.x\[1\] is inf"),
        ({"x": {1: "a"}}, "parts.x has the key 1"),
        ({"when": datetime.datetime(2026, 1, 1)}, "parts.when is of type datetime"),
        ({"x": {1, 2}}, "parts.x is of type set"),
        ({"x": b"a"}, "parts.x is of type bytes"),
        (["a"], "not of a list"),
    ],
)
def test_what_has_no_canonical_form_is_named(parts, words):
    with pytest.raises(UserError, match=words):
        fingerprints.fingerprint(parts)
