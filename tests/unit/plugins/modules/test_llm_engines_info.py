# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import json
import pathlib
import subprocess
import sys
import time

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import llm_engines_info
from ansible_collections.homelab.mixed_gpu.tests.described_hosts import build


@pytest.fixture
def run(capsys):
    def _run():
        with patch_module_args({"_ansible_check_mode": True}), pytest.raises(SystemExit):
            llm_engines_info.main()
        text = capsys.readouterr().out
        result = json.loads(text)
        assert not result.get("failed") and result["changed"] is False
        assert "secret" not in text
        return result["engines"]

    return _run


@pytest.fixture
def vllm(tmp_path):
    """A process whose command line is vLLM's, with a model whose config.json is on this machine."""
    program = tmp_path / "vllm"
    program.write_text("import time\ntime.sleep(60)\n")
    build.write(tmp_path / "model/config.json", json.dumps({"text_config": {"num_hidden_layers": 46}}))
    command = [sys.executable, str(program), "serve", str(tmp_path / "model"), "-tp", "2", "--api-key", "sk-secret"]
    environment = {"CUDA_VISIBLE_DEVICES": "0,1", "HF_TOKEN": "hf_secret"}
    process = subprocess.Popen(command, env=environment)
    for _attempt in range(100):
        if b"serve" in pathlib.Path(f"/proc/{process.pid}/cmdline").read_bytes():
            break
        time.sleep(0.05)
    yield process
    process.kill()
    process.wait()


def test_a_real_process(run, vllm, tmp_path):
    (found,) = [engine for engine in run() if engine["pid"] == vllm.pid]
    assert (found["engine"], found["active"], found["tensor_parallel_size"]) == ("vllm", True, 2)
    assert (found["model"], found["hidden_layers"]) == (str(tmp_path / "model"), 46)
    assert (found["visible_devices"], found["device_order"]) == ("0,1", None)


def test_it_is_gone_with_the_process(run, vllm):
    vllm.kill()
    vllm.wait()
    assert [engine for engine in run() if engine["pid"] == vllm.pid] == []


def machine(tmp_path, **description):
    build.build(description, tmp_path)
    return str(tmp_path)


def test_a_launcher_and_its_program_are_one(tmp_path):
    words = ["vllm", "serve", "m", "-tp", "2"]
    root = machine(tmp_path, processes={
        10: {"cmdline": ["bash", "-c", "vllm serve m -tp 2"], "unit": "v.service"},
        11: {"cmdline": ["/usr/bin/python3", *words], "environ": {"CUDA_VISIBLE_DEVICES": "1"}, "unit": "v.service"},
        12: {"cmdline": ["VLLM::EngineCore"], "unit": "v.service"},
        13: {"cmdline": ["VLLM::Worker_TP1"], "unit": "v.service"},
        20: {"cmdline": ["/usr/bin/python3", *words]},
    })
    found = llm_engines_info.processes(root)
    assert [(entry["pid"], entry["unit"]) for entry in found] == [(11, "v.service"), (20, "session-3.scope")]
    assert found[0]["visible_devices"] == "1"


def test_workers_of_a_program_of_ones_own(tmp_path):
    root = machine(tmp_path, processes={
        30: {"cmdline": ["python3", "my_server.py"], "unit": "own.service"},
        31: {"cmdline": ["VLLM::Worker_TP1"], "unit": "own.service"},
        32: {"cmdline": ["VLLM::Worker_TP0"], "unit": "own.service"},
    })
    (found,) = llm_engines_info.processes(root)
    assert (found["pid"], found["tensor_parallel_size"], found["model"]) == (31, 2, None)


def test_a_running_service_is_one_entry(tmp_path):
    root = machine(tmp_path, processes={5: {"cmdline": ["vllm", "serve", "m", "-tp", "2"], "unit": "v.service"}})
    service = {**llm_engines_info.NOTHING, "engine": "vllm", "unit": "v.service", "layer_partition": "3,4"}
    other = {**service, "unit": "w.service"}
    found = llm_engines_info.merged(llm_engines_info.processes(root), [service, other])
    assert [(entry["unit"], entry["pid"], entry["layer_partition"]) for entry in found] == [
        ("v.service", 5, "3,4"), ("w.service", None, "3,4")
    ]


def shown(command, **properties):
    lines = {"Id": "v.service", "ActiveState": "inactive", **properties}
    return "".join(f"{key}={value}\n" for key, value in lines.items()) + (
        f"ExecStart={{ path=x ; argv[]={command} ; ignore_errors=no ; start_time=[n/a] ; pid=0 }}\n"
    )


def test_a_service_with_files(tmp_path):
    root = machine(tmp_path, files={
        "/etc/default/v": "TP=2\nVLLM_API_KEY=secret\n",
        "/srv/v/config.yaml": "model: org/m\npipeline-parallel-size: 2\ntensor-parallel-size: 9\n",
        "/srv/hf/hub/models--org--m/snapshots/1/config.json": "{broken",
        "/srv/hf/hub/models--org--m/snapshots/2/config.json": '{"num_hidden_layers": 48}',
    })
    text = shown(
        "/opt/v/bin/vllm serve --config config.yaml --tensor-parallel-size ${TP}", WorkingDirectory="/srv/v",
        EnvironmentFiles="/etc/default/v (ignore_errors=no)", Environment="HF_HOME=/srv/hf",
    )
    (found,) = llm_engines_info.services(text, root)
    assert (found["model"], found["hidden_layers"]) == ("org/m", 48)
    # the command line wins over the file
    assert (found["tensor_parallel_size"], found["pipeline_parallel_size"]) == (2, 2)
    assert (found["unit"], found["active"], found["pid"]) == ("v.service", False, None)
    assert "secret" not in json.dumps(found)


@pytest.mark.parametrize("command", ["/srv/run.sh", "/bin/bash /srv/run.sh", "/bin/sh -e run.sh"])
def test_a_service_with_a_script(tmp_path, command):
    root = machine(tmp_path, files={"/srv/run.sh": "#!/bin/bash\nvllm serve m -tp 2\n"})
    (found,) = llm_engines_info.services(shown(command, WorkingDirectory="/srv"), root)
    assert found["tensor_parallel_size"] == 2


def test_programs_are_not_read_as_scripts(tmp_path):
    root = machine(tmp_path, files={"/srv/run": "\x7fELF vllm serve m -tp 2\n"})
    assert llm_engines_info.services(shown("/srv/run"), root) == []
    assert llm_engines_info.services(shown("/srv/not-there"), root) == []


def test_unit_names(tmp_path):
    root = machine(tmp_path, files={
        "/etc/systemd/system/own.service": "[Service]\nExecStart=/opt/run.sh\n",
        "/etc/systemd/system/many@.service": "[Service]\nExecStart=vllm serve %i\n",
        "/usr/lib/systemd/system/packaged.service": "[Service]\nExecStart=/usr/bin/vllm serve m\n",
        "/usr/lib/systemd/system/cron.service": "[Service]\nExecStart=/usr/sbin/cron\n",
        "/etc/systemd/system/late.service.d/override.conf": "[Service]\nExecStart=\nExecStart=vllm serve m\n",
        "/run/systemd/generator/quadlet.service": "[Service]\nExecStart=/usr/bin/podman run vllm/vllm-openai\n",
    })
    wants = tmp_path / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir()
    (wants / "many@llama.service").symlink_to("/etc/systemd/system/many@.service")
    (wants / "cron.service").symlink_to("/usr/lib/systemd/system/cron.service")
    assert llm_engines_info.unit_names(root) == [
        "late.service", "many@llama.service", "own.service", "packaged.service", "quadlet.service"
    ]
