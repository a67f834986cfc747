# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A model of 40 GB that is still at its server: some megabytes are read, and llama.cpp says whether it loads."""

from __future__ import annotations

import contextlib
import http.server
import os
import pathlib
import threading
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import load_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import remote_header
from ansible_collections.homelab.mixed_gpu.plugins.modules import gguf_load_check
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._models import gguf_bytes as made

SIZE = 40 << 30
#: What b11312's llama-fit-params prints on stderr, and the clause that is taken from it.
SAID = {
    "unknown architecture": (
        "terminate called after throwing an instance of '0.00.012.453 E llama_model_load: error loading model: unknown "
        "model architecture: 'lxama'\n0.00.013.626 E llama_model_load_from_file_impl: failed to load model\n",
        "unknown model architecture: 'lxama'"),
    "unknown type": (
        "0.00.008.101 E gguf_init_from_reader: tensor 'blk.0.ffn_up.weight' has invalid ggml type 1234. should be in "
        "[0, 43)\n0.00.008.102 E gguf_init_from_reader: failed to read tensor info\n0.00.008.393 E llama_model_load: "
        "error loading model: llama_model_loader: failed to load model from /cases/type.gguf\n",
        "tensor 'blk.0.ffn_up.weight' has invalid ggml type 1234. should be in [0, 43)"),
    "missing tensor": (
        "0.00.022.373 E llama_model_load: error loading model: check_tensor_dims: tensor 'blk.31.ffn_up.weight' not "
        "found\n0.00.025.729 E llama_model_load_from_file_impl: failed to load model\nterminate called after\n",
        "check_tensor_dims: tensor 'blk.31.ffn_up.weight' not found"),
    "no word about the model": ("0.00.000.001 E cannot open /proc/self: Permission denied\n", None),
    "a name with controls": ("x error loading model: a\x1b[2J.\n", "a [2J"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_the_reason_is_in_the_output(name):
    output, clause = SAID[name]
    assert load_check.reason(output) == clause and load_check.refused(output) == (clause is not None)


def test_a_reason_that_was_not_printed_is_asked_for_again(check, server, program):
    """llama-fit-params prints through a thread, and may end before it."""
    program.write_text(
        "#!/bin/sh\necho \"  what():  failed to load model\" >&2\necho x >> $0.asked\n"
        f"[ $(wc -l < $0.asked) -lt 4 ] || echo \"{SAID['missing tensor'][0]}\" >&2\nexit 134\n"
    )
    result = check([remote(server, head=made.written())])
    assert "'blk.31.ffn_up.weight' not found): choose" in result["msg"]


def test_a_refusal_without_any_reason_is_one(check, server, tmp_path):
    (tmp_path / "answer").write_text("  what():  failed to load model\n")
    assert "(it names no reason): choose" in check([remote(server, head=made.written())])["msg"]


class Server:
    """Sends files that begin with given bytes and go on for ever; counts what it got rid of."""

    def __init__(self) -> None:
        self.heads: dict[str, bytes] = {}
        self.status, self.sent, self.seen, self.drip = 200, 0, [], False
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_arguments: t.Any) -> None:
                pass

            def do_GET(self) -> None:
                outer.seen.append(dict(self.headers))
                head = outer.heads.get(self.path.lstrip("/"))
                self.send_response(404 if head is None else outer.status)
                self.send_header("Content-Length", str(SIZE if head is not None else 0))
                self.end_headers()
                with contextlib.suppress(OSError):
                    left = head or b""
                    while head is not None and outer.drip:
                        self.wfile.write(b"G")
                        time.sleep(0.05)
                    while head is not None:
                        chunk, left = left[:65536] or bytes(65536), left[65536:]
                        self.wfile.write(chunk)
                        outer.sent += len(chunk)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> t.Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server()
    yield server
    server.server.shutdown()
    server.server.server_close()


@pytest.fixture
def program(tmp_path: pathlib.Path) -> pathlib.Path:
    """A stand-in that writes down what it was asked about, and says what the file C(answer) holds."""
    path = tmp_path / "bin" / "llama-fit-params"
    path.parent.mkdir()
    path.write_text(
        f"#!/bin/sh\nstat -c '%s %a %n' \"$2\" >> {tmp_path}/asked\nhead -c 24 \"$2\" >> {tmp_path}/heads\n"
        f"[ -e {tmp_path}/answer ] || exit 0\ncat {tmp_path}/answer >&2\nexit 134\n"
    )
    path.chmod(0o755)
    return path


@pytest.fixture
def check(tmp_path: pathlib.Path, program: pathlib.Path, call_module: t.Any) -> t.Callable[..., dict[str, t.Any]]:
    def _check(files: list[dict[str, t.Any]], **arguments: t.Any) -> dict[str, t.Any]:
        arguments = {"program": str(program), "work_dir": str(tmp_path / "work"), "files": files, **arguments}
        result = call_module(gguf_load_check, arguments)
        left = list((tmp_path / "work").iterdir()) if (tmp_path / "work").exists() else []
        assert left == []
        return result

    return _check


def remote(server: Server, name: str = "m.gguf", head: bytes | None = None, **changes: t.Any) -> dict[str, t.Any]:
    if head is not None:
        server.heads[name] = head
    return {
        "id": "m", "path": f"/nowhere/{name}", "url": f"{server.url}/{name}", "size_bytes": SIZE, "present": False,
        "gguf": True, "kind": "url", **changes,
    }  # fmt: skip


def test_a_refusal_comes_after_a_few_megabytes(check, server, tmp_path):
    (tmp_path / "answer").write_text(SAID["unknown architecture"][0])
    result = check([remote(server, head=made.written(made.model("lxama")))])
    assert result["failed"] and "unknown model architecture: 'lxama'): choose another file" in result["msg"]
    assert f"{server.url}/m.gguf" in result["msg"] and server.sent < 16 << 20
    size, mode, path = (tmp_path / "asked").read_text().split()[:3]
    assert (int(size), mode) == (SIZE, "644") and path.endswith("/m.gguf")


def test_shards_are_asked_about_together(check, server, tmp_path):
    half = len(made.NAMES) // 2
    keys = {"split.count": 2, "split.tensors.count": len(made.NAMES)}
    names = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"]
    first = remote(server, names[0], made.written(made.model(changes=keys), made.NAMES[:half]))
    local = tmp_path / names[1]
    local.write_bytes(made.written({"split.count": 2}, made.NAMES[half:]))
    second = remote(server, names[1], path=str(local), present=True)
    assert check([first, second])["models"] == [{"id": "m", "loads": True, "reason": None}]
    assert (tmp_path / "asked").read_text().split()[2].endswith(names[0])


def test_a_file_that_is_there_is_asked_about_as_it_is(check, server, tmp_path):
    path = tmp_path / "m.gguf"
    path.write_bytes(made.written())
    file = remote(server, path=str(path), present=True, url=None)
    assert check([file])["models"] == [{"id": "m", "loads": True, "reason": None}]
    assert (tmp_path / "asked").read_text().split()[2] == str(path)
    assert check([file], missing_only=True)["models"] == []


def test_a_head_is_asked_about_as_the_draft_of_its_model_alone(check, server):
    head = remote(server, head=made.written(made.model("eagle3")))
    assert check([{**head, "draft_for": "big"}])["models"] == [{"id": "m", "loads": True, "reason": None}]
    assert "a drafting head for speculative decoding" in check([head])["msg"]


def test_the_true_cause_needs_no_engine(check, server):
    result = check([remote(server, head=made.written(made.model("gemma3"), [*made.NAMES, "v.blk.0.x"]))], program="/no")
    assert "Ollama's own engine" in result["msg"] and server.url in result["msg"]


@pytest.mark.parametrize(
    ("head", "words"),
    [
        (made.written(made.model("newcomer")), "the architecture newcomer, unknown to the llama.cpp that"),
        (made.written(kinds={"output.weight": 1234}), "the tensor type 1234, unknown"),
    ],
)
def test_without_an_engine_the_pinned_one_counts(check, server, head, words):
    assert words in check([remote(server, head=head)], program="/no")["msg"]


def test_without_an_engine_a_known_model_is_not_known_to_load(check, server):
    (model,) = check([remote(server, head=made.written())], program="/no")["models"]
    assert model["loads"] is None and "no /no to ask" in model["reason"]


def test_a_server_that_does_not_answer_is_no_failure(check, server):
    (model,) = check([remote(server)])["models"]
    assert model["loads"] is None and "answered with status 404" in model["reason"]
    file = remote(server, url="http://127.0.0.1:9/m.gguf")
    assert "cannot be read" in check([file])["models"][0]["reason"]


def test_a_server_that_sends_byte_by_byte_is_left(check, server, monkeypatch):
    monkeypatch.setattr(remote_header, "SECONDS", 0.5)
    server.drip = True
    (model,) = check([remote(server, head=made.written())])["models"]
    assert model["loads"] is None and "within 0 s" in model["reason"]


def test_an_engine_that_crashes_says_nothing_about_the_model(check, server, tmp_path):
    (tmp_path / "answer").write_text("Illegal instruction\n")
    (model,) = check([remote(server, head=made.written())])["models"]
    assert model["loads"] is None and "ended with 134" in model["reason"]


def test_other_formats_unknown_places_and_small_files_are_passed_over(check, server):
    assert check([remote(server, size_bytes=1 << 29)])["models"] == [] and server.seen == []
    assert check([remote(server, gguf=False), remote(server, id="x", url=None)])["models"] == []


def test_the_token_goes_to_the_hub_alone(check, server, tmp_path):
    token = tmp_path / "token"
    token.write_text("good")
    token.chmod(0o600)
    file = remote(server, head=made.written())
    check([file], token_file=str(token))
    check([{**file, "kind": "repo"}], token_file=str(token))
    assert [seen.get("Authorization") for seen in server.seen] == [None, "Bearer good"]


@pytest.mark.live
@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b"", b"", None),
        (b"blk.31.ffn_up.weight", b"blk.31.ffn_xx.weight", "'blk.31.ffn_up.weight' not found"),
        (b"llama", b"lxama", "unknown model architecture: 'lxama'"),
    ],
)
def test_the_real_engine_answers(check, server, llama_bin, tmp_path, old, new, words):
    path = tmp_path / "shape.gguf"
    record.header_only(path, "llama_3_1_8b_q4_k_m")
    with path.open("rb") as handle:
        head = handle.read(1 << 20).replace(old, new)
    file = remote(server, head=head, size_bytes=os.path.getsize(path))
    result = check([file], program=str(llama_bin / "llama-fit-params"))
    if words is None:
        assert result["models"] == [{"id": "m", "loads": True, "reason": None}]
    else:
        assert words in result["msg"]


def spoken(kind="gpt2", words=("a", "b", "c")):
    return made.written(made.model(changes={"tokenizer.ggml.model": kind, "tokenizer.ggml.tokens": list(words)}))


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (spoken(), None),
        (spoken(words=("a", "b", "x")), "its tokens from 0 on are other words than those of the target"),
        (spoken("llama"), "its tokenizer is llama, and that of the target gpt2"),
    ],
)
def test_a_draft_of_another_vocabulary_is_refused_before_anything_is_fetched(check, server, tmp_path, draft, words):
    """Also a small one, and where the target is there already."""
    target = tmp_path / "m.gguf"
    target.write_bytes(spoken())
    files = [
        remote(server, path=str(target), present=True, url=None, first=True, draft_for=None),
        remote(server, "d.gguf", draft, id="d", first=True, draft_for="m"),
    ]
    result = check(files, missing_only=True)
    if words is None:
        assert [model["id"] for model in result["models"]] == ["d"]
    else:
        assert result["msg"] == (
            f"The model d cannot draft for m: {words}; choose a draft of the same family, or remove draft_for."
        )
    assert server.sent < 16 << 20
    # what is there already is for the tuning to tell
    local = tmp_path / "d.gguf"
    local.write_bytes(draft)
    there = remote(server, "d.gguf", id="d", path=str(local), present=True, url=None, first=True, draft_for="m")
    assert "msg" not in check([files[0], there])


def test_a_draft_that_cannot_be_looked_at_is_left_to_the_tuning(check, server):
    gone = [remote(server, name, id=name, first=True, draft_for=other) for name, other in (("m", None), ("d", "m"))]
    assert "msg" not in check(gone)
