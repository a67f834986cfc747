"""The role on a host without a card: what it made, what it refuses and leaves alone, and how it goes back."""

from __future__ import annotations

import json
import os
import pathlib
import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

STAND_IN = pathlib.Path(os.environ["MOLECULE_EPHEMERAL_DIRECTORY"]) / "stand_in"
FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
UNIT, ROOT = "exllama-server.service", "/opt/exllama/v2"
KEY = "a-key-for-molecule"
ASK = "curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:5000/v1/model"


@pytest.fixture(scope="module")
def controller():
    return lab.Controller("exllamav2", "converge.yml")


def commit(number):
    return (STAND_IN / number).read_text(encoding="utf-8")


def ran(host, command):
    done = host.run(command)
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout.strip()


def served(host):
    return json.loads(ran(host, f"curl -s -H 'Authorization: Bearer {KEY}' http://127.0.0.1:5000/v1/model"))


def changed(done):
    assert done.returncode == 0, done.stdout[-4000:]
    return int(re.search(r"changed=(\d+)", done.stdout)[1])


def test_the_release_is_what_was_pinned(host):
    release = ran(host, f"readlink -f {ROOT}/current")
    assert ran(host, f"git -c safe.directory='*' -C {release}/tabbyapi rev-parse HEAD") == commit("first")
    record = json.loads(host.file(f"{release}/build.json").content_string)
    assert record["key"][:12] in release and record["server"]["commit"] == commit("first")
    # through the link that other roles are given
    assert ran(
        host, f"cd / && {ROOT}/venv/bin/python -c 'import exllamav2_ext; print(exllamav2_ext.__file__)'"
    ).startswith(ROOT)


def test_the_recorded_split_reaches_the_server_in_the_order_of_the_cards(host):
    settings = json.loads(host.file("/etc/mixed_gpu/exllama-server.yml").content_string)["model"]
    assert (settings["gpu_split"], settings["gpu_split_auto"]) == ([20.5, 17.25], False)
    assert f"CUDA_VISIBLE_DEVICES={FAST},{SLOW}" in ran(host, f"systemctl show -p Environment {UNIT}")


def test_keys_and_settings_are_for_nobody_else(host):
    for path in ("/etc/mixed_gpu/exllama-server.yml", "/etc/mixed_gpu/exllama-server.key"):
        file = host.file(path)
        assert (file.user, file.mode) == ("root", 0o600), path
    said = ran(host, f"journalctl --no-pager -u {UNIT}; cat /proc/[0-9]*/cmdline | tr '\\0' ' '; systemctl show {UNIT}")
    assert KEY not in said and "Your admin key is: (not shown)" in said
    assert ran(host, "ls /run/exllama-server").split() == [
        "api_tokens.yml",
        "config.yml",
        "sampler_overrides",
        "templates",
    ]
    admin = json.loads(host.file("/run/exllama-server/api_tokens.yml").content_string)["admin_key"]
    assert len(admin) == 64 and admin not in said
    assert ran(host, ASK) == "401" and ran(host, f"{ASK} -H 'Authorization: Bearer {KEY}'") == "200"


def test_a_chat_and_a_stream_are_proved_and_a_tool_call_is_not(host):
    kept = json.loads(host.file("/run/mixed_gpu/chats-exllama-server.service.json").content_string)
    assert kept["invocation_id"] == ran(host, "systemctl show -p InvocationID --value exllama-server").strip()
    assert kept["chats"]["proved"] == ["a chat through the template", "a stream"]
    assert [said for said in kept["chats"]["unproved"] if "TabbyAPI" in said] == kept["chats"]["unproved"] != []


def test_the_unit_is_valid_and_hardened(host):
    assert ran(host, f"systemd-analyze verify /etc/systemd/system/{UNIT} 2>&1 | grep {UNIT} || true") == ""
    level = ran(host, f"systemd-analyze --no-pager security {UNIT} | tail -n 1")
    assert float(re.search(r"service: ([0-9.]+)", level)[1]) <= 1.4, level
    running = ran(host, f"ps -o user= -p $(systemctl show -p MainPID --value {UNIT})")
    assert running not in ("root", "nobody")


def test_one_engine_at_a_time_and_only_one_at_boot(host):
    assert host.run("systemctl is-enabled llama-server").stdout.strip() == "disabled"
    ran(host, "systemctl start llama-server")
    lab.eventually(lambda: host.run(f"systemctl is-active {UNIT}").stdout.strip() == "inactive")
    ran(host, f"systemctl start {UNIT}")
    lab.eventually(lambda: host.run("systemctl is-active llama-server").stdout.strip() == "inactive")
    lab.eventually(lambda: host.run(ASK).stdout == "401")


# what the modules refuse is in tests/unit; some of theirs show that the role passes it on
REFUSALS = {
    "reachable without a key": (
        {"exllamav2_host": "0.0.0.0", "exllamav2_api_key": "none"}, "hosts reach, and exllamav2_api_key is none",
    ),
    "a short key": ({"exllamav2_api_key": "another-key"}, "exllamav2_api_key has 11 characters"),
    "a network that is none": ({"exllamav2_allowed_networks": ["lan"]}, "has the entry 'lan', which is no network"),
    "a cache of the other engine": ({"exllamav2_cache_mode": "8,8"}, "ExLlamaV2 has no cache mode '8,8': it has"),
    "a context between steps": ({"exllamav2_context_size": 1000}, "is 1000: ExLlama wants a multiple of 256"),
    "a hidden model": ({"exllamav2_model_path": "/home/me/model"}, "does not see .* move the model, to /srv/models"),
    "a model that is none": ({"exllamav2_model_path": "/srv/models"}, "must be a folder with a config.json"),
    "no nvcc": ({"exllamav2_build_extension": True}, "there is no nvcc; run the role cuda_toolkit"),
    "somebody else's port": ({"exllamav2_port": 9418}, "Port 9418 is taken by .*git-daemon.service"),
    "a commit that is not there": ({"exllamav2_server_commit": "0" * 40}, "correct exllamav2_server_git_url or"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_is_one_sentence_and_leaves_the_server_alone(host, controller, case):
    variables, words = REFUSALS[case]
    invocation = ran(host, f"systemctl show -p InvocationID {UNIT}")
    done = controller.play(f"--extra-vars={json.dumps(variables)}")
    assert done.returncode == 2, done.stdout[-3000:]
    assert re.search(words, " ".join(done.stdout.split())), done.stdout[-3000:]
    assert ran(host, f"systemctl show -p InvocationID {UNIT}") == invocation
    assert served(host)["commit"] == 1


def test_an_nvcc_of_another_cuda_is_refused_with_what_works(controller):
    """With the role's own requirements, whose PyTorch is built with CUDA 13.0; nothing is fetched before that."""
    variables = {
        "exllamav2_requirements_file": "",
        "exllamav2_build_extension": True,
        "exllamav2_cuda_root": "/opt/cuda-12.8",
    }
    done = controller.play(f"--extra-vars={json.dumps(variables)}")
    text = " ".join(done.stdout.split())
    assert (
        done.returncode == 2
        and "built with CUDA 13.0 and nvcc is 12.8" in text
        and "cuda_toolkit_source wheels" in text
    )


def test_without_a_driver_it_says_so_also_in_check_mode(host, controller):
    ran(host, "mv /usr/local/lib/libnvidia-ml.so.1 /root/ && ldconfig")
    try:
        done = controller.play()
        assert done.returncode == 2 and "computes on NVIDIA cards only, and their driver does not answer" in done.stdout
        foretold = controller.play("--check")
        assert foretold.returncode == 0, foretold.stdout[-3000:]
        assert "will be served is unknown yet: ExLlama computes on NVIDIA" in " ".join(foretold.stdout.split())
    finally:
        ran(host, "mv /root/libnvidia-ml.so.1 /usr/local/lib/ && ldconfig")


def test_another_commit_is_switched_to_and_back_without_making_anything_again(host, controller):
    first = ran(host, f"readlink {ROOT}/current")
    made = ran(host, f"stat -c %Y {ROOT}/{first}/build.json")
    assert changed(controller.play(f"--extra-vars=exllamav2_server_commit={commit('second')}")) > 0
    assert served(host)["commit"] == 2 and ran(host, f"readlink {ROOT}/current") != first
    back = controller.play()
    assert changed(back) > 0 and served(host)["commit"] == 1
    assert ran(host, f"stat -c %Y {ROOT}/{first}/build.json") == made and "making the environment" not in back.stdout


def test_a_restart_that_a_killed_play_left_out_is_made_up_for(host, controller):
    before = ran(host, f"systemctl show -p InvocationID {UNIT}")
    ran(host, "sleep 1; touch /etc/mixed_gpu/exllama-server.key")
    assert changed(controller.play()) > 0
    assert ran(host, f"systemctl show -p InvocationID {UNIT}") != before


def test_verify_alone_notices_a_server_that_has_another_key(host, controller, tmp_path):
    playbook = tmp_path / "verify.yml"
    variables = {"exllamav2_model_path": "/srv/models/tiny-exl2"}
    play = {"hosts": "mixed_gpu", "gather_facts": False, "vars": variables, "tasks": [
        {"ansible.builtin.import_role": {"name": "homelab.mixed_gpu.exllamav2", "tasks_from": "verify"}}]}  # fmt: skip
    playbook.write_text(json.dumps([play]), encoding="utf-8")
    assert changed(controller.play(playbook=str(playbook))) == 0
    done = controller.play("--extra-vars=exllamav2_api_key=another-key-for-molecule", playbook=str(playbook))
    assert done.returncode == 2 and "started with another key" in " ".join(done.stdout.split())
