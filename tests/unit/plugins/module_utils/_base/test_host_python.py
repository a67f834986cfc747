# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python


def test_nothing_moves_when_the_libraries_are_there():
    assert host_python.enter(["json", "os.path"], "/nonexistent") is None


def test_a_missing_environment_is_one_sentence_with_the_role_that_makes_it():
    reason = host_python.enter(["json", "no_such_library", "nor_this"], "/nonexistent/python")
    assert reason == (
        "no_such_library and nor_this cannot be imported and /nonexistent/python does not exist: "
        "run the homelab.mixed_gpu.host_python role first."
    )


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """An interpreter without any library."""
    directory = tmp_path_factory.mktemp("bare")
    venv.create(directory, with_pip=False, symlinks=True)
    return str(directory / "bin" / "python")


def _run(interpreter, variables, module, arguments, check=False):
    """Run a module as Ansible does; return the exit status and what was printed, in any output format."""
    ansible = shutil.which("ansible", path=os.path.dirname(sys.executable)) or shutil.which("ansible")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [
            ansible, "localhost", "-i", "localhost,", "-c", "local", "-e", f"ansible_python_interpreter={interpreter}",
            *(["-e", f"@{variables}"] if variables else []), *(["--check"] if check else []),
            "-m", f"homelab.mixed_gpu.{module}", "-a", json.dumps(arguments),
        ],
        env=environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    return done.returncode, " ".join((done.stdout + done.stderr).replace('"', "").split())


def test_the_module_runs_again_in_the_environment(bare_python, tmp_path):
    path = tmp_path / "m.gguf"
    arguments = {"path": str(path), "manifest_dir": str(tmp_path), "host_python": sys.executable}
    code, output = _run(bare_python, None, "random_gguf", arguments)
    assert code == 0, output
    assert path.read_bytes()[:4] == b"GGUF"        # which only the second run, with the library, can have written


def test_an_environment_without_the_library_is_said_not_entered_for_ever(bare_python, tmp_path):
    arguments = {"path": str(tmp_path / "m.gguf"), "manifest_dir": str(tmp_path), "host_python": bare_python}
    code, output = _run(bare_python, None, "random_gguf", arguments)
    assert code != 0 and "has no gguf and numpy" in output and "Traceback" not in output


def test_check_mode_goes_on_without_the_environment(bare_python, tmp_path):
    arguments = {"repo": "owner/name", "record_dir": str(tmp_path), "host_python": "/nonexistent/python"}
    code, output = _run(bare_python, None, "hub_files", arguments, check=True)
    assert code == 0 and "available: false" in output and "host_python role first" in output


def test_parameters_may_be_larger_than_a_pipe(bare_python, tmp_path):
    variables = tmp_path / "large.json"
    variables.write_text(json.dumps({"large": {"text": "x" * (1 << 20)}}), encoding="utf-8")
    arguments = {"settings": "{{ large }}", "host_python": bare_python}
    code, output = _run(bare_python, variables, "gpu_power", arguments)
    assert code != 0 and "has no pynvml" in output      # said by the second run alone
