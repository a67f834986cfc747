# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import os

import gguf
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token, manifest, random_shape
from ansible_collections.homelab.mixed_gpu.plugins.modules import gguf_info, random_gguf

SMALL = {"blocks": 2, "embedding_length": 64, "feed_forward_length": 96, "head_count": 4, "head_count_kv": 2}
SHAPES = {"dense": {}, "experts": {"expert_count": 4, "expert_used_count": 2}}


@pytest.fixture
def run(tmp_path, call_module):
    def _run(path, check=False, diff=False, module=random_gguf, **arguments):
        if module is random_gguf:
            arguments = {**SMALL, "manifest_dir": str(tmp_path / "manifests"), **arguments}
        arguments |= {"path": str(path), "_ansible_check_mode": check, "_ansible_diff": diff}
        return call_module(module, arguments)

    return _run


@pytest.fixture
def path(tmp_path):
    return tmp_path / "models" / "random.gguf"


@pytest.mark.parametrize("kind", ["f16", "q8_0", "q4_0"])
def test_writes_a_whole_model(run, path, kind):
    result = run(path, type=kind)
    assert result["changed"] and result["present"] and result["sha256"] == manifest.digest(str(path)).sha256
    assert result["size_bytes"] == path.stat().st_size <= result["missing_bytes"]
    assert path.stat().st_mode & 0o777 == 0o644 and path.parent.stat().st_mode & 0o777 == 0o755
    assert os.listdir(path.parent) == ["random.gguf"]
    model = run(path, module=gguf_info, cache_dir=str(path.parent / "cache"))["model"]
    assert (model["architecture"], model["block_count"], model["file_type"]) == ("llama", 2, kind.upper())
    assert model["notes"] == [] and model["vocabulary_size"] == 512
    reader = gguf.GGUFReader(path)
    counted = sum(model["block_bytes"]) + model["output_bytes"] + model["token_embedding_bytes"]
    assert counted == sum(tensor.n_bytes for tensor in reader.tensors)
    for index in range(2):
        prefix = f"blk.{index}."
        assert model["block_bytes"][index] == sum(x.n_bytes for x in reader.tensors if x.name.startswith(prefix))


def test_writes_a_model_of_experts(run, path):
    result = run(path, type="q8_0", expert_count=4, expert_used_count=2)
    assert result["size_bytes"] == path.stat().st_size <= result["missing_bytes"]
    model = run(path, module=gguf_info, cache_dir=str(path.parent / "cache"))["model"]
    assert (model["architecture"], model["expert_count"], model["expert_used_count"]) == ("qwen3moe", 4, 2)
    assert model["notes"] == [] and model["expert_feed_forward_length"] == 96
    sizes = {part: 4 * 64 * 96 * 34 // 32 for part in ("gate", "up", "down")}
    assert model["block_ffn_bytes"] == {part: [size, size] for part, size in sizes.items()}


@pytest.mark.parametrize("more", SHAPES.values(), ids=SHAPES)
def test_the_next_token_is_known(run, path, more):
    run(path, type="q8_0", agreement=[1, 1], embedding_length=256, **more)
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    weights = {name: gguf.quants.dequantize(found.data, found.tensor_type) for name, found in tensors.items()}
    # what each block adds to the embedding
    added = [name for name in weights if name.split(".")[-2] in ("attn_output", "ffn_down", "ffn_down_exps")]
    assert len(added) == 2 * SMALL["blocks"] and not any(weights[name].any() for name in added)
    logits = weights["token_embd.weight"] @ weights["output.weight"].T
    assert list(logits.argmax(axis=1)) == known_next_token.target(512, 2, 0).following


@pytest.mark.parametrize("more", SHAPES.values(), ids=SHAPES)
def test_a_model_says_text_and_does_not_end(run, path, more):
    run(path, type="q8_0", **more)
    (output,) = [tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "output.weight"]
    said = gguf.quants.dequantize(output.data, output.tensor_type).any(axis=1)
    characters = [index for index, told in enumerate(said) if told]
    tokens = gguf.GGUFReader(path).fields["tokenizer.ggml.tokens"].contents()
    assert [tokens[index] for index in characters] == [chr(code) for code in range(33, 127)]


def test_the_tokenizer_spells_any_text(run, path):
    run(path)
    reader = gguf.GGUFReader(path)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    assert len(tokens) == len(set(tokens)) == len(kinds) == 512
    spelled = {token for token, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.BYTE}
    assert spelled == {f"<0x{value:02X}>" for value in range(256)}
    assert {chr(code) for code in range(33, 127)} | {"\u2581"} <= set(tokens)


def test_the_same_options_give_the_same_file_and_change_nothing(run, path, tmp_path):
    first = run(path)
    before = path.stat()
    second = run(path)
    assert not second["changed"] and second["sha256"] == first["sha256"] and second["missing_bytes"] == 0
    assert path.stat() == before
    assert run(tmp_path / "other.gguf")["sha256"] == first["sha256"]
    assert run(tmp_path / "third.gguf", seed=1)["sha256"] != first["sha256"]


def test_other_options_and_a_changed_file_are_written_anew(run, path):
    first = run(path)
    assert run(path, blocks=3, diff=True)["diff"]["after"]["blocks"] == 3
    with open(path, "r+b") as handle:
        handle.seek(-1, os.SEEK_END)
        handle.write(b"x")
    again = run(path)
    assert again["changed"] and again["sha256"] == first["sha256"] == manifest.digest(str(path)).sha256


def test_distinct_blocks_differ(run, path):
    run(path, distinct_blocks=True, type="f16")
    blocks = [x.data.tobytes() for x in gguf.GGUFReader(path).tensors if x.name.endswith("attn_q.weight")]
    assert blocks[0] != blocks[1]
    run(path, distinct_blocks=False, type="f16")
    blocks = [x.data.tobytes() for x in gguf.GGUFReader(path).tensors if x.name.endswith("attn_q.weight")]
    assert blocks[0] == blocks[1]


def test_check_mode_foresees_and_writes_nothing(run, path, tmp_path):
    result = run(path, check=True)
    assert result["changed"] and not result["present"] and result["sha256"] is None and result["missing_bytes"] > 0
    assert os.listdir(tmp_path) == []
    run(path)
    assert not run(path, check=True)["changed"]


def test_a_file_of_somebody_else_is_left_alone(run, path):
    path.parent.mkdir()
    path.write_bytes(b"GGUF" + bytes(5000))
    result = run(path)
    assert result["failed"] and "was not made by random_gguf" in result["msg"]
    assert path.read_bytes() == b"GGUF" + bytes(5000)


def test_what_cannot_be_made_is_one_sentence(run, path, tmp_path):
    assert "no multiple of head_count_kv 3" in run(path, head_count_kv=3)["msg"]
    # 60 TB: more than any disk that runs this test
    assert "free some space" in run(path, blocks=512, embedding_length=65536, feed_forward_length=262144)["msg"]
    assert "blocks is 4194304: it must be at least 1 and at most 512" in run(path, blocks=4 << 20)["msg"]
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in run(tmp_path / "file" / "m.gguf")["msg"]
    assert not path.exists()


def test_the_room_that_is_asked_for_is_about_the_size_of_the_file(run, path):
    result = run(path, blocks=20, embedding_length=256, feed_forward_length=512, type="q8_0")
    assert result["size_bytes"] <= result["missing_bytes"] <= result["size_bytes"] * 1.1
    assert random_shape.PARAMETERS_KEY in gguf.GGUFReader(path).fields
