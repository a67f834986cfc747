#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: speculation_benchmark
short_description: Measure one way of speculative decoding on texts
version_added: 0.1.0
description:
  - C(llama-bench) cannot measure speculation. This module starts a private C(llama-server) on loopback with one way to
    speculate, or none, and has it answer texts of several kinds, one request at a time.
  - Returned are tokens and time of each kind of text, the drafted and the accepted tokens, and the share of rounds in
    which the first, second, ... drafted token was accepted, all from the server's own counters.
  - Every text is sent once per load with C(cache_prompt) off and a fixed seed, at the server's default temperature. A
    text goes through the model's chat template where it has one.
  - A refusal, a crash, a hang (killed at its time limit) or too little memory is a result, not a failure of the task.
  - The result is kept in the store of M(homelab.mixed_gpu.split_benchmark) under a key of its own, so the module is
    idempotent and an interrupted run resumes.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
  - homelab.mixed_gpu._measuring
attributes:
  check_mode:
    support: full
    details:
      - Returns a stored result. Where there is none, RV(load) is V(none) and RV(ignore:changed) is V(true).
  diff_mode:
    support: full
options:
  llama_server:
    description: Path to the C(llama-server) program.
    type: path
    default: /opt/llama.cpp/current/bin/llama-server
  model_path:
    description: Path to the GGUF model, of a split model its first shard.
    type: path
    required: true
  load:
    description:
      - What to measure, with C(label), C(split_mode), C(layers), C(load) and C(speculation).
      - C(speculation) is a dict with C(kind) (V(none) without speculation), C(n_max), and for a draft model C(path),
        C(device) (the id of its device), C(cache_type_k) and C(cache_type_v).
    type: dict
    required: true
  devices:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
  texts:
    description: The texts to answer.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Kind of the text. Several texts may be of one kind.
        type: str
        required: true
      prompt:
        description: The text, a string, or a list of token ids.
        type: raw
        required: true
  generated_tokens:
    description: How many tokens each answer has.
    type: int
    default: 192
  prompt_tokens:
    description: How many tokens a long prompt has, of which the time is measured too; V(0) for none.
    type: int
    default: 0
  load_timeout_seconds:
    description: Time after which loading the model counts as a hang.
    type: int
    default: 900
  request_timeout_seconds:
    description: Time after which one answer counts as a hang.
    type: int
    default: 300
seealso:
  - module: homelab.mixed_gpu.split_benchmark
  - module: homelab.mixed_gpu.measurement_lease
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Measure a draft model on the first device
  homelab.mixed_gpu.speculation_benchmark:
    model_path: /srv/models/example.gguf
    load:
      label: draft-simple n-max 4
      split_mode: layer
      layers: [45, 36]
      load: 1
      speculation:
        kind: draft-simple
        n_max: 4
        path: /srv/models/draft.gguf
        device: "{{ example_devices.devices[0].id }}"
        cache_type_k: f16
        cache_type_v: f16
    devices: "{{ example_devices.devices }}"
    serving: "{{ example_serving }}"
    texts:
      - name: prose
        prompt: Describe a harbour at night.
    campaign: "2026-11-24T04:33:09Z"
    fingerprint: "{{ example_fingerprint }}"
  register: example_speculation
"""

RETURN = r"""
load:
  description: The load as it was given, completed by what was found. V(none) in check mode when it is not stored.
  returned: success
  type: dict
  contains:
    status:
      description: V(ok), V(out_of_memory), V(refused), V(crashed), V(hung), V(unstable) or V(device_lost).
      returned: when measured
      type: str
    reason:
      description: One sentence when the status is not V(ok), else V(none).
      returned: when measured
      type: str
    results:
      description:
        - One dict per kind of text with C(kind) V(text), C(text), C(tokens), C(decode_ms), C(prompt_tokens),
          C(prompt_ms), C(drafted), C(accepted), C(drafts) and C(positions). The first token of an answer comes from
          its prompt and is not counted.
        - For a long prompt one of C(kind) V(prompt) with C(prompt_tokens) and C(prompt_ms).
        - The greedy answer to the first text, of C(kind) V(greedy) with C(tokens).
      returned: when measured
      type: list
      elements: dict
path:
  description: File of the store that holds the result.
  returned: success
  type: str
"""

import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import mode_trial, served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server, TrialError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring.types import Load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import speculation


class SpeculationBenchmark(run.StoredLoad):
    """One load of llama-server that answers all texts."""

    def __init__(self, module: AnsibleModule) -> None:
        load = module.params["load"]
        for key in ("label", "split_mode", "layers", "load", "speculation"):
            if key not in load:
                module.fail_json(msg=f"load.{key} is missing.")
        for name in ("generated_tokens", "load_timeout_seconds", "request_timeout_seconds"):
            if module.params[name] < (2 if name == "generated_tokens" else 1):
                module.fail_json(msg=f"{name} is {module.params[name]}: that is too few.")
        if not module.params["texts"]:
            module.fail_json(msg="texts is empty: give at least one text.")
        super().__init__(module, load)
        size = load.get("micro_batch_size") or self.params["serving"]["micro_batch_size"]
        self.serving = {**self.params["serving"], "micro_batch_size": size}

    def answers(self, stored: Load) -> bool:
        if stored["status"] != "ok":
            return bool(stored["status"] != "device_lost")
        rows = t.cast("list[dict[str, t.Any]]", stored["results"])
        prompt = not self.params["prompt_tokens"] or any(row["kind"] == "prompt" for row in rows)
        return prompt and {text["name"] for text in self.params["texts"]} <= {row.get("text") for row in rows}

    def check_programs(self) -> None:
        remedy = "install llama.cpp with this target (role llama_cpp, llama_cpp_targets)"
        self.need(self.params["llama_server"], "program", remedy, os.X_OK)
        for path in self.files():
            self.need(path, "readable model", "fetch it (role llm_models)")

    def files(self) -> list[str]:
        draft = self.load["speculation"].get("path")
        return [self.params["model_path"], *([draft] if draft else [])]

    def measure(self, lock: int) -> dict[str, t.Any]:
        status, reason, found = "ok", None, []
        started = time.monotonic()
        with self.leased():
            try:
                found = self.answered(lock)
            except TrialError as end:
                status, reason = end.status, end.reason
            except UserError as exc:
                self.fail(f"{self.load.get('label')} cannot be measured: {exc}.")
        load = {
            **self.load, "status": status, "reason": reason, "results": found,
            "wall_ms": round((time.monotonic() - started) * 1000),
        }  # fmt: skip
        return self.store(load, [])

    def answered(self, lock: int) -> list[dict[str, t.Any]]:
        """Return what each kind of text took; raises TrialError."""
        params, load = self.params, self.load
        served = mode_trial.deployment(
            params["model_path"], params["devices"], load["layers"], load["split_mode"], self.serving,
            params["rpc_endpoints"],
        )  # fmt: skip
        served["speculation"] = load["speculation"]
        devices = [device["device"] for device in params["devices"]]
        box = self.sandbox(devices, load["split_mode"], self.files())
        environment = self.environment(params["environment"])
        server = Server(
            params["llama_server"], served, box, environment, lock, params["load_timeout_seconds"],
            params["request_timeout_seconds"],
        )  # fmt: skip
        with server:
            rows = served_texts.measure(server, params["texts"], params["generated_tokens"], params["prompt_tokens"])
        if load["speculation"]["kind"] in speculation.LINE_KINDS and not any(row.get("drafted") for row in rows):
            said = "llama-server loaded what drafts, and drafted no token: its vocabulary may be another"
            raise TrialError("refused", said)
        return rows


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_server": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-server"},
            "model_path": {"type": "path", "required": True},
            "load": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "dict", "required": True},
            "texts": {
                "type": "list", "elements": "dict", "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "prompt": {"type": "raw", "required": True},
                },
            },
            "generated_tokens": {"type": "int", "default": 192, "no_log": False},
            "prompt_tokens": {"type": "int", "default": 0, "no_log": False},
            "load_timeout_seconds": {"type": "int", "default": 900},
            "request_timeout_seconds": {"type": "int", "default": 300},
            **run.ARGUMENTS,
        },
        supports_check_mode=True,
    )  # fmt: skip
    module.exit_json(**SpeculationBenchmark(module).run())


if __name__ == "__main__":
    main()
