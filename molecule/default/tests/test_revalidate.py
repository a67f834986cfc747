"""Revalidation on the tuned host: what stays, a device that really became slower, what was swapped, replaced or cut."""

from __future__ import annotations

import contextlib
import json
import re

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import explain

SLOW = "127.0.0.1:50053"
UNIT = "/etc/systemd/system/llama-server.service"
HEALTHY = "curl -s -f http://127.0.0.1:8080/health"
# how fast this machine is just now decides nothing
ANY_SPEED = "--extra-vars={revalidate_tolerance_percent: 1000000}"
#: Far below what the brake costs, so that the server's own timings are a suspicion on a noisy machine, too.
TOLERANCE = 20


def _checks(result):
    return {check["name"]: check for check in result["checks"]}


def _baseline(host):
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    return f"/var/lib/mixed_gpu/baselines/{fact['active']}.json"


# Nobody can set a ctime back, so the manifest of a file that was brought back is given the new one.
RENEW = """
import json, os, pathlib, sys
for file in pathlib.Path("/var/lib/mixed_gpu/models").glob("*.json"):
    manifest = json.loads(file.read_text())
    if manifest["path"] == sys.argv[1]:
        file.write_text(json.dumps(manifest | {"ctime_ns": os.stat(sys.argv[1]).st_ctime_ns}))
"""


@contextlib.contextmanager
def _kept(host, path):
    """Bring a file back afterwards, with its times; its manifest believes it, as if nothing had been changed."""
    assert host.run(f"cp -a {path} {path}.kept").rc == 0
    try:
        yield
    finally:
        assert host.run(f"cat {path}.kept > {path} && touch -r {path}.kept {path} && rm {path}.kept").rc == 0
        assert host.run("python3 -c %s %s", RENEW, path).rc == 0


@contextlib.contextmanager
def _braked(host, unit):
    """Let a service run for a tenth of the time: stopped and continued, since a test host need not have CPU quotas."""
    pid = host.run(f"systemctl show -p MainPID --value {unit}").stdout.strip()
    turn = f"kill -STOP {pid}; sleep 0.2; kill -CONT {pid}; sleep 0.02"
    brake = f"systemd-run --quiet --collect --unit=test-brake sh -c 'while :; do {turn}; done'"
    assert host.run(brake).rc == 0
    try:
        yield
    finally:
        host.run("systemctl stop test-brake.service")
        assert host.run(f"kill -CONT {pid}").rc == 0


def test_the_tuning_left_a_baseline_that_the_server_completed(host):
    baseline = json.loads(host.file(_baseline(host)).content_string)
    assert baseline["schema"] == 1 and baseline["reason"] == "tuned"
    # how many there are is a matter of what else the machine did
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    split = [place["layers"] for place in fact["models"][fact["active"]]["placement"]]
    assert len(baseline["loads"]) >= 3 and all(load["layers"] == split for load in baseline["loads"])
    assert {row["id"] for row in baseline["memory"]} == {"127.0.0.1:50052", SLOW}
    assert all(row["loaded_mib"] > 0 for row in baseline["memory"])
    assert all(test["samples"] for test in baseline["served"])
    assert baseline["configuration"]["kernel"] and baseline["smallest_visible_percent"]["decode"] > 0


def test_an_unchanged_host_is_fine_and_stays_as_it_is(host, controller, revalidate):
    before = host.run("systemctl show -p InvocationID llama-server").stdout
    for _run in range(2):
        code, result, output = revalidate(ANY_SPEED)
        assert (code, result["verdict"], result["measured"], result["changes"]) == (0, "ok", False, []), output[-3000:]
        assert re.search(r"changed=0 ", output)
    checked = controller.play("--check", playbook="homelab.mixed_gpu.revalidate")
    assert checked.returncode == 0, checked.stdout[-3000:]
    assert host.run("systemctl show -p InvocationID llama-server").stdout == before
    history = host.run("ls /var/lib/mixed_gpu/revalidations").stdout.split()
    assert len(history) >= 2


def test_a_server_stays_fine_when_its_journal_is_rotated(host, revalidate):
    assert revalidate(ANY_SPEED)[0] == 0  # reads what this start logged, and keeps it
    invocation = host.run("systemctl show -p InvocationID --value llama-server").stdout.strip()
    loads = f"journalctl -q -o cat _SYSTEMD_INVOCATION_ID={invocation} | grep -c 'buffer size'"
    assert int(host.run(loads).stdout) > 0
    assert host.run("journalctl --rotate && sleep 2 && journalctl --vacuum-time=1s").rc == 0
    assert int(host.run(loads).stdout) == 0
    code, result, output = revalidate(ANY_SPEED)
    assert (code, _checks(result)["placement"]["verdict"]) == (0, "ok"), output[-3000:]
    assert host.run("systemctl show -p InvocationID --value llama-server").stdout.strip() == invocation


def test_a_device_that_became_slower_is_found_and_named(host, revalidate, eventually):
    with _braked(host, "ggml-rpc-server-slow.service"):
        code, result, output = revalidate(f"--extra-vars={{revalidate_tolerance_percent: {TOLERANCE}}}")
    assert (code, result["measured"]) == (2, True), output[-4000:]
    # the brake shows whatever the machine does; whether the loads agree enough for a verdict is up to the machine
    speed = _checks(result)["decode"]
    assert speed["change_percent"] > TOLERANCE and speed["loads"] >= 2, speed
    clear = speed["interval_percent"] is not None and speed["interval_percent"][0] > 0
    assert speed["verdict"] == ("regressed" if clear else "inconclusive"), speed
    assert result["verdict"] == "regressed" if clear else result["verdict"] in ("regressed", "inconclusive")
    why = result["explanation"]
    assert (why is not None) == (result["verdict"] == "regressed")
    if why is not None:
        slower = [device["id"] for device in why["devices"] if device["slower_in"]]
        assert SLOW in slower, why
        assert why["cause"] == "one_device" or len(slower) > 1, why
        assert f"RPC1 ({SLOW})" in why["detail"] or why["cause"] == "all_devices", why
        assert result["retune"] == explain.moved_optimum(why["devices"], TOLERANCE)
    # the server is back, and the host as good as before
    eventually(lambda: revalidate(ANY_SPEED)[0] == 0, 900)


def test_layers_on_the_wrong_devices_are_found(host, revalidate, eventually):
    there = "sed -E -i 's/127.0.0.1:50052,127.0.0.1:50053/127.0.0.1:50053,127.0.0.1:50052/' " + UNIT
    restart = "systemctl daemon-reload && systemctl restart llama-server"
    with _kept(host, UNIT):
        assert host.run(f"{there} && {restart}").rc == 0
        eventually(lambda: host.run(HEALTHY).rc == 0)
        code, result, output = revalidate(ANY_SPEED)
    assert host.run(restart).rc == 0
    eventually(lambda: host.run(HEALTHY).rc == 0)
    assert (code, result["verdict"]) == (2, "broken"), output[-3000:]
    placement = _checks(result)["placement"]
    assert placement["verdict"] == "broken" and "127.0.0.1:50053, 127.0.0.1:50052" in placement["detail"]


def test_a_replaced_model_is_found_and_not_measured(host, controller, revalidate):
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    path = fact["models"][fact["active"]]["model"]["path"]
    with _kept(host, path):
        assert host.run(f"echo other >> {path}").rc == 0
        code, result, _output = revalidate("--extra-vars=revalidate_measure=true")
        checked = controller.play("--check", playbook="homelab.mixed_gpu.revalidate")
    assert checked.returncode == 2 and "was replaced" in checked.stdout, checked.stdout[-3000:]
    assert (code, result["verdict"], result["measured"]) == (2, "broken", False)
    assert "was replaced" in _checks(result)["model"]["detail"]


def test_a_truncated_baseline_is_a_clear_error(host, revalidate):
    with _kept(host, _baseline(host)):
        assert host.run(f"truncate -s 900 {_baseline(host)}").rc == 0
        code, result, _output = revalidate()
    assert (code, result["verdict"]) == (2, "broken")
    assert "holds no JSON" in result["summary"] and "accept=true" in result["summary"]


def test_a_new_baseline_is_made_only_when_it_is_asked_for(host, controller, revalidate):
    old = json.loads(host.file(_baseline(host)).content_string)
    code, result, output = revalidate("--extra-vars=accept=true")
    assert (code, result["accepted"], result["measured"]) == (0, True, True), output[-4000:]
    new = json.loads(host.file(_baseline(host)).content_string)
    assert new["reason"] == "accepted" and new["recorded_at"] > old["recorded_at"] and len(new["loads"]) >= 3
    assert new["memory"] and new["served"] and new["device_probe"]["model_path"]
    kept = host.run("ls /var/lib/mixed_gpu/baselines/history").stdout.split()
    assert kept
    # the split counts as measured in this configuration: site has nothing to tune; the served speed belongs to the new
    # record, and the report shows the new probe
    done = controller.play()
    assert done.returncode == 0, done.stdout[-3000:]
    changed = re.findall(r"TASK \[([^\]]+)\] \**\nchanged:", done.stdout)
    again = ("homelab.mixed_gpu.report", "homelab.mixed_gpu.llama_server : measure")
    assert all(task.startswith(again) for task in changed), changed
