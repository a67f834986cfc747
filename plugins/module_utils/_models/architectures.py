# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Architectures that say what a GGUF file is. Private to this collection. Tables only.

What can be loaded is decided by the engine that is installed; these tables name causes, and stand in for an engine that
is not built yet. Those of llama.cpp are compared with its pinned source by a test.
"""

from __future__ import annotations

import typing as t

#: Those of llama.cpp b11312 (LLM_ARCH_NAMES in src/llama-arch.cpp).
PINNED: t.Final = frozenset({
    "afmoe", "apertus", "arcee", "arctic", "arwkv7", "baichuan", "bailingmoe", "bailingmoe2", "bailingmoe3", "bert",
    "bitnet", "bloom", "chameleon", "chatglm", "clip", "codeshell", "cogvlm", "cohere2", "cohere2moe", "command-r",
    "dbrx", "deci", "deepseek", "deepseek2", "deepseek2-ocr", "deepseek32", "deepseek4", "dflash", "dots1", "dots3note",
    "dream", "eagle3", "ernie4_5", "ernie4_5-moe", "eurobert", "exaone", "exaone-moe", "exaone4", "falcon", "falcon-h1",
    "gemma", "gemma-embedding", "gemma2", "gemma3", "gemma3n", "gemma4", "gemma4-assistant", "glm-dsa", "glm4",
    "glm4moe", "glm5-next", "gpt-oss", "gpt2", "gptj", "gptneox", "granite", "granite_swa", "granitehybrid",
    "granitemoe", "graniteswitch", "grok", "grovemoe", "hrm_text", "hunyuan-dense", "hunyuan-moe", "hunyuan_vl",
    "hy_v3", "hy_v4", "internlm2", "jais", "jais2", "jamba", "jina-bert-v2", "jina-bert-v3", "kimi-k3", "kimi-linear",
    "laguna", "lfm2", "lfm2moe", "llada", "llada-moe", "llama", "llama-embed", "llama4", "maincoder", "mamba", "mamba2",
    "maple", "mellum", "mimo2", "minicpm", "minicpm3", "minimax-01", "minimax-m2", "minimax-m3", "mistral3", "mistral4",
    "modern-bert", "mpt", "muse-glimmer", "nanbeige", "nemotron", "nemotron_h", "nemotron_h_moe", "neo-bert",
    "nomic-bert", "nomic-bert-moe", "olmo", "olmo2", "olmoe", "openelm", "orion", "paddleocr", "pangu-embedded", "phi2",
    "phi3", "phimoe", "plamo", "plamo2", "plamo3", "plm", "pockettts", "qwen", "qwen2", "qwen2moe", "qwen2vl", "qwen3",
    "qwen35", "qwen35moe", "qwen3moe", "qwen3next", "qwen3tts", "qwen3vl", "qwen3vlmoe", "qwen4exp", "refact", "rnd1",
    "rwkv6", "rwkv6qwen2", "rwkv7", "seed_oss", "smallthinker", "smollm3", "spark2_5", "stablelm", "starcoder",
    "starcoder2", "step35", "t5", "t5encoder", "talkie", "wavtokenizer-dec", "xverse",
})  # fmt: skip

#: Models that turn a text into a vector, or rank it; they write none.
EMBEDDING: t.Final = frozenset({
    "bert", "eurobert", "gemma-embedding", "jina-bert-v2", "jina-bert-v3", "llama-embed", "modern-bert", "neo-bert",
    "nomic-bert", "nomic-bert-moe", "t5encoder",
})  # fmt: skip

#: Parts that draft tokens for another model (speculative decoding).
DRAFTING: t.Final = frozenset({"dflash", "eagle3", "gemma4-assistant"})

#: Parts of programs that speak.
SPEECH: t.Final = frozenset({"pockettts", "qwen3tts", "wavtokenizer-dec"})

#: Image and video models, as ComfyUI and stable-diffusion.cpp read them.
IMAGE: t.Final = frozenset({
    "aura", "cosmos", "flux", "hidream", "hyvid", "ltxv", "lumina2", "qwen_image", "sd1", "sd3", "sdxl", "wan",
})  # fmt: skip

#: Names that Ollama's own engine gives to models which llama.cpp knows by another name, or not at all.
OLLAMA: t.Final = frozenset({"deepseekocr", "gptoss", "mllama", "qwen25vl"})

#: Those whose blocks for drafting (MTP) may be missing: src/models/*.cpp has a "trunk_only" for them.
MTP_OPTIONAL: t.Final = frozenset({
    "bailingmoe3", "cohere2moe", "deepseek2", "deepseek2-ocr", "deepseek32", "glm-dsa", "glm4moe", "hy_v3", "mimo2",
    "mistral4", "step35",
})  # fmt: skip

#: Those that demand attn_norm.weight of each block for drafting (MTP) in src/models/*.cpp.
MTP_NORM: t.Final = frozenset({"qwen35", "qwen35moe", "qwen3next"})

#: Those whose blocks may have no tensors at all (a block without attention and without a feed-forward layer).
EMPTY_BLOCKS: t.Final = frozenset({"deci"})
