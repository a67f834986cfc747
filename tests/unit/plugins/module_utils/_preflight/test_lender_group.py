# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import lender_group

LENDER = {"llama_rpc_address": "192.168.1.20"}
LENDERS = {"pc2": LENDER}
BOXES: dict[str, dict[str, t.Any]] = {"box": {}}
DEFAULTS = {"llama_cpp_source": "sdist", "llama_cpp_sdist_version": "0.3.36"}


def look(name: str, *addresses: str, **routes: str) -> dict[str, t.Any]:
    """Return a look at a host."""
    return {
        "machine_id": name, "boot_id": f"boot of {name}", "addresses": ["127.0.0.1", *addresses],
        "routes": {key.replace("_", "."): value for key, value in routes.items()},
    }  # fmt: skip


def listening(host: str) -> dict[str, t.Any]:
    """Return the variables of a lender with a server on an address of its own."""
    return {**LENDER, "llama_rpc_devices": [{"name": "a", "port": 50052, "host": host}]}


LOOKS = {
    "pc2": look("pc2", "192.168.1.20"),
    "box": {**look("box", "192.168.1.5"), "routes": {"192.168.1.20": "192.168.1.5"}},
}


def test_a_group_that_works_has_no_problem_and_the_box_is_the_only_client():
    assert lender_group.problems_of_inventory(LENDERS, BOXES, DEFAULTS) == {}
    assert lender_group.routes("box", LENDERS, BOXES) == ["192.168.1.20"]
    assert lender_group.routes("pc2", LENDERS, BOXES) == []
    assert lender_group.problems_of_hosts(LENDERS, BOXES, LOOKS, (), False) == {}
    hosts = ["box", "pc2"]
    assert lender_group.member("box", LENDERS, BOXES, LOOKS) == {"hosts": hosts, "lenders": ["pc2"], "absent": []}
    of_lender = lender_group.member("pc2", LENDERS, BOXES, LOOKS)
    assert of_lender == {"hosts": hosts, "box": "box", "clients": ["192.168.1.5"]}
    told = lender_group.variables_of({"llama_cpp_source": "git"}, of_lender["clients"])
    assert (told["llama_cpp_source"], told["llama_rpc_allowed_networks"]) == ("git", ["192.168.1.5"])
    assert told["llama_cpp_web_ui"] is False, "nobody opens the chat page of a lender"


def test_each_of_several_boxes_has_its_lenders():
    lenders = {
        "a": {**LENDER, "mixed_gpu_box": "two"},
        "b": {"llama_rpc_address": "10.0.0.2", "mixed_gpu_box": "one"},
        "c": {"llama_rpc_address": "10.0.0.3", "mixed_gpu_box": "one"},
    }
    boxes: dict[str, dict[str, t.Any]] = {"one": {}, "two": {}}
    assert lender_group.problems_of_inventory(lenders, boxes, DEFAULTS) == {}
    assert lender_group.lenders_of("one", lenders, boxes) == ["b", "c"]
    assert lender_group.routes("two", lenders, boxes) == ["192.168.1.20"]


@pytest.mark.parametrize(
    ("lenders", "boxes", "host", "sentence"),
    [
        (LENDERS, {}, "pc2", "pc2 lends its devices, and there is no box: add the host that serves to mixed_gpu."),
        ({"box": LENDER}, BOXES, "box", "box is a box of mixed_gpu and a lender: take it out of one"),
        (LENDERS, {"a": {}, "b": {}}, "pc2", "there are several boxes (a, b): set its mixed_gpu_box."),
        ({"pc2": {**LENDER, "mixed_gpu_box": "x"}}, BOXES, "pc2", "mixed_gpu_box of pc2 is 'x', which is no box;"),
        ({"pc2": {}}, BOXES, "pc2", "pc2 has no llama_rpc_address: set the private address of pc2 that box reaches"),
        ({"pc2": {"llama_rpc_address": "0.0.0.0"}}, BOXES, "pc2", "of pc2 is 0.0.0.0, which means all interfaces;"),
        ({"pc2": {"llama_rpc_address": "1.1.1.1"}}, BOXES, "pc2", "of pc2 is 1.1.1.1, which is public;"),
        ({"pc2": {"llama_rpc_address": "fd00::20"}}, BOXES, "pc2", "of pc2 is fd00::20, which is IPv6, and the RPC"),
        ({"pc2": listening("::")}, BOXES, "pc2", "host of a in llama_rpc_devices of pc2 is ::, which means all"),
        ({"pc2": listening("fd00::2")}, BOXES, "pc2", "host of a in llama_rpc_devices of pc2 is fd00::2, which is IPv"),
        ({"pc2": listening("9.9.9.9")}, BOXES, "pc2", "host of a in llama_rpc_devices of pc2 is 9.9.9.9, which is pub"),
        (
            {"pc2": listening("10.9.0.2")}, BOXES, "pc2",
            "host of a in llama_rpc_devices of pc2 is 10.9.0.2, and llama_rpc_address is 192.168.1.20, which is lent",
        ),
        (
            {"pc2": {**LENDER, "llama_rpc_allowed_networks": ["9.9.9.9"]}}, BOXES, "pc2",
            "llama_rpc_allowed_networks of pc2 has the entry 9.9.9.9/32, which has public addresses; write private",
        ),
        ({"pc2": LENDER, "pc3": LENDER}, BOXES, "pc3", "pc3 and pc2 have the llama_rpc_address 192.168.1.20: list a"),
        (
            {"pc2": {**LENDER, "llama_cpp_sdist_version": "0.3.35"}}, BOXES, "pc2",
            "llama_cpp_sdist_version is 0.3.35 for pc2 and 0.3.36 for box, and all hosts of a group need the same",
        ),
    ],
)  # fmt: skip
def test_an_inventory_that_cannot_work_is_one_sentence_about_one_host(lenders, boxes, host, sentence):
    found = lender_group.problems_of_inventory(lenders, boxes, DEFAULTS)
    assert list(found) == [host] and sentence in found[host] and len(found[host].splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pc2": {**LOOKS["pc2"], "machine_id": "box", "boot_id": "boot of box"}}, "pc2 is the box box itself"),
        ({"pc2": look("pc2", "192.168.1.21")}, "is 192.168.1.20, which is none of its own (192.168.1.21)"),
        ({"box": {**LOOKS["box"], "addresses": ["192.168.1.20"]}}, "192.168.1.20, which is an address of box itself"),
        ({"box": {**LOOKS["box"], "routes": {"192.168.1.20": ""}}}, "box has no route to 192.168.1.20 of pc2: put"),
    ],
)
def test_hosts_that_do_not_fit_together_are_one_sentence(change, sentence):
    found = lender_group.problems_of_hosts(LENDERS, BOXES, {**LOOKS, **change}, (), False)
    assert list(found) == ["pc2", "box"] and sentence in found["pc2"]
    assert found["box"].startswith("box does not go on without pc2, which was refused or does not answer:")


def test_who_else_than_the_box_may_use_a_lender_is_refused_and_the_box_is_not():
    def found(*networks: str) -> dict[str, str]:
        lenders = {"pc2": {**LENDER, "llama_rpc_allowed_networks": list(networks)}}
        assert lender_group.problems_of_inventory(lenders, BOXES, DEFAULTS) == {}
        return lender_group.problems_of_hosts(lenders, BOXES, LOOKS, (), False)

    assert found("192.168.1.5") == found("192.168.1.5/32") == found() == {}
    assert found("192.168.1.5", "192.168.1.0/24")["pc2"] == (
        "llama_rpc_allowed_networks of pc2 has 192.168.1.0/24, and box (192.168.1.5) alone may use pc2: remove"
        " llama_rpc_allowed_networks."
    )


def test_one_host_under_two_names_is_refused_and_a_copied_disk_is_not():
    lenders = {"pc2": LENDER, "pc3": {"llama_rpc_address": "192.168.1.21"}}
    box = {**LOOKS["box"], "routes": {"192.168.1.20": "192.168.1.5", "192.168.1.21": "192.168.1.5"}}
    again = look("pc2", "192.168.1.20", "192.168.1.21")
    looks = {"box": box, "pc2": again, "pc3": again}
    found = lender_group.problems_of_hosts(lenders, BOXES, looks, (), False)
    assert found["pc3"].startswith("pc3 and pc2 are the same host:")
    copied = {**looks, "pc3": {**again, "boot_id": "another"}}
    assert lender_group.problems_of_hosts(lenders, BOXES, copied, (), False) == {}


def test_a_lender_without_its_box_in_the_run_is_refused_and_a_box_without_its_lender_is_not():
    assert "box, the box of pc2, is not part of this run" in lender_group.problems_of_hosts(
        LENDERS, BOXES, {"pc2": LOOKS["pc2"]}, (), False
    )["pc2"]
    alone = {"box": LOOKS["box"]}
    assert lender_group.problems_of_hosts(LENDERS, BOXES, alone, (), False) == {}
    assert lender_group.member("box", LENDERS, BOXES, alone) == {"hosts": ["box"], "lenders": [], "absent": ["pc2"]}


def test_a_box_whose_lender_does_not_answer_goes_no_further_and_others_do():
    lenders = {"pc2": {**LENDER, "mixed_gpu_box": "box"}}
    boxes: dict[str, dict[str, t.Any]] = {"box": {}, "other": {}}
    looks = {"box": LOOKS["box"], "other": look("other", "192.168.1.6")}
    found = lender_group.problems_of_hosts(lenders, boxes, looks, ["box", "other", "pc2"], False)
    assert list(found) == ["box"] and found["box"].endswith("or leave it out with --limit box.")
    assert lender_group.problems_of_hosts(lenders, boxes, looks, ["box", "other"], False) == {}


@pytest.mark.parametrize(
    ("answer", "missing"),
    [
        ({}, "machine_id and no boot_id and no addresses and no routes"),
        ({"msg": "MODULE FAILURE", "rc": 1}, "machine_id and no boot_id and no addresses and no routes"),
        ({**LOOKS["pc2"], "addresses": None}, "addresses"),
        (None, "machine_id and no boot_id and no addresses and no routes"),
    ],
)
def test_a_malformed_answer_is_one_sentence_and_stops_no_other_box(answer, missing):
    lenders = {
        "pc2": {**LENDER, "mixed_gpu_box": "box"},
        "pc3": {"llama_rpc_address": "192.168.1.21", "mixed_gpu_box": "other"},
    }
    boxes: dict[str, dict[str, t.Any]] = {"box": {}, "other": {}}
    other = {**look("other", "192.168.1.6"), "routes": {"192.168.1.21": "192.168.1.6"}}
    looks = {**LOOKS, "pc2": answer, "other": other, "pc3": look("pc3", "192.168.1.21")}
    found = lender_group.problems_of_hosts(lenders, boxes, looks, list(looks), False)
    assert list(found) == ["pc2", "box"]
    assert found["pc2"].startswith(f"The answer of pc2 about its network holds no usable {missing}: run")
    assert found["box"].startswith("box does not go on without pc2")
    assert lender_group.member("pc3", lenders, boxes, looks)["clients"] == ["192.168.1.6"]
    of_box = lender_group.problems_of_hosts(lenders, boxes, {**looks, "pc2": LOOKS["pc2"], "box": answer}, (), False)
    assert list(of_box) == ["pc2", "box"] and of_box["pc2"].startswith("The answer of box about its network")


def test_a_plan_has_the_cards_of_the_lenders_of_its_box_alone():
    lenders = {
        "a": {"mixed_gpu_box": "two", "mixed_gpu_lends": "rtx3090@1gbe"}, "b": {"mixed_gpu_lends": "rtx3060@1gbe"},
        "c": {"mixed_gpu_box": "two"},
    }  # fmt: skip
    assert lender_group.lent_cards("two", lenders, ["one", "two"]) == ["rtx3090@1gbe"]
    assert lender_group.lent_cards("one", lenders, ["one", "two"]) == []
    assert lender_group.lent_cards("one", lenders, ["one"]) == ["rtx3060@1gbe"]
    assert lender_group.lent_cards("localhost", lenders, []) == []


def test_a_lender_takes_what_its_box_builds():
    boxes = {"box": {"llama_cpp_source": "git", "llama_cpp_git_version": "b1"}}
    assert lender_group.problems_of_inventory(LENDERS, boxes, DEFAULTS) == {}
    defaults = dict.fromkeys(lender_group.PINS, "as the role says")
    assert lender_group.pins_of("pc2", LENDERS, boxes, defaults) == {**defaults, **boxes["box"]}


def test_each_pin_is_a_variable_of_the_role():
    root = pathlib.Path(lender_group.__file__).parents[3]
    assert set(lender_group.PINS) <= set(yaml.safe_load((root / "roles/llama_cpp/defaults/main.yml").read_text()))


@pytest.mark.parametrize(
    ("looks", "run", "why"),
    [
        ({"box": LOOKS["box"]}, ["box"], "--limit leaves out pc2; run without it, or with box, pc2 in it."),
        ({"box": LOOKS["box"]}, ["box", "pc2"], "pc2 was refused or does not answer"),
        ({**LOOKS, "pc2": look("pc2", "192.168.1.21")}, ["box", "pc2"], "pc2 was refused or does not answer"),
    ],
)
def test_where_hosts_move_together_a_box_is_refused_without_its_lender(looks, run, why):
    found = lender_group.problems_of_hosts(LENDERS, BOXES, looks, run, together=True)["box"]
    assert why in found and "so nothing was changed" in found
    assert lender_group.problems_of_hosts(LENDERS, BOXES, LOOKS, ["box", "pc2"], together=True) == {}


@pytest.mark.parametrize("together", [False, True])
def test_several_lenders_that_are_away_are_said_in_the_plural(together):
    lenders = {"pc2": LENDER, "pc3": {"llama_rpc_address": "192.168.1.21"}}
    run = ["box", "pc2", "pc3"]
    found = lender_group.problems_of_hosts(lenders, BOXES, {"box": LOOKS["box"]}, run, together)["box"]
    assert "pc2 and pc3" in found and "were refused or do not answer" in found and "wake them" in found


def test_each_box_comes_before_its_lenders_and_who_is_not_there_is_left_out():
    lenders = {
        "a": {**LENDER, "mixed_gpu_box": "two"},
        "b": {"llama_rpc_address": "10.0.0.2", "mixed_gpu_box": "one"},
        "c": {"llama_rpc_address": "10.0.0.3", "mixed_gpu_box": "two"},
    }
    boxes: dict[str, dict[str, t.Any]] = {"one": {}, "two": {}, "three": {}}
    looks = dict.fromkeys(("a", "b", "c", "one", "two"), LOOKS["pc2"])
    assert lender_group.batches(lenders, boxes, looks) == [["one", "b"], ["two", "a", "c"]]
    del looks["c"]
    assert lender_group.batches(lenders, boxes, looks) == [["one", "b"], ["two", "a"]]
