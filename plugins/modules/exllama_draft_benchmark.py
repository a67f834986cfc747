#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: exllama_draft_benchmark
short_description: Measure a draft beside a model of ExLlama on texts
version_added: 0.1.0
description:
  - Starts a private TabbyAPI on loopback with a draft, or without, and has it answer texts of several kinds, one
    request at a time, as M(homelab.mixed_gpu.speculation_benchmark) does with C(llama-server).
  - TabbyAPI has the settings and the sandbox of C(exllama-server.service). Tokens and times are its own.
  - Every text is sent once per load, through the model's chat template where it has one, and sampled as the server does
    by default. TabbyAPI takes no seed.
  - Drafted and accepted tokens are read from the log, where the backend counts them (ExLlamaV3).
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
  exllama_root:
    description: Directory that the role P(homelab.mixed_gpu.exllamav2#role) installs into.
    type: path
    default: /opt/exllama
  model_path:
    description: Folder of the EXL2 or EXL3 model.
    type: path
    required: true
  load:
    description:
      - What to measure, with C(label), C(split_mode), C(layers), C(load), C(gpu_split_gb) and C(speculation).
      - C(speculation) is a dict with C(kind) (V(none) without a draft), and for a draft C(path), C(device) (UUID of its
        card), C(memory_gb) and C(cache_mode).
    type: dict
    required: true
  devices:
    description: The cards, as M(homelab.mixed_gpu.exllama_devices_info) returns them.
    type: list
    elements: dict
    required: true
seealso:
  - module: homelab.mixed_gpu.speculation_benchmark
  - module: homelab.mixed_gpu.measurement_lease
"""

EXAMPLES = r"""
- name: Measure a draft on the first card
  homelab.mixed_gpu.exllama_draft_benchmark:
    model_path: /srv/models/example-exl2
    load:
      label: draft-model example on CUDA0
      split_mode: layer
      layers: [45, 36]
      load: 1
      gpu_split_gb: [20.5, 19.0]
      speculation:
        kind: draft-model
        n_max: 0
        path: /srv/models/draft-exl2
        device: "{{ example_devices.devices[0].id }}"
        memory_gb: 2.5
        cache_mode: Q8
    devices: "{{ example_devices.devices }}"
    serving: "{{ example_serving }}"
    texts:
      - name: prose
        prompt: Describe a harbour at night.
    campaign: "2026-11-24T04:33:09Z"
    fingerprint: "{{ example_fingerprint }}"
  register: example_draft
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
          C(prompt_ms), C(drafted) and C(accepted) (V(0) where nobody counts them). The first token of an answer comes
          from its prompt and is not counted.
        - For a long prompt one of C(kind) V(prompt) with C(prompt_tokens) and C(prompt_ms).
      returned: when measured
      type: list
      elements: dict
path:
  description: File of the store that holds the result.
  returned: success
  type: str
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import draft_load, draft_log, server_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama.private_server import Server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import Client
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring.served_load import (
    TEXT_ARGUMENTS,
    EndedError,
    TextsLoad,
)


class DraftBenchmark(TextsLoad):
    """One load of TabbyAPI that answers all texts."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module, ["gpu_split_gb"])
        load, params = self.load, self.params
        strange = next((text["name"] for text in params["texts"] if not isinstance(text["prompt"], str)), None)
        if strange is not None:
            module.fail_json(msg=f"The prompt of {strange} is no text: TabbyAPI takes no token ids, so give words.")
        generation = str(params["serving"].get("engine", "")).removeprefix("exllama")
        release = f"{params['exllama_root']}/{generation}/current"
        self.command = [
            f"{release}/venv/bin/python", f"{params['exllama_root']}/exllama_server.py", f"{release}/tabbyapi"
        ]  # fmt: skip
        self.draft = server_plan.recorded_draft(load)
        self.settings = {
            "engine": generation, "model_path": params["model_path"], "draft": self.draft, "host": "127.0.0.1",
            "keyed": True, **{name: params["serving"].get(name) for name in ("context_size", "cache_mode")},
        }  # fmt: skip
        try:
            server_plan.validate(self.settings)
        except UserError as exc:
            module.fail_json(msg=f"{load['label']} cannot be measured: {exc}")

    def check_programs(self) -> None:
        python, program, checkout = self.command
        remedy = "install ExLlama (role exllamav2)"
        self.need(python, "Python", remedy, os.X_OK)
        self.need(program, "program that starts TabbyAPI", remedy)
        self.need(f"{checkout}/main.py", "TabbyAPI", remedy)
        for path in self.configs():
            self.need(path, "readable model", "fetch it (role llm_models)")

    def configs(self) -> list[str]:
        folders = [self.params["model_path"], *([self.draft["path"]] if self.draft else [])]
        return [f"{folder}/config.json" for folder in folders]

    def ask(self, lock: int) -> None:
        params = self.params
        cards = [device["id"] for device in params["devices"]]
        chosen = {"gpus": cards, "gpu_split_gb": list(self.load["gpu_split_gb"]), "tensor_parallel": ""}
        sandbox = self.sandbox(["CUDA"], self.load["split_mode"], [*self.command[:2], *self.configs()], "exllama")
        server = Server(
            self.command,
            lambda port: server_plan.config({**self.settings, "port": port}, chosen),
            lambda url, key: Client(url, key, params["request_timeout_seconds"], "exllama-server"),
            sandbox, self.environment(params["environment"]), lock, params["load_timeout_seconds"],
        )  # fmt: skip
        with server:
            if self.draft and not draft_log.loaded(server.text()):
                raise EndedError("refused", "this TabbyAPI takes no draft: leave exllamav2_server_commit empty")
            self.results = draft_load.measure(
                server, params["texts"], params["generated_tokens"], params["prompt_tokens"]
            )


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "exllama_root": {"type": "path", "default": "/opt/exllama"},
            **TEXT_ARGUMENTS,
        },
        supports_check_mode=True,
    )
    module.exit_json(**DraftBenchmark(module).run())


if __name__ == "__main__":
    main()
