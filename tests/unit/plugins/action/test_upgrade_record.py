# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Hosts that are upgraded together, in a real play: what one of them has found reaches the record of the first."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.action import upgrade_record

COLLECTIONS = pathlib.Path(upgrade_record.__file__).parents[5]
AWAY = {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}

PLAY = """
- hosts: all
  gather_facts: false
  module_defaults:
    homelab.mixed_gpu.upgrade_record: {path: PATH, hosts: [box, pc2], fact_file: /nonexistent/of/nobody}
  tasks:
    - ansible.builtin.set_fact:
        llama_cpp_planned:
          present: {version: b1, builds: {main: "b1-of-{{ inventory_hostname }}"}}
          wanted: {version: b2, builds: {main: "b2-of-{{ inventory_hostname }}"}}
    - homelab.mixed_gpu.upgrade_record:
        action: begin
        component: llama_cpp
        revalidation: {verdict: ok, accepted: true, summary: as before}
      when: inventory_hostname == 'box'
    - block:
        - ansible.builtin.ping:
        - ansible.builtin.fail: {msg: no room}
          when: inventory_hostname == 'pc2'
      rescue:
        - ansible.builtin.set_fact: {__upgrade_failure: "{{ ansible_failed_result }}"}
    - homelab.mixed_gpu.upgrade_record:
        action: advance
        stage: installing
      when: inventory_hostname == 'box'
"""


@pytest.fixture
def play(tmp_path):
    """Run the play; return what it said, and the record."""

    def _play(**of_lender):
        here = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
        hosts = {"box": here, "pc2": {**here, **of_lender}}
        (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        (tmp_path / "play.yml").write_text(PLAY.replace("PATH", str(tmp_path / "upgrade.json")))
        environment = {
            **os.environ, "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "HOME": str(tmp_path),
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
        }  # fmt: skip
        words = [sys.executable, "-m", "ansible", "playbook", "-i", str(tmp_path / "hosts.json")]
        done = subprocess.run(
            [*words, str(tmp_path / "play.yml")], env=environment, capture_output=True, text=True, check=False
        )
        assert (tmp_path / "upgrade.json").exists(), done.stdout + done.stderr
        return " ".join(done.stdout.split()), json.loads((tmp_path / "upgrade.json").read_text())

    return _play


def test_the_failure_of_a_lender_is_the_failure_of_both(play):
    said, record = play()
    assert "failed before anything was changed (pc2: no room); b1 is in use as before" in said
    ended = record["finished"][-1]
    assert (record["under_way"], ended["outcome"]) == (None, "untouched")
    assert ended["to"]["builds"] == {"main": "b2-of-box"}
    assert ended["lenders"]["pc2"]["to"]["builds"] == {"main": "b2-of-pc2"}


def test_a_lender_that_goes_away_stops_the_upgrade_where_it_is(play):
    said, record = play(**AWAY)
    assert "pc2 does not answer any more. The upgrade of llama.cpp on this host and the lender pc2" in said
    assert record["under_way"]["stage"] == "building" and not record["finished"]
