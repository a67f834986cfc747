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
        # where this machine holds requests up, they count as somebody else's, and the next run may measure
        for _attempt in range(5):
            path = tmp_path_factory.mktemp("diagnosis") / "made" / "diagnosis.json"
            done = controller.play(QUICK, f"--extra-vars=diagnose_report={path}", playbook=PLAYBOOK)
            assert done.returncode == 0, done.stdout[-4000:]
            (result,) = json.loads(path.read_text(encoding="utf-8"))["hosts"].values()
            if all(phase["blocks"] for phase in result["phases"]):
                break
            assert all(phase["blocks"] or phase["overlapped"] for phase in result["phases"]), result["phases"]
        return result, done.stdout

    return run


@pytest.fixture(scope="module")
def usual(diagnose, host):
    """Diagnose the host as it is; also what its processes and files were before and after."""
    since = int(host.run("date +%s").stdout) - 3600
    look = (
        "systemctl show -p MainPID,InvocationID llama-server ggml-rpc-server-fast ggml-rpc-server-slow;"
        f" find /etc /opt/mixed_gpu /var/lib/mixed_gpu -newermt @{since} -type f -printf '%p %T@\\n' | sort"
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


def test_the_time_is_shared_out_among_the_devices_and_their_layers(usual, host):
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    layers = {place["id"]: place["layers"] for place in fact["models"][fact["active"]]["placement"]}
    for kind in ("decode", "prefill"):
        rows = _rows(usual[0], kind)
        assert set(rows) == {name for name, count in layers.items() if count}
        together = sum(row["ms"] for row in rows.values())
        for name, row in rows.items():
            assert row["ms_per_layer"] > 0
            assert row["ms"] == pytest.approx(row["ms_per_layer"] * layers[name], rel=0.01)
            assert row["share_percent"] == pytest.approx(100 * row["ms"] / together, abs=0.2)


def test_the_advice_does_not_contradict_the_record(usual, host):
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    entry = fact["models"][fact["active"]]
    advice = usual[0]["advice"]
    if advice["layers"] is None:
        assert advice["why"] and advice["moves"] == []
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
        limits = f"-p CPUAffinity={cpu} -p RuntimeMaxSec=1800"
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
    # it is to get its CPU back, not fewer layers; the other one may be slower or faster today
    rows = [_rows(result, kind)[FAST] for kind in ("decode", "prefill")]
    if not any(row["verdict"] in ("slower", "faster") for row in rows):
        assert result["advice"]["costs"] == "record"
