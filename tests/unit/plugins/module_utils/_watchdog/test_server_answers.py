# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Answers of a server that would keep the watchdog itself waiting, or end it."""

from __future__ import annotations

import threading

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import host
from ansible_collections.homelab.mixed_gpu.tests import local_server

METRICS = "llamacpp:requests_processing 1\nllamacpp:n_decode_total 4\n"


class Handler(local_server.Handler):
    body = METRICS
    end = threading.Event()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.end_headers()
        if self.body:
            self.wfile.write(self.body.encode())
            return
        while not self.end.wait(0.1):  # each byte comes in time, and the answer never ends
            try:
                self.wfile.write(b"x")
            except OSError:
                return

    do_POST = do_GET


@pytest.fixture
def served(monkeypatch):
    monkeypatch.setattr(Handler, "end", threading.Event())
    with local_server.serving(Handler) as server:
        yield host.Server(server.url, "", 60.0)
        Handler.end.set()


def test_an_answer_that_never_ends_is_silence(served, monkeypatch):
    monkeypatch.setattr(Handler, "body", "")
    served.timeout_seconds = 1.0
    assert served.metrics() == ("silent", None)
    assert not served.gives_token(1.0) and served.slots() == ()


@pytest.mark.parametrize("body", ["[" * 100000, '{"tokens_predicted": Infinity}', "null", "[[[]]]", "\0", "{}"])
def test_an_answer_in_another_form_is_none(served, monkeypatch, body):
    monkeypatch.setattr(Handler, "body", body)
    assert served.metrics() == ("no_metrics", None)
    assert not served.gives_token(5.0) and served.slots() == () and not served.reads_images()


def test_an_answer_in_time_is_read_whole(served):
    kind, reading = served.metrics()
    assert kind == "metrics" and reading.processing == 1
