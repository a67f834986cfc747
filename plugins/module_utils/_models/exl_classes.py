# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a config.json leaves out: defaults of its class, and what ExLlama does by architecture. Tables only.

A composite model's text_config is saved without what is the default of its class, so these are part of the model.
Read in transformers 5.24.0 (configuration_*.py) and exllamav3 1.6.5 (architecture/*.py); where both have a default,
it is the same.
"""

from __future__ import annotations

import typing as t

_KEYS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
    "vocab_size",
)  # fmt: skip


def _defaults(*values: int | None, **more: t.Any) -> dict[str, t.Any]:
    return {key: value for key, value in zip(_KEYS, values, strict=False) if value is not None} | more


#: By model_type: hidden size, feed-forward length, blocks, heads, heads of K and V, length of a head, vocabulary.
DEFAULTS: t.Final[dict[str, dict[str, t.Any]]] = {
    "afmoe": _defaults(
        2048, 6144, 32, 16, None, 128, 200192, num_experts=64, num_experts_per_tok=6, moe_intermediate_size=1408,
    ),
    "apertus": _defaults(4096, 14336, 32, 32, None, None, 131072),
    "arcee": _defaults(2560, 18432, 32, 32, None, None, 32000),
    "cohere": _defaults(8192, 22528, 40, 64, None, None, 256000),
    "cohere2": _defaults(8192, 22528, 40, 64, None, None, 256000),
    "deepseek_v3": _defaults(
        7168, 18432, 61, 128, 128, None, 129280, n_routed_experts=256, num_experts_per_tok=8,
        moe_intermediate_size=2048, kv_lora_rank=512, qk_rope_head_dim=64,
    ),
    "deepseek_v4": _defaults(
        4096, None, 43, 64, 1, 512, 129280, n_routed_experts=256, num_experts_per_tok=6, moe_intermediate_size=2048,
    ),
    "dots1": _defaults(4608, 10944, 62, 32, 32, None, 152064, moe_intermediate_size=1408),
    "ernie4_5": _defaults(1024, 3072, 18, 16, 2, 128, 103424),
    "ernie4_5_moe": _defaults(2560, 12288, 28, 20, 4, None, 103424, moe_intermediate_size=1536),
    "exaone4": _defaults(4096, 16384, 32, 32, 32, None, 102400),
    "gemma": _defaults(3072, 24576, 28, 16, 16, 256, 256000),
    "gemma2": _defaults(2304, 9216, 26, 8, 4, 256, 256000),
    "gemma3_text": _defaults(2304, 9216, 26, 8, 4, 256, 262208),
    "gemma4_text": _defaults(
        2304, 9216, 30, 8, 4, 256, 262144, sliding_window=512, global_head_dim=512, sliding_window_pattern=6,
    ),
    "glm4": _defaults(4096, 13696, 40, 32, 2, 128, 151552),
    "glm4_moe": _defaults(
        4096, 10944, 46, 96, 8, None, 151552, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408,
    ),
    "glm4_moe_lite": _defaults(
        2048, 10240, 47, 20, 20, None, 154880, n_routed_experts=64, num_experts_per_tok=4, moe_intermediate_size=1536,
        kv_lora_rank=512, qk_rope_head_dim=64,
    ),
    "glm4v_text": _defaults(4096, 13696, 40, 32, 2, None, 151552),
    "glm4v_moe_text": _defaults(
        4096, 10944, 46, 96, 8, None, 151424, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1408,
    ),
    "glm_moe_dsa": _defaults(
        6144, 12288, 78, 64, 64, 64, 154880, n_routed_experts=256, num_experts_per_tok=8, moe_intermediate_size=2048,
        kv_lora_rank=512, qk_rope_head_dim=64,
    ),
    "gpt_oss": _defaults(
        2880, 2880, 36, 64, 8, 64, 201088, num_local_experts=128, num_experts_per_tok=4, sliding_window=128,
        sliding_window_pattern=2,
    ),
    "granite": _defaults(4096, 11008, 32, 32, None, None, 32000),
    "hy_v3": _defaults(
        4096, 13312, 80, 64, 8, 128, 120832, num_experts=192, num_experts_per_tok=8, moe_intermediate_size=1536,
    ),
    "hyperclovax": _defaults(4096, 11008, 32, 32, None, None, 32000),
    "iquestcoder": _defaults(5120, 27648, 80, 40, 8, 128, 76800),
    "kimi_linear": _defaults(
        2304, 9216, 27, 32, 32, None, 163840, num_local_experts=256, num_experts_per_tok=8, moe_intermediate_size=1024,
        kv_lora_rank=512, qk_rope_head_dim=64, linear_conv_kernel_dim=4,
    ),
    "laguna": _defaults(
        2048, 8192, 40, 48, 8, 128, 100352, num_experts=256, num_experts_per_tok=8, moe_intermediate_size=512,
        sliding_window=512,
    ),
    "lfm2": _defaults(2560, 12288, 32, 32, 8, None, 65536, conv_L_cache=3),
    "lfm2_moe": _defaults(
        2048, 7168, 32, 32, 8, None, 65536, num_experts=32, num_experts_per_tok=4, moe_intermediate_size=1792,
        conv_L_cache=3,
    ),
    "llama": _defaults(4096, 11008, 32, 32, None, None, 32000),
    "minimax_m2": _defaults(3072, 1536, 62, 48, 8, 128, 200064, num_local_experts=256, num_experts_per_tok=8),
    "ministral3": _defaults(4096, 14336, 34, 32, 8, 128, 131072),
    "mistral": _defaults(4096, 14336, 32, 32, 8, None, 32000),
    "mistral4": _defaults(
        4096, 12288, 36, 32, 32, None, 131072, n_routed_experts=128, num_experts_per_tok=4, moe_intermediate_size=2048,
        kv_lora_rank=256, qk_rope_head_dim=64,
    ),
    "mixtral": _defaults(4096, 14336, 32, 32, 8, None, 32000, num_local_experts=8, num_experts_per_tok=2),
    "nemotron_h": _defaults(
        4096, 21504, None, 32, 8, 128, 131072, n_routed_experts=8, num_experts_per_tok=2, moe_intermediate_size=7688,
        mamba_num_heads=128, mamba_head_dim=64, ssm_state_size=128, n_groups=8, conv_kernel=4,
    ),
    "olmo2": _defaults(4096, 11008, 32, 32, None, None, 50304),
    "olmo3": _defaults(4096, 11008, 32, 32, None, None, 50304),
    "olmo_hybrid": _defaults(
        3840, 11008, 32, 30, None, None, 100352, linear_conv_kernel_dim=4, full_attention_interval=4,
    ),
    "phi3": _defaults(3072, 8192, 32, 32, None, None, 32064),
    "qwen2": _defaults(4096, 22016, 32, 32, 32, None, 151936),
    "qwen2_moe": _defaults(
        2048, 5632, 24, 16, 16, None, 151936, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
    ),
    "qwen2_5_vl_text": _defaults(8192, 29568, 80, 64, 8, None, 152064),
    "qwen2_vl_text": _defaults(8192, 29568, 80, 64, 8, None, 152064),
    "qwen3": _defaults(4096, 22016, 32, 32, 32, 128, 151936),
    "qwen3_moe": _defaults(
        2048, 6144, 24, 32, 4, None, 151936, num_experts=128, num_experts_per_tok=8, moe_intermediate_size=768,
    ),
    "qwen3_next": _defaults(
        2048, 5632, 48, 16, 2, 256, 151936, num_experts=512, num_experts_per_tok=10, moe_intermediate_size=512,
        linear_num_value_heads=32, linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_conv_kernel_dim=4, full_attention_interval=4,
    ),
    "qwen3_5_text": _defaults(
        4096, 12288, 32, 16, 4, 256, 248320, linear_num_value_heads=32, linear_num_key_heads=16,
        linear_key_head_dim=128, linear_value_head_dim=128, linear_conv_kernel_dim=4, full_attention_interval=4,
    ),
    "qwen3_5_moe_text": _defaults(
        2048, None, 40, 16, 2, 256, 248320, num_experts=256, num_experts_per_tok=8, moe_intermediate_size=512,
        linear_num_value_heads=32, linear_num_key_heads=16, linear_key_head_dim=128, linear_value_head_dim=128,
        linear_conv_kernel_dim=4, full_attention_interval=4,
    ),
    "qwen3_vl_text": _defaults(4096, 22016, 32, 32, 32, 128, 151936),
    "qwen3_vl_moe_text": _defaults(
        2048, 5632, 24, 16, 16, None, 151936, num_experts=60, num_experts_per_tok=4, moe_intermediate_size=1408,
    ),
    "seed_oss": _defaults(4096, 27648, 64, 80, 8, 128, 155136),
    "smollm3": _defaults(2048, 11008, 36, 16, 4, None, 128256),
    "solar_open": _defaults(
        4096, None, 48, 64, 8, 128, 196608, n_routed_experts=128, num_experts_per_tok=8, moe_intermediate_size=1280,
    ),
    "starcoder2": _defaults(3072, 12288, 30, 24, 2, None, 49152),
    "step3p5": _defaults(
        4096, 11264, 45, 64, 8, 128, 128815, num_local_experts=128, n_routed_experts=288, num_experts_per_tok=8,
        moe_intermediate_size=1280,
    ),
}  # fmt: skip

#: Class of a text_config whose model_type is not written, by the model_type of the whole.
TEXT_OF: t.Final = {
    "gemma3": "gemma3_text", "mistral3": "mistral", "llava": "llama", "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text", "qwen3_vl": "qwen3_vl_text", "qwen3_vl_moe": "qwen3_vl_moe_text",
    "qwen2_5_vl": "qwen2_5_vl_text", "qwen2_vl": "qwen2_5_vl_text", "lfm2_vl": "lfm2",
}  # fmt: skip

#: By architecture, for a config without any model_type.
TYPE_OF: t.Final = {
    "Gemma3ForConditionalGeneration": "gemma3_text", "Gemma3ForCausalLM": "gemma3_text", "Gemma2ForCausalLM": "gemma2",
    "GemmaForCausalLM": "gemma", "LlamaForCausalLM": "llama", "MistralForCausalLM": "mistral",
    "Mistral3ForConditionalGeneration": "mistral", "MixtralForCausalLM": "mixtral", "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3", "Qwen3MoeForCausalLM": "qwen3_moe", "Qwen3NextForCausalLM": "qwen3_next",
    "Qwen3_5ForConditionalGeneration": "qwen3_5_text", "Qwen3_5ForCausalLM": "qwen3_5_text",
    "Qwen3_5MoeForConditionalGeneration": "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM": "qwen3_5_moe_text",
    "Qwen3VLForConditionalGeneration": "qwen3_vl_text", "Qwen3VLMoeForConditionalGeneration": "qwen3_vl_moe_text",
    "Qwen2_5_VLForConditionalGeneration": "qwen2_5_vl_text", "Phi3ForCausalLM": "phi3", "CohereForCausalLM": "cohere",
    "Cohere2ForCausalLM": "cohere2", "Glm4ForCausalLM": "glm4", "Glm4MoeForCausalLM": "glm4_moe",
    "GptOssForCausalLM": "gpt_oss", "SmolLM3ForCausalLM": "smollm3", "SeedOssForCausalLM": "seed_oss",
    "Exaone4ForCausalLM": "exaone4", "Ernie4_5_ForCausalLM": "ernie4_5", "Ernie4_5ForCausalLM": "ernie4_5",
    "Lfm2ForCausalLM": "lfm2", "Lfm2MoeForCausalLM": "lfm2_moe", "DeepseekV3ForCausalLM": "deepseek_v3",
    "OlmoHybridForCausalLM": "olmo_hybrid", "Olmo3ForCausalLM": "olmo3", "ArceeForCausalLM": "arcee",
    "ApertusForCausalLM": "apertus", "DeepseekV4ForCausalLM": "deepseek_v4",
}  # fmt: skip

#: Architectures that exllamav3 1.6.5 loads (arch_string of architecture/*.py), without those that only draft.
V3_KNOWN: t.Final = frozenset({
    *TYPE_OF, "AfmoeForCausalLM", "BailingMoeV3ForCausalLM", "DeciLMForCausalLM", "Dots1ForCausalLM",
    "Ernie4_5_MoeForCausalLM", "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration",
    "Glm4MoeLiteForCausalLM", "Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration",
    "Glm5NextForConditionalGeneration", "GlmMoeDsaForCausalLM", "HCXVisionV2ForCausalLM", "HYV3ForCausalLM",
    "HyperCLOVAXForCausalLM", "IQuestCoderForCausalLM", "KimiLinearForCausalLM", "LagunaForCausalLM",
    "Lfm2VlForConditionalGeneration", "MiMoForCausalLM", "MiMoV2ForCausalLM", "MiniMaxM2ForCausalLM",
    "Ministral3ForCausalLM", "MuseGlimmerForConditionalGeneration", "NemotronHForCausalLM",
    "NemotronH_Omni_Reasoning_V3", "Qwen4ExpForConditionalGeneration", "SolarOpenForCausalLM", "Spark2_5ForCausalLM",
    "Step3p5ForCausalLM", "Step3p7ForConditionalGeneration",
}) - {"GemmaForCausalLM", "Ernie4_5ForCausalLM"}  # fmt: skip

#: Architectures whose blocks with a window keep that window alone (SlidingAttention); others keep the whole context.
V3_KEEPS_WINDOW: t.Final = frozenset({
    "Gemma4ForConditionalGeneration", "Gemma4UnifiedForConditionalGeneration", "GptOssForCausalLM", "LagunaForCausalLM",
    "MiMoV2ForCausalLM", "MuseGlimmerForConditionalGeneration", "Spark2_5ForCausalLM", "Step3p5ForCausalLM",
    "Step3p7ForConditionalGeneration",
})  # fmt: skip

#: Architectures with caches that are counted in part alone, and what is missing.
V3_MORE_CACHES: t.Final = {
    "GlmMoeDsaForCausalLM": "keys of its index", "Glm5NextForConditionalGeneration": "keys of its index",
    "Qwen4ExpForConditionalGeneration": "keys of its index", "DeepseekV4ForCausalLM": "pools of compressed tokens",
}  # fmt: skip

FULL, WINDOW, STATE, NONE = "full", "window", "state", "none"

#: Words of layer_types and their like.
KINDS: t.Final = {
    **dict.fromkeys(
        ("full_attention", "full", "attention", "attn", "global", "global_attention", "deepseek_sparse_attention", "*"),
        FULL,
    ),
    **dict.fromkeys(
        (
            "sliding_attention", "sliding", "sliding_window", "sliding_window_attention", "local", "local_attention",
            "window_attention", "chunked_attention", "swa",
        ),
        WINDOW,
    ),
    **dict.fromkeys(
        (
            "linear_attention", "linear", "mamba", "mamba2", "ssm", "conv", "short_conv", "recurrent", "rglru", "kda",
            "gdn", "gated_delta_net", "lightning_attention", "m",
        ),
        STATE,
    ),
    **dict.fromkeys(("mlp", "moe", "ffn", "no_op", "noop", "none", "-", "e"), NONE),
}  # fmt: skip
