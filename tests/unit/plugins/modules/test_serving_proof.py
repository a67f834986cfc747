# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A server on loopback answers as llama-server and TabbyAPI do."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading

import pytest
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import serving_proof

KEY = "a-key-of-twenty-chars"


class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {self.path}"
        self.server.asked.append(asked)
        status, body = self.server.answers.get(asked, (404, {}))
        if self.server.key and self.headers["Authorization"] != f"Bearer {self.server.key}":
            status, body = 401, {}
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST = answer

    def log_message(self, *_arguments):
        pass


@contextlib.contextmanager
def running(key="", **changes):
    answers = {
        "POST /completion": (200, {"timings": {"prompt_n": 4, "predicted_n": 8}}), "GET /props": (200, {}),
        "POST /v1/completions": (200, {"usage": {"completion_tokens": 8}}), "GET /v1/model": (200, {}),
        "POST /slots/0?action=save": (501, {}), "POST /props": (501, {}), "GET /tools": (403, {}),
    }  # fmt: skip
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.asked, server.key = [], key
    server.answers = answers | {name: (status, {}) for name, status in changes.items()}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def run(capfd, tmp_path):
    def _run(server, key="", **more):
        path = tmp_path / "key"
        path.write_text(f"{key}\n")
        arguments = {"url": f"http://127.0.0.1:{server.server_port}", "api_key_file": str(path) if key else "", **more}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            serving_proof.main()
        return json.loads(capfd.readouterr().out)

    return _run


def test_a_server_with_a_key_is_proved(run):
    with running(KEY) as server:
        result = run(server, KEY, api_key=KEY)
    assert not result.get("failed"), result
    assert KEY not in json.dumps(result) and "curl -H @-" in result["connect"]
    assert server.asked[:2] == ["POST /completion", "GET /props"] and "GET /tools" in server.asked


def test_a_server_without_a_key_is_proved_and_said_so(run):
    with running() as server:
        assert "has no key" in run(server)["connect"]


def test_a_key_that_is_not_asked_for_or_another_one_is_an_error(run):
    with running() as server:
        assert "llama-server.service answers without llama_server_api_key" in run(server, KEY)["msg"]
    with running("another-key-of-this-server") as server:
        assert "does not accept the key in " in run(server, KEY)["msg"]
        other = run(server, KEY, api_key="another-key-of-a-variable")
        assert "was started with another key than llama_server_api_key holds now" in other["msg"]
        assert "does not accept requests without a key" in run(server)["msg"]


def test_an_open_endpoint_is_an_error_unless_meant(run):
    with running(**{"POST /props": 200}) as server:
        assert "HTTP status 200 to POST /props, which must be shut" in run(server)["msg"]
        assert not run(server, arguments=["--props"]).get("failed")
        assert not run(server, environment={"LLAMA_ARG_ENDPOINT_PROPS": "1"}).get("failed")


def test_exllama_has_other_paths(run):
    with running(KEY) as server:
        assert not run(server, KEY, engine="exllama").get("failed")
    assert server.asked == ["POST /v1/completions", "GET /v1/model"]


def test_nobody_there_and_no_key_in_the_file_are_one_sentence(run, tmp_path):
    with running() as server:
        pass
    assert "no completion (HTTP status None)" in run(server)["msg"]
    with running(KEY) as server:
        result = run(server, api_key_file=str(tmp_path / "absent"))
    assert result["msg"].endswith("absent holds no key: run the role that configures llama-server.service.")
