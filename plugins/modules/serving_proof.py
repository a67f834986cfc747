#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: serving_proof
short_description: Prove what a server answers, and that it answers nobody without its key
version_added: 0.1.0
description:
  - Asks for a short completion with the key, because C(/health) stays fine when a device has died.
  - Asserts that a server with a key refuses requests without the key.
  - Asserts of llama-server that C(/tools), C(/cors-proxy), saving of slots, C(POST /props) and C(/models/load) are shut
    (HTTP status 403, 404 or 501), unless O(arguments) or O(environment) open them.
  - With O(chats) it asks as clients do. It asserts a chat through the model's chat template, a tool call, a stream that
    ends as it should, and the chat page where one is built in.
  - A tool call is asked for where the chat template knows tools and the engine can lead to one, as llama.cpp does.
  - Answers are judged by their structure, never by their sense. What cannot be proved is said, and is no failure.
  - The key is read on the host, and never returned.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: This module changes nothing on the server. In check mode it keeps no record of what it proved.
options:
  engine:
    description: Who serves.
    type: str
    choices: [llama_cpp, exllama]
    default: llama_cpp
  url:
    description: Where the server listens.
    type: str
    default: http://127.0.0.1:8080
  api_key_file:
    description: File on the host that holds the key. Empty for a server without a key.
    type: path
    default: ""
  api_key:
    description: The key that the file must hold, where a variable has one.
    type: str
    default: ""
  arguments:
    description:
      - Further arguments of llama-server, O(homelab.mixed_gpu.llama_server#role:main:llama_server_extra_arguments).
    type: list
    elements: str
    default: []
  environment:
    description: Variables of the server's environment.
    type: dict
    default: {}
  chats:
    description: Whether to ask for a chat, a tool call, a stream and the chat page as well.
    type: bool
    default: true
  program:
    description:
      - The llama-server that serves. Where its build has the chat page (role P(homelab.mixed_gpu.llama_cpp#role)), a
        browser must get the page. Empty for another engine.
    type: path
    default: ""
  model_path:
    description: GGUF file of the model, whose header tells whether it has a chat template. Empty for one of ExLlama.
    type: path
    default: ""
  invocation_id:
    description:
      - The start that is proved, as M(homelab.mixed_gpu.llama_server_info) names it. With it the result is kept in
        O(kept_dir), where that module reads it.
    type: str
    default: ""
  kept_dir:
    description: Directory of what was proved of the present start. It must be gone after a boot.
    type: path
    default: /run/mixed_gpu
  deployment:
    description: The recorded entry. Where it drafts with a model, the answer has to have drafted tokens.
    type: dict
    default: {}
  draft:
    description:
      - The draft that TabbyAPI is to serve with, O(homelab.mixed_gpu.exllamav2#role:main:exllamav2_draft). The log of
        the start O(invocation_id) has to tell of it. Empty without one.
    type: dict
    default: {}
"""

EXAMPLES = r"""
- name: Assert that the server answers
  homelab.mixed_gpu.serving_proof:
    url: "{{ llama_server_url }}"
    api_key_file: /etc/mixed_gpu/llama-server.key
"""

RETURN = r"""
connect:
  description: One sentence for clients, with the path of the key and a command that uses the key.
  returned: success
  type: str
chats:
  description: What a client gets.
  returned: success
  type: dict
  contains:
    proved:
      description: What was asked for and is as it should be.
      type: list
      elements: str
      sample: [a chat through the template, a tool call, a stream]
    unproved:
      description: One sentence for each thing that is not proved.
      type: list
      elements: str
    seconds:
      description: How long that took.
      type: float
    line:
      description: All of it in one line.
      type: str
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import access_key, job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import draft_log
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    chat_proof,
    chat_record,
    load_journal,
    served_proof,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import Client, read_api_key
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model

#: A server that takes longer for one answer hangs.
ANSWER_SECONDS: t.Final = 300


def prove_chats(params: dict[str, t.Any], engine: served_proof.Engine, client: Client) -> chat_proof.Chats:
    """Ask as clients do. Raises UserError where an answer is not what a client can use."""
    chats = chat_proof.Chats()
    if not params["chats"]:
        return chats
    if params["model_path"]:
        header = gguf_model.read_header(params["model_path"], os.path.getsize(params["model_path"]))
        chat_proof.check_template(chats, header.fields, params["arguments"], params["environment"])
    chat = client.status("POST", chat_proof.PATH, chat_proof.chat_body(stream=False))
    if not chat_proof.judge_chat(chats, engine, *chat):
        return chats
    properties = client.status("GET", "/props")[1] if params["engine"] == "llama_cpp" else None
    if chat_proof.has_tools(chats, properties):
        call = client.status("POST", chat_proof.PATH, chat_proof.tool_body())
        chat_proof.judge_tool_call(chats, engine, *call)
    stream = client.events(chat_proof.PATH, chat_proof.chat_body(stream=True))
    chat_proof.judge_stream(chats, engine, *stream)
    if params["engine"] == "llama_cpp":
        build = job.build_record(job.build_file(params["program"]))
        built = served_proof.has_page(build, params["arguments"], params["environment"])
        chat_proof.judge_page(chats, engine, *client.content_type("/"), built)
    return chats


def prove(module: AnsibleModule) -> dict[str, t.Any]:
    """Ask the server; return C(chats). Raises UserError where an answer is not the right one."""
    params = module.params
    engine, url, path = served_proof.ENGINES[params["engine"]], params["url"], params["api_key_file"]
    key = read_api_key(path)
    if key:
        module.no_log_values.add(key)
    elif path:
        raise UserError(f"{path} holds no key: run the role that configures {engine.unit}.")
    served_proof.check_key(engine, params["api_key"], key or "")
    client = Client(url, key, ANSWER_SECONDS)
    status, answer = client.status("POST", engine.completion, dict(engine.body))
    served_proof.check_completion(engine, status, answer, path)
    served_proof.check_drafts(engine, params["deployment"], answer)
    draft = params["draft"].get("path")
    if draft and params["invocation_id"]:
        journalctl = module.get_bin_path("journalctl", required=True)
        log = load_journal.head(journalctl, engine.unit, params["invocation_id"])
        draft_log.check_served(log, draft, engine.unit)
    if key:
        stranger = Client(url, None, ANSWER_SECONDS)
        served_proof.check_secured(engine, stranger.status("GET", engine.secured)[0])
    if params["engine"] == "llama_cpp":
        for endpoint in served_proof.shut(params["arguments"], params["environment"]):
            status, _answer = client.status(endpoint.method, endpoint.path, endpoint.body)
            served_proof.check_shut(engine, endpoint, status)
    began = time.monotonic()
    chats = prove_chats(params, engine, client)
    for sentence in chats.warnings:
        module.warn(sentence)
    result = {**chats.result(engine, params["chats"]), "seconds": round(time.monotonic() - began, 2)}
    if params["chats"] and params["invocation_id"] and not module.check_mode:
        chat_record.keep(engine.unit, params["kept_dir"], params["invocation_id"], result)
    return result


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["llama_cpp", "exllama"], "default": "llama_cpp"},
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "default": "", "no_log": False},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "chats": {"type": "bool", "default": True},
            "program": {"type": "path", "default": ""},
            "model_path": {"type": "path", "default": ""},
            "invocation_id": {"type": "str", "default": ""},
            "kept_dir": {"type": "path", "default": load_journal.DIRECTORY},
            "deployment": {"type": "dict", "default": {}},
            "draft": {"type": "dict", "default": {}},
        },
        supports_check_mode=True,
    )
    try:
        chats = prove(module)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        name = exc.filename or module.params["api_key_file"]
        module.fail_json(msg=f"{name} cannot be read or written ({exc.strerror}): run as root.")
    page = chat_proof.PAGE in chats["proved"]
    connect = access_key.connect(module.params["url"], module.params["api_key_file"], page)
    module.exit_json(changed=False, connect=connect, chats=chats)


if __name__ == "__main__":
    main()
