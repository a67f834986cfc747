# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Moves a module into the Python environment that the host_python role makes. Private to this collection."""

from __future__ import annotations

import importlib
import os
import subprocess
import typing as t

from ansible.module_utils._internal._ansiballz import _respawn
from ansible.module_utils.common.respawn import has_respawned

DEFAULT = "/opt/mixed_gpu/venv/bin/python"


def enter(libraries: t.Sequence[str], host_python: str) -> str | None:
    """Make ``libraries`` importable, by running the module again with ``host_python`` where that is needed.

    Returns None when they are, and one sentence with the reason when they cannot be. Does not return when the module
    has moved: call it before anything is changed. The parameters may have any size.
    """
    missing = []
    for library in libraries:
        try:
            importlib.import_module(library)
        except ImportError:
            missing.append(library)
    if not missing:
        return None
    names = " and ".join(missing)
    if has_respawned():
        return f"{host_python} has no {names}: run the homelab.mixed_gpu.host_python role to rebuild its environment."
    if not os.access(host_python, os.X_OK):
        return (
            f"{names} cannot be imported and {host_python} does not exist: "
            "run the homelab.mixed_gpu.host_python role first."
        )
    # Ansible's respawn_module writes the parameters into a pipe before anybody reads it, and hangs beyond 64 KiB
    done = subprocess.run([host_python, "--"], input=_respawn.create_payload().encode(), check=False)
    raise SystemExit(done.returncode)
