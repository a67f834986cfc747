# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_bench
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import probe_stage
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record
from ansible_collections.homelab.mixed_gpu.tests.fixtures import least_entry

MODEL = {"block_bytes": [200_000_000] * 5, "output_bytes": 2_000_000}
TESTS = [
    {"kind": "prefill", "n_prompt": 1024, "n_gen": 0, "n_depth": 0, "repetitions": 3},
    {"kind": "decode", "n_prompt": 0, "n_gen": 100, "n_depth": 0, "repetitions": 3},
]
SERVING = {
    "batch_size": 2048, "micro_batch_size": 512, "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
    "threads": 1, "poll": 0, "load_mode": "auto", "gpu_layers": 99,
}
DEVICES = [
    {"device": "CUDA0", "id": "GPU-4090", "free_mib": 23660, "budget_mib": None},
    {"device": "CUDA1", "id": "GPU-3090", "free_mib": 24010, "budget_mib": None},
]
GPUS = [
    {"id": "GPU-4090", "memory_bandwidth_gb_per_s": 1008.1},
    {"id": "GPU-3090", "memory_bandwidth_gb_per_s": 936.1},
    {"id": "GPU-not-used", "memory_bandwidth_gb_per_s": 1792.0},
]


def done(
    *token_ms: float | str, noise: float = 0.005, devices: t.Sequence[dict[str, t.Any]] | None = None
) -> list[dict[str, t.Any]]:
    """The loads, completed: milliseconds per token of each device, or the status of its failure."""
    result = []
    orders = probe_stage.loads(DEVICES if devices is None else devices, MODEL, TESTS, 512)
    for load, took in zip(orders, token_ms, strict=True):
        load = {**load, "campaign": "c", "fingerprint": "f", "status": "ok", "reason": None, "results": []}
        if isinstance(took, str):
            load.update(status=took, reason="llama-bench was ended by SIGABRT (CUDA error)")
        else:
            load["results"] = [
                {"kind": "prefill", "n_prompt": 1024, "n_gen": 0, "n_depth": 0, "samples_ms": [512.0, 510.0, 520.0]},
                {
                    "kind": "decode", "n_prompt": 0, "n_gen": 100, "n_depth": 0,
                    "samples_ms": [100 * took * (1 + noise), 100 * took, 100 * took * (1 - noise)],
                },
            ]
        result.append(load)
    return result


def assess(
    loads: list[dict[str, t.Any]],
    devices: list[dict[str, t.Any]] | None = None,
    gpus: list[dict[str, t.Any]] | None = None,
) -> dict[str, t.Any]:
    devices, gpus = (DEVICES if devices is None else devices), (GPUS if gpus is None else gpus)
    return probe_stage.assess(loads, devices, MODEL, 512, gpus)


def test_every_load_is_an_order_for_one_device_alone() -> None:
    names = [device["device"] for device in DEVICES]
    loads = probe_stage.loads(DEVICES, MODEL, TESTS, 512)
    assert [load["layers"] for load in loads] == [[6, 0], [0, 6]]
    orders = [llama_bench.make_order(load, names, SERVING) for load in loads]
    assert [(order.devices, order.shares) for order in orders] == [(("CUDA0",), ()), (("CUDA1",), ())]
    assert loads[1]["label"] == "CUDA1 (GPU-3090) alone"


@pytest.mark.parametrize(
    ("change", "measured"),
    [
        ({"free_mib": 1468}, True),                 # 955.6 MiB of weights and 512 of reserve
        ({"free_mib": 1467}, False),
        ({"budget_mib": 1467}, False),              # the budget bounds what is free
        ({"free_mib": 1467, "budget_mib": 20000}, False),
    ],
)
def test_a_device_without_room_is_left_out(change: dict[str, int], measured: bool) -> None:
    devices = [DEVICES[0], {**DEVICES[1], **change}]
    loads = probe_stage.loads(devices, MODEL, TESTS, 512)
    assert [load["layers"] for load in loads] == [[6, 0], [0, 6]][: 1 + measured]
    if not measured:
        probed = assess(done(1.2, devices=devices), devices)
        assert (probed["devices"][1]["status"], probed["devices"][1]["rank"]) == ("skipped", None)
        assert "needs 1468 MiB with the reserve, and 1467 MiB are usable" in probed["devices"][1]["reason"]
        assert probed["failure"] is None and probed["order"] == "unknown"


def test_numbers_of_one_device() -> None:
    row = assess(done(1.25, 1.5))["devices"][0]
    assert row["decode_ms_per_token"] == pytest.approx({"median": 1.25, "low": 1.24375, "high": 1.25625})
    # 1.002 GB of weights in 1.25 ms
    assert row["bandwidth_gb_per_s"] == pytest.approx(801.6)
    assert row["prefill_tokens_per_second"] == pytest.approx(2000)
    assert row["theoretical_bandwidth_gb_per_s"] == 1008.1


@pytest.mark.parametrize(
    ("token_ms", "noise", "ranks"),
    [
        ([1.2, 1.5], 0.005, [1, 2]),
        ([1.5, 1.2], 0.005, [2, 1]),
        ([1.20, 1.22], 0.001, [1, 1]),              # 2 % with quiet samples: two loads differ as much
        ([1.2, 1.5], 0.15, [1, 1]),                 # the samples overlap
        ([1.2, 1.5], 0.10, [1, 2]),
    ],
)
def test_ranks(token_ms: list[float], noise: float, ranks: list[int]) -> None:
    assert [row["rank"] for row in assess(done(*token_ms, noise=noise))["devices"]] == ranks


def test_a_shared_rank_leaves_the_next_one_out() -> None:
    devices = [{**DEVICES[0], "device": f"RPC{i}", "id": f"host:{i}"} for i in range(4)]
    probed = assess(done(3.0, 1.0, 1.01, 2.0, devices=devices), devices)
    assert [row["rank"] for row in probed["devices"]] == [4, 1, 1, 3]
    assert (probed["order"], probed["warning"]) == ("unknown", None)


@pytest.mark.parametrize(
    ("token_ms", "noise", "expected"),
    [
        ([1.2, 1.35], 0.005, "confirmed"),
        ([1.3, 1.29], 0.005, "confirmed"),          # slower, and within noise: no reason to warn
        ([1.5, 1.2], 0.2, "confirmed"),
        ([1.5, 1.2], 0.005, "contradicted"),
    ],
)
def test_order_against_what_is_known(token_ms: list[float], noise: float, expected: str) -> None:
    probed = assess(done(*token_ms, noise=noise))
    assert probed["order"] == expected
    assert (probed["warning"] is not None) == (expected == "contradicted")


def test_the_warning_names_both_cards_and_what_to_look_at() -> None:
    assert assess(done(1.5, 1.2))["warning"] == (
        "CUDA0 should be the faster card (1008 against 936 GB/s) but measures slower (668 against 835 GB/s): the order"
        " of the cards looks swapped, or CUDA0 is throttled; compare its power limit, clocks and temperature with what"
        " is usual."
    )


def test_a_card_beyond_its_theory_is_another_card() -> None:
    gpus = [GPUS[0], {"id": "GPU-3090", "memory_bandwidth_gb_per_s": 448.0}]
    warning = assess(done(2.6, 1.2), gpus=gpus)["warning"]
    assert "CUDA1 does more than such a card can, so the order of the cards is swapped" in warning
    assert "throttled" in assess(done(2.6, 2.3), gpus=gpus)["warning"]


@pytest.mark.parametrize("gpus", [[], GPUS[:1], [GPUS[0], {"id": "GPU-3090", "memory_bandwidth_gb_per_s": None}]])
def test_nothing_known_is_no_warning(gpus: list[dict[str, t.Any]]) -> None:
    probed = assess(done(1.5, 1.2), gpus=gpus)
    assert (probed["order"], probed["warning"]) == ("unknown", None)


@pytest.mark.parametrize("status", ["crashed", "timed_out", "device_lost", "unreadable"])
def test_a_device_that_does_not_work_is_named(status: str) -> None:
    probed = assess(done(1.2, status))
    assert probed["failure"].startswith(
        "CUDA1 (GPU-3090) failed alone with the small probe model: llama-bench was ended by SIGABRT (CUDA error). The"
        " model itself was not loaded: repair the device or take it out of the configuration"
    )
    assert ("split_tuning_probe_timeout_seconds" in probed["failure"]) == (status == "timed_out")
    assert [row["rank"] for row in probed["devices"]] == [1, None]


def test_a_full_device_is_no_broken_device() -> None:
    probed = assess(done(1.2, "out_of_memory"))
    assert probed["failure"] is None
    assert "CUDA1 not measured" in probed["summary"]


def test_the_summary_begins_with_the_fastest_and_has_no_exponents() -> None:
    loads = done(12.5, 0.0125)
    for load in loads:
        load["results"][0]["samples_ms"] = [10.0]
    assert assess(loads)["summary"] == (
        "Each device alone with the probe model: CUDA1 0.01 ms per token (80160 GB/s), prefill 102400 tok/s, rank 1;"
        " CUDA0 12.5 ms per token (80.2 GB/s), prefill 102400 tok/s, rank 2."
    )


def test_what_is_recorded_can_be_recorded() -> None:
    probed = assess(done(1.2, 1.5))
    entry = least_entry.entry({device["id"]: 1 for device in DEVICES}, device_probe=probed)
    assert fact_record.check_entry(entry)["device_probe"] == probed
    assert (probed["fingerprint"], probed["campaign"]) == ("f", "c")


def test_all_devices_may_be_too_small() -> None:
    devices = [{**device, "free_mib": 100} for device in DEVICES]
    probed = assess([], devices)
    assert [row["status"] for row in probed["devices"]] == ["skipped", "skipped"]
    assert probed["failure"] is None and probed["fingerprint"] is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"layers": [3, 3]}, "all 6 must be on one device"),
        ({"layers": [6]}, "all 6 must be on one device"),
        ({"layers": [5, 0]}, "all 6 must be on one device"),
        ({"results": []}, "has no decode test"),
        ({"results": [{"kind": "decode", "n_gen": 100, "samples_ms": [0]}]}, "must hold positive times"),
        ({"results": [{"kind": "decode", "n_gen": 0, "samples_ms": [1]}]}, "n_gen of the decode test"),
    ],
)
def test_loads_that_make_no_sense(change: dict[str, t.Any], words: str) -> None:
    loads = done(1.2, 1.5)
    with pytest.raises(ValueError, match=words):
        assess([{**loads[0], **change}, loads[1]])


@pytest.mark.parametrize("model", [{"block_bytes": [], "output_bytes": 1}, {"block_bytes": ["1"], "output_bytes": 1}])
def test_a_model_without_weights(model: dict[str, t.Any]) -> None:
    with pytest.raises(ValueError, match=r"model\.block_bytes must be"):
        probe_stage.loads(DEVICES, model, TESTS, 512)
