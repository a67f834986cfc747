# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A real llama-server that many clients wait for tells its counters nevertheless: it does not seem to hang."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import time
import urllib.request

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import progress

pytestmark = pytest.mark.live

CLIENTS = 60


@pytest.fixture
def port(llama_bin, tmp_path):
    """A server with one slot, with the threads that the unit gives it."""
    path = tmp_path / "m.gguf"
    random_model.write_model(str(path), random_model.checked_options({"blocks": 4, "type": "q8_0"}), "0" * 64)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    command = [f"{llama_bin}/llama-server", "-m", str(path), "--host", "127.0.0.1", "--port", str(number), "-np", "1",
               "-c", "1024", "-t", "1", "--metrics", "--threads-http", str(llama_server.HTTP_THREADS)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 300
        while True:
            assert process.poll() is None and time.monotonic() < until
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{number}/health"):
                break
            time.sleep(0.1)
        yield number
    finally:
        process.kill()
        process.wait()


def test_counters_are_told_while_many_clients_wait(port):
    body = json.dumps({"prompt": "1, 2,", "n_predict": 500}).encode()
    head = f"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as lasting:
        clients = [lasting.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(CLIENTS)]
        for client in clients:
            client.sendall(head.encode() + body)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=600) as answer:
            reading = progress.of_metrics(answer.read().decode())
        answered, _write, _error = select.select(clients, [], [], 0)
    # with llama-server's own five threads most of them would have been answered before
    assert reading is not None and len(answered) < CLIENTS // 2
