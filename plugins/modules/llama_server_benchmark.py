#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server_benchmark
short_description: Measure a running llama-server as its users see it
version_added: 0.1.0
description:
  - Sends prompts of exact length to a running llama-server, one request at a time, and returns the server's own
    C(timings).
  - Every prompt is unique and is sent with C(cache_prompt) off, so that no answer comes from a cache. End-of-text is
    ignored, so that exactly the asked number of tokens is generated.
  - Results are kept on the host under O(fingerprint) and the tests, so a second run measures nothing.
  - The numbers include no queueing and no network. Other requests that the server handles meanwhile make them worse.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details: Measures nothing in check mode and returns stored results where there are any.
  diff_mode:
    support: none
options:
  url:
    description: Where the server listens.
    type: str
    default: http://127.0.0.1:8080
  api_key:
    description: API key of the server.
    type: str
  api_key_file:
    description: File on the host that holds the API key. An absent or empty file means that the server needs none.
    type: path
  tests:
    description:
      - What to measure.
      - Speed deep in the context is measured by a long prompt followed by generation.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the test, unique in the list.
        type: str
        required: true
      prompt_tokens:
        description: Length of the prompt.
        type: int
        required: true
      generated_tokens:
        description: Tokens to generate. The first one comes from the prompt, so decoding is measured from V(2) on.
        type: int
        required: true
      repetitions:
        description: How often to measure.
        type: int
        default: 3
  fingerprint:
    description: What identifies the configuration that is measured. Without it nothing is stored and nothing is reused.
    type: str
    default: ""
  state_dir:
    description: Directory of the stored results.
    type: path
    default: /var/lib/mixed_gpu/served
  force:
    description: Measure again even where results are stored.
    type: bool
    default: false
  timeout_seconds:
    description: Time limit of one request.
    type: int
    default: 600
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Measure what users get
  homelab.mixed_gpu.llama_server_benchmark:
    url: http://127.0.0.1:8080
    fingerprint: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active].fingerprint }}"
    tests:
      - {name: ttft_1k, prompt_tokens: 1024, generated_tokens: 64, repetitions: 3}
      - {name: deep_7k, prompt_tokens: 7168, generated_tokens: 64, repetitions: 2}
  register: example_served
"""

RETURN = r"""
tests:
  description: The tests with their samples, in order.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: As given.
      type: str
      returned: always
    prompt_tokens:
      description: As given.
      type: int
      returned: always
    generated_tokens:
      description: As given.
      type: int
      returned: always
    repetitions:
      description: As given.
      type: int
      returned: always
    skipped_reason:
      description: Why the test was not measured, V(none) when it was.
      type: str
      returned: always
      sample: needs 8256 tokens and a slot of this server has 2048
    samples:
      description: One entry per repetition.
      type: list
      elements: dict
      returned: always
      contains:
        ttft_ms:
          description:
            - Time from the start of processing to the first token, in milliseconds.
            - The server samples the first token from the logits of the prompt, so this is its C(prompt_ms).
          type: float
          returned: always
        prompt_tokens_per_second:
          description: Speed of prompt processing.
          type: float
          returned: always
        decode_tokens_per_second:
          description: Speed of generation after the first token, V(none) when only one token was generated.
          type: float
          returned: always
        generated_tokens:
          description: Tokens that were generated.
          type: int
          returned: always
context_per_slot:
  description: Context of one slot of the server, V(none) when nothing had to be asked.
  returned: always
  type: int
measured_at:
  description: When the samples were taken, V(none) when there are none.
  returned: always
  type: str
reused:
  description: Whether the results were stored before.
  returned: always
  type: bool
result_path:
  description: Where the results are stored, V(none) without O(fingerprint).
  returned: always
  type: str
"""

import os
import secrets
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server, server_timings
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
    read_api_key,
)

WARM_UP = {"name": "warm-up", "prompt_tokens": 16, "generated_tokens": 4}


def _sample(client: Client, test: t.Mapping[str, t.Any], vocabulary_size: int) -> dict[str, t.Any]:
    """Send one unique prompt and return the sample."""
    prompt = server_timings.prompt_tokens(test["prompt_tokens"], vocabulary_size, secrets.token_hex(8))
    timings = client.generate(prompt, test["generated_tokens"])
    try:
        return server_timings.sample(timings, test["prompt_tokens"])
    except ValueError as exc:
        raise ServerError(f"test {test['name']}: {exc}.") from exc


def _check_tests(module: AnsibleModule, tests: list[dict[str, t.Any]]) -> None:
    names = [test["name"] for test in tests]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        module.fail_json(msg=f"The tests {', '.join(doubles)} are there twice: give each test a name of its own.")
    for test in tests:
        for key in ("prompt_tokens", "generated_tokens", "repetitions"):
            if test[key] < 1:
                module.fail_json(msg=f"Test {test['name']}: {key} is {test[key]}, but must be at least 1.")


def _stored(module: AnsibleModule, path: str | None) -> dict[str, t.Any] | None:
    if path is None:
        return None
    text = json_file.read_text(path)
    if text is None:
        return None
    try:
        return llama_server.read_result(text)
    except ValueError as exc:
        module.fail_json(msg=f"{path} is damaged ({exc}): remove it, then it is measured again.")


def _measure(client: Client, tests: list[dict[str, t.Any]]) -> tuple[int, list[dict[str, t.Any]]]:
    context = client.context_per_slot()
    vocabulary_size = client.vocabulary_size()
    if server_timings.does_not_fit(WARM_UP, context) is None:
        _sample(client, WARM_UP, vocabulary_size)
    measured = []
    for test in tests:
        reason = server_timings.does_not_fit(test, context)
        samples = [] if reason else [_sample(client, test, vocabulary_size) for dummy in range(test["repetitions"])]
        measured.append({**test, "skipped_reason": reason, "samples": samples})
    return context, measured


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key": {"type": "str", "no_log": True},
            "api_key_file": {"type": "path", "no_log": False},
            "tests": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "prompt_tokens": {"type": "int", "required": True, "no_log": False},
                    "generated_tokens": {"type": "int", "required": True, "no_log": False},
                    "repetitions": {"type": "int", "default": 3},
                },
            },
            "fingerprint": {"type": "str", "default": ""},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/served"},
            "force": {"type": "bool", "default": False},
            "timeout_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    params = module.params
    _check_tests(module, params["tests"])
    path = None
    if params["fingerprint"]:
        key = llama_server.result_key(params["fingerprint"], params["tests"])
        path = os.path.join(params["state_dir"], f"{key}.json")
    stored = None if params["force"] else _stored(module, path)
    if stored is not None:
        module.exit_json(
            changed=False,
            reused=True,
            result_path=path,
            tests=stored["tests"],
            context_per_slot=stored.get("context_per_slot"),
            measured_at=stored.get("measured_at"),
        )
    if module.check_mode:
        reason = "not measured in check mode"
        tests = [{**test, "skipped_reason": reason, "samples": []} for test in params["tests"]]
        nothing = {"context_per_slot": None, "measured_at": None}
        module.exit_json(changed=True, reused=False, result_path=path, tests=tests, **nothing)
    api_key = read_api_key(params["api_key"], params["api_key_file"])
    if api_key:
        module.no_log_values.add(api_key)
    client = Client(params["url"], api_key, params["timeout_seconds"])
    try:
        context, tests = _measure(client, params["tests"])
    except ServerError as exc:
        module.fail_json(msg=str(exc))
    result = {"tests": tests, "context_per_slot": context, "measured_at": json_file.utc_now()}
    if path is not None:
        stored = {**result, "schema": llama_server.RESULT_SCHEMA, "fingerprint": params["fingerprint"]}
        try:
            json_file.write_text(path, json_file.to_text(stored), 0o644, module.atomic_move)
        except OSError as exc:
            module.fail_json(msg=f"{path} cannot be written ({exc.strerror}): make room, or choose another state_dir.")
    module.exit_json(changed=True, reused=False, result_path=path, **result)


if __name__ == "__main__":
    main()
