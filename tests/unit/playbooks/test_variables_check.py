# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The variables of the roles are judged on the controller, by the first task of a play."""

from __future__ import annotations

import json

import pytest

PLAY = [
    {
        "hosts": "localhost",
        "connection": "local",
        "gather_facts": False,
        "roles": [{"role": "homelab.mixed_gpu.host_preflight"}],
    }
]


def test_a_value_that_a_unit_cannot_hold_ends_the_first_play_by_its_name(playbook, tmp_path):
    play = tmp_path / "play.yml"
    play.write_text(json.dumps(PLAY))
    variables = {
        "llama_server_alias": "m\nUser=root",
        "llama_server_api_key": "needle\nneedle",
        "exllamav2_host": "0.0.0.0",
        "exllamav2_api_key": "none",
        "llama_rpc_devices": [{"name": "fast", "port": 50052, "host": "192.168.1.7"}],
        # what a later role sets, and what a lookup cannot find, is left to that role
        "llama_server_after_units": "{{ llama_rpc_units }}",
        "llama_server_cors_origins": "{{ lookup('file', '/nonexistent') }}",
    }
    status, output = playbook(str(play), "-e", json.dumps(variables), "-vvv")
    assert status == 2
    assert "llama_server_alias contains a line break (U+000A)" in output
    assert "llama_server_api_key contains a line break (U+000A); remove it" in output
    assert "exllamav2_host is 0.0.0.0, which other hosts reach, and exllamav2_api_key is none" in output
    assert "The RPC server fast is to bind to 192.168.1.7, which other hosts reach, and llama_rpc_allowed" in output
    assert "Check the host" not in output.split("PLAY RECAP")[0].split("Validate the variables of the roles")[1]
    assert "needle\\nneedle" not in output.replace(json.dumps(variables), "")


def test_slips_wrong_types_and_an_unknown_model_end_the_first_play_together(playbook, tmp_path):
    play = tmp_path / "play.yml"
    play.write_text(json.dumps(PLAY))
    variables = {
        "llama_sever_port": 9000,
        "split_tuning_contxt_size": 4096,
        "split_tuning_parallel_slots": "two",
        "split_tuning_model_id": "sandbox-q4_0",
        "llm_models": [{"id": "sandbox-q8_0", "url": "file:///m.gguf"}],
    }
    status, output = playbook(str(play), "-e", json.dumps(variables))
    assert status == 2
    assert "llama_sever_port is no variable of this collection; did you mean llama_server_port?" in output
    assert "did you mean split_tuning_context_size?" in output
    assert "split_tuning_parallel_slots is 'two', and must be a whole number." in output
    assert "split_tuning_model_id is 'sandbox-q4_0', which is no id of an entry of llm_models (sandbox-q8_0)." in output
    assert len(output.splitlines()) < 30


@pytest.mark.parametrize("book", ["revalidate", "diagnose", "driver_rollback"])
def test_playbooks_that_begin_with_no_preflight_refuse_a_slip_before_they_look_at_the_host(playbook, book):
    status, output = playbook(
        f"homelab.mixed_gpu.{book}", "-i", "localhost,", "-c", "local", "-e", "mixed_gpu_hosts=localhost",
        "-e", "ansible_become=false", "-e", "llama_server_prot=9000",
    )  # fmt: skip
    assert status == 2
    assert "llama_server_prot is no variable of this collection; did you mean llama_server_port?" in output
    assert output.count("TASK [") == 1
