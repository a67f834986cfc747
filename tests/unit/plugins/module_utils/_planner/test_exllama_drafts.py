# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Drafts of ExLlama within a whole tuning; a simulated host answers."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import steps
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import exllama_drafts, tuning
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import speculation_rows, untried, words
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment, engines

from .test_speculation_tuning import DRAFT, VOCABULARY
from .test_tuning import ExllamaHost, Json, SharingHost, recorded, variables

OWN: Json = {"block_attention_bytes": [2**19] * 4, "window_tokens": [0] * 4, "intermediate_size": 256}
SMALL: Json = {**DRAFT, **OWN, "path": "/srv/d", "file_type": "EXL2 4.0bpw"}
DRAFTS = {"d": {"path": "/srv/d", "sha256": "", "draft_for": "m"}, "e": {"path": "/srv/e", "draft_for": "other"}}
SETTINGS: Json = {"engine": "exllamav2", "model_path": "/srv/m", "speculation": "auto", "drafts": DRAFTS}


class DraftingHost(ExllamaHost):
    """A host whose TabbyAPI takes C(factor) of the time with a draft."""

    draft: Json = SMALL
    factor = 0.6
    ends: tuple[str, str | None] = ("ok", None)
    #: Drafted and accepted tokens of each text, as ExLlamaV3 counts them.
    counted = (0, 0)
    free_mib: t.ClassVar[dict[str, int]] = {"GPU-1": 4000, "GPU-2": 4000}

    def exllama_devices_info(self, step: steps.Step) -> Json:
        listed = super().exllama_devices_info(step)
        return {**listed, "devices": [{**card, "free_mib": self.free_mib[card["id"]]} for card in listed["devices"]]}

    def exl_model_info(self, step: steps.Step) -> Json:
        if step.args["path"] == "/srv/d":
            return {"available": True, "reason": None, "model": self.draft, "headers_sha256": "e" * 64}
        found = super().exl_model_info(step)
        return {**found, "model": {**found["model"], "file_type": "EXL2 4.0bpw", "vocabulary": VOCABULARY}}

    def exllama_draft_benchmark(self, step: steps.Step) -> Json:
        load, args = step.args["load"], step.args
        drafting = load["speculation"]["kind"] != "none"
        status, reason = self.ends if drafting else ("ok", None)
        tokens = args["generated_tokens"] - 1
        ms = sum(cost * count for cost, count in zip((0.5, 0.9), load["layers"], strict=True))
        drafted, accepted = self.counted if drafting else (0, 0)
        ms *= self.factor if drafting else 1
        rows: list[Json] = [
            {"kind": "text", "text": name, "tokens": tokens, "decode_ms": tokens * ms,
             "prompt_tokens": 30, "prompt_ms": 10.0, "drafted": drafted, "accepted": accepted, "drafts": 0,
             "positions": []}
            for name in dict.fromkeys(text["name"] for text in args["texts"])
        ]  # fmt: skip
        return {"changed": True, "load": {
            **load, "status": status, "reason": reason, "results": rows if status == "ok" else [],
            "fingerprint": args["fingerprint"], "campaign": args["campaign"], "wall_ms": 5000, "reused": False,
        }}  # fmt: skip

    @property
    def arms(self) -> list[Json]:
        return [i.step.args["load"] for i in self.done if i.step.module == "exllama_draft_benchmark"]


class SharingDraftingHost(DraftingHost, SharingHost):
    """The same with ExLlamaV3, whose cards may share each layer."""


def test_a_draft_that_is_faster_is_recorded_and_served() -> None:
    host = DraftingHost()
    plan = host.tune(**SETTINGS)
    entry = recorded(plan)
    kinds = [(load["speculation"]["kind"], load["speculation"]["device"]) for load in host.arms]
    # either card has room; none first and last
    assert kinds[0] == kinds[-1] == ("none", "") and len(kinds) <= 5
    assert {device for kind, device in kinds if kind != "none"} == {"GPU-1", "GPU-2"}
    served = entry["speculation"]
    assert (served["kind"], served["draft"], served["path"]) == ("draft-model", "d", "/srv/d")
    assert served["device"] in ("GPU-1", "GPU-2") and served["cache_mode"] == entry["serving"]["cache_mode"]
    planned = entry["decision"]["speculation"]["served"]["own_mib"]
    assert planned[["GPU-1", "GPU-2"].index(served["device"])] / 1024 < served["memory_gb"]
    # the numbers of the model itself are those of the load that placed it
    assert entry["gpu_split_gb"] == [1.0, 2.0] and all(load["gpu_split_gb"] == [1.0, 2.0] for load in host.arms)
    assert server_plan.recorded_draft(entry)["card"] == served["device"]
    assert plan.result is not None and "less time" in plan.result["lines"][-1]
    assert any(line.startswith("Speculation: draft-model d on CUDA") for line in words.later_stages(entry["decision"]))
    rows = speculation_rows.speculation_rows(deployment.expand(entry))
    assert [row["name"] for row in rows][0] == "no speculation" and rows[1]["rounds"] == ""


def test_one_card_with_room_is_measured_a_b_b_a() -> None:
    host = DraftingHost()
    host.free_mib = {"GPU-1": 4000, "GPU-2": 600}
    # more than the second card has, whatever else lies there
    host.draft = {**SMALL, "block_bytes": [200 * 2**20] * 4}
    recorded(host.tune(**SETTINGS))
    arms = [(load["speculation"]["kind"], load["speculation"]["device"]) for load in host.arms]
    assert arms == [("none", ""), ("draft-model", "GPU-1"), ("draft-model", "GPU-1"), ("none", "")]


def test_a_draft_that_is_slower_or_not_surely_faster_is_not_kept() -> None:
    for factor, said in ((1.3, "speculation is not faster here"), (0.97, "speculation is not kept: draft-model d")):
        host = DraftingHost()
        host.factor = factor
        entry = recorded(host.tune(**SETTINGS))
        assert "speculation" not in entry and said in entry["decision"]["speculation"]["why"]


def test_acceptance_is_told_where_the_backend_counts() -> None:
    host = SharingDraftingHost()
    host.draft, host.counted = {**SMALL, "file_type": "F16"}, (400, 95)
    host.tensor_ms = 1000.0
    entry = recorded(host.tune(speculation="auto", drafts=DRAFTS))
    assert entry["split_mode"] == "layer"
    row = next(row for row in entry["decision"]["speculation"]["table"] if row["kind"] == "draft-model")
    assert set(row["acceptance"].values()) == {0.2375} and all(rate > 1 for rate in row["tokens_per_round"].values())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"vocabulary": {**VOCABULARY, "kind": "spm"}}, "d cannot draft for this model: its tokenizer is spm"),
        ({"vocabulary": {**VOCABULARY, "kind": None}}, "its header or that of the target has no vocabulary"),
        ({"file_type": "EXL3 4.0bpw"}, "it is an EXL3 model, which ExLlamaV2 does not load"),
        ({"block_bytes": [2**30] * 4}, "d does not fit beside the model: it needs"),
    ],
)
def test_a_draft_that_cannot_be_one_is_one_clause_and_costs_no_load(change: Json, why: str) -> None:
    host = DraftingHost()
    host.draft = {**SMALL, **change}
    entry = recorded(host.tune(**SETTINGS))
    assert host.arms == [] and why in entry["decision"]["speculation"]["why"]
    assert why in " ".join(untried.untried(deployment.expand(entry)))


def test_a_load_that_fails_takes_its_card_out_and_is_told() -> None:
    host = DraftingHost()
    host.ends = ("refused", "this TabbyAPI takes no draft: leave exllamav2_server_commit empty")
    entry = recorded(host.tune(**SETTINGS))
    tried = [load["speculation"]["device"] for load in host.arms]
    assert tried == ["", "GPU-1", "GPU-2"] and "takes no draft" in entry["decision"]["speculation"]["why"]
    assert "speculation" not in entry


def test_the_folder_of_a_draft_is_read_before_the_lease() -> None:
    host = DraftingHost()
    planner = tuning.planner(variables(**SETTINGS))
    names = []
    while True:
        plan = planner.plan(host.done)
        if plan.lease is not None:
            break
        host.done.append(steps.Done(plan.steps[0], host.run(plan.steps[0]), "2026-11-24T04:33:09Z"))
        names.append(plan.steps[0].name)
    assert names == ["look", "weigh", "sizes of draft d"]


@pytest.mark.parametrize(
    "changes", [{"drafts": {}}, {"speculation": "none"}, {"speculation": ["ngram-mod"]}, {"objective": "prefill"}]
)
def test_without_a_draft_nothing_is_asked(changes: Json) -> None:
    host = DraftingHost()
    entry = recorded(host.tune(**{**SETTINGS, **changes}))
    assert host.arms == [] and "speculation" not in entry


def test_a_box_without_drafts_says_how_to_have_one_tried() -> None:
    entry = deployment.expand(recorded(DraftingHost().tune(**{**SETTINGS, "drafts": {}})))
    said = next(line for line in untried.untried(entry) if line.startswith("Speculation"))
    assert "no entry of llm_models has draft_for m" in said


def test_layers_that_are_shared_are_served_without_a_draft() -> None:
    host = SharingDraftingHost()
    host.tensor_ms = 5.0
    entry = recorded(host.tune(speculation="auto", drafts=DRAFTS))
    assert entry["split_mode"] == "tensor" and host.arms == []
    assert "tried where cards take turns" in entry["decision"]["speculation"]["why"]


def test_only_small_models_are_tried_of_what_is_asked() -> None:
    assert exllama_drafts.kinds(("draft-simple", "ngram-mod"), ["d"]) == ("draft-model",)
    assert exllama_drafts.kinds(("ngram-mod",), ["d"]) == () == exllama_drafts.kinds(("draft-simple",), [])
    assert all("speculation" in engine.stages for engine in engines.TABLE.values())


def test_texts_of_token_ids_are_refused_before_anything_is_measured() -> None:
    given: Json = {**SETTINGS, "texts": [{"name": "code", "prompt": [1, 2]}]}
    words = r"split_tuning_texts\[0\] \(code\) is a list of token ids, and TabbyAPI takes none: give words"
    with pytest.raises(ValueError, match=words):
        tuning.planner(variables(**given))
    tuning.planner(variables(**{**given, "drafts": {}}))
