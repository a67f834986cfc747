# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table over many hosts: what comes first, what is said of it, and answers that are none."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import choose_placement
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import fleet_concerns, fleet_rows, fleet_table
from hypothesis import given
from hypothesis import strategies as st

SERVED = {
    "deployment": "d", "served": True, "model": "Llama 3.3 70B Instruct", "engine": "llama.cpp", "split_mode": "layer",
    "split": "44,37", "unit": "llama-server.service",
    "decode_tokens_per_second": 17.6, "prefill_tokens_per_second": 512.0,
    "recorded_at": "2026-11-20T12:00:00Z",
}  # fmt: skip
WATCHDOG = {"watches": True, "restarts": 0, "reason": None, "stuck": [], "failed": []}


def host(**changes: t.Any) -> dict[str, t.Any]:
    """Return the result of a well host, with changes."""
    return {"changed": False, "host": {
        "now": "2026-11-29T12:00:00Z",
        "cards": ["NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3090", "NVIDIA GeForce RTX 3090"],
        "deployments": [SERVED], "lends": 0,
        "verdict": {"verdict": "ok", "accepted": True, "summary": "it holds", "at": "a", "age_hours": 5.0},
        "driver": {"recorded": "580.95", "loaded": "580.95", "installed": "580.95"}, "due": None,
        "build": {"engine": "llama.cpp", "version": "b11312", "key": "ab"}, "collection": "0.1.0", "watchdog": WATCHDOG,
        "units": [{"unit": "llama-server.service", "state": "active", "status": "", "why": ""}],
        "upgrade": None, "reboot_required": False, "wrong_answers": None, "problems": [],
        **changes,
    }}  # fmt: skip


def verdict(name: str, **changes: t.Any) -> dict[str, t.Any]:
    return {"verdict": name, "accepted": False, "summary": "decode: 8 % more", "at": "a", "age_hours": 72.0, **changes}


def unit(state: str, status: str = "", why: str = "", name: str = "llama-server.service") -> list[dict[str, str]]:
    return [{"unit": name, "state": state, "status": status, "why": why}]


def only(result: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return fleet_table.table({"box": result})["report"]["hosts"][0]


def test_a_well_host_is_a_line_with_all_of_it() -> None:
    made = fleet_table.table({"box": host()})
    assert made["report"]["attention"] == []
    assert made["report"]["summary"] == made["lines"][0] == "1 host: 1 well."
    assert made["lines"][1].split() == list(fleet_rows.HEAD)
    assert " ".join(made["lines"][2].split()) == (
        "box RTX 4090 + 2x RTX 3090 Llama 3.3 70B Instruct 17.6 512 ok 5 h 580.95 b11312 0.1.0 ok"
    )


@pytest.mark.parametrize(
    ("changes", "state", "words"),
    [
        ({"verdict": verdict("broken")}, "broken", "broken 3 d ago: decode: 8 % more; run homelab.mixed_gpu.diagnose"),
        ({"verdict": verdict("regressed")}, "attention", "regressed 3 d ago"),
        ({"wrong_answers": "other answers"}, "broken", "wrong answers: other answers"),
        ({"units": unit("failed", why="it failed: x.")}, "broken", "it failed: x"),
        ({"units": unit("activating", why="it ended and is started again")}, "broken", "it ended and is started again"),
        ({"units": unit("inactive", why="it was not started")}, "broken", "it was not started"),
        ({"units": unit("activating", why="it ended", name="ggml-rpc-server-a.service")}, "broken", "it ended"),
        ({"units": unit("inactive")}, "attention", "llama-server.service does not run (inactive)"),
        ({"units": unit("active", choose_placement.WITHOUT + "pc:50052")}, "attention", "without pc:50052; see"),
        ({"units": unit("activating", choose_placement.WAITS + "pc:50052")}, "attention", "waits for pc:50052; see"),
        (
            {"units": unit("active", choose_placement.without("without ", ["a:1"], {"a:1": "protocol 8"}))},
            "attention", "without a:1; lender a:1 protocol 8: run homelab.mixed_gpu.site over both",
        ),
        ({"watchdog": {**WATCHDOG, "stuck": ["x.service"]}}, "broken", "a process of x.service ignores SIGKILL"),
        ({"watchdog": {**WATCHDOG, "restarts": 2, "reason": "hung"}}, "attention", "restarted the server 2 times"),
        ({"watchdog": {**WATCHDOG, "failed": ["llama-server.service"]}}, "attention", "failed within a day"),
        ({"due": {"now": False, "why": "580.105 loads at the next boot", "cure": "boot"}}, "attention", "next boot"),
        ({"reboot_required": True}, "attention", "reboot the host"),
        ({"upgrade": {"why": "The upgrade is under way", "cure": "run upgrade"}}, "attention", "run upgrade"),
        ({"problems": ["x is damaged"]}, "attention", "x is damaged"),
    ],
)  # fmt: skip
def test_what_needs_a_person_is_said(changes: dict[str, t.Any], state: str, words: str) -> None:
    row = only(host(**changes))
    assert row["state"] == state
    assert len(row["concerns"]) == 1 and words in row["concerns"][0]


@pytest.mark.parametrize("changes", [
    {"verdict": verdict("regressed", accepted=True)}, {"verdict": verdict("inconclusive")}, {"verdict": None},
    {"units": unit("active", choose_placement.ALL)}, {"units": None}, {"watchdog": None},
    {"units": unit("deactivating")},
    {"units": unit("inactive", why="it was not started", name="exllama-server.service")},
])  # fmt: skip
def test_what_needs_nobody(changes: dict[str, t.Any]) -> None:
    assert (only(host(**changes))["state"], only(host(**changes))["concerns"]) == ("ok", [])


def test_a_count_that_none_can_be_makes_no_cell_wide() -> None:
    made = fleet_table.table({"box": host(watchdog={**WATCHDOG, "restarts": 10**3000, "reason": "x"})})
    assert max(map(len, made["lines"])) < 500
    assert len(made["report"]["hosts"][0]["concerns"][0]) <= fleet_concerns.MOST_EACH


def test_a_failed_unit_is_said_once() -> None:
    row = only(host(units=unit("failed", why="it failed"), watchdog={**WATCHDOG, "failed": ["llama-server.service"]}))
    assert len(row["concerns"]) == 1


def test_the_worst_comes_first_and_each_host_has_one_sentence() -> None:
    made = fleet_table.table({
        "a": host(), "b": host(deployments=[], verdict=None),
        "c": host(build={"engine": "llama.cpp", "version": "b1", "key": "c"}),
        "d": {"unreachable": True, "msg": "Failed to connect: no route"}, "e": host(reboot_required=True),
        "f": host(verdict=verdict("broken"), reboot_required=True), "g": {"msg": "no python"}, "h": host(), "i": host(),
    })  # fmt: skip
    report = made["report"]
    assert [(row["host"], row["state"]) for row in report["hosts"]] == [
        ("f", "broken"), ("e", "attention"), ("d", "unreachable"), ("g", "unread"), ("c", "differs"), ("b", "untuned"),
        ("a", "ok"), ("h", "ok"), ("i", "ok"),
    ]  # fmt: skip
    assert [sentence[:2] for sentence in report["attention"]] == ["f:", "e:", "d:", "g:", "c:"]
    assert "; packages wait for a reboot" in report["attention"][0]
    assert report["attention"][2] == "d: cannot be reached (Failed to connect: no route)"
    assert report["attention"][4] == "c: the build of llama.cpp is b1, and most hosts have b11312"
    assert report["summary"] == (
        "9 hosts: 1 broken, 1 needing a person, 1 not reached, 1 not understood, 1 differing from the rest,"
        " 1 never tuned, 3 well."
    )
    table = dict(line.split(maxsplit=1) for line in made["lines"][-9:])
    assert "not reached" in table["d"] and "not understood" in table["g"] and "never tuned" in table["b"]


def test_builds_are_compared_within_an_engine() -> None:
    exllama = {"engine": "ExLlamaV3", "version": "1.6.5", "key": "e"}
    made = fleet_table.table({"a": host(), "b": host(), "c": host(build=exllama)})
    assert made["report"]["attention"] == []


def test_without_a_majority_nobody_differs() -> None:
    other = {"recorded": "590", "loaded": "590", "installed": "590"}
    made = fleet_table.table({"a": host(), "b": host(driver=other)})
    assert [row["state"] for row in made["report"]["hosts"]] == ["ok", "ok"]
    assert made["report"]["attention"] == ["No version of the NVIDIA driver is on most hosts: 580.95 on 1, 590 on 1."]


def test_hosts_without_a_version_are_not_counted() -> None:
    none = {"recorded": None, "loaded": "", "installed": None}
    names = {str(number): host(driver=none) for number in range(9)}
    assert fleet_table.table({**names, "a": host(), "b": host()})["report"]["attention"] == []


@pytest.mark.parametrize(
    ("changes", "model"),
    [
        ({"deployments": None, "problems": ["x"]}, "record damaged"),
        ({"deployments": [{**SERVED, "served": False}]}, "nothing served"),
        ({"deployments": [], "lends": 2}, "lends 2 devices"),
        ({"deployments": [SERVED, {**SERVED, "served": False}]}, "Llama 3.3 70B Instruct (+1)"),
    ],
)
def test_the_cell_of_the_model(changes: dict[str, t.Any], model: str) -> None:
    assert fleet_rows.cells(only(host(**changes)))[2] == model


def test_a_lender_is_not_untuned() -> None:
    assert only(host(deployments=[], lends=1))["state"] == "ok"


@pytest.mark.parametrize("field", sorted(host()["host"]))
@pytest.mark.parametrize(
    "value", ["x", 7, [7], {"a": 1}, [None], "\x1b[31m\n" * 9999, float("nan"), 10**400], ids=range(8)
)
def test_no_answer_breaks_the_table(field: str, value: t.Any) -> None:
    made = fleet_table.table({"a": host(), "evil": host(**{field: value}), "b": host()})
    assert len(made["report"]["hosts"]) == 3 and len(made["lines"]) <= 8
    text = "".join(made["lines"])
    assert text.isprintable() and len(text) < 3000
    assert len(json.dumps(made["report"])) < 6000
    assert [row["state"] for row in made["report"]["hosts"] if row["host"] in "ab"] == ["ok", "ok"]


@pytest.mark.parametrize("answer", [None, 7, [], "x", {"host": None}, {"host": []}, {"unreachable": True}, {}])
def test_no_result_breaks_the_table(answer: t.Any) -> None:
    made = fleet_table.table({"a": host(), "\x1b[2Jevil\n" * 999: answer})
    assert "".join(made["lines"]).isprintable()
    assert {row["state"] for row in made["report"]["hosts"]} - {"ok"} <= {"unread", "unreachable"}


@given(st.lists(st.sampled_from(["ok", "broken", "regressed", "inconclusive", "improved"]), max_size=40))
def test_every_host_has_a_row_and_the_counts_add_up(names: list[str]) -> None:
    results = {f"h{number}": host(verdict=verdict(name)) for number, name in enumerate(names)}
    made = fleet_table.table(results)
    assert {row["host"] for row in made["report"]["hosts"]} == set(results)
    assert len(made["report"]["attention"]) == sum(name in ("broken", "regressed") for name in names)
    order = list(fleet_table.STATES)
    states = [order.index(row["state"]) for row in made["report"]["hosts"]]
    assert states == sorted(states)


def test_a_sentence_has_an_end() -> None:
    row = only(host(problems=["p" * 500] * 50))
    made = fleet_table.table({"box": host(problems=["p" * 500] * 50)})
    assert len(row["concerns"]) == fleet_concerns.MOST_CONCERNS
    assert len(made["report"]["attention"][0]) <= fleet_concerns.MOST_CHARACTERS + len("box: ")


def test_hosts_with_long_names_are_told_apart() -> None:
    names = [f"gpu-node-of-rack-2-unit-{number}.machines.example.com" for number in (1, 2)]
    assert [row["host"] for row in fleet_table.table(dict.fromkeys(names, host()))["report"]["hosts"]] == names


def test_the_page_has_the_same_rows() -> None:
    report = fleet_table.table({"a": host(), "b": host(reboot_required=True)})["report"]
    view = fleet_table.view(report)
    assert [row["state"] for row in view["rows"]] == ["attention", "ok"]
    assert all(len(row["cells"]) == len(view["head"]) for row in view["rows"])
