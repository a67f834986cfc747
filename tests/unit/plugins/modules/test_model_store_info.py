# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What models use of a disk, and the table of it, from real files and manifests."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import (
    catalogue,
    entries,
    hub_api,
    model_shapes,
    model_table,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import store as model_store
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import catalogue_fit
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, known_devices
from ansible_collections.homelab.mixed_gpu.plugins.modules import model_file, model_plan, model_store_info
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

MIB = 1 << 20
#: What was published of the repositories of the catalogue: commit, names of files, sizes or null.
LISTINGS = json.loads((pathlib.Path(__file__).parents[3] / "fixtures" / "hub_listings.json").read_text("utf-8"))
PINNED = {"id": "pinned", "repo": "owner/Model-GGUF", "revision": "a" * 40, "files": ["m.gguf"], "sha256": "1" * 64}


@pytest.fixture
def call(tmp_path: pathlib.Path, call_module: t.Any) -> t.Callable[..., dict[str, t.Any]]:
    def _call(module: t.Any, **arguments: t.Any) -> dict[str, t.Any]:
        return call_module(module, {"manifest_dir": str(tmp_path / "manifests"), **arguments})

    return _call


@pytest.fixture
def store(call: t.Any, tmp_path: pathlib.Path) -> t.Callable[..., dict[str, t.Any]]:
    """Return a function that looks at a whole model, an unfinished one, and one that nobody asked for."""
    for name, size in (("whole/m.gguf", 3), ("half/m.gguf.part", 2), ("half/m.gguf.corrupt", 1), ("older/x", 5)):
        path = tmp_path / "models" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.urandom(size * MIB))
    os.link(tmp_path / "models/whole/m.gguf", tmp_path / "models/whole/same.gguf")
    assert call(model_file, path=str(tmp_path / "models/whole/m.gguf"))["changed"]

    def _store() -> dict[str, t.Any]:
        return call(model_store_info, path=str(tmp_path / "models"), fact_file=str(tmp_path / "fact"))

    return _store


def test_what_was_replaced_counts_as_set_aside(tmp_path: pathlib.Path) -> None:
    for name in ("m.gguf", "m.gguf.replaced", "m.gguf.replaced-1", "m.gguf.corrupt", "replaced"):
        (tmp_path / name).write_bytes(bytes(MIB))
    found = model_store.disk_bytes(str(tmp_path))
    assert (found["disk_bytes"], found["set_aside_bytes"]) == (5 * MIB, 3 * MIB)


def test_what_each_directory_uses(store: t.Any, tmp_path: pathlib.Path) -> None:
    found = store()
    assert not found["changed"] and [each["name"] for each in found["directories"]] == ["half", "older", "whole"]
    half, older, whole = found["directories"]
    assert whole["disk_bytes"] == 3 * MIB                # the second name of a file is no second file
    sizes = (half["disk_bytes"], half["unfinished_bytes"], half["set_aside_bytes"], older["disk_bytes"])
    assert sizes == (3 * MIB, 2 * MIB, MIB, 5 * MIB)
    (manifest,) = whole["manifests"]
    assert json.loads(pathlib.Path(manifest).read_text())["path"] == str(tmp_path / "models/whole/m.gguf")
    assert 0 < found["free_bytes"] <= found["total_bytes"] == shutil.disk_usage(tmp_path).total
    assert os.path.ismount(found["filesystem"]) and not any(each["served"] for each in found["directories"])


def test_the_model_that_is_served_is_known_by_the_record(store: t.Any, tmp_path: pathlib.Path) -> None:
    model = {"path": str(tmp_path / "models/whole/m.gguf"), "sha256": None}
    entry = least_entry.entry({"GPU-1": 9}, model=model)
    (tmp_path / "fact").write_text(json.dumps({**fact_record.empty(), "active": "a", "models": {"a": entry}}))
    assert [each["name"] for each in store()["directories"] if each["served"]] == ["whole"]
    (tmp_path / "fact").write_text("{")
    assert "It is not known which model is served" in store()["msg"]


def test_a_directory_that_is_not_there_uses_nothing(call: t.Any, tmp_path: pathlib.Path) -> None:
    found = call(model_store_info, path=str(tmp_path / "none"), fact_file=str(tmp_path / "fact"))
    assert found["directories"] == [] and found["free_bytes"] > 0


def test_the_table_of_it(store: t.Any, call: t.Any, tmp_path: pathlib.Path) -> None:
    wanted = [
        {"id": "whole", "path": str(tmp_path / "models/whole/m.gguf")}, {"id": "half", "repo": "a/b", "quant": "Q8_0"},
        PINNED, {"id": "qwen2_5_coder_32b_instruct_q8_0"},
    ]  # fmt: skip
    lines = call(
        model_plan, models=wanted, path=str(tmp_path / "models"), manifest_dir=str(tmp_path / "manifests"),
        fact_file=str(tmp_path / "fact"), state="listed",
    )["lines"]  # fmt: skip
    rows = {line.split("  ", 1)[0]: [cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines}
    assert rows["whole"][1:4] == ["complete", "3 MiB", "3 MiB"]
    half = ["half", "not asked for yet, 2 MiB unfinished, 1 MiB set aside", "3 MiB", "?", "a/b@main"]
    assert rows["half"] == half
    assert rows["pinned"] == ["pinned", "missing", "0 KiB", "?", "owner/Model-GGUF@aaaaaaaa"]
    assert rows["qwen2_5_coder_32b_instruct_q8_0"][1:4] == ["not asked for yet", "0 KiB", "32.4 GiB"]
    assert rows["older"][1:4] == ["not in llm_models", "5 MiB", "-"]
    offered = [name for name in catalogue.CATALOGUE if name != "qwen2_5_coder_32b_instruct_q8_0"]
    assert [line.split()[0] for line in lines[-len(offered):]] == offered


def test_without_models_there_is_the_catalogue(call: t.Any, tmp_path: pathlib.Path) -> None:
    empty = call(model_store_info, path=str(tmp_path / "none"), fact_file=str(tmp_path / "fact"))
    lines = model_table.table([], [], empty, None)
    assert lines[0].startswith("No models in llm_models") and len(lines) == 3 + len(catalogue.CATALOGUE)
    assert lines[3].endswith("; drafts: llama_3_2_1b_instruct_q8_0, llama_3_2_3b_instruct_q4_k_m")


@pytest.mark.parametrize("name", catalogue.CATALOGUE)
def test_the_catalogue_is_what_was_published_of_each_repository(name: str) -> None:
    model = catalogue.CATALOGUE[name]
    (question,) = entries.hub_questions([{"id": name}])
    assert question["files"] == [model.file] and model.licence
    listing = LISTINGS[model.repo]
    assert len(question["revision"]) == 40 and question["revision"] == listing["commit"] and listing["source"]
    kind, files = hub_api.select(listing["files"], question["files"], question["quant"], model.repo)
    assert kind == "gguf" and files[0] == model.file
    sizes = [listing["files"][file] for file in files]
    assert None in sizes or sum(sizes) == model.size_bytes
    if model.exact:
        assert len(files) == 1 and question["size_bytes"] == model.size_bytes
    else:
        assert question["size_bytes"] is None


def test_the_catalogue_agrees_with_what_the_planner_knows() -> None:
    for name, model in catalogue.CATALOGUE.items():
        key = name.replace("_instruct", "")
        if key in model_shapes.SHAPES:
            assert model_shapes.SHAPES[key].blocks == model.layers and model.shape == key
            planned = model_shapes.model(key)["size_bytes"]
            # a vocabulary of some MB is in the file only
            assert model.size_bytes / 1e9 == pytest.approx(planned / 1e9, rel=0.004)
            if key in model_shapes.PUBLISHED_GB:
                assert model.size_bytes / 1e9 == pytest.approx(model_shapes.PUBLISHED_GB[key], abs=0.02)
    with pytest.raises(UserError, match="one of the catalogue"):
        entries.hub_questions([{"id": "unheard_of"}])


def test_the_table_says_what_fits_this_host(call: t.Any, tmp_path: pathlib.Path) -> None:
    devices = known_devices.profile_devices("rtx4090_rtx3090")
    told = catalogue_fit.words(devices, None)
    assert told["llama_3_3_70b_instruct_q4_k_m"].startswith("fits as 43/38, about 18 tokens/s")
    assert told["gpt_oss_120b_mxfp4"] == "does not fit"
    in_ram = {"mode": "auto", "ram_mib": 60000}
    larger = catalogue_fit.words(devices, in_ram)["gpt_oss_120b_mxfp4"]
    said = r"fits as 23/14 with 10 blocks' experts in RAM \(16766 MiB\), [0-9.]+ to [0-9.]+ tokens/s"
    assert re.fullmatch(said, larger)
    little = catalogue_fit.words(devices, {**in_ram, "ram_mib": 9000})
    assert little["gpt_oss_120b_mxfp4"] == "does not fit, even with experts in RAM"
    sparse = {
        name for name, model in catalogue.CATALOGUE.items()
        if model.shape and model_shapes.SHAPES[model.shape].expert_count
    }  # fmt: skip
    assert {name for name in told if told[name] != little[name]} <= sparse
    small = catalogue_fit.words(known_devices.profile_devices("rtx3060"), None)
    assert small["qwen3_8_27b_ud_q4_k_xl"] == "does not fit"
    assert small["gpt_oss_20b_mxfp4"] == "does not fit"  # it fits into the reserve alone
    assert catalogue_fit.usable("llama_3_3_70b_q4_k_m", devices, 131072, None) is None
    assert catalogue_fit.words([], None) == {}
    empty = call(model_store_info, path=str(tmp_path / "none"), fact_file=str(tmp_path / "fact"))
    lines = model_table.table([], [], empty, told)
    assert any("fits as 43/38" in line and line.startswith("llama_3_3_70b") for line in lines)
