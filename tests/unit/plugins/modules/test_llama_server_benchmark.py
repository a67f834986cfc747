# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server of this process answers as llama-server does, in the shape of recorded answers, and notes its requests."""

from __future__ import annotations

import json
import socket

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_server_benchmark
from ansible_collections.homelab.mixed_gpu.tests import local_server
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml import build

FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
ENTRY = {
    "fingerprint": "f", "campaign": "c", "split_mode": "layer",
    "placement": [{"id": "a:1", "layers": 20}, {"id": "b:2", "layers": 13}],
    "devices": [{"device": "RPC0", "id": "127.0.0.1:1", "backend": "RPC"}],
}  # fmt: skip
CARDS = {
    **ENTRY,
    "devices": [
        {"device": "CUDA0", "id": FAST, "backend": "CUDA"}, {"device": "CUDA1", "id": SLOW, "backend": "CUDA"},
    ],
}  # fmt: skip
CONTEXT = 2048
VOCABULARY = 512
TESTS = [
    {"name": "short", "prompt_tokens": 100, "generated_tokens": 16, "repetitions": 2},
    {"name": "long", "prompt_tokens": 8192, "generated_tokens": 16},
]


class Handler(local_server.Handler):
    def do_GET(self):
        answers = {
            "/props": {"default_generation_settings": {"n_ctx": CONTEXT}, "total_slots": 1},
            "/v1/models": {"object": "list", "data": [{"id": "bench", "meta": {"n_vocab": VOCABULARY}}]},
        }
        self.answer(answers[self.path])

    def do_POST(self):
        body = self.body()
        self.server.asked.append(body)
        count, generated = len(body["prompt"]), body["n_predict"]
        timings = {"cache_n": 0, "prompt_n": count, "prompt_ms": 10.0 * count}
        timings.update(predicted_n=generated, predicted_ms=20.0 * (generated - 1))
        self.answer({"content": "x", "timings": {**timings, **self.server.timings}})

    def answer(self, body):
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            self.send_error(401)
            return
        if self.server.broken:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.reply(200, self.server.raw or body)


def running(key=None, broken=False, raw=None, timings=None):
    return local_server.serving(Handler, asked=[], key=key, broken=broken, raw=raw, timings=timings or {})


@pytest.fixture
def run(call_module):
    return lambda **arguments: call_module(llama_server_benchmark, arguments)


def test_samples_are_those_of_the_server(run):
    with running() as server:
        result = run(url=server.url, tests=TESTS)
    assert result["changed"]
    assert not result["reused"]
    assert result["context_per_slot"] == CONTEXT
    short, too_long = result["tests"]
    assert short["skipped_reason"] is None
    assert short["samples"] == [
        {
            "ttft_ms": 1000.0,
            "prompt_tokens_per_second": 100.0,
            "decode_tokens_per_second": 50.0,
            "generated_tokens": 16,
        }
    ] * 2
    assert too_long["samples"] == []
    assert too_long["skipped_reason"] == "needs 8208 tokens and a slot of this server has 2048"


def test_prompts_are_exact_unique_and_not_cached(run):
    with running() as server:
        run(url=server.url, tests=TESTS)
    warm_up, first, second = server.asked
    assert len(warm_up["prompt"]) < len(first["prompt"]) == len(second["prompt"]) == 100
    assert first["prompt"][:8] != second["prompt"][:8]
    for body in server.asked:
        assert body["cache_prompt"] is False
        assert body["ignore_eos"] is True
        assert all(0 <= token < VOCABULARY for token in body["prompt"])


def test_second_run_measures_nothing(run, tmp_path):
    usual = {"tests": TESTS, "deployment": "d", "state_dir": str(tmp_path / "served")}
    with running() as server:
        first = run(url=server.url, entry=ENTRY, **usual)
        asked = len(server.asked)
        second = run(url=server.url, entry=ENTRY, **usual)
        assert len(server.asked) == asked
        read = run(url=server.url, entry=ENTRY, deployment="d", state_dir=usual["state_dir"], measure=False)
        assert len(server.asked) == asked
    assert (second["changed"], second["reused"]) == (False, True)
    assert second["tests"] == first["tests"] == read["tests"]
    assert second["measured_at"] == first["measured_at"] == read["measured_at"]
    assert (tmp_path / "served" / "d.json").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize(
    "change",
    [
        {"entry": {**ENTRY, "campaign": "another"}}, {"entry": {**ENTRY, "placement": ENTRY["placement"][::-1]}},
        {"tests": TESTS[:1]}, {"tests": [{**TESTS[0], "repetitions": 1}, TESTS[1]]}, {"power_tokens": 16},
    ],
)
def test_another_configuration_or_other_tests_are_measured(run, tmp_path, change):
    usual = {"tests": TESTS, "deployment": "d", "state_dir": str(tmp_path), "entry": ENTRY}
    with running() as server:
        run(url=server.url, **usual)
        second = run(url=server.url, **usual | change)
    assert not second["reused"]
    # the file holds the newest results alone
    assert [path.name for path in tmp_path.iterdir()] == ["d.json"]
    stored = json.loads((tmp_path / "d.json").read_text())
    assert stored["tests"] == second["tests"] and stored["power_tokens"] == change.get("power_tokens", 0)


def test_without_measuring_only_results_of_the_configuration_are_read(run, tmp_path):
    usual = {"deployment": "d", "state_dir": str(tmp_path), "entry": ENTRY, "url": "http://127.0.0.1:1"}
    nothing = run(measure=False, **usual)
    with running() as server:
        run(tests=TESTS, **usual | {"url": server.url})
    other = run(measure=False, **usual | {"entry": {**ENTRY, "fingerprint": "g"}})
    for result in (nothing, other):
        assert (result["changed"], result["reused"], result["tests"], result["power"]) == (False, False, [], None)


def test_check_mode_measures_nothing(run, tmp_path):
    with running() as server:
        arguments = {"url": server.url, "tests": TESTS, "deployment": "d", "entry": ENTRY, "state_dir": str(tmp_path)}
        result = run(_ansible_check_mode=True, **arguments)
        assert server.asked == []
    assert result["changed"]
    assert {test["skipped_reason"] for test in result["tests"]} == {"not measured in check mode"}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 2, "tests": []}', '{"schema": 1}', '{"schema": 1, "te'])
def test_damaged_result_names_file_and_cure(run, tmp_path, text):
    path = tmp_path / "d.json"
    path.write_text(text)
    arguments = {"url": "http://127.0.0.1:1", "deployment": "d", "entry": ENTRY, "state_dir": str(tmp_path)}
    for measure in (True, False):
        result = run(measure=measure, **arguments)
        assert result["failed"]
        assert result["msg"].startswith(f"{path} is damaged") and "remove it" in result["msg"]


def test_power_is_not_read_where_there_are_no_cards(run):
    with running() as server:
        off = run(url=server.url, entry=CARDS)
        rpc = run(url=server.url, entry=ENTRY, power_tokens=16)
        devices = [*CARDS["devices"], {"device": "RPC0", "id": "192.168.1.20:50052", "backend": "RPC"}]
        lent = run(url=server.url, entry={**CARDS, "devices": devices}, power_tokens=16)
    assert off["power"] == {"reason": "switched off (power_tokens is 0)"}
    assert "are not NVIDIA cards" in rpc["power"]["reason"]
    assert "192.168.1.20:50052 is on another host" in lent["power"]["reason"]
    assert all(len(body["prompt"]) != 16 or body["n_predict"] == 4 for body in server.asked)  # the warm-up alone


def test_power_of_the_cards_while_one_long_answer_is_generated(library, start_module):
    text = (build.HERE / "profiles" / "under_load.txt").read_text(encoding="utf-8")
    variables = build.environment(library, None, text)
    with running() as server:
        arguments = {"url": server.url, "entry": CARDS, "power_tokens": 10**6}
        power = start_module("llama_server_benchmark", arguments, variables)["power"]
    assert power["reason"] is None
    assert [card["id"] for card in power["cards"]] == [FAST, SLOW]
    assert power["watts"] == pytest.approx(sum(card["watts"] for card in power["cards"])) and power["watts"] > 0
    assert power["joules_per_token"] == pytest.approx(power["watts"] / 50, rel=0.01)
    assert server.asked[-1]["n_predict"] == CONTEXT - 16


def test_key_is_read_from_its_file(run, tmp_path):
    key_file = tmp_path / "key"
    key_file.write_text("# a comment\nsecret-key\n")
    (tmp_path / "another").write_text("another\n")
    with running(key="secret-key") as server:
        result = run(url=server.url, tests=TESTS[:1], api_key_file=str(key_file))
        refused = run(url=server.url, tests=TESTS[:1], api_key_file=str(tmp_path / "another"))
        without = run(url=server.url, tests=TESTS[:1], api_key_file=str(tmp_path / "absent"))
    assert result["changed"]
    assert "secret-key" not in json.dumps(result)
    for failure in (refused, without):
        assert "refuses the API key" in failure["msg"]


def test_server_that_is_not_there(run):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = run(url=url, tests=TESTS)
    assert result["failed"]
    assert "cannot be reached" in result["msg"]
    assert "is llama-server running?" in result["msg"]


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        ({"broken": True}, "broke off"),
        ({"raw": b"<html>"}, "gave no JSON"),
        ({"raw": b"[]"}, "gave no JSON object"),
        ({"raw": b"{}"}, "does not name the context"),
        ({"timings": {"cache_n": 50, "prompt_n": 50}}, "took 50 from its cache"),
        ({"timings": {"prompt_ms": None}}, "no usable timings"),
    ],
)
def test_unusable_answers_are_one_sentence(run, behaviour, words):
    with running(**behaviour) as server:
        result = run(url=server.url, tests=TESTS)
    assert result["failed"]
    assert words in result["msg"]
    assert "exception" not in result


@pytest.mark.parametrize(
    ("tests", "words"),
    [
        ([{**TESTS[0]}, {**TESTS[0]}], "Duplicate test names: short"),
        ([{**TESTS[0], "prompt_tokens": 0}], "prompt_tokens is 0"),
        ([{**TESTS[0], "repetitions": 0}], "repetitions is 0"),
        ([{**TESTS[0], "generated_tokens": -1}], "generated_tokens is -1"),
    ],
)
def test_unusable_tests_are_refused(run, tests, words):
    result = run(url="http://127.0.0.1:1", tests=tests)
    assert result["failed"]
    assert words in result["msg"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"deployment": "../x", "entry": ENTRY}, "This cannot be stored"),
        ({"deployment": "d"}, "requires the option entry"),
        ({"deployment": "d", "entry": {}}, "is not complete"),
    ],
)
def test_a_deployment_that_cannot_be_stored(run, tmp_path, arguments, words):
    (tmp_path / "d.json").write_text('{"schema": 1, "tests": []}')
    result = run(url="http://127.0.0.1:1", state_dir=str(tmp_path), **arguments)
    assert result["failed"] and words in result["msg"]
