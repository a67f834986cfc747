# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Configurations side by side: what is shown follows from what was asked and from the table of cards."""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.steps import Done, Plan, Step
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import known_cards
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import model_shapes
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import configurations, planning
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import card_costs, fact_record
from ansible_collections.homelab.mixed_gpu.tests.fixtures.dry_run import record
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._planner import test_tuning
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._planner.test_tuning import ROOT

FIVE = ["rtx4090_rtx3090", "rtx3090_x2_nvlink", "rtx4090_x2", "rtx5090", "rtx3090"]


def asked(**changes: t.Any) -> dict[str, t.Any]:
    defaults = yaml.safe_load((ROOT / "roles/split_tuning/defaults/main.yml").read_text())
    own = {"deployment": "m", "probe_model_path": "/p.gguf", "profiles": FIVE, **changes}
    return {**defaults, **{f"split_tuning_{name}": value for name, value in own.items()}}


def compared(**changes: t.Any) -> dict[str, t.Any]:
    plan = planning.planner(asked(**changes)).predict([])
    assert plan.result is not None, plan
    return t.cast("dict[str, t.Any]", plan.result["comparison"])


def by_configuration(comparison: dict[str, t.Any], model: int = 0) -> dict[str, dict[str, t.Any]]:
    name = comparison["models"][model]
    return {row["configuration"]: row for row in comparison["rows"] if row["model"] == name}


def test_the_five_of_the_guide() -> None:
    comparison = compared()
    assert comparison["models"] == ["Llama 3.3 70B Instruct Q4_K_M", "Qwen2.5 Coder 32B Instruct Q4_K_M"]
    rows = by_configuration(comparison)
    assert {name for name, row in rows.items() if row["fits"]} == {"rtx4090_rtx3090", "rtx3090_x2_nvlink", "rtx4090_x2"}
    assert all(row["fits"] for row in by_configuration(comparison, 1).values())
    for row in comparison["rows"]:
        if row["fits"]:
            spans = [row["layer"]] + ([row["tensor"]] if row["tensor"] else [])
            assert all(span["low"] < span["expected"] < span["high"] for span in spans)
            assert row["speculation"]["high"] > row[row["fastest"]]["high"]
            held = sum(card["weights_mib"] for card in row["memory"])
            assert all(card["free_mib"] >= 512 for card in row["memory"] if card["layers"]) and held > 17000
    assert rows["rtx4090_rtx3090"]["layers"] == [43, 38]
    text = "\n".join(comparison["lines"])
    assert all(name in text for name in FIVE) and "does not fit" in text
    assert [line for line in comparison["lines"] if "NVLink" in line] == [
        "  rtx3090_x2_nvlink: NVLink enters no figure"
    ]
    assert set(comparison["others"]) == {
        f"{model['name']} {model['file_type']}" for model in map(model_shapes.model, model_shapes.known())
    } - set(comparison["models"])
    assert comparison["others"]["gpt-oss 120b MXFP4_MOE"]["rtx4090_rtx3090"].endswith(" with RAM")


def test_a_model_of_experts_that_does_not_fit_is_compared_with_some_of_them_in_ram() -> None:
    comparison = compared(shape="gpt_oss_120b_mxfp4", ram_gb_per_s=60)
    rows = by_configuration(comparison)
    alone, pair = rows["rtx3090"], rows["rtx4090_rtx3090"]
    assert alone["fits"] and pair["fits"] and alone["blocks_in_ram"] > pair["blocks_in_ram"] > 0
    for row in rows.values():
        assert row["tensor"] is None and row["speculation"] is None and row["fastest"] == "layer"
        assert row["layer"]["low"] < row["layer"]["expected"] < row["layer"]["high"] and row["ttft_ms"][0] > 0
        assert sum(card["layers"] for card in row["memory"]) == 37 and row["ram_mib"] > 10000
    assert alone["layer"]["expected"] < pair["layer"]["expected"]
    text = "\n".join(comparison["lines"])
    assert f"37, {alone['blocks_in_ram']:g} in RAM ({alone['ram_mib']})" in text and "RAM of 60 GB/s, as given" in text
    assert f"Experts go into RAM: up to {alone['ram_mib']} MiB of it, which no price contains." in comparison["advice"]
    never = by_configuration(compared(shape="gpt_oss_120b_mxfp4", experts_in_ram="never"))
    assert not any(row["fits"] for row in never.values())


def test_the_largest_context_of_each() -> None:
    rows = by_configuration(compared(context_size="max", profiles=["rtx4090_rtx3090", "rtx3090"]))
    assert rows["rtx4090_rtx3090"]["fits"] and not rows["rtx3090"]["fits"]
    assert "does not fit" in rows["rtx3090"]["why"]


def test_a_card_that_is_owned_costs_nothing_and_counts_where_it_is_sold() -> None:
    costs = card_costs.Costs({"rtx3090": 700, "rtx4090": "2000"}, {}, ("rtx3090",))
    assert card_costs.outlay(("rtx4090", "rtx3090"), costs) == (2000, 2000)
    assert card_costs.outlay(("rtx4090", "rtx4090"), costs) == (3300, 3300)
    assert card_costs.outlay(("rtx3090",), costs) == (0, 0)
    assert card_costs.outlay(("p40",), costs) is None
    assert card_costs.outlay(("p40", "p40"), card_costs.Costs({"p40": 200}, {}, ())) == (400, 400)


def test_prices_and_watts_that_are_given_are_taken() -> None:
    comparison = compared(prices_usd={"rtx3090": 1}, card_watts={"rtx3090": 250}, owned_cards=[])
    pair = next(each for each in comparison["configurations"] if each["name"] == "rtx3090_x2_nvlink")
    assert pair["outlay_usd"] == [2, 2] and pair["limit_watts"] == 500 and pair["watts"]["tensor"][1] == 500
    assert "  $ of rtx3090: given" in comparison["lines"]
    assert comparison["advice"][1].startswith("rtx3090_x2_nvlink costs the least for its speed: 2 $ to pay")
    assert any(sentence.startswith("What would change it: at more than") for sentence in comparison["advice"])


def test_advice_for_many_users() -> None:
    one, many = compared()["advice"], compared(users=8)["advice"]
    assert any("With 4 users at a time or more" in sentence for sentence in one)
    assert any("With 8 users at a time speculation gains nothing" in sentence for sentence in many)


def test_what_this_host_has_measured_stands_beside() -> None:
    planner = planning.planner(asked(measured_here=True))
    look = planner.predict([]).steps[0]
    assert look.module == "split_tuning_info"
    model = model_shapes.model("llama_3_3_70b_q4_k_m")
    entry = {
        "model": {key: model[key] for key in ("architecture", "block_count", "file_type")},
        "decision": {"decode_tokens_per_second": 17.25}, "split_mode": "layer",
        "devices": [{"description": "NVIDIA GeForce RTX 4090"}, {"description": "NVIDIA GeForce RTX 3090"}],
        "placement": [{"id": "a", "layers": 44}, {"id": "b", "layers": 37}],
    }  # fmt: skip
    recorded = {**fact_record.empty(), "models": {"m": entry}}
    plan: Plan = planner.predict([Done(look, {"record": recorded}, "2026-11-29T00:00:00Z")])
    assert plan.result is not None
    assert [each["layers"] for each in plan.result["comparison"]["measured"]] == [[44, 37]]
    shown = next(line for line in plan.result["lines"] if "measured here" in line)
    assert "44/37" in shown and "17.2" in shown


def test_a_quant_of_a_repository_is_compared() -> None:
    planner = planning.planner(asked(repo="owner/name", quant="Q4_K_M", profiles=["rtx3090", "rtx3060_x2"]))
    step = planner.predict([]).steps[0]
    assert step.module == "hub_models_info" and step.args["quant"] == "Q4_K_M"
    model = model_shapes.model("qwen3_5_27b_q4_k_m")
    told = {"quant": "Q4_K_M", "files": ["m.gguf"], "size_bytes": 1, "model": model, "problem": None}
    plan = planner.predict([Done(step, {"models": [told], "read_bytes": 9}, "2026-11-29T00:00:00Z")])
    assert plan.result is not None and plan.result["comparison"]["models"] == ["Qwen3.5 27B Q4_K_M"]
    plan = planner.predict([Done(step, {"models": [told, {**told, "quant": "Q8_0"}]}, "2026-11-29T00:00:00Z")])
    assert plan.failure == "owner/name has Q4_K_M, Q8_0: name one with -e quant=NAME."
    broken = {**told, "model": None, "problem": "m.gguf is no GGUF file."}
    plan = planner.predict([Done(step, {"models": [broken]}, "2026-11-29T00:00:00Z")])
    assert plan.failure == "No prediction for Q4_K_M of owner/name: m.gguf is no GGUF file."


def test_without_cards_and_model_a_plan_says_what_to_give() -> None:
    given = asked(profiles=[])
    assert "give -e model_repo=OWNER/NAME" in str(planning.planner(given).predict([]).failure)
    assert planning.planner({**given, "split_tuning_model_path": "/m.gguf"}).predict([]).steps
    assert planning.planner({**given, "split_tuning_repo": "owner/name"}).predict([]).steps


@pytest.mark.parametrize("engine", ["llama_cpp", "vllm_ray"])
def test_a_file_that_is_not_there_is_said(engine: str) -> None:
    given = asked(model_path="/wrong.gguf", start_engine=engine, profile="rtx3090_x2")
    planner = planning.planner(given)
    step = planner.predict([]).steps[0]
    answer = {"available": False, "reason": "/wrong.gguf does not exist."}
    plan = planner.predict([Done(step, answer, "2026-11-29T00:00:00Z")])
    assert plan.failure == "No prediction: /wrong.gguf does not exist."


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"profiles": ["rtx4090_voodoo2"]}, "there is no hardware profile 'rtx4090_voodoo2'; known are"),
        ({"profiles": ["rtx4090_x2_nvlink"]}, "cannot have nvlink: it joins two cards of rtx3090"),
        ({"prices_usd": {"rtx9090": 1}}, "a price is given for 'rtx9090', which is no card of the table"),
        ({"card_watts": {"rtx3090": "much"}}, "the power limit of rtx3090 is 'much': it must be a number"),
        ({"owned_cards": ["mine"]}, "an owned card is given for 'mine'"),
        ({"shape": "llama_9"}, "there is no model shape 'llama_9'"),
        (
            {"lent": ["rtx3060@1gbe"], "profiles": [], "profile": "rtx4090"},
            "mixed_gpu_lent is rtx3060@1gbe, which adds to the cards of a host, and mixed_gpu_profile names all cards"
            " of the plan: take it out, or write lent cards behind a plus in a profile (+rtx3060@1gbe)",
        ),
        ({"lent": ["rtx3060@1gbe"]}, "and mixed_gpu_profiles names all cards of the plan"),
        ({"lent": ["rtx3060@1gbe"], "profiles": [], "nodes": [{"address": "10.0.0.1"}]}, "and mixed_gpu_nodes names"),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, t.Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        planning.planner(asked(**changes)).predict([])
    assert words in str(caught.value)


def test_any_cards_can_be_put_together() -> None:
    question = {
        "serving": record.BASE, "reserve_mib": 512,
        "objective": {"name": "request", "prompt_tokens": 1024, "generated_tokens": 256, "depth_tokens": 0},
        "bench": {"prompt_tokens": 1024, "generated_tokens": 64, "repetitions": 1},
    }  # fmt: skip
    model = t.cast(t.Any, model_shapes.model("llama_3_1_8b_q4_k_m"))
    for found in card_costs.read([f"{card}_rtx3060" for card in known_cards.CARDS]):
        assert configurations.serves(found, model, question)["fits"]


def test_cards_of_another_host_are_told_that_experts_in_ram_know_no_network() -> None:
    sentence = "Where weights are in RAM, the network to other hosts is in no speed."
    assert sentence in compared(profiles=["rtx4090", "rtx4090+rtx3090@1gbe"])["lines"]
    assert sentence not in compared(profiles=["rtx4090", "rtx4090_rtx3090"])["lines"]


@pytest.mark.parametrize("more", [{"profiles": []}, {"profiles": [], "repo": "owner/name"}])
def test_a_budget_of_a_card_that_a_plan_has_not_is_refused(more: dict[str, t.Any]) -> None:
    model = t.cast("dict[str, t.Any]", model_shapes.model("llama_3_1_8b_q4_k_m"))
    found = {"quant": "Q4_K_M", "files": 1, "size_bytes": model["size_bytes"], "problem": "", "model": model}
    step = Step("models of the repository", "hub_models_info", {}, "")
    done = [Done(step, {"models": [found], "read_bytes": 1, "commit": "c"}, "")]

    def plan(budgets: dict[t.Any, int]) -> Plan:
        own = {"profile": "rtx4090_rtx3090", "shape": "llama_3_1_8b_q4_k_m", "device_budget_mib": budgets, **more}
        return planning.planner(asked(**own)).predict(done)

    counted = plan({"CUDA1": 20000})
    assert counted.result is not None
    # those of the host's own cards and lenders, which its inventory has
    assert plan({"CUDA1": 20000, "GPU-1": 9000, "10.0.0.2:50052": 9000}).result == counted.result
    for strange in ("CUDA9", 0):
        with pytest.raises(UserError, match=f"names {strange}, which is none of the devices here: CUDA0, CUDA1$"):
            plan({"CUDA1": 20000, strange: 20000})


def test_quants_are_told_of_by_what_this_host_has_measured() -> None:
    host = test_tuning.Host()
    host.keep(host.tune())
    models = [
        {"quant": quant, "files": 1, "size_bytes": 1, "problem": "", "model": {**test_tuning.MODEL, **own}}
        for quant, own in (("Q8_0", {"path": "Tuned-Q8_0.gguf"}), ("Q4_0", {"file_type": "Q4_0"}))
    ]
    done = [
        Done(Step("look", "split_tuning_info", {}, ""), host.split_tuning_info(t.cast(t.Any, None)), ""),
        Done(Step("models of the repository", "hub_models_info", {}, ""),
             {"models": models, "read_bytes": 1, "commit": "c"}, ""),
    ]  # fmt: skip
    own = {**test_tuning.variables(objective="decode"), **{
        f"split_tuning_{name}": value
        for name, value in {"predict_only": True, "profiles": [], "repo": "owner/name", "model_path": ""}.items()
    }}  # fmt: skip
    plan = planning.planner({**asked(), **own}).predict(done)
    assert plan.result is not None, plan
    rows = {row["quant"]: row for row in plan.result["quants"]}
    assert (rows["Q8_0"]["measured_by"], rows["Q4_0"]["measured_by"]) == ("m-c2048", None)
    low, high = rows["Q8_0"]["decode_interval"]
    assert low < 1000 / (0.5 * rows["Q8_0"]["layers"][0] + 0.9 * rows["Q8_0"]["layers"][1]) < high
    assert rows["Q4_0"]["decode_interval"] is None
    assert "  Q8_0: speeds are intervals of 95 %, by what m-c2048 measured here" in plan.result["lines"]


def test_a_comparison_says_that_budgets_do_not_count() -> None:
    for budgets in ({}, {"CUDA0": 20000}):
        plan = planning.planner(asked(device_budget_mib=budgets)).predict([])
        assert plan.result is not None
        assert plan.result["lines"][-1].startswith("split_tuning_device_budget_mib does not count") == bool(budgets)


@pytest.mark.parametrize(
    ("name", "value"),
    [("prompt_tokens", 2**70), ("context_size", 2**31), ("depth", -1), ("micro_batches", [0]), ("reserve_mib", 2**40),
     ("users", 0), ("parallel_slots", 257), ("ram_gb_per_s", 2**30), ("bench_repetitions", 10**400)],
)  # fmt: skip
def test_a_plan_refuses_a_number_that_cannot_be(name: str, value: t.Any) -> None:
    of = "mixed_gpu_users" if name == "users" else f"split_tuning_{name}"
    with pytest.raises(ValueError, match=f"{of} must be at (least|most) "):
        planning.planner(asked(**{name: value}))
