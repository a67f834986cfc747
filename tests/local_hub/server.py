"""server.py DIRECTORY [--port N]: a hub of models on 127.0.0.1 that speaks as much of the Hugging Face hub's API as
huggingface_hub, `hf download` and this collection use, and that misbehaves when it is told to.

DIRECTORY/owner/name/REVISION/ has the files of a commit; a file `main` beside them names the commit of that branch, and
a file `gated` makes the repository want the token "good". Large formats are "in LFS": they have a SHA-256 and are
served by a redirect to a second port, as the hub does with its content network. Faults are a queue of dicts, each used
by one request for content of a file; POST /_faults (a JSON list) replaces it:

    {"status": 429, "headers": {"Retry-After": "1"}}    answer with a status
    {"cut": 1000}                                       close the connection after so many bytes of the body
    {"wrong": true}                                     other bytes of the right length
    {"rate": 50000}                                     so many bytes a second, until the next POST
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import http.server
import json
import pathlib
import re
import threading
import time
import typing as t
import urllib.parse

LARGE = (".gguf", ".safetensors")
TOKEN = "good"
_CHUNK = 1 << 16
#: Of a larger file, a hole behind a header, the hash is that of its first bytes: nobody downloads it whole.
HASHED_WHOLE = 1 << 30


class Hub:
    """Two servers, of the hub and of its content network, and what they saw."""

    def __init__(self, directory: pathlib.Path, port: int = 0) -> None:
        self.directory = directory
        self.faults: list[dict[str, t.Any]] = []
        self.api_faults: list[dict[str, t.Any]] = []
        self.sent_bytes = 0                # of contents
        self.told = 0                      # how often faults were replaced by POST
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self._hashes: dict[tuple[str, float, int], tuple[str, str]] = {}
        self._servers = [_Server(("127.0.0.1", wanted), Handler) for wanted in (port, 0)]
        for server in self._servers:
            server.hub = self
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url, self.content_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def close(self) -> None:
        """Stop serving."""
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def commit(self, repo: str, revision: str) -> pathlib.Path | None:
        """Return the folder of a revision's commit, or None."""
        branch = self.directory / repo / revision
        name = branch.read_text().strip() if branch.is_file() else revision
        folder = self.directory / repo / name
        return folder if folder.is_dir() else None

    def hashes(self, path: pathlib.Path) -> tuple[str, str]:
        """Return SHA-256 and git blob SHA-1 of a file, remembered while it is the same."""
        status = path.stat()
        key = (str(path), status.st_mtime, status.st_size)
        if key not in self._hashes:
            sha256, sha1 = hashlib.sha256(), hashlib.sha1(f"blob {status.st_size}\0".encode())
            with path.open("rb") as handle:
                while chunk := handle.read(1 << 20):
                    sha256.update(chunk)
                    sha1.update(chunk)
                    if status.st_size > HASHED_WHOLE:
                        break
            self._hashes[key] = (sha256.hexdigest(), sha1.hexdigest())
        return self._hashes[key]

    def describe(self, folder: pathlib.Path) -> list[dict[str, t.Any]]:
        """Return what the hub says about the files of a commit."""
        found = []
        for path in sorted(each for each in folder.rglob("*") if each.is_file()):
            sha256, sha1 = self.hashes(path)
            size = path.stat().st_size
            lfs = {"oid": sha256, "sha256": sha256, "size": size, "pointerSize": 134}
            name = path.relative_to(folder).as_posix()
            found.append({"name": name, "size": size, "oid": sha1, "lfs": lfs if name.endswith(LARGE) else None})
        return found


class _Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    hub: Hub


class Handler(http.server.BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_arguments: t.Any) -> None:
        """Stay silent."""

    def do_POST(self) -> None:
        self.server.hub.faults = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.hub.told += 1
        self._answer(200, {}, b"{}")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, parts = self.server.hub, urllib.parse.urlsplit(self.path)
        path = urllib.parse.unquote(parts.path)
        hub.requests.append((self.command, f"{self.server.server_port}{path}", dict(self.headers)))
        if match := re.match(r"/content/(.+)$", path):
            return self._content(hub.directory / match[1])
        if match := re.match(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?$", path):
            if hub.api_faults:
                fault = hub.api_faults.pop(0)
                return self._answer(fault["status"], fault.get("headers", {}), b"")
            return self._api(match[1], match[2] or "revision", match[3] or "main")
        if match := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$", path):
            return self._resolve(match[1], match[2], match[3])
        return self._answer(404, {}, b"")

    def _known(self, repo: str, revision: str) -> pathlib.Path | None:
        """Return the commit's folder, or refuse as the hub does."""
        hub, token = self.server.hub, self.headers.get("Authorization")
        if token not in (None, f"Bearer {TOKEN}", "Bearer other"):
            self._answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"}, b"")
        elif not (hub.directory / repo).is_dir():
            status = 404 if token else 401
            self._answer(status, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"}, b"")
        elif hub.commit(repo, revision) is None:
            self._answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"}, b"")
        return hub.commit(repo, revision)

    def _gated(self, repo: str) -> bool:
        return (self.server.hub.directory / repo / "gated").exists()

    def _api(self, repo: str, what: str, revision: str) -> None:
        folder = self._known(repo, revision)
        if folder is None:
            return
        files = self.server.hub.describe(folder)
        if what == "tree":
            body: t.Any = [{"type": "file", "path": file.pop("name"), **file} for file in files]
        else:
            siblings = [
                {"rfilename": file["name"], "size": file["size"], "blobId": file["oid"], "lfs": file["lfs"]}
                for file in files
            ]
            gated = "auto" if self._gated(repo) else False
            body = {"id": repo, "sha": folder.name, "siblings": siblings, "gated": gated, "private": False}
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

    def _resolve(self, repo: str, revision: str, name: str) -> None:
        folder = self._known(repo, revision)
        if folder is None:
            return
        if self._gated(repo) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            status = 403 if self.headers.get("Authorization") else 401
            return self._answer(status, {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access is restricted"}, b"")
        path = folder / name
        if not path.is_file():
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}, b"")
        sha256, sha1 = self.server.hub.hashes(path)
        headers = {"X-Repo-Commit": folder.name}
        if not name.endswith(LARGE):
            return self._content(path, {**headers, "ETag": f'"{sha1}"'})
        location = f"{self.server.hub.content_url}/content/{path.relative_to(self.server.hub.directory)}"
        linked = {"X-Linked-ETag": f'"{sha256}"', "X-Linked-Size": str(path.stat().st_size)}
        return self._answer(302, {**headers, **linked, "Location": urllib.parse.quote(location, ":/")}, b"")

    def _content(self, path: pathlib.Path, more: t.Mapping[str, str] | None = None) -> None:
        hub = self.server.hub
        fault = hub.faults.pop(0) if hub.faults and self.command == "GET" else {}
        if "status" in fault:
            return self._answer(fault["status"], fault.get("headers", {}), b"")
        total = path.stat().st_size
        headers = dict(more or {"ETag": f'"{hub.hashes(path)[0]}"'})
        start, end = 0, total - 1
        wanted = re.match(r"bytes=(\d+)-(\d*)$", self.headers.get("Range", ""))
        if wanted and self.headers.get("If-Range") in (None, headers["ETag"]):
            start, end = int(wanted[1]), int(wanted[2] or end)
            if start >= total:
                return self._answer(416, {"Content-Range": f"bytes */{total}"}, b"")
            headers["Content-Range"] = f"bytes {start}-{end}/{total}"
        self.send_response(206 if "Content-Range" in headers else 200)
        for key, value in {**headers, "Content-Length": str(end + 1 - start), "Accept-Ranges": "bytes"}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        length = min(end + 1 - start, fault.get("cut", total))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._send(path, start, length, fault)
        if length < end + 1 - start or fault:
            self.close_connection = True
        return None

    def _send(self, path: pathlib.Path, start: int, length: int, fault: t.Mapping[str, t.Any]) -> None:
        with path.open("rb") as handle:
            if not fault.get("wrong") and not fault.get("rate"):
                self.wfile.flush()
                self.server.hub.sent_bytes += self.connection.sendfile(handle, start, length)
                return
            handle.seek(start)
            left, rate, told = length, fault.get("rate", 0), self.server.hub.told
            while left:
                chunk = handle.read(min(left, max(1, rate // 10) if rate else _CHUNK))
                left -= len(chunk)
                self.server.hub.sent_bytes += len(chunk)
                self.wfile.write(bytes(byte ^ 1 for byte in chunk) if fault.get("wrong") else chunk)
                if rate and told == self.server.hub.told:
                    time.sleep(len(chunk) / rate)

    def _answer(self, status: int, headers: t.Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    """Serve until killed; the first line says where."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    print(Hub(options.directory, options.port).url, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
