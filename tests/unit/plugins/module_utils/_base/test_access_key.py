# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import access_key

KEY = "0123456789abcdef"


@pytest.mark.parametrize(
    ("value", "wanted", "given"),
    [("", True, ""), ("none", False, ""), ("None", False, ""), (KEY, True, KEY), ("none-of-your-business", True, None)],
)
def test_the_variable_says_whether_and_which(value, wanted, given):
    assert access_key.problem(value, "x") is None
    assert access_key.wanted(value) == wanted
    assert access_key.given_key(value) == (value if given is None else given)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("a" * 15, "has 15 characters; choose a key of at least 16, or leave it empty"),
        (f"{KEY} b", "white space"), (f"{KEY}\n", "white space"), (f"{KEY},b", "a comma"), (f"#{KEY}", "#"),
        (f"{KEY}é", "not ASCII"), (7, "is no text"), (None, "is no text"), (["a"], "is no text"),
    ],
)  # fmt: skip
def test_what_is_no_key_is_refused_without_showing_it(value, words):
    found = access_key.problem(value, "some_key")
    assert found.startswith("some_key ") and words in found and KEY not in found


def test_a_key_is_generated_once():
    first = access_key.text("", None)
    assert re.fullmatch("[0-9a-f]{64}\n", first) and access_key.text("", None) != first
    assert access_key.text("", first) == first and access_key.text("", f"{KEY}\n") == f"{KEY}\n"
    assert access_key.text(KEY, first) == f"{KEY}\n"
    for damaged in ("", "\n", "short\n", "two\nlines-of-a-file\n"):
        assert re.fullmatch("[0-9a-f]{64}\n", access_key.text("", damaged))


def test_clients_are_told_the_path_and_never_the_key():
    url = "http://127.0.0.1:8080"
    assert access_key.connect(url, "/etc/k", False).endswith("/etc/k | curl -H @- http://127.0.0.1:8080/v1/models")
    assert "has no key" in access_key.connect(url, "", False)
    assert access_key.connect(url, "/etc/k", page=True).startswith(f"A browser gets the chat page at {url} and asks")
    assert "in a browser with its chat page" in access_key.connect(url, "", page=True)
