"""After the site playbook: what is installed, recorded and served."""

from __future__ import annotations

import json
import re

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import probe_stage
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab


def _fact(host):
    return json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)


def _active(host):
    fact = _fact(host)
    return fact["models"][fact["active"]]


def _completion(host, prompt="One, two,"):
    body = json.dumps({"prompt": prompt, "n_predict": 4, "cache_prompt": False, "ignore_eos": True})
    answer = host.run(f"{lab.CURL} --max-time 60 http://127.0.0.1:8080/completion -d %s", body)
    return json.loads(answer.stdout)


def test_the_fact_is_readable_by_all_and_written_by_root(host):
    file = host.file("/etc/ansible/facts.d/mixed_gpu.fact")
    assert (file.user, file.mode) == ("root", 0o644)


def test_every_slot_of_the_model_is_placed(host):
    entry = _active(host)
    assert sum(place["layers"] for place in entry["placement"]) == entry["model"]["block_count"] + 1


def test_the_choice_rests_on_measurements(host):
    entry = _active(host)
    measured = [row for row in entry["decision"]["table"] if row["status"] == "ok"]
    assert len(measured) >= 2
    stored = host.run("ls /var/lib/mixed_gpu/measurements/*.json").stdout.split()
    assert len(stored) >= entry["decision"]["loads_used"] > 0


def test_each_device_was_measured_alone_and_its_rank_follows(host):
    entry = _active(host)
    rows = entry["device_probe"]["devices"]
    assert [device["id"] for device in entry["devices"]] == [row["id"] for row in rows]
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(row["bandwidth_gb_per_s"] > 0 and row["prefill_tokens_per_second"] > 0 for row in rows)
    # which device is the faster one is a matter of what else this machine does meanwhile
    first, second = sorted(rows, key=lambda row: row["decode_ms_per_token"]["median"])
    apart = probe_stage.faster(first, second)
    assert (first["rank"], second["rank"]) == ((1, 2) if apart else (1, 1))
    assert first["bandwidth_gb_per_s"] >= second["bandwidth_gb_per_s"]


def test_the_chosen_split_respects_the_budgets(host):
    entry = _active(host)
    for device, mib in zip(entry["devices"], entry["decision"]["mib"], strict=True):
        assert 0 < mib <= device["budget_mib"]


def test_the_devices_are_two_builds_of_one_source(host):
    fast, slow = (host.file(f"/opt/llama.cpp/{name}").linked_to for name in ("current", "slow"))
    assert fast != slow
    builds = [json.loads(host.file(f"{path}/build.json").content_string) for path in (fast, slow)]
    assert builds[0]["version"] == builds[1]["version"]


def test_the_server_is_told_the_recorded_split(host):
    unit = host.file("/etc/systemd/system/llama-server.service").content_string
    layers = [str(place["layers"]) for place in _active(host)["placement"]]
    assert re.search(rf"-ts[ =]\"?{','.join(layers)}\b", unit)


def test_services_run_and_are_enabled(host):
    for name in ("llama-server", "ggml-rpc-server-fast", "ggml-rpc-server-slow"):
        assert host.service(name).is_running
        assert host.service(name).is_enabled


def test_the_server_listens_on_loopback_only(host):
    assert host.socket("tcp://127.0.0.1:8080").is_listening
    assert not host.socket("tcp://0.0.0.0:8080").is_listening


def test_a_completion_is_real(host):
    timings = _completion(host)["timings"]
    assert timings["predicted_n"] == 4
    assert timings["prompt_n"] > 0


def _status(host, curl, *words):
    return host.run(f"{curl} -o /dev/null -w '%{{http_code}}' --max-time 60 {' '.join(words)}").stdout


def test_the_key_is_the_hosts_own_and_nobody_else_is_answered(host):
    file = host.file(lab.KEY_FILE)
    assert (file.user, file.mode) == ("root", 0o600) and re.fullmatch("[0-9a-f]{64}\n", file.content_string)
    key = file.content_string.strip()
    models = "http://127.0.0.1:8080/v1/models"
    assert _status(host, lab.CURL, models) == "200"
    assert _status(host, "curl -sS", models) == "401"
    # what a web page can send after its name was led to 127.0.0.1
    rebound = ["-H 'Host: evil.example'", "-H 'Origin: http://evil.example'", "-H 'Content-Type: text/plain'"]
    assert _status(host, "curl -sS", *rebound, "-d '{\"content\": \"a\"}'", "http://127.0.0.1:8080/tokenize") == "401"
    assert key not in host.run("ps axeww; journalctl --no-pager -o cat; systemctl show llama-server").stdout


def test_what_llama_server_could_do_beyond_answering_is_shut(host):
    shut = {
        path: _status(host, lab.CURL, *words, f"'http://127.0.0.1:8080{path}'")
        for path, words in {
            "/tools": [], "/cors-proxy?url=http://127.0.0.1": [], "/slots/0?action=save": ["-d '{}'"],
            "/props": ["-d '{}'"], "/models/load": ["-d '{}'"],
        }.items()
    }
    assert set(shut.values()) <= {"403", "404", "501"}, shut


def test_the_unit_may_talk_to_this_host_alone(host):
    show = "systemctl show -p IPAddressAllow -p IPAddressDeny -p User -p DynamicUser llama-server ggml-rpc-server-fast"
    said: dict[str, list[set[str]]] = {}
    for name, _equals, value in (line.partition("=") for line in host.run(show).stdout.splitlines() if line):
        said.setdefault(name, []).append(set(value.split()))  # systemd lists networks in any order
    assert said["DynamicUser"] == [{"yes"}] * 2
    assert said["IPAddressDeny"] == [{"0.0.0.0/0", "::/0"}] * 2
    assert said["IPAddressAllow"] == [{"127.0.0.0/8", "::1/128"}] * 2


def test_the_server_runs_as_nobody_special(host):
    pid = host.run("systemctl show -p MainPID --value llama-server").stdout.strip()
    assert host.file(f"/proc/{pid}").user != "root"


def test_the_sandbox_of_the_unit_is_tight(host):
    report = host.run("systemd-analyze security --no-pager llama-server.service").stdout
    exposure = float(re.search(r"exposure level for llama-server.service: ([\d.]+)", report).group(1))
    assert exposure <= 2.0


def test_nothing_measures_any_more(host):
    assert host.run("systemctl is-active mixed-gpu-lease.service").stdout.strip() != "active"
