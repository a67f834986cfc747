# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module in a process of its own, with the real nvidia-ml-py against the stand-in for NVML; a server of this
process answers /slots in the shape of b11312, whose real answers the Molecule scenario `default` has."""

from __future__ import annotations

import threading

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import busy
from ansible_collections.homelab.mixed_gpu.tests import local_server
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import HERE, environment

IDLE = {"id": 0, "n_ctx": 512, "is_processing": False}


class Handler(local_server.Handler):
    def do_GET(self):
        status, body = self.server.answers.pop(0) if len(self.server.answers) > 1 else self.server.answers[0]
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            status, body = 401, {}
        self.reply(status, body)


@pytest.fixture
def server():
    with local_server.serving(Handler, answers=[(200, [IDLE])], key=None) as serving:
        yield serving


@pytest.fixture
def run(library, server, start_module):
    def _run(profile="no_driver", text=None, **arguments):
        variables = environment(library, None if text else profile, text)
        arguments = {"url": server.url, "lease_unit": "", "seconds": 0.6, **arguments}
        return start_module("llama_server_busy_info", arguments, variables)

    return _run


def test_an_idle_server_is_free(run):
    result = run()
    assert (result["busy"], result["source"]) == (False, "slots")
    assert "no slot" in result["why"]


def test_a_request_makes_it_busy(run, server):
    server.answers = [(200, [IDLE, {**IDLE, "id": 1, "is_processing": True, "id_task": 7}])]
    result = run()
    assert (result["busy"], result["source"]) == (True, "slots")
    assert result["why"] == "llama-server is answering 1 request in 2 slots"


def test_a_request_between_two_looks_is_seen_too(run, server):
    server.answers = [(200, [IDLE]), (200, [{**IDLE, "id_task": 12}])]
    result = run(seconds=30)  # it ends with the second look
    assert result["busy"] and "just now" in result["why"]


def test_a_server_that_loads_is_busy(run, server):
    server.answers = [(503, {"error": {"message": "Loading model"}})]
    result = run()
    assert (result["busy"], result["source"]) == (True, "server")
    assert "still loading" in result["why"]


def test_the_key_is_read_from_its_file_and_not_shown(run, server, tmp_path):
    server.key = "a-key-of-the-test"
    (tmp_path / "key").write_text("# keys\na-key-of-the-test\n")
    assert run(api_key_file=str(tmp_path / "key"))["source"] == "slots"
    refused = run(api_key_file=str(tmp_path / "none"))
    assert (refused["busy"], refused["source"]) == (False, "nothing")
    assert "refuses the API key" in refused["why"]


@pytest.mark.parametrize("answer", [(501, {"error": "no slots endpoint"}), (200, {"not": "a list"})])
def test_without_slots_the_cards_tell(run, server, answer):
    server.answers = [answer]
    result = run("under_load")
    assert (result["busy"], result["source"]) == (True, "cards")
    assert "RTX 4090 (GPU-11111111" in result["why"]
    assert run("no_driver")["source"] == "nothing"


def test_cards_that_somebody_else_uses_are_busy_though_the_server_is_idle(run):
    result = run("under_load")
    assert (result["busy"], result["source"]) == (True, "cards")


@pytest.mark.parametrize(("percent", "why"), [(19, None), (20, "A (GPU-1) computed 20 % of the time"), (None, None)])
def test_a_card_is_in_use_from_20_percent_on(percent, why):
    sampled = {"utilization_gpu_percent": None if percent is None else {"mean": percent}}
    assert busy.of_cards([{"id": "GPU-1", "name": "A", "sampled": sampled}]) == why


def test_a_server_that_is_down_and_idle_cards_are_free(run):
    text = (HERE / "profiles" / "rtx4090_rtx3090.txt").read_text().replace("gpu_percent=97", "gpu_percent=7")
    result = run(text=text, url="http://127.0.0.1:9")
    assert (result["busy"], result["source"], result["why"]) == (False, "cards", "no card computes")


def test_a_server_that_does_not_come_to_answer_is_busy(run, server, monkeypatch):
    def slow(_handler):
        threading.Event().wait(3)

    monkeypatch.setattr(Handler, "do_GET", slow)
    result = run(timeout_seconds=1)
    assert (result["busy"], result["source"]) == (True, "server")


def test_a_senseless_time_is_one_sentence(run):
    assert run(seconds=-1)["msg"] == "seconds is -1.0: give 0, or up to an hour (3600)."


def test_a_slot_that_keeps_its_last_task_is_idle():
    look = [{**IDLE, "id_task": 3}]
    assert busy.of_slots([look, look]) is None
