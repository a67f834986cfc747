# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import serving_checks

DEVICE = {"name": "fast", "port": 50052}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"llama_server_extra_arguments": ["--chat-template", "a\n\tb"], "llama_server_host": "::1"},
        {"split_tuning_environment": {"X": "a\nb"}, "report_expectations": [{"note": "a\nb"}]},
        {"llama_rpc_devices": [{**DEVICE, "environment": {"X": "a\nb"}, "host": "localhost"}]},
        {"llama_server_host": "0.0.0.0", "exllamav2_host": "fd00::5", "llama_server_port": 8080},
        {"llama_server_api_key": "none", "llama_server_allowed_networks": ["192.168.1.0/24", "fd00::/8"]},
        {
            "llama_rpc_devices": [{**DEVICE, "host": "192.168.1.7"}], "llama_rpc_address": "10.0.0.7",
            "llama_rpc_allowed_networks": ["192.168.1.5"],
        },
    ],
)
def test_what_can_be_used_is_not_mentioned(variables):
    assert serving_checks.problems(variables) == []


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"llama_server_alias": "m\n"}, "llama_server_alias contains a line break (U+000A) in 'm\\n'; remove it"),
        ({"llm_models": [{"id": "m\n"}]}, "llm_models[0].id contains a line break (U+000A)"),
        ({"llm_models": [{"i\x07d": 1}]}, "a key of llm_models[0] contains a control character (U+0007)"),
        (
            {"llama_server_extra_arguments": ["--host", "0.0.0.0"]},
            "llama_server_extra_arguments has --host: set llama_server_host instead.",
        ),
        (
            {"llama_server_extra_arguments": ["-x", "--api-key=secret"]},
            "llama_server_extra_arguments has --api-key: set llama_server_api_key instead.",
        ),
        ({"llama_server_extra_arguments": ["a\r"]}, "llama_server_extra_arguments[0] contains a carriage return"),
        ({"llama_rpc_devices": [{**DEVICE, "environment": {"X\n": "1"}}]}, "a key of llama_rpc_devices[0].environment"),
        ({"split_tuning_environment": {"X": "\u202e"}}, "split_tuning_environment.X contains a control"),
        ({"llama_server_host": "192.168.*"}, "llama_server_host is '192.168.*'; write an IP address"),
        ({"llama_server_host": "127.0.0.1 --host 0.0.0.0"}, "llama_server_host is '127.0.0.1 --host 0.0.0.0'"),
        ({"exllamav2_host": "127.1"}, "exllamav2_host is '127.1'"),
        ({"llama_rpc_devices": [{**DEVICE, "host": ""}]}, "host of fast in llama_rpc_devices is ''"),
        ({"llama_server_host": "0.0.0.0", "llama_server_api_key": "none"}, "llama_server_host is 0.0.0.0, which other"),
        ({"exllamav2_host": "::", "exllamav2_api_key": "none"}, "exllamav2_host is ::, which other hosts reach"),
        ({"llama_server_api_key": "short"}, "llama_server_api_key has 5 characters; choose a key of at least 16"),
        ({"exllamav2_api_key": None}, "exllamav2_api_key is no text"),
        ({"llama_server_allowed_networks": ["lan"]}, "llama_server_allowed_networks has the entry 'lan', which is no"),
        ({"llama_rpc_allowed_networks": ["10.0.0.1/8"]}, "(10.0.0.1/8 has host bits set)"),
        ({"llama_rpc_devices": [{**DEVICE, "host": "0.0.0.0"}]}, "in llama_rpc_devices is 0.0.0.0, which means"),
        ({"llama_rpc_address": "0.0.0.0"}, "llama_rpc_address is 0.0.0.0, which means all interfaces; write"),
        ({"llama_rpc_address": "8.8.8.8"}, "llama_rpc_address is 8.8.8.8, which is public; write the private address"),
        ({"llama_rpc_address": "pc2"}, "llama_rpc_address is 'pc2', which is no IP address; write the private address"),
        ({"llama_rpc_address": "127.0.0.1"}, "llama_rpc_address is 127.0.0.1, which is reached by the host itself"),
        ({"llama_rpc_address": "fd00::7"}, "llama_rpc_address is fd00::7, which is IPv6, and the RPC of llama.cpp"),
        (
            {"llama_rpc_devices": [{**DEVICE, "host": "10.0.0.7"}]},
            "The RPC server fast is to bind to 10.0.0.7, which other hosts reach, and llama_rpc_allowed_networks is",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_one_sentence_with_the_name(variables, sentence):
    found = serving_checks.problems(variables)
    assert found and sentence in found[0] and all(len(text.splitlines()) == 1 for text in found)


def test_a_secret_is_not_shown():
    found = serving_checks.problems({"llama_server_api_key": "needle-needle\n", "llm_models_hub_token": "needle\t"})
    assert len(found) >= 2 and not any("needle" in text for text in found)
