# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""hub_models_info against a local hub through the real huggingface_hub: every quant, by a few bytes of each file."""

from __future__ import annotations

import errno
import os
import pathlib
import shutil
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.doc_fragments import _hub
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, hub_lookup
from ansible_collections.homelab.mixed_gpu.plugins.modules import hub_files, hub_models_info
from ansible_collections.homelab.mixed_gpu.tests.local_hub import quants, server

COMMIT = "4" * 40
REPO = "owner/Model-GGUF"
SHAPE = "llama_3_3_70b_q4_k_m"
MIB = 1 << 20


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, pathlib.Path]:
    return quants.write(tmp_path_factory.mktemp("quants") / COMMIT, "Model", SHAPE)


@pytest.fixture
def hub(
    files: dict[str, pathlib.Path], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> t.Iterator[server.Hub]:
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    repo = tmp_path / "hub" / REPO
    repo.mkdir(parents=True)
    (repo / COMMIT).symlink_to(files["Q4_K_M"].parent)
    (repo / "main").write_text(COMMIT)
    hub = server.Hub(tmp_path / "hub")
    yield hub
    hub.close()


@pytest.fixture
def ask(hub: server.Hub, call_module: t.Any) -> t.Callable[..., dict[str, t.Any]]:
    def _ask(**arguments: t.Any) -> dict[str, t.Any]:
        given = {"repo": REPO, "endpoint": hub.url, "retry_seconds": 0, **arguments}
        return call_module(hub_models_info, given)

    return _ask


def test_every_module_asks_the_hub_as_patiently() -> None:
    documented = yaml.safe_load(_hub.ModuleDocFragment.DOCUMENTATION)["options"]
    assert {name: {key: entry[key] for key in entry if key != "description"} for name, entry in documented.items()} == {
        name: {key: value for key, value in entry.items() if key != "no_log"}
        for name, entry in hub_lookup.ARGUMENTS.items()
    }
    for module in (hub_files, hub_models_info):
        assert not set(yaml.safe_load(module.DOCUMENTATION).get("options", {})) & set(documented)


def test_seventeen_quants_cost_less_than_64_mb(
    hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]], files: dict[str, pathlib.Path]
) -> None:
    result = ask()
    assert not result.get("failed"), result
    assert len(result["models"]) == len(quants.QUANTS) == 17
    assert hub.sent_bytes < 64_000_000 and result["read_bytes"] <= hub.sent_bytes
    assert result["changed"] is False and result["commit"] == COMMIT
    for found in result["models"]:
        whole = gguf_model.read(gguf_model.files_of(str(files[found["quant"]])))
        assert found["problem"] is None and found["size_bytes"] == whole["size_bytes"]
        assert {**whole, "path": 0, "shards": 0} == {**found["model"], "path": 0, "shards": 0}
        assert len(found["files"]) == len(whole["shards"]) == len(found["model"]["shards"])
    assert {len(found["files"]) for found in result["models"]} == {1, 2, 3}
    sizes = [found["size_bytes"] for found in result["models"]]
    assert sizes == sorted(sizes, reverse=True)


def test_one_quant(hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]]) -> None:
    result = ask(quant="q4_k_m")
    assert [found["quant"] for found in result["models"]] == ["Q4_K_M"]
    assert hub.sent_bytes < 24 * MIB
    said = ask(quant="Q9_K")["msg"]
    assert said.startswith(f"{REPO} has no quant Q9_K: it has BF16, F16, IQ1_S,") and said.count(". ") == 0


def test_another_vocabulary_is_read_whole(
    hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same number of tokens, of other lengths: nothing tells but what follows."""
    folder = tmp_path / "hub" / "owner" / "Other" / COMMIT
    few = {name: quants.QUANTS[name] for name in ("Q8_0", "Q4_0", "Q2_K")}
    paths = quants.write(folder, "Other", "llama_3_1_8b_q4_k_m", few)
    (folder.parent / "main").write_text(COMMIT)
    size = paths["Q4_0"].stat().st_size
    with paths["Q4_0"].open("r+b") as handle:
        other = handle.read(16 * MIB).replace("Ġtoken77".encode(), "Ġtokenxxxxxxxxxx77".encode(), 1)
        handle.seek(0)
        place = other.index("Ġtokenxxxxxxxxxx77".encode())
        length = int.from_bytes(other[place - 8 : place], "little") + 10
        handle.write(other[: place - 8] + length.to_bytes(8, "little") + other[place:])
        handle.truncate(size + 32)
    result = ask(repo="owner/Other")
    assert [found["problem"] for found in result["models"]] == [None] * 3
    for found in result["models"]:
        whole = gguf_model.read(gguf_model.files_of(str(paths[found["quant"]])))
        assert whole["block_bytes"] == found["model"]["block_bytes"]


def test_faults_that_pass(hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]]) -> None:
    hub.api_faults = [{"status": 503}]
    hub.faults = [{}, {"status": 429, "headers": {"Retry-After": "0"}}, {}, {"cut": 1000}]
    result = ask(attempts=5)
    assert len(result["models"]) == 17 and all(found["problem"] is None for found in result["models"])


def test_without_a_network_it_says_so_in_one_sentence(ask: t.Callable[..., dict[str, t.Any]]) -> None:
    said = ask(endpoint="http://127.0.0.1:9", attempts=1)["msg"]
    assert said.startswith(f"{REPO} cannot be looked up: http://127.0.0.1:9 cannot be reached (")
    assert said.count(". ") == 0 and said.endswith(
        "): check the network, or set llm_models_hub_endpoint to a mirror (1 attempts)."
    )


def test_a_gated_repository(hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]], tmp_path: pathlib.Path) -> None:
    (tmp_path / "hub" / REPO / "gated").write_text("")
    said = ask()["msg"]
    assert "is gated: log in at" in said and said.endswith("into a file that split_tuning_hub_token_file names.")
    token = tmp_path / "token"
    token.write_text(server.TOKEN)
    token.chmod(0o600)
    hub.requests.clear()
    assert len(ask(quant="Q2_K", token_file=str(token))["models"]) == 1
    content = hub.content_url.rpartition(":")[2]
    to_content = [headers for _verb, where, headers in hub.requests if where.startswith(content)]
    assert to_content and not any("Authorization" in headers for headers in to_content)


def test_a_token_that_cannot_be_read_is_said(
    ask: t.Callable[..., dict[str, t.Any]], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root can read every file, so what the kernel answers another user is put in."""

    def refused(path: str) -> str:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    token = tmp_path / "token"
    token.touch(0o600)
    monkeypatch.setattr(hub_lookup.json_file, "read_text", refused)
    assert ask(token_file=str(token))["msg"] == (
        f"The token in {token} cannot be read (Permission denied): run this as its owner, or name another file."
    )


def test_a_hub_without_ranges(
    hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    content = server.Handler._content

    def whole(self: t.Any, path: pathlib.Path, more: t.Any = None) -> None:
        del self.headers["Range"]
        content(self, path, more)

    monkeypatch.setattr(server.Handler, "_content", whole)
    assert ask()["msg"] == f"{hub.url} serves no parts of files, only whole ones: use another hub."


def test_what_is_no_model_is_said_beside_what_is(
    hub: server.Hub, ask: t.Callable[..., dict[str, t.Any]], tmp_path: pathlib.Path
) -> None:
    folder = tmp_path / "hub" / "owner" / "Mixed" / COMMIT
    quants.write(folder, "Mixed", "llama_3_1_8b_q4_k_m", {"Q4_0": (2, "Q4_0")})
    (folder / "Mixed-Q8_0.gguf").write_bytes(b"no model")
    (folder / "Mixed-F16-00001-of-00002.gguf").write_bytes(b"half of one")
    (folder.parent / "main").write_text(COMMIT)
    by_quant = {found["quant"]: found for found in ask(repo="owner/Mixed")["models"]}
    assert set(by_quant) == {"Q4_0", "Q8_0"}
    assert by_quant["Q8_0"]["model"] is None and "is no GGUF file" in by_quant["Q8_0"]["problem"]
    shutil.rmtree(folder)
    folder.mkdir()
    assert ask(repo="owner/Mixed")["msg"].startswith("owner/Mixed has no GGUF file of a model")
