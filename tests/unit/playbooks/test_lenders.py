# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check of a group of lenders, by the real playbook; this machine stands in for every host."""

from __future__ import annotations

import json
import pathlib
import subprocess

import pytest
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def lenders(playbook, tmp_path):
    """Run the playbook over an inventory: lenders(pc2={...}, box={...}) returns the exit status and the output."""

    def _lenders(box=None, **lent):
        local = {"ansible_connection": "local", "ansible_become": False}
        groups = {"mixed_gpu": {"hosts": {"box": {**local, **(box or {})}}}}
        if lent:
            groups["mixed_gpu_lenders"] = {"hosts": {name: {**local, **own} for name, own in lent.items()}}
        inventory = tmp_path / "hosts.yml"
        inventory.write_text(json.dumps(groups))
        return playbook("homelab.mixed_gpu.lenders", inventory=str(inventory))

    return _lenders


def test_without_lenders_nothing_is_done_and_nothing_is_warned_of(lenders):
    status, output = lenders()
    assert status == 0 and "TASK" not in output and "WARNING" not in output, output


def test_a_lender_without_an_address_is_refused_before_anything_runs(lenders):
    status, output = lenders(pc2={})
    assert status != 0 and "pc2 has no llama_rpc_address: set the private address of pc2 that box reaches" in output
    assert output.count("TASK [") == 2 and "box does not go on without pc2, which was refused" in output


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"llama_rpc_address": "9.9.9.9"}, "llama_rpc_address of pc2 is 9.9.9.9, which is public"),
        ({"llama_rpc_address": "fd00::2"}, "llama_rpc_address of pc2 is fd00::2, which is IPv6"),
        (
            {"llama_rpc_devices": [{"name": "a", "port": 50052, "host": "::"}]},
            "host of a in llama_rpc_devices of pc2 is ::, which means all interfaces",
        ),
        (
            {"llama_rpc_devices": [{"name": "a", "port": 50052, "host": "10.9.0.2"}]},
            "host of a in llama_rpc_devices of pc2 is 10.9.0.2, and llama_rpc_address is 10.0.0.2",
        ),
        ({"llama_rpc_allowed_networks": ["9.9.9.0/24"]}, "llama_rpc_allowed_networks of pc2 has the entry 9.9.9.0/24"),
    ],
)
def test_a_lender_that_others_could_reach_is_refused_before_anything_runs(lenders, variables, sentence):
    status, output = lenders(pc2={"llama_rpc_address": "10.0.0.2", **variables})
    assert status != 0 and sentence in output and output.count("TASK [") == 2, output


def test_the_box_itself_is_no_lender(lenders):
    status, output = lenders(pc2={"llama_rpc_address": "10.0.0.2"})
    assert status != 0 and "pc2 is the box box itself: a host's own cards are used as they are" in output, output
    assert "Install llama.cpp" not in output


def test_another_llama_cpp_than_the_box_builds_is_refused(lenders):
    pins = {"llama_cpp_source": "git", "llama_cpp_git_version": "b1"}
    status, output = lenders(box=pins, pc2={"llama_rpc_address": "10.0.0.2", **pins, "llama_cpp_git_version": "b2"})
    assert status != 0 and "llama_cpp_git_version is b2 for pc2 and b1 for box, and all hosts of a group need" in output


def test_hosts_that_fit_together_are_told_what_they_are_in_the_group(playbook, tmp_path):
    """The first run's answers stand in the inventory: this machine is but one host."""
    seen = {
        "box": {"machine_id": "a", "boot_id": "a", "addresses": ["10.0.0.1"], "routes": {"10.0.0.2": "10.0.0.1"}},
        "pc2": {"machine_id": "b", "boot_id": "b", "addresses": ["10.0.0.2"], "routes": {}},
    }
    own = {name: {"ansible_connection": "local", "look": look} for name, look in seen.items()}
    own["pc2"]["llama_rpc_address"] = "10.0.0.2"
    own["box"].update(llama_cpp_source="git", llama_cpp_git_version="b1")
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(json.dumps({"all": {"hosts": own}}))
    *_checks, told = yaml.safe_load((ROOT / "playbooks/tasks/lenders_check.yml").read_text())
    book, kept = tmp_path / "check.yml", str(tmp_path / "{{ inventory_hostname }}.json")
    book.write_text(yaml.safe_dump([{
        "hosts": "all", "gather_facts": False,
        "tasks": [
            {"homelab.mixed_gpu.lender_group": {"lenders": ["pc2"], "boxes": ["box"], "registered": "look"},
             "register": "__lenders_member"},
            told,
            {"ansible.builtin.copy": {"content": "{{ __lenders_member | combine({'told': told}) | to_json }}",
                                      "dest": kept},
             "vars": {"told": {name: f"{{{{ {name} | default(none) }}}}" for name in
                               ("llama_cpp_git_version", "llama_cpp_web_ui", "llama_rpc_allowed_networks")}}},
        ],
    }]))  # fmt: skip
    status, output = playbook(str(book), inventory=str(inventory))
    assert status == 0, output
    box, pc2 = (json.loads((tmp_path / f"{name}.json").read_text()) for name in seen)
    assert (box["lenders"], box["absent"]) == (["pc2"], []) and box["variables"] == {}
    assert (pc2["box"], pc2["clients"]) == ("box", ["10.0.0.1"])
    assert pc2["told"] == {
        "llama_cpp_git_version": "b1", "llama_cpp_web_ui": False, "llama_rpc_allowed_networks": ["10.0.0.1"]
    }  # fmt: skip
    status, output = playbook(str(book), "--limit=pc2", inventory=str(inventory))
    assert status != 0 and "box, the box of pc2, is not part of this run" in output


def test_the_look_reads_this_machine(playbook, tmp_path):
    book = tmp_path / "look.yml"
    book.write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False,
        "tasks": [
            {"homelab.mixed_gpu.network_info": {"routes_to": ["127.0.0.1", "not-an-address"]}, "register": "found"},
            {"ansible.builtin.copy": {"content": "{{ found | to_json }}", "dest": str(tmp_path / "found.json")}},
        ],
    }]))  # fmt: skip
    status, output = playbook(str(book))
    assert status == 0, output
    found = json.loads((tmp_path / "found.json").read_text())
    said = subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout
    assert sorted(found["addresses"]) == sorted(
        entry["local"] for link in json.loads(said) for entry in link["addr_info"]
    )
    assert found["routes"] == {"127.0.0.1": "127.0.0.1", "not-an-address": ""} and found["boot_id"]
