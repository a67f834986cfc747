# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What site refuses before it installs. Roles beside the timer's only say that they run."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]
REST = ("host_preflight", "host_python", "nvidia_driver", "gpu_power", "cuda_toolkit")


NOWHERE = {"revalidation_timer_metrics_path": "/nowhere/m.prom"}
#: Host -> what its inventory says, whether it lends, and why it is refused.
HOSTS: dict[str, tuple[dict[str, t.Any], bool, str]] = {
    "plain": ({}, False, ""),
    "calendar": (
        {"revalidation_timer_on_calendar": ["Sun 4:00", "Sunndy"]}, False, "has Sunndy, which systemd on calendar",
    ),
    "metrics": (NOWHERE, False, "is /nowhere/m.prom on metrics: give the path"),
    "no_timer": ({**NOWHERE, "revalidation_timer_state": "absent"}, False, ""),
    "lends": (NOWHERE, True, ""),
    "no_model": ({"split_tuning_model_id": ""}, False, "split_tuning_model_id names no entry of llm_models"),
    "lends_without_models": ({"llm_models": []}, True, ""),
    "other_engine": ({"mixed_gpu_engine": "exllamav2"}, False, "exllamav2_model_id names no entry of llm_models"),
    "strange_engine": (
        {"mixed_gpu_engine": "sglang"}, False, "mixed_gpu_engine is 'sglang', and must be llama_cpp or exllamav2.",
    ),
    "no_engine": ({"mixed_gpu_engine": ""}, False, "mixed_gpu_engine is '', and must be llama_cpp or exllamav2."),
}  # fmt: skip


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze judges the calendar")
def test_what_cannot_be_is_refused_before_anything_is_installed(
    playbook: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path
) -> None:
    collection = tmp_path / "collections/ansible_collections/homelab/mixed_gpu"
    for role in REST:
        (collection / "roles" / role / "tasks").mkdir(parents=True)
        said = f"runs {role} on {{{{ inventory_hostname }}}}"
        (collection / "roles" / role / "tasks/main.yml").write_text(f'- debug: {{msg: "{said}"}}\n')
    for name in ("roles/revalidation_timer", "plugins", "meta"):
        (collection / name).symlink_to(ROOT / name)
    tasks = [{"ansible.builtin.include_tasks": str(ROOT / "playbooks/tasks/site_host.yml")}]
    (tmp_path / "play.json").write_text(json.dumps([{"hosts": "all", "gather_facts": False, "tasks": tasks}]))
    usual = {
        "ansible_connection": "local", "revalidation_timer_state": "present", "llm_models": [{"id": "m"}],
        "split_tuning_model_id": "m",
    }  # fmt: skip
    hosts = {name: {**usual, **given} for name, (given, _lends, _refused) in HOSTS.items()}
    lenders = {name: {} for name, (_given, lends, _refused) in HOSTS.items() if lends}
    groups = {"all": {"hosts": hosts}, "mixed_gpu_lenders": {"hosts": lenders}}
    (tmp_path / "hosts.json").write_text(json.dumps(groups))
    _rc, output = playbook(str(tmp_path / "play.json"), inventory=str(tmp_path / "hosts.json"))
    for name, (_given, _lends, refused) in HOSTS.items():
        failures = [line for line in output.splitlines() if line.startswith((f"fatal: [{name}]", f"failed: [{name}]"))]
        assert len(failures) == bool(refused) and all(refused in line for line in failures), (name, output)
        assert (f'runs host_python on {name}"' in output) == (not refused), (name, output)
        (failed,) = re.findall(rf"^{name} .* failed=([0-9]+) ", output, re.MULTILINE)
        assert int(failed) == bool(refused), (name, output)
