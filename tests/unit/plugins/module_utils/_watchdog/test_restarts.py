# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Restarts that come too often."""

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import restarts


def test_the_first_hang_is_answered_at_once():
    assert restarts.decide([], 1000, 3) == ("restart", 0)


def test_the_next_restarts_wait_longer_and_longer():
    assert restarts.decide([1000], 1010, 3) == ("wait", 50)
    assert restarts.decide([1000], 1060, 3) == ("restart", 0)
    assert restarts.decide([1000, 1060], 1070, 5) == ("wait", 110)
    assert restarts.decide([1060, 1000], 1180, 5) == ("restart", 0)


def test_after_as_many_as_are_allowed_it_is_given_up():
    assert restarts.decide([1000, 1100, 1300], 1400, 3).action == "give_up"


def test_an_hour_later_they_do_not_count_any_more():
    assert restarts.decide([1000, 1100, 1300], 4910, 3).action == "restart"


def test_times_of_another_clock_do_not_count():
    assert restarts.decide([9000, 9100, 9200], 100, 3).action == "restart"


def test_without_allowance_it_is_given_up_at_once():
    assert restarts.decide([], 1000, 0).action == "give_up"


def test_those_of_the_last_hour_are_recent():
    assert restarts.recent([4000.0, 100.0, 3000.0, 6000.0], 5000.0) == [3000.0, 4000.0]
