# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""gpu_split: against exllamav2's own code, and against what exllamav3's rule says."""

from __future__ import annotations

import itertools
import random
import types

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import exl_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import exl_split, memory_plan
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model
from ansible_collections.homelab.mixed_gpu.tests.pinned_wheels import functions, wheel
from hypothesis import given, settings
from hypothesis import strategies as st

MIB, GIB = 1024**2, 1024**3


def shape(
    blocks=80,
    hidden=8192,
    forward=28672,
    heads=64,
    kv_heads=8,
    length=128,
    vocabulary=128256,
    bits=4.5,
    head_bits=6,
    uneven=0,
):
    """A Llama of that shape, as _exl_model describes it; Llama 3.3 70B by default. C(uneven) bytes per block more."""
    attention = int(hidden * length * (2 * heads + 2 * kv_heads) * bits / 8) + 2 * hidden
    whole = attention + int(3 * hidden * forward * bits / 8) + 2 * hidden
    return {
        "path": "m",
        "name": "m",
        "block_count": blocks,
        "block_bytes": [whole + number * uneven for number in range(blocks)],
        "block_attention_bytes": [attention] * blocks,
        "output_bytes": hidden * vocabulary * head_bits // 8 + 2 * hidden,
        "embedding_length": hidden,
        "feed_forward_length": forward,
        "expert_feed_forward_length": 0,
        "expert_count": 0,
        "head_count": heads,
        "head_count_kv": kv_heads,
        "key_length": length,
        "vocabulary_size": vocabulary,
        "kv_k_elements_per_token": [kv_heads * length] * blocks,
        "kv_v_elements_per_token": [kv_heads * length] * blocks,
        "window_tokens": [0] * blocks,
    }


def share(model, serving, layers, budgets):
    return exl_split.gpu_split_gb(model, serving, memory_plan.MemoryPlan(model, serving), layers, budgets)


def placed(modules, cards, devices):
    """Slots per card: a block is where both halves are."""
    by_slot = {}
    for module, card in zip(modules, cards, strict=True):
        if module.weights > 10**5 or module.scratch:  # not the norm, which is free to lie on either side
            by_slot.setdefault(module.slot, set()).add(card)
    assert all(len(found) == 1 for found in by_slot.values()), by_slot
    return tuple(sum(found == {device} for found in by_slot.values()) for device in range(devices))


@st.composite
def problem(draw):
    blocks = draw(st.integers(2, 90))
    heads = draw(st.sampled_from([8, 32, 40, 64]))
    model = shape(
        blocks,
        128 * heads,
        256 * draw(st.integers(4, 120)),
        heads,
        draw(st.sampled_from([heads, heads // 4, heads // 8])),
        vocabulary=draw(st.sampled_from([32000, 128256])),
        bits=draw(st.sampled_from([2.2, 4.0, 4.5, 8.0, 16.0])),
        uneven=draw(st.integers(0, 2**18)),
    )
    devices = draw(st.integers(1, 4))
    cuts = sorted(draw(st.lists(st.integers(0, blocks + 1), min_size=devices - 1, max_size=devices - 1)))
    layers = tuple(b - a for a, b in itertools.pairwise([0, *cuts, blocks + 1]))
    context = 256 * draw(st.integers(1, 128))
    mode = draw(st.sampled_from(["FP16", "Q8", "Q6", "Q4"]))
    return (
        model,
        exl_split.serving_profile("exllamav2", context, mode, draw(st.sampled_from([256, 1024, 2048]))),
        layers,
    )


def fill_v2(modules, constant, gpu_split_gb):
    """Return the card of each module by exllamav2's rule, or None where the last card is full too."""
    left = [share * GIB - constant for share in gpu_split_gb]
    scratch, attention = [0] * len(left), [0] * len(left)
    card, result = 0, []
    for module in modules:
        while True:
            if card == len(left):
                return None
            most = max(module.scratch, scratch[card]), max(module.attention, attention[card])
            if module.weights + sum(most) <= left[card]:
                break
            card += 1
        scratch[card], attention[card] = most
        left[card] -= module.weights
        result.append(card)
    return result


@given(problem())
@settings(max_examples=150, deadline=None)
def test_exllamav2_places_exactly_the_layers_meant(case):
    model, serving, layers = case
    split = share(model, serving, layers, [24000] * len(layers))
    modules = exl_split.modules_v2(model, serving)
    cards = fill_v2(modules, exl_split.constant_v2(model, serving), split)
    assert cards is not None and placed(modules, cards, len(layers)) == layers
    assert [count > 0 for count in layers] == [value > 0 for value in split]


def test_a_split_says_so_when_it_belongs_to_something_else():
    model, serving = shape(), exl_split.serving_profile("exllamav2", 8192, "FP16", 2048)
    for layers in ((40, 40), (41,), (27, 27, 27)):
        with pytest.raises(ValueError, match="no split of 81 slots over 2 cards"):
            share(model, serving, layers, [24000, 24000])


class Borrowed:
    """exllamav2 0.3.2's own arithmetic, run without torch: its methods on stand-ins that only have sizes."""

    def __init__(self, model, serving, sizes):
        self.archive = wheel("exllamav2-0.3.2-py3-none-any.whl")
        self.config = types.SimpleNamespace(
            head_dim=model["key_length"],
            max_seq_len=serving["context_size"],
            hidden_size=model["embedding_length"],
            max_input_len=serving["micro_batch_size"],
            max_batch_size=1,
            max_attention_size=serving["micro_batch_size"] ** 2,
            no_flash_attn=False,
            no_xformers=True,
            max_dq_size=512 * 1024**2,
            max_output_len=16,
            checkpoint_fused_mlp=False,
        )
        self.sizes = sizes
        self.engine = types.SimpleNamespace(config=self.config)
        scope = {"has_flash_attn": serving["flash_attention"] == "on", "has_xformers": False}
        sized = (
            "temp_state_size",
            "temp_q_size",
            "temp_k_size",
            "temp_v_size",
            "temp_dq_size",
            "temp_kv_size",
            "temp_attn_size",
            "temp_a_size",
            "temp_b_size",
            "temp_fwd_size",
            "scratch_space",
            "scratch_space_fixed",
            "weight_footprint",
        )
        self.linear = self.borrow("linear", "ExLlamaV2Linear", {*sized} - {"weight_footprint"}, scope)
        self.attention = self.borrow("attn", "ExLlamaV2Attention", sized, scope)
        self.mlp = self.borrow("mlp", "ExLlamaV2MLP", sized, scope)
        self.norm = self.borrow("rmsnorm", "ExLlamaV2RMSNorm", sized, scope)
        self.embedding = type("Embedding", (), {"set_device_idx": lambda own, index: setattr(own, "card", index)})
        self.modules = [self.embedding()]
        head, wide = model["key_length"], model["head_count"] * model["key_length"]
        hidden, forward = model["embedding_length"], model["feed_forward_length"]
        narrow = model["head_count_kv"] * head
        for number in range(model["block_count"]):
            key = f"model.layers.{number}"
            a, m = f"{key}.self_attn", f"{key}.mlp"
            self.modules += [
                self.make(
                    self.attention,
                    num_attention_heads=model["head_count"],
                    num_key_value_heads=model["head_count_kv"],
                    head_dim=head,
                    hidden_size=hidden,
                    pre_layernorm=self.make(self.norm),
                    post_layernorm=None,
                    q_norm=None,
                    k_norm=None,
                    q_proj=self.matrix(f"{a}.q_proj", hidden, wide),
                    k_proj=self.matrix(f"{a}.k_proj", hidden, narrow),
                    v_proj=self.matrix(f"{a}.v_proj", hidden, narrow),
                    o_proj=self.matrix(f"{a}.o_proj", wide, hidden),
                ),
                self.make(
                    self.mlp,
                    in_features=hidden,
                    interm_features=forward,
                    out_features=hidden,
                    pre_layernorm=self.make(self.norm),
                    post_layernorm=None,
                    gate_proj=self.matrix(f"{m}.gate_proj", hidden, forward),
                    up_proj=self.matrix(f"{m}.up_proj", hidden, forward),
                    down_proj=self.matrix(f"{m}.down_proj", forward, hidden),
                ),
            ]
        self.modules += [self.make(self.norm), self.matrix("lm_head", hidden, model["vocabulary_size"], sub=False)]

    def borrow(self, file, cls, names, scope):
        return type(cls, (), functions(self.archive, f"exllamav2/{file}.py", names, dict(scope), cls))

    def make(self, cls, **attributes):
        made = cls()
        made.model, made.set_device_idx = self.engine, lambda index, own=made: setattr(own, "card", index)
        for name, value in attributes.items():
            setattr(made, name, value)
        return made

    def matrix(self, key, columns, rows, sub=True):
        weight = sum(size for name, size in self.sizes.items() if name.startswith(f"{key}."))
        made = self.make(self.linear, in_features=columns, out_features=rows, is_sub_module=sub, max_out_len=16)
        made.weight_footprint = lambda: weight
        return made

    def cards(self, gpu_split):
        """The card of each module by set_device_map, or None where it finds no room."""
        scope = {
            "ExLlamaV2Embedding": self.embedding,
            "ExLlamaV2Attention": self.attention,
            "RopeStyle": types.SimpleNamespace(NONE=0),
            "ExLlamaV2DeviceContext": lambda *_arguments: None,
        }
        place = functions(self.archive, "exllamav2/model.py", {"set_device_map"}, scope, "ExLlamaV2")["set_device_map"]
        own = types.SimpleNamespace(
            config=self.config,
            modules=self.modules,
            archparams=types.SimpleNamespace(rope_style=1),
            set_cache_map=lambda: None,
        )
        try:
            place(own, gpu_split)
        except AssertionError:
            return None
        return [module.card for module in self.modules[1:]]


@pytest.mark.parametrize(
    ("context", "chunk", "flash"), [(8192, 2048, True), (8192, 1024, False), (2048, 256, True), (32768, 1024, True)]
)
@pytest.mark.parametrize("kv_heads", [2, 8])
def test_exllamav2s_own_code_agrees(tmp_path, context, chunk, flash, kv_heads):
    """For a model on disk and all its splits over two cards, and some over three."""
    sizes = write_model(
        tmp_path / "m", "exl2", blocks=12, hidden=1024, forward=2816, heads=8, kv_heads=kv_heads, vocabulary=4096
    )
    config = {
        "hidden_size": 1024,
        "num_hidden_layers": 12,
        "num_attention_heads": 8,
        "num_key_value_heads": kv_heads,
        "intermediate_size": 2816,
        "vocab_size": 4096,
        "architectures": ["LlamaForCausalLM"],
    }
    tensors = [exl_model.Tensor(*item) for item in sizes.items()]
    model = exl_model.describe("m", config, [("m", sum(sizes.values()))], tensors)
    serving = exl_split.serving_profile("exllamav2", context, "FP16", chunk, flash)
    engine = Borrowed(model, serving, sizes)
    modules, constant = exl_split.modules_v2(model, serving), exl_split.constant_v2(model, serving)
    for layers in [(count, 13 - count) for count in range(14)] + [(1, 0, 12), (4, 4, 5), (0, 12, 1), (6, 7, 0)]:
        cards = engine.cards(share(model, serving, layers, [20000] * len(layers)))
        assert placed(modules, cards, len(layers)) == layers
    # and every other number does what we say that it does
    seen = set()
    for value in [number / 500 for number in range(0, 100, 2)]:
        cards = engine.cards([value, 0.2, 20.0])
        assert fill_v2(modules, constant, [value, 0.2, 20.0]) == cards
        seen.add(tuple(cards))
    assert len(seen) > 2


def test_exllamav3_gets_half_a_block_to_both_sides_within_the_budget():
    model, serving = shape(bits=4.0), exl_split.serving_profile("exllamav3", 8192, "Q8", 2048)
    memory = memory_plan.MemoryPlan(model, serving)
    block = memory.slot_bytes(0)
    for first in range(30, 46):
        layers = (first, 81 - first)
        need = memory.devices(layers)
        split = share(model, serving, layers, [23000, 23500])
        # what it counts is weights, cache and the largest transient; its margin is not part of the number
        least = (need[0].weights + need[0].kv + need[0].compute) / GIB - 0.25
        assert least <= split[0] <= 23000 / 1024 or least > 23000 / 1024
        assert split[0] == pytest.approx(min(least + block / 2 / GIB, max(least, 23000 / 1024)), abs=2e-6)
        assert split[1] == pytest.approx(
            max(23500 / 1024, (need[1].weights + need[1].kv + need[1].compute) / GIB - 0.25)
        )


@pytest.mark.parametrize(
    ("engine", "mode", "bytes_of_32"),
    [
        ("exllamav2", "FP16", 128),
        ("exllamav2", "Q8", 68),
        ("exllamav2", "Q6", 52),
        ("exllamav2", "Q4", 36),
        ("exllamav3", "FP16", 128),
        ("exllamav3", "Q8", 68),
        ("exllamav3", "Q6", 52),
        ("exllamav3", "8,4", 52),
        ("exllamav3", "3, 2", 24),
    ],
)
def test_a_cache_mode_has_the_bytes_of_the_engines_tensors(engine, mode, bytes_of_32):
    """As shape_wk, shape_wv and shape_s of exllamav2's cache.py, and the qshape_* of exllamav3's cache/quant.py."""
    types_kv = exl_split.cache_types(engine, mode)
    assert sum(memory_plan.row_bytes(32, kind) for kind in types_kv) == bytes_of_32


@pytest.mark.parametrize(
    ("engine", "context", "mode", "chunk", "words"),
    [
        ("exllamav2", 8192, "8,6", 2048, "ExLlamaV2 has no cache mode '8,6': it has FP16, Q8, Q6, Q4"),
        ("exllamav3", 8192, "9,6", 2048, "ExLlamaV3 has no cache mode '9,6'"),
        ("exllamav3", 8000, "Q8", 2048, "context_size is 8000: ExLlama wants a multiple of 256"),
        ("exllamav3", 8192, "Q8", 100, "chunk_size is 100"),
        ("vllm", 8192, "Q8", 2048, "unknown engine 'vllm': known are exllamav2, exllamav3"),
    ],
)
def test_a_profile_that_cannot_be_is_refused(engine, context, mode, chunk, words):
    with pytest.raises(ValueError, match=words):
        exl_split.serving_profile(engine, context, mode, chunk)


def test_left_alone_exllama_fills_the_first_card():
    model, serving = shape(), exl_split.serving_profile("exllamav2", 8192, "Q8", 2048)
    memory = memory_plan.MemoryPlan(model, serving)
    budgets = [23000, 23500]
    layers = exl_split.own_split(memory, budgets, 81)
    assert sum(layers) == 81 and memory.mib(layers)[0] <= budgets[0]
    more = (layers[0] + 1, layers[1] - 1)
    assert memory.mib(more)[0] > budgets[0]


def test_the_planner_plans_exllama_as_it_plans_llama_cpp():
    """A pair on which a slot costs 1 and 1.6 ms: the whole campaign, and the corner that decoding wants."""
    model, serving = shape(), exl_split.serving_profile("exllamav2", 8192, "Q8")
    tests = [
        {"kind": "prefill", "n_prompt": 1024, "n_gen": 0, "n_depth": 0, "repetitions": 2},
        {"kind": "decode", "n_prompt": 0, "n_gen": 64, "n_depth": 0, "repetitions": 2},
    ]
    problem = {
        "schema": 1,
        "model": model,
        "serving": serving,
        "reserve_mib": 512,
        "split_modes": ["layer"],
        "micro_batches": [],
        "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256},
        "tests": tests,
        "indifference": 0.01,
        "max_loads": 7,
        "devices": [
            {"device": f"CUDA{card}", "id": f"GPU-{card}", "free_mib": 23700, "budget_mib": None} for card in (0, 1)
        ],
    }
    luck = random.Random(7)
    loads = []
    plan = stages.plan(problem, loads)
    while not plan["done"]:
        for load in plan["loads"]:
            first, second = load["layers"]
            token, prompt = first + 1.6 * second, 8 * first + 13 * second
            results = [
                {**tests[0], "samples_ms": [prompt * luck.uniform(0.998, 1.002) for _sample in range(2)]},
                {**tests[1], "samples_ms": [64 * token * luck.uniform(0.998, 1.002) for _sample in range(2)]},
            ]
            loads.append({**load, "status": "ok", "reason": None, "results": results})
        plan = stages.plan(problem, loads)
    decision = plan["decision"]
    most = max(row["layers"][0] for row in plan["feasible"])
    assert decision["layers"] == [most, 81 - most] == plan["default_layers"]
    assert "ExLlamaV2's own default" in decision["why"] and "llama.cpp" not in decision["why"]
    assert decision["micro_batch_size"] == serving["micro_batch_size"]
