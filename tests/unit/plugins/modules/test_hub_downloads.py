# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""hub_files and model_file against a local hub, through the real huggingface_hub: what a line, a hub and a host do.

After each fault the published state is right, and the next run finishes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import typing as t

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import entries, hub_api
from ansible_collections.homelab.mixed_gpu.plugins.modules import hub_files, model_file
from ansible_collections.homelab.mixed_gpu.tests import failing_disk
from ansible_collections.homelab.mixed_gpu.tests.local_hub import server

SIZE = (10 << 20) + 4321
DATA = os.urandom(SIZE)
SHA = hashlib.sha256(DATA).hexdigest()
NEWER = os.urandom(SIZE)
FIRST, SECOND = "1" * 40, "2" * 40
REPO = "owner/Model-GGUF"
CONFIG = b'{"architectures": ["LlamaForCausalLM"]}'
# a module as a process of its own, which can be killed and limited
AS_PROCESS = """\
import json, sys
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import model_file
with patch_module_args(json.load(sys.stdin)):
    model_file.main()
"""


def put(directory: pathlib.Path, repo: str, commit: str, files: dict[str, bytes], branch: str = "main") -> None:
    for name, content in files.items():
        path = directory / repo / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (directory / repo / branch).write_text(commit)


@pytest.fixture
def hub(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[server.Hub]:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    put(tmp_path / "hub", REPO, FIRST, {
        "Model-Q4_K_M.gguf": DATA, "Model-Q4_K_M_L.gguf": b"x", "mmproj-Model-Q4_K_M.gguf": b"y", "README.md": b"z",
        "Q8_0/Model-Q8_0-00001-of-00002.gguf": b"one", "Q8_0/Model-Q8_0-00002-of-00002.gguf": b"two",
    })
    put(tmp_path / "hub", "owner/Model-exl2", SECOND, {
        ".gitattributes": b"a", "config.json": CONFIG, "output-00001-of-00002.safetensors": DATA[:1000],
        "output-00002-of-00002.safetensors": DATA[1000:2000], "sub/tokenizer.json": b"{}",
    }, branch="4.0bpw")
    hub = server.Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def ask(hub: server.Hub, tmp_path: pathlib.Path, call_module: t.Any) -> t.Callable[..., dict[str, t.Any]]:
    def _ask(check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        arguments = {
            "repo": REPO, "endpoint": hub.url, "record_dir": str(tmp_path / "records"), "retry_seconds": 0,
            "timeout_seconds": 5, **arguments, "_ansible_check_mode": check, "_ansible_diff": True,
        }
        return result(call_module(hub_files, arguments))

    return _ask


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "models" / "m" / "Model-Q4_K_M.gguf"


@pytest.fixture
def options(hub: server.Hub, path: pathlib.Path, tmp_path: pathlib.Path) -> dict[str, t.Any]:
    return {
        "path": str(path), "url": hub_api.file_url(hub.url, REPO, FIRST, "Model-Q4_K_M.gguf"), "sha256": SHA,
        "size_bytes": SIZE, "manifest_dir": str(tmp_path / "manifests"), "retry_seconds": 0, "reserve_mib": 0,
        "lock_wait_seconds": 0, "timeout_seconds": 5,
    }  # fmt: skip


@pytest.fixture
def fetch(options: dict[str, t.Any], call_module: t.Any) -> t.Callable[..., dict[str, t.Any]]:
    def _fetch(check: bool = False, **more: t.Any) -> dict[str, t.Any]:
        given = {key: value for key, value in {**options, **more}.items() if value is not None}
        return result(call_module(model_file, {**given, "_ansible_check_mode": check}))

    return _fetch


def start(options: dict[str, t.Any], **how: t.Any) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", AS_PROCESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert process.stdin
    process.stdin.write(json.dumps(options))
    process.stdin.close()
    process.stdin = None
    return process


def until(condition: t.Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.02)


def left(path: pathlib.Path) -> list[str]:
    return sorted(os.listdir(path.parent)) if path.parent.exists() else []


#: what the modules of one test warned of
WARNINGS: list[str] = []


@pytest.fixture(autouse=True)
def warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the controller's code is loaded too, as in a whole test run, warnings do not come with the result."""
    WARNINGS.clear()
    monkeypatch.setattr(AnsibleModule, "warn", lambda _module, warning: WARNINGS.append(warning))


def result(found: dict[str, t.Any]) -> dict[str, t.Any]:
    """Return a module's result, with what it warned of under C(said)."""
    found["said"], WARNINGS[:] = list(WARNINGS), []
    return found


def warned(found: dict[str, t.Any], sentence: str) -> bool:
    return any(sentence in warning for warning in found["said"])


def names(answer: dict[str, t.Any]) -> list[str]:
    return [file["name"] for file in answer["files"]]


# ---- which files -----------------------------------------------------------------------------------------------------


def test_a_quant_becomes_one_file_with_size_and_hash(ask: t.Any, hub: server.Hub) -> None:
    answer = ask(quant="q4_k_m")
    (file,) = answer["files"]
    assert answer["changed"] and answer["source"] == "hub" and answer["commit"] == FIRST and answer["format"] == "gguf"
    assert (file["name"], file["size_bytes"], file["sha256"]) == ("Model-Q4_K_M.gguf", SIZE, SHA)
    assert file["url"] == f"{hub.url}/{REPO}/resolve/{FIRST}/Model-Q4_K_M.gguf"


def test_shards_are_one_model_whichever_of_them_is_named(ask: t.Any) -> None:
    shards = [f"Q8_0/Model-Q8_0-0000{number}-of-00002.gguf" for number in (1, 2)]
    assert names(ask(quant="Q8_0")) == shards == names(ask(files=[shards[1]])) == names(ask(files=["Q8_0/*"]))


def test_a_repository_without_gguf_is_a_folder_and_git_hashes_its_small_files(ask: t.Any) -> None:
    answer = ask(repo="owner/Model-exl2", revision="4.0bpw")
    assert answer["format"] == "folder" and answer["commit"] == SECOND and ".gitattributes" not in names(answer)
    config, first = answer["files"][:2]
    assert config["git_sha1"] == hashlib.sha1(b"blob %d\0" % len(CONFIG) + CONFIG).hexdigest() and not config["sha256"]
    assert first["sha256"] == hashlib.sha256(DATA[:1000]).hexdigest() and not first["git_sha1"]
    assert names(ask(repo="owner/Model-exl2", revision="4.0bpw", files=["config.json"])) == ["config.json"]


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ({}, "has 3 models of that repository (Model-Q4_K_M.gguf, "),
        ({"quant": "Q9_9"}, "has no GGUF file of quant Q9_9: it has the quants Q4_K_M, Q4_K_M_L, Q8_0"),
        ({"files": ["none.gguf"]}, "has no file none.gguf: it has the quants"),
        ({"files": ["Model-Q4_K_M.gguf", "README.md"]}, "mix GGUF with README.md"),
        ({"repo": "owner/none"}, "there is no repository owner/none, or it is private"),
        ({"revision": "none"}, "has no revision none: "),
        ({"repo": "none"}, "'none' is no repository of the hub"),
        ({"quant": "Q4_K_M", "sha256": "0" * 64}, f"has the SHA-256 {SHA}, and {'0' * 64} was expected"),
        ({"endpoint": "ftp://host"}, "is no http or https URL"),
    ],
)
def test_refusals_are_one_sentence_and_record_nothing(
    ask: t.Any, question: dict[str, t.Any], sentence: str, tmp_path: pathlib.Path
) -> None:
    failed = ask(**question)
    assert failed["failed"] and sentence in failed["msg"] and "\n" not in failed["msg"], failed["msg"]
    assert not (tmp_path / "records").exists()


def test_a_hub_that_wants_to_write_elsewhere_is_refused() -> None:
    question = {"repo": REPO, "revision": "main", "files": [], "quant": None}
    file = {"name": "../../etc/passwd", "size_bytes": 1, "sha256": SHA, "git_sha1": None}
    with pytest.raises(UserError, match="would leave its directory"):
        hub_api.record(question, FIRST, [file], "https://hub", "now")


def test_a_branch_is_resolved_once_and_moves_only_when_that_is_asked_for(
    ask: t.Any, hub: server.Hub, tmp_path: pathlib.Path
) -> None:
    ask(quant="Q4_K_M")
    put(tmp_path / "hub", REPO, SECOND, {"Model-Q4_K_M.gguf": NEWER})
    asked = len(hub.requests)
    again = ask(quant="Q4_K_M")
    assert not again["changed"] and again["commit"] == FIRST and again["source"] == "record"
    assert len(hub.requests) == asked
    foreseen = ask(quant="Q4_K_M", update=True, check=True)
    assert foreseen["changed"] and foreseen["diff"]["after"]["commit"] == SECOND
    assert ask(quant="Q4_K_M")["commit"] == FIRST
    moved = ask(quant="Q4_K_M", update=True)
    assert moved["changed"] and moved["commit"] == SECOND == ask(quant="Q4_K_M")["commit"]
    assert not ask(quant="Q4_K_M", update=True)["changed"]


def test_check_mode_asks_and_records_nothing(ask: t.Any, tmp_path: pathlib.Path) -> None:
    assert ask(quant="Q4_K_M", check=True)["changed"] and not (tmp_path / "records").exists()


def test_without_a_hub_the_recorded_answer_is_used(ask: t.Any, hub: server.Hub) -> None:
    ask(quant="Q4_K_M")
    gone = "http://127.0.0.1:9"
    assert ask(quant="Q4_K_M", endpoint=gone)["commit"] == FIRST
    kept = ask(quant="Q4_K_M", endpoint=gone, update=True, attempts=2)
    assert not kept["changed"] and kept["source"] == "record" and warned(kept, "cannot be reached")
    failed = ask(quant="Q8_0", endpoint=gone, attempts=2)
    assert "llm_models_source_dir" in failed["msg"] and "(2 attempts)" in failed["msg"]


def test_an_answer_of_another_host_is_taken_in(ask: t.Any, tmp_path: pathlib.Path) -> None:
    ask(quant="Q4_K_M")
    (tmp_path / "records").rename(tmp_path / "brought")
    gone = {"quant": "Q4_K_M", "endpoint": "http://127.0.0.1:9", "source_dir": str(tmp_path / "brought")}
    answer = ask(**gone)
    assert answer["changed"] and answer["source"] == "source_dir" and answer["files"][0]["sha256"] == SHA
    assert ask(**gone)["source"] == "record"


def test_what_was_never_asked_for_is_no_failure_where_nobody_may_ask(ask: t.Any, hub: server.Hub) -> None:
    answer = ask(quant="Q4_K_M", ask=False)
    assert not answer["available"] and "never asked for" in answer["reason"] and hub.requests == []
    ask(quant="Q4_K_M")
    assert ask(quant="Q4_K_M", ask=False, update=True)["source"] == "record"


def test_what_says_everything_is_not_asked_for(ask: t.Any, hub: server.Hub, tmp_path: pathlib.Path) -> None:
    answer = ask(revision=FIRST, files=["Model-Q4_K_M.gguf"], sha256=SHA.upper(), size_bytes=SIZE)
    assert answer["source"] == "given" and answer["files"][0]["size_bytes"] == SIZE and hub.requests == []
    assert not (tmp_path / "records").exists()


def test_a_damaged_record_names_itself_and_the_cure(ask: t.Any, tmp_path: pathlib.Path) -> None:
    ask(quant="Q4_K_M")
    (file,) = (tmp_path / "records").iterdir()
    for text in ("{", json.dumps({**json.loads(file.read_text()), "commit": "main"})):
        file.write_text(text)
        failed = ask(quant="Q4_K_M")
        assert f"{file} cannot be used: it " in failed["msg"] and f"mv {file} {file}.old" in failed["msg"]
    file.unlink()
    assert ask(quant="Q4_K_M")["commit"] == FIRST


def test_the_hub_is_asked_again_after_faults_and_for_as_long_as_it_says(ask: t.Any, hub: server.Hub) -> None:
    hub.api_faults = [{"status": 500}, {"status": 429, "headers": {"Retry-After": "1"}}]
    started = time.monotonic()
    assert ask(quant="Q4_K_M")["commit"] == FIRST and time.monotonic() - started >= 1
    hub.api_faults = [{"status": 429}] * 2
    assert "too many requests" in ask(quant="Q8_0", attempts=2)["msg"]


# ---- tokens ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def gated(tmp_path: pathlib.Path, hub: server.Hub) -> t.Callable[[str], str]:
    (tmp_path / "hub" / REPO / "gated").touch()

    def token(text: str) -> str:
        file = tmp_path / "token"
        file.write_text(f"{text}\n")
        file.chmod(0o600)
        return str(file)

    return token


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        (None, ["is gated: log in at ", "accept its terms", "llm_models_hub_token"]),
        ("other", ["the account of the token has no access", "accept the terms"]),
        ("wrong", ["the token is not accepted: make a new one at "]),
    ],
)
def test_a_gated_model_says_what_to_click_and_where_the_token_goes(
    ask: t.Any, fetch: t.Any, gated: t.Any, path: pathlib.Path, text: str | None, sentences: list[str]
) -> None:
    token_file = gated(text) if text else None
    for failed in (ask(quant="Q4_K_M", token_file=token_file), fetch(token_file=token_file)):
        assert failed["failed"] and left(path) == []
        for sentence in sentences:
            assert sentence in failed["msg"]
    token_file = gated("good")
    assert ask(quant="Q4_K_M", token_file=token_file)["commit"] == FIRST
    assert fetch(token_file=token_file)["changed"] and path.read_bytes() == DATA


def test_the_token_goes_to_the_hub_alone_and_nowhere_else(
    ask: t.Any, fetch: t.Any, gated: t.Any, hub: server.Hub, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    result = fetch(token_file=gated("good"))
    assert result["changed"]
    sent = {where.split("/")[0]: headers.get("Authorization") for _method, where, headers in hub.requests}
    hub_port, content_port = (url.rpartition(":")[2] for url in (hub.url, hub.content_url))
    assert sent == {hub_port: "Bearer good", content_port: None}
    written = "".join(each.read_text() for each in (tmp_path / "manifests").iterdir())
    assert "good" not in json.dumps(result) + written


def test_a_token_that_others_could_read_is_not_used(ask: t.Any, fetch: t.Any, gated: t.Any, hub: server.Hub) -> None:
    token_file = gated("good")
    plain = ask(quant="Q4_K_M", token_file=token_file, endpoint="http://hub.example")
    assert "has no TLS" in plain["msg"]
    os.chmod(token_file, 0o640)
    for failed in (ask(quant="Q4_K_M", token_file=token_file), fetch(token_file=token_file)):
        assert f"chmod 600 {token_file}" in failed["msg"]
    assert hub.requests == []


@pytest.mark.parametrize("held", ["hf_a hf_secret", "hf_secret\nHost: x", "\ufeffhf_secret", "hf_secret\0"])
def test_what_is_no_token_is_said_and_never_shown(
    ask: t.Any, fetch: t.Any, gated: t.Any, hub: server.Hub, held: str
) -> None:
    token_file = gated("good")
    pathlib.Path(token_file).write_text(held)
    for failed in (ask(quant="Q4_K_M", token_file=token_file), fetch(token_file=token_file)):
        assert f"{token_file} holds more than a token" in failed["msg"] and "secret" not in json.dumps(failed["msg"])
    assert hub.requests == []


# ---- lines and hubs that fail ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("tenth", range(10))
def test_a_line_that_is_cut_at_every_tenth(fetch: t.Any, hub: server.Hub, path: pathlib.Path, tenth: int) -> None:
    cut = SIZE * tenth // 10
    hub.faults = [{"cut": cut}]
    failed = fetch(attempts=1)
    assert failed["failed"] and not path.exists()
    kept = path.with_name(f"{path.name}.part").stat().st_size if cut >= 65536 else 0
    assert cut - 65536 < kept <= cut
    result = fetch()
    assert result["changed"] and result["resumed_bytes"] == kept and path.read_bytes() == DATA
    assert left(path) == [path.name] and not fetch()["changed"]


def test_a_line_that_is_cut_at_every_tenth_in_one_run(fetch: t.Any, hub: server.Hub, path: pathlib.Path) -> None:
    hub.faults = [{"cut": SIZE // 10}] * 9
    result = fetch(attempts=10)
    assert result["changed"] and result["attempts"] == 10 and path.read_bytes() == DATA


def test_a_busy_hub_is_asked_again_when_it_says(fetch: t.Any, hub: server.Hub, path: pathlib.Path) -> None:
    hub.faults = [{"cut": 3 << 20}, {"status": 429, "headers": {"Retry-After": "2"}}, {"status": 500}, {"status": 503}]
    started = time.monotonic()
    result = fetch()
    assert time.monotonic() - started >= 2 and result["attempts"] == 5 and path.read_bytes() == DATA


def test_a_hub_that_stays_broken_leaves_what_came(fetch: t.Any, hub: server.Hub, path: pathlib.Path) -> None:
    hub.faults = [{"cut": 3 << 20}, *[{"status": 500}] * 9]
    failed = fetch(attempts=3)
    assert "HTTP status 500" in failed["msg"] and "3 MiB are kept" in failed["msg"]
    hub.faults = []
    assert fetch()["resumed_bytes"] == 3 << 20 and path.read_bytes() == DATA


def test_wrong_bytes_of_the_right_length_are_named_set_aside_and_fetched_again(
    fetch: t.Any, hub: server.Hub, path: pathlib.Path
) -> None:
    hub.faults = [{"wrong": True}]
    result = fetch()
    assert result["changed"] and path.read_bytes() == DATA
    assert warned(result, SHA) and warned(result, f"kept as {path}.corrupt, and the file is downloaded again")
    assert left(path) == [path.name, f"{path.name}.corrupt"]


def test_a_hub_that_keeps_sending_wrong_bytes_replaces_nothing(
    fetch: t.Any, hub: server.Hub, path: pathlib.Path
) -> None:
    fetch()
    hub.faults = [{"wrong": True}] * 2
    newer = hashlib.sha256(NEWER).hexdigest()
    put(hub.directory, REPO, SECOND, {"Model-Q4_K_M.gguf": NEWER})
    moved = {"url": hub_api.file_url(hub.url, REPO, SECOND, "Model-Q4_K_M.gguf"), "sha256": newer}
    failed = fetch(**moved)
    assert failed["failed"] and "twice: nothing was replaced" in failed["msg"] and "another mirror" in failed["msg"]
    assert path.read_bytes() == DATA and left(path) == [path.name, f"{path.name}.corrupt"]
    assert fetch(**moved)["changed"] and path.read_bytes() == NEWER and left(path) == [path.name]


def test_another_file_by_that_name_is_refused_before_a_byte(fetch: t.Any, path: pathlib.Path) -> None:
    failed = fetch(size_bytes=SIZE + 1)
    assert f"has {SIZE} bytes, and {SIZE + 1} were expected" in failed["msg"] and left(path) == []


def test_a_branch_that_moves_in_mid_download_changes_nothing(
    ask: t.Any, fetch: t.Any, hub: server.Hub, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    (file,) = ask(quant="Q4_K_M")["files"]
    hub.faults = [{"cut": SIZE // 2}]
    assert fetch(attempts=1, url=file["url"])["failed"]
    put(tmp_path / "hub", REPO, SECOND, {"Model-Q4_K_M.gguf": NEWER})
    (file,) = ask(quant="Q4_K_M")["files"]
    assert fetch(url=file["url"], sha256=file["sha256"])["resumed_bytes"] and path.read_bytes() == DATA
    (file,) = ask(quant="Q4_K_M", update=True)["files"]
    assert fetch(url=file["url"], sha256=file["sha256"])["changed"] and path.read_bytes() == NEWER
    assert left(path) == [path.name]


def test_an_update_in_mid_download_begins_again(
    ask: t.Any, fetch: t.Any, hub: server.Hub, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    hub.faults = [{"cut": SIZE // 2}]
    assert fetch(attempts=1)["failed"]
    put(tmp_path / "hub", REPO, SECOND, {"Model-Q4_K_M.gguf": NEWER})
    (file,) = ask(quant="Q4_K_M")["files"]
    result = fetch(url=file["url"], sha256=file["sha256"])
    assert result["resumed_bytes"] == 0 and path.read_bytes() == NEWER


def test_a_slow_drip_arrives_and_is_told(
    fetch: t.Any, hub: server.Hub, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    log = tmp_path / "log"
    hub.faults = [{"rate": SIZE // 7}]  # for longer than the timeout, and never silent for so long
    assert fetch(progress_log=str(log), timeout_seconds=4)["attempts"] == 1 and path.read_bytes() == DATA
    lines = [line for line in log.read_text().splitlines() if " MiB (" in line and "SHA" not in line]
    assert len(lines) >= 2 and all(" of 10 MiB (" in line and line.endswith(" left") for line in lines)


def test_a_small_file_is_known_by_its_git_hash(
    ask: t.Any, fetch: t.Any, hub: server.Hub, path: pathlib.Path
) -> None:
    config = ask(repo="owner/Model-exl2", revision="4.0bpw")["files"][0]
    how = {"url": config["url"], "sha256": None, "git_sha1": config["git_sha1"], "size_bytes": config["size_bytes"]}
    result = fetch(**how)
    assert result["sha256"] == hashlib.sha256(CONFIG).hexdigest() and path.read_bytes() == CONFIG
    asked = len(hub.requests)
    again = fetch(**how)
    assert not again["changed"] and not again["hashed"] and len(hub.requests) == asked
    assert fetch(check=True, verify="recorded", **how)["sha256"] == result["sha256"]
    path.write_bytes(CONFIG.replace(b"Llama", b"Lamma"))
    assert fetch(**how)["changed"] and path.read_bytes() == CONFIG
    hub.faults = [{"wrong": True}]
    path.unlink()
    assert warned(fetch(**how), "git SHA-1") and path.read_bytes() == CONFIG


# ---- hosts that fail -------------------------------------------------------------------------------------------------


def test_a_damaged_file_is_named_set_aside_and_fetched_again(
    fetch: t.Any, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    fetch()
    failing_disk.damage(path, tmp_path / "manifests")
    assert not fetch()["changed"]
    result = fetch(verify="full")
    assert result["changed"] and warned(result, f"{path} is damaged") and path.read_bytes() == DATA
    aside = path.with_name(f"{path.name}.corrupt")
    assert aside.read_bytes()[:6] == b"damage" and left(path) == [path.name, aside.name]
    assert not fetch(verify="full")["changed"]


def test_a_process_that_is_killed_is_continued(options: t.Any, fetch: t.Any, hub: t.Any, path: t.Any) -> None:
    part = path.with_name(f"{path.name}.part")
    hub.faults = [{"rate": 1 << 20}]
    process = start(options)
    until(lambda: part.exists() and part.stat().st_size > 1 << 20)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and not path.exists()
    kept = part.stat().st_size
    result = fetch()
    assert result["resumed_bytes"] == kept > 1 << 20 and path.read_bytes() == DATA and left(path) == [path.name]


def test_a_process_that_is_killed_between_publishing_and_recording(fetch: t.Any, path: t.Any, tmp_path: t.Any) -> None:
    fetch()
    for manifest in (tmp_path / "manifests").glob("*.json"):
        manifest.unlink()
    path.with_name(f"{path.name}.part.json").write_text("{}")
    result = fetch()
    assert result["hashed"] and result["missing_bytes"] == 0 and path.read_bytes() == DATA and left(path) == [path.name]


def test_two_at_once_fetch_it_once(options: dict[str, t.Any], hub: t.Any, path: t.Any) -> None:
    hub.faults = [{"rate": 8 << 20}]
    both = [start({**options, "lock_wait_seconds": 60}) for _each in range(2)]
    results = [json.loads(process.communicate(timeout=300)[0]) for process in both]
    assert sorted(result["changed"] for result in results) == [False, True], results
    assert {result["sha256"] for result in results} == {SHA} and path.read_bytes() == DATA and left(path) == [path.name]
    assert sum("/content/" in where for _method, where, _headers in hub.requests) == 1


def test_a_file_that_cannot_grow_is_one_sentence(options: dict[str, t.Any], fetch: t.Any, path: t.Any) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4 << 20, 4 << 20))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    process = start(options, preexec_fn=limit)
    failed = json.loads(process.communicate(timeout=300)[0])
    assert failed["failed"] and f"{path} cannot be put in place (File too large)" in failed["msg"] and not path.exists()
    assert fetch()["resumed_bytes"] == 4 << 20 and path.read_bytes() == DATA


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> t.Iterator[pathlib.Path]:
    """Return a mounted filesystem of 16 MiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(disk)]
    done = subprocess.run(mount, capture_output=True, check=False)
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root; the Molecule scenario models does it, too")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_disk_that_fills_up_keeps_what_came(
    options: dict[str, t.Any], fetch: t.Any, hub: t.Any, small_disk: pathlib.Path
) -> None:
    path = small_disk / "m" / "m.gguf"
    hub.faults = [{"rate": 1 << 20}]
    process = start({**options, "path": str(path)})
    until(lambda: path.with_name("m.gguf.part").exists())
    other = small_disk / "other"
    with contextlib.suppress(OSError):
        other.write_bytes(bytes(12 << 20))
    failed = json.loads(process.communicate(timeout=300)[0])
    assert failed["failed"] and "the disk is full: free some space, then run the play again" in failed["msg"]
    assert not path.exists()
    refused = fetch(path=str(path))
    assert str(small_disk) in refused["msg"] and "free some space" in refused["msg"]
    other.unlink()
    result = fetch(path=str(path))
    assert result["resumed_bytes"] > 0 and path.read_bytes() == DATA and result["filesystem"] == str(small_disk)


# ---- without a line --------------------------------------------------------------------------------------------------


def test_files_are_taken_in_by_hash_whatever_their_name(
    fetch: t.Any, hub: server.Hub, path: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    stick = tmp_path / "stick"
    (stick / "deep").mkdir(parents=True)
    (stick / "aaa").write_bytes(NEWER)                   # the right size and the wrong bytes
    (stick / "deep" / "old-name.bin").write_bytes(DATA)
    gone = {"url": f"http://127.0.0.1:9/{REPO}/resolve/{FIRST}/x.gguf", "source_dir": str(stick)}
    result = fetch(**gone)
    assert result["changed"] and path.read_bytes() == DATA and hub.requests == [] and result["attempts"] == 0
    assert sorted(os.listdir(stick)) == ["aaa", "deep"] and not fetch(**gone)["changed"]
    path.unlink()
    (stick / "deep" / "old-name.bin").unlink()
    failed = fetch(**gone, attempts=1)
    assert "cannot be reached" in failed["msg"] and left(path) == []
    shutil.rmtree(stick)
    assert f"{stick} is no directory: mount it" in fetch(**gone)["msg"]


def test_check_mode_asks_no_server_where_the_size_is_known(fetch: t.Any, hub: server.Hub, path: pathlib.Path) -> None:
    result = fetch(check=True)
    assert result["changed"] and not result["present"] and result["missing_bytes"] == SIZE and hub.requests == []
    hub.faults = [{"cut": 5 << 20}]
    fetch(attempts=1)
    assert fetch(check=True)["missing_bytes"] == SIZE - (5 << 20)


def test_entries_become_files_with_the_hubs_answers(ask: t.Any) -> None:
    wanted = [
        {"id": "m", "repo": REPO, "quant": "Q8_0"}, {"id": "e", "repo": "owner/Model-exl2", "revision": "4.0bpw"},
        {"id": "llama_3_3_70b_instruct_q4_k_m"}, {"id": "later", "repo": REPO, "quant": "Q4_K_M"},
    ]  # fmt: skip
    questions = entries.hub_questions(wanted)
    answers = []
    for question in questions[:2]:
        answers.append({**ask(**{key: value for key, value in question.items() if key != "id"}), "item": question})
    files = entries.model_files(wanted, "/m", answers)
    assert [file["path"] for file in files] == [
        "/m/m/Model-Q8_0-00001-of-00002.gguf", "/m/m/Model-Q8_0-00002-of-00002.gguf", "/m/e/config.json",
        "/m/e/output-00001-of-00002.safetensors", "/m/e/output-00002-of-00002.safetensors", "/m/e/sub/tokenizer.json",
        "/m/llama_3_3_70b_instruct_q4_k_m/Llama-3.3-70B-Instruct-Q4_K_M.gguf", "/m/later/later.gguf",
    ]  # fmt: skip
    assert [file["model_path"] for file in files if file["first"]][:2] == [files[0]["path"], "/m/e"]
    assert [file["known"] for file in files] == [True] * 7 + [False]
    assert files[6]["size_bytes"] == 42520398816 and not files[2]["gguf"]
