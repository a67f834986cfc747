# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A 4090 and a 3090 in the box, and a 3090 each in two others."""

from __future__ import annotations

import shlex
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.filter import llama_cpp as filters
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import choose_placement
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    deployment,
    fallbacks,
    memory_plan,
    placement,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import watchdog_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watchdog import lenders

LLAMA = model_shapes.model("llama_3_3_70b_q4_k_m")
FIRST, SECOND = "192.168.1.7:50052", "192.168.1.8:50052"
OWN = [("GPU-4090", "CUDA0", 23600), ("GPU-3090", "CUDA1", 23900)]
SERVING: dict[str, t.Any] = {
    "context_size": 32768, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": 512,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 4, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}  # fmt: skip

SETTINGS: dict[str, t.Any] = {
    "host": "127.0.0.1", "port": 8080, "alias": "m", "cache_ram_mib": 0, "cors_origins": "localhost",
    "log_verbosity": 4, "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 300,
}  # fmt: skip


def device(ident: str, name: str, free: int) -> dict[str, t.Any]:
    backend = name.rstrip("0123456789")
    own = {"id": ident, "device": name, "backend": backend, "description": name, "total_mib": free}
    return {**own, "free_mib": free, "budget_mib": None}


def tuning(
    remote: t.Sequence[str] = (FIRST,), own: t.Sequence[tuple[str, str, int]] = tuple(OWN), **decided: t.Any
) -> dict[str, t.Any]:
    """A finished tuning in which each device costs as much as it has bandwidth, remote ones a little more."""
    devices = [device(endpoint, f"RPC{number}", 23900) for number, endpoint in enumerate(remote)]
    devices += [device(*one) for one in own]
    costs = [1.25 if one["backend"] == "RPC" else 1.2 if one["id"] == "GPU-3090" else 1.0 for one in devices]
    layers = [17] * len(remote) + [0] * len(own)
    layers[-1] = 81 - sum(layers)
    problem = {
        "schema": 1, "devices": devices, "model": LLAMA, "serving": SERVING, "reserve_mib": 512,
        "split_modes": ["layer"], "indifference": 0.01, "max_loads": 8,
        "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0},
        "tests": [
            {"kind": "prefill", "n_prompt": 1024, "n_gen": 0, "n_depth": 0, "repetitions": 2},
            {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 2},
        ],
    }  # fmt: skip
    fit = {"decode_ms_per_layer": costs, "prefill_ms_per_layer": [10 * cost for cost in costs], "prefill_overlap": 1.0}
    decision = {"layers": layers, "split_mode": "layer", "micro_batch_size": 512, "fit": fit, **decided}
    return {
        "model": {"id": "m", "path": "/m.gguf", "sha256": "5a"}, "problem": problem, "loads": [],
        "plan": {"decision": decision, "feasible": []}, "rpc_endpoints": list(remote), "dry_run": None,
        "device_probe": None, "probe_settings": None, "fingerprint_parts": {"x": 1, "tests": []}, "campaign": "c",
    }  # fmt: skip


def planned(**given: t.Any) -> list[dict[str, t.Any]]:
    done = tuning(**given)
    return fallbacks.of_tuning(done["problem"], done["plan"]["decision"], done["rpc_endpoints"])


@pytest.mark.parametrize("endpoint", ["127.0.0.1:50052", "localhost:1", "[::1]:50052"])
def test_the_host_itself_is_no_lender(endpoint: str) -> None:
    assert fallbacks.lenders([endpoint]) == {} and planned(remote=[endpoint]) == []
    assert "fallbacks" not in deployment.build(tuning(remote=[endpoint]))


def test_what_fits_without_the_lender_is_the_cheapest_split_with_the_largest_context() -> None:
    (found,) = planned()
    assert (found["absent"], found["rpc_endpoints"]) == (["192.168.1.7"], [])
    assert [place["id"] for place in found["placement"]] == ["GPU-4090", "GPU-3090"]
    layers = [place["layers"] for place in found["placement"]]
    assert sum(layers) == 81 and min(layers) > 0
    assert 0 < found["context_size"] < 32768 and found["context_size"] % 1024 == 0
    memory = memory_plan.MemoryPlan(LLAMA, {**SERVING, "context_size": found["context_size"]})
    budgets = [23600 - 512, 23900 - 512]
    assert found["mib"] == memory.mib(layers) and min(memory_plan.headroom_mib(found["mib"], budgets)) >= 0
    # one layer more on the faster card does not fit
    assert min(memory_plan.headroom_mib(memory.mib([layers[0] + 1, layers[1] - 1]), budgets)) < 0
    assert f"with a context of {found['context_size']} instead of 32768" in found["why"]


def test_the_context_stays_where_it_fits_and_how_much_slower_it_is_follows_from_the_fit() -> None:
    big = [("GPU-a", "CUDA0", 60000)]
    (found,) = planned(own=big)
    assert found["context_size"] == 32768 and "instead of" not in found["why"]
    assert found["placement"] == [{"id": "GPU-a", "layers": 81}]
    # decoding is a sum: 17 layers of 1.25 and 64 of 1, instead of 81 of 1; the prompt is pipelined no more
    prompt = (81 * 10 * 2) / (17 * 12.5 + 64 * 10 + max(17 * 12.5, 64 * 10))
    assert found["slower_percent"] is not None and -10 < found["slower_percent"] < 100 * (prompt - 1)


def test_where_nothing_fits_there_is_no_placement_and_a_sentence() -> None:
    (found,) = planned(own=[("GPU-a", "CUDA0", 8000)])
    assert (found["placement"], found["context_size"], found["mib"]) == (None, None, None)
    assert found["why"] == "without 192.168.1.7 the server waits: no context fits on what is left"
    entry = deployment.build(tuning(own=[("GPU-a", "CUDA0", 8000)]))
    assert fallbacks.serving_without(entry, [FIRST]) is None


def test_experts_in_ram_are_not_planned_for_fewer_devices() -> None:
    (found,) = planned(experts_in_ram={"kind": "experts", "blocks": [0]})
    assert found["placement"] is None and "weights in RAM" in found["why"]


def test_each_of_two_lenders_may_be_absent_or_both() -> None:
    entry = deployment.build(tuning(remote=[FIRST, SECOND]))
    assert [one["absent"] for one in entry["fallbacks"]] == [
        ["192.168.1.7"], ["192.168.1.8"], ["192.168.1.7", "192.168.1.8"],
    ]  # fmt: skip
    assert watchdog_plan.lender_placements(entry) == [[FIRST, SECOND], [SECOND], [FIRST], []]
    without = fallbacks.serving_without(entry, [FIRST])
    assert without is not None and without["rpc_endpoints"] == [SECOND]
    # the second lender's device is the first of those that are asked now
    assert placement.device_names(without) == {SECOND: "RPC0", "GPU-4090": "CUDA0", "GPU-3090": "CUDA1"}
    alone = fallbacks.serving_without(entry, [SECOND, FIRST])
    assert alone is not None and alone["rpc_endpoints"] == [] and len(alone["devices"]) == 2


def idle(*layers: int, remote: t.Sequence[str] = (FIRST, SECOND), **decided: t.Any) -> dict[str, t.Any]:
    """The entry of a tuning that gave the lenders these layers, and the 4090 the rest; lenders come last."""
    done = tuning(remote=remote, own=[("GPU-4090", "CUDA0", 60000)], **decided)
    problem, decision, fit = done["problem"], done["plan"]["decision"], done["plan"]["decision"]["fit"]
    problem["devices"] = [problem["devices"][-1], *problem["devices"][:-1]]
    for name in ("decode_ms_per_layer", "prefill_ms_per_layer"):
        fit[name] = [fit[name][-1], *fit[name][:-1]]
    decision["layers"] = [81 - sum(layers), *layers]
    return deployment.build(done)


def test_a_lender_on_which_nothing_is_is_not_connected_to() -> None:
    entry = idle(0, 0)
    assert entry["rpc_endpoints"] == [FIRST, SECOND] and "fallbacks" not in entry
    assert placement.served_endpoints(entry) == [] and watchdog_plan.lender_placements(entry) == []
    called = llama_server.command(entry, SETTINGS)
    assert "--rpc" not in called["arguments"] and called["local"] and called["networks"] == ["localhost"]
    assert not watchdog_plan.plan("auto", entry, [], 60).wanted


def test_an_idle_lender_at_the_end_is_as_if_it_were_not_there() -> None:
    entry = idle(17, 0)
    assert placement.served_endpoints(entry) == [FIRST] and watchdog_plan.lender_placements(entry) == [[FIRST], []]
    assert [(one["absent"], one["rpc_endpoints"]) for one in entry["fallbacks"]] == [(["192.168.1.7"], [])]
    assert [place["id"] for place in entry["fallbacks"][0]["placement"]] == ["GPU-4090"]
    without = fallbacks.serving_without(entry, [FIRST])
    assert without is not None and without["rpc_endpoints"] == []
    called = llama_server.command(entry, SETTINGS)
    assert called["lenders"] == [FIRST] and called["networks"] == ["localhost", "192.168.1.7"]
    first, second = called["placements"]
    assert first.startswith(f"--rpc {FIRST} -dev CUDA0,RPC0 -sm layer -ts 64,17 ") and "--rpc" not in second


def test_an_idle_lender_before_another_is_not_there_and_the_other_has_its_number() -> None:
    entry = idle(0, 17)
    assert placement.served_endpoints(entry) == [SECOND] and watchdog_plan.lender_placements(entry) == [[SECOND], []]
    called = llama_server.command(entry, SETTINGS)
    assert called["lenders"] == [SECOND] and called["networks"] == ["localhost", "192.168.1.8"]
    assert called["placements"][0].startswith(f"--rpc {SECOND} -dev CUDA0,RPC0 -sm layer -ts 64,17 ")
    # measured is over all of them, by the recorded names
    assert [one["device"] for one in entry["devices"]] == ["CUDA0", "RPC0", "RPC1"]


def test_the_second_device_of_an_endpoint_keeps_its_place_behind_the_first() -> None:
    ids = [FIRST, SECOND, f"{SECOND}#1"]
    devices = [{"id": one, "device": f"RPC{number}", "backend": "RPC"} for number, one in enumerate(ids)]
    places = [{"id": FIRST, "layers": 0}, {"id": SECOND, "layers": 0}, {"id": f"{SECOND}#1", "layers": 9}]
    entry = {"devices": devices[::-1], "rpc_endpoints": [FIRST, SECOND], "placement": places}
    names = placement.device_names(entry)
    assert (names[SECOND], names[f"{SECOND}#1"]) == ("RPC0", "RPC1")


def test_a_lender_of_several_devices_stays_while_one_is_used() -> None:
    for layers, kept in ((17, [SECOND]), (0, [])):
        places = [{"id": f"{SECOND}#0", "layers": layers}, {"id": f"{SECOND}#1", "layers": 0}]
        assert placement.served_endpoints({"rpc_endpoints": [SECOND], "placement": places}) == kept


def test_the_device_of_a_draft_keeps_its_lender() -> None:
    entry = {**idle(17, 0), "speculation": {"device": SECOND}}
    assert placement.served_endpoints(entry) == [FIRST, SECOND]


def test_an_idle_device_of_this_host_stays() -> None:
    own = ["127.0.0.1:50052", "127.0.0.1:50053"]
    assert placement.served_endpoints(idle(17, 0, remote=own)) == own


@pytest.mark.parametrize("rest", [False, True], ids=["as planned", "the second is idle without the first"])
def test_the_status_of_each_start_finds_its_fallback(rest: bool) -> None:
    """What the unit says of a start is looked up again by verify: whichever of the lenders answer."""
    entry = idle(17, 17)
    if rest:
        assert entry["fallbacks"][0]["absent"] == ["192.168.1.7"]
        for fallback, places, used in zip(
            entry["fallbacks"], ({SECOND: 0}, {FIRST: 17}, {}), ([], [FIRST], []), strict=True
        ):
            counts = {"GPU-4090": 81 - sum(places.values()), **places}
            fallback.update(rpc_endpoints=used, placement=[{"id": one, "layers": n} for one, n in counts.items()])
    called = llama_server.command(entry, SETTINGS)
    ways = [shlex.split(text) for text in called["placements"]]
    for absent in ([FIRST], [SECOND], [FIRST, SECOND]):
        way = choose_placement.choice(ways, absent)
        assert way is not None
        left_out = [one for one in called["lenders"] if one not in choose_placement.endpoints_of(way)]
        served = fallbacks.serving_without(entry, left_out)
        assert served is not None and llama_server._chosen_words(served) == way
        if rest and absent == [SECOND]:
            assert choose_placement.endpoints_of(way) == {FIRST}
        back = lenders.back(watchdog_plan.lender_placements(entry), left_out, left_out)
        assert back == tuple(left_out)


def test_two_cards_of_one_lender_go_together() -> None:
    entry = deployment.build(tuning(remote=["192.168.1.7:50052", "192.168.1.7:50053"]))
    assert [(one["absent"], one["rpc_endpoints"]) for one in entry["fallbacks"]] == [(["192.168.1.7"], [])]


def test_two_devices_behind_one_endpoint_go_together() -> None:
    done = tuning(remote=[FIRST, SECOND])
    for number, one in enumerate(done["problem"]["devices"][:2]):
        one["id"] = f"{FIRST}#{number}"
    entry = deployment.build({**done, "rpc_endpoints": [FIRST]})
    (found,) = entry["fallbacks"]
    assert [place["id"] for place in found["placement"]] == ["GPU-4090", "GPU-3090"]


def test_without_a_lender_nothing_is_drafted_and_the_split_mode_is_layer() -> None:
    entry = {**deployment.build(tuning(split_mode="tensor")), "speculation": {"kind": "draft"}}
    served = fallbacks.serving_without(entry, [FIRST])
    assert served is not None and served["split_mode"] == "layer" and "speculation" not in served
    assert entry["fallbacks"][0]["slower_percent"] is None


def test_the_sentence_says_since_when_how_much_slower_and_which_context() -> None:
    entry = deployment.build(tuning())
    (found,) = entry["fallbacks"]
    text = fallbacks.sentence(entry, [FIRST], "12:30", False)
    way = "slower" if found["slower_percent"] >= 0 else "faster"
    assert text == (
        f"It serves without lender 192.168.1.7 since 12:30, {abs(found['slower_percent']):g} % {way} by the fit,"
        f" with a context of {found['context_size']} instead of 32768."
    )
    assert fallbacks.sentence({**entry, "fallbacks": []}, [FIRST, SECOND], "", False) == (
        "It serves without lenders 192.168.1.7 and 192.168.1.8."
    )


def test_the_line_at_the_end_of_a_tuning() -> None:
    (fits,), (misses,) = planned(), planned(own=[("GPU-a", "CUDA0", 8000)])
    assert fallbacks.line(misses) == "Without 192.168.1.7 the server waits: no context fits on what is left."
    way = "slower" if fits["slower_percent"] >= 0 else "faster"
    speed = f" ({abs(fits['slower_percent']):g} % {way} by the fit)"
    assert fallbacks.line(fits) == f"Without{fits['why'][7:]}{speed}."


def links(*protocols: str) -> dict[str, t.Any]:
    rates = {"round_trip_ms": 0.4, "stalls_ms": 0.0, "to_mb_per_s": 117.0, "from_mb_per_s": 117.0}
    return {f"192.168.1.{7 + number}:50052": {"protocol": one, **rates} for number, one in enumerate(protocols)}


@pytest.mark.parametrize(
    ("protocols", "own"), [(("7.0.0",), "7.0"), (("7.9.1", "7.10.0"), "7.10"), (("", "8.1.0"), "8.1"), (("",), None)]
)
def test_the_protocol_of_this_build_is_recorded_and_moves_with_the_build(
    protocols: tuple[str, ...], own: str | None
) -> None:
    parts = {"llama_cpp": "b1", "driver_version": "580", "gpus": [], "extra": {}}
    done = {**tuning(network={"links": links(*protocols)}), "fingerprint_parts": parts}
    entry = deployment.build(done)
    assert entry.get("rpc_protocol") == own
    cards = {"driver_version": "581", "gpus": []}
    renewal: deployment.Renewal = {
        "build": "b1", "rpc_protocol": "9.1", "gpus": cards, "extra": {}, "device_probe": None
    }  # fmt: skip
    assert deployment.renew(entry, renewal).get("rpc_protocol") == own
    moved = deployment.renew(entry, {**renewal, "build": "b2"})
    assert moved.get("rpc_protocol") == ("9.1" if own else None)
    # a build that does not say: then any version counts
    assert "rpc_protocol" not in deployment.renew(entry, {**renewal, "build": "b2", "rpc_protocol": ""})


def test_the_unit_of_a_server_with_lenders_knows_their_protocol() -> None:
    known = filters.llama_server_command(deployment.build(tuning(network={"links": links("7.0.0")})), SETTINGS)
    assert "--protocol=7.0" in known["choose"]
    unknown = filters.llama_server_command(deployment.build(tuning()), SETTINGS)["choose"]
    assert unknown and not any("protocol" in word for word in unknown)


def test_an_entry_with_fallbacks_is_what_the_record_takes() -> None:
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record

    assert fact_record.check_entry(deployment.build(tuning()))["fallbacks"][0]["absent"] == ["192.168.1.7"]
