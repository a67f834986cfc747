# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The page of the first evening: what `make first-evening-test` runs of it names what the collection has."""

from __future__ import annotations

import re
import subprocess

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.action import variables_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import first_inventory, variable_checks
from ansible_collections.homelab.mixed_gpu.tests.lab import first_evening

STEPS = first_evening.steps(first_evening.PAGE.read_text())


def test_the_page_leads_from_ansible_over_a_reboot_to_a_chat():
    commands = [step.command for step in STEPS]
    assert "pipx install ansible-core" in commands[2] and "/v1/chat/completions" in commands[-1]
    before, after = first_evening.sessions(STEPS)
    assert before[-1].command.endswith("homelab.mixed_gpu.site") and after[1].command == before[-1].command


def test_every_playbook_on_the_page_exists():
    named = {name for step in STEPS for name in re.findall(r"homelab\.mixed_gpu\.(\w+)", step.command)}
    assert named == {"init", "preflight", "site"}
    assert all((first_evening.PROJECT / f"playbooks/{name}.yml").is_file() for name in named)


def test_the_variables_that_the_page_has_typed_pass_the_check_of_all_variables():
    host = {"os": {"pretty_name": "Ubuntu 24.04.3 LTS"}, "memory_total_mib": 8000, "nvidia_devices": []}
    written = first_inventory.files(host, first_inventory.Wishes("llm-box"))
    found: dict = {}
    typed = [step.typed for step in STEPS if step.typed and ".yml" in step.command]
    for text in (written[first_inventory.VARIABLES], *typed):
        found |= yaml.safe_load(text)
    key = found["llama_server_api_key"]
    found["llama_server_api_key"] = found[re.fullmatch(r"{{ (\w+) }}", key)[1]]
    assert variable_checks.problems(found, found, variables_check.specs(), variables_check.words()) == []
    assert found["split_tuning_model_id"] == "rehearsal"
    # a calm run after the reboot would complete the baseline of a busy one before, and so change something
    assert found["revalidate_ignore_contention"] is True


def test_a_command_may_go_over_several_lines_and_an_editor_gets_the_block_after_it():
    page = (
        "```console\n$ one | \\\n    two\nshown\n$ \"${EDITOR:-nano}\" file\n```\n\n"
        "```text\nshown\n```\n\n```yaml\na: 1\n```\n"
    )
    assert first_evening.steps(page) == [
        first_evening.Step("one | \\\n    two"),
        first_evening.Step('"${EDITOR:-nano}" file', "a: 1\n"),
    ]


def test_a_block_that_no_editor_takes_is_refused():
    with pytest.raises(ValueError, match="no editor takes this block: a: 1"):
        first_evening.steps("```console\n$ cat file\n```\n\n```yaml\na: 1\n```\n")


def test_the_script_runs_each_command_and_ends_where_one_fails(tmp_path):
    steps = [
        first_evening.Step("echo it\\'s"), first_evening.Step("cat ~/.typed", "a: '1'\n"),
        first_evening.Step("false | cat"), first_evening.Step("echo never"),
    ]  # fmt: skip
    done = subprocess.run(
        ["bash", "-c", first_evening.script(steps)], env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and "never" not in done.stdout
    assert first_evening.said(done.stdout, 0).strip() == "it's"
    assert first_evening.said(done.stdout, 1).strip() == "a: '1'"
