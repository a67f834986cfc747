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
  - Returned are tokens and time of each kind of text, and the drafted and the accepted tokens, all from the server's
    own counters. So is the share of rounds in which the first, second, ... drafted token was accepted.
  - Every text is sent once per load with C(cache_prompt) off and a fixed seed, at the server's default temperature. A
    text goes through the model's chat template where it has one.
  - A refusal, a crash, a hang (killed at its time limit) or too little memory is a result, not a failure of the task.
  - The result is kept in the store of M(homelab.mixed_gpu.split_benchmark) under a key of its own, so the module is
    idempotent and an interrupted run resumes.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._measuring
  - homelab.mixed_gpu._measuring.texts
attributes:
  check_mode:
    details: Returns a stored result. Where there is none, RV(load) is V(none) and RV(ignore:changed) is V(true).
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
      - With weights in RAM also C(experts_in_ram), as of M(homelab.mixed_gpu.split_benchmark).
      - C(speculation) is a dict with C(kind) (V(none) without speculation), C(n_max), and for a draft model C(path),
        C(device) (the id of its device), C(cache_type_k) and C(cache_type_v).
    type: dict
    required: true
  devices:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
seealso:
  - module: homelab.mixed_gpu.split_benchmark
  - module: homelab.mixed_gpu.measurement_lease
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
        - Of a kind with drafts of equal length one of C(kind) V(drafting) with C(drafts), C(drafted) and C(draft_ms),
          where the server says it, and some of C(kind) V(short), whose answers have room for shorter drafts alone, with
          C(length), C(rounds), C(drafts), C(drafted) and C(decode_ms).
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
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import mode_trial, served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server, TrialError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import served_load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring.types import Load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement, expert_room, speculation


class SpeculationBenchmark(served_load.TextsLoad):
    """One load of llama-server that answers all texts."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module)
        size = self.load.get("micro_batch_size") or self.params["serving"]["micro_batch_size"]
        try:
            self.experts = expert_placement.from_json(self.load["layers"], self.load.get("experts_in_ram"))
        except ValueError as exc:
            module.fail_json(msg=f"This load cannot be measured: {exc}.")
        self.serving = expert_placement.of_decision(self.params["serving"], {**self.load, "micro_batch_size": size})

    def answers(self, stored: Load) -> bool:
        prompt = stored["status"] == "ok" and self.params["prompt_tokens"] > 0
        rows = t.cast("list[dict[str, t.Any]]", stored["results"])
        return super().answers(stored) and (not prompt or any(row["kind"] == "prompt" for row in rows))

    def check_programs(self) -> None:
        remedy = "install llama.cpp with this target (role llama_cpp, llama_cpp_targets)"
        self.need(self.params["llama_server"], "program", remedy, os.X_OK)
        for path in self.files():
            self.need(path, "readable model", "fetch it (role llm_models)")

    def files(self) -> list[str]:
        draft = self.load["speculation"].get("path")
        return [self.params["model_path"], *([draft] if draft else [])]

    def ask(self, lock: int) -> None:
        params, load = self.params, self.load
        short = expert_room.shortage(params["model_path"], self.experts, load["speculation"].get("path", ""))
        if short is not None:
            raise TrialError(short.status, str(short.reason))
        served = mode_trial.deployment(
            params["model_path"], params["devices"], load["layers"], load["split_mode"], self.serving,
            params["rpc_endpoints"],
        )  # fmt: skip
        served |= {"speculation": load["speculation"], "experts_in_ram": load.get("experts_in_ram")}
        devices = [device["device"] for device in params["devices"]]
        box = self.sandbox(devices, load["split_mode"], self.files())
        environment = self.environment(params["environment"])
        server = Server(
            params["llama_server"], served, box, environment, lock, params["load_timeout_seconds"],
            params["request_timeout_seconds"],
        )  # fmt: skip
        with_line = load["speculation"]["kind"] in speculation.LINE_KINDS
        longest = load["speculation"]["n_max"] if with_line else 0
        with server:
            rows = served_texts.measure(
                server, params["texts"], params["generated_tokens"], params["prompt_tokens"], longest
            )
        if with_line and not any(row.get("drafted") for row in rows):
            said = "llama-server loaded what drafts, and drafted no token: its vocabulary may be another"
            raise TrialError("refused", said)
        self.results = rows


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_server": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-server"},
            **served_load.TEXT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    module.exit_json(**SpeculationBenchmark(module).run())


if __name__ == "__main__":
    main()
