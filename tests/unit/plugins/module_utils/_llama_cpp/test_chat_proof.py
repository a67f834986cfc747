# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The refusals are those of llama.cpp b11312 and of TabbyAPI; molecule/default asks a real server."""

from __future__ import annotations

import copy
import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import chat_proof as judged
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.served_proof import ENGINES

LLAMA, EXLLAMA = ENGINES["llama_cpp"], ENGINES["exllama"]
CALL = {
    "choices": [
        {
            "finish_reason": "tool_calls",
            "message": {
                "content": "",
                "tool_calls": [
                    {
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city" : "Rome" }'},
                        "id": "0",
                    }
                ],
            },
        }
    ]
}
NO_CALL = {"choices": [{"finish_reason": "length", "message": {"content": "Rome is"}}]}
START_OF_A_REFUSED_TEMPLATE = """\
0.00.058.955 E srv          init: init: chat template parsing error:
------------
While executing CallExpression at line 1, column 19 in source:
...{{ raise_exception('no chats here') }}...
                     ^
Error: Jinja Exception: no chats here
0.00.059.028 E srv          init: init: please consider disabling jinja via --no-jinja, or use a custom chat template
0.00.059.727 E srv  llama_server: exiting due to model loading error
""".splitlines()


@pytest.fixture
def chats():
    return judged.Chats()


def test_a_chat_is_text_and_an_end(chats):
    for message in ({"content": "Rome."}, {"content": "", "reasoning_content": "Let me think"}):
        assert judged.judge_chat(chats, LLAMA, 200, {"choices": [{"message": message, "finish_reason": "length"}]})
    assert chats.proved == [judged.TEMPLATE] * 2
    chats.without("The model has no chat template.")
    judged.judge_chat(chats, LLAMA, 200, {"choices": [{"message": message, "finish_reason": "stop"}]})
    assert chats.proved[-1] == judged.CHAT


@pytest.mark.parametrize(
    ("status", "answer", "sentence"),
    [
        (None, {}, "broke off when asked for a chat: see journalctl -u llama-server.service"),
        (500, {"error": {"message": "x"}}, "refuses a chat (HTTP status 500: x): name the template of the model's"),
        (200, {}, "an empty answer (0 characters, end None)"),
        (200, {"choices": [{"message": {"content": None}, "finish_reason": "stop"}]}, "(0 characters, end stop)"),
        (200, {"choices": [{"message": {"content": "Rome"}}]}, "(4 characters, end None)"),
        (200, {"choices": "no list"}, "an empty answer"),
    ],
)
def test_anything_else_is_no_chat(chats, status, answer, sentence):
    with pytest.raises(UserError) as caught:
        judged.judge_chat(chats, LLAMA, status, answer)
    assert sentence in str(caught.value) and not chats.proved


def test_tabby_without_a_template_is_a_warning(chats):
    refusal = {"detail": "Chat completions are disabled because a prompt template is not set."}
    assert not judged.judge_chat(chats, EXLLAMA, 422, refusal)
    assert "put the template of the model's author into chat_template.jinja" in chats.warnings[0]


def test_a_call_is_a_name_an_id_and_arguments(chats):
    judged.judge_tool_call(chats, LLAMA, 200, CALL)
    assert chats.proved == [judged.TOOL_CALL] and not chats.unproved


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (("function", "name"), "get_time", "it does not name the tool"),
        (("id",), "", "it has no id"),
        (("type",), None, "or is no function"),
        (("function", "arguments"), '{"city": "Ro', "its arguments are no JSON object of the tool's schema"),
        (("function", "arguments"), "[]", "no JSON object"),
        (("function", "arguments"), '{"city": 3}', "no JSON object"),
        (("function", "arguments"), {"city": "Rome"}, "no JSON object"),
    ],
)
def test_a_call_that_no_client_can_use_is_an_error(chats, path, value, sentence):
    broken = copy.deepcopy(CALL)
    place = broken["choices"][0]["message"]["tool_calls"][0]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(UserError, match="answers a tool call with a call that no client can use") as caught:
        judged.judge_tool_call(chats, LLAMA, 200, broken)
    assert sentence in str(caught.value)
    broken["choices"][0]["finish_reason"] = "length"
    judged.judge_tool_call(chats, LLAMA, 200, broken)
    assert chats.warnings == ["No tool call is proved: the model wrote no whole one within 160 tokens."]
    assert not chats.proved


def test_no_call_and_no_room_for_one_are_warnings(chats):
    judged.judge_tool_call(chats, LLAMA, 200, NO_CALL)
    judged.judge_tool_call(chats, LLAMA, 400, {"error": {"type": "exceed_context_size_error", "message": "x"}})
    assert "wrote no whole one within 160 tokens" in chats.warnings[0]
    assert "the context of a slot is too short" in chats.warnings[1]


def test_a_refused_call_is_an_error(chats):
    message = "Unable to generate parser for this template. \n----\nError: Jinja Exception: no tools, please"
    with pytest.raises(
        UserError, match=r"refuses a tool call \(HTTP status 400: no tools, please\): name the template"
    ):
        judged.judge_tool_call(chats, LLAMA, 400, {"error": {"message": message, "type": "invalid_request_error"}})


def test_tools_are_asked_for_where_template_and_engine_have_them(chats):
    assert judged.has_tools(chats, {"chat_template_caps": {"supports_tool_calls": True}})
    assert judged.has_tools(chats, {}) and not chats.unproved
    assert not judged.has_tools(chats, {"chat_template_caps": {"supports_tool_calls": False}})
    assert not judged.has_tools(chats, None)
    assert len(chats.unproved) == 2 and not chats.warnings


def event(delta, reason=None, **more):
    return json.dumps({"choices": [{"delta": delta, "finish_reason": reason}], **more})


WHOLE = [event({"role": "assistant", "content": None}), event({"content": "Ro"}), event({"content": "me"}),
         event({}, "length"), json.dumps({"choices": [], "usage": {}}), "[DONE]"]  # fmt: skip


def test_a_stream_is_pieces_one_end_and_done(chats):
    judged.judge_stream(chats, LLAMA, 200, WHOLE, {})
    assert chats.proved == [judged.STREAM]


@pytest.mark.parametrize(
    ("events", "sentence"),
    [
        (WHOLE[:-1], "5 events and no [DONE] at the end"),
        ([], "0 events and no [DONE]"),
        ([*WHOLE[:2], *WHOLE[4:]], "2 events of the answer, of which 0 end it"),
        ([event({"content": "Rome"}, "stop"), "[DONE]"], "1 events of the answer"),
        ([WHOLE[0], WHOLE[3], "[DONE]"], "no text"),
        ([*WHOLE[:3], json.dumps({"error": {"message": "x"}}), *WHOLE[3:]], "an event that is an error"),
        ([*WHOLE[:3], "{", *WHOLE[3:]], "or no JSON"),
    ],
)
def test_half_a_stream_is_an_error(chats, events, sentence):
    with pytest.raises(UserError) as caught:
        judged.judge_stream(chats, LLAMA, 200, events, {})
    assert "answers a stream with half an answer" in str(caught.value) and sentence in str(caught.value)


def test_a_page_is_html_or_not_there(chats):
    judged.judge_page(chats, LLAMA, 404, "application/json", built=False)
    assert not chats.proved
    judged.judge_page(chats, LLAMA, 200, "text/html", built=False)
    assert chats.proved == [judged.PAGE]
    for status, kind in ((200, "text/plain"), (415, "text/plain"), (None, "")):
        with pytest.raises(UserError, match="a chat page that no browser shows"):
            judged.judge_page(chats, LLAMA, status, kind, built=False)


def test_a_page_that_was_built_is_there(chats):
    with pytest.raises(UserError, match=r"a chat page that no browser shows \(HTTP status 404"):
        judged.judge_page(chats, LLAMA, 404, "application/json", built=True)
    judged.judge_page(chats, LLAMA, 200, "text/html", built=True)
    assert chats.proved == [judged.PAGE]


@pytest.mark.parametrize(
    ("keys", "arguments", "environment", "warned"),
    [
        (["general.name", "tokenizer.chat_template"], [], [], False),
        (["tokenizer.chat_template.tool_use"], [], [], False),
        ([], ["--chat-template-file=/srv/x.jinja"], [], False),
        ([], ["--chat-template", "chatml"], [], False),
        ([], [], ["LLAMA_ARG_CHAT_TEMPLATE"], False),
        (["tokenizer.ggml.tokens"], ["--chat-template-kwargs", "{}"], ["LLAMA_ARG_JINJA"], True),
    ],
)
def test_a_model_without_a_template_is_a_warning(chats, keys, arguments, environment, warned):
    judged.check_template(chats, keys, arguments, environment)
    assert bool(chats.warnings) is warned
    assert all(sentence.count(":") == 1 and sentence.endswith("extra_arguments.") for sentence in chats.warnings)


def test_a_refused_template_is_named_from_the_journal():
    assert judged.refused_template(START_OF_A_REFUSED_TEMPLATE).startswith(
        "llama.cpp refuses the chat template (no chats here): name the template of the model's author with --chat-"
    )
    no_words = [line for line in START_OF_A_REFUSED_TEMPLATE if "Jinja" not in line]
    assert "(it cannot be parsed)" in judged.refused_template(no_words)
    assert judged.refused_template(["srv init: failed to load model", "exiting due to model loading error"]) == ""


def test_everything_is_said_in_one_line(chats):
    assert chats.result(LLAMA, asked=True)["line"] == "llama-server.service answers no chats."
    assert chats.result(LLAMA, asked=False)["line"] == "llama-server.service was not asked for chats."
    chats.proved += [judged.TEMPLATE, judged.STREAM]
    chats.without("No tool call is proved: x.")
    assert chats.result(EXLLAMA, asked=True)["line"] == (
        "exllama-server.service answers, as proved: a chat through the template, a stream. No tool call is proved: x."
    )
