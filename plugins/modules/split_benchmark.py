#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: split_benchmark
short_description: Measure one load of a model with one split
version_added: 0.1.0
description:
  - Ensures that the host's store holds a measurement for one load, that is one C(llama-bench) process with one
    loading of the model and several tests in it.
  - With C(engine) in O(serving) it is a process of ExLlamaV2 or ExLlamaV3 instead, measured the way their own speed
    tests do. The load then says the C(gpu_split_gb) that placed the layers, and the memory of each card.
  - The key of a load is O(fingerprint), O(campaign), split mode, layers and load number. A load that is in the store
    is not measured again, so the module is idempotent and an interrupted run resumes.
  - A split that runs out of memory, crashes or does not finish is a result, not a failure of the task; the reason is
    in C(load.reason). The task fails only when it is asked something that makes no sense, when the program cannot be
    run at all, or when the lease is lost.
  - The lock in O(state_dir) is handed to C(llama-bench) itself, so that it holds as long as anything is measuring,
    even when the play that began it was killed. A second run waits for it, and then finds the first one's result in
    the store.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._measuring
  - homelab.mixed_gpu._host_python.nvml
attributes:
  check_mode:
    details: Returns a stored load. Where there is none, RV(load) is V(none) and RV(ignore:changed) is V(true).
options:
  llama_bench:
    description: Path to the C(llama-bench) program.
    type: path
    default: /opt/llama.cpp/current/bin/llama-bench
  model_path:
    description: Path to the GGUF model, of a split model its first shard; for ExLlama the model's folder.
    type: path
    required: true
  load:
    description:
      - The load to measure, an element of the C(loads) of a plan, see C(docs/data_formats.md).
      - It has C(label), C(split_mode), C(layers), C(load) and C(tests), each test with C(kind), C(n_prompt),
        C(n_gen), C(n_depth) and C(repetitions). All samples are kept; the largest number of repetitions holds for all
        tests of the process.
      - A test may have a C(micro_batch_size) and C(threads) of its own, and a load an C(environment) that is added to
        O(environment), and C(experts_in_ram), without room for which nothing is started.
      - Tests at different depths cost more than their sum, as C(llama-bench) runs every depth with every length.
    type: dict
    required: true
  devices:
    description: llama.cpp's names of the devices (C(CUDA0), C(RPC1)), one for each number in C(load.layers).
    type: list
    elements: str
    required: true
  serving:
    description:
      - The serving profile. C(gpu_layers), C(batch_size), C(micro_batch_size), C(flash_attention), C(cache_type_k),
        C(cache_type_v), C(threads), C(poll) and C(load_mode) are used here, all of them required.
      - C(engine) says which engine measures, C(llama_cpp) where it is missing.
    type: dict
    required: true
  exllama:
    description: What an ExLlama needs beyond. Required with C(serving.engine) V(exllamav2) or V(exllamav3).
    type: dict
    suboptions:
      python:
        description: Python of the environment that ExLlama is installed in.
        type: path
        required: true
      worker:
        description: The program that loads and measures, C(files/exllama_worker.py) of the role split_tuning.
        type: path
        required: true
      model:
        description: The model, of M(homelab.mixed_gpu.exl_model_info).
        type: dict
        required: true
      devices:
        description: The cards, of M(homelab.mixed_gpu.exllama_devices_info).
        type: list
        elements: dict
        required: true
      reserve_mib:
        description: Memory that is kept free on every card.
        type: int
        required: true
  wrapper:
    description:
      - Command that is given the command line of C(llama-bench), runs it and passes its output on, such as a meter of
        energy. What it adds to a row as C(energy) comes with that test's result.
      - It must hand open files on to C(llama-bench), and end with its exit status.
    type: list
    elements: str
    default: []
  timeout_seconds:
    description: Time after which C(llama-bench) and everything it started is killed.
    type: int
    default: 1800
requirements:
  - coreutils (C(timeout))
notes:
  - Loop over the loads, one per item, so that an interrupted run resumes.
seealso:
  - module: homelab.mixed_gpu.measurement_lease
"""

EXAMPLES = r"""
- name: Measure what the planner asks for, one model load per item
  homelab.mixed_gpu.split_benchmark:
    model_path: /srv/models/example.gguf
    load: "{{ item }}"
    devices: [RPC0, RPC1]
    rpc_endpoints: ["127.0.0.1:50052", "127.0.0.1:50053"]
    serving:
      gpu_layers: 99
      batch_size: 2048
      micro_batch_size: 512
      flash_attention: "on"
      cache_type_k: f16
      cache_type_v: f16
      threads: 1
      poll: 0
      load_mode: auto
    campaign: "2026-11-24T04:33:09Z"
    fingerprint: example
  loop: "{{ example_plan.loads }}"
  loop_control:
    label: "{{ item.label }}"
  register: example_round
"""

RETURN = r"""
load:
  description:
    - The load as it was given, completed by what was measured. V(none) in check mode when it is not in the store.
  returned: success
  type: dict
  contains:
    status:
      description: V(ok), V(out_of_memory), V(crashed), V(timed_out), V(unreadable) or V(device_lost).
      returned: when measured
      type: str
    reason:
      description: One sentence when the status is not V(ok), else V(none).
      returned: when measured
      type: str
    results:
      description: One entry per test with C(kind), C(n_prompt), C(n_gen), C(n_depth) and C(samples_ms), and
        C(energy) where O(wrapper) added it. Empty unless the status is V(ok).
      returned: when measured
      type: list
      elements: dict
    conditions:
      description: What NVML said of each card meanwhile, as C(sampled) of M(homelab.mixed_gpu.gpu_facts), by UUID.
      returned: when measured
      type: dict
    contention:
      description: What else computed meanwhile, see C(docs/data_formats.md).
      returned: when measured
      type: dict
    campaign:
      description: The campaign.
      returned: when measured
      type: str
    fingerprint:
      description: The fingerprint.
      returned: when measured
      type: str
    allreduce:
      description:
        - Of split mode tensor between cards, how they added up, with C(asked), C(ran) (V(nccl), V(internal), V(none)),
          C(transport) of NCCL (V(P2P), V(SHM), V(NET)) and C(fallback), why the asked one did not run.
      returned: when a program said it
      type: dict
    gpu_split_gb:
      description: Of ExLlama, the gigabytes per card that placed the layers so.
      returned: when ExLlama measured
      type: list
      elements: float
    loaded:
      description: Of ExLlama, each card with its C(layers), C(allocated_mib), C(peak_mib) and C(used_mib).
      returned: when ExLlama measured
      type: list
      elements: dict
    answers:
      description: Of ExLlama, what the model made of a fixed text, see C(docs/data_formats.md).
      returned: when ExLlama measured
      type: dict
    measured_at:
      description: When the measurement ended (UTC).
      returned: when measured
      type: str
    wall_ms:
      description: Time that the process took, with loading the model, in milliseconds.
      returned: when measured
      type: int
    sandboxed:
      description: Whether the program ran in the sandbox of the units that serve, as it does where systemd runs.
      returned: when measured
      type: bool
    reused:
      description: Whether the load was in the store.
      returned: when measured
      type: bool
path:
  description: File of the store that holds the load.
  returned: success
  type: str
"""

import contextlib
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama.exllama_load import ExllamaLoad
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_watch
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import allreduce_log, llama_bench
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import outcome, run, store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring.types import Load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import allreduce, engines, expert_room

#: A second, talkative run to learn why the first one failed needs as much.
SHORTEST_DIAGNOSIS_SECONDS = 5


class SplitBenchmark(run.StoredLoad):
    """One load of llama-bench."""

    def __init__(self, module: AnsibleModule, cards: contextlib.AbstractContextManager[dict[str, t.Any]]) -> None:
        load = module.params["load"]
        try:
            self.order = llama_bench.make_order(load, module.params["devices"], module.params["serving"])
        except UserError as exc:
            module.fail_json(msg=f"This load cannot be measured: {exc}.")
        super().__init__(module, load)
        self.cards_share = self.order.split_mode == "tensor" and all(
            name.startswith("CUDA") for name in self.order.devices
        )
        self.added_up: dict[str, t.Any] | None = None
        self.cards = cards

    def answers(self, stored: Load) -> bool:
        # a device that tensor mode brought down would be brought down again
        if self.order.split_mode == "tensor" and stored["status"] == "device_lost":
            return True
        return store.reusable(stored, self.order.tests)

    def check_programs(self) -> None:
        self.need(
            self.params["llama_bench"], "program", "install llama.cpp (role llama_cpp), or set llama_bench", os.X_OK
        )
        self.need(self.params["model_path"], "readable model", "fetch it (role llm_models), or set model_path")

    def measure(self, lock: int) -> dict[str, t.Any]:
        command = llama_bench.bench_command(
            self.params["llama_bench"], self.params["model_path"], self.order, self.params["rpc_endpoints"]
        )
        longest_seconds = self.params["timeout_seconds"]
        limit_seconds = min(longest_seconds, self.load.get("timeout_seconds") or longest_seconds)
        with self.leased():
            started = time.monotonic()
            with self.cards as conditions:
                short = expert_room.shortage(self.params["model_path"], self.order.experts)
                verdict = short or self.run_bench(command, limit_seconds, lock)
            wall_ms = round((time.monotonic() - started) * 1000)
            remaining = limit_seconds - int(time.monotonic() - started)
            if not verdict.explained and remaining >= SHORTEST_DIAGNOSIS_SECONDS:
                second = self.run_bench(llama_bench.diagnosis_command(command), remaining, lock)
                if second.status in ("out_of_memory", "device_lost", "crashed"):
                    verdict = second
            if verdict.status == "ok":
                self.ask_allreduce(command, remaining, lock)
        for warning in verdict.warnings:
            self.module.warn(warning)
        self.build = verdict.build
        load = {
            **self.load,
            **{name: getattr(verdict, name) for name in ("status", "reason", "results")},
            "conditions": conditions,
            "wall_ms": wall_ms,
            **({"allreduce": self.added_up} if self.added_up else {}),
        }
        return self.store(load, command, verdict.warnings)

    def ask_allreduce(self, command: list[str], remaining: int, lock: int) -> None:
        """Let a short, talkative run say which all-reduce runs, once per arm: llama-bench itself says nothing of it."""
        known = self.added_up is not None and self.added_up["ran"] is not None
        if self.cards_share and not known and self.load["load"] == 1 and remaining >= SHORTEST_DIAGNOSIS_SECONDS:
            self.run_bench(llama_bench.question_command(command), remaining, lock)

    def run_bench(self, command: list[str], limit_seconds: int, lock: int) -> outcome.Verdict:
        """Run llama-bench for at most C(limit_seconds), with nothing of it left behind, and judge what it printed."""
        telling = allreduce_log.environment(self.cards_share, "tensor")
        # without the first an abort attaches a debugger
        environment = {"GGML_NO_BACKTRACE": "1", **telling, **self.params["environment"]}
        wrapper = self.params["wrapper"]
        sandbox = self.sandbox(
            self.params["devices"], self.order.split_mode, [self.params["model_path"]], cards=bool(wrapper)
        )
        done = self.run_limited([*wrapper, *command], sandbox, environment, limit_seconds, lock)
        text = f"{done.stdout}\n{done.stderr}"
        if self.cards_share:
            self.added_up = allreduce_log.read(text, allreduce.asked(self.load)) or self.added_up
        misuse = None if done.timed_out or done.rc == 0 else llama_bench.explain_misuse(done.rc, text)
        if misuse is not None and self.order.split_mode == "tensor":
            return outcome.Verdict("crashed", misuse, [], [], None, True)
        if misuse is not None:
            msg = f"{self.load.get('label')} cannot be measured: {misuse}."
            self.module.fail_json(msg=msg, rc=done.rc, stderr=done.stderr[-2000:])
        limit = limit_seconds if done.timed_out else None
        return llama_bench.judge(done.rc, done.stdout, done.stderr, limit, self.order)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_bench": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-bench"},
            "model_path": {"type": "path", "required": True},
            "load": {"type": "dict", "required": True},
            "devices": {"type": "list", "elements": "str", "required": True},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "wrapper": {"type": "list", "elements": "str", "default": []},
            "timeout_seconds": {"type": "int", "default": 1800},
            "exllama": {
                "type": "dict",
                "options": {
                    "python": {"type": "path", "required": True},
                    "worker": {"type": "path", "required": True},
                    "model": {"type": "dict", "required": True},
                    "devices": {"type": "list", "elements": "dict", "required": True},
                    "reserve_mib": {"type": "int", "required": True},
                },
            },
            **run.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    if module.params["timeout_seconds"] < 1:
        module.fail_json(msg=f"timeout_seconds is {module.params['timeout_seconds']}: give at least 1.")
    other = engines.of(module.params["serving"]).family == "exllama"
    cards = card_watch.once(module.params["host_python"])
    module.exit_json(**(ExllamaLoad if other else SplitBenchmark)(module, cards).run())


if __name__ == "__main__":
    main()
