# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""systemctl and journalctl are stood in for by programs that print what the real ones printed."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import chat_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_server_info

FIXTURES = pathlib.Path(__file__).parent.parent / "module_utils" / "_llama_cpp" / "fixtures" / "llama_server"
PROPERTIES = """LoadState=loaded
ActiveState={active}
SubState={sub}
MainPID=4711
NRestarts=1
NeedDaemonReload=no
InvocationID=cf83e1357eefb8bdf1542850d66d8007
"""
NOBODY = "http://127.0.0.1:9"  # discard: nothing listens there


@pytest.fixture
def host(tmp_path, monkeypatch):
    """Return a function that sets what systemctl and journalctl say."""

    def program(name, text, rc=0):
        (tmp_path / f"{name}.out").write_text(text)
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\necho \"$@\" > '{tmp_path}/{name}.asked'\ncat '{tmp_path}/{name}.out'\nexit {rc}\n")
        path.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program.kept = str(tmp_path / "kept")
    program.asked = lambda name: (tmp_path / f"{name}.asked").read_text()
    return program


@pytest.fixture
def run(call_module):
    return lambda **arguments: call_module(llama_server_info, {"kept_dir": "/nonexistent/of/nobody", **arguments})


def test_report_of_the_current_start(run, host):
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    host("journalctl", (FIXTURES / "b11312-rpc-20-13.txt").read_text())
    result = run(url=NOBODY)
    assert not result["changed"]
    assert (result["state"], result["pid"], result["automatic_restarts"]) == ("loading", 4711, 1)
    assert result["needs_reload"] is False
    assert not result["settled"]
    assert [device["layers"] for device in result["server"]["devices"]] == [20, 13]
    assert len(result["last_lines"]) == 20
    assert "_SYSTEMD_INVOCATION_ID=cf83e1357eefb8bdf1542850d66d8007" in host.asked("journalctl")
    assert "deviations" not in result


def test_key_file_and_address_are_those_of_the_unit(run, host, tmp_path):
    unit = tmp_path / "llama-server.service"
    command = "ExecStart=/opt/llama-server \\\n    -a x --host 0.0.0.0 --port 8080 --metrics\n"
    unit.write_text(f"[Service]\n{command}LoadCredential=api_key:/etc/mixed_gpu/llama-server.key\n")
    host("journalctl", "")
    host("systemctl", PROPERTIES.format(active="active", sub="running") + f"FragmentPath={unit}\n")
    found = run(url=NOBODY)
    assert (found["api_key_file"], found["bound_to"]) == ("/etc/mixed_gpu/llama-server.key", "0.0.0.0")
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    found = run(url=NOBODY)
    assert (found["api_key_file"], found["bound_to"]) == ("", "")


def test_a_masked_unit_is_stopped(run, host, tmp_path):
    (tmp_path / "llama-server.service").symlink_to("/dev/null")
    host("journalctl", "")
    masked = f"LoadState=masked\nFragmentPath={tmp_path}/llama-server.service\n"
    host("systemctl", PROPERTIES.format(active="inactive", sub="dead") + masked)
    found = run(url=NOBODY)
    assert (found["state"], found["bound_to"], found["settled"]) == ("stopped", "", True)
    # no journal is announced where there is none
    assert found["failure"] == ["llama-server.service is not ready (state stopped after 1 automatic restarts)."]


def test_failed_unit_is_reported_without_waiting(run, host):
    host("systemctl", PROPERTIES.format(active="failed", sub="failed"))
    host("journalctl", "error: invalid argument: --no-such-flag\n")
    result = run(url=NOBODY, wait_seconds=600)
    assert result["state"] == "failed"
    assert result["last_lines"] == ["error: invalid argument: --no-such-flag"]
    assert not result["server"]["complete"]


def test_a_server_that_died_in_each_load_says_so(run, host):
    end = "Result=start-limit-hit\nStartLimitBurst=10\nExecMainCode=1\nExecMainStatus=1\n"
    host("systemctl", PROPERTIES.format(active="failed", sub="failed") + end)
    host("journalctl", "out of memory\n")
    result = run(url=NOBODY)
    assert "ended after each of 10 starts: the last time it ended with exit status 1" in result["reason"]
    first, *more = result["failure"]
    assert first.startswith("llama-server.service is not ready (state failed after 1 automatic restarts). llama-server")
    assert result["reason"] in first and more == ["out of memory"] and result["settled"]


def test_a_load_that_was_repeated_twice_is_not_waited_for(run, host):
    host("journalctl", "")
    said = PROPERTIES.format(active="activating", sub="auto-restart")
    host("systemctl", said)
    assert not run(url=NOBODY)["settled"]
    host("systemctl", said.replace("NRestarts=1", "NRestarts=2"))
    assert run(url=NOBODY)["settled"]


def test_a_template_that_llama_cpp_refuses_is_named(run, host):
    end = "Result=exit-code\nExecMainCode=1\nExecMainStatus=1\n"
    host("systemctl", PROPERTIES.format(active="failed", sub="failed") + end)
    host("journalctl", "init: chat template parsing error:\n---\nError: Jinja Exception: no chats here\n")
    assert "exit status 1" in run(url=NOBODY)["reason"]
    assert "llama.cpp refuses the chat template (no chats here): name the" in run(url=NOBODY)["reason"]
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    assert run(url=NOBODY)["reason"] == ""


def test_what_this_start_was_proved_of_is_returned(run, host):
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    host("journalctl", "")
    assert run(url=NOBODY, kept_dir=host.kept)["chats"] is None
    proved = {"proved": ["a chat"], "unproved": [], "line": "x"}
    chat_record.keep("llama-server.service", host.kept, "cf83e1357eefb8bdf1542850d66d8007", proved)
    assert run(url=NOBODY, kept_dir=host.kept)["chats"]["proved"] == ["a chat"]


def test_a_server_that_is_ready_stays_right_when_its_journal_is_rotated(run, host, monkeypatch):
    monkeypatch.setattr(llama_server_info, "_health", lambda url: 200)
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    host("journalctl", (FIXTURES / "b11312-rpc-20-13.txt").read_text())
    checked = run(url=NOBODY, kept_dir=host.kept, _ansible_check_mode=True)
    assert checked["server"]["complete"] and not pathlib.Path(host.kept).exists()
    before = run(url=NOBODY, kept_dir=host.kept)
    host("journalctl", "a request\n")
    after = run(url=NOBODY, kept_dir=host.kept)
    assert after["server"] == before["server"] and after["server"]["complete"]
    assert after["last_lines"] == ["a request"] and after["reason"] == ""
    assert after["settled"] and after["failure"] == []


def test_unit_that_never_ran_has_no_journal(run, host):
    host("systemctl", "LoadState=not-found\nActiveState=inactive\nSubState=dead\nMainPID=0\nInvocationID=\n")
    host("journalctl", "another unit's lines\n")
    result = run(url=NOBODY)
    assert (result["state"], result["pid"], result["last_lines"]) == ("absent", 0, [])


def test_incomplete_deployment_is_one_sentence(run, host):
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    host("journalctl", (FIXTURES / "b11312-rpc-20-13.txt").read_text())
    result = run(url=NOBODY, deployment={"model": {}})
    assert result["failed"]
    assert "run the tuning play again" in result["msg"]


@pytest.mark.parametrize("program", ["systemctl", "journalctl"])
def test_host_without_an_answer_is_one_sentence(run, host, program):
    host("systemctl", PROPERTIES.format(active="active", sub="running"))
    host("journalctl", "")
    host(program, "", rc=4)
    result = run(url=NOBODY)
    assert result["failed"]
    assert "llama-server.service" in result["msg"]


LENT = {
    "model": {"path": "/m.gguf"}, "split_mode": "layer", "environment": {}, "decision": {},
    "serving": {
        "context_size": 2048, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 128,
        "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1,
    },
    "rpc_endpoints": ["127.0.0.1:50052", "127.0.0.1:50053", "192.168.1.7:50052"],
    "devices": [
        {"id": "192.168.1.7:50052", "device": "RPC2", "backend": "RPC", "description": "x"},
        {"id": "127.0.0.1:50052", "device": "RPC0", "backend": "RPC", "description": "x"},
        {"id": "127.0.0.1:50053", "device": "RPC1", "backend": "RPC", "description": "x"},
    ],
    "placement": [
        {"id": "192.168.1.7:50052", "layers": 11}, {"id": "127.0.0.1:50052", "layers": 11},
        {"id": "127.0.0.1:50053", "layers": 11},
    ],
    "fallbacks": [{
        "absent": ["192.168.1.7"], "rpc_endpoints": ["127.0.0.1:50052", "127.0.0.1:50053"], "context_size": 2048,
        "placement": [{"id": "127.0.0.1:50052", "layers": 20}, {"id": "127.0.0.1:50053", "layers": 13}],
        "mib": [1, 1], "slower_percent": 9.0, "why": "x",
    }],
}  # fmt: skip


def test_a_server_without_its_lender_is_compared_with_what_is_recorded_for_that(run, host, monkeypatch):
    warned = []
    monkeypatch.setattr(llama_server_info.AnsibleModule, "warn", lambda _module, text, **_more: warned.append(text))
    began = "ExecMainStartTimestamp=Sun 2026-11-29 12:30:00 UTC\n"
    host("systemctl", PROPERTIES.format(active="active", sub="running") + began + "StatusText=all lenders answer\n")
    host("journalctl", (FIXTURES / "b11312-rpc-20-13.txt").read_text())
    found = run(url=NOBODY, deployment=LENT)
    assert found["deviations"] and found["without_lenders"] == {"absent": [], "waits": False, "sentence": ""}
    assert warned == []
    status = "StatusText=without 192.168.1.7:50052\n"
    host("systemctl", PROPERTIES.format(active="active", sub="running") + began + status)
    found = run(url=NOBODY, deployment=LENT)
    sentence = "It serves without lender 192.168.1.7 since Sun 2026-11-29 12:30:00 UTC, 9 % slower by the fit."
    assert found["deviations"] == [] and warned == [sentence]
    assert found["without_lenders"] == {"absent": ["192.168.1.7:50052"], "waits": False, "sentence": sentence}


def test_a_server_that_waits_for_its_lender_says_so(run, host):
    host("systemctl", PROPERTIES.format(active="active", sub="running") + "StatusText=waits for 192.168.1.7:50052\n")
    host("journalctl", "")
    found = run(url=NOBODY, deployment=LENT)
    assert (found["state"], found["without_lenders"]["waits"], found["settled"]) == ("loading", True, True)
    assert found["reason"] == "It waits for lender 192.168.1.7: nothing fits without."
