# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import gguf
import numpy
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import gguf_info
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._models import gguf_bytes


@pytest.fixture
def run(tmp_path, call_module):
    def _run(path, check=False, **arguments):
        arguments = {"cache_dir": str(tmp_path / "cache"), **arguments}
        arguments |= {"path": str(path), "_ansible_check_mode": check}
        return call_module(gguf_info, arguments)

    return _run


def write(path, blocks=3, kind="Q8_0", tied=False, architecture="llama", shards=0, width=64):
    """Write a model with the gguf library and return the bytes that its tensors have, by name."""
    stored = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, architecture, split_max_tensors=shards)
    writer.add_name("Example")
    writer.add_block_count(blocks)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(2 * width)
    writer.add_context_length(256)
    writer.add_head_count(4)
    writer.add_head_count_kv([2] * (blocks - 1) + [1])
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_token_list([f"t{i}" for i in range(40)])
    sizes = {}

    def add(name, rows, columns=width):
        values = gguf.quants.quantize(numpy.ones((rows, columns), dtype=numpy.float32), stored)
        writer.add_tensor(name, values, raw_dtype=stored)
        sizes[name] = values.nbytes

    add("token_embd.weight", 40)
    for block in range(blocks):
        add(f"blk.{block}.attn_q.weight", width)
        add(f"blk.{block}.ffn_up.weight", 2 * width + block)
    norm = numpy.ones(width, dtype=numpy.float32)
    writer.add_tensor("output_norm.weight", norm)
    sizes["output_norm.weight"] = norm.nbytes
    if not tied:
        add("output.weight", 40)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sizes


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "F16"])
@pytest.mark.parametrize("tied", [False, True])
def test_counts_what_the_library_wrote(run, tmp_path, kind, tied):
    path = tmp_path / "m.gguf"
    sizes = write(path, kind=kind, tied=tied)
    model = run(path)["model"]
    assert model["block_bytes"] == [sizes[f"blk.{i}.attn_q.weight"] + sizes[f"blk.{i}.ffn_up.weight"] for i in range(3)]
    output = sizes["token_embd.weight"] if tied else sizes["output.weight"]
    assert model["output_bytes"] == sizes["output_norm.weight"] + output
    assert model["token_embedding_bytes"] == sizes["token_embd.weight"]
    assert model["size_bytes"] == path.stat().st_size
    assert model["kv_k_elements_per_token"] == [32, 32, 16]
    assert {key: model[key] for key in ("architecture", "block_count", "file_type", "vocabulary_size", "notes")} == {
        "architecture": "llama", "block_count": 3, "file_type": kind, "vocabulary_size": 40, "notes": [],
    }
    assert (model["embedding_length"], model["feed_forward_length"], model["head_count"]) == (64, 128, 4)
    assert (model["context_length_train"], model["shards"]) == (256, [str(path)])


def test_the_second_answer_comes_from_the_cache_until_the_file_changes(run, tmp_path):
    path = tmp_path / "m.gguf"
    write(path)
    first, second = run(path), run(path)
    assert not first["cached"] and second["cached"] and first["model"] == second["model"]
    write(path, blocks=2)
    assert run(path)["model"]["block_count"] == 2
    next((tmp_path / "cache").iterdir()).write_text("{damaged")
    third = run(path)
    assert not third["cached"] and third["model"]["block_count"] == 2


def test_shards_are_counted_together(run, tmp_path):
    sizes = write(tmp_path / "m.gguf", shards=3)
    shards = sorted(tmp_path.glob("*-of-*.gguf"))
    assert len(shards) > 1
    for shard in shards:
        model = run(shard)["model"]
        assert model["shards"] == [str(each) for each in shards]
        assert model["size_bytes"] == sum(each.stat().st_size for each in shards)
        counted = sum(model["block_bytes"]) + model["output_bytes"] + model["token_embedding_bytes"]
        assert counted == sum(sizes.values())


def test_a_missing_shard_is_named(run, tmp_path):
    write(tmp_path / "m.gguf", shards=3)
    shards = sorted(tmp_path.glob("*-of-*.gguf"))
    shards[1].unlink()
    result = run(shards[0])
    assert result["failed"] and str(shards[1]) in result["msg"] and f"shard 2 of {len(shards)}" in result["msg"]


def test_a_shard_under_another_name_is_said(run, tmp_path):
    write(tmp_path / "m.gguf", shards=3)
    renamed = sorted(tmp_path.glob("*-of-*.gguf"))[0].rename(tmp_path / "one.gguf")
    assert "keep llama.cpp's names" in run(renamed)["msg"]


def test_a_shard_that_is_another_one_than_its_name_says_is_named(run, tmp_path):
    write(tmp_path / "m.gguf", shards=3)
    shards = sorted(tmp_path.glob("*-of-*.gguf"))
    write(tmp_path / "whole.gguf")
    for other, said in ((shards[0], f"shard 1 of {len(shards)}"), (tmp_path / "whole.gguf", "no shard")):
        shards[1].write_bytes(other.read_bytes())
        message = run(shards[0])["msg"]
        assert f"{shards[1]} is named as shard 2 of" in message and f"says that it is {said}: download" in message


@pytest.mark.parametrize("keep", [0, 3, 20, 100, 700, -1])
def test_every_truncation_is_one_sentence(run, tmp_path, keep):
    path = tmp_path / "m.gguf"
    write(path)
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    result = run(path)
    assert result["failed"] and str(path) in result["msg"] and "download" in result["msg"]
    assert "Traceback" not in result["msg"] and "\n" not in result["msg"]
    if keep == -1:
        assert "truncated" in result["msg"] and "1 bytes are missing" in result["msg"]


def test_unknown_and_unmodelled_architectures(run, tmp_path):
    write(tmp_path / "a.gguf", architecture="nosuch")
    assert "nosuch, unknown to this collection, is not modelled" in run(tmp_path / "a.gguf")["model"]["notes"][0]
    write(tmp_path / "b.gguf", architecture="mamba2")
    assert "mamba2 is not modelled" in run(tmp_path / "b.gguf")["model"]["notes"][0]


def test_what_is_no_gguf(run, tmp_path):
    (tmp_path / "page.gguf").write_text("<html>not found</html>")
    assert "is no GGUF file" in run(tmp_path / "page.gguf")["msg"]
    assert "name the GGUF file itself" in run(tmp_path)["msg"]
    assert "cannot be read (No such file" in run(tmp_path / "none.gguf")["msg"]


def test_check_mode_writes_nothing_and_foresees_a_missing_file(run, tmp_path):
    path = tmp_path / "m.gguf"
    missing = run(path, check=True)
    assert not missing["available"] and str(path) in missing["reason"] and missing["model"] is None
    write(path)
    assert run(path, check=True)["model"]["block_count"] == 3
    assert not (tmp_path / "cache").exists()


def test_the_python_of_the_other_modules_of_models_is_taken(run, tmp_path):
    """People give all modules of models the same options; this one does not need it."""
    write(tmp_path / "m.gguf")
    assert run(tmp_path / "m.gguf", host_python="/nonexistent/python")["model"]["block_count"] == 3


def test_tensors_in_the_same_place_are_refused(run, tmp_path):
    keys = [gguf_bytes.value(name, held) for name, held in gguf_bytes.model().items()]
    tensors = [
        gguf_bytes.tensor(name, [64], offset=place)
        for name, place in (("token_embd.weight", 0), ("blk.0.attn_q.weight", 256), ("blk.1.attn_q.weight", 480))
    ]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes.file(keys, tensors))
    said = run(path)["msg"]
    assert "has the tensors 'blk.0.attn_q.weight' and 'blk.1.attn_q.weight' in the same place: llama.cpp does" in said


def test_names_of_tensors_stay_one_line_in_a_note(run, tmp_path):
    keys = [gguf_bytes.value(name, held) for name, held in gguf_bytes.model().items()]
    names = ("token_embd.weight", "blk.0.attn_q.weight", "blk.1.attn_q.weight", "a\n\x1b[31mred")
    tensors = [gguf_bytes.tensor(name, [64], offset=256 * place) for place, name in enumerate(names)]
    path = tmp_path / "m.gguf"
    path.write_bytes(gguf_bytes.file(keys, tensors))
    (note,) = run(path)["model"]["notes"]
    assert r"not counted ('a\n\x1b[31mred')" in note and note.isprintable()
