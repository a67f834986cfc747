#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: split_mode_trial
short_description: Verify a split mode by equal output and stability under load
version_added: 0.1.0
description:
  - llama.cpp's split mode C(tensor) is experimental. Before it may be served, this module compares it with a reference,
    the chosen split in layer mode, and keeps it busy for a while.
  - A private C(llama-server) on loopback loads the model in each mode with the real context, and answers the same
    prompts greedily; the first token that differs is reported. C(llama-perplexity) measures how well each predicts
    the same text; more than O(perplexity_tolerance_percent) above the reference is a failed trial.
  - Then the mode on trial answers prompts of many lengths for O(soak_seconds), and now and then the first prompt
    again, whose answer must not change.
  - A refusal, a crash, a hang (killed at its time limit), too little memory or a wrong answer is a result, not a
    failure of the task; the reason is in C(load.reason).
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
  llama_perplexity:
    description: Path to the C(llama-perplexity) program.
    type: path
    default: /opt/llama.cpp/current/bin/llama-perplexity
  model_path:
    description: Path to the GGUF model, of a split model its first shard.
    type: path
    required: true
  trial:
    description:
      - What to try, an element of the C(trials) that P(homelab.mixed_gpu.split_plan#filter) returns, with C(label),
        C(split_mode), C(layers), C(load), C(environment) and C(reference).
    type: dict
    required: true
  devices:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
  text_file:
    description: Text for prompts and perplexity; a few thousand words.
    type: path
    required: true
  prompts:
    description: How many prompts are answered in both modes.
    type: int
    default: 4
  generated_tokens:
    description: How many tokens each answer has.
    type: int
    default: 64
  perplexity_context:
    description: Context in which the perplexity is measured, in tokens.
    type: int
    default: 512
  perplexity_chunks:
    description: How many pieces of O(perplexity_context) tokens are measured.
    type: int
    default: 8
  perplexity_tolerance_percent:
    description: How much the perplexity may be above that of the reference.
    type: float
    default: 1.0
  soak_seconds:
    description: How long the mode on trial is kept busy.
    type: int
    default: 120
  load_timeout_seconds:
    description: Time after which loading the model, or measuring a perplexity, counts as a hang.
    type: int
    default: 900
  request_timeout_seconds:
    description: Time after which one answer counts as a hang.
    type: int
    default: 120
seealso:
  - module: homelab.mixed_gpu.split_benchmark
  - module: homelab.mixed_gpu.measurement_lease
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Run the trials of the plan
  homelab.mixed_gpu.split_mode_trial:
    model_path: /srv/models/example.gguf
    trial: "{{ item }}"
    devices: "{{ example_devices.devices }}"
    serving: "{{ example_serving }}"
    text_file: /var/lib/mixed_gpu/trial_text.txt
    campaign: "2026-11-24T04:33:09Z"
    fingerprint: "{{ example_parts | homelab.mixed_gpu.fingerprint }}"
  loop: "{{ example_plan.trials }}"
  loop_control:
    label: "{{ item.label }}"
  register: example_trial
"""

RETURN = r"""
load:
  description: The trial as it was given, completed by what was found. V(none) in check mode when it is not stored.
  returned: success
  type: dict
  contains:
    status:
      description:
        - V(ok), V(out_of_memory), V(refused), V(crashed), V(hung), V(different), V(unstable), V(device_lost), or
          V(reference_failed) when already the reference did not work.
      returned: when tried
      type: str
    reason:
      description: One sentence when the status is not V(ok), else V(none).
      returned: when tried
      type: str
    results:
      description:
        - One dict with C(answers) (C(tokens_compared), C(first_divergence), C(diverging_answers)), C(perplexity)
          (C(reference), C(candidate), C(difference_percent)), C(soak) (C(seconds), C(requests), C(tokens),
          C(decode_tokens_per_second)) as far as the trial came.
      returned: when tried
      type: list
      elements: dict
path:
  description: File of the store that holds the result.
  returned: success
  type: str
"""

import os
import statistics
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    llama_client,
    lost_words,
    mode_trial,
    server_timings,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server, TrialError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring.types import Load

#: Every so many requests of the soak are the first prompt again.
REPEAT_EVERY = 5


class SplitModeTrial(run.StoredLoad):
    """One trial."""

    def __init__(self, module: AnsibleModule) -> None:
        trial = module.params["trial"]
        for key in ("label", "split_mode", "layers", "load", "reference"):
            if key not in trial:
                module.fail_json(msg=f"trial.{key} is missing: give an element of split_plan's trials.")
        for name in ("prompts", "generated_tokens", "soak_seconds", "load_timeout_seconds", "request_timeout_seconds"):
            if module.params[name] < 1:
                module.fail_json(msg=f"{name} is {module.params[name]}: give at least 1.")
        super().__init__(module, trial)
        size = trial.get("micro_batch_size") or self.params["serving"]["micro_batch_size"]
        self.serving = {**self.params["serving"], "micro_batch_size": size}
        self.found: dict[str, t.Any] = {"kind": "trial"}

    def answers(self, stored: Load) -> bool:
        return bool(stored["status"] != "device_lost")

    def check_programs(self) -> None:
        remedy = "install llama.cpp with this target (role llama_cpp, llama_cpp_targets)"
        for program in (self.params["llama_server"], self.params["llama_perplexity"]):
            self.need(program, "program", remedy, os.X_OK)
        self.need(self.params["model_path"], "readable model", "fetch it (role llm_models), or set model_path")
        self.need(self.params["text_file"], "text", "set text_file to a text of some thousand words")

    def measure(self, lock: int) -> dict[str, t.Any]:
        status, reason = "ok", None
        started = time.monotonic()
        with self.leased():
            try:
                self.run_trial(lock)
            except TrialError as end:
                status, reason = end.status, end.reason
            except UserError as exc:
                self.fail(f"{self.load.get('label')} cannot be measured: {exc}.")
        load = {
            **self.load, "status": status, "reason": reason, "results": [self.found],
            "wall_ms": round((time.monotonic() - started) * 1000),
        }  # fmt: skip
        return self.store(load, [])

    def run_trial(self, lock: int) -> None:
        """Run all parts, the ones that fail early first; raises TrialError."""
        reference = self.deployment(self.load["reference"])
        candidate = self.deployment(self.load)
        environment = {name: str(value) for name, value in self.params["environment"].items()}
        own = {**environment, **{name: str(value) for name, value in (self.load.get("environment") or {}).items()}}
        with open(self.params["text_file"], encoding="utf-8", errors="replace") as handle:
            text = handle.read()
        prompts = self.prompts(text)
        generated = self.params["generated_tokens"]
        try:
            with self.server(reference, environment, lock) as server:
                known = [server.answer(prompt, generated)["tokens"] for prompt in prompts]
            before = self.perplexity(reference, environment, lock)
        except TrialError as end:
            raise TrialError("reference_failed", f"layer mode, the reference, failed: {end.reason}") from end
        after = self.perplexity(candidate, own, lock)
        self.found["perplexity"] = mode_trial.perplexities(before, after)
        with self.server(candidate, own, lock) as server:
            mine = [server.answer(prompt, generated)["tokens"] for prompt in prompts]
            self.found["answers"] = mode_trial.compare_answers(known, mine)
            reason = mode_trial.judge_perplexity(before, after, self.params["perplexity_tolerance_percent"])
            if reason is not None:
                raise TrialError("different", reason)
            self.soak(server, prompts[0], mine[0])

    def server(self, served: dict[str, t.Any], environment: dict[str, str], lock: int) -> Server:
        params = self.params
        return Server(
            params["llama_server"], served, self.box(served), environment, lock, params["load_timeout_seconds"],
            params["request_timeout_seconds"],
        )  # fmt: skip

    def box(self, served: dict[str, t.Any]) -> sandboxed_run.Sandbox:
        devices = [device["device"] for device in self.params["devices"]]
        files = [self.params["model_path"], self.params["text_file"]]
        return self.sandbox(devices, served["split_mode"], files)

    def deployment(self, part: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        params = self.params
        return mode_trial.deployment(
            params["model_path"], params["devices"], part["layers"], part["split_mode"], self.serving,
            params["rpc_endpoints"],
        )  # fmt: skip

    def prompts(self, text: str) -> list[str]:
        """Return pieces of the text from all over it, each short enough for a small context."""
        count = self.params["prompts"]
        room = max(16, min(1000, self.serving["context_size"] // self.serving["parallel_slots"] // 2))
        step = max(1, (len(text) - room) // count)
        return [text[place : place + room] for place in range(0, step * count, step)]

    def perplexity(
        self, served: dict[str, t.Any], environment: dict[str, str], lock: int
    ) -> tuple[float, float] | None:
        """Return (perplexity, error) of the text in a mode; TrialError when the program hangs or ends badly."""
        params = self.params
        command = mode_trial.perplexity_command(
            params["llama_perplexity"], served, params["text_file"], params["perplexity_context"],
            params["perplexity_chunks"],
        )  # fmt: skip
        _command, own = mode_trial.server_command(params["llama_server"], served, 1)
        limit = params["load_timeout_seconds"]
        done = lost_words.run(
            command, self.box(served), {**own, **environment}, limit, lock, mode_trial.PERPLEXITY
        )
        if done.timed_out:
            raise TrialError("hung", f"llama-perplexity was not done after {limit} seconds and was ended")
        text = f"{done.stdout}\n{done.stderr}"
        if done.rc != 0:
            raise TrialError(*mode_trial.why_it_ended(done.rc, text))
        return mode_trial.parse_perplexity(text)

    def soak(self, server: Server, prompt: str, answer: t.Sequence[int]) -> None:
        """Keep the server busy with prompts of many lengths; the first prompt's answer must stay what it was."""
        client = server.client
        try:
            vocabulary, context = client.vocabulary_size(), client.context_per_slot()
        except llama_client.ServerError as error:
            raise TrialError("unstable", str(error)) from error
        generated = self.params["generated_tokens"]
        speeds: list[float] = []
        requests = tokens = 0
        started = time.monotonic()
        try:
            while time.monotonic() - started < self.params["soak_seconds"]:
                if requests % REPEAT_EVERY == 0:
                    reply = self.repeated(server, prompt, answer, requests)
                else:
                    others = requests - requests // REPEAT_EVERY - 1
                    length = mode_trial.soak_prompt_tokens(
                        others, context, generated, self.serving["micro_batch_size"]
                    )
                    reply = server.answer(server_timings.prompt_tokens(length, vocabulary, str(requests)), generated)
                requests += 1
                timings = reply.get("timings") or {}
                tokens += int(timings.get("prompt_n", 0)) + int(timings.get("predicted_n", 0))
                if timings.get("predicted_per_second"):
                    speeds.append(float(timings["predicted_per_second"]))
        finally:
            self.found["soak"] = {
                "seconds": round(time.monotonic() - started),
                "requests": requests,
                "tokens": tokens,
                "decode_tokens_per_second": (
                    {"min": round(min(speeds), 3), "median": round(statistics.median(speeds), 3),
                     "max": round(max(speeds), 3)} if speeds else None
                ),
            }  # fmt: skip

    def repeated(self, server: Server, prompt: str, answer: t.Sequence[int], requests: int) -> t.Any:
        """Return the answer to the first prompt. Raises TrialError when it is not what it was."""
        reply = server.answer(prompt, self.params["generated_tokens"])
        place = mode_trial.first_divergence(answer, reply["tokens"])
        if place is None:
            return reply
        after = f"after {requests} requests"
        raise TrialError("unstable", f"the same prompt got another answer from token {place} on, {after}")


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_server": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-server"},
            "llama_perplexity": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-perplexity"},
            "model_path": {"type": "path", "required": True},
            "trial": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "dict", "required": True},
            "text_file": {"type": "path", "required": True},
            "prompts": {"type": "int", "default": 4},
            "generated_tokens": {"type": "int", "default": 64, "no_log": False},
            "perplexity_context": {"type": "int", "default": 512},
            "perplexity_chunks": {"type": "int", "default": 8},
            "perplexity_tolerance_percent": {"type": "float", "default": 1.0},
            "soak_seconds": {"type": "int", "default": 120},
            "load_timeout_seconds": {"type": "int", "default": 900},
            "request_timeout_seconds": {"type": "int", "default": 120},
            **run.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    module.exit_json(**SplitModeTrial(module).run())


if __name__ == "__main__":
    main()
