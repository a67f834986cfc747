"""What goes wrong on a real machine: killed servers, reboots, changed and wrong variables, a play that dies."""

from __future__ import annotations

import json
import os
import re
import signal

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

UNIT = "llama-server.service"


def _property(host, name, unit=UNIT):
    return host.run("systemctl show -p %s --value %s", name, unit).stdout.strip()


def _invocation(host):
    return _property(host, "InvocationID")


def _answers(host):
    body = json.dumps({"prompt": "One, two,", "n_predict": 2, "cache_prompt": False, "ignore_eos": True})
    answer = host.run(f"{lab.CURL} --max-time 20 http://127.0.0.1:8080/completion -d %s", body)
    return answer.rc == 0 and '"predicted_n":2' in answer.stdout


def _recap(output):
    return {name: int(count) for name, count in re.findall(r"(ok|changed|failed)=(\d+)", output)}


def test_a_killed_server_comes_back(host, eventually):
    before = _property(host, "MainPID")
    assert host.run("kill -9 %s", before).rc == 0
    eventually(lambda: _property(host, "MainPID") not in ("0", before) and _answers(host))


def test_a_killed_device_takes_the_server_along_and_both_come_back(host, eventually):
    before = _invocation(host)
    assert host.run("kill -9 %s", _property(host, "MainPID", "ggml-rpc-server-slow.service")).rc == 0
    eventually(lambda: _invocation(host) != before and _answers(host))


def test_a_reboot_brings_everything_back(host, controller, eventually):
    controller.reboot()
    eventually(lambda: _answers(host))


@pytest.fixture(scope="module")
def unchanged(controller):
    """Run the site playbook once more, on a host where all of the above happened."""
    return controller.play()


def test_after_all_this_nothing_has_to_be_changed(unchanged):
    assert unchanged.returncode == 0, unchanged.stdout[-4000:]
    assert _recap(unchanged.stdout)["changed"] == 0


def test_a_changed_variable_restarts_the_server_once(host, controller, unchanged):
    before = _invocation(host)
    restarts = "journalctl -u llama-server --no-pager -o cat | grep -c 'Started llama-server'"
    started = int(host.run(restarts).stdout)
    done = controller.play("--extra-vars=llama_server_alias=renamed")
    assert done.returncode == 0, done.stdout[-4000:]
    assert _invocation(host) != before
    assert int(host.run(restarts).stdout) == started + 1
    assert "renamed" in host.run(f"{lab.CURL} http://127.0.0.1:8080/v1/models").stdout


def test_a_wrong_checksum_replaces_nothing(host, controller, unchanged):
    links = "readlink /opt/llama.cpp/current; sha256sum /opt/llama.cpp/current/bin/llama-server"
    before, invocation = host.run(links).stdout, _invocation(host)
    done = controller.play("--extra-vars=llama_cpp_sdist_sha256=" + "0" * 64)
    assert done.returncode == 2
    assert "0" * 64 in done.stdout
    assert host.run(links).stdout == before
    assert _invocation(host) == invocation
    assert _answers(host)


def test_a_play_that_is_killed_while_measuring_lets_the_server_come_back_and_goes_on(
    host, controller, eventually, unchanged
):
    def stored():
        return set(host.run("ls -1 /var/lib/mixed_gpu/measurements | grep json").stdout.split())

    before = stored()
    play = controller.start("--extra-vars={split_tuning_retune: true}")
    try:
        eventually(lambda: len(stored() - before) >= 1 or play.poll() is not None, 900)
    finally:
        if play.poll() is None:
            os.killpg(play.pid, signal.SIGKILL)
        output = play.finish()
    # nobody is left who could release the lease: it ends itself, and the server comes back
    eventually(lambda: _answers(host), 900)
    assert _property(host, "ActiveState", "mixed-gpu-lease.service") == "inactive"
    measured = stored() - before
    assert measured, output[-4000:]
    last = max(host.file(f"/var/lib/mixed_gpu/measurements/{name}").mtime.timestamp() for name in measured)
    began = float(host.run("date -d \"$(systemctl show -p ActiveEnterTimestamp --value %s)\" +%%s", UNIT).stdout)
    assert began + 1 >= last  # nothing was measured beside the server
    written = {name: host.file(f"/var/lib/mixed_gpu/measurements/{name}").mtime for name in measured}
    done = controller.play("--extra-vars={split_tuning_retune: true}")
    assert done.returncode == 0, done.stdout[-4000:]
    assert {name: host.file(f"/var/lib/mixed_gpu/measurements/{name}").mtime for name in measured} == written
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    assert fact["models"][fact["active"]]["decision"]["loads_used"] <= len(stored() - before)
    assert _answers(host)
