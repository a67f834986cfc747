# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The watchdog as a program, beside a server that hangs, or only looks as if it did."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import host as real_host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import settings, stall, state, watch

from .conftest import PEER, SERVER, eventually

KILL = ["--kill-whom=main", "--signal=SIGKILL", SERVER]


def test_a_server_with_frozen_counters_is_killed_once_and_that_is_told(host):
    server = host.start_server(processing=1)
    dog = host.watch()
    assert server.wait(timeout=120) == -signal.SIGKILL
    eventually(lambda: host.commands("start"))
    time.sleep(1)  # systemctl goes on to say that it runs
    said = host.end(dog)
    assert host.commands("kill") == [KILL]
    assert host.commands("start") == [[f"mixed-gpu-notify@{SERVER}.service"]]
    assert f"<3>{SERVER} has 1 request in processing, and no token counter moves for " in said
    assert "ending it by SIGKILL, systemd starts it again" in said
    assert host.state()["restarts_total"] == 1
    assert host.state()["restarts"][0]["start"] == f"start-{server.pid}"
    assert "/slots" not in host.asked()  # the counters are exact


@pytest.mark.parametrize(
    ("told", "stall_seconds"),
    [
        pytest.param({"processing": 30, "moves": True}, 1, id="thirty busy requests"),
        pytest.param({"processing": 0}, 1, id="idle"),
        pytest.param({"status": 503}, 1, id="loading"),
        pytest.param({"processing": 1, "decodes": "1.5e+06", "moves": True}, 1, id="coarse counters, slots that move"),
        # a token may take so long: more than a busy machine takes for one
        pytest.param({"status": 404, "token": True}, 3, id="no metrics, but tokens"),
    ],
)
def test_a_server_that_works_is_left_alone(host, told, stall_seconds):
    server = host.start_server(**told)
    dog = host.watch(stall_seconds=stall_seconds)
    host.looks(3)
    time.sleep(3 * stall_seconds)
    host.end(dog)
    assert server.poll() is None
    assert host.commands("kill") == []


@pytest.mark.parametrize("told", [{"processing": 30}, {"status": 404}], ids=["thirty requests", "never a token"])
def test_a_server_that_stands_still_is_killed(host, told):
    server = host.start_server(**told)
    host.watch()
    assert server.wait(timeout=120) == -signal.SIGKILL


def test_a_server_that_keeps_each_request_waiting_is_killed(host):
    server = host.start_server(status=404, waits=True)
    host.watch(stall_seconds=4.0)
    assert server.wait(timeout=120) == -signal.SIGKILL
    assert host.asked().count("/completion") == 1


def test_a_server_that_was_stopped_in_mid_decode_is_killed(host):
    server = host.start_server(processing=1, moves=True)
    dog = host.watch(stall_seconds=3.0, timeout_seconds=1.0)
    host.looks(5)
    server.send_signal(signal.SIGSTOP)
    assert server.wait(timeout=120) == -signal.SIGKILL
    assert "was stopped by a signal" in host.end(dog)


def test_slots_decide_where_the_counters_are_coarse(host):
    server = host.start_server(processing=1, decodes="1.5e+06")
    host.watch()
    assert server.wait(timeout=120) == -signal.SIGKILL
    assert "/slots" in host.asked()


@pytest.mark.parametrize("told", [{"processing": 1}, {"status": 503}], ids=["a request", "a load"])
def test_rpc_servers_of_the_host_end_with_it(host, told):
    server = host.start_server(**told)
    peer = host.start("-c", "import time; time.sleep(600)")
    host.unit(PEER, peer)
    peer.send_signal(signal.SIGSTOP)
    dog = host.watch(peer_units=[PEER])
    assert server.wait(timeout=120) == -signal.SIGKILL
    assert peer.wait(timeout=120) == -signal.SIGKILL
    assert f"ending it and {PEER} by SIGKILL" in host.end(dog)


def test_a_lease_in_between_keeps_it_still_and_it_counts_anew_afterwards(host):
    host.lease(True)
    server = host.start_server(processing=1)
    dog = host.watch()
    time.sleep(2)
    assert host.asked() == []
    host.lease(False)
    assert server.wait(timeout=120) == -signal.SIGKILL
    host.end(dog)


@pytest.mark.parametrize("unit", [{"Job": "77"}, {"ActiveState": "deactivating", "SubState": "stop-sigterm"}])
def test_a_play_that_restarts_the_server_is_not_disturbed(host, unit):
    server = host.start_server(processing=1)
    host.unit(SERVER, server, **unit)
    host.watch()
    time.sleep(3)
    assert server.poll() is None


def test_of_two_watchdogs_one_ends_and_the_server_is_killed_once(host):
    server = host.start_server(processing=1)
    dogs = [host.watch(), host.watch()]
    assert server.wait(timeout=120) == -signal.SIGKILL
    eventually(lambda: any(dog.poll() == 1 for dog in dogs))
    time.sleep(1)
    assert host.commands("kill") == [KILL]
    assert host.state()["restarts_total"] == 1
    assert "another watchdog runs" in "".join(host.end(dog) for dog in dogs)


def test_the_key_is_sent_and_a_changed_key_ends_the_program(host, tmp_path):
    (tmp_path / "api_key").write_text("# made by the role\nabc\n")
    host.start_server(processing=0, key="abc")
    dog = host.watch(credentials=tmp_path)
    host.looks(3)
    host.tell(key="xyz")
    assert dog.wait(timeout=120) == 1
    assert "refuses the API key (HTTP status 401): reading the key again" in dog.stdout.read()


def test_unusable_settings_are_named(host):
    dog = host.watch(stall=3)
    assert dog.wait(timeout=120) == 1
    assert "unexpected keyword argument 'stall'" in dog.stdout.read()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stall_seconds": None}, "stall_seconds is None, which is no value like 60.0"),
        ({"restarts_per_hour": "3"}, "restarts_per_hour is '3', which is no value like 3"),
        ({"restarts_per_hour": True}, "restarts_per_hour is True"),
        ({"command": "mail"}, r"command is 'mail', which is no value like \[\]"),
        ({"lender_placements": [None]}, r"lender_placements is \[None\]"),
    ],
)
def test_settings_of_another_type_are_named(changes, words):
    with pytest.raises(ValueError, match=words):
        settings.parse(json.dumps(changes))


# --- in this process: what cannot be made to happen ------------------------------------------------------------------


@pytest.fixture
def dog(host, monkeypatch):
    """Return a Watch of a server that has frozen counters, in this process."""
    host.process = host.start_server(processing=1)
    monkeypatch.setenv("PATH", host.environment["PATH"])
    monkeypatch.setenv("UNITS", host.environment["UNITS"])
    wanted = settings.parse(json.dumps(host.settings))
    return watch.Watch(wanted, str(host.home / "state"), real_host.Server(wanted.url, "", 0.5))


def test_a_clock_that_jumps_is_no_hang(host, dog, monkeypatch):
    dog.limits = stall.Limits(60, 600)
    for jump in (0, 86_400, -86_400, 40 * 365 * 86_400):
        monkeypatch.setattr(time, "time", lambda jump=jump: 1_790_000_000 + jump)
        dog.step()
    assert host.process.poll() is None


def test_the_same_start_is_not_ended_twice(host, dog):
    start = f"start-{host.process.pid}"
    for _again in range(2):
        dog.act(start, "it hangs")
    other = watch.Watch(dog.settings, str(host.home / "state"), dog.server)
    other.act(start, "it hangs")
    assert host.commands("kill") == [KILL]
    assert host.state()["restarts_total"] == 1


def test_a_server_that_was_started_anew_meanwhile_is_not_ended(host, dog):
    dog.act("start-0", "it hangs")
    assert host.commands("kill") == []


def restarted(dog, seconds_ago):
    with dog.store.changing() as known:
        for index, seconds in enumerate(seconds_ago):
            event = {"boot": state.boot_id(), "monotonic": time.monotonic() - seconds, "at": 0.0, "reason": "r"}
            state.add_restart(known, SERVER, {**event, "start": str(index)})


def test_a_hang_soon_after_a_restart_waits(host, dog, capsys):
    restarted(dog, [10])
    for _look in range(3):
        dog.act(f"start-{host.process.pid}", "it hangs")
    assert host.commands("kill") == []
    said = r"<4>it hangs: restarting it in (\d+) s, since it was restarted before\n"
    assert 0 < int(re.fullmatch(said, capsys.readouterr().out)[1]) <= 50


def test_after_too_many_restarts_it_is_ended_for_good(host, dog, capsys):
    restarted(dog, [3000, 2000, 1000])
    host.process.send_signal(signal.SIGSTOP)  # a signal that waits until the process goes on
    dog.act(f"start-{host.process.pid}", "it hangs")
    assert host.process.wait(timeout=120) == -signal.SIGUSR2
    assert [words[1] for words in host.commands("kill")] == ["--signal=SIGUSR2", "--signal=SIGCONT"]
    assert (
        "it stays failed until somebody starts it (systemctl restart llama-server.service)" in capsys.readouterr().out
    )


def test_restarts_of_another_boot_do_not_count(host, dog):
    restarted(dog, [3000, 2000, 1000])
    with dog.store.changing() as known:
        for event in known["units"][SERVER]["restarts"]:
            event["boot"] = "another"
    dog.act(f"start-{host.process.pid}", "it hangs")
    assert host.process.wait(timeout=120) == -signal.SIGKILL


def test_a_full_disk_does_not_keep_a_server_from_being_restarted(host, dog, monkeypatch, capsys):
    def full(*dummy):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state, "replace", full)
    for _again in range(2):
        dog.act(f"start-{host.process.pid}", "it hangs")
    assert host.commands("kill") == [KILL]
    assert "state.json cannot be written (No space left on device)" in capsys.readouterr().out


def test_a_process_that_ignores_sigkill_asks_for_a_reboot(host, dog, monkeypatch, capsys):
    # what waits in the kernel for a card is not to be had on a host without cards
    dog.settings = settings.parse(json.dumps({**host.settings, "end_seconds": 0.2}))
    there = iter([True] * 20)
    monkeypatch.setattr(real_host, "is_there", lambda pid, started: next(there, False))
    monkeypatch.setattr(real_host, "process_state", lambda pid, root="/proc": "D")
    dog.act(f"start-{host.process.pid}", "it hangs")
    said = capsys.readouterr().out
    assert f"process {host.process.pid} of {SERVER} waits in the kernel (state D) and no signal ends it: reboot" in said
    assert host.commands("start").count([f"mixed-gpu-notify@{SERVER}.service"]) == 2
    assert host.state()["stuck"] is False  # it went at last


def test_the_state_of_a_process_is_that_of_its_worst_thread(tmp_path):
    for thread, letter in (("7", "S"), ("8", "D"), ("9", "R")):
        folder = tmp_path / "7" / "task" / thread
        folder.mkdir(parents=True)
        (folder / "stat").write_text(f"{thread} (a) b) {letter} 1 2 3")
    assert real_host.process_state(7, str(tmp_path)) == "D"
    assert real_host.process_state(8, str(tmp_path)) == ""


def test_a_stopped_process_is_seen(host):
    process = host.start("-c", "import time; time.sleep(600)")
    process.send_signal(signal.SIGSTOP)
    eventually(lambda: real_host.process_state(process.pid) == "T")
    assert real_host.started_at(process.pid).isdigit()


def test_systemd_that_does_not_answer_is_said_once(host):
    host.start_server(processing=1)
    program = host.home / "bin" / "systemctl"
    program.write_text("#!/bin/sh\necho x >> $UNITS/calls\necho Failed to connect to bus >&2; exit 1\n")
    dog = host.watch()
    calls = host.home / "units" / "calls"
    eventually(lambda: calls.exists() and len(calls.read_text().split()) >= 3)
    assert host.end(dog).count("Failed to connect to bus") == 1


def test_the_program_needs_nothing_beside_its_room(host):
    program = "import mixed_gpu_watchdog.watch, mixed_gpu_watchdog.notify, sys; print('ansible' in sys.modules)"
    command = ["-E", "-s", "-B", "-c", program]
    process = host.start(*command, cwd=host.home / "lib", stdout=subprocess.PIPE, env={"PATH": os.environ["PATH"]})
    assert process.communicate(timeout=600)[0] == "False\n"
