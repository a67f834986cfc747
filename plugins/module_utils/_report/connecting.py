# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How clients reach the server of a deployment. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t
import urllib.parse

from .._base import access_key, addresses
from .._base.types import Json, Mapping
from .._llama_cpp import chat_proof

#: A request that anybody can send; which model answers is not asked.
_CHAT: t.Final = """-d '{"messages": [{"role": "user", "content": "Hello"}]}'"""
_EVERYWHERE: t.Final = ("0.0.0.0", "::", "[::]")


def connection(server: Mapping | None, url: str, host: str, connect: str) -> Json:
    """Return C({sentence, url, page, command, key_file, elsewhere}); C(page) is whether a browser gets a
    page to chat, all but it and the sentence may be empty.

    C(server) is the result of llama_server_info, C(url) where it listens as seen from its host, C(host) the name of
    that host in the inventory, and C(connect) the sentence of serving_proof about another server than llama-server.
    """
    nothing = {"url": "", "page": False, "command": "", "key_file": "", "elsewhere": ""}
    if connect:
        return {"sentence": connect, **nothing}
    if server is None or not url or server["state"] == "absent":
        return {"sentence": "No server is installed: run the playbook site.", **nothing}
    path = server.get("api_key_file", "")
    page = chat_proof.PAGE in ((server.get("chats") or {}).get("proved") or ())
    return {
        "sentence": access_key.connect(url, path, page),
        "url": url,
        "page": page,
        "command": f"{access_key.curl(url, path, '/v1/chat/completions')} {_CHAT}",
        "key_file": path,
        "elsewhere": _elsewhere(server.get("bound_to", ""), url, host),
    }


def _elsewhere(bound_to: str, url: str, host: str) -> str:
    """Return how another machine reaches the server, in one sentence; empty where that is not known."""
    port = urllib.parse.urlsplit(url).port or 80
    if not bound_to:
        return ""
    if bound_to in _EVERYWHERE:
        return f"Other machines use http://{host}:{port}, from the networks in llama_server_allowed_networks."
    if addresses.is_loopback(bound_to):
        tunnel = f"ssh -N -L {port}:127.0.0.1:{port} {host}"
        return f"Other machines do not reach it (llama_server_host); a tunnel does: {tunnel}, then http://127.0.0.1:{port}."
    return f"Other machines use {url} as well, from the networks in llama_server_allowed_networks."
