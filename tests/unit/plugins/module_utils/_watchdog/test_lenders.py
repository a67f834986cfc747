# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server whose lender goes and comes back: the watchdog as a program, and real sockets in place of the lender."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import threading
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import choose_placement
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import (
    failover,
    lenders,
    notify,
    settings,
    stall,
    state,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import host as real_host
from prometheus_client.parser import text_string_to_metric_families

from .conftest import SERVER, Host, eventually

FIRST, SECOND = "192.168.1.7:50052", "192.168.1.8:50052"


class Lender:
    """Answers HELLO while it is there."""

    def __init__(self) -> None:
        self.server: socket.socket | None = None
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.endpoint = f"127.0.0.1:{self.port}"

    def come(self) -> None:
        server = self.server = socket.create_server(("127.0.0.1", self.port))

        def serve() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _address = server.accept()
                    with client:
                        client.recv(33, socket.MSG_WAITALL)
                        client.sendall(struct.pack("<QBB26x", 28, 7, 0))

        threading.Thread(target=serve, daemon=True).start()


def watch(host: Host, *endpoints: str, **more: t.Any) -> t.Any:
    settings = {"stall_seconds": 600.0, "return_seconds": 0.5, "lender_program": choose_placement.__file__}
    settings["lender_placements"] = [list(endpoints), []]
    return host.watch(metrics_path=str(host.home / "metrics"), **{**settings, **more})


def metric(host: Host, name: str) -> float | None:
    path = host.home / "metrics"
    families = text_string_to_metric_families(path.read_text()) if path.exists() else ()
    values = [one.value for family in families for one in family.samples if one.name == f"mixed_gpu_watchdog_{name}"]
    return values[0] if values else None


def test_the_server_is_restarted_once_the_lender_answers_again(host: Host) -> None:
    lender = Lender()
    process = host.start_server()
    host.unit(SERVER, process, StatusText=f"without {lender.endpoint}")
    dog = watch(host, lender.endpoint)
    eventually(lambda: metric(host, "absent_lenders") == 1)
    host.looks(10)
    assert host.commands("try-restart") == [] and metric(host, "lender_losses_total") == 1
    assert host.commands("start") == [[f"mixed-gpu-notify@{SERVER}.service"]]
    assert metric(host, "lender_absent") == 1
    lender.come()
    eventually(lambda: host.commands("try-restart"))
    host.unit(SERVER, process, StatusText=choose_placement.ALL, InvocationID="another")
    eventually(lambda: metric(host, "absent_lenders") == 0)
    host.looks(2)  # it speaks after it has written
    assert metric(host, "lender_absent") == 0
    said = host.end(dog)
    assert host.commands("try-restart") == [[SERVER]] and metric(host, "lender_returns_total") == 1
    assert f"<4>{SERVER} serves without the lender 127.0.0.1: it is used once it answers again" in said
    assert f"<5>the lender 127.0.0.1 of {SERVER} answers again, and no request is in progress: restarting it" in said
    assert f"<5>{SERVER} serves with all its lenders again" in said


@pytest.mark.parametrize("told", [{"processing": 1, "moves": True}, {"status": 503}], ids=["busy", "loading"])
def test_a_server_with_a_request_is_not_restarted(host: Host, told: dict[str, t.Any]) -> None:
    lender = Lender()
    lender.come()
    host.unit(SERVER, host.start_server(**told), StatusText=f"without {lender.endpoint}")
    watch(host, lender.endpoint)
    eventually(lambda: metric(host, "absent_lenders") == 1)
    host.looks(15)
    assert host.commands("try-restart") == []
    host.tell(processing=0)
    eventually(lambda: host.commands("try-restart"))


def test_a_lender_is_used_again_though_another_is_gone_for_good(host: Host) -> None:
    gone, lender = Lender(), Lender()
    process, both = host.start_server(), [gone.endpoint, lender.endpoint]
    host.unit(SERVER, process, StatusText=f"without {','.join(both)}")
    dog = watch(host, *both, lender_placements=[both, [lender.endpoint], [gone.endpoint], []])
    eventually(lambda: metric(host, "absent_lenders") == 2)
    lender.come()
    eventually(lambda: host.commands("try-restart"))
    host.unit(SERVER, process, StatusText=f"without {gone.endpoint}", InvocationID="another")
    eventually(lambda: metric(host, "absent_lenders") == 1)
    host.looks(15)
    said = host.end(dog)
    assert host.commands("try-restart") == [[SERVER]] and metric(host, "lender_losses_total") == 1
    assert f"<5>the lender 127.0.0.1 of {SERVER} answers again" in said


def test_a_lender_that_no_recorded_placement_uses_alone_is_no_reason_to_restart(host: Host) -> None:
    gone, lender = Lender(), Lender()
    lender.come()
    both = [gone.endpoint, lender.endpoint]
    host.unit(SERVER, host.start_server(), StatusText=f"without {','.join(both)}")
    watch(host, *both)
    eventually(lambda: metric(host, "absent_lenders") == 2)
    host.looks(15)
    assert host.commands("try-restart") == []


@pytest.mark.parametrize(
    ("absent", "answering", "back"),
    [
        ((FIRST, SECOND), (FIRST, SECOND), (FIRST, SECOND)),
        ((FIRST, SECOND), (SECOND,), (SECOND,)),
        ((FIRST, SECOND), (FIRST,), (FIRST,)),
        ((FIRST,), (FIRST,), (FIRST,)),
        ((FIRST,), (), ()),
        ((FIRST, SECOND), (), ()),
        ((), (), ()),
    ],
)
def test_the_best_recorded_placement_that_those_who_answer_allow(
    absent: tuple[str, ...], answering: tuple[str, ...], back: tuple[str, ...]
) -> None:
    recorded = [[FIRST, SECOND], [SECOND], [FIRST], []]
    assert lenders.back(recorded, absent, answering) == back


def test_a_placement_worse_than_the_served_one_is_none_to_return_to() -> None:
    assert lenders.back([[FIRST, SECOND], [], [SECOND]], (FIRST, SECOND), (SECOND,)) == ()


def test_a_lender_that_answers_in_another_protocol_is_no_reason_to_restart(host: Host) -> None:
    lender = Lender()
    lender.come()
    host.unit(SERVER, host.start_server(), StatusText=f"without {lender.endpoint}; lender {lender.endpoint} speaks 7.0")
    watch(host, lender.endpoint, lender_protocol="8.0")
    eventually(lambda: metric(host, "absent_lenders") == 1)
    host.looks(15)
    assert host.commands("try-restart") == []


def test_nothing_is_restarted_during_a_lease(host: Host) -> None:
    lender = Lender()
    lender.come()
    host.lease(active=True)
    host.unit(SERVER, host.start_server(), StatusText=f"without {lender.endpoint}")
    watch(host, lender.endpoint)
    eventually(lambda: metric(host, "absent_lenders") == 1)
    time.sleep(2)
    assert host.commands("try-restart") == []


def test_a_lender_that_comes_and_goes_leaves_restarts_for_hangs(host: Host) -> None:
    lender = Lender()
    lender.come()
    process = host.start_server()
    dog = watch(host, lender.endpoint, restarts_per_hour=2)
    for start in ("one", "two", "three"):
        host.unit(SERVER, process, StatusText=f"without {lender.endpoint}", InvocationID=start)
        eventually(lambda: (host.home / "state" / "state.json").exists() and host.state().get("absent_lenders"))
        host.looks(25)
    said = host.end(dog)
    # each restart of the made-up unit changes nothing, so it is tried as often as may be
    assert host.commands("try-restart") == [[SERVER]] * 2 and said.count("answers again") >= 2


def failover_of(host: Host, monkeypatch: pytest.MonkeyPatch) -> failover.Failover:
    """The lenders of the made-up server, without the loop of the watchdog."""
    for name in ("PATH", "UNITS"):
        monkeypatch.setenv(name, host.environment[name])
    wanted = settings.Settings(unit=SERVER, lender_placements=[[FIRST]], restarts_per_hour=1)
    return failover.Failover(wanted, state.Store(str(host.home / "state")), lambda unit: None)


def test_a_measurement_that_begins_meanwhile_keeps_the_server(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.unit(SERVER, host.start_server(), InvocationID="one")
    dog = failover_of(host, monkeypatch)
    host.lease(active=True)
    dog.restart("one", "the lender answers again")
    host.lease(active=False)
    dog.restart("another", "the lender answers again")
    assert host.commands("try-restart") == [] and not (host.home / "state" / "state.json").exists()
    dog.restart("one", "the lender answers again")
    assert host.commands("try-restart") == [[SERVER]] and len(host.state()["lender_restarts"]) == 1


def test_who_may_not_restart_writes_nothing(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog looks every few seconds, for as long as an hour."""
    host.unit(SERVER, host.start_server(), InvocationID="one")
    dog = failover_of(host, monkeypatch)
    dog.restart("one", "the lender answers again")
    path = host.home / "state" / "state.json"
    before = path.stat().st_ino, path.stat().st_mtime_ns
    dog.restart("one", "the lender answers again")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == before and len(host.commands("try-restart")) == 1


def test_the_last_status_of_a_server_that_was_stopped_means_nothing(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    dog = failover_of(host, monkeypatch)
    monkeypatch.setattr(real_host, "reset_connection", lambda *given: pytest.fail("a lender was asked"))
    dog.ports = {FIRST: 50000}
    dog.step(stall.Look(1.0, "one", "away"), f"waits for {FIRST}", 0)
    assert not (host.home / "state" / "state.json").exists()


def test_a_server_that_waits_for_its_lender_is_no_hang_and_is_told(host: Host) -> None:
    process = host.start_server(processing=1)
    host.unit(SERVER, process, StatusText=f"waits for {FIRST}")
    dog = watch(host, FIRST, stall_seconds=0.2)
    eventually(lambda: host.commands("start"))
    time.sleep(2)
    said = host.end(dog)
    assert process.poll() is None and host.asked() == []
    assert f"<3>{SERVER} waits for the lender 192.168.1.7: nothing fits without it" in said


def test_an_idle_server_is_restarted_when_its_lender_has_gone(host: Host) -> None:
    """The made-up server holds no connection; this process does, and stands for it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        with socket.create_connection(("127.0.0.1", server.getsockname()[1])):
            near, _address = server.accept()
            host.unit(SERVER, host.start_server(), StatusText=choose_placement.ALL)
            dog = watch(host, endpoint)
            host.looks(10)
            assert host.commands("try-restart") == []
            near.close()
            eventually(lambda: host.commands("try-restart"))
            said = host.end(dog)
    assert f"{SERVER} has lost the lender {endpoint}, and no request is in progress: restarting it" in said


def test_connections_to_lenders_and_those_that_the_lender_ended() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        with socket.create_connection(server.getsockname()) as far:
            near, _address = server.accept()
            one = lenders.Connection(endpoint, far.getsockname()[1], False)
            assert lenders.connections(real_host.connections(os.getpid()), [endpoint]) == [one]
            near.close()
            ended = lenders.connections(real_host.connections(os.getpid()), [endpoint])
            assert ended == [one._replace(ended=True)]
            assert lenders.connections(real_host.connections(os.getpid()), [FIRST]) == []
    assert real_host.connections(2**22 + 1) == "" and lenders.connections("", [endpoint]) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="TCP_REPAIR, by which a client vanishes without a word, needs root")
def test_a_server_that_waits_for_a_client_that_vanished_is_freed() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        far = socket.create_connection(server.getsockname())
        near, (_host, port) = server.accept()
        far.setsockopt(socket.IPPROTO_TCP, 19, 1)  # TCP_REPAIR: closing sends nothing
        far.close()
        near.settimeout(1)
        with pytest.raises(TimeoutError):
            near.recv(1)
        assert real_host.reset_connection(endpoint, port, 60)
        near.settimeout(60)
        with pytest.raises(ConnectionResetError):
            near.recv(1)
        near.close()


def test_who_is_not_there_is_asked_again_and_who_refuses_has_forgotten() -> None:
    lender = Lender()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert real_host.reset_connection(lender.endpoint, port, 60)
    # this host itself has a connection from that port
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as far:
        endpoint = f"127.0.0.1:{server.getsockname()[1]}"
        assert not real_host.reset_connection(endpoint, far.getsockname()[1], 60)


@pytest.mark.parametrize(
    ("status", "absent", "waits"),
    [
        (choose_placement.ALL, (), False),
        (f"{choose_placement.WITHOUT}{FIRST},{SECOND}", (FIRST, SECOND), False),
        (f"{choose_placement.WAITS}{SECOND}", (SECOND,), True),
        (choose_placement.without(choose_placement.WITHOUT, [FIRST], {FIRST: "speaks protocol 8.0"}), (FIRST,), False),
        (choose_placement.without(choose_placement.WAITS, [FIRST, SECOND], {SECOND: "speaks protocol 8.0"}),
         (FIRST, SECOND), True),
        ("without 6.6.6.6:22", (), False),
        ("", (), False),
    ],
)
def test_what_the_status_says_of_known_lenders(status: str, absent: tuple[str, ...], waits: bool) -> None:
    assert lenders.of_status(status, [FIRST, SECOND]) == (absent, waits)


def test_a_lost_lender_is_told_and_a_failure_comes_first() -> None:
    known = state.empty()
    own = state.of_unit(known, SERVER)
    own.update(absent_lenders=[FIRST], lender_losses_total=1)
    news = notify.news(SERVER, {"ActiveState": "active"}, own, 1000.0)
    assert news is not None
    assert news.text.startswith(f"{SERVER} serves without the lender 192.168.1.7; it comes back by itself; ")
    own["waits_for_lenders"] = True
    waits = notify.news(SERVER, {"ActiveState": "active"}, own, 1000.0)
    assert waits is not None and waits.key != news.key
    assert "waits for the lender 192.168.1.7: nothing fits without it" in waits.text
    failed = notify.news(SERVER, {"ActiveState": "failed", "Result": "signal"}, own, 1000.0)
    assert failed is not None and "stays failed" in failed.text


def test_a_hang_is_told_of_a_server_that_lacks_a_lender() -> None:
    own = state.of_unit(state.empty(), SERVER)
    own.update(absent_lenders=[FIRST], lender_losses_total=1)
    lost = notify.news(SERVER, {"ActiveState": "active"}, own, 1000.0)
    assert lost is not None
    own.update(told=[lost.key], restarts_total=1, restarts=[{"at": 990.0, "reason": "it hangs", "start": "one"}])
    hung = notify.news(SERVER, {"ActiveState": "active"}, own, 1000.0)
    assert hung is not None and hung.text.startswith("it hangs, so the watchdog restarted it (restart 1)")
    own["told"].append(hung.key)
    assert notify.news(SERVER, {"ActiveState": "active"}, own, 1000.0) is None


def test_what_a_state_lacks_of_a_unit_is_as_nothing_had_happened() -> None:
    known = {"schema": state.SCHEMA, "units": {SERVER: {"restarts_total": 7}}}
    own = state.of_unit(known, SERVER)
    assert own["restarts_total"] == 7 and own["lender_ports"] == {} and own is known["units"][SERVER]


def test_an_earlier_state_is_of_no_use(host: Host) -> None:
    (host.home / "state" / "state.json").write_text(json.dumps({"schema": 1, "units": {SERVER: {"restarts": []}}}))
    assert state.Store(str(host.home / "state")).read() == state.empty()
