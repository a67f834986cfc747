# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The playbook of models refuses a slip before it fetches anything."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[3]


def models(*variables: str) -> subprocess.CompletedProcess[str]:
    """Run the playbook in check mode on this machine."""
    program = pathlib.Path(sys.executable).with_name("ansible-playbook")
    command = [program, "-i", "localhost,", "-c", "local", "--check", ROOT / "playbooks" / "models.yml"]
    given = [word for variable in ("mixed_gpu_hosts=localhost", *variables) for word in ("-e", variable)]
    environment = {
        **os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_BECOME": "false",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }  # fmt: skip
    return subprocess.run([*command, *given], env=environment, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("slip", "meant"), [("mixed_gpu_modl=x", "mixed_gpu_model"), ("llm_models_verfy=full", "llm_models_verify")]
)
def test_a_slip_is_refused_before_anything_is_fetched(slip, meant):
    done = models("mixed_gpu_models=fetch", slip)
    assert done.returncode == 2, done.stdout + done.stderr
    assert f"did you mean {meant}?" in done.stdout + done.stderr and "Download" not in done.stdout


def test_what_is_served_does_not_matter():
    """The entry of a model is removed first, then its files."""
    entries = '{"llm_models": [{"id": "a", "path": "/a.gguf"}]}'
    done = models("split_tuning_model_id=gone", "llama_server_port=0", entries)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "/a.gguf" in done.stdout
