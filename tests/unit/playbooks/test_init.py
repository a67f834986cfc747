# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The first inventory, written by the real playbook and read by the real ansible-inventory."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.action import variables_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import first_inventory, variable_checks

HOST = {"os": {"pretty_name": "Ubuntu 24.04.3 LTS"}, "memory_total_mib": 64000, "nvidia_devices": []}
FAST = {"device_id": "0x2684", "address": "0000:01:00.0", "name": None}
SLOW = {"device_id": "0x2204", "address": "0000:02:00.0", "name": None}
STRANGE = {"device_id": "0xffff", "address": "0000:03:00.0", "name": None}


def variables(devices, **wishes):
    texts = first_inventory.files({**HOST, "nvidia_devices": devices}, first_inventory.Wishes("box", **wishes))
    return yaml.safe_load(texts[first_inventory.VARIABLES])


def listed(directory: pathlib.Path):
    done = subprocess.run(
        [str(pathlib.Path(sys.executable).parent / "ansible-inventory"), "-i", str(directory), "--list"],
        capture_output=True, text=True, check=True, env=os.environ | {"ANSIBLE_CONFIG": ""},
    )  # fmt: skip
    return json.loads(done.stdout)["_meta"]["hostvars"]


def test_the_largest_model_that_fits_is_chosen_and_the_cards_are_expected():
    found = variables([FAST, SLOW])
    assert found["split_tuning_model_id"] == "llama_3_3_70b_instruct_q4_k_m"
    assert found["host_preflight_gpus_expected"] == ["RTX 4090", "RTX 3090"]
    assert found["llama_server_host"] == "127.0.0.1" and found["llama_server_allowed_networks"] == []
    assert "32b" in variables([FAST, SLOW], context_size=65536)["split_tuning_model_id"]
    assert variables([FAST])["split_tuning_model_id"].endswith("q4_k_m") and "70b" not in str(variables([FAST]))


@pytest.mark.parametrize("devices", [[], [FAST, STRANGE]])
def test_of_unknown_cards_the_smallest_model_is_taken_and_the_reason_is_said(devices):
    texts = first_inventory.files({**HOST, "nvidia_devices": devices}, first_inventory.Wishes("box"))
    text = texts[first_inventory.VARIABLES]
    assert "the smallest of the catalogue, because the memory of the cards is not known" in text
    assert ("an unknown card at 0000:03:00.0" in text) == (STRANGE in devices)


@pytest.mark.parametrize(
    ("wishes", "sentence"),
    [
        ({"model": "gpt-9"}, "model is 'gpt-9', which is not in the catalogue (llama_3_3_70b"),
        ({"context_size": 0}, "context_size is 0; it must be at least 1."),
        ({"networks": ("lan",)}, "networks has the entry 'lan', which is no"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_sentence(wishes, sentence):
    with pytest.raises(UserError, match="^" + sentence.replace("(", r"\(")):
        variables([FAST], **wishes)


def test_what_is_written_passes_the_check_of_all_variables():
    found = variables([FAST, SLOW], networks=("192.168.1.0/24",))
    specs = variables_check.specs()
    assert variable_checks.problems(found, found, specs, variables_check.words()) == []
    assert found["llama_server_host"] == "0.0.0.0" and found["llama_server_allowed_networks"] == ["192.168.1.0/24"]


def test_the_playbook_writes_an_inventory_once_and_never_over_it(playbook, tmp_path):
    given = {"box_directory": "box", "box_model": "", "box_networks": "", "box_context_size": "4096"}
    words = ("-e", json.dumps(given))
    status, output = playbook("homelab.mixed_gpu.init", *words, "--check", "--diff")
    assert (status, (tmp_path / "box").exists()) == (0, False), output
    status, output = playbook("homelab.mixed_gpu.init", *words)
    assert status == 0 and f"-i {tmp_path}/box --ask-become-pass homelab.mixed_gpu.site" in output, output
    hosts = listed(tmp_path / "box")
    assert hosts["llm-box"]["split_tuning_context_size"] == 4096 and hosts["llm-box"]["ansible_connection"] == "local"
    path = tmp_path / "box" / first_inventory.VARIABLES
    path.write_text(path.read_text() + "# mine\n")
    (tmp_path / "box/hosts.yml").unlink()
    status, output = playbook("homelab.mixed_gpu.init", *words)
    assert status == 0 and "main.yml was there already and was left as it is." in output
    assert path.read_text().endswith("# mine\n") and (tmp_path / "box/hosts.yml").exists()


def test_the_playbook_writes_the_address_of_another_machine(playbook, tmp_path):
    given = {"box_model": "", "box_networks": "", "box_context_size": "4096", "box_name": "llm-box"}
    given |= {"ansible_user": "you", "mixed_gpu_hosts": "all", "ansible_connection": "local"}
    status, output = playbook("homelab.mixed_gpu.init", "-e", json.dumps(given), inventory="192.0.2.10,")
    assert status == 0, output
    host = yaml.safe_load((tmp_path / "inventories/llm-box/hosts.yml").read_text())["mixed_gpu"]["hosts"]["llm-box"]
    assert host == {"ansible_host": "192.0.2.10", "ansible_user": "you"}


def test_another_machine_gets_its_address_and_user():
    text = first_inventory.files(HOST, first_inventory.Wishes("box", address="192.0.2.10", user="you"))["hosts.yml"]
    host = yaml.safe_load(text)["mixed_gpu"]["hosts"]["box"]
    assert host == {"ansible_host": "192.0.2.10", "ansible_user": "you"}
