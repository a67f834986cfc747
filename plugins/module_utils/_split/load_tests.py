# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The tests of measured loads: which are comparable, their samples, what their scatter hides. Private. Pure."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from . import speed

#: Loads of the recorded split that a baseline has at least.
LEAST_BASELINE_LOADS: t.Final = 3
#: Kind, prompt tokens, generated tokens, depth.
TestKey = tuple[str, int, int, int]


def test_key(test: Mapping) -> TestKey:
    """Return what makes two tests comparable, whatever their repetitions."""
    return (str(test["kind"]), int(test["n_prompt"]), int(test["n_gen"]), int(test["n_depth"]))


def test_name(key: TestKey) -> str:
    """Return the name of a test in tables: C(decode), or C(decode at depth 4096)."""
    return key[0] if not key[3] else f"{key[0]} at depth {key[3]}"


def samples(loads: t.Iterable[Mapping], key: TestKey) -> list[list[float]]:
    """Return the samples in ms of one test, a list per load that has it and is ok."""
    found = []
    for load in loads:
        if load["status"] == "ok":
            found += [list(result["samples_ms"]) for result in load["results"] if test_key(result) == key]
    return found


def keys(loads: t.Iterable[Mapping]) -> list[TestKey]:
    """Return the tests that any of the loads has, decode first."""
    return sorted({test_key(result) for load in loads for result in load["results"]})


def visible_percent(loads: t.Sequence[Mapping], most_loads: int) -> dict[str, float | None]:
    """Return, by test, the smallest slowdown that a revalidation of C(most_loads) loads would find."""
    found = {}
    for key in keys(loads):
        own = samples(loads, key)
        found[test_name(key)] = speed.smallest_visible_percent(speed.noise(own), len(own), most_loads)
    return found
