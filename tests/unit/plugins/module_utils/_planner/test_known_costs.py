# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import math
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import known_costs
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    cost_model,
    layer_weights,
    model_weights,
    split_problem,
)

PARTS: dict[str, t.Any] = {
    "llama_cpp": "b1", "driver_version": "580.95.05", "gpus": [{"id": "GPU-a", "power_limit_watts": 350}],
    "rpc_endpoints": [], "environment": {}, "extra": {}, "model_sha256": "aa", "serving": {"context_size": 2048},
}  # fmt: skip


MODEL: t.Any = {
    "path": "/srv/m.gguf", "architecture": "llama", "file_type": "Q4_K_M", "block_bytes": [100, 120],
    "kv_k_elements_per_token": [8, 8], "output_bytes": 50, "block_read_bytes": [1000, 1200], "expert_count": 0,
}  # fmt: skip
LAYER = {"weights_bytes": 1000.0, "cache_bytes": 0.0, "operations": 500.0}


def entry(recorded_at: str = "2026-01-01T00:00:00Z", model: t.Any = MODEL, **parts: t.Any) -> dict[str, t.Any]:
    fit = {
        "decode_ms_per_layer": [0.4, 0.9], "prefill_ms_per_layer": [4.0, 9.0], "prefill_overlap": 1.0,
        "average_layer": LAYER, "error": 0.0, "spread": {"decode": [0.01, 3]},
    }  # fmt: skip
    kind = {name: model[name] for name in ("path", "architecture", "file_type", "expert_count")}
    recorded = {**kind, "blocks_fingerprint": model_weights.blocks_fingerprint(model)}
    return {
        "model": recorded, "decision": {"fit": fit}, "devices": [{"id": "GPU-a"}, {"id": "GPU-b"}],
        "recorded_at": recorded_at, "fingerprint_parts": {**PARTS, **parts},
    }  # fmt: skip


def find(models: dict[str, t.Any], ids: t.Sequence[str] = ("GPU-a", "GPU-b"), **changes: t.Any) -> t.Any:
    parts = {**PARTS, "serving": {"context_size": 8192}, **changes.pop("parts", {})}
    return known_costs.find(models, parts, ids, {**MODEL, **changes})


#: Another model of the architecture and type.
LARGER = {**MODEL, "path": "/srv/larger.gguf", "block_bytes": [200, 240]}


def test_the_latest_tuning_of_the_same_model_tells() -> None:
    found = find({"old": entry(), "new": entry("2026-02-01T00:00:00Z"), "other": entry("2026-03-01", LARGER)})
    assert (found.deployment, found.decode, found.error) == ("new", [0.4, 0.9], 0.05)


@pytest.mark.parametrize(
    "changed",
    [
        {"llama_cpp": "b2"},
        {"driver_version": "590.1"},
        {"gpus": [{"id": "GPU-a", "power_limit_watts": 300}]},
        {"environment": {"GGML_CUDA_P2P": "1"}},
    ],
)
def test_another_host_tells_nothing(changed: dict[str, t.Any]) -> None:
    assert find({"one": entry(**changed)}) is None


def test_other_devices_or_a_useless_fit_tell_nothing() -> None:
    assert find({"one": entry()}, ids=("GPU-b", "GPU-a")) is None
    useless = entry()
    useless["decision"]["fit"]["decode_ms_per_layer"] = [0.0, 0.9]
    assert find({"one": useless}) is None
    assert find({"one": {**entry(), "decision": {"fit": None}}}) is None


def test_a_fine_tune_tells_as_the_model_itself_does() -> None:
    tuned = {**MODEL, "path": "/srv/tuned.gguf", "name": "Tuned", "output_bytes": 51, "context_length_train": 4096}
    assert find({"tuned": entry(model=tuned, model_sha256="bb")}).deployment == "tuned"


@pytest.mark.parametrize(
    "changed",
    [
        {"block_bytes": [100, 121]},
        {"block_bytes": [100]},
        {"file_type": "Q4_0"},
        {"architecture": "qwen2"},
        {"kv_k_elements_per_token": [8, 16]},
    ],
)
def test_a_model_with_other_blocks_tells_nothing(changed: dict[str, t.Any]) -> None:
    assert find({"other": entry(model={**MODEL, **changed})}) is None
    unknown = entry()
    del unknown["model"]["blocks_fingerprint"]
    assert find({"unknown": unknown}) is None


def test_a_plan_takes_another_size_of_the_same_kind_with_a_wider_error() -> None:
    def planned(models: dict[str, t.Any], **changes: t.Any) -> t.Any:
        return known_costs.for_plan(models, PARTS, ["GPU-a", "GPU-b"], {**MODEL, **changes})

    models = {"larger": entry("2026-02-01", LARGER), "own": entry()}
    own = planned(models)
    assert (own.deployment, own.error, own.of_kind) == ("own", 0.05, False)
    del models["own"]
    found = planned(models)
    assert (found.deployment, found.error, found.of_kind) == ("larger", 0.15, True)
    # a tuning does not start from it
    assert find(models) is None
    for changed in (
        {"file_type": "Q4_0"}, {"architecture": "qwen2"}, {"expert_count": 8}, {"file_type": None},
        {"block_read_bytes": [5000, 5000]}, {"block_read_bytes": [200, 200]},
    ):  # fmt: skip
        assert planned(models, **changed) is None
    # what the network takes does not go by bytes
    far = {**PARTS, "rpc_endpoints": ["192.0.2.7:50052"]}
    models = {"larger": entry("2026-02-01", LARGER, rpc_endpoints=far["rpc_endpoints"])}
    assert known_costs.for_plan(models, far, ["GPU-a", "GPU-b"], MODEL) is None


def test_the_latest_tuning_with_experts_in_ram_tells_of_the_same_model_in_the_same_state() -> None:
    def with_experts(recorded_at: str, residual: float | None, ms: float = 0.5, **parts: t.Any) -> dict[str, t.Any]:
        fit = {
            "decode_ms_per_block_in_ram": ms, "prefill_ms": {"copy": 1.0}, "decode_residual_percent": residual,
            "prefill_residual_percent": None,
        }  # fmt: skip
        moved = {"kind": "experts", "blocks": [1]}
        return {**entry(recorded_at, **parts), "decision": {"experts_in_ram": moved, "fit": fit}}

    models = {
        "old": with_experts("2026-01-01", 1.0), "new": with_experts("2026-02-01", 12.0), "dense": entry("2026-03-01"),
        "other": with_experts("2026-04-01", 1.0, model=LARGER),
        "changed": with_experts("2026-05-01", 1.0, driver_version="590.1"),
        "nothing": with_experts("2026-06-01", 1.0, ms=0.0),
    }  # fmt: skip
    ids = ["GPU-a", "GPU-b"]
    told = known_costs.of_experts(models, PARTS, ids, MODEL)
    assert told is not None and told["deployment"] == "new" and told["error"] == pytest.approx(0.13)
    del models["new"]
    told = known_costs.of_experts(models, PARTS, ids, MODEL)
    assert told is not None and told["deployment"] == "old" and 0.05 < told["error"] < 0.06
    assert known_costs.of_experts({"dense": entry()}, PARTS, ids, MODEL) is None
    assert find(models).deployment == "dense"


def test_costs_are_carried_over_by_bytes_and_operations() -> None:
    found = find({"one": entry()})
    now = {"weights_bytes": 2000.0, "cache_bytes": 500.0, "operations": 1500.0}
    carried = known_costs.of_problem(found, now)
    assert carried["decode"] == pytest.approx([1.0, 2.25]) and carried["prefill"] == pytest.approx([12.0, 27.0])
    assert (carried["deployment"], carried["error"], carried["overlap"]) == ("one", 0.05, 1.0)
    assert carried["spread"] == {"decode": [0.01, 3]}
    # a byte of the cache takes up to three times as long as one of weights, which is 3.5 of 2.5 read
    assert carried["scale_error"] == pytest.approx({"decode": math.log(3.5 / 2.5), "prefill": math.log(3.5)})
    same = known_costs.of_problem(found, LAYER)
    assert same["scale_error"] == {"decode": 0.0, "prefill": 0.0}


@pytest.mark.parametrize(
    ("factors", "determined", "holds"),
    [
        ({(40, 20, 21): 1.08, (27, 27, 27): 1.08}, False, True),
        # a device that has as many layers in both was throttled, or all were
        ({(40, 20, 21): 1.3, (27, 27, 27): 1.3}, False, False),
        ({(40, 20, 21): 0.75}, False, False),
        ({(40, 20, 21): 1.3, (27, 27, 27): 1.3, (20, 20, 41): 1.3}, True, True),
        ({(40, 20, 21): 1.0, (27, 27, 27): 1.1}, True, False),
        # a split that leaves a device out has a hop less
        ({(40, 20, 21): 1.0, (40, 41, 0): 0.8}, False, True),
        ({(40, 20, 21): 1.0, (40, 41, 0): 1.1}, False, False),
        ({(81, 0, 0): 3.0}, False, True),
        ({}, False, True),
    ],
)
def test_loads_bear_costs_out_or_contradict_them(
    factors: dict[tuple[int, ...], float], determined: bool, holds: bool
) -> None:
    costs, weights = (0.4, 0.9, 0.6), layer_weights.equal(81)
    known = split_problem.KnownCosts({"decode": costs}, 0.05, 1.0, {}, {})
    problem: t.Any = Asked(known, names=("CUDA0", "CUDA1", "CUDA2"), weights=weights)
    measured = {
        split: factor * cost_model.decode_ms(costs, weights.amounts("decode", split))
        for split, factor in factors.items()
    }
    tolerances = {"decode": 5.0, "prefill": 5.0}
    assert known_costs.hold(problem, {"decode": measured, "prefill": {}}, tolerances, determined) is holds
    # where the cache of another context may explain it
    wide = problem._replace(known=known._replace(scale_error={"decode": 0.3}))
    alike = max(factors.values(), default=1.0) == min(factors.values(), default=1.0)
    assert known_costs.hold(wide, {"decode": measured, "prefill": {}}, tolerances, determined) is (holds or alike)


def test_costs_that_close_splits_have_told_are_less_sure() -> None:
    far, near = [(60, 21), (20, 61)], [(42, 39), (40, 41)]
    assert known_costs.error_of_fit(far, 0.01, None) < 0.03 < 0.3 < known_costs.error_of_fit(near, 0.01, None)
    # of three devices the one whose layers hardly changed counts
    assert known_costs.error_of_fit([(40, 30, 11), (10, 60, 11)], 0.01, None) == 1.0
    before = split_problem.KnownCosts({"decode": (0.4, 0.9)}, 0.05, 1.0, {}, {})
    assert known_costs.error_of_fit(near, 0.01, before) == 0.05
    unsure = entry()
    unsure["decision"]["fit"]["error"] = 0.12
    assert find({"one": unsure}).error == pytest.approx(0.13)


class Asked(t.NamedTuple):
    """What a problem says to the functions below."""

    known: split_problem.KnownCosts | None
    kinds: tuple[str, ...] = ("decode", "prefill")
    indifference: float = 0.01
    names: tuple[str, ...] = ("CUDA0", "CUDA1")
    objective: str = "decode"
    micro_batch: int = 512
    weights: t.Any = None
    counts: tuple[int, int] = (0, 256)
    prefill_test: t.Any = None

    def counted(self, _name: str) -> tuple[int, int]:
        return self.counts


def test_the_scatter_of_earlier_loads_counts() -> None:
    spread = {"decode": (0.01, 3), "prefill": (0.02, 1)}
    problem: t.Any = Asked(split_problem.KnownCosts({}, 0.05, 1.0, spread, {}))
    assert known_costs.with_spread(problem, "decode", (0.0, 0)) == (pytest.approx(0.01), 3)
    assert known_costs.with_spread(problem, "objective", (0.0, 0)) == (pytest.approx(0.02), 1)
    deviation, degrees = known_costs.with_spread(problem, "decode", (0.03, 1))
    assert degrees == 4 and 0.01 < deviation < 0.03
    lacking: t.Any = problem._replace(known=problem.known._replace(spread={"decode": (0.01, 3)}))
    assert known_costs.with_spread(lacking, "objective", (0.03, 1)) == (0.03, 1)
    assert known_costs.with_spread(problem._replace(known=None), "decode", (0.03, 1)) == (0.03, 1)


def test_costs_suffice_where_their_error_changes_nothing() -> None:
    costs = {"decode": (0.4, 0.9), "prefill": (4.0, 9.0)}
    splits = [(first, 81 - first) for first in range(30, 60)]
    decode: t.Any = Asked(split_problem.KnownCosts(costs, 0.05, 1.0, {}, {}))
    assert known_costs.suffice(decode, splits)
    # the balance of a pipeline follows the costs
    prompt = decode._replace(counts=(8192, 0), objective="prefill")
    assert not known_costs.suffice(prompt, splits)
    assert known_costs.suffice(prompt._replace(known=decode.known._replace(error=0.001)), splits)
    alike = decode.known._replace(costs={"decode": (0.40, 0.41)}, error=0.2)
    assert not known_costs.suffice(decode._replace(known=alike), splits)
    assert not known_costs.suffice(decode._replace(known=None), splits)
    assert not known_costs.suffice(decode, [])


def deep(cache_bytes: float, factor: float) -> dict[str, t.Any]:
    """Return a tuning at a depth, on a host where a byte of KV cache takes C(factor) times one of weights."""
    found = entry("2026-03-01T00:00:00Z")
    found["decision"]["fit"]["average_layer"] = {**LAYER, "cache_bytes": cache_bytes}
    found["decision"]["fit"]["decode_ms_per_layer"] = [ms * (1 + factor * cache_bytes / 1000) for ms in (0.4, 0.9)]
    return found


@pytest.mark.parametrize("factor", [0.7, 1.0, 2.5])
def test_two_depths_tell_what_the_cache_costs(factor: float) -> None:
    for flat, far in ((entry(), deep(400, factor)), (deep(200, factor), deep(600, factor))):
        models = {"flat": flat, "deep": far}
        least, expected, most = find(models).cache
        assert expected == pytest.approx(factor) and least < factor < most
    assert find({"flat": entry(), "near": deep(20, factor)}).cache == known_costs.UNKNOWN_CACHE
    assert find({"flat": entry()}).cache == known_costs.UNKNOWN_CACHE
