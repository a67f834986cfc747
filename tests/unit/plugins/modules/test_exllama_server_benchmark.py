# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""exllama_server_benchmark against a server with TabbyAPI's manners."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import served_times
from ansible_collections.homelab.mixed_gpu.plugins.modules import exllama_server_benchmark
from ansible_collections.homelab.mixed_gpu.tests import local_server

TESTS = [
    {"name": "prompt", "prompt_tokens": 64, "generated_tokens": 1, "repetitions": 2},
    {"name": "generation", "prompt_tokens": 16, "generated_tokens": 8, "repetitions": 3},
]


class Handler(local_server.Handler):
    def do_POST(self):
        body = self.body()
        self.server.asked.append(body)
        right = self.headers.get("Authorization") == "Bearer a-key-for-tests"
        written = body["max_tokens"] - self.server.less
        usage = {"prompt_tokens": len(body["prompt"].split()), "completion_tokens": written}
        self.reply(200 if right else 401, {"choices": [{"text": " 21, 22"}], "usage": usage})


@pytest.fixture
def run(tmp_path, call_module):
    (tmp_path / "key").write_text("a-key-for-tests\n")
    with local_server.serving(Handler, asked=[], less=0) as server:

        def _run(less=0, **arguments):
            server.less = less
            given = {"url": server.url, "api_key_file": str(tmp_path / "key"), "tests": TESTS, **arguments}
            return call_module(exllama_server_benchmark, given)

        _run.asked = server.asked
        yield _run


def test_each_test_has_its_samples_and_the_question_its_answer(run):
    found = run()
    assert not found["changed"] and [len(test["samples"]) for test in found["tests"]] == [2, 3]
    prompt, generation = (test["samples"][0] for test in found["tests"])
    assert prompt["prompt_tokens_per_second"] > 0 and prompt["decode_tokens_per_second"] is None
    assert generation["decode_tokens_per_second"] > 0
    assert found["answer"] == " 21, 22" and "contention" in found
    prompts = [body["prompt"] for body in run.asked]
    assert len(set(prompts)) == len(prompts) and prompts[-1] == served_times.QUESTION
    assert all(body["min_tokens"] == body["max_tokens"] and body["temperature"] == 0 for body in run.asked)


def test_check_mode_asks_nothing(run):
    assert run(_ansible_check_mode=True)["changed"] is False and not run.asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"less": 4}, "Test warm-up: the server wrote 0 tokens"),
        ({"api_key_file": "/nowhere"}, "refuses the API key"),
        ({"url": "http://127.0.0.1:9"}, "is exllama-server running?"),
        ({"tests": [{**TESTS[0], "repetitions": 0}]}, "Test prompt: repetitions is 0, but must be at least 1."),
    ],
)
def test_what_fails_is_one_sentence(run, changes, words):
    assert words in run(**changes)["msg"]
