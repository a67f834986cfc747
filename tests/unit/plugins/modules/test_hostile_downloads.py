# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Servers and directories of somebody who means harm, against model_file and hub_files as processes of 1 GiB.

Each ends in one sentence, writes nothing outside, and leaves the reserve of the disk alone.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import disk, download, part_file, transfer

GOOD = b"GGUF" + os.urandom(5000)
SHA = hashlib.sha256(GOOD).hexdigest()
COMMIT = "1" * 40
MEMORY_BYTES = 1 << 30
SECRET = b"a file of root\n"
# Loads the modules once, and forks for each line of input: {module, arguments, memory_bytes, patches}.
FORKS = """\
import importlib, json, os, resource, sys, traceback
import huggingface_hub, requests
from ansible.module_utils.testing import patch_module_args
plugins = "ansible_collections.homelab.mixed_gpu.plugins."
modules = {name: importlib.import_module(f"{plugins}modules.{name}") for name in ("model_file", "hub_files")}
for line in sys.stdin:
    job = json.loads(line)
    child = os.fork()
    if not child:
        with open(job["output"], "wb") as output:
            os.dup2(output.fileno(), 1), os.dup2(output.fileno(), 2)
        limit = job["memory_bytes"] + 4096 * int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        for file, name, value in job["patches"]:
            setattr(importlib.import_module(f"{plugins}module_utils._models.{file}"), name, value)
        try:
            with patch_module_args(job["arguments"]):
                modules[job["module"]].main()
        except SystemExit:
            pass
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(0)
    os.waitpid(child, 0)
    print("done", flush=True)
"""


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers with what the server's routes have for a path: a function of this handler."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_arguments: t.Any) -> None:
        """Stay silent."""

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        self.server.requests.append((path, dict(self.headers)))  # type: ignore[attr-defined]
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.server.routes.get(path, answer(GOOD))(self)  # type: ignore[attr-defined]

    do_HEAD = do_GET

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Connection", "close")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


Route = t.Callable[[Handler], t.Any]


def answer(body: bytes, status: int = 200, **headers: str) -> Route:
    def _answer(handler: Handler) -> None:
        handler.head(status, **{"Content_Length": str(len(body)), **headers})
        handler.wfile.write(body)

    return _answer


def endless(status: int = 200, block: bytes = bytes(1 << 20), pause: float = 0.0, **headers: str) -> Route:
    """A body without an end and without a length, in whatever framing the headers say."""

    def _endless(handler: Handler) -> None:
        handler.head(status, **headers)
        chunked = headers.get("Transfer_Encoding") == "chunked"
        while True:
            handler.wfile.write(b"%x\r\n%s\r\n" % (len(block), block) if chunked else block)
            time.sleep(pause)

    return _endless


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.routes: dict[str, Route] = {}
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def handle_error(self, *_arguments: t.Any) -> None:
        """A client that hangs up is no error here."""


@pytest.fixture
def server() -> t.Iterator[Server]:
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


Run = t.Callable[..., dict[str, t.Any]]


@pytest.fixture(scope="module")
def forks() -> t.Iterator[subprocess.Popen[str]]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "NO_PROXY": "*"}
    environment.pop("HF_ENDPOINT", None)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", FORKS], text=True, env=environment, **pipes) as process:
        yield process
        assert process.stdin
        process.stdin.close()


@pytest.fixture
def run(forks: subprocess.Popen[str], tmp_path: pathlib.Path) -> Run:
    """Run a module as a process with a gigabyte of memory, and return its result; a traceback fails the test."""

    def _run(module: str, arguments: dict[str, t.Any], patches: t.Sequence[tuple[str, str, t.Any]] = ()) -> t.Any:
        output = tmp_path / "output"
        job = {
            "module": module, "arguments": arguments, "memory_bytes": MEMORY_BYTES, "patches": patches,
            "output": str(output),
        }  # fmt: skip
        assert forks.stdin and forks.stdout
        print(json.dumps(job), file=forks.stdin, flush=True)
        assert forks.stdout.readline() == "done\n"
        text = output.read_text()
        assert text.strip().startswith("{"), text[-3000:]
        found = json.loads(text)
        if found.get("failed"):
            said = found["msg"]
            assert said.isprintable() and said.endswith(".") and len(said) < 1000, said
        return found

    return _run


@pytest.fixture
def fetch(server: Server, tmp_path: pathlib.Path, run: Run) -> t.Callable[..., dict[str, t.Any]]:
    def _fetch(route: Route | None = None, path: pathlib.Path | None = None, **more: t.Any) -> dict[str, t.Any]:
        if route is not None:
            server.routes["/m.gguf"] = route
        given = {
            "path": str(path or tmp_path / "models" / "m.gguf"), "url": f"{server.url}/m.gguf", "sha256": SHA,
            "manifest_dir": str(tmp_path / "manifests"), "attempts": 1, "retry_seconds": 0, "reserve_mib": 0,
            "timeout_seconds": 5, "lock_wait_seconds": 0, **more,
        }  # fmt: skip
        return run("model_file", {name: value for name, value in given.items() if value is not None})

    return _fetch


def left(directory: pathlib.Path) -> list[str]:
    return sorted(os.listdir(directory)) if directory.exists() else []


# ---- bodies ----------------------------------------------------------------------------------------------------------

ENDLESS = [endless(), endless(Transfer_Encoding="chunked"), endless(Content_Length="-1"), endless(block=GOOD)]


@pytest.mark.parametrize("route", ENDLESS)
def test_a_body_without_an_end_stops_at_the_known_size(fetch: t.Any, tmp_path: pathlib.Path, route: Route) -> None:
    failed = fetch(route, size_bytes=len(GOOD))
    assert f"sends more than the {len(GOOD)} bytes" in failed["msg"] and left(tmp_path / "models") == []


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> t.Iterator[pathlib.Path]:
    """Return a mounted filesystem of 48 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(place)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


class Watch(threading.Thread):
    """Notes the least free space of a filesystem, in MiB, until it is told to stop."""

    def __init__(self, place: pathlib.Path) -> None:
        super().__init__(daemon=True)
        self.place, self.least, self.stopped = str(place), 1 << 40, threading.Event()

    def run(self) -> None:
        while not self.stopped.wait(0.001):
            status = os.statvfs(self.place)
            self.least = min(self.least, status.f_bavail * status.f_frsize >> 20)


@pytest.mark.parametrize("route", ENDLESS)
def test_a_body_of_unknown_size_leaves_the_reserve_alone(fetch: t.Any, small_disk: pathlib.Path, route: Route) -> None:
    watch = Watch(small_disk)
    watch.start()
    failed = fetch(route, path=small_disk / "m.gguf", reserve_mib=32)
    watch.stopped.set()
    watch.join()
    assert "names no size, and has sent" in failed["msg"] and "reserve of 32 MiB" in failed["msg"]
    assert watch.least >= 31 and left(small_disk) == []


def test_a_body_of_unknown_size_has_a_limit_on_any_disk(tmp_path: pathlib.Path, monkeypatch: t.Any) -> None:
    monkeypatch.setattr(transfer, "UNNAMED_LIMIT_BYTES", 1 << 20)
    part = part_file.PartFile(str(tmp_path / "m.gguf.part"))
    params = {"url": "http://host/m.gguf", "size_bytes": None, "reserve_mib": 0, "timeout_seconds": 60}
    job = download.Download(params, part, download.Progress(None), {}, lambda *_needed: None, None, None)

    class Raw:
        read1 = staticmethod(bytes)

    class Response:
        raw = Raw

    with pytest.raises(UserError, match="names no size and sends more than 1 MiB.*; what came was removed"):
        job.write(Response(), 0, None)
    assert left(tmp_path) == []


def test_a_file_of_unknown_size_still_comes(fetch: t.Any, tmp_path: pathlib.Path) -> None:
    def unnamed(handler: Handler) -> None:
        handler.head()
        handler.wfile.write(GOOD)

    for size in (None, len(GOOD)):
        result = fetch(unnamed, **({"size_bytes": size} if size else {}), path=tmp_path / f"m{size}" / "m.gguf")
        assert result["changed"] and (tmp_path / f"m{size}" / "m.gguf").read_bytes() == GOOD


def test_a_body_that_ends_early_without_a_length_is_a_cut_line(fetch: t.Any) -> None:
    def early(handler: Handler) -> None:
        handler.head()
        handler.wfile.write(GOOD[:1000])

    assert "closed the connection early" in fetch(early, size_bytes=len(GOOD))["msg"]


@pytest.mark.parametrize(
    "route",
    [
        answer(gzip.compress(bytes(64 << 20)), Content_Encoding="gzip"),
        answer(b"x" * 100, Content_Encoding="gzip, gzip, gzip, gzip, gzip, gzip"),
        answer(b"x" * 100, Content_Encoding="br"), answer(b"x" * 100, Content_Encoding="\x01zstd"),
    ],
)  # fmt: skip
def test_what_unpacks_to_more_than_it_is_is_not_unpacked(fetch: t.Any, tmp_path: pathlib.Path, route: Route) -> None:
    assert "content coding" in fetch(route)["msg"] and left(tmp_path / "models") == []


def test_the_body_of_a_redirect_is_not_read(fetch: t.Any, server: Server, tmp_path: pathlib.Path) -> None:
    result = fetch(endless(302, Location="/good.gguf"))
    assert result["changed"] and (tmp_path / "models" / "m.gguf").read_bytes() == GOOD
    assert "the request failed" in fetch(endless(302, Location="/m.gguf"), path=tmp_path / "b" / "m.gguf")["msg"]


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (answer(GOOD, Content_Range="bytes 0-1/2"), None),
        (answer(b"", 206, Content_Range="bytes 0-0/" + "9" * 5000), "another range"),
        (answer(b"x", 206, Content_Range=f"bytes 0-{1 << 62}/{1 << 62}"), "free some space"),
        (answer(b"x", 206, Content_Range="bytes 5-9/10"), "another range"),
        (answer(b"", 302, Location="file:///etc/passwd"), "the request failed"),
        (answer(b"", 302, Location="http://[::1"), "the request failed"),
        (answer(b"", 302, Location="https://127.0.0.1:1/\r\n x"), "cannot be"),
        (answer(b"", Content_Length=str(1 << 62)), "free some space"),
        (answer(b"", Content_Length="9" * 5000), None),
        (lambda handler: handler.wfile.write(b"\0" * (1 << 20)), "closed the connection early"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"), "cannot be"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"y" * (8 << 20) + b"\r\n\r\n"), "cannot be"),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 99999 \xff\r\n\r\n"), "cannot be"),
    ],
)
def test_answers_that_are_none_end_in_one_sentence(fetch: t.Any, route: Route, words: str | None) -> None:
    result = fetch(route)
    assert result.get("failed") or words is None, result
    assert words is None or words in result["msg"], result["msg"]


# ---- directories -----------------------------------------------------------------------------------------------------


def begun(path: pathlib.Path, url: str, **state: t.Any) -> None:
    """Write what a download that was cut leaves beside the unfinished file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    known = {"url": url, "sha256": SHA, "etag": None, "last_modified": None, "total_bytes": None, **state}
    path.with_name(f"{path.name}.part.json").write_text(json.dumps(known))


def rest(handler: Handler) -> None:
    """A server that continues whatever it is asked to continue."""
    start = int(handler.headers.get("Range", "bytes=0-")[6:-1])
    body = (GOOD * 2)[start:]
    handler.head(206, Content_Range=f"bytes {start}-{start + len(body) - 1}/*", Content_Length=str(len(body)))
    handler.wfile.write(body)


@pytest.mark.parametrize("kind", ["link", "link to nothing", "hard link", "fifo", "directory", "link to a device"])
@pytest.mark.parametrize("how", ["url", "source", "source_dir"])
def test_nothing_is_written_through_what_lies_where_the_unfinished_file_will_be(
    fetch: t.Any, server: Server, tmp_path: pathlib.Path, kind: str, how: str
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "theirs" / "m.gguf"
    victim.write_bytes(SECRET)
    begun(path, f"{server.url}/m.gguf")
    part = path.with_name("m.gguf.part")
    {
        "link": lambda: part.symlink_to(victim), "link to nothing": lambda: part.symlink_to(tmp_path / "new"),
        "hard link": lambda: os.link(victim, part), "fifo": lambda: os.mkfifo(part), "directory": part.mkdir,
        "link to a device": lambda: part.symlink_to("/dev/null"),
    }[kind]()  # fmt: skip
    stick = tmp_path / "stick"
    stick.mkdir()
    (stick / "m.gguf").write_bytes(GOOD)
    how_to_get = {"url": {}, "source": {"source": str(stick / "m.gguf"), "url": None, "sha256": None},
                  "source_dir": {"source_dir": str(stick)}}[how]  # fmt: skip
    failed = fetch(rest, path=path, **how_to_get)
    assert failed["failed"] and f"{part} is " in failed["msg"] and "nothing is written to it" in failed["msg"]
    assert victim.read_bytes() == SECRET and not (tmp_path / "new").exists() and not path.exists()


@pytest.mark.parametrize("name", ["m.gguf.part.json", "m.gguf.corrupt", "m.gguf"])
@pytest.mark.parametrize("route", [answer(GOOD), answer(b"GGUF" + b"evil" * 1250), rest])
def test_links_under_the_other_names_are_replaced_and_not_followed(
    fetch: t.Any, tmp_path: pathlib.Path, name: str, route: Route
) -> None:
    victim, path = tmp_path / "victim", tmp_path / "theirs" / "m.gguf"
    victim.write_bytes(SECRET)
    path.parent.mkdir()
    (path.parent / name).symlink_to(victim)
    fetch(route, path=path)
    assert victim.read_bytes() == SECRET and victim.stat().st_nlink == 1


@pytest.mark.parametrize(
    "state",
    [
        "[" * 100_000, '{"sha256": 1}', "\0" * 100, '"x"', json.dumps({"sha256": SHA, "total_bytes": True}),
        json.dumps({"sha256": SHA, "total_bytes": "9" * 5000, "etag": 5, "last_modified": {}, "url": []}),
        json.dumps({"sha256": SHA, "etag": '"a"\r\nX-Evil: 1', "url": "URL"}),
        json.dumps({"sha256": SHA, "x": "y" * 10**6}),
    ],
)  # fmt: skip
def test_a_state_that_somebody_else_wrote_costs_a_new_download_at_most(
    fetch: t.Any, server: Server, tmp_path: pathlib.Path, state: str
) -> None:
    path = tmp_path / "theirs" / "m.gguf"
    begun(path, "")
    path.with_name("m.gguf.part").write_bytes(GOOD[:100])
    path.with_name("m.gguf.part.json").write_text(state.replace("URL", f"{server.url}/m.gguf"))
    assert fetch(answer(GOOD), path=path)["changed"] and path.read_bytes() == GOOD
    assert "X-Evil" not in json.dumps(server.requests)


def test_a_state_that_is_no_file_is_not_read(fetch: t.Any, tmp_path: pathlib.Path) -> None:
    for index, make in enumerate((os.mkfifo, lambda state: os.symlink("/dev/zero", state))):
        path = tmp_path / f"theirs{index}" / "m.gguf"
        path.parent.mkdir()
        path.with_name("m.gguf.part").write_bytes(GOOD[:100])
        make(path.with_name("m.gguf.part.json"))
        assert fetch(answer(GOOD), path=path)["changed"] and path.read_bytes() == GOOD


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_an_unfinished_file_of_another_user_is_not_continued(fetch: t.Any, server: Server, tmp_path: t.Any) -> None:
    path = tmp_path / "theirs" / "m.gguf"
    begun(path, f"{server.url}/m.gguf")
    part = path.with_name("m.gguf.part")
    part.write_bytes(b"evil")
    os.chown(part, 12345, 12345)
    failed = fetch(rest, path=path)
    assert "a file of the user id 12345" in failed["msg"] and part.read_bytes() == b"evil"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give directories away")
def test_a_directory_of_another_user_has_to_be_named(fetch: t.Any, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "theirs" / "m" / "m.gguf"
    path.parent.mkdir(parents=True)
    os.chown(tmp_path / "theirs", 12345, 12345)
    for check in ({}, {"_ansible_check_mode": True}):
        failed = fetch(answer(GOOD), path=path, **check)
        assert f"{tmp_path}/theirs belongs to the user id 12345" in failed["msg"]
        assert "llm_models_trusted_owners" in failed["msg"] and left(path.parent) == []
    assert "nobody-here" in fetch(answer(GOOD), path=path, trusted_owners=["nobody-here"])["msg"]
    assert fetch(answer(GOOD), path=path, trusted_owners=["12345"])["changed"] and path.read_bytes() == GOOD
    assert not fetch(answer(GOOD), path=path)["changed"]  # nothing is written, so nothing is in the way


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give links away")
def test_a_link_that_another_user_may_exchange_is_refused(tmp_path: pathlib.Path) -> None:
    for name in ("real", "theirs"):
        (tmp_path / name).mkdir()
    for link in (tmp_path / "link", tmp_path / "theirs" / "link"):
        link.symlink_to(tmp_path / "real")
        disk.check_owner(f"{link}/m.gguf", ())
    os.chown(tmp_path / "link", 12345, 12345, follow_symlinks=False)
    os.chown(tmp_path / "theirs", 12345, 12345)
    for link in (tmp_path / "link", tmp_path / "theirs" / "link"):
        with pytest.raises(UserError, match="belongs to the user id 12345"):
            disk.check_owner(f"{link}/m.gguf", ())
        disk.check_owner(f"{link}/m.gguf", ["12345"])


def test_a_directory_that_everybody_may_write_to_is_refused(tmp_path: pathlib.Path) -> None:
    place = tmp_path / "open"
    place.mkdir()
    for mode in (0o777, 0o757):
        place.chmod(mode)
        with pytest.raises(UserError, match=f"Everybody may write to {place}"):
            disk.check_owner(f"{place}/m/m.gguf", ())
    for mode in (0o1777, 0o775, 0o755):
        place.chmod(mode)
        disk.check_owner(f"{place}/m/m.gguf", ())


# ---- whole unfinished files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", ["index", "server"])
def test_a_whole_unfinished_file_is_hashed_before_anybody_is_asked(
    fetch: t.Any, server: Server, tmp_path: pathlib.Path, known: str
) -> None:
    path = tmp_path / "models" / "m.gguf"
    begun(path, f"{server.url}/m.gguf", total_bytes=len(GOOD) if known == "server" else None)
    path.with_name("m.gguf.part").write_bytes(GOOD)
    size = {"size_bytes": len(GOOD)} if known == "index" else {}
    foreseen = fetch(path=path, **size, _ansible_check_mode=True) if size else {}
    assert foreseen.get("missing_bytes", 0) == 0
    result = fetch(path=path, **size)
    assert result["changed"] and result["attempts"] == 0 and result["resumed_bytes"] == len(GOOD)
    assert path.read_bytes() == GOOD and left(path.parent) == ["m.gguf"] and server.requests == []


def test_a_whole_unfinished_file_with_wrong_bytes_is_set_aside_and_fetched(
    fetch: t.Any, server: Server, tmp_path: pathlib.Path
) -> None:
    path = tmp_path / "models" / "m.gguf"
    begun(path, f"{server.url}/m.gguf")
    path.with_name("m.gguf.part").write_bytes(bytes(len(GOOD)))
    result = fetch(path=path, size_bytes=len(GOOD))
    assert result["changed"] and path.read_bytes() == GOOD and len(server.requests) == 1


def test_an_unfinished_file_that_is_too_long_is_begun_again(fetch: t.Any, server: Server, tmp_path: t.Any) -> None:
    path = tmp_path / "models" / "m.gguf"
    begun(path, f"{server.url}/m.gguf", total_bytes=len(GOOD))
    path.with_name("m.gguf.part").write_bytes(GOOD + b"more")
    assert fetch(path=path, size_bytes=len(GOOD))["changed"] and path.read_bytes() == GOOD


# ---- the hub ---------------------------------------------------------------------------------------------------------


def listing(**more: t.Any) -> bytes:
    lfs = {"size": 10, "sha256": SHA, "pointerSize": 134}
    siblings = [{"rfilename": "m.gguf", "size": 10, "blobId": "2" * 40, "lfs": lfs}]
    return json.dumps({"id": "o/r", "sha": COMMIT, "siblings": siblings, "gated": False, **more}).encode()


@pytest.fixture
def ask(server: Server, tmp_path: pathlib.Path, run: Run) -> t.Callable[..., dict[str, t.Any]]:
    def _ask(route: Route, **more: t.Any) -> dict[str, t.Any]:
        server.routes["/api/models/o/r/revision/main"] = route
        return run("hub_files", {
            "repo": "o/r", "endpoint": server.url, "record_dir": str(tmp_path / "records"), "attempts": 2,
            "retry_seconds": 0, "timeout_seconds": 5, **more,
        })  # fmt: skip

    return _ask


def test_the_listing_of_these_tests_is_a_good_one(ask: t.Any) -> None:
    assert ask(answer(listing()))["files"][0]["name"] == "m.gguf"


@pytest.mark.parametrize(
    ("route", "words"),
    [
        (endless(), "more than 16 MiB"),
        (endless(Transfer_Encoding="chunked"), "more than 16 MiB"),
        (endless(302, Location="/x"), "more than 16 MiB"),
        (endless(404), "more than 16 MiB"),
        (answer(gzip.compress(bytes(1 << 30), 1), Content_Encoding="gzip"), "content coding"),
        (answer(b"[" * 1_000_000), "not understood"),
        (answer(b'{"a":' * 1_000_000), "not understood"),
        (answer(b"{}" + b",{}" * 10), "not understood"),
        (answer(b"[]"), "not understood"),
        (answer(b'{"id": ' + b"9" * 10_000 + b"}"), "not understood"),
        (answer(b"\xff" * 100), "not understood"),
        (answer(b'{"id":[' + b"{}," * 5_000_000 + b"{}]}"), "."),
        (answer(listing(siblings=[])), "has no files at main"),
        (answer(listing(siblings={})), "."),
        (answer(listing(siblings=[{}])), "not understood"),
        (answer(listing(siblings=[7])), "not understood"),
        (answer(listing(siblings=[{"rfilename": 7}])), "no text"),
        (answer(listing(sha=7)), "no commit"),
        (answer(listing(sha=f"{COMMIT}\n")), "no commit"),
        (answer(listing(sha=None)), "no commit"),
        (answer(listing(siblings=[{"rfilename": "m.gguf", "size": 1, "lfs": 7}])), "not understood"),
        (answer(listing(siblings=[{"rfilename": "m.gguf", "size": True, "blobId": "2" * 40}])), "no hash or size"),
        (answer(listing(siblings=[{"rfilename": "m.gguf", "size": 1e300, "blobId": "2" * 40}])), "no hash or size"),
        (answer(listing(siblings=[{"rfilename": "m\n.gguf", "size": 1, "blobId": "2" * 40}])), "cannot be shown"),
        (answer(listing(siblings=[{"rfilename": "x" * 10**6, "size": 1, "blobId": "2" * 40}])), "longer than"),
        (answer(b"", 302, Location="file:///etc/passwd"), "."),
        (answer(b"", 302, Location="/" * 100_000), "."),
        (answer(b"", 302, Location="/api/models/o/r/revision/main"), "."),
        (lambda handler: handler.wfile.write(b"\0" * (1 << 20)), "."),
        (lambda handler: handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100_000 + b"\r\n"), "."),
    ],
)
def test_what_a_hub_says_costs_little_and_ends_in_one_sentence(
    ask: t.Any, tmp_path: pathlib.Path, route: Route, words: str
) -> None:
    failed = ask(route)
    assert failed.get("failed") and words in failed["msg"], failed
    assert left(tmp_path / "records") == []


def test_a_hub_that_never_finishes_is_left(run: Run, server: Server, tmp_path: pathlib.Path) -> None:
    server.routes["/api/models/o/r/revision/main"] = endless(block=b" ", pause=0.1)
    arguments = {
        "repo": "o/r", "endpoint": server.url, "record_dir": str(tmp_path), "attempts": 2, "timeout_seconds": 5,
    }  # fmt: skip
    failed = run("hub_files", arguments, [("hub_session", "ANSWER_SECONDS", 1.0)])
    assert "did not finish its answer within 1 s" in failed["msg"] and len(server.requests) == 1


# ---- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"RateLimit": '"api";r=0;t=180', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}, 180),
        ({"RateLimit-Reset": "75", "RateLimit-Remaining": "0"}, 75), ({"X-RateLimit-Reset-After": "61.5"}, 61.5),
        ({"Retry-After": "86400"}, 600), ({"Retry-After": "x"}, 15),
    ],
)  # fmt: skip
def test_the_wait_is_the_one_the_hub_names_is_bounded_and_is_shown(
    server: Server, tmp_path: pathlib.Path, monkeypatch: t.Any, headers: dict[str, str], seconds: float
) -> None:
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_lookup, placed_file

    waits: list[float] = []
    here = threading.current_thread()            # servers of other tests may still be ending
    monkeypatch.setattr(time, "sleep", lambda wait: waits.append(wait) if threading.current_thread() is here else None)
    monkeypatch.setenv("NO_PROXY", "*")
    lines: list[str] = []
    limited = answer(b"", 429, **{name.replace("-", "_"): value for name, value in headers.items()})
    server.routes = {"/m.gguf": limited, "/api/models/o/r/revision/main": limited}

    class Module:
        check_mode = False
        warn = atomic_move = staticmethod(lambda *_given: None)

    common = {"attempts": 2, "retry_seconds": 15.0, "timeout_seconds": 5, "source_dir": None, "token_file": None,
              "host_python": sys.executable}  # fmt: skip
    asked = {"repo": "o/r", "revision": "main", "files": [], "quant": None, "sha256": None, "size_bytes": None}
    options = {**common, **asked, "update": False, "ask": True, "endpoint": server.url, "record_dir": str(tmp_path)}
    with pytest.raises(UserError, match="HTTP status 429 .too many requests"):
        hub_lookup.HubLookup(Module(), options, lines.append).answer()
    log = tmp_path / "log"
    options = {
        **common, "path": str(tmp_path / "m.gguf"), "url": f"{server.url}/m.gguf", "source": None, "sha256": SHA,
        "git_sha1": None, "size_bytes": None, "verify": "manifest", "missing_ok": False, "reserve_mib": 0,
        "progress_log": str(log), "manifest_dir": str(tmp_path), "trusted_owners": [],
    }  # fmt: skip
    placed = placed_file.PlacedFile(Module(), options)
    with pytest.raises(UserError, match="HTTP status 429"):
        placed.ensure()
    placed.progress.close()
    assert waits == [seconds, seconds]
    shown = f"next attempt in {transfer.duration_text(seconds)}: "
    assert shown in lines[-1] and shown in log.read_text()
