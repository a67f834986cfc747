# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a client of the OpenAI API gets: a chat, a tool call, a stream. Private to this collection. Pure functions only.

Structure is judged, never sense: a model of random weights passes, and half an answer does not.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base import json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping
from .served_proof import Engine

PATH: t.Final = "/v1/chat/completions"
TOKENS: t.Final = 16
#: A call takes about 40 tokens of a usual vocabulary, and more where each letter is a token.
TOOL_TOKENS: t.Final = 160
DONE: t.Final = "[DONE]"

CHAT: t.Final = "a chat"
TEMPLATE: t.Final = "a chat through the template"
TOOL_CALL: t.Final = "a tool call"
STREAM: t.Final = "a stream"
PAGE: t.Final = "the chat page"

#: The template in a GGUF file; further ones have a name after it.
_TEMPLATE_KEY: t.Final = "tokenizer.chat_template"
_TEMPLATE_OPTIONS: t.Final = ("--chat-template", "--chat-template-file")
_TEMPLATE_VARIABLES: t.Final = ("LLAMA_ARG_CHAT_TEMPLATE", "LLAMA_ARG_CHAT_TEMPLATE_FILE")
#: What TabbyAPI answers for a model without a template, and llama-server for a prompt that is longer than the context.
_NO_TEMPLATE: t.Final = "prompt template is not set"
_TOO_LONG: t.Final = "exceed_context_size_error"
_JINJA: t.Final = "Error: Jinja Exception: "
#: How llama-server ends when it cannot use a template.
_REFUSED: t.Final = ("chat template parsing error", "supplied chat template is not supported")
_CURES: t.Final = {
    "llama-server.service": "name the template of the model's author with --chat-template-file in "
    "llama_server_extra_arguments, or build another version of llama.cpp",
    "exllama-server.service": "put the template of the model's author into chat_template.jinja of the model's folder",
}
_TOOL_NAME: t.Final = "get_weather"
_CITY: t.Final[Json] = {"type": "string", "enum": ["Rome", "Oslo"]}
_TOOL: t.Final[Json] = {
    "type": "function",
    "function": {
        "name": _TOOL_NAME,
        "description": "Weather of a city",
        "parameters": {"type": "object", "properties": {"city": _CITY}, "required": ["city"]},
    },
}


@dataclasses.dataclass
class Chats:
    """What was proved, one sentence for each thing that was not, and those of them that an owner is warned of."""

    proved: list[str] = dataclasses.field(default_factory=list)
    unproved: list[str] = dataclasses.field(default_factory=list)
    warnings: list[str] = dataclasses.field(default_factory=list)

    def without(self, sentence: str, warn: bool = True) -> None:
        """Take up what is not proved, and why."""
        self.unproved.append(sentence)
        if warn:
            self.warnings.append(sentence)

    def result(self, engine: Engine, asked: bool) -> Json:
        """Return C(proved), C(unproved), and both in one C(line)."""
        said = f"{engine.unit} was not asked for chats." if not asked else f"{engine.unit} answers no chats."
        if self.proved:
            said = f"{engine.unit} answers, as proved: {', '.join(self.proved)}."
        return {"proved": self.proved, "unproved": self.unproved, "line": " ".join([said, *self.unproved])}


# --- what is asked ---------------------------------------------------------------------------------------------------


def chat_body(stream: bool) -> Json:
    """Return the body of a chat as any client sends it."""
    messages = [{"role": "user", "content": "Which city is warm, Rome or Oslo?"}]
    return {"messages": messages, "max_tokens": TOKENS, "stream": stream}


def tool_body() -> Json:
    """Return the body of a chat in which llama.cpp's grammar ends the answer with a call, as most templates go.

    Thoughts are switched off, because they count as tokens.
    """
    return {
        "messages": [{"role": "user", "content": "Weather in Rome?"}],
        "tools": [_TOOL],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "max_tokens": TOOL_TOKENS,
        "temperature": 0,
        "chat_template_kwargs": {"enable_thinking": False},
        "reasoning_budget_tokens": 0,
    }


# --- what the answers mean -------------------------------------------------------------------------------------------


def refused_template(lines: t.Iterable[str]) -> str:
    """Return one sentence where the journal of a start says that llama.cpp refuses the chat template, else ""."""
    text = "\n".join(lines)
    if not any(sign in text for sign in _REFUSED):
        return ""
    said = text.rpartition(_JINJA)[2].partition("\n")[0].strip() if _JINJA in text else "it cannot be parsed"
    return f"llama.cpp refuses the chat template ({said}): {_CURES['llama-server.service']}."


def check_template(
    chats: Chats, keys: t.Iterable[str], arguments: t.Iterable[str], environment: t.Iterable[str]
) -> None:
    """Take up that a model of llama.cpp has no template: no key of its GGUF file, and none from the owner."""
    options = {str(word).partition("=")[0] for word in arguments}
    given = options.intersection(_TEMPLATE_OPTIONS) or set(environment).intersection(_TEMPLATE_VARIABLES)
    if not given and not any(key.startswith(_TEMPLATE_KEY) for key in keys):
        chats.without(
            "The model has no chat template, so llama.cpp takes ChatML, which the model may not know: "
            f"{_CURES['llama-server.service'].partition(',')[0]}."
        )


def judge_chat(chats: Chats, engine: Engine, status: int | None, answer: Mapping) -> bool:
    """Take up a chat; return whether it makes sense to ask for more. Raises UserError where it is not answered."""
    if status != 200 and _NO_TEMPLATE in _message(answer):
        chats.without(
            f"{engine.unit} answers no chat, because the model has no chat template: {_CURES[engine.unit]}."
        )
        return False
    _check_status(engine, "a chat", status, answer)
    choice = _first(answer.get("choices"))
    text = _text(choice.get("message"))
    reason = choice.get("finish_reason")
    if not text or not reason:
        raise _broken(engine, "a chat", f"{len(text)} characters, end {reason}", "an empty answer")
    chats.proved.append(CHAT if chats.unproved else TEMPLATE)
    return True


def has_tools(chats: Chats, properties: Mapping | None) -> bool:
    """Return whether to ask for a tool call, else take up why not.

    `properties` are those of llama-server, and None for TabbyAPI, where nothing makes a model write a call.
    """
    if properties is None:
        chats.without("No tool call is proved: TabbyAPI has no grammar that leads to one.", warn=False)
        return False
    known = (properties.get("chat_template_caps") or {}).get("supports_tool_calls", True)
    if not known:
        chats.without("No tool call is proved: the chat template knows no tools.", warn=False)
    return bool(known)


def judge_tool_call(chats: Chats, engine: Engine, status: int | None, answer: Mapping) -> None:
    """Take up the answer to tool_body(). A model that writes no call is said.

    Raises UserError for an error, and for a call that no client can use.
    """
    if status != 200 and _error(answer).get("type") == _TOO_LONG:
        chats.without("No tool call is proved: the context of a slot is too short for one.")
        return
    _check_status(engine, "a tool call", status, answer)
    choice = _first(answer.get("choices"))
    call = _first((choice.get("message") or {}).get("tool_calls"))
    problem = _problem(call)
    if not problem:
        chats.proved.append(TOOL_CALL)
    elif choice.get("finish_reason") == "tool_calls":
        raise _broken(engine, "a tool call", problem, "a call that no client can use")
    else:
        chats.without(f"No tool call is proved: the model wrote no whole one within {TOOL_TOKENS} tokens.")


def judge_stream(
    chats: Chats, engine: Engine, status: int | None, events: t.Sequence[str], answer: Mapping
) -> None:
    """Take up a streamed chat: `events` is the data of each event. Raises UserError where it is no whole stream."""
    _check_status(engine, "a stream", status, answer)
    chunks = [_parsed(event) for event in events if event != DONE]
    choices = [_first(chunk.get("choices")) for chunk in chunks if chunk.get("choices")]
    text = "".join(_text(choice.get("delta")) for choice in choices)
    ends = [choice for choice in choices if choice.get("finish_reason")]
    if not events or events[-1] != DONE:
        said = f"{len(events)} events and no {DONE} at the end"
    elif any(not chunk or chunk.get("error") for chunk in chunks):
        said = "an event that is an error, or no JSON"
    elif len(choices) < 2 or len(ends) != 1:
        said = f"{len(choices)} events of the answer, of which {len(ends)} end it"
    elif not text:
        said = "no text"
    else:
        chats.proved.append(STREAM)
        return
    raise _broken(engine, "a stream", said, "half an answer")


def judge_page(chats: Chats, engine: Engine, status: int | None, kind: str, built: bool) -> None:
    """Take up what C(/) gave a browser: `kind` is the type of its content. A build without a page says 404.

    C(built) is whether the page must be there.
    """
    if status == 404 and not built:
        return
    if status != 200 or "html" not in kind:
        raise UserError(
            f"{engine.unit} has a chat page that no browser shows (HTTP status {status}, type {kind or 'none'}): build "
            "llama.cpp again, or set --no-ui in llama_server_extra_arguments."
        )
    chats.proved.append(PAGE)


def _check_status(engine: Engine, what: str, status: int | None, answer: Mapping) -> None:
    """Raise UserError for anything but an answer."""
    if status is None:
        raise UserError(
            f"{engine.unit} broke off when asked for {what}: see journalctl -u {engine.unit}, and restart it."
        )
    if status != 200:
        said = _message(answer) or "no reason"
        raise UserError(f"{engine.unit} refuses {what} (HTTP status {status}: {said}): {_CURES[engine.unit]}.")


def _broken(engine: Engine, what: str, said: str, means: str) -> UserError:
    return UserError(f"{engine.unit} answers {what} with {means} ({said}): {_CURES[engine.unit]}.")


def _message(answer: Mapping) -> str:
    """Return why a server refuses: llama-server's C(error.message), FastAPI's C(detail)."""
    said = str(_error(answer).get("message") or answer.get("detail") or "")
    # before that, a template's place in its text
    return " ".join(said.rpartition(_JINJA)[2].split())[:300].rstrip(".")


def _error(answer: Mapping) -> Mapping:
    error = answer.get("error")
    return error if isinstance(error, dict) else {}


def _first(found: t.Any) -> Mapping:
    """Return the first object of a list, {} where there is none."""
    return found[0] if isinstance(found, list) and found and isinstance(found[0], dict) else {}


def _text(message: t.Any) -> str:
    """Return what the model wrote, thoughts included: a short answer may be nothing else."""
    parts = message if isinstance(message, dict) else {}
    return "".join(str(parts.get(key) or "") for key in ("reasoning_content", "content"))


def _parsed(text: str) -> Mapping:
    """Return the object that a text is, {} for none."""
    try:
        found = json_file.from_text(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _problem(call: Mapping) -> str | None:
    """Return what is wrong with a tool call, None for nothing."""
    function = call.get("function")
    if not isinstance(function, dict) or function.get("name") != _TOOL_NAME:
        return "it does not name the tool"
    if not call.get("id") or call.get("type") != "function":
        return "it has no id, or is no function"
    arguments = _parsed(str(function.get("arguments")))
    return None if isinstance(arguments.get("city"), str) else "its arguments are no JSON object of the tool's schema"
