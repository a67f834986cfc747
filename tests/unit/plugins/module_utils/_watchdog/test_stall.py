# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which servers hang, by looks at made-up times."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import stall

LIMITS = stall.Limits(stall_seconds=60, load_seconds=600)
START = "aa"


def metrics(at, processing, *progress, **more):
    return stall.Look(at, START, "metrics", processing, tuple(map(str, progress)), **more)


def kind(at, answer, **more):
    return stall.Look(at, START, answer, **more)


def hung_at(looks, limits=LIMITS):
    """Return when the first hang is seen, and what is said; None where none is."""
    seen = stall.Seen()
    for look in looks:
        judged = stall.judge(seen, look, limits)
        seen = judged.seen
        if judged.hung:
            return look.at, judged.hung
    return None


def test_frozen_counters_with_a_request_are_a_hang_after_the_limit():
    looks = [metrics(0, 0, 5), *(metrics(at, 1, 7) for at in range(5, 200, 5))]
    assert hung_at(looks) == (70, "has 1 request in processing, and no token counter moves for 65 s")


def test_one_counter_that_moves_is_progress():
    looks = [metrics(at, 2, 7, at // 50) for at in range(0, 1000, 5)]
    assert hung_at(looks) is None


def test_a_long_prompt_moves_a_counter_with_each_batch():
    looks = [metrics(at, 1, at // 55, 0) for at in range(0, 1800, 5)]
    assert hung_at(looks) is None


def test_an_idle_server_never_hangs():
    assert hung_at([metrics(at, 0, 7) for at in range(0, 10_000, 5)]) is None


def test_time_without_a_look_does_not_count_before_the_request_was_seen():
    # the host was busy, or suspended: between two looks anything may have happened
    assert hung_at([metrics(0, 0, 7), metrics(5000, 1, 7), metrics(5005, 1, 8)]) is None


def test_a_request_that_ends_resets_the_time():
    looks = [metrics(0, 1, 7), metrics(55, 1, 7), metrics(58, 0, 7), metrics(61, 1, 7), metrics(100, 1, 7)]
    assert hung_at(looks) is None


def test_a_load_of_three_minutes_is_none_and_one_of_an_hour_is():
    assert hung_at([kind(at, "loading") for at in range(0, 180, 5)]) is None
    assert hung_at([kind(at, "loading") for at in range(0, 3600, 5)]) == (605, "is still loading its model for 605 s")


def test_a_load_at_an_rpc_server_that_was_stopped_by_a_signal_hangs():
    looks = [kind(at, "loading", stopped=at > 10) for at in range(0, 300, 5)]
    assert hung_at(looks) == (80, "does not load for 65 s (it, or an RPC server of it, was stopped by a signal)")


def test_a_load_may_take_for_ever_where_the_limit_is_zero():
    assert hung_at([kind(at, "loading") for at in range(0, 90_000, 60)], stall.Limits(60, 0)) is None


def test_a_server_that_falls_silent_while_it_computes_hangs():
    looks = [metrics(0, 1, 7), metrics(5, 1, 8), *(kind(at, "silent") for at in range(10, 200, 10))]
    assert hung_at(looks) == (70, "was computing, and does not answer any more for 65 s")


def test_that_it_was_stopped_by_a_signal_is_said():
    looks = [metrics(0, 1, 7), *(kind(at, "silent", stopped=True) for at in range(10, 200, 10))]
    assert hung_at(looks)[1].endswith("for 70 s (it, or an RPC server of it, was stopped by a signal)")


def test_an_idle_server_that_wakes_up_may_be_silent_as_long_as_a_load():
    looks = [metrics(0, 0, 7), *(kind(at, "silent") for at in range(5, 305, 5)), metrics(310, 1, 7)]
    assert hung_at(looks) is None
    looks = [metrics(0, 0, 7), *(kind(at, "silent") for at in range(5, 700, 5))]
    assert hung_at(looks) == (610, "does not answer for 605 s")


def test_an_idle_server_that_was_stopped_by_a_signal_hangs():
    looks = [metrics(0, 0, 7), *(kind(at, "silent", stopped=True) for at in range(10, 200, 10))]
    assert hung_at(looks)[0] == 80


def test_silence_between_two_equal_readings_counts():
    looks = [metrics(0, 1, 7), kind(30, "silent"), metrics(40, 1, 7), metrics(65, 1, 7)]
    assert hung_at(looks)[0] == 65


def test_without_metrics_a_token_counts():
    tokens = [kind(at, "no_metrics", gave_token=True) for at in range(0, 900, 60)]
    assert hung_at(tokens) is None
    never = [kind(at, "no_metrics") for at in range(0, 300, 65)]
    assert hung_at(never) == (65, "answers, but gives neither metrics nor a token for 65 s")


@pytest.mark.parametrize("between", ["away", "restart"])
def test_a_lease_and_a_restart_begin_anew(between):
    looks = [metrics(0, 1, 7), metrics(55, 1, 7)]
    if between == "away":
        looks += [kind(58, "away"), metrics(61, 1, 7), metrics(110, 1, 7)]
    else:
        looks += [look._replace(start="bb") for look in (metrics(61, 1, 7), metrics(110, 1, 7))]
    assert hung_at(looks) is None


# --- counters that are too coarse to show a step ---------------------------------------------------------------------


def coarse_looks(slots, until=400, every=5):
    """Yield looks as the watchdog takes them; slots(at) is what /slots would say."""
    seen, asked = stall.Seen(), []
    for at in range(0, until, every):
        look = metrics(at, 1, "1.2345e+06", coarse=True)
        if stall.wants_exact(seen, look, LIMITS):
            look = look._replace(exact=slots(at))
            asked.append(at)
        judged = stall.judge(seen, look, LIMITS)
        seen = judged.seen
        if judged.hung:
            return at, asked
    return None, asked


def test_a_coarse_counter_that_stands_still_is_no_hang_where_the_slots_move():
    hung, asked = coarse_looks(lambda at: (f"0/1: {at // 50}",))
    assert hung is None
    assert asked


def test_a_coarse_counter_and_slots_that_stand_still_are_a_hang():
    hung, asked = coarse_looks(lambda at: ("0/1: 7",))
    assert asked[0] == 20  # a quarter of the limit, and a look
    assert hung == 85  # within 90 s of the last progress


def test_slots_are_not_asked_without_need():
    fine = [metrics(at, 1, 7) for at in range(0, 300, 5)]
    idle = [metrics(at, 0, "1.2e+06", coarse=True) for at in range(0, 300, 5)]
    for looks in (fine, idle):
        seen = stall.Seen()
        for look in looks:
            assert not stall.wants_exact(seen, look, LIMITS)
            seen = stall.judge(seen, look, LIMITS).seen


def test_where_slots_are_not_told_coarse_counters_are_waited_for_longer():
    assert coarse_looks(lambda at: (), until=900)[0] == 605
