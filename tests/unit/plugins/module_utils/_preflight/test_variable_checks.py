# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.action import variables_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import variable_checks

SPECS = variables_check.specs()
WORDS = variables_check.words()
ROOT = pathlib.Path(__file__).parents[5]


def problems(values, names=()):
    return variable_checks.problems(values, names, SPECS, WORDS)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("llama_sever_port", "llama_server_port"),
        ("split_tuning_contxt_size", "split_tuning_context_size"),
        ("split_tuning_kv_type_k", "split_tuning_cache_type_k"),
        ("split_tuning_parallel", "split_tuning_parallel_slots"),
        ("llm_model", "llm_models"),
        ("gpu_powr_psu_watts", "gpu_power_psu_watts"),
        ("report_expectatons", "report_expectations"),
    ],
)
def test_a_slip_is_refused_with_the_nearest_name(name, meant):
    if meant not in {option for options in SPECS.values() for option in options}:
        pytest.fail(f"{meant} is no option any more: choose another example")
    assert problems({}, [name]) == [f"{name} is no variable of this collection; did you mean {meant}?"]


def test_an_unlike_name_of_a_role_is_refused_too():
    (found,) = problems({}, ["llama_server_colour_scheme"])
    assert found.startswith("llama_server_colour_scheme is no variable of the role llama_server;")


@pytest.mark.parametrize(
    "name",
    ["report_email", "upgrade_windows", "llama_swap_port", "ansible_user", "llama_server_report", "llama_server_proof",
     "revalidate_result", "__host_python_requirements", "diagnose_result", "mixed_gpu_engine",
     "vault_llama_server_api_key", "vault_server_watchdog_webhook_url",
     "my_split_tuning_context_size", "report_format", "report_hosts", "report_output", "report_options"],
)  # fmt: skip
def test_names_of_other_people_and_results_of_roles_are_left_alone(name):
    assert problems({}, [name]) == []


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"split_tuning_context_size": "eightk"}, "split_tuning_context_size is 'eightk', and must be"),
        ({"split_tuning_context_size": 0}, "split_tuning_context_size is 0, and must be a number of tokens, or max."),
        ({"split_tuning_device_budget_mib": 22000}, "split_tuning_device_budget_mib is 22000, and must be a mapping."),
        ({"llama_server_log_verbosity": 3}, "llama_server_log_verbosity is 3, and must be one of 4, 5."),
        ({"split_tuning_modes": ["layer", "tenso"]}, "split_tuning_modes is 'tenso', and must be one of layer,"),
        ({"llm_models": [{"id": "a", "sha265": "0"}]}, "llm_models[0].sha265 is no option; did you mean sha256?"),
        ({"llm_models": [{"url": "file:///m.gguf"}]}, "llm_models[0] lacks id, which is required."),
        ({"llama_rpc_devices": [{"name": "a", "port": "x"}]}, "llama_rpc_devices[0].port is 'x', and must be a whole"),
        ({"llama_server_api_key": {"key": []}}, "llama_server_api_key is a secret, and must be text."),
        (
            {"split_tuning_model_id": "b", "llm_models": [{"id": "a"}]},
            "split_tuning_model_id is 'b', which is no id of an entry of llm_models (a).",
        ),
    ],
)  # fmt: skip
def test_what_no_role_can_use_is_one_sentence(values, sentence):
    found = problems(values)
    assert len(found) == 1 and found[0].startswith(sentence)


def test_values_as_the_command_line_gives_them_are_taken():
    assert problems({"llama_server_port": "8081", "llama_cpp_cuda_build": "yes", "llm_models": None}) == []


def test_the_model_of_the_other_engine_is_no_matter_of_exllama():
    values = {"split_tuning_model_id": "b", "exllamav2_model_id": "a", "llm_models": [{"id": "a"}]}
    assert problems({**values, "mixed_gpu_engine": "exllamav2"}) == []
    assert len(problems({**values, "mixed_gpu_engine": "llama_cpp"})) == 1


def test_a_model_with_a_path_of_its_own_needs_no_entry():
    values = {"split_tuning_model_id": "b", "llm_models": [{"id": "a"}], "split_tuning_model_path": "/srv/b.gguf"}
    assert problems(values) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("inventories/*/group_vars/**/*.yml")), ids=lambda path: str(path))
def test_the_inventories_of_the_collection_are_right(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    plain = {name: value for name, value in values.items() if "{{" not in str(value)}
    assert problems(plain, values) == []


@pytest.mark.parametrize("path", sorted(ROOT.glob("roles/*/defaults/main.yml")), ids=lambda path: path.parts[-3])
def test_the_defaults_of_the_roles_are_right(path):
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert problems({name: value for name, value in values.items() if "{{" not in str(value)}, values) == []
