# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What all unit tests share.

On CI, hypothesis tries the same examples every time; elsewhere new ones, which is how it finds things.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import socket
import subprocess
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import build_library
from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def llama_bin() -> pathlib.Path:
    """The folder of llama.cpp's programs, for tests marked as live; a live test without them fails."""
    folder = pathlib.Path(os.environ.get("MIXED_GPU_LLAMA_BIN") or pytest.fail("set MIXED_GPU_LLAMA_BIN"))
    wanted = ("llama-bench", "llama-fit-params", "llama-server", "ggml-rpc-server")
    absent = [name for name in wanted if not (folder / name).is_file()]
    assert not absent, f"MIXED_GPU_LLAMA_BIN names a folder without {', '.join(absent)}"
    return folder


def _rpc_server(llama_bin: pathlib.Path, lasting: contextlib.ExitStack) -> str:
    """Start a device on the CPU; return its endpoint once it answers. Somebody else may take its port first."""
    for _attempt in range(10):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [str(llama_bin / "ggml-rpc-server"), "-H", "127.0.0.1", "-p", str(port), "-t", "1"]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lasting.callback(server.wait)
        lasting.callback(server.kill)
        until = time.monotonic() + 300
        while server.poll() is None and time.monotonic() < until:
            with socket.socket() as client:
                if client.connect_ex(("127.0.0.1", port)) == 0:
                    return f"127.0.0.1:{port}"
            time.sleep(0.1)
    pytest.fail("no RPC server came up")


@pytest.fixture(scope="session")
def rpc_endpoints(llama_bin: pathlib.Path) -> t.Iterator[list[str]]:
    """Four devices on the CPU, by the real program; where they listen."""
    with contextlib.ExitStack() as lasting:
        yield [_rpc_server(llama_bin, lasting) for _device in range(4)]


@pytest.fixture(autouse=True)
def without_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs run directly, also on a developer's machine: the stand-ins are where a sandbox cannot see them."""
    monkeypatch.setattr(sandboxed_run, "BOOTED", "/nonexistent/systemd")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The stand-in for NVIDIA's management library."""
    return build_library(tmp_path_factory.mktemp("nvml"))
