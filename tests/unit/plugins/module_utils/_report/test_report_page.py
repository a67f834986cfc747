# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import copy
import json
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import text
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import report_page

FIXTURES = pathlib.Path(__file__).parents[4] / "fixtures/report"


def fixture(name: str) -> dict[str, t.Any]:
    return json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture
def sandbox() -> dict[str, t.Any]:
    return fixture("sandbox")


@pytest.fixture
def mixed() -> dict[str, t.Any]:
    return fixture("mixed_70b")


def test_prefill_tokens_come_from_the_tests_of_the_tuning(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    assert report_page.prompt_tokens_of(entry) == 256
    entry["fingerprint_parts"] = {}
    # then from rate and time of the chosen split, which agree
    assert report_page.prompt_tokens_of(entry) == 256


def test_rates_turn_the_ends_of_an_interval_around() -> None:
    rate = report_page.rate_of({"mean": 20.0, "low": 16.0, "high": 25.0, "predicted": None}, 1)
    assert rate == {"mean": 50.0, "low": 40.0, "high": 62.5, "predicted": None}


def test_the_fitted_line_goes_through_its_predictions(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    for quantity in report_page.QUANTITIES:
        line = dict(report_page.chart_line(entry, quantity, (8, 26)))
        assert sorted(line) == [float(x) for x in range(8, 27)]
        for row in entry["decision"]["table"]:
            timing = report_page.timing_of(entry, row, quantity)
            if timing:
                assert line[float(row["layers"][0])] == pytest.approx(timing["predicted"], rel=0.01)


def test_predictions_that_do_not_follow_the_model_are_joined_instead(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    entry["decision"]["fit"]["decode_ms_per_slot"] = [5.0, 0.1]
    line = report_page.chart_line(entry, "decode", (8, 26))
    assert [x for x, dummy in line] == [10.0, 17.0, 20.0, 23.0]


def test_bands_cover_exactly_what_memory_forbids(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    fits = {row["layers"][0] for row in entry["feasible"]}
    bands = report_page.infeasible_bands(entry, (0, 33))
    for first in range(34):
        barred = any(start < first < end for start, end in bands)
        assert barred == (first not in fits), first


def test_without_a_list_of_feasible_splits_failures_bar_what_lies_beyond(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    del entry["feasible"]
    assert report_page.infeasible_bands(entry, (8, 26)) == [(23.5, 26.5)]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, "It takes 11.2% less time than llama.cpp's default split 17,16 (95% interval 9.8 to 12.6%)."),
        ({"verdict": "no_difference"}, "No difference that matters"),
        ({"verdict": "inconclusive"}, "is not settled"),
        ({"gain_over_default_percent": None}, "was not measured"),
        ({"default_layers": None, "gain_over_default_percent": None}, "does not fit"),
    ],
)
def test_the_gain_in_words(sandbox: dict[str, t.Any], change: dict[str, t.Any], words: str) -> None:
    assert words in report_page.gain_words({"decision": {**sandbox["entry"]["decision"], **change}})


def test_one_device_holds_everything(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    entry["decision"]["layers"] = [33, 0]
    assert report_page.placement_words(entry) == "all 33 layers on RPC0"


PROBED = {
    "devices": [
        {
            "device": "CUDA0", "id": "GPU-11111111-2222-3333-4444-555555555555", "status": "ok", "reason": None,
            "decode_ms_per_token": {"median": 1.5, "low": 1.48, "high": 1.52}, "bandwidth_gb_per_s": 668.2,
            "theoretical_bandwidth_gb_per_s": 1008.1, "prefill_tokens_per_second": 9000.4, "rank": 2,
        },
        {
            "device": "CUDA1", "id": "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa", "status": "ok", "reason": None,
            "decode_ms_per_token": {"median": 1.2, "low": 1.19, "high": 1.21}, "bandwidth_gb_per_s": 835.0,
            "theoretical_bandwidth_gb_per_s": 936.1, "prefill_tokens_per_second": 7000.0, "rank": 1,
        },
    ],
    "warning": "CUDA0 should be the faster card.",
}


def test_each_device_alone_is_shown_the_fastest_first(mixed: dict[str, t.Any]) -> None:
    lines = report_page.summary_lines({**mixed["entry"], "device_probe": PROBED})
    start = next(index for index, line in enumerate(lines) if line.startswith("Each device alone"))
    assert [line.split() for line in lines[start + 2 : start + 5]] == [
        ["CUDA1", "NVIDIA", "GeForce", "RTX", "3090", "1", "1.20", "835", "936", "7000"],
        ["CUDA0", "NVIDIA", "GeForce", "RTX", "4090", "2", "1.50", "668", "1008", "9000"],
        ["Warning:", "CUDA0", "should", "be", "the", "faster", "card."],
    ]
    assert max(map(len, lines)) <= 100


def test_a_device_that_was_not_probed_says_why(mixed: dict[str, t.Any]) -> None:
    nothing = {
        "status": "skipped", "reason": "100 MiB are usable", "decode_ms_per_token": None, "bandwidth_gb_per_s": None,
        "prefill_tokens_per_second": None, "rank": None,
    }
    devices = [{**PROBED["devices"][0], **nothing}, {**PROBED["devices"][1]}]
    lines = report_page.summary_lines({**mixed["entry"], "device_probe": {"devices": devices, "warning": None}})
    assert "  CUDA0 NVIDIA GeForce RTX 4090: skipped, 100 MiB are usable" in lines
    assert not [line for line in lines if "Warning" in line]


def test_records_without_a_probe_show_none(mixed: dict[str, t.Any]) -> None:
    for entry in (mixed["entry"], {**mixed["entry"], "device_probe": None}):
        assert not [line for line in report_page.summary_lines(entry) if "alone" in line]
        assert report_page.report_view(entry)["probe"] == []


def test_memory_left_is_what_is_usable_less_what_is_loaded(sandbox: dict[str, t.Any]) -> None:
    rows = report_page.memory_rows(sandbox["entry"], sandbox["devices"])
    # the budget of 300 MiB bounds it, not the 19876 MiB that are free
    assert [(row["limit_mib"], row["loaded_mib"], row["left_mib"]) for row in rows] == [(300, 283, 17), (300, 141, 159)]
    unknown = report_page.memory_rows(sandbox["entry"], [])
    assert [row["left_mib"] for row in unknown] == [None, None]


def test_the_names_of_the_running_server_find_the_planned_cards(mixed: dict[str, t.Any]) -> None:
    entry, devices = mixed["entry"], mixed["devices"]
    # A third card that is not used stands first: the server, which does not see it, still says CUDA0 and CUDA1.
    entry["devices"].insert(0, {**entry["devices"][0], "device": "CUDA0", "id": "GPU-other"})
    entry["devices"][1]["device"], entry["devices"][2]["device"] = "CUDA1", "CUDA2"
    entry["placement"].insert(0, {"device": "GPU-other", "layers": 0})
    for key in ("layers", "mib", "headroom_mib"):
        entry["decision"][key].insert(0, 0)
    devices[0]["device"], devices[1]["device"] = "CUDA1", "CUDA2"
    devices[0]["id"], devices[1]["id"] = "CUDA1", "CUDA2"
    assert [row["loaded_layers"] for row in report_page.memory_rows(entry, devices)] == [None, 44, 37]


def test_power_is_the_median_of_each_card(mixed: dict[str, t.Any]) -> None:
    drawn = report_page.power_summary(mixed["entry"], mixed["power"])
    assert drawn is not None
    assert [card["watts"] for card in drawn["cards"]] == [265, 251]
    assert drawn["joules_per_token"] == pytest.approx(516 / 17.3)


def test_power_of_a_part_of_the_cards_is_no_power(mixed: dict[str, t.Any]) -> None:
    one = mixed["entry"]["devices"][0]["id"]
    readings = [reading for reading in mixed["power"]["readings"] if reading["uuid"] == one]
    assert report_page.power_summary(mixed["entry"], {"readings": readings, "tests": []}) is None
    assert report_page.power_summary(mixed["entry"], {"readings": [], "tests": []}) is None


CLAIM = {
    "name": "Decode",
    "metric": "decode_tokens_per_second@start",
    "low": 12,
    "high": 18,
    "unit": "tok/s",
    "source": "a guide",
    "model": "70b.*q4_k_m",
    "devices": ["4090", "3090"],
}


@pytest.mark.parametrize(
    ("change", "state", "shown"),
    [
        ({}, "as expected", True),
        ({"low": 18, "high": 20}, "below the expectation", True),
        ({"low": 5, "high": 6}, "above the expectation", True),
        ({"comparable": False, "low": 5, "high": 6}, "not comparable", True),
        ({"metric": "decode_tokens_per_second@nothing"}, "not measured here", False),
        ({"model": "qwen"}, "not applicable: it is about another model than Llama 3.3 70B Instruct", False),
        ({"devices": ["4090", "4090"]}, "not applicable: it is about other cards than these", False),
    ],
)
def test_claims_beside_what_was_measured(
    mixed: dict[str, t.Any], change: dict[str, t.Any], state: str, shown: bool
) -> None:
    tests = report_page.served_tests(mixed["served"])
    (row,) = report_page.expectation_rows(mixed["entry"], tests, [{**CLAIM, **change}])
    assert row["state"] == state
    assert (row["value"] is not None) == shown


@pytest.mark.parametrize("name", ["sandbox", "mixed_70b", "three_devices"])
def test_the_summary_stays_within_its_columns(name: str) -> None:
    data = fixture(name)
    lines = report_page.summary_lines(data["entry"], data["served"], data["devices"])
    assert all(len(line) <= 100 and line.isascii() for line in lines)
    chosen = text.vector(data["entry"]["decision"]["layers"])
    (marked,) = [line for line in lines if line.endswith("chosen")]
    assert marked.split()[0] == chosen


def test_the_summary_names_skipped_tests_and_never_breaks_an_address(sandbox: dict[str, t.Any]) -> None:
    url = "http://127.0.0.1:8080/" + "x" * 120
    lines = report_page.summary_lines(sandbox["entry"], sandbox["served"], sandbox["devices"], url, more=["y" * 120])
    assert "  at_8k: skipped, needs 8064 tokens and a slot of this server has 2048" in lines
    assert any(line.endswith(url) for line in lines)
    assert lines[-1] == "y" * 120


def test_a_served_number_is_preferred_to_one_of_the_bench(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    served = report_page.report_view(entry, sandbox["served"], sandbox["devices"])["tiles"][0]
    bench = report_page.report_view(entry)["tiles"][0]
    assert (served["value"], served["label"].split(",")[0]) == ("48.9", "served decode")
    rate = text.number(entry["decision"]["decode_tokens_per_second"])
    assert (bench["value"], bench["label"]) == (rate, "decode (bench)")


def test_nothing_of_the_input_is_changed(mixed: dict[str, t.Any]) -> None:
    before = copy.deepcopy(mixed)
    report_page.report_view(mixed["entry"], mixed["served"], mixed["devices"], [CLAIM], mixed["power"])
    report_page.summary_lines(mixed["entry"], mixed["served"], mixed["devices"])
    assert mixed == before
