# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The kernel's accounts of real processes."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import device_watch
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch.watched_devices import quota_percent

SPIN = "import os, sys\nos.sched_setaffinity(0, {int(sys.argv[1])})\nprint(flush=True)\nwhile True: pass"
SLEEP = "import time\nprint(flush=True)\ntime.sleep(60)"


@contextlib.contextmanager
def process(*command):
    child = subprocess.Popen([sys.executable, "-c", *command], stdout=subprocess.PIPE)
    try:
        child.stdout.readline()
        yield child.pid
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def watched(pids, seconds=0.5):
    before, start = [device_watch.threads(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    spent = [device_watch.between(had, device_watch.threads(pid)) for had, pid in zip(before, pids, strict=True)]
    return spent, (time.monotonic() - start) * 1e9


def test_a_process_that_computes_is_busy_and_one_that_sleeps_is_not():
    cpu = str(min(os.sched_getaffinity(0)))
    with process(SPIN, cpu) as spinning, process(SLEEP) as sleeping:
        (busy, idle), took = watched([spinning, sleeping])
    assert sum(busy) > 0.7 * took
    assert sum(idle) < 0.2 * took


def test_two_on_one_cpu_wait_for_each_other():
    cpu = str(min(os.sched_getaffinity(0)))
    with process(SPIN, cpu) as one, process(SPIN, cpu) as other:
        spent, took = watched([one, other])
    assert sum(own.running_ns for own in spent) < 1.2 * took
    assert all(own.waiting_ns > 0.2 * took for own in spent)


def test_an_ended_process_has_nothing():
    with process(SLEEP) as pid:
        before = device_watch.threads(pid)
    assert before and device_watch.threads(pid) == {}
    assert device_watch.between(before, {}) == device_watch.Spent(0, 0)


def test_without_schedstat_it_is_read_from_stat(tmp_path):
    task = tmp_path / "7" / "task" / "7"
    task.mkdir(parents=True)
    (task / "stat").write_text("7 (a (strange) name) S 1 7 7 0 -1 4194304 0 0 0 0 150 50 0 0 20 0 1 0 100\n")
    ns = 200 * 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    assert device_watch.threads(7, str(tmp_path)) == {7: device_watch.Spent(ns, 0)}


def test_the_busiest_thread_counts():
    spent = device_watch.Spent
    before = {1: spent(100, 0), 2: spent(100, 100)}
    after = {1: spent(150, 10), 2: spent(110, 110), 3: spent(30, 40)}
    assert device_watch.between(before, after) == spent(30, 40)


def test_endpoints():
    assert device_watch.endpoint("127.0.0.1:50052") == ("127.0.0.1", 50052)
    assert device_watch.endpoint("[::1]:5") == ("::1", 5)
    with pytest.raises(ValueError, match="no endpoint"):
        device_watch.endpoint("CUDA0")


def test_only_own_addresses_are_local():
    assert device_watch.is_local("127.0.0.1")
    assert not device_watch.is_local("192.0.2.1")  # of a documentation network
    assert not device_watch.is_local("no.such.name.invalid")


def test_cards_by_the_readings_of_a_span():
    rows = [{"at": at, "utilization_gpu_percent": percent} for at, percent in ((1, 10), (2, 30), (3, 50), (4, None))]
    assert device_watch.cards_between({"a": rows, "b": []}, 2, 4) == {"a": 40, "b": None}


def test_reasons_by_how_often_they_were_seen():
    rows = [{"throttle_mask": mask} for mask in (0x4, 0x1, 0x24, None)]
    seen = device_watch.throttled_percent(rows, nvml.throttle_reasons)
    assert seen == {"gpu_idle": 33.3, "sw_power_cap": 66.7, "sw_thermal_slowdown": 33.3}
    assert device_watch.throttled_percent([{"throttle_mask": None}], nvml.throttle_reasons) is None


@pytest.mark.parametrize(
    ("text", "percent"),
    [("infinity", None), ("", None), ("500ms", 50.0), ("1.500s", 150.0), ("2s", 200.0), ("50us", 0.0)],
)
def test_quotas_as_systemd_writes_them(text, percent):
    assert quota_percent(text) == percent
