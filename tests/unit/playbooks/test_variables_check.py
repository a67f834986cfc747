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


def test_the_preflight_names_the_variable_of_the_inventory_and_not_the_default_that_follows_it(playbook):
    status, output = playbook(
        "homelab.mixed_gpu.preflight", "-i", "localhost,", "-c", "local", "-e", "mixed_gpu_hosts=localhost",
        "-e", "ansible_become=false", "-e", "llama_server_port=eighty", "-e", '{"llm_models": [null]}',
    )  # fmt: skip
    assert status == 2
    assert "llama_server_port is 'eighty', and must be a whole number." in output
    assert "llm_models[0] is null (nothing after the dash): remove it." in output
    assert "host_preflight_port" not in output and "host_preflight_models" not in output


@pytest.mark.parametrize("book", ["revalidate", "diagnose", "driver_rollback"])
def test_playbooks_that_begin_with_no_preflight_refuse_a_slip_before_they_look_at_the_host(playbook, book):
    status, output = playbook(
        f"homelab.mixed_gpu.{book}", "-i", "localhost,", "-c", "local", "-e", "mixed_gpu_hosts=localhost",
        "-e", "ansible_become=false", "-e", "llama_server_prot=9000",
    )  # fmt: skip
    assert status == 2
    assert "llama_server_prot is no variable of this collection; did you mean llama_server_port?" in output
    assert output.count("TASK [") == 1


def test_a_rollback_of_the_driver_asks_nothing_of_what_is_served(playbook):
    _status, output = playbook(
        "homelab.mixed_gpu.driver_rollback", "-i", "localhost,", "-c", "local", "-e", "mixed_gpu_hosts=localhost",
        "-e", "ansible_become=false", "-e", "split_tuning_model_id=gone", "-e", '{"llm_models": []}', "--check",
    )  # fmt: skip
    assert "split_tuning_model_id" not in output
    assert "TASK [Include the rollback of the role nvidia_driver]" in output


def test_what_a_role_of_the_user_sets_later_is_left_to_the_role_that_uses_it(playbook, tmp_path):
    check = {"homelab.mixed_gpu.variables_check": {}}
    variables = {
        "split_tuning_parallel_slots": "{{ my_slots }}",
        "llama_rpc_devices": [{"name": "fast", "port": "{{ my_port }}"}],
    }
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables}
    book = tmp_path / "play.yml"

    def run(*tasks, **more):
        book.write_text(json.dumps([{**play, "vars": {**variables, **more}, "tasks": list(tasks)}]))
        return playbook(str(book))

    status, output = run(check, {"set_fact": {"my_slots": "2", "my_port": 50052}}, check)
    words = "split_tuning_parallel_slots needs the variable my_slots, which is not set yet"
    assert status == 0 and output.count(words) == 1, output
    status, output = run(check, {"set_fact": {"my_slots": "two", "my_port": 50052}}, check)
    assert status == 2 and "split_tuning_parallel_slots is 'two', and must be a whole number." in output
    wrong = [{"name": "fast", "port": "{{ my_port }}", "environment": 7}]
    status, output = run(check, llama_rpc_devices=wrong)
    assert status == 2 and "llama_rpc_devices[0].environment is 7, and must be a mapping." in output
    status, output = run({"include_role": {"name": "homelab.mixed_gpu.llama_rpc", "tasks_from": "facts"}})
    assert status == 2 and "needs the variable my_port, which is not set: set it" in output
