# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The real ansible-playbook on this machine, with a home directory of its own."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import typing as t

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[3]


@pytest.fixture
def playbook(tmp_path: pathlib.Path) -> t.Callable[..., tuple[int, str]]:
    """Run a playbook, given by name or path: playbook(book, *words) returns the exit status and the output."""

    def _playbook(
        book: str, *words: str, inventory: str | None = None, variables: dict[str, str] | None = None
    ) -> tuple[int, str]:
        command = [str(pathlib.Path(sys.executable).parent / "ansible-playbook"), book]
        command += ["-i", inventory or str(tmp_path / "none.yml")]
        command += ["-e", f"ansible_python_interpreter={sys.executable}"]
        (tmp_path / "none.yml").write_text("all: {}\n")
        env = {
            **(variables or os.environ), "ANSIBLE_CONFIG": "", "ANSIBLE_HOME": str(tmp_path / "ansible"),
            "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"), "ANSIBLE_LOCALHOST_WARNING": "false",
            "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "HOME": str(tmp_path),
        }
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, check=False, cwd=tmp_path, env=env, timeout=600
        )
        return done.returncode, done.stdout + done.stderr

    return _playbook
