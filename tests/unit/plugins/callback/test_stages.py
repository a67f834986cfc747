# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The screen of a real run: stages, changes, messages and failures, and all tasks with -v."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[4]
WARNS = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({})
module.warn("mind the gap")
module.fail_json(msg="no train")
"""
TASKS = [
    {"name": "Show two lines", "ansible.builtin.debug": {"msg": ["one", "two"]}},
    {"name": "Show a line of all hosts", "ansible.builtin.debug": {"msg": "all"}, "run_once": True},
    {"name": "Read something", "ansible.builtin.command": {"argv": ["true"]}, "changed_when": False},
    {"name": "Change each", "ansible.builtin.command": {"argv": ["true"]}, "loop": ["left", "right"]},
    {"name": "Skip this", "ansible.builtin.debug": {"msg": "never"}, "when": False},
    {
        "name": "Try this", "ignore_errors": True,
        "ansible.builtin.shell": {"cmd": "seq 40; echo cause >&2; exit 3"},
    },
    {"name": "Warn and fail", "ignore_errors": True, "warns": {}},
    {
        "name": "Fail in a filter", "ignore_errors": True,
        "ansible.builtin.debug": {"msg": "{{ {} | homelab.mixed_gpu.split_summary }}"},
    },
    {"name": "Use a secret", "ansible.builtin.command": {"argv": ["false", "needle"]}, "no_log": True},
]  # fmt: skip


@pytest.fixture(scope="module")
def screens(tmp_path_factory):
    """What a short play shows, and what it shows with -v."""
    folder = tmp_path_factory.mktemp("play")
    play = {"name": "Try", "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": TASKS}
    nobody = {**play, "name": "Try nobody", "hosts": "all:!all"}
    (folder / "play.yml").write_text(json.dumps([nobody, play]))
    (folder / "nobody.yml").write_text(json.dumps([nobody]))
    (folder / "library").mkdir()
    (folder / "library/warns.py").write_text(WARNS)
    role = {**play, "tasks": [{"ansible.builtin.import_role": {"name": "homelab.mixed_gpu.host_preflight"}}]}
    (folder / "role.yml").write_text(json.dumps([role]))

    def screen(*options):
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,",
             "-e", f"ansible_python_interpreter={sys.executable}", *options],
            capture_output=True, text=True, check=False, cwd=folder,
            env=os.environ | {
                "ANSIBLE_CONFIG": "", "ANSIBLE_HOME": str(folder), "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"),
                "ANSIBLE_STDOUT_CALLBACK": "homelab.mixed_gpu.stages",
            },
        )  # fmt: skip
        return done.stdout + done.stderr

    return {
        "brief": screen("play.yml"),
        "verbose": screen("play.yml", "-v"),
        "nobody": screen("nobody.yml"),
        "role": screen("role.yml", "-e", "llama_sever_port=1", "-e", "llama_server_cache_ram_mib=much"),
    }


def test_changes_and_messages_are_shown_and_nothing_else(screens):
    lines = screens["brief"].split("PLAY RECAP")[0].splitlines()
    assert lines[0].endswith("  Try")
    assert lines[1:6] == [
        "  localhost | one", "  localhost | two", "  all",
        "  localhost | changed: Change each (left)", "  localhost | changed: Change each (right)",
    ]  # fmt: skip
    assert "Read something" not in screens["brief"] and "Skip this" not in screens["brief"]


def test_a_failure_is_its_message_and_the_last_lines(screens):
    brief = screens["brief"]
    assert "  localhost | ignored: Try this\n  localhost | non-zero return code\n  localhost | stderr: cause\n" in brief
    assert "stdout: 40" in brief and "stdout: 25\n" not in brief
    assert "FAILED: Use a secret" in brief and "needle" not in brief


def test_a_filter_that_fails_is_its_sentence(screens):
    lines = screens["brief"].splitlines()
    said = lines[lines.index("  localhost | ignored: Fail in a filter") + 1]
    assert said.startswith("  localhost | split_summary: the input is no entry of ansible_local")
    assert said.count("is missing") == 1 and "Task failed" not in said


def test_a_failing_task_keeps_its_warnings(screens):
    assert "mind the gap" in screens["brief"] and "  localhost | no train" in screens["brief"]


def test_with_v_all_tasks_are_there(screens):
    for task in TASKS:
        assert f"TASK [{task['name']}]" in screens["verbose"]


def test_a_role_is_a_stage_and_refused_variables_are_a_sentence_each(screens):
    lines = screens["role"].split("PLAY RECAP")[0].strip().splitlines()
    assert [line.split("  ")[-1] for line in lines[:2]] == ["Try", "Check a host before anything is changed"]
    assert lines[2:] == [
        "  localhost | FAILED: Validate the variables of the roles",
        "  localhost | llama_sever_port is no variable of this collection; did you mean llama_server_port?",
        "  localhost | llama_server_cache_ram_mib is 'much', and must be a whole number.",
    ]


def test_a_play_for_no_host_is_said_only_where_no_other_play_had_one(screens):
    assert "Try nobody" not in screens["brief"] and "no hosts matched" not in screens["brief"]
    assert screens["nobody"].startswith("skipping: no hosts matched\n")
    assert "Try nobody" in screens["verbose"] and "skipping: no hosts matched" in screens["verbose"]
