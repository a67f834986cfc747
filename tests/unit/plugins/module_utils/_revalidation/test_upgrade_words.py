# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is said of an upgrade."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_stages as stages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_words as words
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.interrupted_upgrades import (
    ASKED,
    LATER,
    NEW,
    NOW,
    OK,
    OLD,
    SLOW,
    at,
    ends,
)


@pytest.mark.parametrize("stage", stages.STAGES)
def test_everybody_is_told_of_an_upgrade_that_nobody_ended(stage):
    found = words.unfinished(json.dumps(at(stage)))
    assert found["needed"] and stages.STAGES[stage] in found["why"]
    assert "homelab.mixed_gpu.upgrade" in found["cure"] and "-e component=llama_cpp" in found["cure"]
    assert ("upgrade_on_resume=rollback" in found["cure"]) == (stage in ("building", "installing", "revalidating"))
    for name in ("started_at", "stage_at", "stage"):
        record = at(stage)
        record["under_way"][name] = None
        assert "damaged" in words.unfinished(json.dumps(record))["why"]


def test_nobody_is_told_of_none():
    assert not words.unfinished(None)["needed"] and not words.unfinished(json.dumps(stages.empty()))["needed"]
    damaged = words.unfinished("{")
    assert damaged["needed"] and "damaged" in damaged["why"]


@pytest.mark.parametrize(
    ("stage", "outcome", "verdict", "why", "parts"),
    [
        ("keeping", "kept", None, None, ["is done", "ok: as on 2026-11-24"]),
        ("installing", "untouched", None, "no compiler.", ["anything was changed (no compiler)", "b11312 is in"]),
        ("proving", "rolled_back", OK, None, ["(regressed: decode: 41.0 % more time)", "before (ok: as on"]),
        ("proving", "broken", SLOW, None, ["NOT proved", "accepted (regressed: decode", "is regressed:"]),
    ],
)  # fmt: skip
def test_the_end_is_told_in_one_sentence(stage, outcome, verdict, why, parts):
    upgrade = stages.finish(at(stage), outcome, LATER, 20, verdict, why)["finished"][-1]
    for part in parts:
        assert part in words.summary(upgrade)


def test_two_builds_of_one_version_are_told_apart():
    record = stages.begin(stages.empty(), "llama_cpp", ends(OLD, {**NEW, "version": "b11312"}), ASKED, OK, NOW)
    for stage in ("installing", "revalidating", "rolling_back", "proving"):
        record = stages.advance(record, stage, NOW, SLOW if stage == "rolling_back" else None)
    told = words.summary(stages.finish(record, "rolled_back", NOW, 20, OK)["finished"][0])
    assert told.startswith(
        "The upgrade of llama.cpp from b11312 to another build of it was rolled back: the other build "
    )
    assert "and the former build (b11312) is in use again" in told


def test_a_rollback_that_was_asked_for_says_so():
    record = stages.advance(at("revalidating"), "rolling_back", LATER)
    done = stages.finish(stages.advance(record, "proving", LATER), "rolled_back", LATER, 20, OK)
    assert "b11400 was given up (a rollback was asked for)" in words.summary(done["finished"][0])


@pytest.mark.parametrize(
    ("component", "version", "asked", "told"),
    [
        (
            "driver", "580.105.08-0ubuntu0.24.04.1", {"version": "580"},
            'nvidia_driver_branch: "580" and nvidia_driver_version: "580.105.08-0ubuntu0.24.04.1"',
        ),
        ("driver", "1:590.4-1", {"version": ""}, 'nvidia_driver_branch: "590" and nvidia_driver_version: "1:590.4-1"'),
        ("llama_cpp", "b11400", {"version": ""}, "what the variables llama_cpp_* were in this run"),
        ("llama_cpp", "b11400", {"version": "b11400"}, 'llama_cpp_source: git and llama_cpp_git_version: "b11400"'),
        (
            "llama_cpp", "0.3.40", {"version": "0.3.40", "sha256": "ab"},
            'llama_cpp_source: sdist, llama_cpp_sdist_version: "0.3.40", llama_cpp_sdist_sha256: "ab",'
            ' llama_cpp_sdist_build_number: 0 and llama_cpp_sdist_build_commit: ""',
        ),
    ],
)  # fmt: skip
def test_what_to_write_into_the_inventory(component, version, asked, told):
    assert words.inventory({"component": component, "to": {"version": version, "asked": asked}}) == told
