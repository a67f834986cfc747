# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module writes the whole room of the watchdog, and nothing twice."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import watchdog_program

ROOT = pathlib.Path(__file__).parents[4]
ROOM = ROOT / "plugins/module_utils/_watchdog"
FILES = {path.name: path.read_text(encoding="utf-8") for path in ROOM.glob("*.py")}


@pytest.fixture
def run(tmp_path, call_module):
    """Return a function that runs the module on a directory below a new one."""

    def call(**options):
        return call_module(watchdog_program, {"directory": str(tmp_path / "lib/program"), **options})

    return call


def written(folder):
    return {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}


def test_all_files_of_the_room_are_written_once(run, tmp_path):
    first = run()
    assert first["changed"] and set(first["written"]) == set(FILES)
    assert written(tmp_path / "lib/program") == FILES
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "lib/program").iterdir()} == {0o644}
    again = run()
    assert not again["changed"] and again["written"] == []


def test_what_is_damaged_is_written_again(run, tmp_path):
    run()
    (tmp_path / "lib/program/stall.py").write_text("pass\n")
    (tmp_path / "lib/program/watch.py").chmod(0o600)
    again = run()
    assert again["changed"] and again["written"] == ["stall.py"]
    assert written(tmp_path / "lib/program") == FILES
    assert (tmp_path / "lib/program/watch.py").stat().st_mode & 0o777 == 0o644


def test_a_check_writes_nothing(run, tmp_path):
    checked = run(_ansible_check_mode=True)
    assert checked["changed"] and set(checked["written"]) == set(FILES)
    assert not (tmp_path / "lib").exists()


def test_a_directory_that_is_a_file(run, tmp_path):
    (tmp_path / "lib").write_text("")
    assert "The program of the watchdog cannot be written to" in run()["msg"]


def test_ansible_sends_the_room_with_the_module(tmp_path):
    """A host gets an archive: what the module reads there is the room as it stands here."""
    ansible = [sys.executable, "-m", "ansible", "adhoc", "box", "-i", "box,", "-c", "local"]
    python = f"ansible_python_interpreter={sys.executable}"
    module = ["-m", "homelab.mixed_gpu.watchdog_program", "-a", f"directory={tmp_path}/program", "-e", python]
    environment = {
        **os.environ, "HOME": str(tmp_path), "ANSIBLE_COLLECTIONS_PATH": str(ROOT / ".venv/collections"),
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default",
    }  # fmt: skip
    done = subprocess.run(
        [*ansible, *module], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(tmp_path / "program") == FILES
