# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of modules share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import typing as t

import pytest
from ansible.module_utils.testing import patch_module_args

Arguments = t.Mapping[str, t.Any]

AS_PROCESS = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
module = importlib.import_module(f"ansible_collections.homelab.mixed_gpu.plugins.modules.{sys.argv[1]}")
with patch_module_args(json.loads(sys.argv[2])):
    module.main()
"""


@pytest.fixture
def call_module(capfd: pytest.CaptureFixture[str]) -> t.Callable[[t.Any, Arguments], t.Any]:
    """Run a module in this process; its result."""

    def _call(module: t.Any, arguments: Arguments) -> t.Any:
        capfd.readouterr()
        with patch_module_args(dict(arguments)), pytest.raises(SystemExit):
            module.main()
        return json.loads(capfd.readouterr().out)

    return _call


@pytest.fixture
def start_module() -> t.Callable[[str, Arguments, t.Mapping[str, str]], t.Any]:
    """Run a module, by its name, in a process with an environment of its own; its result."""

    def _start(name: str, arguments: Arguments, environment: t.Mapping[str, str]) -> t.Any:
        command = [sys.executable, "-c", AS_PROCESS, name, json.dumps(arguments)]
        variables = {**environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return json.loads(done.stdout)

    return _start
