# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module on a box as files, and on this machine with a systemd of our own."""

from __future__ import annotations

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.modules import fleet_info
from ansible_collections.homelab.mixed_gpu.tests.fixtures import fleet

SERVER, LENDS = "llama-server.service", "ggml-rpc-server-a.service"
SHOWN = f"Id={SERVER}\nActiveState=failed\nResult=oom-kill\n\nId={LENDS}\nActiveState=active\n"


@pytest.fixture
def run(call_module):
    def call(**options):
        return call_module(fleet_info, options)

    return call


def test_a_box_as_files_is_read_and_systemd_is_not_asked(run, tmp_path, monkeypatch):
    monkeypatch.setattr(AnsibleModule, "run_command", lambda *_: pytest.fail("asked"))
    result = run(root=str(fleet.box(tmp_path)))
    assert result["changed"] is False
    assert result["host"]["deployments"][0]["model"] == "Llama 3.3 70B Instruct"
    assert result["host"]["units"] is None


@pytest.mark.parametrize(("rc", "states"), [(0, [(SERVER, "failed"), (LENDS, "active")]), (1, None)])
def test_systemd_is_asked_once_about_all_units(run, tmp_path, monkeypatch, rc, states):
    asked = []
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda *_: "/bin/systemctl")
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, command: asked.append(command) or (rc, SHOWN, ""))
    found = run(state_dir=str(tmp_path))["host"]["units"]
    assert (found and [(unit["unit"], unit["state"]) for unit in found]) == states
    assert len(asked) == 1 and {SERVER, "exllama-server.service", "ggml-rpc-server-*.service"} < set(asked[0])


def test_without_systemd_nothing_is_known_of_units(run, tmp_path, monkeypatch):
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda *_: None)
    assert run(state_dir=str(tmp_path))["host"]["units"] is None
