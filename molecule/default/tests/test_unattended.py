"""Unattended revalidation: on the host itself, skipped while somebody uses the server."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab
from prometheus_client.parser import text_string_to_metric_families

SERVICE, TIMER = "mixed-gpu-revalidate.service", "mixed-gpu-revalidate.timer"
CALENDAR = "Sun *-*-* 04:10:00"
METRICS = "/var/lib/node_exporter/mixed_gpu.prom"
STATE = "/var/lib/mixed_gpu/unattended/state.json"
FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
PRIORITIES = {"ok": "6", "improved": "6", "inconclusive": "4", "regressed": "3"}


def _ran(host, command, *arguments):
    done = host.run(command, *arguments)
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout.strip()


def _journal(host, since):
    """What the service wrote since then, without what Ansible printed: (priority, text)."""
    printed = _ran(host, "journalctl -t mixed-gpu-revalidate -p info -o json --no-pager --since %s", since)
    entries = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    return [(entry["PRIORITY"], entry["MESSAGE"]) for entry in entries]


def _now(host):
    # a second is the journal's unit of --since
    return _ran(host, "sleep 1; date '+%F %T'")


def _metrics(host):
    families = text_string_to_metric_families(host.file(METRICS).content_string)
    samples = [one for family in families for one in family.samples]
    labels = [tuple(value for _name, value in sorted(one.labels.items())) for one in samples]
    return {(one.name[len("mixed_gpu_") :], *label): one.value for one, label in zip(samples, labels, strict=True)}


def _play(controller, **variables):
    given = {
        "revalidation_timer_on_calendar": [CALENDAR], "revalidation_timer_randomized_delay_seconds": 0,
        "revalidation_timer_metrics_path": METRICS, **variables,
    }  # fmt: skip
    done = controller.play(f"--extra-vars={json.dumps(given)}", playbook=str(controller.directory / "timer.yml"))
    assert done.returncode == 0, done.stdout[-4000:]
    return {name: int(count) for name, count in re.findall(r"(ok|changed)=(\d+)", done.stdout)}


@pytest.fixture(scope="module", autouse=True)
def timer(host, controller):
    """Set the timer up, and leave the host as it was."""
    _ran(host, "mkdir -p /var/lib/node_exporter")
    assert _play(controller)["changed"] > 0
    yield
    if host.file("/opt/mixed_gpu/revalidation").exists:  # the last test did not come to remove it
        _play(controller, revalidation_timer_state="absent")
    _ran(host, "rm -rf /var/lib/node_exporter")


def test_a_second_run_changes_nothing(controller):
    assert _play(controller)["changed"] == 0


def test_it_comes_when_the_calendar_says(host):
    expected = _ran(host, "systemd-analyze calendar %s | sed -n 's/ *Next elapse: //p'", CALENDAR)
    assert _ran(host, "systemctl show --value -p NextElapseUSecRealtime %s", TIMER) == expected != ""
    assert _ran(host, "systemctl show --value -p UnitFileState,Persistent %s", TIMER).split() == ["yes", "enabled"]


def test_a_start_revalidates_on_the_host_itself_and_tells_journal_and_metric(host, eventually):
    since = _now(host)
    status = host.run(f"systemctl start {SERVICE}").rc
    told = _journal(host, since)
    assert len(told) == 1, told
    priority, text = told[0]
    verdict = re.match(r"sandbox \(molecule-q8_0\S*\): (\w+)\b.", text)
    assert verdict and PRIORITIES[verdict[1]] == priority, told
    assert (status == 0) == (verdict[1] in ("ok", "improved"))
    recorded = json.loads(_ran(host, "cat $(ls -1 /var/lib/mixed_gpu/revalidations/*.json | tail -n 1)"))
    outcome = json.loads(host.file(STATE).content_string)["outcome"]
    assert recorded["verdict"] == outcome["verdict"] == verdict[1]
    found = _metrics(host)
    where = (outcome["deployment"], "sandbox")
    assert found["revalidation_verdict", *where, verdict[1]] == 1
    assert found["revalidation_measured", *where] == recorded["measured"]
    changes = {key[-1]: value for key, value in found.items() if key[0] == "revalidation_change_percent"}
    assert changes == outcome["change_percent"]
    assert found["needs_revalidation",] == 0
    # measured or not, the server is back
    eventually(lambda: host.run("systemctl is-active llama-server").stdout.strip() == "active")


def test_a_run_that_is_stopped_while_it_measures_releases_the_devices(host, eventually):
    command = _ran(host, f"systemctl cat {SERVICE}").replace("\\\n", "").split("ExecStart=")[1].splitlines()[0]
    drop_in = f"/run/systemd/system/{SERVICE}.d"
    measuring = f"[Service]\nExecStart=\nExecStart={command} --extra-vars=revalidate_measure=true\n"
    _ran(host, f"mkdir -p {drop_in} && printf %s > {drop_in}/measure.conf", measuring)
    try:
        _ran(host, f"systemctl daemon-reload && systemctl start --no-block {SERVICE}")
        eventually(lambda: host.run("systemctl is-active mixed-gpu-lease").stdout.strip() == "active", 900)
        _ran(host, f"systemctl stop {SERVICE}")
        # nobody renews the lease: it ends by itself
        eventually(lambda: host.run("systemctl is-active llama-server").stdout.strip() == "active", 900)
        assert host.run("systemctl is-active mixed-gpu-lease").stdout.strip() in ("inactive", "failed")
    finally:
        _ran(host, f"rm -r {drop_in} && systemctl daemon-reload && systemctl reset-failed {SERVICE} || true")


def test_a_server_in_use_is_left_alone(host):
    before = host.file(STATE).content_string
    body = json.dumps({"prompt": "One, two,", "n_predict": 400, "cache_prompt": False, "ignore_eos": True})
    request = f"while :; do {lab.CURL} http://127.0.0.1:8080/completion -d '{body}' >/dev/null; done"
    _ran(host, "systemd-run --unit=somebody sh -c %s", request)
    try:
        since = _now(host)
        _ran(host, f"systemctl start {SERVICE}")
        ((priority, text),) = _journal(host, since)
        # between two requests of the loop it is idle for a moment
        busy = r"sandbox: skipped: llama-server (is answering 1 request in \d+ slots?|answered a request just now);"
        assert priority == "5" and re.match(busy, text), text
    finally:
        _ran(host, "systemctl stop somebody")
    assert host.file(STATE).content_string == before


def test_another_driver_than_the_recorded_one_is_told(host, controller):
    fact = json.loads(host.file(FACT).content_string)
    fact["models"][fact["active"]]["fingerprint_parts"]["driver_version"] = "1.0"
    _ran(host, f"cp -a {FACT} {FACT}.kept")
    try:
        _ran(host, f"printf '%%s' %s > {FACT}", json.dumps(fact))
        shown = controller.play(playbook="homelab.mixed_gpu.preflight")
        assert re.search(r"warn revalidation +(no|the) NVIDIA driver", shown.stdout), shown.stdout[-3000:]
    finally:
        _ran(host, f"cat {FACT}.kept > {FACT} && rm {FACT}.kept")
    assert "warn revalidation" not in controller.play(playbook="homelab.mixed_gpu.preflight").stdout


def test_nothing_of_it_is_left(host, controller):
    _play(controller, revalidation_timer_state="absent")
    patterns = (
        "/opt/mixed_gpu/revalidation", "/etc/mixed_gpu/revalidation", METRICS,
        "/etc/systemd/system/*mixed-gpu-revalidate*", "/var/lib/mixed_gpu/unattended",
    )  # fmt: skip
    assert _ran(host, f"ls -d {' '.join(patterns)} 2>/dev/null || true") == ""
    assert _ran(host, "systemctl show --value -p LoadState %s", TIMER) == "not-found"
