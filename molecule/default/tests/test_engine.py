"""One engine at a time: a stand-in for the other engine's unit takes the server's place, and the role takes it back."""

from __future__ import annotations

import json

import pytest

OTHER = "exllama-server.service"
UNIT = f"/etc/systemd/system/{OTHER}"
TEXT = """[Unit]
Description=Stand-in for ExLlama
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def other(host):
    """The other engine serves, and is the one that starts at boot. It knows nothing of llama-server."""
    host.run_expect([0], "printf %s | tee %s", TEXT, UNIT)
    host.run_expect([0], "systemctl daemon-reload")
    host.run_expect([0], "systemctl disable llama-server")
    host.run_expect([0], f"systemctl enable --now {OTHER}")
    yield
    host.run(f"systemctl disable --now {OTHER}; rm -f {UNIT}; systemctl daemon-reload")


def test_starting_one_engine_stops_the_other_and_the_role_switches_back(host, controller, eventually, other):
    assert host.service(OTHER).is_running and not host.service("llama-server").is_running
    done = controller.play(playbook="serve.yml")
    assert done.returncode == 0, done.stdout[-4000:]
    assert host.service("llama-server").is_running and host.service("llama-server").is_enabled
    assert not host.service(OTHER).is_running and not host.service(OTHER).is_enabled
    assert host.file(UNIT).exists
    # what was proved of this start is said in one line, and kept
    said = "llama-server.service answers, as proved: a chat through the template, a tool call, a stream."
    kept = json.loads(host.file("/run/mixed_gpu/chats-llama-server.service.json").content_string)
    assert said in done.stdout and (kept["chats"]["line"], kept["chats"]["unproved"]) == (said, [])
    assert kept["invocation_id"] == host.run("systemctl show -p InvocationID --value llama-server").stdout.strip()
    # back and forth with systemd alone
    host.run_expect([0], f"systemctl start {OTHER}")
    eventually(lambda: not host.service("llama-server").is_running)
    host.run_expect([0], "systemctl start llama-server")
    eventually(lambda: not host.service(OTHER).is_running)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ("mixed_gpu_engine=sglang", "mixed_gpu_engine is 'sglang', and must be llama_cpp or exllamav2."),
        ("mixed_gpu_engine=exllamav2", "exllamav2_model_id names no entry of llm_models"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_before_anything_is_done(host, controller, variables, words):
    done = controller.play(f"--extra-vars={variables}")
    assert done.returncode != 0 and words in " ".join(done.stdout.split()) and "changed=0" in done.stdout
    assert host.service("llama-server").is_running
