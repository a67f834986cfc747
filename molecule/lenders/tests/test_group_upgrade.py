"""An upgrade of llama.cpp without the lender is refused. That both hosts move or none: upgrade_lenders."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab_upgrades


@pytest.mark.parametrize(
    ("limit", "away", "sentence"),
    [
        ("sandbox", {}, "--limit leaves out lender; run without it, or with sandbox, lender in it."),
        ("all", {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9,
                 "llama_rpc_address": "10.99.0.9"},
         "lender was refused or does not answer; correct or wake it, then run again."),
    ],
)  # fmt: skip
def test_without_its_lender_a_box_is_refused_before_anything_changes(
    host, controller, tmp_path, limit, away, sentence
):
    before = host.check_output(lab_upgrades.FOLDERS)
    inventory = tmp_path / "lender.yml"
    inventory.write_text(json.dumps({"mixed_gpu_lenders": {"hosts": {"lender": away}}}))
    done = controller.play(
        f"--inventory={controller.directory}/inventory", f"--inventory={inventory}",
        f"--extra-vars=@{controller.project}/molecule/default/variables.yml",
        f"--extra-vars=@{controller.directory}/variables.yml", "--extra-vars=component=llama_cpp",
        lab_upgrades.NEWER, f"--limit={limit}", playbook=lab_upgrades.PLAYBOOK,
    )  # fmt: skip
    assert done.returncode != 0 and sentence in lab_upgrades.said(done), done.stdout[-4000:]
    assert "preflight | Read the upgrade in progress" not in done.stdout
    assert host.check_output(lab_upgrades.FOLDERS) == before
