# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the owner is told, and how often."""

from __future__ import annotations

import json
import subprocess
import sys
import threading

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import notify, state
from ansible_collections.homelab.mixed_gpu.tests import local_server
from prometheus_client.parser import text_string_to_metric_families

from .conftest import SERVER

NOW = 1_790_000_000.0
FAILED = {"ActiveState": "failed", "Result": "start-limit-hit", "InvocationID": "aa"}
STARTING = {"ActiveState": "activating", "SubState": "auto-restart", "Result": "signal", "InvocationID": "aa"}


def own(restarts=(), stuck=False):
    known = state.empty()
    for at in restarts:
        event = {"boot": "b", "monotonic": 1.0, "at": at, "start": "aa", "reason": f"{SERVER} hangs"}
        state.add_restart(known, SERVER, event)
    found = state.of_unit(known, SERVER)
    found["stuck"] = stuck
    return found


def test_a_failed_unit_is_told_with_its_result():
    text = notify.news(SERVER, FAILED, own(), NOW).text
    assert text.startswith(
        f"{SERVER} failed (start-limit-hit) and stays failed until somebody starts it; see journalctl"
    )


def test_a_unit_that_failed_since_it_hung_again_says_so():
    assert (
        f"; the last restart of the watchdog: {SERVER} hangs;"
        in notify.news(SERVER, FAILED, own([NOW - 900]), NOW).text
    )
    assert "watchdog:" not in notify.news(SERVER, FAILED, own([NOW - 90_000]), NOW).text


def test_a_restart_by_the_watchdog_is_told_with_its_reason():
    text = notify.news(SERVER, STARTING, own([NOW - 90_000, NOW - 20]), NOW).text
    assert text.startswith(f"{SERVER} hangs, so the watchdog restarted it (restart 2); ")


def test_a_crash_that_systemd_answers_is_no_news():
    assert notify.news(SERVER, STARTING, own(), NOW) is None
    assert notify.news(SERVER, STARTING, own([NOW - 3000]), NOW) is None


def test_a_process_that_ignores_sigkill_comes_first():
    assert "ignores SIGKILL: reboot this host" in notify.news(SERVER, FAILED, own([NOW], stuck=True), NOW).text


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.fixture
def webhook():
    """Return a server that keeps what it is sent."""

    class Handler(local_server.Handler):
        def do_POST(self):
            self.server.got.append(self.body())
            self.reply(self.server.status, b"")

    with local_server.serving(Handler, got=[], status=200) as serving:
        yield serving


def told(host, **settings):
    """Run the notifier as its unit does; return exit status and what it printed."""
    path = host.home / "watchdog.json"
    path.write_text(json.dumps({**host.settings, **settings}))
    command = [
        sys.executable,
        "-E",
        "-s",
        "-B",
        "-m",
        "mixed_gpu_watchdog.notify",
        SERVER,
        str(path),
        str(host.home / "state"),
    ]
    done = subprocess.run(
        command, cwd=host.home / "lib", env=host.environment, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout


def fails(host, start="aa"):
    (host.home / "units" / SERVER).write_text(json.dumps({**FAILED, "InvocationID": start}))


def test_journal_metric_command_and_webhook_have_the_same_message_once(host, webhook, tmp_path):
    fails(host)
    hook = tmp_path / "hook"
    hook.write_text(f'#!/bin/sh\necho "$MIXED_GPU_UNIT: $2" >> {tmp_path}/heard\n')
    hook.chmod(0o755)
    wanted = {
        "command": [str(hook), "--message"], "webhook_url": f"{webhook.url}/",
        "metrics_path": str(tmp_path / "m.prom"),
    }  # fmt: skip
    for _call in range(2):
        status, said = told(host, **wanted)
        assert status == 0, said
    text = (tmp_path / "heard").read_text()
    assert text.startswith(f"{SERVER}: {SERVER} failed (start-limit-hit)") and text.count("\n") == 1
    assert [(got["unit"], got["text"]) for got in webhook.got] == [(SERVER, text.strip().partition(": ")[2])]
    families = text_string_to_metric_families((tmp_path / "m.prom").read_text())
    values = {sample.name: sample.value for family in families for sample in family.samples}
    assert values["mixed_gpu_watchdog_failures_total"] == 1
    assert values["mixed_gpu_watchdog_restarts_total"] == 0
    assert values["mixed_gpu_watchdog_last_failure_timestamp_seconds"] > NOW
    fails(host, start="bb")
    assert told(host, **wanted)[1].startswith(f"<3>{SERVER} failed")
    assert len(webhook.got) == 2


def test_hooks_that_fail_are_named_and_keep_nothing_from_the_journal(host, webhook, tmp_path):
    fails(host)
    webhook.status = 500
    status, said = told(
        host, command=["/nonexistent/hook"], webhook_url=f"{webhook.url}/",
        metrics_path=str(tmp_path / "nonexistent" / "m.prom"),
    )  # fmt: skip
    assert status == 1
    lines = said.splitlines()
    assert lines[0].startswith(f"<3>{SERVER} failed")
    assert sorted(line.split(" ")[0] for line in lines[1:]) == [
        f"<4>{tmp_path}/nonexistent/m.prom", "<4>server_watchdog_command", "<4>server_watchdog_webhook_url",
    ]  # fmt: skip


def test_two_writers_lose_nothing(tmp_path):
    stores = [state.Store(str(tmp_path)) for _writer in range(2)]

    def fail(store):
        for _time in range(50):
            with store.changing() as known:
                state.add_failure(known, SERVER, NOW)

    threads = [threading.Thread(target=fail, args=[store]) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert state.of_unit(stores[0].read(), SERVER)["failures_total"] == 100


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1, "units": {}}', '{"schema": 2, "units": 3}', "[" * 100_000])
def test_a_damaged_state_is_an_empty_one(tmp_path, text):
    store = state.Store(str(tmp_path))
    (tmp_path / "state.json").write_text(text)
    assert store.read() == state.empty()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("restarts", None), ("restarts", [3]), ("restarts", [{"boot": "b", "monotonic": "1", "at": 2.0, "start": "s"}]),
        ("restarts", [{"boot": "b", "monotonic": 1.0, "at": 2.0}]), ("restarts_total", None), ("failed_at", "never"),
        ("failures_total", float("nan")), ("stuck", 3), ("told", [7]), ("lender_ports", []), ("lenders", "h:1"),
    ],
)  # fmt: skip
def test_a_unit_with_a_damaged_part_is_forgotten_and_the_next_look_goes_on(tmp_path, field, value):
    other, hung = "other.service", {"boot": "b", "monotonic": 1.0, "at": 2.0, "start": "s", "reason": "r"}
    known = state.empty()
    for unit in (SERVER, other):
        state.add_restart(known, unit, hung)
    known["units"][SERVER][field] = value
    (tmp_path / "state.json").write_text(json.dumps(known))
    store = state.Store(str(tmp_path), str(tmp_path / "watchdog.prom"))
    with store.changing() as found:
        assert state.times(found, SERVER, "b") == [] and state.times(found, other, "b") == [1.0]
        state.add_restart(found, SERVER, hung)
    assert store.read()["units"][SERVER]["restarts"] == [hung]
    assert f'restarts_total{{unit="{SERVER}"}} 1\n' in (tmp_path / "watchdog.prom").read_text()
