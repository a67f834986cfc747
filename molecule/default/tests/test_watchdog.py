"""A server that hangs is noticed, ended, served again, and somebody is told: with the programs that hang in service."""

from __future__ import annotations

import contextlib
import json
import re
import time

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

SERVER, WATCHDOG = "llama-server.service", "mixed-gpu-watchdog.service"
PEERS = ("ggml-rpc-server-fast.service", "ggml-rpc-server-slow.service")
STATE = "/var/lib/mixed_gpu/watchdog/state.json"
METRICS = "/var/lib/node_exporter/mixed_gpu_watchdog.prom"
HEARD = "/var/lib/mixed_gpu/watchdog/heard"
URL = "http://127.0.0.1:8080"


def _ran(host, command, *arguments):
    done = host.run(command, *arguments)
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout.strip()


def _property(host, name, unit=SERVER):
    return _ran(host, "systemctl show -p %s --value %s", name, unit)


def _decode(host, name, count):
    """Start a completion of so many tokens, or of many short ones, as a unit of its own."""
    body = json.dumps({"prompt": "One, two,", "n_predict": count, "cache_prompt": False, "ignore_eos": True})
    request = f"{lab.CURL} --max-time 600 {URL}/completion -d '{body}'"
    _ran(host, "systemd-run --quiet --collect --unit=%s sh -c %s", name, request)


@contextlib.contextmanager
def _decoding(host, eventually, name):
    """Keep a completion running, one after the other, so that the server computes whenever it is looked at."""
    body = json.dumps({"prompt": "One, two,", "n_predict": 400, "cache_prompt": False, "ignore_eos": True})
    request = f"while :; do {lab.CURL} --max-time 600 {URL}/completion -d '{body}' >/dev/null || sleep 0.5; done"
    _ran(host, "systemd-run --quiet --collect --unit=%s sh -c %s", name, request)
    try:
        eventually(lambda: _metric(host, "requests_processing") >= 1)
        yield
    finally:
        _ran(host, "systemctl stop %s", name)


def _metric(host, name):
    answer = host.run(f"{lab.CURL} --max-time 10 {URL}/metrics")
    found = re.search(rf"^llamacpp:{name} (\S+)$", answer.stdout, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def _answers(host):
    body = json.dumps({"prompt": "One, two,", "n_predict": 2, "cache_prompt": False, "ignore_eos": True})
    answer = host.run(f"{lab.CURL} --max-time 20 {URL}/completion -d %s", body)
    return answer.rc == 0 and '"predicted_n":2' in answer.stdout


def _restarts(host):
    known = json.loads(host.run("cat %s", STATE).stdout or '{"units": {}}')
    return known["units"].get(SERVER, {"restarts_total": 0})["restarts_total"]


def _forget(host):
    """Let the restarts so far count no more, as an hour does."""
    _ran(
        host,
        "systemctl stop %s; rm -f %s; systemctl reset-failed %s; systemctl start %s",
        WATCHDOG,
        STATE,
        SERVER,
        WATCHDOG,
    )


def _journal(host, since):
    return _ran(host, "journalctl -t mixed-gpu-watchdog -t mixed-gpu-notify --no-pager -o cat --since %s", since)


def _now(host):
    # a second is the journal's unit of --since
    return _ran(host, "sleep 1; date '+%F %T'")


def _play(controller, **variables):
    given = {"server_watchdog_metrics_path": METRICS, **variables}
    done = controller.play(f"--extra-vars={json.dumps(given)}", playbook=str(controller.directory / "watchdog.yml"))
    assert done.returncode == 0, done.stdout[-4000:]
    return int(re.search(r"changed=(\d+)", done.stdout).group(1))


@pytest.fixture(scope="module", autouse=True)
def hook(host, controller, eventually):
    """Set up a hook and a metric, and leave the host as the site playbook left it."""
    script = f'#!/bin/sh\necho "$MIXED_GPU_UNIT: $1" >> {HEARD}\n'
    _ran(
        host,
        "mkdir -p /var/lib/node_exporter && printf %s %s > /usr/local/bin/heard && chmod 755 /usr/local/bin/heard",
        "%s",
        script,
    )
    _play(controller, server_watchdog_command=["/usr/local/bin/heard"])
    _forget(host)
    yield
    _play(controller, server_watchdog_metrics_path="")
    _ran(host, "rm -rf /var/lib/node_exporter /usr/local/bin/heard %s", HEARD)
    _forget(host)
    eventually(lambda: _answers(host))


def test_it_watches_without_being_asked_since_rpc_serves(host):
    assert _property(host, "ActiveState", WATCHDOG) == "active"
    assert _property(host, "UnitFileState", WATCHDOG) == "enabled"


def test_its_sandbox_is_tight(host):
    report = _ran(host, "systemd-analyze security --no-pager %s", WATCHDOG)
    assert float(re.search(rf"exposure level for {WATCHDOG}: ([\d.]+)", report).group(1)) <= 1.5


def test_metrics_are_there_before_anything_happened(host):
    assert "mixed_gpu_watchdog_restarts_total" in host.file(METRICS).content_string


def test_a_second_watchdog_ends_at_once(host):
    second = host.run("cd /opt/mixed_gpu/lib && timeout 30 python3 -E -s -B -m mixed_gpu_watchdog.watch")
    assert second.rc == 1
    assert "another watchdog runs" in second.stdout


def _stopped_is_noticed_and_served_again(host, eventually, stopped):
    """Stop a unit's process by a signal in mid-decode, and see what the watchdog does and says."""
    eventually(lambda: _answers(host))
    _forget(host)
    since, before = _now(host), _property(host, "InvocationID")
    with _decoding(host, eventually, "decode-stopped"):
        pid = _property(host, "MainPID", stopped)
        _ran(host, "kill -STOP %s", pid)
        eventually(lambda: _restarts(host) == 1, 600)
        eventually(lambda: _property(host, "InvocationID") != before)
    eventually(lambda: _answers(host))
    assert _property(host, "MainPID", stopped) != pid
    eventually(lambda: "so the watchdog restarted it (restart 1)" in _journal(host, since))
    said = re.search(rf"^{SERVER} .* for (\d+) s.*: ending it", _journal(host, since), re.MULTILINE)
    limit = json.loads(host.file("/etc/mixed_gpu/watchdog.json").content_string)["stall_seconds"]
    assert said and int(said[1]) >= limit, _journal(host, since)
    eventually(lambda: "so the watchdog restarted it" in host.file(HEARD).content_string)
    assert f'mixed_gpu_watchdog_restarts_total{{unit="{SERVER}"}} 1' in host.file(METRICS).content_string
    assert _restarts(host) == 1


def test_a_server_that_stops_in_mid_decode_is_noticed_and_served_again(host, eventually):
    _stopped_is_noticed_and_served_again(host, eventually, SERVER)


def test_a_server_that_fails_for_good_is_told(host, eventually):
    since = _now(host)
    _ran(host, "systemctl kill --kill-whom=main --signal=SIGUSR2 %s", SERVER)
    eventually(lambda: _property(host, "ActiveState") == "failed")
    eventually(lambda: f"{SERVER} failed (signal) and stays failed until somebody starts it" in _journal(host, since))
    told = f'mixed_gpu_watchdog_failures_total{{unit="{SERVER}"}} 1'
    eventually(lambda: told in host.file(METRICS).content_string)
    eventually(lambda: f"{SERVER}: {SERVER} failed (signal)" in host.file(HEARD).content_string)
    _ran(host, "systemctl restart %s", SERVER)
    eventually(lambda: _answers(host))


# --- shorter times: what must not be taken for a hang, and what comes again and again ---------------------------------


@pytest.fixture(scope="module")
def impatient(controller, host, hook):
    """Let eight seconds without progress be a hang, or as long as three batches take here."""
    _play(
        controller,
        server_watchdog_stall_seconds=8,
        server_watchdog_poll_seconds=1,
        server_watchdog_command=["/usr/local/bin/heard"],
    )
    return json.loads(host.file("/etc/mixed_gpu/watchdog.json").content_string)["stall_seconds"]


def test_a_device_that_stops_in_mid_decode_is_noticed_and_served_again(host, impatient, eventually):
    _stopped_is_noticed_and_served_again(host, eventually, PEERS[1])


def test_thirty_requests_and_a_lease_and_a_play_are_no_hang(host, impatient, eventually):
    _forget(host)
    for number in range(30):
        _decode(host, f"busy-{number}", 30)
    lease = "systemd-run --quiet --collect --unit=mixed-gpu-lease -p Conflicts=%s -p After=%s sleep 15"
    time.sleep(2 * impatient)
    _ran(host, lease, SERVER, SERVER)
    eventually(lambda: _property(host, "ActiveState") == "inactive")
    time.sleep(impatient)
    eventually(lambda: host.run("systemctl is-active mixed-gpu-lease").stdout.strip() != "active")
    _ran(host, "systemctl start %s", SERVER)
    eventually(lambda: _answers(host))
    _ran(host, "systemctl restart %s", SERVER)
    eventually(lambda: _answers(host))
    assert _restarts(host) == 0


def test_a_stand_in_that_loads_for_long_and_one_that_never_gives_a_token(host, impatient, eventually):
    """The unit's own program replaced: first by one that loads, then by one that hangs in each request."""
    _forget(host)
    dropin = f"/run/systemd/system/{SERVER}.d/test.conf"
    program = "/usr/local/lib/stand_in.py"
    text = STAND_IN
    _ran(host, "mkdir -p /usr/local/lib /run/systemd/system/%s.d", SERVER)
    _ran(host, "printf %s %s > %s", "%s", text, program)
    _ran(
        host,
        "printf %s %s > %s",
        "%s",
        f"[Service]\nExecStart=\nExecStart=/usr/bin/python3 {program}\nMemoryDenyWriteExecute=no\n",
        dropin,
    )
    try:
        _ran(host, "echo loading > /run/stand_in && systemctl daemon-reload && systemctl restart %s", SERVER)
        time.sleep(3 * impatient)
        assert _restarts(host) == 0
        since = _now(host)
        _ran(host, "echo hangs > /run/stand_in")
        eventually(lambda: _restarts(host) >= 1, 300 + 10 * impatient)
        # it hangs again: the next restart waits for a minute
        eventually(lambda: "since it was restarted before" in _journal(host, since), 300 + 10 * impatient)
        said = re.search(r"restarting it in (\d+) s, since it was restarted before", _journal(host, since))
        assert 0 < int(said[1]) <= 60
    finally:
        _ran(
            host,
            "rm -f %s %s /run/stand_in && systemctl daemon-reload && systemctl restart %s",
            dropin,
            program,
            SERVER,
        )
    eventually(lambda: _answers(host))


def test_a_server_that_hangs_too_often_stays_failed(host, controller, impatient, eventually):
    _play(
        controller, server_watchdog_stall_seconds=8, server_watchdog_poll_seconds=1,
        server_watchdog_restarts_per_hour=0, server_watchdog_command=["/usr/local/bin/heard"],
    )  # fmt: skip
    _forget(host)
    since = _now(host)
    with _decoding(host, eventually, "decode-last"):
        _ran(host, "kill -STOP %s", _property(host, "MainPID"))
        eventually(lambda: _property(host, "ActiveState") == "failed", 300 + 10 * impatient)
    eventually(lambda: f"{SERVER} failed (signal) and stays failed" in _journal(host, since))
    _ran(host, "systemctl restart %s", SERVER)
    eventually(lambda: _answers(host))
    assert _restarts(host) == 0


def test_absent_leaves_nothing(host, controller):
    assert _play(controller, server_watchdog_state="absent") > 0
    left = "ls -d /etc/systemd/system/mixed-gpu-{watchdog,notify@}.service /opt/mixed_gpu/lib/mixed_gpu_watchdog"
    found = host.run(f"bash -c '{left} /etc/mixed_gpu/watchdog.json /var/lib/mixed_gpu/watchdog {METRICS}'")
    assert found.stdout == ""
    assert _property(host, "LoadState", WATCHDOG) == "not-found"


STAND_IN = """
import http.server, pathlib
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        loading = pathlib.Path("/run/stand_in").read_text().strip() == "loading"
        text = "llamacpp:requests_processing 1\\nllamacpp:n_decode_total 7\\n" if self.path == "/metrics" else "{}"
        self.send_response(503 if loading else 200)
        self.end_headers()
        self.wfile.write(text.encode())
http.server.ThreadingHTTPServer(("127.0.0.1", 8080), Handler).serve_forever()
"""
