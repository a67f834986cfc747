"""What a program with the official OpenAI client gets of the served model: chats, tool calls, streams, refusals."""

from __future__ import annotations

import json

import openai
import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

CITY = {"type": "string", "enum": ["Rome", "Oslo"]}
SCHEMA = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": "weather", "description": "Weather", "parameters": SCHEMA}}]
QUESTION = [{"role": "user", "content": "Weather in Rome?"}]


@pytest.fixture(scope="module")
def ask(host, controller):
    """Return a function that asks for a chat completion, as programs do."""
    key = host.file(lab.KEY_FILE).content_string.strip()
    url = f"http://127.0.0.1:{controller.forward(8080)}/v1"
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=300)
    model = client.models.list().data[0].id

    def _ask(**more):
        given = {"model": model, "messages": QUESTION, "max_tokens": 16, **more}
        return client.chat.completions.create(**given)

    _ask.client = client
    return _ask


def test_a_chat_goes_through_the_template(ask):
    answer = ask()
    assert answer.choices[0].message.role == "assistant" and answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("length", "stop")
    assert 1 <= answer.usage.completion_tokens <= 16
    # each letter is a token: the question, its role, and how the template has the model go on
    assert answer.usage.prompt_tokens > len("user: Weather in Rome?") + len("<|START_TEXT|>")


def test_a_stream_comes_in_pieces(ask):
    pieces = list(ask(stream=True, stream_options={"include_usage": True}))
    choices = [piece.choices[0] for piece in pieces if piece.choices]
    assert len([choice for choice in choices if choice.delta.content]) > 1
    assert [choice.finish_reason for choice in choices if choice.finish_reason] in (["length"], ["stop"])
    assert pieces[-1].usage.completion_tokens >= 1


def _weather(call):
    assert call.type == "function" and call.id and call.function.name == "weather"
    assert json.loads(call.function.arguments)["city"] in CITY["enum"]


def test_a_tool_is_called_and_its_result_is_taken(ask):
    answer = ask(tools=TOOLS, tool_choice="required", parallel_tool_calls=False, max_tokens=160)
    assert answer.choices[0].finish_reason == "tool_calls"
    (call,) = answer.choices[0].message.tool_calls
    _weather(call)
    result = {"role": "tool", "tool_call_id": call.id, "content": "Rain"}
    assert ask(messages=[*QUESTION, answer.choices[0].message, result]).choices[0].message.content


def test_a_tool_call_is_streamed_in_pieces(ask):
    options = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False, "max_tokens": 160}
    with ask.client.chat.completions.stream(model="any", messages=QUESTION, **options) as stream:
        answer = stream.get_final_completion()
    (call,) = answer.choices[0].message.tool_calls
    _weather(call)


def test_another_key_is_refused(ask):
    with pytest.raises(openai.AuthenticationError):
        ask.client.with_options(api_key="another-key-of-nobody").models.list()
