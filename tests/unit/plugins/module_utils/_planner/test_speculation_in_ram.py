# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculation beside experts, or FFN weights of a dense model, in RAM: what is offered, measured and served."""

from __future__ import annotations

import random
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import (
    round_costs,
    speculation_offers,
    speculation_search,
    speculation_stage,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    deployment,
    expert_placement,
    memory_plan,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.tests.bench import simulated_speculation as simulated
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

Json = dict[str, t.Any]

VOCABULARY = {
    "kind": "gpt2", "size": 1024, "sums": ["a"], "bos_token": 1, "eos_token": 2, "adds_bos": True, "adds_eos": False,
}  # fmt: skip
#: Little, and more than what full cards have left.
DRAFT = {**machine.make_model(blocks=3, expert_mib=3, dense_mib=1, experts=0), "vocabulary": VOCABULARY}
LARGE = {**machine.make_model(blocks=3, expert_mib=3, dense_mib=50, experts=0), "vocabulary": VOCABULARY}
KINDS = {"ffn": 0, "experts": 64}
#: The share of right tokens; a round costs a token, and a fifth for each drafted one.
RIGHT, DRAFTED = 0.8, 0.2


def question(
    kind: str, mode: t.Any, kinds: t.Sequence[str], draft: Json = DRAFT
) -> tuple[speculation_stage.Question, Json]:
    """Return what is asked once a placement is settled with as few blocks in RAM as fit, or a number of them."""
    model = {**machine.make_model(experts=KINDS[kind]), "vocabulary": VOCABULARY}
    # large micro-batches make larger batches than any without weights in RAM
    serving = {**machine.make_problem()["serving"], "batch_size": 512}
    raw = machine.make_problem(model=model, experts_in_ram={"mode": mode}, serving=serving)
    plan, _loads = machine.Machine(raw).drive()
    problem, splits = split_problem.read_problem(raw), [tuple(row["layers"]) for row in plan["feasible"]]
    drafts = [speculation_offers.Draft("d", "/srv/d.gguf", draft, None)]
    return speculation_stage.Question(problem, plan["decision"], splits, drafts, kinds, {"code": 1.0}), plan


def measured(load: Json, token_ms: float) -> Json:
    """Return what a load would measure that drafts well."""
    arm = load["speculation"]
    drafting, n_max = arm["kind"] != "none", arm["n_max"] or 4
    rates = [RIGHT**place for place in range(1, n_max + 1)] if drafting else []
    rounds = round(400 / (1 + sum(rates)))
    cost = token_ms * (1.1 + DRAFTED * n_max) if drafting else token_ms
    rows: list[Json] = [{
        "kind": "text", "text": "code", "tokens": 400, "decode_ms": rounds * cost, "drafted": rounds * n_max * drafting,
        "accepted": 400 - rounds, "positions": rates, "prompt_tokens": 9, "prompt_ms": 9.0,
    }, {"kind": "greedy", "tokens": [1, 2]}]  # fmt: skip
    return {**load, "status": "ok", "reason": None, "results": rows}


def driven(asked: speculation_stage.Question) -> speculation_stage.Stage:
    """Measure until nothing is left to ask."""
    loads: list[Json] = []
    token_ms = 1000 / asked.decision["decode_tokens_per_second"]
    while (load := speculation_stage.Stage(asked, loads).next_load) is not None:
        loads.append(measured(load, token_ms))
    return speculation_stage.Stage(asked, loads)


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_from_the_text_need_no_room_and_are_measured_as_they_are_served(kind: str) -> None:
    asked, _plan = question(kind, "auto", ["draft-simple", "ngram-mod"], LARGE)
    in_ram = asked.decision["experts_in_ram"]
    assert in_ram["kind"] == kind and speculation_stage.why_not(asked.decision, "request") is None
    stage = driven(asked)
    assert {load["speculation"]["kind"] for load in stage.loads} == {"none", "ngram-mod"}
    for load in stage.loads:
        assert (load["layers"], load["experts_in_ram"]) == (asked.decision["layers"], in_ram)
    # the cards are as full as can be, and nothing more goes into RAM for a draft
    (refused,) = stage.refused
    assert refused.startswith("d does not fit beside the model: it needs ") and "CUDA0 has " in refused
    outcome = stage.outcome
    assert (outcome["verdict"], outcome["served"]["kind"]) == ("faster", "ngram-mod")
    settled = speculation_stage.settled(asked.decision, outcome)
    same = ("layers", "experts_in_ram", "mib", "headroom_mib", "decode_tokens_per_second", "verdict", "why")
    assert {name: settled[name] for name in same} == {name: asked.decision[name] for name in same}


@pytest.mark.parametrize("kind", KINDS)
def test_a_draft_is_served_where_more_blocks_in_ram_leave_it_room(kind: str) -> None:
    asked, plan = question(kind, 15, ["draft-simple"])
    decision = asked.decision
    stage = driven(asked)
    served = stage.outcome["served"]
    place = [device["id"] for device in asked.problem.raw["devices"]].index(served["device"])
    size = decision["micro_batch_size"]
    serving: t.Any = {**asked.problem.memory.serving, "micro_batch_size": size, "batch_size": size}
    needed = memory_plan.MemoryPlan(DRAFT, serving).mib([4])[0]
    assert size > asked.problem.memory.serving["batch_size"]
    assert served["own_mib"][place] == needed > 0 and sum(served["own_mib"]) == needed
    assert served["headroom_mib"][place] == decision["headroom_mib"][place] - needed >= 0
    assert served["ram_bytes"] == DRAFT["token_embedding_bytes"]
    settled = speculation_stage.settled(decision, stage.outcome)
    assert settled["experts_in_ram"] == decision["experts_in_ram"]
    entry = deployment.build({
        "model": {"id": "moe", "path": "/srv/moe.gguf", "sha256": "5a"}, "problem": asked.problem.raw,
        "plan": {**plan, "decision": settled}, "loads": [], "rpc_endpoints": [], "dry_run": None, "device_probe": None,
        "probe_settings": None, "fingerprint_parts": {"tests": asked.problem.raw["tests"]}, "campaign": "c",
    })  # fmt: skip
    words = llama_server.command(entry, {
        "host": "127.0.0.1", "port": 1, "alias": "a", "cache_ram_mib": 0, "cors_origins": "x", "log_verbosity": 4,
        "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 9,
    })["arguments"]  # fmt: skip
    after = dict(zip(words, words[1:], strict=False))
    placed = expert_placement.from_json(decision["layers"], decision["experts_in_ram"])
    assert placed is not None and words.count("-ot") == 1 and "-otd" not in words
    assert after["-ot"] == expert_placement.render(placed, "llama_server")
    assert (after["-md"], after["-devd"]) == ("/srv/d.gguf", f"CUDA{place}")
    assert (after["-t"], after["-lm"], after["-ub"]) == ("8", "none", str(decision["micro_batch_size"]))


def test_verifying_is_expected_to_cost_what_the_weights_in_ram_take() -> None:
    dense, experts = (
        speculation_offers.verifying(asked.problem.memory.model, asked.decision)
        for asked, _plan in (question(kind, "auto", []) for kind in KINDS)
    )
    cards = round_costs.VERIFY
    assert cards.value < dense.value < experts.value < 1 and cards.error < dense.error
    asked, _plan = question("ffn", "auto", [])
    plain = {name: value for name, value in asked.decision.items() if name != "experts_in_ram"}
    assert speculation_offers.verifying(asked.problem.memory.model, plain) == cards
    # nothing in RAM costs a token anything: as on cards
    free = {**asked.decision, "fit": {**asked.decision["fit"], "decode_ms_per_block_in_ram": 1e-9}}
    assert speculation_offers.verifying(asked.problem.memory.model, free).value == pytest.approx(cards.value, rel=1e-3)


def test_a_drafted_token_takes_what_its_device_takes_for_its_bytes() -> None:
    asked, _plan = question("ffn", 15, ["draft-simple"])
    offers = speculation_stage.Stage(asked, []).found.offers
    read = sum(DRAFT["block_read_bytes"]) + DRAFT["output_bytes"]
    fit = asked.decision["fit"]
    assert [offer.draft_ms for offer in offers] == [
        pytest.approx(read / fit["read_bytes"] * ms) for ms in fit["decode_ms_per_device"]
    ]


@pytest.mark.parametrize(("kind", "verify"), [("ffn", (0.1, 0.8)), ("experts", (0.4, 1.0))])
def test_on_simulated_machines_with_weights_in_ram_nothing_slower_is_kept(
    kind: str, verify: tuple[float, float]
) -> None:
    regrets, held = [], []
    for seed in range(40):
        found, numbers = simulated.machine(seed), random.Random(seed)
        share = numbers.uniform(0.3, 0.95)
        dearer = share * numbers.uniform(*verify) * found.target_ms
        for family, costs in found.truth.items():
            found.truth[family] = costs._replace(check=(1 - share) * costs.check + dearer)
        prior = round_costs.Verify(
            share * speculation_offers.VERIFY_IN_RAM[kind] + (1 - share) * round_costs.VERIFY.value,
            share * speculation_offers.VERIFY_IN_RAM_ERROR + round_costs.VERIFY.error,
        )
        loads: list[t.Any] = []
        while True:
            search = speculation_search.Search(
                found.offers, found.target_ms, simulated.TEXTS, loads, simulated.INDIFFERENCE, verify=prior
            )
            arm = search.next_arm()
            if arm is None:
                break
            loads.append(found.load(arm, numbers, 192))
        regrets.append(simulated.regret_percent(found, search))
        verdict = search.verdict()
        if verdict.verdict == "faster":
            assert found.true_ms(verdict.arm) < found.target_ms
        if verdict.comparison is not None:
            true = 100 * (1 - found.true_ms(verdict.arm) / found.target_ms)
            held.append(verdict.comparison.low <= true <= verdict.comparison.high)
    assert sorted(regrets)[36] < 3 and sum(held) >= 0.9 * len(held) and len(held) > 5
