# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module on folders that are models, or nearly."""

from __future__ import annotations

import json
import os
import struct

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import exl_model_info
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model


@pytest.fixture
def run(call_module):
    def _run(path, check=False):
        return call_module(exl_model_info, {"path": str(path), "_ansible_check_mode": check})

    return _run


@pytest.mark.parametrize("shards", [1, 3])
@pytest.mark.parametrize("kind", ["exl2", "exl3", "f16"])
def test_every_byte_is_counted_once_and_where_it_belongs(run, tmp_path, kind, shards):
    sizes = write_model(tmp_path / "m", kind, blocks=3, shards=shards)
    result = run(tmp_path / "m")
    model = result["model"]
    assert model["notes"] == [] and not result["changed"]
    assert sum(model["block_bytes"]) + model["output_bytes"] + model["token_embedding_bytes"] == sum(sizes.values())
    own = {name: size for name, size in sizes.items() if name.startswith("model.layers.1.")}
    assert model["block_bytes"][1] == sum(own.values())
    attention = sum(size for name, size in own.items() if "self_attn" in name or "input_layernorm" in name)
    assert model["block_attention_bytes"][1] == attention
    assert model["output_bytes"] == sizes["model.norm.weight"] + sum(
        size for name, size in sizes.items() if name.startswith("lm_head.")
    )
    assert model["file_type"] == {"exl2": "EXL2 4.0bpw", "exl3": "EXL3 4.0bpw", "f16": "F16"}[kind]
    assert (model["block_count"], model["head_count_kv"], model["key_length"]) == (3, 2, 64)
    assert (
        model["kv_k_elements_per_token"] == [128] * 3 and model["block_weights"] == [256 * 64 * 12 + 3 * 256 * 512] * 3
    )
    assert len(model["shards"]) == shards


def test_the_token_embedding_is_the_output_where_they_are_tied(run, tmp_path):
    sizes = write_model(tmp_path / "m", "exl2", tied=True)
    model = run(tmp_path / "m")["model"]
    assert model["output_bytes"] == sizes["model.embed_tokens.weight"] + sizes["model.norm.weight"]


def test_another_quantisation_has_another_hash(run, tmp_path):
    write_model(tmp_path / "a", "exl2", bits=4)
    write_model(tmp_path / "b", "exl2", bits=5)
    hashes = [run(tmp_path / name)["headers_sha256"] for name in ("a", "b", "a")]
    assert hashes[0] == hashes[2] != hashes[1]


def test_a_cut_file_says_what_it_lacks(run, tmp_path):
    write_model(tmp_path / "m", "exl2")
    file = tmp_path / "m" / "model.safetensors"
    size = file.stat().st_size
    with open(file, "r+b") as handle:
        handle.truncate(size - 1)
    assert f"is cut off: it has {size - 1} bytes of {size}" in run(tmp_path / "m")["msg"]
    with open(file, "r+b") as handle:
        handle.truncate(100)
    assert "is cut off in its header" in run(tmp_path / "m")["msg"]
    file.write_bytes(b"GGUF" + bytes(60))
    assert "is no safetensors file" in run(tmp_path / "m")["msg"]


def test_a_missing_shard_is_named(run, tmp_path):
    write_model(tmp_path / "m", "exl2", shards=3)
    (tmp_path / "m" / "model-00002-of-00003.safetensors").unlink()
    assert "model-00002-of-00003.safetensors cannot be read" in run(tmp_path / "m")["msg"]


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("{"), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("{}"), "has no num_hidden_layers"),
        (lambda folder: (folder / "model.safetensors").unlink(), "holds no safetensors file"),
        (lambda folder: write_model(folder, blocks=2) and _declare(folder, 3), "no tensor of block 2"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(run, tmp_path, spoil, words):
    write_model(tmp_path / "m", "exl2")
    spoil(tmp_path / "m")
    assert words in run(tmp_path / "m")["msg"]


def _declare(folder, blocks):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": blocks}))


def test_check_mode_waits_for_a_folder_that_is_not_there_yet(run, tmp_path):
    result = run(tmp_path / "none", check=True)
    assert result["available"] is False and "does not exist yet" in result["reason"]
    assert "cannot be read" in run(tmp_path / "none")["msg"]


def test_an_index_of_the_model_before_it_was_quantised_is_not_believed(run, tmp_path):
    folder = tmp_path / "m"
    sizes = write_model(folder, "exl2", blocks=3)
    index = {"weight_map": {name: "model-00001-of-00002.safetensors" for name in sizes}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert run(folder)["model"]["block_count"] == 3


def test_two_revisions_in_one_folder_are_refused(run, tmp_path):
    folder = tmp_path / "m"
    write_model(folder, "exl2", blocks=3)
    (file,) = folder.glob("*.safetensors")
    (folder / "output-00001-of-00002.safetensors").write_bytes(file.read_bytes())
    result = run(folder)
    assert result["failed"] and "twice" in result["msg"] and "another revision" in result["msg"]


def header(folder, text):
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(64))


def tensor(start, end, **more):
    return {"dtype": "F16", "shape": [1], "data_offsets": [start, end], **more}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: header(folder, b"[" * 100_000), "The header of"),
        (lambda folder: header(folder, b'{"a":' * 10_000), "The header of"),
        (lambda folder: header(folder, json.dumps({"a": tensor(10, 2)}).encode()), "the place of a"),
        (lambda folder: header(folder, json.dumps({"a": tensor(-4, 2)}).encode()), "the place of a"),
        (lambda folder: header(folder, json.dumps({"a": tensor(0, True)}).encode()), "the place of a"),
        (lambda folder: header(folder, b'{"a": {"data_offsets": [0, 1e999]}}'), "the place of a"),
        (lambda folder: header(folder, b'{"a": {"data_offsets": [0, ' + b"9" * 5000 + b"]}}"), "The header of"),
        (lambda folder: header(folder, b'{"a": 7, "b\\n": {}}'), "The header of"),
        (lambda folder: header(folder, json.dumps({"a": tensor(0, 64), "b": tensor(0, 64)}).encode()), "overlap"),
        (lambda folder: (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 63) + bytes(64)), "no safe"),
        (lambda folder: os.truncate(folder / "config.json", 5_000_000), "has 5000000 bytes"),
        (lambda folder: (folder / "config.json").write_text("[" * 100_000), "is no JSON"),
        (lambda folder: (folder / "config.json").write_text("9" * 5000), "is no JSON"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff" * 100), "is no JSON"),
        (lambda folder: (folder / "x.safetensors").mkdir(), "cannot be read"),
        (lambda folder: os.mkfifo(folder / "x.safetensors"), "is no file"),
        (lambda folder: (folder / "x.safetensors").symlink_to("/dev/zero"), "is no file"),
        (lambda folder: index(folder, {"a": "../../etc/passwd"}), "leave its directory"),
        (lambda folder: index(folder, {"a": "/etc/passwd"}), "leave its directory"),
        (lambda folder: index(folder, {"a": "sub/m.safetensors"}), "no safetensors file beside it"),
        (lambda folder: index(folder, {"a": "config.json"}), "no safetensors file beside it"),
        (lambda folder: index(folder, {"a": "m\n.safetensors"}), "cannot be shown"),
        (lambda folder: index(folder, {"a": 7}), "no text"), (lambda folder: index(folder, [7]), "cannot be read"),
        (lambda folder: index(folder, {"a": "x", "b": 7}), "cannot be read"),
        (lambda folder: _declare(folder, 2**32 - 1), "no num_hidden_layers"),
        (lambda folder: _declare(folder, 200_000), "declares 200000 blocks"),
    ],
)  # fmt: skip
def test_hostile_files_end_in_one_sentence(run, tmp_path, spoil, words):
    write_model(tmp_path / "m", "exl3")
    spoil(tmp_path / "m")
    said = run(tmp_path / "m")["msg"]
    assert words in said and said.isprintable() and said.endswith(".") and len(said) < 600


def index(folder, weights):
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
