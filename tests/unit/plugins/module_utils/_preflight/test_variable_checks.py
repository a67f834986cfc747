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
        ("SPLIT_TUNING_CONTEXT_SIZE", "split_tuning_context_size"),
        ("Llama_Server_Port", "llama_server_port"),
        ("split-tuning-context-size", "split_tuning_context_size"),
        ("mixed_gpu_engin", "mixed_gpu_engine"),
        ("mixed_gpu_profil", "mixed_gpu_profile"),
        ("mixed_gpu_lender", "mixed_gpu_lenders"),
    ],
)
def test_a_slip_is_refused_with_the_nearest_name(name, meant):
    if meant not in {option for options in SPECS.values() for option in options} | WORDS:
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
        ({"llm_models": None}, "llm_models is null (nothing after the colon), and must be a list: give one"),
        ({"split_tuning_reserve_mib": None}, "split_tuning_reserve_mib is null (nothing after the colon), and must"),
        ({"split_tuning_reserve_mib": "1e3"}, "split_tuning_reserve_mib is '1e3', and must be a whole number."),
        ({"split_tuning_reserve_mib": float("inf")}, "split_tuning_reserve_mib is inf, and must be a whole number."),
        ({"split_tuning_reserve_mib": -512}, "split_tuning_reserve_mib is -512, and must be a whole number from 0 to"),
        ({"llama_server_cache_ram_mib": "-2"}, "llama_server_cache_ram_mib is '-2', and must be a whole number from"),
        ({"revalidate_tolerance_percent": float("nan")}, "revalidate_tolerance_percent is nan, and must be a number"),
        ({"llm_models_timeout_seconds": 1e300}, "llm_models_timeout_seconds is 1e+300, and must be a whole number"),
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


@pytest.mark.parametrize(
    ("name", "value", "must"),
    [
        # the planner refuses these as well, after an hour of building
        ("split_tuning_modes", "layer", "be a list (-e takes one as '{split_tuning_modes: [...]}')."),
        ("split_tuning_probe", "y", "be true or false."),
        ("split_tuning_parallel_slots", True, "be a whole number."),
        ("split_tuning_indifference", True, "be a number."),
        # and these would be taken apart into characters, in a unit
        ("gpu_power_before_units", "a.service", "be a list (-e takes one as '{gpu_power_before_units: [...]}')."),
        ("gpu_power_limits_watts", '{"a": 1}', "be a mapping (-e takes one as '{gpu_power_limits_watts: {...}}')."),
    ],
)  # fmt: skip
def test_a_value_that_a_role_would_refuse_or_misread_later_is_refused_now(name, value, must):
    assert problems({name: value}) == [f"{name} is {value!r}, and must {must}"]


def test_a_null_among_the_entries_of_a_list_is_named():
    assert problems({"llm_models": [None, {"id": "a", "url": "file:///a.gguf"}]}) == [
        "llm_models[0] is null (nothing after the dash): remove it."
    ]


def test_a_default_that_follows_a_wrong_variable_is_not_named_beside_it():
    raw = {"llm_models": [None], "host_preflight_models": "{{ llm_models | default([]) }}", "report_chart": "maybe"}
    wrong = problems({"llm_models": [None], "host_preflight_models": [None], "report_chart": "maybe"})
    assert len(wrong) == 3
    told = variable_checks.told_once(wrong, raw)
    assert [said.split()[0] for said in told] == ["llm_models[0]", "report_chart"]


def test_what_a_playbook_gives_a_role_is_named_as_the_playbook_does():
    raw = {"mixed_gpu_owned": "rtx3090", "split_tuning_owned_cards": "{{ mixed_gpu_owned | default([]) }}"}
    assert variable_checks.told_once(problems({"split_tuning_owned_cards": "rtx3090"}), raw) == [
        "mixed_gpu_owned is 'rtx3090', and must be a list (-e takes one as '{mixed_gpu_owned: [...]}')."
    ]


def test_values_as_the_command_line_gives_them_are_taken():
    assert problems({"llama_server_port": "8081", "llama_cpp_cuda_build": "yes"}) == []
    assert problems({"llama_server_cache_ram_mib": "-1"}) == []  # llama.cpp's word for no limit


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


def test_a_variable_that_nobody_sets_is_named_and_what_a_role_sets_is_left_alone():
    missing = {
        "llama_server_api_key": "vault_api_key", "split_tuning_model_path": "llm_models_installed",
        "llama_server_host": "ansible_default_ipv4", "llama_server_alias": "split_tuning_model_id",
    }  # fmt: skip
    needs = "llama_server_api_key needs the variable vault_api_key, which is not set"
    found = variable_checks.undefined(missing, missing, SPECS, WORDS, None)
    assert found == ([f"{needs}: set it, or correct its name."], [])
    assert variable_checks.undefined(missing, missing, SPECS, WORDS, "llama_server") == found
    found = variable_checks.undefined(missing, missing, SPECS, WORDS, "host_preflight")
    assert found == ([], [f"{needs} yet: it has to be before the role llama_server begins."])
    found = variable_checks.undefined(missing, [*missing, "vault_apikey"], SPECS, WORDS, "host_preflight")
    assert found == ([], [f"{needs} yet (vault_apikey is): it has to be before the role llama_server begins."])


def test_what_is_known_of_a_value_is_judged_though_a_part_is_set_later():
    later = variable_checks.LATER
    partly = {"llama_rpc_devices": [{"name": later, "port": "no", "prot": later}, later], "split_tuning_modes": [later]}
    assert variable_checks.problems({}, partly, SPECS, WORDS, partly) == [
        "llama_rpc_devices[0].prot is no option; did you mean port?",
        "llama_rpc_devices[0].port is 'no', and must be a whole number.",
    ]


def test_variables_of_the_play_that_nobody_watches_are_judged_as_those_of_the_inventory():
    inner = {"revalidate_tolerence_percent": 3, "revalidate_keep": "many", "ansible_user": "root", "mine": 1}
    assert problems({"revalidation_timer_variables": inner}) == [
        "In revalidation_timer_variables: revalidate_tolerence_percent is no variable of this collection; did you mean"
        " revalidate_tolerance_percent?",
        "In revalidation_timer_variables: revalidate_keep is 'many', and must be a whole number.",
    ]
    assert problems({"revalidation_timer_variables": {"revalidate_keep": 20, "mine": "{{ other }}"}}) == []
