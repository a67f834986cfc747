# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Defaults of a role that follow the variables of another one."""

from __future__ import annotations

import json
import pathlib
import re

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles/revalidate"
TIMER = ROLE.parent / "revalidation_timer"


def test_a_revalidation_checks_the_answers_as_the_server_does(playbook, tmp_path):
    specs = f"{{{{ (lookup('ansible.builtin.file', '{ROLE}/meta/argument_specs.yml') | from_yaml).argument_specs }}}}"
    tasks = [
        {"ansible.builtin.validate_argument_spec": {"argument_spec": "{{ specs.main.options }}"}},
        {"ansible.builtin.assert": {"that": [
            "revalidate_answers_tokens | int == 16",
            "revalidate_answers_text_tokens | int == 256",
            "revalidate_answers_tolerance_percent | float == 20",
        ]}},
    ]  # fmt: skip
    play = {
        "hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks,
        "vars_files": [f"{ROLE}/defaults/main.yml"],
        "vars": {"specs": specs, "llama_server_answers_tokens": 16, "llama_server_answers_tolerance_percent": 20.0},
    }  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    status, output = playbook(str(tmp_path / "play.yml"))
    assert status == 0, output


def test_a_host_that_revalidates_itself_has_what_the_defaults_follow(playbook, tmp_path):
    defaults = (ROLE / "defaults/main.yml").read_text()
    followed = set(re.findall(r"((?:llama_server|exllamav2|split_tuning)_\w+)\s*\| default", defaults))
    # a role sets the addresses, of what is followed as well
    followed -= {"llama_server_url", "exllamav2_url"}
    assert len(followed) >= 9
    play = {
        "hosts": "localhost", "connection": "local", "gather_facts": False,
        "vars_files": [f"{TIMER}/vars/main.yml"], "vars": dict.fromkeys([*followed, "revalidate_retune"], 1),
        "tasks": [{"ansible.builtin.assert": {"that": [
            f"{sorted(followed)} is subset(__revalidation_timer_names)",
            # what would tune and serve has to know more of the inventory
            "'revalidate_retune' not in __revalidation_timer_names",
        ]}}],
    }  # fmt: skip
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    status, output = playbook(str(tmp_path / "play.yml"))
    assert status == 0, output
