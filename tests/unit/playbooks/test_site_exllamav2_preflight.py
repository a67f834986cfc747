# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the playbook site refuses of an ExLlama before anything is done."""

from __future__ import annotations

import json
import pathlib

import pytest

TASKS = pathlib.Path(__file__).resolve().parents[3] / "playbooks/tasks/site_exllamav2_preflight.yml"


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        ({}, False),
        ({"exllamav2_gpu_split_gb": [], "exllamav2_tensor_parallel": ""}, False),
        ({"exllamav2_gpu_split_gb": [18, 20]}, True),
        ({"exllamav2_tensor_parallel": "nccl"}, True),
        ({"exllamav2_draft": {"path": "/srv/models/draft"}}, True),
    ],
)
def test_what_site_measures_is_not_set_by_hand(playbook, tmp_path, given, refused):
    variables = {"exllamav2_model_id": "m", "llm_models": [{"id": "m"}], **given}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables}
    play["tasks"] = [{"ansible.builtin.include_tasks": str(TASKS)}]
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    status, output = playbook(str(tmp_path / "play.yml"))
    assert (status != 0, "are for the role exllamav2 alone" in output) == (refused, refused), output
