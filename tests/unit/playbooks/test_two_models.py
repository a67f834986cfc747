# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role split_tuning twice for one host in one play, in check mode: no fact of one model reaches the next."""

from __future__ import annotations

import json
import pathlib
import typing as t

from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import build_library, environment
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

MODELS = {"large": "llama_3_3_70b_q4_k_m", "small": "gemma_3_27b_it_q4_k_m"}


def _play(folder: pathlib.Path, order: t.Sequence[str]) -> str:
    """A play that includes the role once per model, with the path of the play as the result."""
    variables = {
        "split_tuning_model_id": "{{ item }}", "split_tuning_model_path": str(folder / "{{ item }}.gguf"),
        "split_tuning_model_sha256": "{{ item | hash('sha256') }}", "split_tuning_active": "{{ item == 'small' }}",
        "split_tuning_llama_cpp": str(folder / "llama.cpp"), "split_tuning_state_dir": str(folder / "state"),
    }
    task = {
        "name": "Tune each model", "loop": list(order), "vars": variables,
        "ansible.builtin.include_role": {"name": "homelab.mixed_gpu.split_tuning"},
    }
    path = folder / "play.json"
    path.write_text(json.dumps([{"hosts": "box", "gather_facts": False, "tasks": [task]}]))
    return str(path)


def _host(folder: pathlib.Path) -> str:
    """An inventory with this machine, two header-only models and a build of llama.cpp."""
    for name, shape in MODELS.items():
        record.header_only(folder / f"{name}.gguf", shape)
    (folder / "llama.cpp").mkdir()
    (folder / "llama.cpp/build.json").write_text(json.dumps({"key": "b1"}))
    (folder / "hosts.json").write_text(json.dumps({"all": {"hosts": {"box": {"ansible_connection": "local"}}}}))
    return str(folder / "hosts.json")


def test_each_is_planned_for_itself(playbook: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path) -> None:
    inventory = _host(tmp_path)
    (tmp_path / "nvml").mkdir()
    variables = environment(build_library(tmp_path / "nvml"), "rtx4090_rtx3090")
    rc, output = playbook(
        _play(tmp_path, ["large", "small"]), "--check", inventory=inventory, variables=variables
    )
    assert rc == 0, output
    of_large, of_small = output.split("Would measure splits of small now")
    assert "Would measure splits of large now: nothing is recorded for large-c8192" in of_large
    assert "Llama 3.3 70B Instruct Q4_K_M" in of_large and "Gemma" not in of_large
    assert "nothing is recorded for small-c8192" in of_small
    assert "Gemma 3 27B it Q4_K_M" in of_small and "Llama 3.3" not in of_small


def test_a_missing_model_is_missing_after_a_present_one(
    playbook: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path
) -> None:
    inventory = _host(tmp_path)
    rc, output = playbook(_play(tmp_path, ["large", "absent", "small"]), "--check", inventory=inventory)
    assert rc == 0, output
    assert f"The split is unknown until {tmp_path}/absent.gguf exists" in " ".join(output.split())
    assert "Would measure splits of absent" not in output
    assert output.count("Would measure splits of") == 2
