# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a file is that is no model: by its metadata first, by its name second."""

from __future__ import annotations

import io

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import (
    architectures,
    gguf_header,
    gguf_kind,
    gguf_model,
)
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._models import gguf_bytes as made


def describe(data: bytes, path: str = "/m.gguf", draft: bool = False):
    header = gguf_header.read(path, io.BytesIO(data), len(data))
    return gguf_model.describe([header], [(path, len(data))], draft)


def typed(kind: str, **changes):
    return made.written(made.model(changes={"general.type": kind, **changes}))


def mtp(architecture: str, names=made.NAMES, blocks: int = 3, drafting: int = 1) -> bytes:
    return made.written(made.model(architecture, blocks, {f"{architecture}.nextn_predict_layers": drafting}), names)


WITHOUT_TRUNK = ("token_embd.weight", "output.weight", "blk.2.attn_norm.weight", "blk.2.nextn.eh_proj.weight")
CAUSES = {
    "adapter by type": (typed("adapter"), "adapter"),
    "adapter by its tensors": (made.written(names=["blk.0.attn_q.weight.lora_a"]), "adapter"),
    "control vector": (made.written({"general.architecture": "controlvector"}, ["direction.1"]), "control vector"),
    "importance matrix by type": (
        made.written({"general.type": "imatrix", "imatrix.datasets": ["a"]}, ["blk.0.attn_q.weight.in_sum2"]),
        "importance matrix"),
    "importance matrix by a key": (
        made.written({"imatrix.chunk_count": 9}, ["blk.0.attn_q.weight.counts"]), "importance matrix"),
    "projector by type": (typed("mmproj"), "projector"),
    "projector by architecture": (made.written({"general.architecture": "clip"}, ["v.patch_embd.weight"]), "projector"),
    "vocabulary": (made.written(made.model(), []), "vocabulary only"),
    "embedding model by architecture": (made.written(made.model("nomic-bert-moe")), "embedding or reranking"),
    "embedding model by pooling": (
        made.written(made.model("qwen3", changes={"qwen3.pooling_type": 3})), "embedding or reranking"),
    "reranker": (made.written(made.model("qwen3", changes={"qwen3.pooling_type": 4})), "embedding or reranking"),
    "EAGLE-3 head": (made.written(made.model("eagle3")), "drafting head"),
    "DFlash head": (made.written(made.model("dflash")), "drafting head"),
    "MTP blocks alone": (mtp("qwen35moe", WITHOUT_TRUNK), "only its MTP blocks"),
    "speech": (made.written(made.model("wavtokenizer-dec")), "speech"),
    "image model": (made.written(made.model("flux")), "ComfyUI"),
    "ik_llama's IQ4_KSS": (made.written(kinds={"blk.1.ffn_up.weight": 146}), "146, which is IQ4_KSS of ik_llama.cpp"),
    "ik_llama's repacked": (made.written(kinds={"blk.0.ffn_up.weight": 339}), "repacked quantisation of ik_llama.cpp"),
    "bitnet.cpp's": (made.written(kinds={"blk.0.ffn_up.weight": 36}), "I2_S of bitnet.cpp"),
    "removed": (made.written(kinds={"blk.0.ffn_up.weight": 31}), "Q4_0_4_4, and llama.cpp has removed it"),
    "Ollama's towers": (made.written(made.model("gemma3"), [*made.NAMES, "v.blk.0.attn_k.weight"]), "Ollama's own"),
    "Ollama's projection": (made.written(made.model("llama4"), [*made.NAMES, "mm.0.weight"]), "Ollama's own"),
    "Ollama's type": (made.written(made.model("gptoss"), kinds={"blk.0.ffn_up.weight": 4}), "Ollama's own"),
    "Ollama's name": (made.written(made.model("gptoss")), "Ollama's own"),
    "MTP blocks missing": (mtp("qwen3next"), "block 2 has no tensors"),
    "one of two MTP blocks missing": (
        mtp("nemotron_h_moe", [*made.NAMES, "blk.2.attn_norm.weight"], 4, 2), "block 3 has no tensors"),
    "of an MTP block only what drafts": (
        mtp("qwen35", [*made.NAMES, "blk.2.nextn.eh_proj.weight"]), "block 2 has no attn_norm.weight"),
    "a block missing": (made.written(made.model(blocks=3)), "declares 3 blocks and has no tensors of block 2"),
    "a block missing in the middle": (
        mtp("glm4moe", [*made.NAMES, "blk.3.attn_norm.weight"], 4), "declares 4 blocks and has no tensors of block 2"),
    "one block more": (
        made.written(names=[*made.NAMES, "blk.2.attn_norm.weight"]), "has tensors of block 2, which would be one more"),
    "no architecture": (made.written({"general.name": "x"}), "names no architecture"),
    "architecture with braces": (made.written(made.model("{{ 1 }}")), "which no program has"),
    "architecture with controls": (made.written(made.model("a\nb")), "which no program has"),
}  # fmt: skip


@pytest.mark.parametrize("name", CAUSES)
def test_the_true_cause_is_named_with_its_cure(name):
    data, cause = CAUSES[name]
    with pytest.raises(UserError, match=cause) as caught:
        describe(data)
    said = str(caught.value)
    assert said.startswith("/m.gguf ") and said.endswith(".") and ": " in said and said.isprintable()
    assert "damaged" not in said and "download it again" not in said


def test_the_name_tells_where_the_metadata_do_not():
    nameless = made.written({"general.name": "x"})
    for path, cause in (("/x.mmproj-f16.gguf", "projector"), ("/x-eagle3.gguf", "drafting head")):
        with pytest.raises(UserError, match=f"{cause}.*, as its name says"):
            describe(nameless, path)


@pytest.mark.parametrize("architecture", ["glm4moe", "deepseek2", "step35"])
def test_where_mtp_blocks_may_be_missing_it_is_a_note(architecture):
    assert describe(mtp(architecture))["block_count"] == 3


def test_blocks_may_be_empty_where_the_architecture_has_such():
    model = describe(made.written(made.model("deci", 3)))
    assert model["block_count"] == 3 and "1 of the 3 blocks have no tensors (the first is 2)." in model["notes"]


def test_a_head_is_described_as_a_draft_and_no_other_head_is():
    assert describe(made.written(made.model("eagle3")), draft=True)["architecture"] == "eagle3"
    with pytest.raises(UserError, match="drafting head"):
        describe(made.written(made.model("dflash")), draft=True)


def test_a_newer_architecture_and_type_are_described_and_said():
    model = describe(made.written(made.model("newcomer"), kinds={"blk.1.ffn_up.weight": 1234}))
    assert model["architecture"] == "newcomer" and model["block_bytes"] == [2048, 2048] and model["estimated"]
    architecture, kind = model["notes"]
    assert "newcomer, unknown to this collection, is not modelled" in architecture
    assert "unknown type 1234 (the first is 'blk.1.ffn_up.weight')" in kind


OTHER_KINDS = architectures.EMBEDDING | architectures.DRAFTING | architectures.SPEECH | {"clip"}


@pytest.mark.parametrize("architecture", sorted(architectures.PINNED - OTHER_KINDS))
def test_every_model_of_the_pinned_engine_is_described(architecture):
    model = describe(made.written(made.model(architecture), kinds={"blk.0.ffn_up.weight": 42}))
    assert model["architecture"] == architecture and model["block_count"] == 2
    assert not any("unknown" in note for note in model["notes"])


def test_a_modelled_file_is_no_estimate():
    model = describe(made.written())
    assert not model["estimated"] and model["notes"] == []


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("X.mmproj-Q8_0.gguf", "projector"), ("G.BF16-mmproj.gguf", "projector"),
        ("a/MMPROJ-model-f16.gguf", "projector"),
        ("imatrix.gguf", "importance matrix"), ("X.imatrix.gguf_file", "importance matrix"),
        ("X-imatrix-Q4_K_M.gguf", None),                       # quantised with one
        ("mtp-Q-27B-Q8_0.gguf", "drafting head"), ("Q-27B-MTP-Q8_0.gguf", None),
        ("X-eagle3-Q8_0.gguf", "drafting head"), ("Eagle-7B.gguf", None), ("X.EAGLE3-f16.gguf", "drafting head"),
        ("dflash-X-bf16.gguf", "drafting head"), ("ggml-vocab-llama-bpe.gguf", "vocabulary"), ("X-Q4_0.gguf", None),
    ],
)  # fmt: skip
def test_kinds_by_name(name, kind):
    assert gguf_kind.by_name(name) == kind


def test_drafts_and_adapters_count_where_there_is_nothing_else():
    assert gguf_kind.models_among(["X-Q8_0.gguf", "X-draft-Q8_0.gguf", "X-lora.gguf"]) == ["X-Q8_0.gguf"]
    assert gguf_kind.models_among(["X-0.5B-draft-Q8_0.gguf", "mmproj-F16.gguf"]) == ["X-0.5B-draft-Q8_0.gguf"]
