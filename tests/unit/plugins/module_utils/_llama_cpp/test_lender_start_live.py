# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real llama-server with and without its lender, by the recorded entry: 127.0.0.2 stands in for another host."""

from __future__ import annotations

import contextlib
import pathlib
import socket
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import addresses
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    llama_server,
    server_check,
    server_log,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import choose_placement
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, fallbacks
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record

pytestmark = pytest.mark.live

SERVING = {**record.BASE, "context_size": 512, "micro_batch_size": 64, "batch_size": 512, "threads": 1}
SETTINGS = {
    "host": "127.0.0.1", "port": 0, "alias": "m", "cache_ram_mib": 0, "cors_origins": "localhost",
    "log_verbosity": 4, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 300,
}  # fmt: skip
TESTS = [
    {"kind": "prefill", "n_prompt": 128, "n_gen": 0, "n_depth": 0, "repetitions": 1},
    {"kind": "decode", "n_prompt": 0, "n_gen": 4, "n_depth": 0, "repetitions": 1},
]


def rpc_server(
    llama_bin: pathlib.Path, host: str, lasting: contextlib.ExitStack
) -> tuple[str, subprocess.Popen[bytes]]:
    """Start a device; return its endpoint once it answers, and its process."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        endpoint = f"{host}:{probe.getsockname()[1]}"
    command = [str(llama_bin / "ggml-rpc-server"), "-H", host, "-p", endpoint.partition(":")[2], "-t", "1"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    lasting.callback(process.wait)
    lasting.callback(process.kill)
    until = time.monotonic() + 300
    while choose_placement.problem(endpoint, None):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.1)
    return endpoint, process


def served(llama_bin: pathlib.Path, called: t.Any) -> tuple[str, t.Any]:
    """Start the server as its unit does; return the first line, and what the server says of its load."""
    words = [f"--lender={name}" for name in called["lenders"]]
    words += [f"--placement={text}" for text in called["placements"]]
    program = [sys.executable, choose_placement.__file__, "--patience=0", *words, "--", str(llama_bin / "llama-server")]
    text = ""
    with subprocess.Popen(
        [*program, *called["arguments"]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        until = time.monotonic() + 300
        assert server.stdout is not None
        for line in server.stdout:
            text += line
            if server_log.is_loaded(line) or time.monotonic() > until:
                break
        server.kill()
    return text.partition("\n")[0], server_log.parse_load(text)


def test_a_server_starts_with_its_lender_and_without_it(
    llama_bin: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(addresses, "is_loopback", lambda host: host != "127.0.0.2")
    path = tmp_path / "m.gguf"
    options = random_model.checked_options({"blocks": 12, "feed_forward_length": 256, "type": "q8_0"})
    random_model.write_model(str(path), options, "0" * 64)
    model = gguf_model.read(gguf_model.files_of(str(path)))
    with contextlib.ExitStack() as lasting:
        own, _process = rpc_server(llama_bin, "127.0.0.1", lasting)
        lent, lender = rpc_server(llama_bin, "127.0.0.2", lasting)
        devices = [
            {"id": name, "device": f"RPC{index}", "backend": "RPC", "description": name, "free_mib": 4096}
            for index, name in enumerate((lent, own))
        ]
        fit = {"decode_ms_per_layer": [2.0, 1.0], "prefill_ms_per_layer": [2.0, 1.0], "prefill_overlap": 1.0}
        decision = {"layers": [5, 8], "split_mode": "layer", "micro_batch_size": 64, "fit": fit}
        entry = deployment.build({
            "model": {"id": "m", "path": str(path), "sha256": "5a"},
            "problem": {
                "schema": 1, "devices": devices, "model": model, "serving": SERVING, "reserve_mib": 0,
                "split_modes": ["layer"], "indifference": 0.01, "max_loads": 8, "tests": TESTS,
                "objective": {"name": "request", "prompt_tokens": 128, "generated_tokens": 4, "depth_tokens": 0},
            },
            "plan": {"decision": decision, "feasible": []}, "loads": [], "rpc_endpoints": [lent, own], "dry_run": None,
            "device_probe": None, "probe_settings": None, "fingerprint_parts": {}, "campaign": "c",
        })  # fmt: skip
        called = llama_server.command(entry, SETTINGS)
        assert called["lenders"] == [lent] and len(called["placements"]) == 2
        _first, load = served(llama_bin, called)
        assert load["complete"] and server_check.deviations(entry, load) == []
        lender.kill()
        lender.wait()
        first, load = served(llama_bin, called)
        assert first == f"<4>the lender {lent} has no RPC server that runs: starting without it"
        without = fallbacks.serving_without(entry, [lent])
        assert without is not None and load["complete"] and server_check.deviations(without, load) == []
        assert [one["id"] for one in load["devices"]] == [own]
