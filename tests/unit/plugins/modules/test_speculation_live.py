# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A whole tuning with speculation on the real llama.cpp: the planner asks, the real modules measure, the unit's words
start a real server."""

from __future__ import annotations

import importlib
import json
import pathlib
import sys

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run, steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import server_check, server_log
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import tuning
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, fact_record

MODULES = "ansible_collections.homelab.mixed_gpu.plugins.modules"
ROLE = pathlib.Path(tuning.__file__).parents[3] / "roles/split_tuning/defaults/main.yml"
AGREEMENT = [0.95, 0.7]
TEXTS = known_next_token.target(1024, 2, 0).texts
SETTINGS = {
    "model_id": "target", "model_sha256": "a" * 64, "deployment": "target", "modes": ["layer"], "micro_batches": [],
    "probe": False, "objective": "decode", "context_size": 512, "micro_batch_size": 64, "batch_size": 256,
    "reserve_mib": 0, "bench_prompt_tokens": 64, "bench_generated_tokens": 8, "bench_repetitions": 2,
    "prompt_tokens": 100, "generated_tokens": 50, "baseline_max_loads": 2, "max_loads": 3, "indifference": 0.01,
    "speculation": ["draft-simple", "ngram-simple"], "speculation_tokens": 65, "load_timeout_seconds": 300,
    "texts": [{"name": f"text {kind}", "prompt": [1, text[0]]} for kind, text in enumerate(TEXTS)],
}  # fmt: skip
#: Steps that ask of a host what a test has no right to, and their answers.
STAND_INS = {
    "split_tuning_info": {
        "missing": [], "build": "b1", "nccl": False, "versions": {}, "flash_attention": False, "record_problem": None,
        "record": fact_record.empty(), "memory_total_mib": 8192, "cpu": {"physical_cores": 2, "threads": 2},
        "gpus": {"available": False, "driver_version": None, "gpus": []},
    },
    "host_info": {"host": {"kernel": "6.8", "firmware": None}},
}  # fmt: skip


def write(path, agreement, **more):
    shape = {"blocks": 4, "embedding_length": 512, "feed_forward_length": 512, "head_count": 8, "head_count_kv": 4}
    options = {**shape, "vocabulary_size": 1024, "type": "q8_0", "agreement": agreement, **more}
    random_model.write_model(str(path), random_model.checked_options(options), "0" * 64)


class RealHost:
    """Runs the steps of a campaign with the real modules."""

    def __init__(self, folder, llama_bin, endpoints, capfd):
        (folder / "llama").mkdir()
        (folder / "llama" / "bin").symlink_to(llama_bin)
        self.capfd, self.done = capfd, []
        # nothing moves into another interpreter: this one may lack NVML's library, and there are no cards to watch
        own = {
            **SETTINGS, "model_path": f"{folder}/target.gguf", "llama_cpp": f"{folder}/llama",
            "rpc_endpoints": endpoints, "host_python": "/nowhere/python", "state_dir": f"{folder}/state", "drafts": {
                "draft": {"path": f"{folder}/draft.gguf", "sha256": "d" * 64, "draft_for": "target"},
                "stranger": {"path": f"{folder}/stranger.gguf", "sha256": "e" * 64, "draft_for": "target"},
            },
        }  # fmt: skip
        defaults = yaml.safe_load(ROLE.read_text())
        self.variables = {**defaults, **{f"split_tuning_{name}": value for name, value in own.items()}}

    def run(self, step):
        if step.module in STAND_INS:
            return STAND_INS[step.module]
        arguments = dict(step.args)
        if step.module in ("split_benchmark", "speculation_benchmark"):
            arguments |= {"lease_unit": "", "lock_wait_seconds": 60}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            importlib.import_module(f"{MODULES}.{step.module}").main()
        result = json.loads(self.capfd.readouterr().out.splitlines()[-1])
        assert not result.get("failed"), (step.name, result)
        return result

    def tune(self):
        planner = tuning.planner(self.variables)
        while True:
            plan = planner.plan(self.done)
            assert plan.failure is None, plan.failure
            if plan.result is not None:
                return plan.result
            step = plan.steps[0]
            self.done.append(steps.Done(step, self.run(step), "2026-11-24T04:33:09Z"))
            print(planner.line(self.done[-1]), file=sys.stderr)


@pytest.mark.live
def test_a_tuning_on_the_real_llama_cpp_serves_what_it_recorded(tmp_path, llama_bin, rpc_endpoints, capfd, monkeypatch):
    monkeypatch.setattr(AnsibleModule, "warn", lambda *_args, **_more: None)
    write(tmp_path / "target.gguf", [1.0, 1.0])
    write(tmp_path / "draft.gguf", AGREEMENT, blocks=1, embedding_length=256, seed=4)
    write(tmp_path / "stranger.gguf", [], vocabulary_size=512, blocks=1)
    host = RealHost(tmp_path, llama_bin, rpc_endpoints[:2], capfd)
    result = host.tune()
    entry = fact_record.check_entry(deployment.build(result["tuning"]))
    found = entry["decision"]["speculation"]
    assert found["refused"] == [
        "stranger cannot draft for this model: its vocabulary has 512 tokens, and that of the target 1024"
    ]
    loads = [item.result["load"] for item in host.done if item.step.module == "speculation_benchmark"]
    assert [load["status"] for load in loads] == ["ok"] * len(loads)
    assert 2 <= len(loads) <= 5 and loads[0]["speculation"]["kind"] == "none"
    assert found["served"] is None or loads[-1]["speculation"]["kind"] == "none"
    assert (found["verdict"] == "faster") == (found["served"] is not None) == ("speculation" in entry)
    # whatever won on this machine: the draft's way of serving has to work
    tried = next(load for load in loads if load["speculation"]["kind"] == "draft-simple")
    served = {**entry, "speculation": tried["speculation"]}
    box = sandboxed_run.Sandbox(endpoints=rpc_endpoints[:2], files=[str(tmp_path)])
    with Server(f"{llama_bin}/llama-server", served, box, {}, 0, 300, 300) as server:
        answers = [server.answer([1, text[0]], 40) for text in TEXTS]
        load = server_log.parse_load(server.text())
    assert [answer["tokens"] for answer in answers] == [text[1:41] for text in TEXTS]
    assert all(answer["timings"]["draft_n"] > 0 for answer in answers)
    # the log says of it what the record says, and of the model what it always said
    assert server_check.deviations(served, load) == []
    said = server_check.deviations({**entry, "speculation": None}, load)
    assert len(said) == 1 and said[0].startswith("The server drafts with draft-simple; the facts say nothing: ")
    with capfd.disabled():
        print(f"\n{found['why']}\n", json.dumps(found["table"]))
