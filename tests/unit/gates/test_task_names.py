# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pathlib

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.tests.gates import task_names

PLAYBOOK = """---
- name: Driver
  hosts: all
  tasks:
    - name: Install the driver
      block:
        - name: Make it
          ansible.builtin.command: {argv: [x]}
      rescue:
        - name: Show why the driver failed
          ansible.builtin.debug: {msg: !unsafe "{{"}
- name: Run the preflight
  ansible.builtin.import_playbook: preflight.yml
"""


def _names(text: str) -> list[tuple[int, str]]:
    return [tuple(name) for name in task_names.names(yaml.compose(text))]


def test_plays_blocks_and_tasks_have_names() -> None:
    assert _names(PLAYBOOK) == [
        (2, "Driver"),
        (5, "Install the driver"),
        (7, "Make it"),
        (10, "Show why the driver failed"),
        (12, "Run the preflight"),
    ]


@pytest.mark.parametrize("text", ["", "---\n# nothing\n", "a: {name: Make it}\n", "- just\n- words\n"])
def test_other_yaml_has_none(text: str) -> None:
    assert _names(text) == []


@pytest.mark.parametrize(
    "name",
    [
        "Install the pinned Python environment",
        "Wait for the RPC servers",
        "Assert that mixed_gpu_engine is llama_cpp or exllamav2",
        "Show what {{ item }} would change",
        "Read " + 75 * "x",
        "Check the site's items",
    ],
)
def test_good_names(name: str) -> None:
    assert task_names.faults(name) == []
    assert task_names.faults(f"install | {name}", "install") == []


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("Make the environment", 'begins with "Make", which is no verb of the list'),
        ("install the driver", 'begins with "install", which is no verb of the list'),
        ("The driver is there", 'begins with "The", which is no verb of the list'),
        ("Wait until llama-server answers", 'begins with "Wait", which is no verb of the list'),
        ("{{ item }}", 'begins with "", which is no verb of the list'),
        ("Start it", 'says "it" and not what'),
        ("Write the units around its server", 'says "its" and not what'),
        ("Ensure the driver that is loaded", 'says "that" and not what'),
        ("Assert that both cards are that fast", 'says "that" and not what'),
        ("Read what it's about", 'says "it" and not what'),
        ("Read " + 76 * "x", "has 81 characters, 80 are enough"),
    ],
)
def test_faults(name: str, fault: str) -> None:
    assert fault in task_names.faults(name)
    assert fault in task_names.faults(f"install | {name}", "install")


def test_a_prefix_is_due_in_every_file_but_main(tmp_path: pathlib.Path) -> None:
    for path, text in {
        "roles/a/tasks/main.yml": "- name: Include the rest\n",
        "roles/a/tasks/install.yml": "- name: Install a package\n- name: install | Install b\n",
        "roles/a/defaults/main.yml": "- name: Make it\n",
        "playbooks/site.yml": "- name: Install everything\n",
        "playbooks/tasks/serve.yml": "- name: serve | Start a\n- name: Start b\n",
        "molecule/default/converge.yml": "- name: Converge\n  hosts: all\n",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    assert task_names.violations(tmp_path) == {
        "roles/a": ["roles/a/tasks/install.yml:1: 'Install a package' does not begin with \"install | \""],
        "playbooks/tasks": ["playbooks/tasks/serve.yml:2: 'Start b' does not begin with \"serve | \""],
        "molecule/default": [
            "molecule/default/converge.yml:1: 'Converge' begins with \"Converge\", which is no verb of the list"
        ],
    }


def test_the_exit_status_tells(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert task_names.main(str(tmp_path)) == 0
    (tmp_path / "playbooks").mkdir()
    (tmp_path / "playbooks/site.yml").write_text("- name: Make it\n")
    assert task_names.main(str(tmp_path)) == 1
    assert capsys.readouterr().out.endswith('says "it" and not what\nplaybooks: 2\n')
