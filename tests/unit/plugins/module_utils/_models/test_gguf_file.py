# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import struct

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_file, gguf_header, random_shape
from hypothesis import given
from hypothesis import strategies as st


def parameters(**changes):
    return {
        "blocks": 2, "embedding_length": 64, "feed_forward_length": 96, "head_count": 4, "head_count_kv": 2,
        "vocabulary_size": 400, "context_length": 128, "type": "q8_0", "seed": 0, "distinct_blocks": False,
        "expert_count": 0, "expert_used_count": 0, "agreement": [], **changes,
    }


def fields(**changes):
    return {
        "general.architecture": "llama", "general.name": "Example", "llama.block_count": 2,
        "llama.embedding_length": 64, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2, **changes,
    }


TENSORS = [
    ("token_embd.weight", 1000), ("rope_freqs.weight", 7), ("blk.0.attn_q.weight", 10), ("blk.1.attn_q.weight", 20),
    ("blk.1.ffn_up.weight", 5), ("output_norm.weight", 3), ("output.weight", 900),
]


def describe(changes=None, tensors=None, architecture="llama"):
    found = [gguf_header.Tensor(name, 0, 0, 0, n_bytes) for name, n_bytes in (TENSORS if tensors is None else tensors)]
    keys = fields(**{"general.architecture": architecture, **(changes or {})})
    keys = {key.replace("llama.", f"{architecture}."): value for key, value in keys.items()}
    return gguf_file.describe(keys, found, [("/m.gguf", 2000)], 400)


def test_tensors_go_to_their_slots():
    model = describe()
    assert model["block_bytes"] == [17, 25]                    # the rope table lies with the first block
    assert model["output_bytes"] == 903
    assert model["token_embedding_bytes"] == 1000
    assert model["kv_k_elements_per_token"] == model["kv_v_elements_per_token"] == [2 * 16, 2 * 16]
    assert (model["name"], model["vocabulary_size"], model["notes"]) == ("Example", 400, [])


def test_a_tied_embedding_counts_for_the_output_slot_too():
    model = describe(tensors=TENSORS[:-1])
    assert model["output_bytes"] == 3 + 1000
    assert model["token_embedding_bytes"] == 1000


def test_key_and_value_length_and_heads_per_block():
    model = describe({
        "llama.attention.head_count_kv": [2, 0], "llama.attention.key_length": 24, "llama.attention.value_length": 8,
    })
    assert model["kv_k_elements_per_token"] == [48, 0]
    assert model["kv_v_elements_per_token"] == [16, 0]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"llama.attention.sliding_window": 512}, "sliding window of 512"),
        ({"llama.attention.kv_lora_rank": 8}, "latent attention"),
        ({"llama.ssm.state_size": 8}, "recurrent"),
        ({"llama.nextn_predict_layers": 1}, "MTP"),
        ({"llama.attention.head_count": 0, "llama.attention.head_count_kv": 0}, "no attention heads"),
    ],
)
def test_what_is_an_estimate_is_said(changes, sentence):
    (note,) = describe(changes)["notes"]
    assert sentence in note and note.endswith(".")


def test_tensors_of_no_slot_are_said():
    (note,) = describe(tensors=[*TENSORS, ("something.else.weight", 11)])["notes"]
    assert note.startswith("1 tensors of 11 bytes") and "something.else.weight" in note


def test_known_but_unmodelled_architecture_gets_a_note():
    named = {"general.architecture": "mamba", "mamba.block_count": 2, "mamba.embedding_length": 64}
    model = describe(named)
    assert "mamba is not modelled" in model["notes"][0] and model["estimated"]


@pytest.mark.parametrize(
    ("changes", "tensors", "sentence"),
    [
        ({"general.architecture": None}, None, "names no architecture"),
        ({"llama.block_count": None}, None, "has no llama.block_count"),
        ({"llama.block_count": 0}, None, "names 0 blocks"),
        ({"llama.embedding_length": 0}, None, "names a width of 0"),
        ({"llama.block_count": -5}, None, "has '-5' as llama.block_count"),
        ({"llama.block_count": 8}, None, "names 8 blocks, and the file has 7 tensors"),
        ({"llama.embedding_length": 2**31}, None, "has '2147483648' as llama.embedding_length"),
        ({"llama.attention.head_count_kv": [2]}, None, "1 entries of llama.attention.head_count_kv for 2 blocks"),
        ({"llama.attention.head_count": [4] * 3}, None, "3 entries of llama.attention.head_count for 2 blocks"),
        ({}, [("token_embd.weight", 9), ("output.weight", 9)], "no tensors for any of its 2 blocks"),
    ],
)
def test_what_is_no_usable_model_is_refused(changes, tensors, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        describe(changes, tensors)
    assert "/m.gguf" in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value", "field", "taken"),
    [
        ("context_length", -1, "context_length_train", 0), ("attention.key_length", 2**40, "key_length", 16),
        ("expert_count", True, "expert_count", 0), ("attention.head_count_kv", [2, -1], "head_count_kv", 4),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_and_not_counted_with(key, value, field, taken):
    model = describe({f"llama.{key}": value})
    assert model[field] == taken
    assert model["notes"] == [f"llama.{key} is '{value}', which cannot be: it is not counted with."]


def test_more_experts_in_use_than_there_are_is_said():
    model = describe({"llama.expert_count": 4, "llama.expert_used_count": 9})
    assert model["expert_used_count"] == 4
    assert "llama.expert_used_count is '9 of 4', which cannot be" in model["notes"][0]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**9)), min_size=1), st.integers(1, 6))
def test_no_byte_is_lost_or_counted_twice(blocks, block_count):
    tensors = [(f"blk.{block}.part_{index}.weight", size) for index, (block, size) in enumerate(blocks)]
    tensors += [("output.weight", 5), ("token_embd.weight", 3), ("blk.0.attn_norm.weight", 1)]
    tensors += [(f"blk.0.more_{index}", 0) for index in range(6)]                # never more blocks than tensors
    # of an architecture that llama.cpp has, such files are refused
    model = describe({"llama.block_count": block_count}, tensors, "newcomer")
    counted = sum(model["block_bytes"]) + model["output_bytes"] + model["token_embedding_bytes"]
    uncounted = sum(size for block, size in blocks if block >= block_count)
    assert counted + uncounted == sum(size for _name, size in tensors)
    said = any("belong to no known layer" in note for note in model["notes"])
    assert said == any(block >= block_count for block, _size in blocks)


def test_shards_are_found_from_any_of_them():
    names = [f"/m/x-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    for name in names:
        assert gguf_file.shard_paths(name) == names
    assert gguf_file.shard_paths("/m/x.gguf") == ["/m/x.gguf"]
    with pytest.raises(UserError, match="shard 4 of 3"):
        gguf_file.shard_paths("/m/x-00004-of-00003.gguf")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"blocks": 0}, "blocks is 0"),
        ({"embedding_length": 96, "head_count": 5, "head_count_kv": 5}, "does not divide into 5 heads"),
        ({"head_count_kv": 3}, "no multiple of head_count_kv 3"),
        ({"feed_forward_length": 100}, "needs a multiple of 32"),
        ({"vocabulary_size": 100}, "too small"),
        ({"expert_count": 4}, "expert_used_count is 0 of 4 experts"),
        ({"expert_count": 4, "expert_used_count": 5}, "expert_used_count is 5 of 4 experts"),
    ],
)
def test_impossible_shapes_are_refused(changes, sentence):
    with pytest.raises(UserError, match=sentence):
        random_shape.check_random_parameters(parameters(**changes))


def test_the_hash_of_parameters_is_found_in_a_header_and_depends_on_each():
    digest = random_shape.parameters_hash(parameters())
    key = random_shape.PARAMETERS_KEY.encode()
    head = struct.pack("<Q", len(key)) + key + struct.pack("<IQ", 8, 64) + digest.encode()
    assert random_shape.stored_parameters_hash(b"GGUF" + bytes(60) + head) == digest
    assert random_shape.stored_parameters_hash(b"GGUF" + bytes(60)) is None
    changed = [parameters(**{name: 1}) for name in random_shape.RANDOM_OPTIONS if parameters()[name] != 1]
    assert len({random_shape.parameters_hash(each) for each in changed} | {digest}) == len(changed) + 1
