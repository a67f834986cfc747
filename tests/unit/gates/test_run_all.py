# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.tests import run_all

PYTEST = """
tests/unit/test_a.py ..s                                   [100%]
=========================== short test summary info ============================
SKIPPED [1] tests/unit/test_a.py:521: mounting a tmpfs needs root
SKIPPED [2] tests/unit/test_b.py:3: needs git
================== 40 passed, 3 skipped, 18 deselected in 9.21s ==================
"""
SANITY = """
Running sanity test "shellcheck"
WARNING: Required program "shellcheck" not found.
WARNING: Using locale "C.UTF-8" instead of "en_US.UTF-8". Tests which depend on the locale may behave unexpectedly.
WARNING: Skipping sanity test "import" on Python 2.7 because it could not be found.
WARNING: Required program "shellcheck" not found.
"""


def test_what_was_skipped_and_why() -> None:
    assert run_all.skipped(PYTEST) == [
        "tests/unit/test_a.py:521: mounting a tmpfs needs root",
        "tests/unit/test_b.py:3: needs git",
    ]
    assert run_all.skipped(SANITY) == [
        'Required program "shellcheck" not found.',
        'Skipping sanity test "import" on Python 2.7 because it could not be found.',
    ]
    assert run_all.skipped("40 passed in 9.21s") == []


def test_a_line_per_step_and_all_of_one_that_failed() -> None:
    line = "test | units: passed in 9 s (40 passed, 3 skipped, 18 deselected in 9.21s)"
    assert run_all.told(run_all.Result("units", 9.4, True, PYTEST)) == line
    failed = "why\ntest | lint: FAILED after 1 s; its log is build/test/lint.log"
    assert run_all.told(run_all.Result("lint", 1.2, False, "why")) == failed


@pytest.fixture
def make(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A stand-in for make that notes its step and its priority; the step "bad" fails."""
    program = tmp_path / "make"
    program.write_text(
        '#!/bin/sh\necho "$2 $(nice)" >> calls\n'
        'case $2 in bad) echo "it broke"; exit 2;; odd) echo "SKIPPED [1] a.py:1: no such thing";; esac\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_steps_run_and_the_first_goes_before(make: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["first", "odd", "last"]) == 0
    usual = os.nice(0)
    calls = dict(line.split() for line in (make / "calls").read_text().splitlines())
    assert calls == {"first": str(usual), "odd": "19", "last": "19"}
    assert capsys.readouterr().out.endswith("skipped:\n  odd: a.py:1: no such thing\ntest | all passed\n")


def test_a_failure_stops_no_other_step(make: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_all.main(["bad", "one", "two"]) == 1
    output = capsys.readouterr().out
    assert "it broke\ntest | bad: FAILED" in output
    assert output.endswith("test | nothing was skipped\ntest | FAILED: bad\n")
    assert sorted(line.split()[0] for line in (make / "calls").read_text().splitlines()) == ["bad", "one", "two"]
