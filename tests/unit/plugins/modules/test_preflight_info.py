# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module on this machine, which has no NVIDIA driver; test_described_hosts.py and Molecule have cards."""

from __future__ import annotations

import os
import socket

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import preflight_info


@pytest.fixture
def run(call_module, tmp_path):
    def _run(**arguments):
        usual = {
            "port": 1, "memory_mib": 1, "disk": [{"path": str(tmp_path), "needed_mib": 1}],
            "models_dir": str(tmp_path / "models"), "_ansible_check_mode": True,
        }  # fmt: skip
        return call_module(preflight_info, usual | arguments)

    return _run


def check(result, name):
    return next(row for row in result["checks"] if row["name"] == name)


def test_this_machine(run, tmp_path):
    result = run()
    assert result["changed"] is False
    assert check(result, f"disk {tmp_path}")["ok"] and check(result, "memory")["ok"]
    assert check(result, "port 1")["detail"] in ("free", "unknown, the host has no ss")
    # neither a recorded split nor an upgrade is here to be finished
    assert not {"revalidation", "upgrade"} & {row["name"] for row in result["checks"]}
    assert result["lines"][0][5:].startswith("operating system")


def test_everything_that_cannot_work_is_in_one_text(run):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = run(
            port=port, memory_mib=10**9, gpus_expected=["RTX 4090"], models=[{"id": "m", "path": "/srv/none.gguf"}]
        )
    for words in ("memory: ", "add memory", "GPUs: ", "m is expected at /srv/none.gguf"):
        assert words in result["problem"]
    listens = check(result, f"port {port}")
    assert listens["detail"].startswith("unknown") or f"(pid {os.getpid()})" in result["problem"]


def test_sizes_that_are_no_numbers_are_one_sentence(run):
    result = run(models=[{"id": "m", "path": "/srv/m.gguf"}], model_sizes_mib={"m": "40 GB"})
    assert "models: The size of the model m is '40 GB'; give a whole number of MiB." in result["problem"]


def test_a_host_that_lends_needs_neither_port_nor_models(run):
    asked = {"port": 1, "models": [{"id": "m", "path": "/srv/none.gguf"}]}
    serving, lending = (
        {row["name"] for row in run(serves=serves, **asked)["checks"]} for serves in (True, False)
    )
    assert lending < serving and serving - lending == {"port 1", "models", "memory for models"}
