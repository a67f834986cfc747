#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: exllama_server_benchmark
short_description: Measure a running TabbyAPI as its users see it
version_added: 0.1.0
description:
  - Sends prompts to a running TabbyAPI, one request at a time, and times the whole requests, since TabbyAPI rounds its
    own timings. Every prompt is unique, so that no answer comes from a cache.
  - Asks it a question to which a model has one answer, too, which a revalidation compares.
  - Other requests that the server handles meanwhile make the numbers worse.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
  - homelab.mixed_gpu._server
attributes:
  check_mode:
    details: Asks nothing in check mode.
options:
  url:
    default: http://127.0.0.1:5000
  tests:
    description: What to measure.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the test.
        type: str
        required: true
      prompt_tokens:
        description: About how long the prompt is; the server counts its tokens.
        type: int
        required: true
      generated_tokens:
        description: Tokens to generate. With V(1) the test tells the speed of prompts, else that of generation.
        type: int
        required: true
      repetitions:
        description: How often to measure.
        type: int
        default: 3
seealso:
  - module: homelab.mixed_gpu.llama_server_benchmark
"""

EXAMPLES = r"""
- name: Measure what users get
  homelab.mixed_gpu.exllama_server_benchmark:
    api_key_file: /etc/mixed_gpu/exllama-server.key
    tests:
      - {name: prompt, prompt_tokens: 512, generated_tokens: 1}
      - {name: generation, prompt_tokens: 16, generated_tokens: 64}
"""

RETURN = r"""
tests:
  description: The tests with their C(samples), as those of M(homelab.mixed_gpu.llama_server_benchmark), in order.
  returned: not in check mode
  type: list
  elements: dict
answer:
  description: What the server answered to the question.
  returned: not in check mode
  type: str
contention:
  description: What else computed meanwhile, see C(docs/data_formats.md).
  returned: not in check mode
  type: dict
"""

import secrets
import time

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json, Mapping
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import served_times
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import contention_watch

COMPLETIONS = "/v1/completions"
#: A server that takes longer for one answer hangs.
ANSWER_SECONDS = 600
WARM_UP = {"name": "warm-up", "prompt_tokens": 16, "generated_tokens": 4}


def timed(client: Client, test: Mapping) -> Json:
    """Send one unique prompt and return the sample. Raises ServerError."""
    text = served_times.prompt(test["prompt_tokens"], secrets.token_hex(8))
    body = served_times.request(text, test["generated_tokens"])
    started = time.perf_counter()
    answer = client.ask(COMPLETIONS, body)
    seconds = time.perf_counter() - started
    try:
        return served_times.sample(answer, test["generated_tokens"], seconds)
    except ValueError as exc:
        raise ServerError(f"Test {test['name']}: {exc}.") from exc


def measure(module: AnsibleModule) -> Json:
    """Measure all tests and ask the question. Raises ServerError."""
    params = module.params
    client = Client.of_module(module, ANSWER_SECONDS, "exllama-server")
    timed(client, WARM_UP)
    watch = contention_watch.Watch((*contention_watch.UNITS, *contention_watch.SERVERS))
    with watch:
        measured = [
            {**test, "samples": [timed(client, test) for _number in range(test["repetitions"])]}
            for test in params["tests"]
        ]
    question = served_times.request(served_times.QUESTION, served_times.QUESTION_TOKENS)
    try:
        answer = served_times.text_of(client.ask(COMPLETIONS, question))
    except ValueError as exc:
        raise ServerError(f"The question was not answered: {exc}.") from exc
    return {"tests": measured, "answer": answer, "contention": watch.with_cards({})}


def main() -> None:
    test = {
        "name": {"type": "str", "required": True},
        "prompt_tokens": {"type": "int", "required": True, "no_log": False},
        "generated_tokens": {"type": "int", "required": True, "no_log": False},
        "repetitions": {"type": "int", "default": 3},
    }
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:5000"},
            "api_key_file": {"type": "path", "no_log": False},
            "tests": {"type": "list", "elements": "dict", "required": True, "options": test},
        },
        supports_check_mode=True,
    )
    for test in module.params["tests"]:
        for name in ("prompt_tokens", "generated_tokens", "repetitions"):
            if test[name] < 1:
                module.fail_json(msg=f"Test {test['name']}: {name} is {test[name]}, but must be at least 1.")
    if module.check_mode:
        module.exit_json(changed=False)
    try:
        result = measure(module)
    except ServerError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
