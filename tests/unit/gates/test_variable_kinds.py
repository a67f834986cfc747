# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.gates import variable_kinds

TASK_FILE = """
- name: Outer
  when: true
  block:
    - name: Inner
      ansible.builtin.command: {argv: [x]}
      register: answer
  always:
    - ansible.builtin.set_fact: {plan: 1, cacheable: true}
  vars: {only_of_the_task: !unsafe "{{"}
"""


@pytest.fixture
def tree(tmp_path: pathlib.Path) -> t.Callable[[dict[str, str]], pathlib.Path]:
    def _tree(files: dict[str, str]) -> pathlib.Path:
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return tmp_path

    return _tree


def test_facts_of_nested_tasks(tree: t.Callable[[dict[str, str]], pathlib.Path]) -> None:
    root = tree({"roles/a/tasks/main.yml": TASK_FILE})
    assert variable_kinds.facts(root) == {name: {"roles/a/tasks/main.yml"} for name in ("answer", "plan")}


@pytest.mark.parametrize("where", ["roles/b/vars/main.yml", "roles/a/defaults/main.yml", "roles/b/vars/main/x.yml"])
@pytest.mark.parametrize("name", ["answer", "plan"])
def test_a_name_that_is_both(tree: t.Callable[[dict[str, str]], pathlib.Path], where: str, name: str) -> None:
    root = tree({"roles/a/tasks/main.yml": TASK_FILE, where: f"{name}: []\nother: 1\n"})
    assert variable_kinds.conflicts(root) == [
        f"{name} is a role variable ({where}) and a fact (roles/a/tasks/main.yml): rename one"
    ]


def test_a_fact_of_a_playbook_or_a_handler(tree: t.Callable[[dict[str, str]], pathlib.Path]) -> None:
    root = tree({
        "roles/a/vars/main.yml": "answer: 1\nplan: 2\n",
        "roles/b/handlers/main.yml": "- ansible.builtin.set_fact: {plan: 1}\n",
        "playbooks/site.yml": "- hosts: all\n  tasks:\n    - ansible.builtin.setup:\n      register: answer\n",
    })  # fmt: skip
    assert [sentence.split()[0] for sentence in variable_kinds.conflicts(root)] == ["answer", "plan"]


def test_names_of_one_kind(tree: t.Callable[[dict[str, str]], pathlib.Path]) -> None:
    root = tree({
        "roles/a/tasks/main.yml": TASK_FILE,
        "roles/a/vars/main.yml": "only_of_the_task: 1\nansible: {register: plan}\n",
        "roles/a/defaults/main.yml": "---\n# nothing\n",
    })  # fmt: skip
    assert variable_kinds.conflicts(root) == []


def test_this_collection() -> None:
    root = pathlib.Path(__file__).resolve().parents[3]
    assert {"__split_tuning_result", "llm_models_installed"} <= set(variable_kinds.facts(root))
    assert variable_kinds.conflicts(root) == []
