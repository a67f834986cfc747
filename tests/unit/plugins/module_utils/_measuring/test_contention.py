# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who computed beside a load: looks at a host are added up and judged."""

import itertools
import os
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import contention, contention_watch

CALM = {
    "seconds": 20.0, "cpus": 4, "others_percent": 1.0, "top": {"name": "sshd", "cpus": 0.02}, "unseen_percent": 4.0,
    "steal_percent": 0.2, "cpu_waiting_percent": 90.0, "memory_stalled_percent": 0.0, "cards": {},
}  # fmt: skip
CARD = {"name": "blender", "memory_mib": 900, "gpu_percent": 35.0}
#: kind -> (what differs from a calm load, what is said of it)
KINDS = {
    "cpu": ({"others_percent": 30.0, "top": {"name": "stress", "cpus": 1.0}}, "stress 1.0 of 4 CPUs"),
    "steal": ({"steal_percent": 12.0}, "other machines of the hypervisor 12 % of the CPU time"),
    "card": ({"cards": {"GPU-1": {"processes": [CARD], "clocks_held_down": []}}}, "blender 35 % of the card GPU-1"),
    "clocks": ({"cards": {"GPU-2": {"processes": [], "clocks_held_down": ["hw_thermal_slowdown"]}}}, None),
    "memory": ({"memory_stalled_percent": 50.0}, None),
}  # fmt: skip


def line(pid, name, parent, user, system, started):
    return f"{pid} ({name}) S {parent} " + " ".join(["0"] * 9 + [str(user), str(system)] + ["0"] * 6 + [str(started)])


def test_a_name_may_hold_what_separates_fields():
    assert contention.process(line(7, "a) R (b", 1, 30, 4, 99)) == contention.Process("a) R (b", 1, 34, 99)
    with pytest.raises(ValueError):
        contention.process("7 (short) S 1")


def test_stolen_and_idle_time_is_not_busy():
    text = "cpu  100 10 50 800 20 5 5 10 3 0\ncpu0 1 1 1 1 1 1 1 1 1 1\n"
    assert contention.cpu_times(text) == (170, 10, 1000)


def test_pressure_is_a_total_in_microseconds():
    text = "some avg10=1.00 avg60=0.50 avg300=0.10 total=123456\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=77\n"
    assert (contention.stalled_us(text, "some"), contention.stalled_us(text, "full")) == (123456, 77)
    assert contention.stalled_us("", "some") is None


def process(name, parent, ticks, started=5):
    return contention.Process(name, parent, ticks, started)


def test_what_measures_is_its_family():
    processes = {
        1: process("systemd", 0, 0), 10: process("sshd", 1, 0), 20: process("python3", 10, 0),
        30: process("llama-bench", 1, 0), 31: process("worker", 30, 0), 40: process("make", 10, 0),
    }  # fmt: skip
    assert contention.family(processes, [30], own=20) == {1, 10, 20, 30, 31}


def look(seconds, busy, processes, ours, waiting=0):
    return contention.Look(seconds, busy, 0, int(seconds * 400), waiting, 0, processes, frozenset(ours))


def test_time_is_counted_once_and_a_reused_pid_is_another_process():
    first = look(0, 0, {5: process("make", 1, 1000), 6: process("llama-bench", 1, 0)}, {6})
    account = contention.Account(first)
    account.add(look(5, 900, {5: process("make", 1, 1400), 6: process("llama-bench", 1, 300)}, {6}, 2_000_000))
    account.add(look(10, 2000, {5: process("cc1", 1, 200, started=99), 8: process("cc1", 1, 100)}, set(), 5_000_000))
    found = account.result(cpus=4)
    assert found["others_percent"] == 17.5  # (400 + 200 + 100) of 4000 ticks
    assert found["top"] == {"name": "make", "cpus": 0.4}
    assert found["unseen_percent"] == 25.0  # 2000 busy, 700 of others, 300 of ours
    assert found["cpu_waiting_percent"] == 50.0
    assert (found["seconds"], found["cpus"], found["steal_percent"]) == (10, 4, 0.0)


@pytest.mark.parametrize("kinds", [c for n in range(len(KINDS) + 1) for c in itertools.combinations(KINDS, n)])
def test_every_combination_names_all_and_nobody_else(kinds):
    seen = dict(CALM)
    for kind in kinds:
        changed = KINDS[kind][0]
        seen |= {**changed, "cards": {**seen["cards"], **changed["cards"]}} if "cards" in changed else changed
    said = contention.who(seen) or ""
    for kind, (_changed, words) in KINDS.items():
        assert words is None or (words in said) is (kind in kinds), said
    assert bool(said) is any(KINDS[kind][1] for kind in kinds)


@pytest.mark.parametrize(
    ("changed", "accused"),
    [
        ({"cpu_waiting_percent": 1.0}, False),  # idle CPUs are left
        ({"cpu_waiting_percent": None}, True),  # a kernel that does not say
        ({"others_percent": 4.9}, False),
    ],
)
def test_others_count_where_somebody_waits(changed, accused):
    seen = {**CALM, **KINDS["cpu"][0], **changed}
    assert (contention.who(seen) is not None) is accused


def test_unseen_work_counts_when_it_is_much_and_the_load_is_long():
    unseen = {**CALM, "unseen_percent": 50.0}
    assert "2.0 of 4 CPUs" in contention.who(unseen)
    assert contention.who({**unseen, "seconds": 3.0}) is None
    assert contention.who({**unseen, "unseen_percent": 20.0}) is None


def test_others_together_are_told_beside_the_first():
    seen = {**CALM, "others_percent": 50.0, "top": {"name": "cc1plus", "cpus": 1.0}}
    assert contention.who(seen) == "cc1plus 1.0 of 4 CPUs, all others together 2.0"


def test_a_card_tells_others_from_ours_and_from_what_is_not_of_this_host():
    conditions = {"GPU-1": {
        "throttle_reasons": ["gpu_idle", "sw_power_cap", "hw_slowdown"],
        "processes": [{"pid": pid, "memory_mib": 100, "gpu_percent": 40.0} for pid in (1, 2, 3)],
    }}  # fmt: skip
    found = contention.of_cards(conditions, ours={1}, known={1: "rpc-server", 2: "blender"})
    assert found["GPU-1"]["processes"] == [{"name": "blender", "memory_mib": 100, "gpu_percent": 40.0}]
    assert found["GPU-1"]["clocks_held_down"] == ["hw_slowdown"]


def test_loads_are_told_apart():
    loads = [{"load": 1, "contention": CALM}, {"load": 2, "contention": {**CALM, "steal_percent": 9.0}}, {"load": 3}]
    assert [load["load"] for load in contention.calm(loads)] == [1, 3]
    (whose,) = contention.contended(loads)
    assert contention.sentence(whose) == (
        "something else computes (other machines of the hypervisor 9 % of the CPU time): wait or stop it"
    )


def test_a_busy_loop_beside_a_reading_is_named_and_our_own_is_not():
    """Really: a process that is not ours spins on each CPU for some seconds, and one of ours does, too."""
    count = os.cpu_count() or 1
    spin = (
        "import sys, time\nopen('/proc/self/comm', 'w').write(sys.argv[1])\nend = time.monotonic() + float(sys.argv[2])"
        "\nwhile time.monotonic() < end: pass"
    )
    # double fork: its parent is init and not this test
    other = [sys.executable, "-c", spin, "not-ours", "6"]
    detached = f"import subprocess\nsubprocess.Popen({other!r}, start_new_session=True)"
    with contention_watch.Watch() as watch:
        for _cpu in range(count):
            subprocess.run([sys.executable, "-c", detached], check=True)
        subprocess.run([sys.executable, "-c", spin, "ours", "3"], check=True)
    seen = watch.with_cards({})
    assert seen["seconds"] >= 3 and seen["cards"] == {}
    # whatever else this machine does: the busiest of those that are not ours is named, and this one is among them
    others = watch._account._others
    assert others["not-ours"] > 0 and "ours" not in others
    assert seen["top"]["name"] == max(others, key=others.get) and seen["top"]["cpus"] > 0
    assert f"of {count} CPUs" in contention.who(seen)


def test_a_host_without_proc_is_not_looked_at(tmp_path):
    with contention_watch.Watch(root=str(tmp_path)) as watch:
        pass
    assert watch.result is None and watch.with_cards({}) is None


@pytest.mark.parametrize(
    "cgroup",
    [
        "0::/system.slice/mixed-gpu-run-1-2-3.service\n",
        "1:name=systemd:/system.slice/ggml-rpc-server-fast.service\n0::/\n",
        "1:name=systemd:/user.slice/user-0.slice\n0::/user.slice\n",
    ],
)
def test_a_process_of_a_measuring_unit_is_ours_and_another_is_not(tmp_path, cgroup):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cgroup").write_text(cgroup)
    (tmp_path / "7" / "stat").write_text(line(7, "llama-bench", 1, 50, 0, 9))
    (tmp_path / "stat").write_text("cpu 10 0 0 90 0 0 0 0\n")
    with contention_watch.Watch(root=str(tmp_path)) as watch:
        (tmp_path / "stat").write_text("cpu 160 0 0 140 0 0 0 0\n")
        (tmp_path / "7" / "stat").write_text(line(7, "llama-bench", 1, 150, 0, 9))
    ours = "service" in cgroup
    assert watch.result["others_percent"] == (0.0 if ours else 50.0)
    assert watch.result["unseen_percent"] == 25.0 and watch.result["cpu_waiting_percent"] is None
