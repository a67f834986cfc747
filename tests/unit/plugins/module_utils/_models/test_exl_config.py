# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Published config.json files, cut to what matters, and what ExLlama keeps of their blocks."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import exl_config, exl_model

EXL3 = {"quantization_config": {"quant_method": "exl3", "bits": 4.0}}
EXL2 = {"quantization_config": {"quant_method": "exl2", "bits": 4.0}}
Names = t.Callable[[int], list[str]]


def llama(index: int) -> list[str]:
    return ["self_attn.q_proj.trellis", "self_attn.k_proj.trellis", "mlp.up_proj.trellis"]


def either(attends: t.Callable[[int], bool], attention: str, other: list[str]) -> Names:
    """Names of blocks some of which attend."""
    return lambda index: [f"{attention}.q_proj.trellis", "mlp.up_proj.trellis"] if attends(index) else other


def describe(
    config: dict[str, t.Any], count: int, names: Names = llama, prefix: str = "model.layers", shapes: t.Any = None
) -> dict[str, t.Any]:
    tensors = [exl_model.Tensor("model.embed_tokens.weight", 4000), exl_model.Tensor("lm_head.trellis", 4000)]
    for index in range(count):
        for name in names(index):
            shape = (shapes or {}).get(name.rpartition(".")[0].rpartition(".")[2], ())
            tensors.append(exl_model.Tensor(f"{prefix}.{index}.{name}", 100, shape))
    return exl_model.describe("/m", {**EXL3, **config}, [("/m/model.safetensors", 10**6)], tensors)


def of(architecture: str, **more: t.Any) -> dict[str, t.Any]:
    return {"architectures": [architecture], **more}


PLAIN = {
    "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "intermediate_size": 4096,
    "vocab_size": 1000,
}  # fmt: skip


@pytest.mark.parametrize(
    ("title", "config", "names", "k"),
    [
        ("everything is given", of("LlamaForCausalLM", **PLAIN, num_hidden_layers=3), llama, [256] * 3),
        ("a head is as long as it says", of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2, head_dim=64), llama,
         [128] * 2),
        ("as many heads of K as of Q", of("Phi3ForCausalLM", model_type="phi3", hidden_size=3072, num_hidden_layers=2),
         llama, [3072] * 2),
        ("Qwen3.5: layer_types", of("Qwen3_5ForConditionalGeneration", text_config={
            "num_hidden_layers": 4, "hidden_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2,
            "head_dim": 256, "layer_types": ["linear_attention"] * 3 + ["full_attention"],
        }), either(lambda index: index == 3, "self_attn", ["linear_attn.in_proj_qkv.trellis"]), [0, 0, 0, 512]),
        ("Qwen3.5: the interval of its class", of("Qwen3_5ForConditionalGeneration", model_type="qwen3_5", text_config={
            "num_hidden_layers": 8, "model_type": "qwen3_5_text",
        }), lambda index: ["mlp.up_proj.trellis"], [0, 0, 0, 1024] * 2),
        ("Nemotron-H: a pattern of letters", of(
            "NemotronHForCausalLM", hybrid_override_pattern="M-M*E", hidden_size=4096, num_attention_heads=32,
            num_key_value_heads=8, head_dim=128,
        ), either(lambda index: index == 3, "mixer", ["mixer.up_proj.trellis"]), [0, 0, 0, 1024, 0]),
        ("Nemotron-H: words", of(
            "NemotronHForCausalLM", layers_block_type=["mamba", "attention", "moe"], **PLAIN,
        ), lambda index: ["mixer.a.trellis"], [0, 256, 0]),
        ("LFM2: full_attn_idxs", of("Lfm2ForCausalLM", **PLAIN, num_hidden_layers=4, full_attn_idxs=[2]),
         lambda index: ["feed_forward.w1.trellis"], [0, 0, 256, 0]),
        ("Kimi Linear: numbers of blocks from 1 on, and a latent", of(
            "KimiLinearForCausalLM", **PLAIN, num_hidden_layers=4, kv_lora_rank=512, qk_rope_head_dim=64,
            linear_attn_config={"kda_layers": [1, 2, 3], "full_attn_layers": [4], "num_heads": 32, "head_dim": 128},
        ), either(lambda index: index == 3, "self_attn", ["self_attn.q_proj.trellis", "self_attn.A_log"]),
            [0, 0, 0, 512]),
        ("Bailing: the last of each group, and the tail", of(
            "BailingMoeV3ForCausalLM", **PLAIN, num_hidden_layers=5, layer_group_size=2, kv_lora_rank=256,
            qk_rope_head_dim=64,
        ), lambda index: ["attention.q_proj.trellis"], [0, 256, 0, 256, 256]),
        ("MiMo V2: fewer heads without a window", of(
            "MiMoV2ForCausalLM", **PLAIN, num_hidden_layers=3, hybrid_layer_pattern=[0, 1, 1], sliding_window=128,
            head_dim=192, v_head_dim=128, swa_num_key_value_heads=4,
        ), llama, [384, 768, 768]),
        ("Step 3.5: another setting under a window", of(
            "Step3p5ForCausalLM", hidden_size=4096, num_attention_heads=64, num_attention_groups=8, head_dim=128,
            num_hidden_layers=2, sliding_window=512, layer_types=["full_attention", "sliding_attention"],
            attention_other_setting={"num_attention_heads": 96, "num_attention_groups": 4},
        ), llama, [1024, 512]),
        ("heads listed per block", of(
            "OpenELMForCausalLM", model_dim=1280, hidden_size=1280, num_hidden_layers=3, head_dim=64,
            num_query_heads=[12, 16, 20], num_kv_heads=[3, 4, 5],
        ), llama, [192, 256, 320]),
        ("a block of its own", of(
            "Gemma4ForConditionalGeneration", text_config={
                **PLAIN, "num_hidden_layers": 2, "head_dim": 256, "layer_types": ["sliding_attention"] * 2,
                "sliding_window": 512, "per_layer_config": {"1": {"head_dim": 512, "num_key_value_heads": 1}},
            },
        ), llama, [512, 512]),
        ("Nemotron-NAS: groups and blocks without attention", of(
            "DeciLMForCausalLM", hidden_size=8192, num_attention_heads=64, num_key_value_heads=None,
            num_hidden_layers=3, block_configs=[
                {"attention": {"n_heads_in_group": 16}, "ffn": {"ffn_mult": 2.625}},
                {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.3125}},
                {"attention": {"replace_with_linear": True}, "ffn": {"no_op": True}},
            ],
        ), either(lambda index: index == 0, "self_attn", ["mlp.up_proj.trellis"]), [512, 0, 0]),
    ],
)  # fmt: skip
def test_each_block_keeps_what_it_keeps(title: str, config: dict[str, t.Any], names: Names, k: list[int]) -> None:
    model = describe(config, len(k), names)
    assert model["kv_k_elements_per_token"] == k, title
    assert model["block_count"] == len(k) == len(model["kv_v_elements_per_token"])


@pytest.mark.parametrize(
    ("kind", "outer", "k", "heads"),
    [
        ("gemma3_text", "Gemma3ForConditionalGeneration", 4 * 256, 8), ("gemma2", "Gemma2ForCausalLM", 4 * 256, 8),
        ("mistral", "Mistral3ForConditionalGeneration", 8 * 128, 32), ("qwen3", "Qwen3ForCausalLM", 32 * 128, 32),
        ("gpt_oss", "GptOssForCausalLM", 8 * 64, 64), ("glm4", "Glm4ForCausalLM", 2 * 128, 32),
        ("qwen3_next", "Qwen3NextForCausalLM", 2 * 256, 16), ("smollm3", "SmolLM3ForCausalLM", 4 * 128, 16),
        ("seed_oss", "SeedOssForCausalLM", 8 * 128, 80), ("ernie4_5", "Ernie4_5_ForCausalLM", 2 * 128, 16),
    ],
)  # fmt: skip
def test_what_a_config_leaves_out_is_that_of_its_class(kind: str, outer: str, k: int, heads: int) -> None:
    for config in (
        of(outer, text_config={"model_type": kind, "num_hidden_layers": 4}),
        of(outer, model_type=kind, num_hidden_layers=4), of(outer, num_hidden_layers=4),
    ):  # fmt: skip
        model = describe(config, 4)
        assert max(model["kv_k_elements_per_token"]) == k and model["head_count"] == heads
        assert model["vocabulary_size"] > 10_000 and model["embedding_length"] > 0


def test_null_is_not_left_out() -> None:
    model = describe(of("MistralForCausalLM", model_type="mistral", num_key_value_heads=None, num_hidden_layers=1), 1)
    assert model["kv_k_elements_per_token"] == [32 * 128]


def test_a_block_with_a_window_of_its_own_keeps_that_alone() -> None:
    config = of("GptOssForCausalLM", model_type="gpt_oss", num_hidden_layers=4, sliding_window=128)
    model = describe(config, 4)
    kept = 2 * 768 * (8 * 64) * 2 * 4                    # 128 + 512 rounded up to pages, K and V, float16, 4 slots
    assert model["window_tokens"] == [128, 0, 128, 0] and model["block_state_bytes"] == [kept, 0, kept, 0]
    whole = describe(of("Gemma3ForCausalLM", model_type="gemma3_text", num_hidden_layers=2, sliding_window=1024), 2)
    assert whole["window_tokens"] == [0, 0] and "block_state_bytes" not in whole
    tensors = [exl_model.Tensor(f"model.layers.{index}.self_attn.q_proj.q_weight", 8) for index in range(4)]
    older = exl_model.describe("/m", {**config, **EXL2}, [], [*tensors, exl_model.Tensor("lm_head.q_weight", 8)])
    assert older["window_tokens"] == [0] * 4 and older["kv_k_elements_per_token"] == [512] * 4


def test_a_state_is_counted_for_every_slot() -> None:
    linear = {"linear_num_value_heads": 32, "linear_num_key_heads": 16, "linear_key_head_dim": 128,
              "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}  # fmt: skip
    config = of("Qwen3NextForCausalLM", **PLAIN, **linear, num_hidden_layers=4, full_attention_interval=4)
    names = either(lambda index: index == 3, "self_attn", ["linear_attn.in_proj_qkvz.trellis"])
    model = describe(config, 4, names)
    width = 2 * 16 * 128 + 32 * 128
    state = 4 * width * 4 * 2 + 8 * 32 * 128 * 128 * 2 + 4 * width * 2 + 4 * 32 * 2 + 4 * 32 * 4
    assert model["block_state_bytes"] == [state, state, state, 0] and model["notes"] == []
    unknown = describe(of("OtherForCausalLM", **PLAIN, num_hidden_layers=2, layer_types=["mamba", "attention"]), 2)
    assert any("1 blocks keep a state whose size is not known" in note for note in unknown["notes"])


@pytest.mark.parametrize(
    "prefix",
    [
        "model.layers", "model.language_model.layers", "language_model.model.layers", "transformer.h",
        "backbone.layers", "model.text_model.layers", "gpt_neox.layers", "llm.model.layers", "transformer.blocks",
        "layers", "language_model.backbone.layers", "model.decoder.layers", "thinker.model.layers",
    ],
)  # fmt: skip
def test_blocks_are_found_under_any_name(prefix: str) -> None:
    model = describe(of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2), 2, prefix=prefix)
    assert model["block_bytes"] == [300, 300] and model["notes"] == []


@pytest.mark.parametrize(
    "name",
    [
        "model.visual.blocks.0.attn.qkv.weight", "vision_tower.vision_model.encoder.layers.1.self_attn.q_proj.weight",
        "mtp.layers.0.mlp.up_proj.trellis", "audio_tower.layers.0.fc1.weight", "model.layers.2.eh_proj.weight",
        "multi_modal_projector.norm.weight", "vision_model.embeddings.patch.weight", "talker.model.layers.0.a.weight",
    ],
)  # fmt: skip
def test_towers_and_drafting_heads_are_no_blocks(name: str) -> None:
    tensors = [exl_model.Tensor(f"model.layers.{index}.self_attn.q_proj.trellis", 100) for index in range(2)]
    tensors += [exl_model.Tensor("lm_head.trellis", 50), exl_model.Tensor("model.norm.weight", 7)]
    config = {**EXL3, **of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2)}
    model = exl_model.describe("/m", config, [], [*tensors, exl_model.Tensor(name, 3_000_000)])
    assert model["block_bytes"] == [100, 100] and model["output_bytes"] == 57
    assert model["notes"] == ["3 MB of another tower or of drafting heads are not counted."]


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (of("NewForCausalLM", **PLAIN, num_hidden_layers=2), "does not know NewForCausalLM"),
        (of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2, layer_types=["full_attention"]), "1 entries for 2"),
        (of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2, layer_types=["new_attention"] * 2), "'new_attention'"),
        (of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2, layer_types=["a\n\x1b[2J"] * 2), "not understood"),
        (of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2, layer_types="full_attention"), "layer_types is no list"),
        (of("DeciLMForCausalLM", **PLAIN, num_hidden_layers=2, block_configs=[{"attention": {}}, None]),
         "block_configs tells nothing of 1 of the 2 blocks"),
        (of("GlmMoeDsaForCausalLM", **PLAIN, num_hidden_layers=2, kv_lora_rank=512), "keys of its index"),
        (of("DeepseekV4ForCausalLM", **PLAIN, num_hidden_layers=2), "pools of compressed tokens"),
        (of("Gemma4ForConditionalGeneration", **PLAIN, num_hidden_layers=2, num_kv_shared_layers=1), "share the cache"),
    ],
)  # fmt: skip
def test_what_is_not_understood_is_said(config: dict[str, t.Any], words: str) -> None:
    notes = describe(config, 2)["notes"]
    assert any(words in note for note in notes), notes
    assert all(note.isprintable() for note in notes)


def test_a_text_where_a_list_of_blocks_is_meant_hides_no_block_that_attends() -> None:
    names = either(lambda index: index == 3, "self_attn", ["linear_attn.in_proj_qkv.trellis"])
    config = of("Qwen3NextForCausalLM", **PLAIN, num_hidden_layers=4, head_dim=128, layer_types="linear_attention")
    assert describe(config, 4, names)["kv_k_elements_per_token"] == [0, 0, 0, 256]


def test_tensors_are_believed_before_config() -> None:
    shapes = {"k_proj": (64, 32, 64)}                    # 32 tiles of 16 columns
    model = describe(of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2), 2, shapes=shapes)
    assert model["kv_k_elements_per_token"] == [512, 512] and model["head_count_kv"] == 4
    assert any("The tensors of 2 blocks have other heads than config.json" in note for note in model["notes"])
    shapes = {"k_proj": (64, 16, 64)}
    assert describe(of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2), 2, shapes=shapes)["notes"] == []


@pytest.mark.parametrize(
    "change",
    [
        {"num_hidden_layers": 2**32 - 1}, {"num_hidden_layers": -5}, {"num_hidden_layers": True},
        {"num_hidden_layers": "2"}, {"num_hidden_layers": 10**400}, {"num_hidden_layers": 2.0},
        {"hidden_size": 10**400}, {"hidden_size": 0}, {"num_attention_heads": None}, {"num_attention_heads": []},
    ],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_in_one_sentence(change: dict[str, t.Any]) -> None:
    with pytest.raises(UserError) as caught:
        exl_config.read("/m", {**of("OtherForCausalLM", **PLAIN, num_hidden_layers=2), **change}, 3, [])
    said = str(caught.value)
    assert said.isprintable() and said.endswith(".") and len(said) < 300


@pytest.mark.parametrize("value", [None, True, -1, 10**400, "x", 1.5, float("nan"), [], {}, [None], [[1]], {"a": 1}])
@pytest.mark.parametrize(
    "key",
    [
        "num_key_value_heads", "head_dim", "intermediate_size", "num_experts", "num_experts_per_tok", "layer_types",
        "block_configs", "hybrid_override_pattern", "linear_attn_config", "full_attn_idxs", "text_config",
        "attention_other_setting", "per_layer_config", "sliding_window", "kv_lora_rank", "architectures", "model_type",
        "_name_or_path", "quantization_config", "vocab_size", "attn_config", "hybrid_layer_pattern",
    ],
)  # fmt: skip
def test_odd_values_end_in_a_model_or_in_one_sentence(key: str, value: t.Any) -> None:
    config = {**of("LlamaForCausalLM", **PLAIN, num_hidden_layers=2), key: value}
    try:
        model = describe(config, 2)
    except UserError as exc:
        assert str(exc).endswith(".")
        return
    assert all(0 <= size < 1 << 63 for size in model["kv_k_elements_per_token"] + model["block_read_bytes"])
