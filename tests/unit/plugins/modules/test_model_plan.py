# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The models of a host against llm_models, with real files, manifests and generated models."""

from __future__ import annotations

import os
import pathlib
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import disk
from ansible_collections.homelab.mixed_gpu.plugins.modules import model_file, model_plan, random_gguf
from ansible_collections.homelab.mixed_gpu.tests import failing_disk

SMALL = {"blocks": 2, "embedding_length": 64, "feed_forward_length": 64, "head_count": 2, "head_count_kv": 1}


@pytest.fixture
def call(tmp_path: pathlib.Path, call_module: t.Any) -> t.Callable[..., dict[str, t.Any]]:
    def _call(models: list[dict[str, t.Any]], module: t.Any = model_plan, **arguments: t.Any) -> dict[str, t.Any]:
        options = {
            "models": models, "path": str(tmp_path / "models"), "manifest_dir": str(tmp_path / "manifests"),
            "fact_file": str(tmp_path / "fact"), "reserve_mib": 0, "hub": {"token_file": str(tmp_path / "token")},
            **arguments,
        }  # fmt: skip
        if module is not model_plan:
            options = arguments
        return call_module(module, options)

    return _call


@pytest.fixture
def here(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a file that is on the host already."""
    path = tmp_path / "disk" / "here.gguf"
    path.parent.mkdir()
    path.write_bytes(b"GGUF" + os.urandom(4096))
    return path


def test_a_generated_model_is_planned_written_and_verified(call: t.Any, tmp_path: pathlib.Path) -> None:
    wanted = [{"id": "tiny", "generate": SMALL}]
    plan = call(wanted)
    assert not plan["changed"] and plan["download"] == [] and plan["installed"]["tiny"]["sha256"] == ""
    (options,) = plan["generate"]
    assert options["blocks"] == 2 and options["type"] == "f16" and options["path"].endswith("models/tiny/tiny.gguf")
    assert "does not exist" in call(wanted, state="verified")["msg"]
    written = call([], random_gguf, **options)
    again = call(wanted)
    assert again["generate"] == [] and again["installed"]["tiny"]["sha256"] == written["sha256"]
    verified = call(wanted, state="verified")
    assert verified["installed"] == again["installed"] and [file["present"] for file in verified["files"]] == [True]
    larger = call([{"id": "tiny", "generate": {**SMALL, "blocks": 3}}])
    assert [each["blocks"] for each in larger["generate"]] == [3]
    assert pathlib.Path(options["path"]).stat().st_size == written["size_bytes"], "a plan changes nothing"


def test_a_wrong_option_of_a_generated_model_is_one_sentence(call: t.Any) -> None:
    said = call([{"id": "tiny", "generate": {**SMALL, "type": "q3_0"}}])["msg"]
    assert said.startswith("The model tiny cannot be generated: value of type must be one of") and "q3_0" in said
    for blocks in (0, 2**40):
        said = call([{"id": "tiny", "generate": {**SMALL, "blocks": blocks}}])["msg"]
        assert "must be at least 1 and at most 512" in said


def test_a_file_is_taken_in_once_and_a_change_is_noticed(call: t.Any, here: pathlib.Path, tmp_path: t.Any) -> None:
    wanted = [{"id": "mine", "path": str(here)}]
    (file,) = call(wanted)["download"]
    assert file["path"] == str(here) and file["kind"] == "path"
    said = call(wanted, state="verified")["msg"]
    assert said.startswith(f"{here} was never recorded or has changed since")
    assert call(wanted, state="verified", verify="full")["installed"]["mine"]["size_bytes"] == 4100
    assert not (tmp_path / "manifests").exists(), "a verification records nothing"


def test_a_full_verification_reads_everything_but_what_was_just_read(
    call: t.Any, here: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wanted = [{"id": "mine", "path": str(here)}]
    manifests = str(tmp_path / "manifests")
    assert call([], model_file, path=str(here), manifest_dir=manifests)["changed"]
    failing_disk.damage(here, tmp_path / "manifests")
    log = tmp_path / "log"
    assert "is damaged" in call(wanted, state="verified", verify="full", progress_log=str(log))["msg"]
    assert log.exists()
    assert call(wanted, state="verified", verify="full", verified=[str(here)])["installed"]["mine"]["sha256"]


def test_files_that_were_set_aside_go_after_some_days(
    call: t.Any, here: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = [{"id": "mine", "path": str(here)}]
    assert call([], model_file, path=str(here), manifest_dir=str(tmp_path / "manifests"))["changed"]
    aside = here.with_name(f"{here.name}.corrupt")
    assert call(wanted, keep_corrupt_days=0)["remove"] == []
    aside.write_bytes(b"wrong")
    here.with_name(f"{here.name}.replaced").write_bytes(b"of somebody else")
    assert call(wanted)["remove"] == []
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 13.9 * 86400)
    assert call(wanted)["remove"] == []
    monkeypatch.setattr(time, "time", lambda: now + 14.1 * 86400)
    assert call(wanted)["remove"] == [str(aside)]
    assert call(wanted, keep_corrupt_days=15)["remove"] == []
    # a file that is to be read, or to come, may turn out to be the one that was set aside
    assert call(wanted, verify="full")["remove"] == []
    here.write_bytes(b"GGUF of another content")
    assert call(wanted)["remove"] == []


def test_generated_models_must_fit_all_together_and_leave_the_reserve(
    call: t.Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = disk.free_space
    monkeypatch.setattr(disk, "free_space", lambda path: (free(path)[0], 36 << 20))
    wanted = [{"id": name, "generate": {}} for name in ("one", "two")]       # 19 MiB each
    assert len(call(wanted[:1])["generate"]) == 1
    assert "and one, two still need" in call(wanted)["msg"]
    assert "and one still needs" in call(wanted[:1], reserve_mib=30)["msg"]


def test_what_does_not_fit_is_refused_before_a_download(call: t.Any) -> None:
    wanted = [{"id": "large", "repo": "owner/Model-GGUF", "revision": "a" * 40, "files": ["m.gguf"], "sha256": "1" * 64,
               "size_bytes": 1 << 60}]  # fmt: skip
    assert "and large still needs" in call(wanted)["msg"]


def test_where_files_are_is_found_without_a_table(call: t.Any, here: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "fact").write_text("damaged")
    wanted = [{"id": "here", "path": str(here)}]
    found = call(wanted, state="found")
    assert [file["path"] for file in found["files"]] == [str(here)] and "lines" not in found
    assert "It is not known which model is served" in call(wanted, state="listed")["msg"]


def test_a_repository_that_was_never_looked_up_is_listed_and_not_verified(call: t.Any) -> None:
    wanted = [{"id": "later", "repo": "owner/Model-GGUF", "quant": "Q4_K_M"}]
    lines = call(wanted, state="listed")["lines"]
    assert any(line.startswith("later  not asked for yet") for line in lines)
    said = call(wanted, state="verified")["msg"]
    assert said == "later cannot be verified: it was never asked for; run the role llm_models."


def test_every_file_that_differs_is_named(call: t.Any, here: pathlib.Path) -> None:
    wanted = [
        {"id": "later", "repo": "owner/Model-GGUF", "quant": "Q4_K_M"}, {"id": "gone", "path": "/srv/gone.gguf"},
        {"id": "mine", "path": str(here)},
    ]  # fmt: skip
    said = call(wanted, state="verified")["msg"]
    assert said.startswith("later cannot be verified: ") and "/srv/gone.gguf does not exist" in said
    assert f"{here} was never recorded or has changed since" in said
