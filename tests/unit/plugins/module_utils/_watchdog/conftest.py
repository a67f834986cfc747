# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A host for the watchdog: a systemctl that knows a few units, and a llama-server that does as it is told.

Both are programs, and signals reach real processes. The watchdog runs as on a host, from a copy of its room.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import watch

ROOM = pathlib.Path(watch.__file__).parent
SERVER, LEASE, PEER = "llama-server.service", "mixed-gpu-lease.service", "ggml-rpc-server-a.service"

SYSTEMCTL = """
import json, os, pathlib, signal, sys
home = pathlib.Path(os.environ["UNITS"])
words = [word for word in sys.argv[1:] if word != "--no-block"]
with open(home / "log", "a") as log:
    log.write(json.dumps(words) + "\\n")
def unit(name):
    file = home / name
    return json.loads(file.read_text()) if file.exists() else {"ActiveState": "inactive", "MainPID": "0"}
if words[0] == "show":
    print("\\n\\n".join(
        "\\n".join(f"{key}={value}" for key, value in {"Id": name, **unit(name)}.items()) for name in words[3:]
    ))
elif words[0] == "kill":
    pid = int(unit(words[3])["MainPID"])
    if not pid:
        sys.exit("no main process")
    os.kill(pid, getattr(signal, words[2].partition("=")[2]))
"""

LLAMA_SERVER = """
import http.server, json, os, pathlib, sys, time
home, began = pathlib.Path(sys.argv[1]), time.monotonic()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        told = json.loads((home / "told").read_text())
        with open(home / "asked", "a") as asked:
            asked.write(f"{self.path} {self.headers['Authorization']}\\n")
        moving = int((time.monotonic() - began) * 20) if told.get("moves") else 0
        status, text = told.get("status", 200), "{}"
        if told.get("key") and self.headers["Authorization"] != f"Bearer {told['key']}":
            status = 401
        elif self.path == "/health":
            status, text = 200, '{"status":"ok"}'
        elif self.path == "/metrics" and status == 200:
            decodes = told.get("decodes", moving)
            text = f"llamacpp:requests_processing {told['processing']}\\nllamacpp:n_decode_total {decodes}\\n"
        elif self.path == "/slots":
            slot = {"id": 0, "id_task": 1, "is_processing": True, "n_prompt_tokens_processed": moving}
            text = json.dumps([slot])
        elif self.path == "/completion":
            text = '{"tokens_predicted": 1}' if told.get("token") else ""
            status = 200 if text else 404
            time.sleep(600 if told.get("waits") else 0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())
    def do_POST(self):
        self.do_GET()
    def log_message(self, *dummy):
        pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
(home / "port.new").write_text(str(server.server_port))
os.rename(home / "port.new", home / "port")
server.serve_forever()
"""


def eventually(condition, seconds=120):
    """Wait until a condition holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class Host:
    """The made-up host."""

    def __init__(self, home):
        self.home = home
        self.processes, self.ports = [], 0
        for name in ("bin", "units", "state", "lib"):
            (home / name).mkdir()
        program = home / "bin" / "systemctl"
        program.write_text(f"#!{sys.executable} -I\n{SYSTEMCTL}")
        program.chmod(0o755)
        shutil.copytree(ROOM, home / "lib" / "mixed_gpu_watchdog", ignore=shutil.ignore_patterns("__pycache__"))
        self.settings = {"stall_seconds": 1.0, "poll_seconds": 0.1, "timeout_seconds": 10.0, "end_seconds": 30.0}
        self.environment = {**os.environ, "PATH": f"{home / 'bin'}:{os.environ['PATH']}", "UNITS": str(home / "units")}

    def tell(self, **told):
        """Tell the server what to answer from now on."""
        new = self.home / "told.new"
        new.write_text(json.dumps({"processing": 0, **told}))
        new.rename(self.home / "told")

    def start_server(self, **told):
        """Start the server; return its process."""
        self.tell(**told)
        (self.home / "port").unlink(missing_ok=True)
        process = self.start("-c", LLAMA_SERVER, str(self.home))
        eventually((self.home / "port").exists)
        self.settings["url"] = f"http://127.0.0.1:{(self.home / 'port').read_text()}"
        self.unit(SERVER, process)
        return process

    def unit(self, name, process, **more):
        """Let systemctl know a unit with a main process."""
        values = {
            "ActiveState": "active", "SubState": "running", "InvocationID": f"start-{process.pid}",
            "MainPID": str(process.pid), **more,
        }  # fmt: skip
        (self.home / "units" / name).write_text(json.dumps(values))

    def lease(self, active):
        """Begin or end a measurement."""
        state = "active" if active else "inactive"
        (self.home / "units" / LEASE).write_text(json.dumps({"ActiveState": state, "MainPID": "0"}))

    def start(self, *words, **more):
        """Start a Python program."""
        self.processes.append(subprocess.Popen([sys.executable, *words], text=True, **more))
        return self.processes[-1]

    def watch(self, credentials="", **settings):
        """Start the watchdog as its unit does."""
        path = self.home / "watchdog.json"
        path.write_text(json.dumps({**self.settings, **settings}))
        return self.start(
            "-E", "-s", "-B", "-m", "mixed_gpu_watchdog.watch", str(path), str(self.home / "state"),
            cwd=self.home / "lib", env={**self.environment, "CREDENTIALS_DIRECTORY": str(credentials)},
            stdout=subprocess.PIPE,
        )  # fmt: skip

    def end(self, process):
        """End a program; return what it printed."""
        process.terminate()
        return process.communicate(timeout=120)[0]

    def commands(self, verb):
        """Return the calls of systemctl with that verb."""
        path = self.home / "units" / "log"
        calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [call[1:] for call in calls if call[0] == verb]

    def asked(self):
        """Return the paths that the server was asked for."""
        path = self.home / "asked"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []

    def looks(self, count):
        """Wait until the server was asked so many times more."""
        before = len(self.asked())
        eventually(lambda: len(self.asked()) >= before + count)

    def state(self):
        """Return what the watchdog remembers of the server."""
        known = json.loads((self.home / "state" / "state.json").read_text())
        return known["units"].get(SERVER, {"restarts": [], "restarts_total": 0})


@pytest.fixture
def host(tmp_path):
    made = Host(tmp_path)
    yield made
    for process in made.processes:
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.kill()
        process.communicate()
