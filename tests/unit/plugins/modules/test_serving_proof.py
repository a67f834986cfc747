# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server on loopback answers as llama-server and TabbyAPI do."""

from __future__ import annotations

import json
import os

import gguf
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import chat_record
from ansible_collections.homelab.mixed_gpu.plugins.modules import serving_proof
from ansible_collections.homelab.mixed_gpu.tests import local_server

KEY = "a-key-of-twenty-chars"
CHAT = "POST /v1/chat/completions"
SAID = {"choices": [{"message": {"content": "Rome."}, "finish_reason": "stop"}]}
FUNCTION = {"name": "get_weather", "arguments": '{"city": "Rome"}'}
CALLS = {"tool_calls": [{"id": "0", "type": "function", "function": FUNCTION}]}
CALLED = {"choices": [{"message": CALLS, "finish_reason": "tool_calls"}]}


def chunk(delta, reason=None):
    return f"data: {json.dumps({'choices': [{'delta': delta, 'finish_reason': reason}]})}\n\n"


STREAMED = f": ping\n\n{chunk({'content': 'Ro'})}{chunk({'content': 'me.'})}{chunk({}, 'stop')}data: [DONE]\n\n"
REFUSED = {"error": {"code": 400, "message": "Unable.\nError: Jinja Exception: no chats here", "type": "invalid"}}


class Handler(local_server.Handler):
    def answer(self):
        given = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {self.path}"
        if asked == CHAT:
            asked += " tools" if b'"tools"' in given else " stream" if b'"stream": true' in given else ""
        self.server.asked.append(asked)
        status, body = self.server.answers.get(asked, (404, {}))
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            status, body = 401, {}
        page = isinstance(body, str) and body.startswith("<")
        data = body.encode() if isinstance(body, str) else body
        self.reply(status, data, "text/html" if page else "application/json")

    do_GET = do_POST = answer


def running(key="", **changes):
    answers = {
        "POST /completion": (200, {"timings": {"prompt_n": 4, "predicted_n": 8}}), "GET /props": (200, {}),
        "POST /v1/completions": (200, {"usage": {"completion_tokens": 8}}), "GET /v1/model": (200, {}),
        CHAT: (200, SAID), f"{CHAT} tools": (200, CALLED), f"{CHAT} stream": (200, STREAMED),
        "POST /slots/0?action=save": (501, {}), "POST /props": (501, {}), "GET /tools": (403, {}),
    }  # fmt: skip
    answers |= {name: what if isinstance(what, tuple) else (what, {}) for name, what in changes.items()}
    return local_server.serving(Handler, asked=[], key=key, answers=answers)


@pytest.fixture
def run(call_module, tmp_path):
    def _run(server, key="", **more):
        path = tmp_path / "key"
        path.write_text(f"{key}\n")
        arguments = {"url": server.url, "api_key_file": str(path) if key else "", **more}
        return call_module(serving_proof, arguments)

    return _run


def test_a_server_with_a_key_is_proved(run):
    with running(KEY) as server:
        result = run(server, KEY, api_key=KEY)
    assert not result.get("failed"), result
    assert KEY not in json.dumps(result) and "curl -H @-" in result["connect"]
    assert server.asked[:2] == ["POST /completion", "GET /props"] and "GET /tools" in server.asked
    chats = result["chats"]
    assert chats["proved"] == ["a chat through the template", "a tool call", "a stream"]
    assert chats["line"] == (
        "llama-server.service answers, as proved: a chat through the template, a tool call, a stream."
    )


def test_a_server_without_a_key_is_proved_and_said_so(run):
    with running() as server:
        assert "has no key" in run(server)["connect"]


def test_a_key_that_is_not_asked_for_or_another_one_is_an_error(run):
    with running() as server:
        assert "llama-server.service answers without llama_server_api_key" in run(server, KEY)["msg"]
    with running("another-key-of-this-server") as server:
        assert "does not accept the key in " in run(server, KEY)["msg"]
        other = run(server, KEY, api_key="another-key-of-a-variable")
        assert "was started with another key than llama_server_api_key holds now" in other["msg"]
        assert "does not accept requests without a key" in run(server)["msg"]


def test_an_open_endpoint_is_an_error_unless_meant(run):
    with running(**{"POST /props": 200}) as server:
        assert "HTTP status 200 to POST /props, which must be shut" in run(server)["msg"]
        assert not run(server, arguments=["--props"]).get("failed")
        assert not run(server, environment={"LLAMA_ARG_ENDPOINT_PROPS": "1"}).get("failed")


def test_exllama_has_other_paths(run):
    with running(KEY) as server:
        assert not run(server, KEY, engine="exllama").get("failed")
    assert server.asked == ["POST /v1/completions", "GET /v1/model", CHAT, f"{CHAT} stream"]


def test_chats_are_not_asked_for_where_the_owner_wants_none(run):
    with running() as server:
        result = run(server, chats=False)
    assert not any(asked.startswith(CHAT) for asked in server.asked)
    assert result["chats"]["line"] == "llama-server.service was not asked for chats."


def test_what_a_start_was_proved_of_is_kept(run, tmp_path):
    given = {"invocation_id": "one", "kept_dir": str(tmp_path / "kept")}
    with running() as server:
        assert not run(server, **given, _ansible_check_mode=True).get("failed")
        assert not (tmp_path / "kept").exists()
        chats = run(server, **given)["chats"]
    kept = chat_record.kept("llama-server.service", given["kept_dir"], "one")
    assert {name: kept[name] for name in chats} == chats
    (tmp_path / "file").touch()
    with running() as server:
        assert "cannot be read or written" in run(server, **{**given, "kept_dir": str(tmp_path / "file")})["msg"]


def test_a_web_page_is_proved_where_there_is_one(run):
    with running(**{"GET /": (200, "<html>")}) as server:
        assert run(server)["chats"]["proved"][-1] == "the chat page"
    with running(**{"GET /": 500}) as server:
        assert "has a chat page that no browser shows (HTTP status 500" in run(server)["msg"]


def test_a_build_with_a_page_must_show_the_page(run, tmp_path):
    (tmp_path / "bin").mkdir()
    program = str(tmp_path / "bin/llama-server")
    with running() as server:
        assert "the chat page" not in run(server, program=program)["chats"]["proved"]
        (tmp_path / "build.json").write_text('{"web_ui_node": "24.19.0"}')
        assert "has a chat page that no browser shows (HTTP status 404" in run(server, program=program)["msg"]
        assert not run(server, program=program, arguments=["--no-ui"]).get("failed")
    with running(**{"GET /": (200, "<html>")}) as server:
        assert "in a browser with its chat page" in run(server, program=program)["connect"]


@pytest.mark.parametrize(
    ("asked", "answer", "sentence"),
    [
        (CHAT, (400, REFUSED), "refuses a chat (HTTP status 400: no chats here): name the template of the model's"),
        (f"{CHAT} tools", (500, {}), "refuses a tool call (HTTP status 500: no reason)"),
        (f"{CHAT} stream", (200, STREAMED.replace("[DONE]", "")), "4 events and no [DONE] at the end"),
    ],
)
def test_a_wrong_answer_is_an_error_with_its_cure(run, asked, answer, sentence):
    with running(**{asked: answer}) as server:
        assert sentence in run(server)["msg"]


def test_a_model_without_a_template_is_warned_of(run, tmp_path, monkeypatch):
    warned = []
    monkeypatch.setattr(serving_proof.AnsibleModule, "warn", lambda _self, sentence: warned.append(sentence))
    for name, template in (("with", "{{ messages }}"), ("without", None)):
        writer = gguf.GGUFWriter(str(tmp_path / name), "llama")
        if template:
            writer.add_chat_template(template)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
    with running() as server:
        assert run(server, model_path=str(tmp_path / "with"))["chats"]["unproved"] == [] and not warned
        result = run(server, model_path=str(tmp_path / "without"))
        assert result["chats"]["unproved"] == warned and "The model has no chat template" in warned[0]
        assert result["chats"]["proved"] == ["a chat", "a tool call", "a stream"]
        assert str(tmp_path / "absent") in run(server, model_path=str(tmp_path / "absent"))["msg"]


def test_nobody_there_and_no_key_in_the_file_are_one_sentence(run, tmp_path):
    with running() as server:
        pass
    assert "no completion (HTTP status None)" in run(server)["msg"]
    with running(KEY) as server:
        result = run(server, api_key_file=str(tmp_path / "absent"))
    assert result["msg"].endswith("absent holds no key: run the role that configures llama-server.service.")


def test_a_draft_that_is_recorded_has_to_draft(run):
    recorded = {"speculation": {"kind": "draft-simple"}}
    with running() as server:
        said = run(server, deployment=recorded)["msg"]
        assert said.startswith("llama-server.service answers without drafting a token, and draft-simple is recorded: ")
        assert "msg" not in run(server, deployment={"speculation": {"kind": "ngram-mod"}})
        assert "msg" not in run(server, deployment={})
        server.answers["POST /completion"] = (200, {"timings": {"predicted_n": 8, "draft_n": 5}})
        assert "msg" not in run(server, deployment=recorded)


def test_a_draft_of_tabbyapi_has_to_be_in_the_log_of_its_start(run, tmp_path, monkeypatch):
    program, log = tmp_path / "bin/journalctl", tmp_path / "log"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {log}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    given = {"engine": "exllama", "invocation_id": "a" * 32, "kept_dir": str(tmp_path)}
    with running() as server:
        log.write_text("INFO: Loading model: /srv/m\n")
        said = run(server, **given, draft={"path": "/srv/d", "card": None})["msg"]
        assert said.startswith("exllama-server.service loaded its model without the draft /srv/d, ")
        assert "msg" not in run(server, **given, draft={})
        log.write_text("INFO: Loading draft model: /srv/d\nINFO: Loading model: /srv/m\n")
        assert "msg" not in run(server, **given, draft={"path": "/srv/d"})
