"""The diagnose playbook on the served split; the host is left as it was found."""

from __future__ import annotations

import json

import pytest

FAST, SLOW = "127.0.0.1:50052", "127.0.0.1:50053"
PLAYBOOK = "homelab.mixed_gpu.diagnose"
QUICK = "--extra-vars={diagnose_seconds: 4, diagnose_wait_seconds: 60}"


@pytest.fixture(scope="module")
def diagnose(controller, tmp_path_factory):
    """Return a function that runs the playbook and gives its JSON and its output."""

    def run():
        path = tmp_path_factory.mktemp("diagnosis") / "made" / "diagnosis.json"
        done = controller.play(QUICK, f"--extra-vars=diagnose_report={path}", playbook=PLAYBOOK)
        assert done.returncode == 0, done.stdout[-4000:]
        (result,) = json.loads(path.read_text(encoding="utf-8"))["hosts"].values()
        return result, done.stdout

    return run


@pytest.fixture(scope="module")
def usual(diagnose, host):
    """Diagnose the host as it is; also what its processes and files were before and after."""
    look = (
        "systemctl show -p MainPID,InvocationID llama-server ggml-rpc-server-fast ggml-rpc-server-slow;"
        " find /etc /opt/mixed_gpu /var/lib/mixed_gpu -newermt '-1 hour' -type f -printf '%p %T@\\n' | sort"
    )
    before = host.run(look).stdout
    result, output = diagnose()
    return result, output, before, host.run(look).stdout


def _rows(result, kind):
    (phase,) = [phase for phase in result["phases"] if phase["kind"] == kind]
    return {row["id"]: row for row in phase["devices"]}


def test_both_devices_are_seen_by_their_processes(usual):
    devices = {device["id"]: device for device in usual[0]["devices"]}
    assert [devices[key]["unit"] for key in (FAST, SLOW)] == [
        "ggml-rpc-server-fast.service",
        "ggml-rpc-server-slow.service",
    ]
    assert {device["seen"] for device in devices.values()} == {"process"}


def test_a_layer_takes_longer_on_the_slow_device(usual):
    rows = _rows(usual[0], "prefill")
    assert rows[SLOW]["ms_per_layer"] > rows[FAST]["ms_per_layer"] > 0
    for kind in ("decode", "prefill"):
        assert sum(row["share_percent"] for row in _rows(usual[0], kind).values()) == pytest.approx(100, abs=0.2)


def test_the_advice_does_not_contradict_the_record(usual, host):
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    entry = fact["models"][fact["active"]]
    advice = usual[0]["advice"]
    if advice["layers"] is None:
        assert advice["why"].startswith("nothing to move")
        return
    assert advice["layers"] in [row["layers"] for row in entry["feasible"]]
    measured = {
        tuple(row["layers"]): row["objective_ms"] for row in entry["decision"]["table"] if row["status"] == "ok"
    }
    recorded = [place["layers"] for place in entry["placement"]]
    now, other = (measured.get(tuple(layers)) for layers in (recorded, advice["layers"]))
    assert advice["costs"] == "today" or not (now and other) or other["mean"] < now["mean"]


def test_it_reads_like_a_table_and_changes_nothing_on_the_host(usual):
    _result, output, before, after = usual
    assert "Rules of thumb, and what was measured" in output
    assert before == after


def test_check_mode_says_what_it_would_send(controller):
    done = controller.play("--check", playbook=PLAYBOOK)
    assert done.returncode == 0, done.stdout[-4000:]
    assert "Would send to http://127.0.0.1:8080" in done.stdout
    assert "changed=0" in done.stdout


@pytest.fixture
def slowed(host):
    """Give the slow device's CPU to two other jobs as well, and, where the host can do that, a quota too."""
    pid = host.run("systemctl show -p MainPID --value ggml-rpc-server-slow").stdout.strip()
    cpus = host.check_output(f"taskset -pc {pid}").rpartition(":")[2].strip()
    dropin = "/run/systemd/system/ggml-rpc-server-slow.service.d"
    cpu = cpus.partition(",")[0].partition("-")[0]
    quota = (
        f"mkdir -p {dropin} && printf '[Service]\\nCPUQuota=20%%\\n' > {dropin}/quota.conf && systemctl daemon-reload"
    )
    assert host.run(quota).rc == 0
    assert host.run(f"taskset -apc {cpu} {pid}").rc == 0
    for job in ("one", "two"):
        limits = f"-p CPUAffinity={cpu} -p RuntimeMaxSec=180"
        hog = f"systemd-run --collect --unit=hog-{job} {limits} sh -c 'while :; do :; done'"
        assert host.run(hog).rc == 0
    yield
    host.run("systemctl stop hog-one hog-two")
    host.run(f"rm -r {dropin}; systemctl daemon-reload; taskset -apc {cpus} {pid}")


def test_a_device_that_is_held_up_is_named(slowed, diagnose):
    result, output = diagnose()
    named = [one for one in result["findings"] if one["subject"] == "RPC1" and one["kind"] == "waiting"]
    assert named and named[0]["severity"] == "problem", output[-6000:]
    assert "CPU quota of 20 %" in named[0]["detail"] and "ggml-rpc-server-slow.service" in named[0]["cure"]
    assert result["verdict"] == "problem"
    assert result["advice"]["costs"] == "record"  # it is to get its CPU back, not fewer layers
