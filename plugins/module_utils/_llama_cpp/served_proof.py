# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a running server must answer, and what it must not. Private to this collection. Pure functions only.

The proof asks through HTTP; what is asked, and what the answers mean, is decided here.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.errors import UserError
from .._base.types import Json, Mapping
from .._split import speculation
from . import llama_client

TOKENS: t.Final = 8
#: Statuses of an endpoint that is shut: forbidden, not there, not implemented.
SHUT: t.Final = (403, 404, 501)
UNAUTHORIZED: t.Final = 401


@dataclasses.dataclass(frozen=True)
class Endpoint:
    """An endpoint that is shut unless one of the options, or of the variables of the environment, opens it.

    `body` is None for GET. No request does anything where the endpoint is open, for want of its parameters.
    """

    method: str
    path: str
    body: Json | None
    options: tuple[str, ...]
    variables: tuple[str, ...] = ()


#: What llama-server can do beyond answering: files, programs, other hosts, other models.
SHUT_ENDPOINTS: t.Final = (
    Endpoint(
        "GET", "/tools", None, ("--tools", "--agent", "-ag", "--mcp-servers-config", "--mcp-servers-json"),
        ("LLAMA_ARG_TOOLS", "LLAMA_ARG_AGENT", "LLAMA_ARG_MCP_SERVERS_CONFIG", "LLAMA_ARG_MCP_SERVERS_JSON"),
    ),
    Endpoint(
        "GET", "/cors-proxy", None, ("--ui-mcp-proxy", "--webui-mcp-proxy", "--agent", "-ag"),
        ("LLAMA_ARG_UI_MCP_PROXY", "LLAMA_ARG_AGENT"),
    ),
    Endpoint("POST", "/slots/0?action=save", {}, ("--slot-save-path",)),
    Endpoint("POST", "/props", {}, ("--props",), ("LLAMA_ARG_ENDPOINT_PROPS",)),
    Endpoint(
        "POST", "/models/load", {}, ("--models-dir", "--models-preset"),
        ("LLAMA_ARG_MODELS_DIR", "LLAMA_ARG_MODELS_PRESET"),
    ),
)  # fmt: skip

# They put something else, or nothing, in the place of the page.
_PAGE_OPTIONS: t.Final = ("--no-ui", "--no-webui", "--path", "--api-prefix")
_PAGE_VARIABLES: t.Final = ("LLAMA_ARG_UI", "LLAMA_ARG_NO_UI", "LLAMA_ARG_STATIC_PATH", "LLAMA_ARG_API_PREFIX")


@dataclasses.dataclass(frozen=True)
class Engine:
    """How an engine is asked: unit, path and body of a short completion, and a path that needs the key."""

    unit: str
    variable: str
    completion: str
    body: Mapping
    secured: str


ENGINES: t.Final = {
    "llama_cpp": Engine(
        "llama-server.service", "llama_server_api_key", "/completion",
        {"prompt": "One, two, three,", "n_predict": TOKENS, "cache_prompt": False, "ignore_eos": True}, "/props",
    ),
    # TabbyAPI counts tokens only when it is asked to, also where nothing is streamed
    "exllama": Engine(
        "exllama-server.service", "exllamav2_api_key", "/v1/completions",
        {
            "prompt": "One, two, three,", "max_tokens": TOKENS, "min_tokens": TOKENS, "temperature": 0,
            "stream_options": {"include_usage": True},
        }, "/v1/model",
    ),
}  # fmt: skip


def shut(arguments: t.Sequence[str], environment: t.Iterable[str]) -> list[Endpoint]:
    """Return the endpoints that must be shut, given further arguments of the server and names of its variables."""
    names, variables = {str(word).partition("=")[0] for word in arguments}, set(environment)
    return [
        endpoint
        for endpoint in SHUT_ENDPOINTS
        if not names.intersection(endpoint.options) and not variables.intersection(endpoint.variables)
    ]


def has_page(build: Mapping, arguments: t.Sequence[str], environment: t.Iterable[str]) -> bool:
    """Return whether C(/) must be the chat page: the build has the page, and nothing given can take it away.

    C(build) is what build.json says of the program that serves, empty where there is none; the rest is as for `shut`.
    """
    names, variables = {str(word).partition("=")[0] for word in arguments}, set(environment)
    return bool(build.get("web_ui_node")) and not (
        names.intersection(_PAGE_OPTIONS) or variables.intersection(_PAGE_VARIABLES)
    )


def check_shut(engine: Engine, endpoint: Endpoint, status: int | None) -> None:
    """Raise UserError where an endpoint is open, or does not answer (None)."""
    if status in SHUT:
        return
    said = "does not answer" if status is None else f"answers with HTTP status {status}"
    raise UserError(
        f"{engine.unit} {said} to {endpoint.method} {endpoint.path}, which must be shut ({', '.join(map(str, SHUT))}): "
        f"this build opens what was not asked for; use another build, or set {endpoint.options[0]} in "
        "llama_server_extra_arguments if that is meant."
    )


def check_key(engine: Engine, given: str, held: str) -> None:
    """Raise UserError where the variable holds another key than the file; an empty variable agrees with any."""
    if given and given != held:
        raise UserError(
            f"{engine.unit} was started with another key than {engine.variable} holds now: run the role that "
            f"configures {engine.unit}."
        )


def check_completion(engine: Engine, status: int | None, answer: Mapping, key_path: str) -> None:
    """Raise UserError where a completion did not go through all layers; `key_path` is that of the key, "" for none.

    /health stays 200 when an RPC server has died, so only a completion counts.
    """
    if status == UNAUTHORIZED:
        what = f"the key in {key_path}" if key_path else "requests without a key"
        raise UserError(
            f"{engine.unit} does not accept {what}: it was started with another key; restart {engine.unit}."
        )
    usage, counted = answer.get("usage"), llama_client.timings(answer)
    tokens = (usage if isinstance(usage, dict) else {}).get("completion_tokens", counted.get("predicted_n"))
    if status != 200 or not isinstance(tokens, int) or tokens < 1:
        raise UserError(
            f"{engine.unit} answers /health but no completion (HTTP status {status}): a device that it uses may have "
            f"died; see journalctl -u {engine.unit}, and restart it."
        )


def check_drafts(engine: Engine, deployment: Mapping, answer: Mapping) -> None:
    """Raise UserError where a server that is to draft with a model did not: a draft that failed to load is no error.

    An n-gram kind drafts only where the text repeats, so its answer tells nothing.
    """
    kind = (deployment.get("speculation") or {}).get("kind")
    if kind in speculation.LINE_KINDS and not llama_client.timings(answer).get("draft_n"):
        raise UserError(
            f"{engine.unit} answers without drafting a token, and {kind} is recorded: see journalctl -u {engine.unit} "
            "for why the draft was not loaded, then restart it."
        )


def check_secured(engine: Engine, status: int | None) -> None:
    """Raise UserError where a server with a key answers a request without one."""
    if status != UNAUTHORIZED:
        raise UserError(
            f"{engine.unit} answers without {engine.variable} (HTTP status {status}): it was started without a key; "
            f"restart {engine.unit}."
        )
