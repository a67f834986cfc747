"""The table of a host with two cards, and every reason to stop or to warn, provoked on the host itself."""

from __future__ import annotations

import json
import pathlib
import re
import subprocess
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

HERE = pathlib.Path(__file__).resolve().parents[1]
LIST = "/run/preflight.json"
FACT = "/etc/ansible/facts.d/mixed_gpu.fact"


def play(*options: str, **variables: t.Any) -> subprocess.CompletedProcess[str]:
    """Run the scenario's play once more, with further variables."""
    return subprocess.run(
        [
            "ansible-playbook", f"--inventory={HERE.parents[1]}/inventories/sandbox/hosts.yml",
            f"--extra-vars=@{HERE}/variables.yml", f"--extra-vars={json.dumps(variables)}", *options,
            f"{HERE}/converge.yml",
        ],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=1200, check=False, cwd=HERE,
    )  # fmt: skip


def checks(host, name):
    """What the list on the host says under a name."""
    found = json.loads(host.file(LIST).content_string)
    return [check for check in found if check["name"] == name]


def said(done):
    """A play's output as one line, without what the table puts between the words of a text."""
    return " ".join(re.sub(r'",?\n\s+"\s*', " ", done.stdout).split())


@pytest.fixture
def other_driver(host):
    """Return a function that binds the second card to another kernel driver."""

    def bind(driver):
        link = "/described/sys/devices/pci0000:00/0000:00:02.0/0000:02:00.0/driver"
        assert host.run("ln -sfn /described/sys/bus/pci/drivers/%s %s", driver, link).rc == 0

    yield bind
    bind("nvidia")


def test_the_list(host):
    (cards,) = checks(host, "GPUs")
    assert cards["ok"] and cards["detail"] == "NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 3090; driver 580.95.05"
    assert checks(host, "power supply")[0]["detail"].startswith("steady 1000 W of 1600 W")
    assert checks(host, "systemd")[0]["ok"]
    assert all(check.keys() == {"name", "ok", "severity", "detail", "cure"} for check in checks(host, "other engines"))


def test_running_engines_are_found_and_no_key_is_kept(host):
    found = {check["detail"].split(",")[0]: check for check in checks(host, "other engines")}
    vllm, sglang, like = (found[f"{name}.service"] for name in ("vLLM (vllm", "SGLang (sglang", "vLLM (like"))
    pid = host.run("systemctl show -p MainPID --value vllm.service").stdout.strip()
    assert f"vLLM (vllm.service, pid {pid})" in vllm["detail"] and vllm["severity"] == "warning"
    # nothing is recorded: memory bandwidth decides, and the last stage has the output layer
    assert "VLLM_PP_LAYER_PARTITION=38,42" in vllm["cure"] and "not measured" in vllm["cure"]
    assert "--pipeline-parallel-size 2" in vllm["cure"]
    assert "tensor parallel 2" in sglang["detail"] and "org/coder" in sglang["cure"]
    assert like["ok"] and "on RTX 4090" in like["detail"]
    assert "secret" not in host.file(LIST).content_string


def test_check_mode_shows_the_table_and_no_key(host):
    host.run("rm %s", LIST)
    done = play("--check")
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout[-4000:]
    for words in ("warn other engines", "ok   GPUs", "3090, and what is here:"):
        assert words in done.stdout
    assert "secret" not in done.stdout
    assert not host.file(LIST).exists


def test_all_that_stops_is_said_at_once_and_the_recorded_split_becomes_the_partition(host):
    cards = ("GPU-11111111-2222-3333-4444-555555555555", 45), ("GPU-66666666-7777-8888-9999-aaaaaaaaaaaa", 36)
    entry = {
        "model": {"id": "llama", "path": "/llama.gguf", "sha256": None, "block_count": 80},
        "serving": {},
        "environment": {},
        "devices": [{"id": card, "device": "CUDA0", "backend": "CUDA"} for card, _layers in cards],
        "placement": [{"id": card, "layers": layers} for card, layers in cards],
        "split_mode": "layer",
        "rpc_endpoints": [],
        "decision": {},
        "fingerprint": "0",
        "fingerprint_parts": {"tests": []},
        "campaign": "none",
    }
    text = json.dumps({"schema": 3, "active": "llama-c8192", "models": {"llama-c8192": entry}})
    host.run("mkdir -p /etc/ansible/facts.d && printf %%s %s > %s", text, FACT)
    host.run("systemd-run --unit=squatter python3 -m http.server 8080 --bind 127.0.0.1")
    lab.eventually(lambda: host.run("ss -Hltn 'sport = :8080'").stdout != "")
    try:
        done = play(
            host_preflight_memory_mib=10**9,
            host_preflight_disk=[{"path": "/srv/models", "needed_mib": 10**9}],
            host_preflight_gpus_expected=["RTX 4090", "RTX 4090"],
            llm_models=[{"id": "m", "path": "/srv/none.gguf"}],
            split_tuning_model_id="m",
            gpu_power_psu_watts=850,
            gpu_power_budget_policy="fail",
        )
    finally:
        host.run("rm %s; systemctl stop squatter", FACT)
    assert done.returncode == 2
    (failure,) = re.findall(r"fatal:.*", said(done))
    for sentence in (
        "memory: ", "add memory", "mount a larger disk at /srv/models", "missing is RTX 4090", "to 650 W together",
        "m is expected at /srv/none.gguf", "of squatter.service; stop it, or choose another llama_server_port",
    ):
        assert sentence in failure
    assert "VLLM_PP_LAYER_PARTITION=36,44" in said(done)


def test_a_container_without_its_cards_stops(host, other_driver):
    host.run("rm /dev/nvidiactl")
    other_driver("vfio-pci")
    try:
        done = play(llm_models=[{"id": "m", "url": "https://example.org/m.gguf"}], split_tuning_model_id="m")
    finally:
        host.run("touch /dev/nvidiactl")
    assert done.returncode == 2
    for sentence in (
        "without access to the machine's 2 NVIDIA cards", "reserved for a virtual machine",
        "no sha256 for https://example.org",
    ):
        assert sentence in said(done)


def test_what_a_later_role_repairs_is_a_warning(host, other_driver):
    host.run("mkdir -p /etc/ansible/facts.d && printf broken > %s", FACT)
    host.run("cp /described/nvml.txt /described/kept && echo system.init_error=18 > /described/nvml.txt")
    other_driver("nouveau")
    try:
        done = play()
    finally:
        host.run("mv /described/kept /described/nvml.txt; rm %s", FACT)
    assert done.returncode == 0, done.stdout[-4000:]
    (cards,), (driver,) = checks(host, "GPUs"), checks(host, "card's driver")
    assert (cards["ok"], cards["severity"]) == (False, "warning") and "NVML error 18" in cards["cure"]
    assert (driver["ok"], driver["severity"]) == (False, "warning") and "nouveau holds 0000:02:00.0" in driver["detail"]
    # the cards are still told apart, by what the PCI bus says; a damaged record counts as none
    assert "not measured" in next(check["cure"] for check in checks(host, "other engines") if not check["ok"])


def test_a_word_that_is_no_policy_is_refused():
    done = play(host_preflight_power_budget_policy="perhaps")
    assert done.returncode == 2
    assert "value of host_preflight_power_budget_policy must be one of: warn, fail, ignore" in said(done)
