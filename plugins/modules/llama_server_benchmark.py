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
  - Results are kept on the host per O(deployment), so a second run measures nothing until the recorded campaign, the
    split or the tests change.
  - The numbers include no queueing and no network. Other requests that the server handles meanwhile make them worse.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
  - homelab.mixed_gpu._host_python.nvml
  - homelab.mixed_gpu._server
attributes:
  check_mode:
    details: Measures nothing in check mode and returns stored results where there are any.
options:
  tests:
    description:
      - What to measure.
      - Speed deep in the context is measured by a long prompt followed by generation.
    type: list
    elements: dict
    default: []
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
  power_tokens:
    description:
      - Length of one more answer, during which the draw of the NVIDIA cards of O(entry) is read, at most the context
        less 16. V(0) measures no power.
    type: int
    default: 0
  deployment:
    description: Id of the recorded deployment. Without it nothing is stored and nothing is reused.
    type: str
    default: ""
  entry:
    description: Its entry in the host's record, from M(homelab.mixed_gpu.split_record).
    type: dict
  measure:
    description: Whether to measure what is not stored. With V(false) only stored results are returned.
    type: bool
    default: true
  state_dir:
    description: Directory of the stored results, a file per deployment.
    type: path
    default: /var/lib/mixed_gpu/served
"""

EXAMPLES = r"""
- name: Read the active deployment
  homelab.mixed_gpu.split_record:
    state: query
  register: example_recorded

- name: Measure what users get
  homelab.mixed_gpu.llama_server_benchmark:
    url: http://127.0.0.1:8080
    deployment: "{{ example_recorded.deployment }}"
    entry: "{{ example_recorded.entry }}"
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
    prompt_tokens:
      description: As given.
      type: int
    generated_tokens:
      description: As given.
      type: int
    repetitions:
      description: As given.
      type: int
    skipped_reason:
      description: Why the test was not measured, V(none) when it was.
      type: str
      sample: needs 8256 tokens and a slot of this server has 2048
    samples:
      description: One entry per repetition.
      type: list
      elements: dict
      contains:
        ttft_ms:
          description:
            - Time from the start of processing to the first token, in milliseconds.
            - The server samples the first token from the logits of the prompt, so this is its C(prompt_ms).
          type: float
        prompt_tokens_per_second:
          description: Speed of prompt processing.
          type: float
        decode_tokens_per_second:
          description: Speed of generation after the first token, V(none) when only one token was generated.
          type: float
        generated_tokens:
          description: Tokens that were generated.
          type: int
power:
  description: What the cards drew during one long answer, V(none) when that was not asked for or not measured.
  returned: always
  type: dict
  contains:
    reason:
      description: Why nothing was read, V(none) when it was.
      type: str
    watts:
      description: Draw of all cards of the deployment together.
      type: float
      returned: when read
    cards:
      description: C(device), C(id) and C(watts) of each card.
      type: list
      elements: dict
      returned: when read
    joules_per_token:
      description: Energy of one generated token.
      type: float
      returned: when read
context_per_slot:
  description: Context of one slot of the server, V(none) when nothing was measured.
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
contention:
  description: What else computed meanwhile, see C(docs/data_formats.md); V(none) when nothing was measured now.
  returned: always
  type: dict
"""

import importlib
import os
import secrets
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_store, server_timings
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import contention_watch
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import power, watched_devices

#: A server that takes longer for one answer hangs.
ANSWER_SECONDS: t.Final = 600
WARM_UP: t.Final = {"name": "warm-up", "prompt_tokens": 16, "generated_tokens": 4}
POWER_PROMPT_TOKENS: t.Final = 16
POWER_INTERVAL_MS: t.Final = 100


def check_arguments(module: AnsibleModule) -> None:
    """End the module where tests or deployment make no sense."""
    tests = module.params["tests"]
    names = [test["name"] for test in tests]
    doubles = sorted({name for name in names if names.count(name) > 1})
    if doubles:
        module.fail_json(msg=f"Duplicate test names: {', '.join(doubles)}. Test names must be unique.")
    for test in tests:
        for key in ("prompt_tokens", "generated_tokens", "repetitions"):
            if test[key] < 1:
                module.fail_json(msg=f"Test {test['name']}: {key} is {test[key]}, but must be at least 1.")
    try:
        if module.params["deployment"]:
            fact_record.check_deployment(module.params["deployment"])
    except UserError as exc:
        module.fail_json(msg=f"This cannot be stored: {exc}.")


class Benchmark:
    """One server, and where its results are stored."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.path: str | None = None
        self.watch = contention_watch.Watch((*contention_watch.UNITS, *contention_watch.SERVERS))
        if self.params["deployment"]:
            self.path = os.path.join(self.params["state_dir"], f"{self.params['deployment']}.json")

    def stored(self) -> Json | None:
        """Return the stored results of this configuration, or None. Ends the module when the file is damaged."""
        text = None if self.path is None else json_file.read_text(self.path)
        if text is None:
            return None
        try:
            return served_store.read(text, self.params["entry"])
        except ValueError as exc:
            self.module.fail_json(msg=f"{self.path} is damaged ({exc}): remove it, then it is measured again.")

    def nvml(self) -> t.Any:
        """Return NVML's library to read power with, or a sentence why power is not read. Can move the module."""
        devices = (self.params["entry"] or {}).get("devices") or []
        if not self.params["power_tokens"]:
            return "switched off (power_tokens is 0)"
        unseen = power.unseen(devices)
        return unseen or host_python.enter(["pynvml"], self.params["host_python"]) or importlib.import_module("pynvml")

    def measure(self, nvml: t.Any) -> Json:
        """Measure all tests and the power. Raises ServerError."""
        client = Client.of_module(self.module, ANSWER_SECONDS)
        context, vocabulary_size = client.context_per_slot(), client.vocabulary_size()
        if server_timings.does_not_fit(WARM_UP, context) is None:
            _sample(client, WARM_UP, vocabulary_size)
        measured = []
        with self.watch:
            for test in self.params["tests"]:
                reason = server_timings.does_not_fit(test, context)
                count = 0 if reason else test["repetitions"]
                samples = [_sample(client, test, vocabulary_size) for _number in range(count)]
                measured.append({**test, "skipped_reason": reason, "samples": samples})
        drawn = self.power(client, nvml, context, vocabulary_size)
        return {"tests": measured, "power": drawn, "context_per_slot": context, "measured_at": json_file.utc_now()}

    def power(self, client: Client, nvml: t.Any, context: int, vocabulary_size: int) -> Json:
        """Return what the cards draw during one long answer, or why that is not known."""
        if isinstance(nvml, str):
            return {"reason": nvml}
        devices = self.params["entry"]["devices"]
        tools = watched_devices.Tools(self.module, nvml)
        watched = watched_devices.WatchedDevices(devices, tools, POWER_INTERVAL_MS)
        if not watched.gpus["available"]:
            return {"reason": watched.gpus["reason"]}
        length = min(self.params["power_tokens"], context - POWER_PROMPT_TOKENS)
        test = {"name": "power", "prompt_tokens": POWER_PROMPT_TOKENS, "generated_tokens": length}
        with watched:
            sample = _sample(client, test, vocabulary_size)
        drawn = power.drawn(devices, watched.readings, sample["decode_tokens_per_second"])
        return {"reason": "the cards do not say what they draw"} if drawn is None else {"reason": None, **drawn}

    def store(self, result: Json) -> None:
        """Write the results for later runs."""
        if self.path is None:
            return
        configuration = served_store.configuration(self.params["entry"])
        stored = {
            "schema": served_store.SCHEMA, "configuration": configuration, "power_tokens": self.params["power_tokens"],
            **result,
        }  # fmt: skip
        try:
            json_file.write_text(self.path, json_file.to_text(stored), 0o644, self.module.atomic_move)
        except OSError as exc:
            self.module.fail_json(
                msg=f"{self.path} cannot be written ({exc.strerror}): make room, or choose another state_dir."
            )

    def run(self) -> Json:
        """Return the result of the module, measured or stored. Raises ServerError."""
        stored = self.stored()
        if stored is not None and not self.params["measure"]:
            return {"changed": False, "reused": True, **_shown(stored)}
        if stored is not None and served_store.covers(stored, self.params["tests"], self.params["power_tokens"]):
            return {"changed": False, "reused": True, **_shown(stored)}
        if not self.params["measure"]:
            return {"changed": False, "reused": False, **served_store.NOTHING}
        if self.module.check_mode:
            reason = "not measured in check mode"
            tests = [{**test, "skipped_reason": reason, "samples": []} for test in self.params["tests"]]
            return {"changed": True, "reused": False, **served_store.NOTHING, "tests": tests}
        result = self.measure(self.nvml())
        self.store(result)
        return {"changed": True, "reused": False, **result}


def _shown(stored: Json) -> Json:
    return {key: stored.get(key) for key in served_store.NOTHING}


def _sample(client: Client, test: t.Mapping[str, t.Any], vocabulary_size: int) -> Json:
    """Send one unique prompt and return the sample. Raises ServerError."""
    prompt = server_timings.prompt_tokens(test["prompt_tokens"], vocabulary_size, secrets.token_hex(8))
    timings = client.generate(prompt, test["generated_tokens"])
    try:
        return server_timings.sample(timings, test["prompt_tokens"])
    except ValueError as exc:
        raise ServerError(f"test {test['name']}: {exc}.") from exc


def main() -> None:
    test = {
        "name": {"type": "str", "required": True},
        "prompt_tokens": {"type": "int", "required": True, "no_log": False},
        "generated_tokens": {"type": "int", "required": True, "no_log": False},
        "repetitions": {"type": "int", "default": 3},
    }
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "no_log": False},
            "tests": {"type": "list", "elements": "dict", "default": [], "options": test},
            "power_tokens": {"type": "int", "default": 0, "no_log": False},
            "deployment": {"type": "str", "default": ""},
            "entry": {"type": "dict"},
            "measure": {"type": "bool", "default": True},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/served"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    if module.params["deployment"] and module.params["entry"] is None:
        module.fail_json(msg="deployment requires the option entry, its recorded entry (split_record, state query).")
    check_arguments(module)
    benchmark = Benchmark(module)
    try:
        result = benchmark.run()
    except ServerError as exc:
        module.fail_json(msg=str(exc))
    except KeyError as exc:
        module.fail_json(msg=f"The recorded deployment is not complete ({exc} is missing): run the tuning play again.")
    module.exit_json(contention=benchmark.watch.with_cards({}), **result)


if __name__ == "__main__":
    main()
