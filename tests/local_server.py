# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A web server of the test's own process, on loopback."""

from __future__ import annotations

import contextlib
import http.server
import json
import threading
import typing as t


class Handler(http.server.BaseHTTPRequestHandler):
    """What handlers of tests derive from; what a test says to it is in C(self.server)."""

    server: t.Any

    def body(self) -> t.Any:
        """Return what was sent, from JSON."""
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def reply(self, status: int, answer: t.Any, content_type: str = "application/json") -> None:
        """Send an answer whole: bytes as they are, anything else as JSON."""
        data = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_words: t.Any) -> None:
        """Keep the output of the tests quiet."""


@contextlib.contextmanager
def serving(handler: t.Any, **said: t.Any) -> t.Iterator[t.Any]:
    """Serve until the end of the block; the server has C(said) as attributes, and its C(url)."""
    server: t.Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.__dict__.update(said, url=f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
