# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculation within a whole tuning; a simulated host answers."""

from __future__ import annotations

import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server, served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import speculation_search, tuning
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner.speculation_offers import Draft, Found, Offers
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import words
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    deployment,
    memory_plan,
    speculation,
    split_problem,
)
from ansible_collections.homelab.mixed_gpu.plugins.modules import gguf_info

from .test_tuning import BLOCKS, FREE_MIB, MODEL, Host, Json, recorded, variables

VOCABULARY = {
    "kind": "gpt2", "size": 2048, "sums": ["a", "b"], "bos_token": 1, "eos_token": 2, "adds_bos": True,
    "adds_eos": False,
}  # fmt: skip
DRAFT_BLOCKS = 4
DRAFT: Json = {
    **MODEL, "path": "/srv/d.gguf", "name": "d", "block_count": DRAFT_BLOCKS, "block_bytes": [2**20] * DRAFT_BLOCKS,
    "block_read_bytes": [2**20] * DRAFT_BLOCKS, "block_weights": [2**20] * DRAFT_BLOCKS, "embedding_length": 128,
    "feed_forward_length": 256, "kv_k_elements_per_token": [64] * DRAFT_BLOCKS,
    "kv_v_elements_per_token": [64] * DRAFT_BLOCKS, "vocabulary": VOCABULARY,
}  # fmt: skip
DRAFTS = {"d": {"path": "/srv/d.gguf", "sha256": "d" * 64, "draft_for": "m"}}
#: Probability that a drafted token is right, by kind of text.
ACCEPTANCE = {"code": 0.9, "prose": 0.5, "chat": 0.7, "edit": 0.95}
SETTINGS = {"speculation": ["draft-simple"], "drafts": DRAFTS, "speculation_tokens": 101}


def rounds_of(tokens: int, right: float, n_max: int) -> int:
    return max(1, round(tokens / (1 + sum(right**place for place in range(1, n_max + 1)))))


def relative_time(n_max: int) -> float:
    """What a token takes with the draft on the first card, relative to none with the same split; each text alike."""
    rounds = sum(0.2 * rounds_of(100, right, n_max) for right in (*ACCEPTANCE.values(), ACCEPTANCE["code"])) / 100
    return rounds * (1.15 + 0.1 * n_max)


class SpeculatingHost(Host):
    """A host with a draft: a round costs a token of the target, and some for each drafted one."""

    draft: Json = DRAFT
    target: Json = {**MODEL, "vocabulary": VOCABULARY}
    #: What a drafted token costs, relative to one of the target, by device; how a load with a kind ends.
    cost: dict[str, float] = {"GPU-1": 0.1, "GPU-2": 0.3, "": 0.0}
    ends: dict[str, tuple[str, str]] = {}
    acceptance = ACCEPTANCE
    greedy: dict[str, list[int]] = {}
    #: What a round costs beyond a token and what is drafted, relative to a token, by split mode.
    overhead: dict[str, float] = {"layer": 0.15, "tensor": 0.15}
    trial_ends = "ok"

    def split_mode_trial(self, step: steps.Step) -> Json:
        found = super().split_mode_trial(step)
        reason = None if self.trial_ends == "ok" else "its answers differ"
        return {**found, "load": {**found["load"], "status": self.trial_ends, "reason": reason}}

    def gguf_info(self, step: steps.Step) -> Json:
        assert set(step.args) <= set(yaml.safe_load(gguf_info.DOCUMENTATION)["options"])
        path = step.args["path"]
        known = {"/srv/d.gguf": self.draft, "/srv/m.gguf": self.target}
        return {**super().gguf_info(step), "model": known[path]} if path in known else super().gguf_info(step)

    def llama_fit_params_info(self, step: steps.Step) -> Json:
        if step.args["model_path"] == "/srv/d.gguf":
            assert step.args["layers"] == [DRAFT_BLOCKS + 1, 0]
            return {"available": True, "reason": None, "dry_run": {"mib": [14, 0], "difference_mib": None}}
        return super().llama_fit_params_info(step)

    def speculation_benchmark(self, step: steps.Step) -> Json:
        load, args = step.args["load"], step.args
        arm = load["speculation"]
        status, reason = self.ends.get(arm["kind"], ("ok", None))
        ms = sum(cost * count for cost, count in zip((0.5, 0.9), load["layers"], strict=True))
        ms, overhead = self.tensor_ms if load["split_mode"] == "tensor" else ms, self.overhead[load["split_mode"]]
        tokens, rows = args["generated_tokens"] - 1, []
        for name in dict.fromkeys(text["name"] for text in args["texts"]):
            right = self.acceptance[name] if arm["kind"] != "none" else 0.0
            rates = [right**place for place in range(1, arm["n_max"] + 1)]
            rounds = rounds_of(tokens, right, arm["n_max"])
            rows.append({
                "kind": "text", "text": name, "tokens": tokens,
                "decode_ms": rounds * ms * (1 + overhead * bool(rates) + self.cost[arm["device"]] * arm["n_max"]),
                "prompt_tokens": 30, "prompt_ms": 10.0, "drafted": rounds * arm["n_max"], "accepted": tokens - rounds,
                "positions": rates,
            })  # fmt: skip
        if arm["kind"] in speculation.LINE_KINDS:
            rows += self.short_rows(ms, overhead, arm)
        rows.append({"kind": "prompt", "prompt_tokens": args["prompt_tokens"], "prompt_ms": 100.0})
        rows.append({"kind": "greedy", "tokens": self.greedy.get(arm["kind"], [5, 6, 7, 8])})
        return {"changed": True, "load": {
            **load, "status": status, "reason": reason, "results": rows if status == "ok" else [],
            "fingerprint": args["fingerprint"], "campaign": args["campaign"], "wall_ms": 5000, "reused": False,
        }}  # fmt: skip

    def short_rows(self, ms: float, overhead: float, arm: Json) -> list[Json]:
        """What drafting takes, and answers whose first round ends them."""
        return [
            {"kind": "drafting", "drafts": 10, "drafted": 10 * arm["n_max"],
             "draft_ms": 5 * arm["n_max"] * ms * self.cost[arm["device"]]},
            *(
                {"kind": "short", "length": length, "rounds": 6, "drafts": 6 * bool(length), "drafted": 6 * length,
                 "decode_ms": 6 * ms * (1 + overhead + self.cost[arm["device"]] * length)}
                for length in served_texts.short_lengths(arm["n_max"])
            ),
        ]  # fmt: skip

    @property
    def arms(self) -> list[Json]:
        return [i.step.args["load"] for i in self.done if i.step.module == "speculation_benchmark"]


@pytest.fixture
def host() -> SpeculatingHost:
    return SpeculatingHost()


def test_a_draft_that_is_faster_is_recorded_and_served(host: SpeculatingHost) -> None:
    plan = host.tune(**SETTINGS)
    entry = recorded(plan)
    found, served = entry["decision"]["speculation"], entry["speculation"]
    assert found["verdict"] == "faster"
    assert (served["kind"], served["draft"], served["path"], served["device"]) == (
        "draft-simple", "d", "/srv/d.gguf", "GPU-1"
    )  # fmt: skip
    assert relative_time(served["n_max"]) <= 1.03 * min(map(relative_time, range(1, 8)))
    # at most five loads, the first without, and the last unless the gain is sure before, each key once
    kinds = [arm["speculation"]["kind"] for arm in host.arms]
    sure = found["interval_percent"][0] > speculation_search.SURE_PERCENT
    assert len(kinds) <= 5 and kinds[0] == "none" and (sure or kinds[-1] == "none") and kinds.count("none") <= 2
    assert len({(arm["label"], arm["load"]) for arm in host.arms}) == len(kinds)
    # what the dry run said of the draft is counted on its device
    assert found["served"]["own_mib"] == [14, 0]
    assert entry["decision"]["mib"] == found["served"]["mib"]
    assert min(entry["decision"]["headroom_mib"]) >= 0
    words = llama_server.command(entry, {
        "host": "127.0.0.1", "port": 1, "alias": "a", "cache_ram_mib": 0, "cors_origins": "x", "log_verbosity": 4,
        "extra_arguments": [], "allowed_networks": [], "load_timeout_seconds": 9,
    })["arguments"]  # fmt: skip
    after = dict(zip(words, words[1:], strict=False))
    assert (after["-md"], after["-devd"], after["--spec-type"]) == ("/srv/d.gguf", "CUDA0", "draft-simple")
    assert after["--spec-draft-n-max"] == str(served["n_max"])
    assert plan.result is not None and plan.result["lines"][-1] == found["why"]
    assert found["why"].startswith("draft-simple d on CUDA0 n-max") and "less time" in found["why"]


def test_other_contexts_leave_the_draft_its_memory(host: SpeculatingHost) -> None:
    entry = recorded(host.tune(**SETTINGS))
    contexts, own = entry["decision"]["contexts"], entry["decision"]["speculation"]["served"]["own_mib"]
    fitting = [row for row in contexts["rows"] if row["layers"]]
    assert fitting and sum(own) > 0
    for row in fitting:
        types = {name: row[name] for name in ("context_size", "cache_type_k", "cache_type_v")}
        held = memory_plan.MemoryPlan(MODEL, {**entry["serving"], **types}).mib(row["layers"])
        whole = [sum(parts) for parts in zip(held, own, row["left_mib"], strict=True)]
        assert whole == [FREE_MIB, FREE_MIB] and min(row["left_mib"]) >= 0
    assert f"drafting has its {sum(own)} MiB, and its cache grows with the context" in contexts["source"]


def test_the_first_token_that_differs_is_told(host: SpeculatingHost) -> None:
    assert recorded(host.tune(**SETTINGS))["decision"]["speculation"]["first_divergence"] is None
    host.greedy = {"draft-simple": [5, 6, 9, 8]}
    found = recorded(host.tune(**SETTINGS))["decision"]["speculation"]
    assert (found["verdict"], found["first_divergence"]) == ("faster", 2)


def test_each_kind_of_text_is_told_and_one_that_loses_is_named(host: SpeculatingHost) -> None:
    host.acceptance = {**ACCEPTANCE, "prose": 0.05}
    found = recorded(host.tune(**SETTINGS))["decision"]["speculation"]
    row = next(row for row in found["table"] if speculation.from_json(row) == speculation.from_json(found["served"]))
    assert set(row["tokens_per_second"]) == set(row["acceptance"]) == set(ACCEPTANCE)
    assert row["tokens_per_round"]["edit"] > row["tokens_per_round"]["code"] > row["tokens_per_round"]["chat"]
    assert "it loses on prose" in found["why"]


def test_a_length_without_a_load_of_its_own_is_told_by_longer_drafts(host: SpeculatingHost) -> None:
    """One device has room, and the first load drafts more tokens than are best: that load tells of fewer as well."""
    host.cost = {"GPU-1": 0.3, "GPU-2": 5.0, "": 0.0}
    host.acceptance = dict.fromkeys(ACCEPTANCE, 0.75)
    host.greedy = {"draft-simple": [5, 6, 7, 9]}
    with pytest.MonkeyPatch.context() as patch:
        # as many loads as it takes to try, no second one of the best, and none of other lengths in place of the last
        patch.setattr(speculation_search, "MAX_LOADS", 3)
        patch.setattr(speculation_search, "SURE_PERCENT", 100.0)
        found = recorded(host.tune(**SETTINGS))["decision"]["speculation"]
    assert [arm["speculation"]["n_max"] > 0 for arm in host.arms] == [False, True, False]
    (tried,) = [arm["speculation"]["n_max"] for arm in host.arms if arm["speculation"]["n_max"]]
    assert found["verdict"] == "faster" and found["served"]["n_max"] < tried and found["first_divergence"] == 3
    own = next(row for row in found["table"] if row["n_max"] == found["served"]["n_max"])
    assert (own["loads"], own["status"], own["name"]) == (0, "ok", f"draft-simple d on CUDA0 n-max {own['n_max']}")
    plain = found["table"][0]
    for text, right in host.acceptance.items():
        rate = sum(right**place for place in range(1, own["n_max"] + 1)) / own["n_max"]
        assert own["acceptance"][text] == pytest.approx(rate, abs=0.01)
        assert own["tokens_per_round"][text] == pytest.approx(1 + rate * own["n_max"], abs=0.05)
        faster = own["tokens_per_second"][text] / plain["tokens_per_second"][text]
        assert faster == pytest.approx((1 + rate * own["n_max"]) / (1.15 + 0.3 * own["n_max"]), rel=0.05)
    assert found["why"].startswith(f"{own['name']} takes ")


def test_a_draft_that_is_slower_is_not_kept(host: SpeculatingHost) -> None:
    host.acceptance = dict.fromkeys(ACCEPTANCE, 0.05)
    entry = recorded(host.tune(**SETTINGS))
    assert "speculation" not in entry
    assert entry["decision"]["speculation"]["verdict"] in ("slower", "inconclusive")
    assert entry["decision"]["speculation"]["served"] is None
    assert "not faster here: the best, draft-simple d on CUDA" in entry["decision"]["speculation"]["why"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vocabulary": {**VOCABULARY, "sums": ["a", "x"]}},
         "d cannot draft for this model: its tokens from 1024 on are other words than those of the target"),
        ({"vocabulary": {**VOCABULARY, "kind": "llama"}}, "its tokenizer is llama, and that of the target gpt2"),
        ({"vocabulary": {**VOCABULARY, "bos_token": 7}}, "its bos token is 7, and that of the target 1"),
        ({"vocabulary": {**VOCABULARY, "size": 5000}},
         "its vocabulary has 5000 tokens, and that of the target 2048"),
        ({"block_bytes": [300 * 2**20] * DRAFT_BLOCKS}, "d does not fit beside the model: it needs 1"),
    ],
)  # fmt: skip
def test_a_draft_that_cannot_be_costs_no_load_and_is_explained(host: SpeculatingHost, change: Json, words: str) -> None:
    host.draft = {**DRAFT, **change}
    plan = host.tune(**SETTINGS)
    assert plan.result is not None
    assert not host.arms and words in plan.result["lines"][-1]
    assert recorded(plan)["decision"]["speculation"]["verdict"] == "not_tried"


def test_a_build_that_knows_no_speculation_ends_in_one_sentence(host: SpeculatingHost) -> None:
    said = "llama.cpp ended with exit status 1: error: invalid argument: --spec-type"
    host.ends = {"draft-simple": ("refused", said)}
    plan = host.tune(**SETTINGS)
    assert plan.result is not None and "speculation" not in recorded(plan)
    assert "update llama.cpp to b11312 or later" in plan.result["lines"][-1]
    assert len(host.arms) <= 5


def test_a_server_without_speculation_that_fails_ends_the_stage(host: SpeculatingHost) -> None:
    host.ends = {"none": ("crashed", "signal 11")}
    plan = host.tune(**SETTINGS)
    assert plan.result is not None and len(host.arms) == 1
    assert plan.result["lines"][-1].startswith("speculation was not tried: ")
    assert "ended as crashed (signal 11)" in plan.result["lines"][-1]


def test_a_failed_device_leaves_the_other_one(host: SpeculatingHost) -> None:
    def crash(step: steps.Step) -> Json:
        result = SpeculatingHost.speculation_benchmark(host, step)
        if step.args["load"]["speculation"]["device"] == "GPU-1":
            result["load"].update(status="out_of_memory", reason="no room", results=[])
        return result

    host.speculation_benchmark = crash  # type: ignore[method-assign]
    found = recorded(host.tune(**SETTINGS))["decision"]["speculation"]
    assert (found["verdict"], found["served"]["device"]) == ("faster", "GPU-2")
    assert "ended as out_of_memory" in found["why"]


def test_a_head_that_has_nothing_to_read_costs_one_load_and_is_refused_in_a_sentence(host: SpeculatingHost) -> None:
    """llama.cpp b11312 aborts with this where the architecture of the model hands out no inputs of its blocks."""
    host.draft = {**DRAFT, "architecture": "eagle3"}
    aborted = 'GGML_ASSERT(t_layer_inp[il] != nullptr && "layer input tensor is null") failed'
    host.ends = {"draft-eagle3": ("crashed", f"llama.cpp was ended by SIGABRT ({aborted})")}
    plan = host.tune(**{**SETTINGS, "speculation": ["draft-eagle3"]})
    assert plan.result is not None and [arm["speculation"]["kind"] for arm in host.arms] == ["none", "draft-eagle3"]
    assert plan.result["lines"][-1].startswith(
        "speculation was not tried: d cannot draft for this model: llama.cpp gives an EAGLE-3 head nothing to read in"
        " the architecture llama, so take a small model as draft"
    )


def test_mtp_blocks_of_the_model_are_offered_on_the_last_card(host: SpeculatingHost) -> None:
    host.target = {
        **MODEL, "vocabulary": VOCABULARY, "nextn_blocks": 1, "nextn_bytes": 5 * 2**20, "nextn_kv_elements": 128
    }  # fmt: skip
    entry = recorded(host.tune(speculation=["draft-mtp"], drafts={}))
    served = entry["speculation"]
    assert (served["kind"], served["path"], served["device"]) == ("draft-mtp", "", "GPU-2")
    own = entry["decision"]["speculation"]["served"]["own_mib"]
    assert own[0] == 0 and own[1] > 5
    words = llama_server.speculation_flags.arguments(entry)
    assert words[:2] == ["--spec-type", "draft-mtp"] and "-md" not in words and "-devd" not in words


def test_a_model_without_mtp_blocks_is_told(host: SpeculatingHost) -> None:
    plan = host.tune(speculation=["draft-mtp"], drafts={})
    assert plan.result is not None
    assert plan.result["lines"][-1] == (
        "speculation was not tried: the model has no MTP blocks: take a file that was converted with them"
    )


def test_n_gram_drafts_take_no_memory_and_are_measured_once_before_they_win(host: SpeculatingHost) -> None:
    def measured(step: steps.Step) -> Json:
        result = SpeculatingHost.speculation_benchmark(host, step)
        if step.args["load"]["speculation"]["kind"] == "ngram-mod":
            for row in result["load"]["results"]:
                if row["kind"] == "text":
                    row.update(decode_ms=row["decode_ms"] * 0.7, drafted=90, accepted=40, positions=[])
        return result

    host.speculation_benchmark = measured  # type: ignore[method-assign]
    entry = recorded(host.tune(speculation=["ngram-mod"], drafts={}))
    assert entry["speculation"] == {"kind": "ngram-mod", "draft": "", "device": "", "n_max": 0}
    assert entry["decision"]["speculation"]["served"]["own_mib"] == [0, 0]
    assert llama_server.speculation_flags.arguments(entry) == ["--spec-type", "ngram-mod"]


def test_the_split_moves_where_the_draft_needs_its_room(host: SpeculatingHost) -> None:
    without = recorded(host.tune(speculation="none"))
    layers = [place["layers"] for place in without["placement"]]
    needed = without["decision"]["headroom_mib"][0] + 20
    host.draft = {**DRAFT, "block_bytes": [needed * 2**20 // DRAFT_BLOCKS] * DRAFT_BLOCKS}
    entry = recorded(host.tune(**SETTINGS))
    on_first = [arm for arm in host.arms if arm["speculation"]["device"] == "GPU-1"]
    assert on_first and all(arm["layers"][0] < layers[0] for arm in on_first)
    assert all(arm["layers"] == layers for arm in host.arms if arm not in on_first)
    served = entry["decision"]["speculation"]["served"]
    assert served is not None and [place["layers"] for place in entry["placement"]] == served["layers"]
    assert min(entry["decision"]["headroom_mib"]) >= 0
    assert entry["decision"]["mib"] == served["mib"]
    # what was said of splits is not said of another one
    decision = entry["decision"]
    assert decision["verdict"] == "inconclusive" and decision["best_by_objective"] == {}
    assert decision["gain_over_default_percent"] is None and decision["gain_interval_percent"] is None
    assert "leaves the draft its room. Without a draft: " in decision["why"]
    said = words.gain_words({"decision": {**decision, "layers": served["layers"]}})
    assert said.startswith("It was not compared with llama.cpp's default split")


def without_drafts(host: SpeculatingHost) -> Json:
    """Return a tuning without drafts."""
    plan = host.tune(speculation="none")
    assert plan.result is not None
    return t.cast(Json, plan.result["tuning"])


def moved(host: SpeculatingHost, splits: t.Sequence[tuple[int, ...]] = ()) -> Found:
    """Return the offers beside the decision of a tuning, for a draft that only another split leaves room for."""
    tuning_done = without_drafts(host)
    problem, plan = split_problem.read_problem(tuning_done["problem"]), tuning_done["plan"]
    decision = plan["decision"]
    draft = Draft("d", "/srv/d.gguf", DRAFT, decision["headroom_mib"][0] + 20)
    splits = splits or [tuple(row["layers"]) for row in plan["feasible"]]
    return Offers(problem, decision, splits, [draft], ["draft-simple"]).find()


def test_a_split_that_is_out_is_not_moved_to(host: SpeculatingHost) -> None:
    first = next(offer for offer in moved(host).offers if offer.device == "GPU-1")
    left = [split for split in ((count, BLOCKS + 1 - count) for count in range(1, BLOCKS)) if split != first.layers]
    assert next(offer for offer in moved(host, left).offers if offer.device == "GPU-1").layers != first.layers
    assert not [offer for offer in moved(host, [(BLOCKS, 1)]).offers if offer.device == "GPU-1"]


def test_another_split_has_the_memory_of_the_decided_micro_batch(
    host: SpeculatingHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    def smaller_is_faster(step: steps.Step) -> Json:
        result = SpeculatingHost.split_benchmark(host, step)
        for row in result["load"]["results"]:
            if row.get("micro_batch_size") == 256:
                row["samples_ms"] = [ms / 2 for ms in row["samples_ms"]]
        return result

    monkeypatch.setattr(host, "split_benchmark", smaller_is_faster)
    asked = {"objective": "request", "prompt_tokens": 1000, "generated_tokens": 100, "micro_batches": [256]}
    room = recorded(host.tune(**asked, speculation="none"))["decision"]["headroom_mib"][0]
    host.draft = {**DRAFT, "block_bytes": [(room + 20) * 2**20 // DRAFT_BLOCKS] * DRAFT_BLOCKS}
    entry = recorded(host.tune(**asked, **SETTINGS))
    assert entry["serving"]["micro_batch_size"] == 256
    served = entry["decision"]["speculation"]["served"]
    held = memory_plan.MemoryPlan(MODEL, entry["serving"]).mib(served["layers"])
    assert served["mib"] == [mib + own for mib, own in zip(held, served["own_mib"], strict=True)]


def offered(host: SpeculatingHost, kind: str, **changes: t.Any) -> Found:
    """Return what is offered of a kind for a model with a recurrent state of 20 MiB in its first blocks."""
    host.target = {
        **MODEL, "vocabulary": VOCABULARY, "nextn_blocks": 1, "nextn_bytes": 2**20, "nextn_kv_elements": 128,
        "block_sequence_bytes": [2**20] * 20 + [0] * (BLOCKS - 20),
    }  # fmt: skip
    done = without_drafts(host)
    problem, decision = split_problem.read_problem(done["problem"]), {**done["plan"]["decision"], **changes}
    draft = Draft("d", "/srv/d.gguf", host.draft, None)
    return Offers(problem, decision, [decision["layers"]], [draft], [kind]).find()


def test_mtp_blocks_do_not_move_to_another_device(host: SpeculatingHost) -> None:
    """One device alone would hold the output layer, and with it the blocks."""
    host.target = {**MODEL, "nextn_blocks": 1, "nextn_bytes": 2**20, "nextn_kv_elements": 128}
    done = without_drafts(host)
    roomy = [{**device, "free_mib": 2000} for device in done["problem"]["devices"]]
    problem = split_problem.read_problem({**done["problem"], "devices": roomy})
    decision = {**done["plan"]["decision"], "headroom_mib": [0, 0]}
    for splits, found in (([(BLOCKS + 1, 0)], []), ([(BLOCKS + 1, 0), (20, 13)], [(20, 13)])):
        offers = Offers(problem, decision, splits, [], ["draft-mtp"]).find().offers
        assert [offer.layers for offer in offers] == found


def test_tensor_mode_shares_a_recurrent_state(host: SpeculatingHost) -> None:
    found = offered(host, "draft-mtp", split_mode="tensor", layers=[6, 2], headroom_mib=[200, 200])
    (offer,) = found.offers
    own = found.mib[offer.kind, "", "GPU-2", ""]
    blocks = own[1] - 4 * 5
    assert offer.most_drafted == 4 and blocks > 0 and own[0] == blocks + 4 * 15


def test_in_tensor_mode_blocks_for_drafting_need_room_on_every_device(host: SpeculatingHost) -> None:
    found = offered(host, "draft-mtp", split_mode="tensor", layers=[6, 2], headroom_mib=[3, 200])
    assert not found.offers
    (reason,) = found.refused
    assert reason.startswith("the model's own MTP blocks do not fit: they need ") and reason.endswith(" 3 MiB left")


@pytest.mark.parametrize("kind", ["draft-simple", "ngram-mod"])
def test_a_kind_with_a_checkpoint_in_ram_keeps_no_state_on_devices(host: SpeculatingHost, kind: str) -> None:
    found = offered(host, kind, headroom_mib=[15, 15])
    assert found.offers and all(offer.most_drafted in (0, 7) for offer in found.offers)
    assert all(sum(own) < 20 for own in found.mib.values())


def test_an_objective_that_waits_for_no_text_tries_nothing(host: SpeculatingHost) -> None:
    plan = host.tune(**SETTINGS, objective="ttft")
    assert plan.result is not None and not host.arms
    assert plan.result["lines"][-1] == (
        "speculation was not tried: the objective ttft does not wait for generated text"
    )


def test_a_request_counts_the_prompt_as_well(host: SpeculatingHost) -> None:
    """A way to speculate that makes prompts much slower loses a request of mostly prompt."""

    def slow_prompts(step: steps.Step) -> Json:
        result = SpeculatingHost.speculation_benchmark(host, step)
        if step.args["load"]["speculation"]["kind"] != "none":
            result["load"]["results"][-2]["prompt_ms"] *= 500
        return result

    host.speculation_benchmark = slow_prompts  # type: ignore[method-assign]
    asked = {"objective": "request", "prompt_tokens": 1000, "generated_tokens": 100, "micro_batches": []}
    entry = recorded(host.tune(**SETTINGS, **asked))
    assert "speculation" not in entry
    host.speculation_benchmark = lambda step: SpeculatingHost.speculation_benchmark(  # type: ignore[method-assign]
        host, step
    )
    assert "speculation" in recorded(host.tune(**SETTINGS, **asked))


@pytest.mark.parametrize(("unified", "tokens"), [(True, 2048 - 101 - 8), (False, 1024 - 101 - 8)])
def test_the_long_prompt_is_as_long_as_a_slot_sees(host: SpeculatingHost, unified: bool, tokens: int) -> None:
    asked = {"parallel_slots": 2, "kv_unified": unified, "objective": "decode", "prompt_tokens": 4096}
    assert host.tune(**SETTINGS, **asked).result is not None
    loads = [item.step for item in host.done if item.step.module == "speculation_benchmark"]
    assert loads and {step.args["prompt_tokens"] for step in loads} == {tokens}


def test_another_draft_or_text_measures_again(host: SpeculatingHost) -> None:
    host.keep(host.tune(**SETTINGS))
    assert host.modules and not host.tune(**SETTINGS).steps and host.modules == ["split_tuning_info"]
    changed = {"d": {**DRAFTS["d"], "sha256": "e" * 64}}
    plan = host.tune(**{**SETTINGS, "drafts": changed})
    assert plan.result is not None and plan.result["needed"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"speculation": "fast"}, "split_tuning_speculation names 'fast': it must be auto, none, or a list of draft-s"),
        ({"speculation": ["draft-simple"], "drafts": {}},
         "split_tuning_speculation names a draft model, and no entry of llm_models has draft_for m: add one"),
        ({"texts": [{"name": "code", "prompt": " "}]}, r"split_tuning_texts\[0\] \(code\) has no prompt, or an empty"),
        ({"texts": [{"prompt": "x"}]}, r"split_tuning_texts\[0\] has no name"),
        ({"texts": [{"name": "code", "file": "x"}]}, r"split_tuning_texts\[0\] has 'file': known are name, prompt"),
        ({"texts": [{"name": "code", "prompt": "x", "weight": 0}]}, "has the weight 0: give a number above 0"),
        ({"speculation_tokens": 1}, "split_tuning_speculation_tokens must be at least 2, not 1"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be_are_named(change: Json, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        tuning.planner(variables(**change))


def test_own_texts_are_weighed_as_told(host: SpeculatingHost) -> None:
    texts = [{"name": "a", "prompt": "x", "weight": 3}, {"name": "b", "prompt": [1, 2]}, {"name": "a", "prompt": "y"}]
    host.acceptance = {"a": 0.9, "b": 0.2}
    found = recorded(host.tune(**SETTINGS, texts=texts))["decision"]["speculation"]
    assert found["weights"] == {"a": 0.75, "b": 0.25}
    assert set(found["table"][0]["tokens_per_second"]) == {"a", "b"}


# --- both split modes ------------------------------------------------------------------------------------------------

#: As on two H200: rounds cost much more than tokens in layer mode, and no more in tensor mode.
UNLIKE = {"layer": 0.6, "tensor": 0.0}


def layer_ms(host: SpeculatingHost) -> float:
    """Return what a token takes in layer mode with the split that is chosen without drafts."""
    return 1000 / t.cast(float, recorded(host.tune(speculation="none"))["decision"]["decode_tokens_per_second"])


def test_drafts_can_change_the_order_of_the_split_modes(host: SpeculatingHost) -> None:
    host.tensor_ms = 1.04 * layer_ms(host)
    host.overhead = UNLIKE
    plan = host.tune(**SETTINGS)
    entry = deployment.expand(recorded(plan))
    decision = entry["decision"]
    found = decision["speculation"]
    assert (found["verdict"], found["served"]["mode"], found["served"]["split_mode"]) == ("faster", "tensor", "tensor")
    assert (entry["split_mode"], decision["layers"]) == ("tensor", found["served"]["layers"])
    assert entry["environment"]["GGML_CUDA_ALLREDUCE"] == decision["tensor"]["environment"]["GGML_CUDA_ALLREDUCE"]
    # no more loads than in one mode, none without drafts in the other one, and the trial before it is served
    arms = [(load["split_mode"], load["speculation"]["kind"]) for load in host.arms]
    assert len(arms) <= 5 and ("tensor", "none") not in arms
    modules = [item.step.module for item in host.done]
    assert modules.count("split_mode_trial") == 1
    assert modules.index("split_mode_trial") > max(i for i, name in enumerate(modules) if name.startswith("specul"))
    trial = next(item.step.args["trial"] for item in host.done if item.step.module == "split_mode_trial")
    assert (trial["layers"], trial["reference"]["split_mode"]) == (decision["layers"], "layer")
    # the verdict on the mode without drafts stays what it was, and says why it is served all the same
    assert decision["tensor"]["verdict"] != "faster" and decision["tensor"]["trial"]["status"] == "ok"
    assert decision["why"].startswith("with drafts split mode tensor is faster (")
    chosen = {row["mode"]: row["verdict"] for row in decision["tensor"]["table"] if row["layers"] == decision["layers"]}
    assert chosen["tensor"] == "chosen" and decision["tensor"]["table"][0]["verdict"] == "without drafts"
    assert "in tensor mode takes" in found["why"]
    assert plan.result is not None
    assert all(load["split_mode"] == "tensor" for load in plan.result["baseline"]["loads"])


def test_tensor_mode_that_fails_its_trial_is_not_served_with_drafts_either(host: SpeculatingHost) -> None:
    host.tensor_ms = 1.04 * layer_ms(host)
    host.overhead, host.trial_ends = UNLIKE, "unstable"
    entry = recorded(host.tune(**SETTINGS))
    found = entry["decision"]["speculation"]
    assert entry["split_mode"] == "layer" and len(host.arms) <= 5
    assert "drafts in tensor mode are not served: its answers differ" in found["why"]
    assert found["served"] is None or found["served"]["mode"] == ""
    assert [item.step.module for item in host.done].count("split_mode_trial") == 1


def test_layer_mode_may_win_with_drafts_where_tensor_mode_won_without(host: SpeculatingHost) -> None:
    host.tensor_ms = 0.93 * layer_ms(host)
    host.overhead = {"layer": 0.0, "tensor": 0.6}
    entry = deployment.expand(recorded(host.tune(**SETTINGS)))
    decision, found = entry["decision"], entry["decision"]["speculation"]
    assert decision["tensor"]["verdict"] == "faster"
    assert (found["verdict"], found["served"]["mode"], entry["split_mode"]) == ("faster", "layer", "layer")
    assert "GGML_CUDA_ALLREDUCE" not in entry["environment"] and sum(decision["layers"]) == BLOCKS + 1
    assert min(decision["headroom_mib"]) >= 0


def test_a_mode_that_is_far_behind_costs_no_load(host: SpeculatingHost) -> None:
    host.tensor_ms = 3 * layer_ms(host)
    entry = recorded(host.tune(**SETTINGS))
    assert entry["split_mode"] == "layer" and all(load["split_mode"] == "layer" for load in host.arms)


def test_a_device_that_the_other_mode_brings_down_takes_that_mode_out(
    host: SpeculatingHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.tensor_ms = 1.04 * layer_ms(host)
    host.overhead = UNLIKE
    usual = host.speculation_benchmark

    def lost(step: steps.Step) -> Json:
        found = usual(step)
        if step.args["load"]["split_mode"] == "layer":
            return found
        return {**found, "load": {**found["load"], "status": "device_lost", "reason": "Xid 79", "results": []}}

    monkeypatch.setattr(host, "speculation_benchmark", lost)
    entry = recorded(host.tune(**SETTINGS))
    assert (entry["split_mode"], entry["decision"]["speculation"]["verdict"]) == ("layer", "faster")
    assert [load["split_mode"] for load in host.arms].count("tensor") == 1 and len(host.arms) <= 5
