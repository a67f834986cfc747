# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import pathlib
import shlex
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight.other_engines import NOTHING, parse, running
from ansible_collections.homelab.mixed_gpu.tests.described_hosts import build


@pytest.mark.parametrize(
    ("line", "engine", "model", "tensor", "pipeline"),
    [
        ("vllm serve m --tensor-parallel-size 2", "vllm", "m", 2, None),
        ("/opt/v/bin/python3 /opt/v/bin/vllm serve org/m -tp 2 -pp=1", "vllm", "org/m", 2, 1),
        ("vllm serve --model m --tensor_parallel_size=4", "vllm", "m", 4, None),
        ("python -m vllm.entrypoints.openai.api_server --model m --tensor-parallel-size=2", "vllm", "m", 2, None),
        ("python -m vllm.entrypoints.api_server --model m", "vllm", "m", None, None),
        ("python -m sglang.launch_server --model-path m --tp-size 2 --pp-size 1", "sglang", "m", 2, 1),
        ("sglang serve --model-path m --tensor-parallel-size 2", "sglang", "m", 2, None),
        ("vllm serve m --tensor-parallel-size two", "vllm", "m", None, None),
        ("vllm serve m --tensor-parallel-size", "vllm", "m", None, None),
    ],
)
def test_command_lines(line, engine, model, tensor, pipeline):
    found = parse(shlex.split(line), {})
    assert (found["engine"], found["model"]) == (engine, model)
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (tensor, pipeline)


@pytest.mark.parametrize(
    "line",
    [
        "", "vllm --version", "nano /etc/systemd/system/vllm.service", "docker logs vllm/vllm-openai",
        "/opt/llama.cpp/current/bin/llama-server --model x.gguf --tensor-split 1,1", "pip install vllm",
        "python -m vllm_other.entrypoints.openai", "journalctl -u sglang",
    ],
)
def test_other_commands(line):
    assert parse(shlex.split(line), {}) is None


def test_nothing_secret_comes_out():
    line = (
        "vllm serve https://me:secret@host/m?token=secret --api-key secret --hf-token=secret -tp 1 -pp 2"
        " --ssl-keyfile /secret"
    )
    environment = {
        "OPENAI_API_KEY": "secret", "CUDA_VISIBLE_DEVICES": "1,0", "VLLM_PP_LAYER_PARTITION": "30,18",
        "HF_TOKEN": "hf_secret",
    }
    assert parse(shlex.split(line), environment) == {
        **NOTHING, "engine": "vllm", "model": "https://host/m", "tensor_parallel_size": 1,
        "pipeline_parallel_size": 2, "visible_devices": "1,0", "layer_partition": "30,18",
    }


@pytest.fixture
def vllm(tmp_path):
    """A process whose command line is vLLM's."""
    program = tmp_path / "vllm"
    program.write_text("import time\ntime.sleep(600)\n")
    command = [sys.executable, str(program), "serve", "org/m", "-tp", "2", "--api-key", "sk-secret"]
    process = subprocess.Popen(command, env={"CUDA_VISIBLE_DEVICES": "0,1", "HF_TOKEN": "hf_secret"})
    for _attempt in range(2400):
        if b"serve" in pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes():
            break
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def test_a_real_process_is_found_while_it_runs(vllm):
    (found,) = [engine for engine in running() if engine["pid"] == vllm.pid]
    assert (found["engine"], found["model"], found["tensor_parallel_size"]) == ("vllm", "org/m", 2)
    assert (found["visible_devices"], found["device_order"]) == ("0,1", None)
    assert "secret" not in json.dumps(found)
    vllm.kill()
    vllm.wait()
    assert [engine for engine in running() if engine["pid"] == vllm.pid] == []


def machine(tmp_path, processes):
    build.build({"processes": processes}, tmp_path)
    return running(str(tmp_path))


def test_a_launcher_and_its_program_are_one(tmp_path):
    words = ["vllm", "serve", "m", "-tp", "2"]
    found = machine(tmp_path, {
        9: {"cmdline": ["bash", "-c", "vllm serve m -tp 2"], "unit": "v.service"},
        10: {"cmdline": ["uv", "run", *words], "unit": "v.service"},
        11: {"cmdline": ["/usr/bin/python3", *words], "environ": {"CUDA_VISIBLE_DEVICES": "1"}, "unit": "v.service"},
        12: {"cmdline": ["VLLM::EngineCore"], "unit": "v.service"},
        13: {"cmdline": ["VLLM::Worker_TP1"], "unit": "v.service"},
        20: {"cmdline": ["/usr/bin/python3", *words]},
    })
    assert [(entry["pid"], entry["unit"]) for entry in found] == [(11, "v.service"), (20, "session-3.scope")]
    assert found[0]["visible_devices"] == "1"


def test_workers_of_a_program_of_its_own(tmp_path):
    (found,) = machine(tmp_path, {
        30: {"cmdline": ["python3", "my_server.py"], "unit": "own.service"},
        31: {"cmdline": ["VLLM::Worker_TP1"], "unit": "own.service"},
        32: {"cmdline": ["VLLM::Worker_TP0"], "unit": "own.service"},
    })
    assert (found["pid"], found["tensor_parallel_size"], found["model"]) == (31, 2, None)


@pytest.mark.parametrize(
    ("title", "engine", "size"),
    [("VLLM::Worker_PP0_TP3_EP3", "vllm", 4), ("sglang::scheduler_TP1", "sglang", 2)],
)
def test_workers_show_a_size_that_the_command_does_not_state(tmp_path, title, engine, size):
    (found,) = machine(tmp_path, {
        40: {"cmdline": [engine, "serve", "m", "--config", "c.yml"], "unit": "v.service"},
        41: {"cmdline": [title], "unit": "v.service"},
    })
    assert (found["pid"], found["model"], found["tensor_parallel_size"]) == (40, "m", size)


def test_a_size_of_the_command_wins_over_ranks(tmp_path):
    (found,) = machine(tmp_path, {
        40: {"cmdline": ["vllm", "serve", "m", "-tp", "1"]}, 41: {"cmdline": ["VLLM::Worker_TP1"]},
    })
    assert found["tensor_parallel_size"] == 1
