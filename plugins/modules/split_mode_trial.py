#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: split_mode_trial
short_description: Verify a split mode by equal answers and stability under load
version_added: 0.1.0
description:
  - llama.cpp's split mode C(tensor) is experimental. Before it may be served, this module compares it with a reference,
    the chosen split in layer mode, and keeps it busy for a while.
  - A private C(llama-server) on loopback loads the model in each mode with the real context. The reference names the
    likeliest next tokens at places of a fixed text and generates O(generated_tokens) tokens after it; the mode on trial
    has to find the same tokens likely. What is compared, and how far it may be apart, is that of
    M(homelab.mixed_gpu.answer_check), which compares the mode with each device alone before it is served.
  - Then the mode on trial answers prompts of many lengths for O(soak_seconds), with idle gaps in between, and now and
    then the text again, whose answer must not change.
  - A refusal, a crash, a hang (killed at its time limit), too little memory or a wrong answer is a result, not a
    failure of the task; the reason is in C(load.reason).
  - The result is kept in the store of M(homelab.mixed_gpu.split_benchmark) under a key of its own, so the module is
    idempotent and an interrupted run resumes.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._measuring
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
  trial:
    description:
      - What to try, an element of the C(trials) of a plan, with C(label),
        C(split_mode), C(layers), C(load), C(environment) and C(reference).
    type: dict
    required: true
  devices:
    description: The devices, as M(homelab.mixed_gpu.llama_devices_info) returns them.
    type: list
    elements: dict
    required: true
  text_tokens:
    description: How many tokens of the text are read.
    type: int
    default: 256
  generated_tokens:
    description: How many tokens each answer has.
    type: int
    default: 64
  soak_seconds:
    description: How long the mode on trial is kept busy, the idle gaps not counted.
    type: int
    default: 120
  idle_gaps:
    description:
      - How often the mode on trial is left without a request meanwhile. A hang of llama.cpp (issue 27110) comes with a
        request after 40 seconds or more without one.
    type: int
    default: 2
  idle_seconds:
    description: How long each idle gap is.
    type: int
    default: 45
  load_timeout_seconds:
    description: Time after which loading the model counts as a hang.
    type: int
    default: 900
  request_timeout_seconds:
    description: Time after which one answer counts as a hang.
    type: int
    default: 120
seealso:
  - module: homelab.mixed_gpu.split_benchmark
  - module: homelab.mixed_gpu.measurement_lease
"""

EXAMPLES = r"""
- name: Run the trials of the plan
  homelab.mixed_gpu.split_mode_trial:
    model_path: /srv/models/example.gguf
    trial: "{{ item }}"
    devices: "{{ example_devices.devices }}"
    serving: "{{ example_serving }}"
    campaign: "2026-11-24T04:33:09Z"
    fingerprint: example
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
        - One dict with C(answers) (C(difference_percent), C(share), C(place), as of M(homelab.mixed_gpu.answer_check)),
          C(allreduce) (C(asked), C(ran), C(transport), C(fallback), or V(none) where the server says nothing of it),
          C(soak) (C(seconds), C(idle_gaps), C(requests), C(tokens), C(decode_tokens_per_second)) as far as the trial
          came.
      returned: when tried
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
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    allreduce_log,
    answer_check,
    answer_run,
    mode_trial,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server, TrialError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_soak import Soak
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import run, served_load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import allreduce


class SplitModeTrial(served_load.ServedLoad):
    """One trial."""

    def __init__(self, module: AnsibleModule) -> None:
        trial = module.params["trial"]
        for key in ("label", "split_mode", "layers", "load", "reference"):
            if key not in trial:
                module.fail_json(msg=f"trial.{key} is missing: give an element of a plan's trials.")
        for name in (
            "text_tokens", "generated_tokens", "soak_seconds", "load_timeout_seconds", "request_timeout_seconds"
        ):  # fmt: skip
            if module.params[name] < 1:
                module.fail_json(msg=f"{name} is {module.params[name]}: give at least 1.")
        for name in ("idle_gaps", "idle_seconds"):
            if module.params[name] < 0:
                module.fail_json(msg=f"{name} is {module.params[name]}: give 0 or more.")
        super().__init__(module, trial)
        size = trial.get("micro_batch_size") or self.params["serving"]["micro_batch_size"]
        self.serving = {**self.params["serving"], "micro_batch_size": size}
        self.found: dict[str, t.Any] = {"kind": "trial"}
        self.results = [self.found]

    def check_programs(self) -> None:
        remedy = "install llama.cpp with this target (role llama_cpp, llama_cpp_targets)"
        self.need(self.params["llama_server"], "program", remedy, os.X_OK)
        self.need(self.params["model_path"], "readable model", "fetch it (role llm_models), or set model_path")

    def ask(self, lock: int) -> None:
        """Run all parts, the ones that fail early first. Raises TrialError and UserError."""
        reference = self.deployment(self.load["reference"])
        candidate = self.deployment(self.load)
        environment = {name: str(value) for name, value in self.params["environment"].items()}
        own = {**environment, **{name: str(value) for name, value in (self.load.get("environment") or {}).items()}}
        text, generated = self.params["text_tokens"], self.params["generated_tokens"]
        try:
            with self.server(reference, environment, lock) as server:
                asked = answer_run.questions(server, text, generated)
                tokens, known = answer_run.of_placement(server, asked)
        except (TrialError, answer_run.NoNumbersError) as end:
            raise TrialError("reference_failed", f"layer mode, the reference, failed: {end}") from end
        server = self.server(candidate, own, lock)
        try:
            with server:
                try:
                    mine = answer_run.of_device(server, asked, tokens)
                except answer_run.NoNumbersError as end:
                    raise TrialError("different", f"it {end}") from end
                self.compare(tokens, mine, known)
                answer = server.answer(asked.text, generated)["tokens"]
                self.soak(server, asked.text, answer)
        finally:
            # NCCL's lines are all there once the server has ended
            self.found["allreduce"] = allreduce_log.read(server.said, allreduce.asked(self.load))
        self.check_allreduce()

    def compare(self, tokens: t.Sequence[int], mine: answer_check.Answers, known: answer_check.Answers) -> None:
        """Raise TrialError where the mode on trial gives other answers than the reference, which gave C(tokens)."""
        tolerance = answer_check.TOLERANCE_PERCENT
        found = answer_check.compare(tokens, mine, known, tolerance)
        self.found["answers"] = {
            "difference_percent": found.difference_percent, "share": found.share, "place": found.place,
        }  # fmt: skip
        if not found.agrees:
            how_far = answer_check.how_far(self.found["answers"])
            raise TrialError("different", f"{how_far} ({tolerance:g} % are tolerated)")

    def server(self, served: dict[str, t.Any], environment: dict[str, str], lock: int) -> Server:
        params = self.params
        return Server(
            params["llama_server"], served, self.box(served), environment, lock, params["load_timeout_seconds"],
            params["request_timeout_seconds"],
        )  # fmt: skip

    def box(self, served: dict[str, t.Any]) -> sandboxed_run.Sandbox:
        devices = [device["device"] for device in self.params["devices"]]
        return self.sandbox(devices, served["split_mode"], [self.params["model_path"]])

    def deployment(self, part: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
        params = self.params
        return mode_trial.deployment(
            params["model_path"], params["devices"], part["layers"], part["split_mode"], self.serving,
            params["rpc_endpoints"],
        )  # fmt: skip

    def soak(self, server: Server, prompt: t.Sequence[int], answer: t.Sequence[int]) -> None:
        """Keep the server busy, with idle gaps."""
        params = self.params
        soak = Soak(server, prompt, answer, params["generated_tokens"], self.serving["micro_batch_size"])
        try:
            soak.run(params["soak_seconds"], params["idle_gaps"], params["idle_seconds"])
        finally:
            self.found["soak"] = soak.found

    def check_allreduce(self) -> None:
        """Raise TrialError where the server did not use the all-reduce that was measured."""
        asked, found = allreduce.asked(self.load), self.found["allreduce"]
        if not asked or found is None or found["ran"] in (None, asked):
            return
        why = f": {found['fallback']}" if found["fallback"] else ""
        raise TrialError(
            "different",
            f"it was measured with {allreduce.name(asked)}, and llama-server used {allreduce.name(found['ran'])}{why}",
        )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_server": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-server"},
            "model_path": {"type": "path", "required": True},
            "trial": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "dict", "required": True},
            "text_tokens": {"type": "int", "default": 256, "no_log": False},
            "generated_tokens": {"type": "int", "default": 64, "no_log": False},
            "soak_seconds": {"type": "int", "default": 120},
            "idle_gaps": {"type": "int", "default": 2},
            "idle_seconds": {"type": "int", "default": 45},
            "load_timeout_seconds": {"type": "int", "default": 900},
            "request_timeout_seconds": {"type": "int", "default": 120},
            **run.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    module.exit_json(**SplitModeTrial(module).run())


if __name__ == "__main__":
    main()
