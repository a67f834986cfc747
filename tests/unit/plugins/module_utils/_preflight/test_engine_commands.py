# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import shlex

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import engine_commands
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight.engine_commands import parse


@pytest.mark.parametrize(
    ("line", "engine", "model", "tensor", "pipeline"),
    [
        ("vllm serve m --tensor-parallel-size 2", "vllm", "m", 2, None),
        ("/opt/v/bin/python3 /opt/v/bin/vllm serve org/m -tp 2 -pp=1", "vllm", "org/m", 2, 1),
        ("vllm serve --model m --tensor_parallel_size=4", "vllm", "m", 4, None),
        ("python -m vllm.entrypoints.openai.api_server --model m --tensor-parallel-size=2", "vllm", "m", 2, None),
        ("python -m vllm.entrypoints.api_server --model m", "vllm", "m", None, None),
        ("python /v/lib/vllm/entrypoints/openai/api_server.py --model m -tp 2", "vllm", "m", 2, None),
        ("bash -c 'source a && exec vllm serve m -tp 2 && echo --tensor-parallel-size 9'", "vllm", "m", 2, None),
        ("env CUDA_VISIBLE_DEVICES=0,1 vllm serve m -tp 2", "vllm", "m", 2, None),
        ("docker run --rm --name vllm --gpus all -e HF_TOKEN=x vllm/vllm-openai:v0.33 --model m -tp 2", "vllm", "m", 2,
         None),
        ("podman run docker.io/lmsysorg/sglang:latest python3 -m sglang.launch_server --model-path m --tp 2", "sglang",
         "m", 2, None),
        ("python -m sglang.launch_server --model-path m --tp-size 2 --pp-size 1", "sglang", "m", 2, 1),
        ("sglang serve --model-path m --tensor-parallel-size 2", "sglang", "m", 2, None),
        ("vllm serve m --tensor-parallel-size ${SIZE:-2}", "vllm", "m", 2, None),
        ("vllm serve m --tensor-parallel-size $TP", "vllm", "m", 3, None),
        ("vllm serve m --tensor-parallel-size two", "vllm", "m", None, None),
        ("vllm serve m --tensor-parallel-size", "vllm", "m", None, None),
    ],
)
def test_command_lines(line, engine, model, tensor, pipeline):
    found = parse(shlex.split(line), {"TP": "3"})
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
        "env HF_TOKEN=hf_secret VLLM_API_KEY=secret VLLM_PP_LAYER_PARTITION=30,18 vllm serve"
        " https://me:secret@host/m?token=secret --api-key secret --hf-token=secret -tp 1 -pp 2 --ssl-keyfile /secret"
    )
    found = parse(shlex.split(line), {"OPENAI_API_KEY": "secret", "CUDA_VISIBLE_DEVICES": "1,0"})
    assert "secret" not in json.dumps(found)
    assert found == {
        "engine": "vllm", "model": "https://host/m", "config": None, "tensor_parallel_size": 1,
        "pipeline_parallel_size": 2, "visible_devices": "1,0", "device_order": None, "layer_partition": "30,18",
    }


@pytest.mark.parametrize(
    ("title", "expected"),
    [
        ("VLLM::Worker_TP1", {"engine": "vllm", "tensor_parallel_size": 2}),
        ("VLLM::Worker_PP0_TP3_EP3", {"engine": "vllm", "tensor_parallel_size": 4}),
        ("sglang::scheduler_TP0", {"engine": "sglang", "tensor_parallel_size": 1}),
        ("VLLM::EngineCore", None), ("/usr/bin/vllm", None),
    ],
)
def test_titles_of_workers(title, expected):
    assert engine_commands.title(title) == expected


def test_scripts():
    text = "#!/bin/sh\n# vllm serve old -tp 9\nexport TP=2\nMODEL=\"org/m\"\nexec vllm serve $MODEL \\\n  -tp $TP\n"
    assert engine_commands.script(text, {})["tensor_parallel_size"] == 2
    assert engine_commands.script(text, {})["model"] == "org/m"
    assert engine_commands.script("#!/bin/sh\necho it\'s 'broken\n", {}) is None


def test_config_files():
    text = "# tensor-parallel-size: 8\nmodel: org/m   # which\ntensor_parallel_size: 2\nport: 8000\napi-key: secret\n"
    assert engine_commands.config(text) == {"model": "org/m", "tensor_parallel_size": 2}
    assert engine_commands.config("tensor-parallel-size: many\n") == {}


def test_units():
    text = (
        "Id=a.service\nActiveState=activating\nUnitFileState=enabled\nWorkingDirectory=!/srv\n"
        'Environment=TP=2 "WORDS=a b"\nEnvironmentFiles=/etc/default/a (ignore_errors=yes)\n'
        "ExecStart={ path=/bin/a ; argv[]=/bin/a -x 1 ; ignore_errors=no ; start_time=[n/a] ; pid=0 }\n"
        "ExecStart={ path=/bin/b ; argv[]=/bin/b ; ignore_errors=no ; start_time=[n/a] ; pid=0 }\n"
        "\nId=\nActiveState=inactive\n"
    )
    assert engine_commands.units(text) == [{
        "id": "a.service", "active": True, "enabled": True, "directory": "/srv",
        "environment": {"TP": "2", "WORDS": "a b"}, "environment_files": ["/etc/default/a"],
        "commands": [["/bin/a", "-x", "1"], ["/bin/b"]],
    }]
    assert engine_commands.units("") == []
    assert engine_commands.environment_file("# A=1\nB='2'\nexport C=3\nnothing\n") == {"B": "2", "C": "3"}
