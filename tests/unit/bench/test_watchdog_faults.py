# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the suite of the watchdog's faults calls a problem, and the section that it writes."""

from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parents[2] / "bench"))
import watchdog_faults


def found(**change):
    """Return what the host printed of a run in which all went well, but for what is changed in each part."""
    stopped = {"name": "server stopped", "by": "watchdog", "noticed_seconds": 64.2, "served_seconds": 71.0,
               "restarts": 1, "clock_seconds": 65}  # fmt: skip
    clock = {**stopped, "name": "server stopped, and the clock set back", "clock_seconds": -7136}
    killed = {**stopped, "name": "RPC server killed", "by": "systemd", "restarts": 0}
    load = {"name": "long load", "seconds": 188.0, "restarts": 0, "kept": True}
    mixed = {
        "name": "mixed load",
        "seconds": 3600,
        "requests": 900,
        "tokens": 1,
        "leases": 5,
        "starts": 6,
        "restarts": 0,
    }
    faults = [
        {**part, **change.get(name, {})} for name, part in (("stopped", stopped), ("clock", clock), ("killed", killed))
    ]
    quiet = [{**load, **change.get("load", {})}, {**mixed, **change.get("mixed", {})}]
    dies = {"starts": 10, "allowed": 10, "seconds": 102.0, "told": "it failed", **change.get("dies", {})}
    return {"faults": faults, "dies": dies, "quiet": quiet, "stall_seconds": 60.0, "poll_seconds": 5.0}


def test_a_run_in_which_all_went_well_has_no_problem():
    assert watchdog_faults.problems(found()) == []


@pytest.mark.parametrize(
    ("part", "change", "sentence"),
    [
        ("stopped", {"restarts": 2}, "server stopped, restarts by the watchdog: 2 instead of 1"),
        ("killed", {"restarts": 1}, "RPC server killed, restarts by the watchdog: 1 instead of 0"),
        ("clock", {"clock_seconds": 64}, "the watchdog's clock was not set back"),
        ("dies", {"starts": 9}, "a server that dies in each load was started 9 times instead of 10"),
        ("load", {"restarts": 1}, "long load, restarts by the watchdog: 1 instead of 0"),
        ("load", {"kept": False}, "long load: the server was started again"),
        ("mixed", {"restarts": 1}, "mixed load, restarts by the watchdog: 1 instead of 0"),
        ("mixed", {"starts": 7}, "mixed load: the server was started again"),
    ],
)
def test_what_should_not_be_is_named(part, change, sentence):
    (said,) = watchdog_faults.problems(found(**{part: change}))
    assert sentence in said


def test_the_section_has_a_row_for_each_fault():
    text = watchdog_faults.text(found())
    assert "| RPC server killed | systemd | 64 | 71 |" in text and text.count("| watchdog |") == 2
    assert "During a load of 188 s" in text and "took 60 minutes: 900 requests" in text
    assert text.count("Restarts: 0.") == 2
