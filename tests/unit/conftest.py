# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What all unit tests share.

On CI, hypothesis tries the same examples every time; elsewhere new ones, which is how it finds things.
"""

from __future__ import annotations

import os
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def llama_bin() -> pathlib.Path:
    """The folder of llama.cpp's programs, for tests marked as live; a live test without them fails."""
    folder = pathlib.Path(os.environ.get("MIXED_GPU_LLAMA_BIN") or pytest.fail("set MIXED_GPU_LLAMA_BIN"))
    wanted = ("llama-bench", "llama-fit-params", "llama-perplexity", "llama-server", "ggml-rpc-server")
    absent = [name for name in wanted if not (folder / name).is_file()]
    assert not absent, f"MIXED_GPU_LLAMA_BIN names a folder without {', '.join(absent)}"
    return folder


@pytest.fixture(autouse=True)
def without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run directly, also on a developer's machine: the stand-ins are where a sandbox cannot see them."""
    monkeypatch.setattr(sandboxed_run, "BOOTED", "/nonexistent/systemd")
