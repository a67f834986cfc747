# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import struct
import threading
import time

import pytest
import urllib3
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.modules import model_file
from ansible_collections.homelab.mixed_gpu.tests import failing_disk, local_server

DATA = os.urandom((20 << 20) + 12345)
SHA = hashlib.sha256(DATA).hexdigest()
WRONG = "0" * 64


class Handler(local_server.Handler):
    """Serves DATA, with the faults that the server's `faults` names."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server = self.server
        server.requests.append(dict(self.headers))
        if server.statuses:
            self.send_response(server.statuses.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start, total = 0, len(server.data)
        wanted = self.headers.get("Range")
        same = self.headers.get("If-Range") in (None, server.etag)
        if wanted and server.ranges and same:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= total:
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{total}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", server.etag)
        self.end_headers()
        end = min(total, start + server.cuts.pop(0)) if server.cuts else total
        try:
            self.wfile.write(server.data[start:end])
        except OSError:
            return
        if end < total:
            self.close_connection = True


@pytest.fixture
def server():
    said = {"data": DATA, "etag": '"1"', "ranges": True, "cuts": [], "statuses": [], "requests": []}
    with local_server.serving(Handler, **said) as server:
        server.url += "/m.gguf"
        yield server


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "m.gguf"


@pytest.fixture
def run(tmp_path, path, call_module):
    def _run(check=False, **arguments):
        arguments = {
            "path": str(path), "manifest_dir": str(tmp_path / "manifests"), "retry_seconds": 0, "reserve_mib": 0,
            "lock_wait_seconds": 0, **arguments, "_ansible_check_mode": check,
        }
        return call_module(model_file, arguments)

    return _run


def left(path):
    return sorted(os.listdir(path.parent)) if path.parent.exists() else []


def test_downloads_once(run, path, server, tmp_path):
    log = tmp_path / "log"
    log.write_text("of an earlier job\n")
    result = run(url=server.url, sha256=SHA.upper(), progress_log=str(log))
    assert result["changed"] and result["present"] and result["attempts"] == 1 and result["hashed"]
    assert (result["sha256"], result["size_bytes"], result["missing_bytes"]) == (SHA, len(DATA), len(DATA))
    assert path.read_bytes() == DATA and left(path) == ["m.gguf"]
    assert log.read_text().splitlines() == ["asking 127.0.0.1", "complete, 20 MiB"]
    again = run(url=server.url, sha256=SHA)
    assert not again["changed"] and not again["hashed"] and again["sha256"] == SHA and again["missing_bytes"] == 0
    assert len(server.requests) == 1


def test_the_interpreter_asks_for_stored_bytes(run, server):
    run(url=server.url, sha256=SHA)
    assert server.requests[0]["Accept-Encoding"] == "identity" and "Range" not in server.requests[0]


def test_a_cut_transfer_is_continued_within_one_run(run, path, server):
    server.cuts = [100_000, 3 << 20, 0]
    result = run(url=server.url, sha256=SHA)
    assert result["changed"] and result["attempts"] == 4 and path.read_bytes() == DATA
    assert [each.get("Range") for each in server.requests] == [
        None, "bytes=100000-", f"bytes={100000 + (3 << 20)}-", f"bytes={100000 + (3 << 20)}-",
    ]
    assert server.requests[1]["If-Range"] == '"1"'


def test_a_cut_transfer_is_continued_by_the_next_run(run, path, server):
    server.cuts = [5 << 20, 0]
    failed = run(url=server.url, sha256=SHA, attempts=2)
    assert failed["failed"] and "closed the connection early" in failed["msg"]
    assert "(2 attempts; 5 MiB are kept for the next run)" in failed["msg"]
    assert left(path) == ["m.gguf.part", "m.gguf.part.json"]
    foreseen = run(check=True, url=server.url, sha256=SHA)
    assert foreseen["missing_bytes"] == len(DATA) - (5 << 20) and foreseen["size_bytes"] == len(DATA)
    result = run(url=server.url, sha256=SHA)
    assert result["resumed_bytes"] == 5 << 20 and result["attempts"] == 1 and path.read_bytes() == DATA
    assert left(path) == ["m.gguf"]


def test_progress_counts_against_giving_up(run, path, server):
    server.cuts = [9 << 20, 9 << 20]
    result = run(url=server.url, sha256=SHA, attempts=2)
    assert result["changed"] and result["attempts"] == 3 and path.read_bytes() == DATA


def test_a_server_without_ranges_begins_again_and_is_given_up_at_last(run, path, server):
    server.ranges = False
    server.cuts = [100_000]
    assert run(url=server.url, sha256=SHA)["attempts"] == 2 and path.read_bytes() == DATA
    path.unlink()
    server.cuts = [15 << 20] * 50
    failed = run(url=server.url, sha256=SHA, attempts=3)
    assert failed["failed"] and "the server cannot continue a cut transfer" in failed["msg"] and not path.exists()


def test_a_file_that_changed_on_the_server_is_not_mixed_with_the_old_one(run, path, server):
    server.data = os.urandom(len(DATA))
    server.cuts = [1 << 20]
    assert run(url=server.url, sha256=SHA, attempts=1)["failed"]
    server.data, server.etag = DATA, '"2"'
    result = run(url=server.url, sha256=SHA)
    assert result["changed"] and result["resumed_bytes"] == 0 and path.read_bytes() == DATA


def test_a_part_of_something_else_is_not_continued(run, path, server):
    path.parent.mkdir()
    (path.parent / "m.gguf.part").write_bytes(bytes(1000))
    (path.parent / "m.gguf.part.json").write_text(json.dumps({"sha256": WRONG}))
    assert run(url=server.url, sha256=SHA)["changed"] and path.read_bytes() == DATA
    assert "Range" not in server.requests[0]


def test_a_complete_part_is_only_checked(run, path, server):
    server.cuts = [100_000]
    run(url=server.url, sha256=SHA, attempts=1)
    (path.parent / "m.gguf.part").write_bytes(DATA)
    assert run(url=server.url, sha256=SHA)["changed"] and path.read_bytes() == DATA


def test_a_part_longer_than_the_file_is_thrown_away(run, path, server):
    server.cuts = [100_000]
    run(url=server.url, sha256=SHA, attempts=1)
    (path.parent / "m.gguf.part").write_bytes(DATA + b"x")
    assert run(url=server.url, sha256=SHA)["changed"] and path.read_bytes() == DATA


def test_a_wrong_sha256_replaces_nothing_and_is_used_when_it_is_corrected(run, path, server):
    path.parent.mkdir()
    path.write_text("old")
    failed = run(url=server.url, sha256=WRONG)
    assert failed["failed"] and "nothing was replaced" in failed["msg"]
    assert f"has the SHA-256 {SHA}, and {WRONG} was expected" in failed["msg"]
    assert path.read_text() == "old" and left(path) == ["m.gguf", "m.gguf.corrupt"]
    result = run(url=server.url, sha256=SHA)
    assert result["changed"] and result["attempts"] == 0 and path.read_bytes() == DATA
    # the file that was there is nobody's business: it is kept, too
    assert (path.parent / "m.gguf.replaced").read_text() == "old" and left(path) == ["m.gguf", "m.gguf.replaced"]
    other = hashlib.sha256(b"new").hexdigest()
    server.data = b"new"
    path.write_text("old again")
    assert run(url=server.url, sha256=other)["changed"]
    assert (path.parent / "m.gguf.replaced-1").read_text() == "old again"


def test_a_corrupt_file_makes_room_for_the_next_download(run, path, server):
    server.data = bytes(1000)
    assert run(url=server.url, sha256=SHA)["failed"] and left(path) == ["m.gguf.corrupt"]
    server.data = DATA
    assert run(url=server.url, sha256=SHA)["changed"] and left(path) == ["m.gguf"]


def test_a_new_sha256_replaces_the_file(run, path, server):
    run(url=server.url, sha256=SHA)
    server.data = b"other"
    other = hashlib.sha256(b"other").hexdigest()
    foreseen = run(check=True, url=server.url, sha256=other)
    assert foreseen["changed"] and foreseen["size_bytes"] == 5 and foreseen["diff"]["before"]["sha256"] == SHA
    assert path.read_bytes() == DATA
    assert run(url=server.url, sha256=other)["sha256"] == other and path.read_bytes() == b"other"


@pytest.mark.parametrize(
    ("status", "sentence"), [(404, "there is no such file"), (403, "access is refused"), (500, "HTTP status 500")]
)
def test_refusals_are_one_sentence(run, path, server, status, sentence):
    server.statuses = [status] * 3
    failed = run(url=f"{server.url}?token=secret", sha256=SHA, attempts=3)
    assert failed["failed"] and sentence in failed["msg"] and "secret" not in failed["msg"] and left(path) == []
    assert len(server.requests) == (3 if status == 500 else 1)


def test_a_passing_fault_is_passed_over(run, path, server):
    server.statuses = [503]
    assert run(url=server.url, sha256=SHA)["attempts"] == 2 and path.read_bytes() == DATA


def test_no_network_is_one_sentence(run, path):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))                 # a port where nobody listens
        failed = run(url=f"http://127.0.0.1:{bound.getsockname()[1]}/m.gguf", sha256=SHA, attempts=2)
    assert failed["failed"] and "127.0.0.1 cannot be reached" in failed["msg"] and "2 attempts" in failed["msg"]
    failed = run(url="http://no-such-host.invalid/m.gguf", sha256=SHA, attempts=1)
    assert "the name no-such-host.invalid cannot be resolved" in failed["msg"] or "proxy" in failed["msg"]
    assert left(path) == []


def test_a_silent_server_is_one_sentence(run):
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/m.gguf"
        failed = run(url=url, sha256=SHA, attempts=1, timeout_seconds=1)
    assert failed["failed"] and "fell silent" in failed["msg"]


def test_a_server_that_drips_is_one_sentence(run, path):
    """Each read returns before the server counts as silent."""
    def drip(listening):
        with contextlib.suppress(OSError):
            connection, _address = listening.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: \"1\"\r\n\r\n" % len(DATA))
                while True:
                    connection.sendall(b"x")
                    time.sleep(0.05)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=drip, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/m.gguf"
        failed = run(url=url, sha256=SHA, attempts=1, timeout_seconds=2)
    assert failed["failed"] and re.search(r"127\.0\.0\.1 sent \d+ bytes in \d+ s: run the play again", failed["msg"])


@pytest.mark.parametrize("old", [False, True])
def test_a_connection_that_is_reset_is_one_sentence(run, monkeypatch, old):
    """urllib3 before 2 has no read1, and what is read past it raises the errors of sockets."""
    if old:
        monkeypatch.delattr(urllib3.HTTPResponse, "read1")
        monkeypatch.delattr(urllib3.response.BaseHTTPResponse, "read1", raising=False)

    def reset(listening):
        connection, _address = listening.accept()
        with connection:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nETag: \"1\"\r\n\r\nx" % len(DATA))
            time.sleep(0.2)                          # a reset throws away what was not read yet
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=reset, args=(listening,), daemon=True).start()
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/m.gguf"
        failed = run(url=url, sha256=SHA, attempts=1)
    assert failed["failed"] and "127.0.0.1 closed the connection early" in failed["msg"]


def test_no_room_is_said_before_the_first_byte(run, path, server):
    failed = run(url=server.url, sha256=SHA, reserve_mib=1 << 40)
    assert failed["failed"] and "free some space" in failed["msg"] and "20 MiB" in failed["msg"] and left(path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_is_one_sentence(run, path, server, tmp_path):
    path.parent.mkdir()
    os.symlink("/dev/full", path.parent / "m.gguf.part")
    os.symlink("/dev/full", tmp_path / "log")
    failed = run(url=server.url, sha256=SHA, progress_log=str(tmp_path / "log"))
    assert failed["failed"] and "the disk is full: free some space" in failed["msg"]


def test_check_mode_downloads_nothing(run, path, server):
    result = run(check=True, url=server.url, sha256=SHA)
    assert result["changed"] and not result["present"] and result["missing_bytes"] == len(DATA) and left(path) == []
    run(url=server.url, sha256=SHA)
    assert not run(check=True, url=server.url, sha256=SHA)["changed"]


def test_two_plays_do_not_write_one_file(run, path, server, tmp_path):
    run(url=server.url, sha256=SHA)
    (lock_file,) = (tmp_path / "manifests").glob("*.lock")
    lock = json_file.take_lock(str(lock_file), 0)
    failed = run(url=server.url, sha256=SHA)
    json_file.release_lock(lock)
    assert failed["failed"] and "Another play is working" in failed["msg"]


def test_a_local_file_is_recorded_once(run, path):
    path.parent.mkdir()
    path.write_bytes(DATA)
    assert run(verify="recorded")["sha256"] is None
    first = run()
    assert first["changed"] and first["hashed"] and first["sha256"] == SHA
    second = run(sha256=SHA)
    assert not second["changed"] and not second["hashed"]
    assert run(verify="recorded")["sha256"] == SHA
    os.utime(path, ns=(1, 1))
    third = run(sha256=SHA)
    assert third["changed"] and third["hashed"]


def test_a_local_file_with_the_wrong_sha256_or_none_at_all(run, path):
    assert "put the file there" in run()["msg"]
    assert run(missing_ok=True)["present"] is False
    path.parent.mkdir()
    path.write_bytes(b"x")
    failed = run(sha256=WRONG)
    assert failed["failed"] and WRONG in failed["msg"] and path.read_bytes() == b"x"


def test_silent_damage_is_found_by_a_full_verification(run, path, tmp_path):
    path.parent.mkdir()
    path.write_bytes(DATA)
    run()
    failing_disk.damage(path, tmp_path / "manifests")
    assert not run()["changed"]
    failed = run(verify="full")
    assert failed["failed"] and "is damaged" in failed["msg"]


def test_content_whose_time_was_put_back_is_not_believed(run, path):
    path.parent.mkdir()
    path.write_bytes(DATA)
    run()
    status = path.stat()
    with open(path, "r+b") as handle:
        handle.write(b"changed")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    result = run()
    assert result["changed"] and result["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest() != SHA


def test_a_copy_is_made_once_and_follows_its_source(run, path, tmp_path):
    source = tmp_path / "source.gguf"
    source.write_bytes(DATA)
    assert run(source=str(source))["changed"] and path.read_bytes() == DATA
    assert not run(source=str(source))["changed"]
    source.write_bytes(b"new")
    assert run(source=str(source))["changed"] and path.read_bytes() == b"new"
    source.unlink()
    assert "it is no file" in run(source=str(source))["msg"]


def test_arguments_that_make_no_sense(run, server):
    assert "sha256" in run(url=server.url)["msg"]
    assert "not 64 hexadecimal digits" in run(url=server.url, sha256="abc")["msg"]
    assert "no http or https URL" in run(url="ftp://host/m.gguf", sha256=SHA)["msg"]
    assert server.requests == []
