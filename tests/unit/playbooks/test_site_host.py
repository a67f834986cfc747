# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What site refuses before it installs. Roles beside the timer's only say that they run."""

from __future__ import annotations

import json
import pathlib
import shutil
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
REST = ("host_preflight", "host_python", "nvidia_driver", "gpu_power", "cuda_toolkit")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze judges the calendar")
@pytest.mark.parametrize(
    ("given", "lends", "refused"),
    [
        ({}, False, ""),
        ({"revalidation_timer_on_calendar": ["Sun 4:00", "Sunndy"]}, False, "has Sunndy, which systemd on box"),
        ({"revalidation_timer_metrics_path": "/nowhere/m.prom"}, False, "is /nowhere/m.prom on box: give the path"),
        ({"revalidation_timer_metrics_path": "/nowhere/m.prom", "revalidation_timer_state": "absent"}, False, ""),
        ({"revalidation_timer_metrics_path": "/nowhere/m.prom"}, True, ""),
        ({"split_tuning_model_id": ""}, False, "split_tuning_model_id names no entry of llm_models"),
        ({"llm_models": []}, True, ""),
        ({"mixed_gpu_engine": "exllamav2"}, False, "exllamav2_model_id names no entry of llm_models"),
        ({"mixed_gpu_engine": "sglang"}, False, "mixed_gpu_engine is 'sglang', and must be llama_cpp or exllamav2."),
        ({"mixed_gpu_engine": ""}, False, "mixed_gpu_engine is '', and must be llama_cpp or exllamav2."),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_installed(
    playbook: t.Callable[..., tuple[int, str]],
    tmp_path: pathlib.Path,
    given: dict[str, t.Any],
    lends: bool,
    refused: str,
) -> None:
    collection = tmp_path / "collections/ansible_collections/homelab/mixed_gpu"
    for role in REST:
        (collection / "roles" / role / "tasks").mkdir(parents=True)
        (collection / "roles" / role / "tasks/main.yml").write_text(f"- debug: {{msg: runs {role}}}\n")
    for name in ("roles/revalidation_timer", "plugins", "meta"):
        (collection / name).symlink_to(ROOT / name)
    tasks = [{"ansible.builtin.include_tasks": str(ROOT / "playbooks/tasks/site_host.yml")}]
    models = {"llm_models": [{"id": "m"}], "split_tuning_model_id": "m"}
    variables = {"revalidation_timer_state": "present", **models, **given}
    (tmp_path / "play.json").write_text(json.dumps([{"hosts": "box", "gather_facts": False, "tasks": tasks}]))
    groups: dict[str, t.Any] = {"all": {"hosts": {"box": {"ansible_connection": "local", **variables}}}}
    groups |= {"mixed_gpu_lenders": {"hosts": {"box": {}}}} if lends else {}
    (tmp_path / "hosts.json").write_text(json.dumps(groups))
    rc, output = playbook(str(tmp_path / "play.json"), inventory=str(tmp_path / "hosts.json"))
    assert (rc != 0) == bool(refused), output
    assert refused in output and ("runs host_python" in output) == (not refused), output
