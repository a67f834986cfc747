# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module on the real llama.cpp, where the mark live is asked for, with drafts whose acceptance is known."""

from __future__ import annotations

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import (
    gguf_model,
    known_next_token,
    random_model,
    random_shape,
    vocabulary,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import speculation_words
from ansible_collections.homelab.mixed_gpu.plugins.modules import speculation_benchmark
from ansible_collections.homelab.mixed_gpu.tests.fixtures import eagle3_model, known_rounds, mtp_model

SERVING = {
    "context_size": 1024, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 64,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}  # fmt: skip
VOCABULARY = 1024
AGREEMENT = [0.9, 0.5]
#: The first token of each text: an answer to it stays in that text.
TEXTS = [
    {"name": f"text {kind}", "prompt": [1, text[0]]}
    for kind, text in enumerate(known_next_token.target(VOCABULARY, len(AGREEMENT), 0).texts)
]


@pytest.fixture
def measure(tmp_path, call_module, monkeypatch):
    """Run the module; the result, or the message of its failure."""
    monkeypatch.setattr(AnsibleModule, "warn", lambda *_args, **_more: None)

    def run(**changes):
        arguments = {
            "model_path": str(tmp_path / "target.gguf"), "serving": SERVING, "texts": TEXTS, "campaign": "c",
            "fingerprint": "f", "state_dir": str(tmp_path / "measurements"), "lock_wait_seconds": 0, "lease_unit": "",
            "load_timeout_seconds": 120, "request_timeout_seconds": 120, "generated_tokens": 100, **changes,
        }  # fmt: skip
        return call_module(speculation_benchmark, arguments)

    return run


def write(path, agreement, **more):
    shape = {"blocks": 2, "embedding_length": 512, "feed_forward_length": 512, "head_count": 8, "head_count_kv": 4}
    options = {**shape, "vocabulary_size": VOCABULARY, "type": "q8_0", "agreement": agreement, **more}
    random_model.write_model(str(path), random_model.checked_options(options), "0" * 64)


NONE = {"kind": "none", "draft": "", "device": "", "n_max": 0}


def test_what_is_missing_is_said(measure):
    load = {"label": "none", "split_mode": "layer", "layers": [3], "load": 1, "speculation": NONE}
    said = measure(load=load, devices=[], llama_server="/nowhere/llama-server")
    assert said["msg"].startswith("There is no program /nowhere/llama-server: install llama.cpp with this target")
    assert measure(load=load, devices=[], texts=[])["msg"] == "texts is empty: give at least one text."
    assert measure(load={"label": "none"}, devices=[])["msg"] == "load.split_mode is missing."
    assert measure(load=load, devices=[], generated_tokens=1)["msg"] == "generated_tokens is 1: that is too few."


def test_weights_and_a_draft_without_room_in_ram_are_out_of_memory_before_anything_starts(
    measure, tmp_path, monkeypatch
):
    write(tmp_path / "target.gguf", [1.0, 1.0])
    write(tmp_path / "draft.gguf", AGREEMENT, blocks=1, embedding_length=1024, seed=5)
    in_ram = {"kind": "ffn", "blocks": [0], "partial": None, "threads": 2, "no_host": False, "override": ""}
    draft = {**NONE, "kind": "draft-simple", "path": str(tmp_path / "draft.gguf")}
    load = {"label": "none", "split_mode": "layer", "layers": [3], "load": 1, "experts_in_ram": in_ram}
    # a block of 3 x 512 x 512 weights, embeddings of 1024 x 512 and 1024 x 1024, 34 bytes for 32: 1.33 and 2.39 MiB
    monkeypatch.setattr(job, "available_memory_mib", lambda: 1025)
    loads = [{**load, "speculation": arm} for arm in (NONE, draft)]
    found = [measure(load=load, devices=[], llama_server="/bin/true")["load"] for load in loads]
    assert [load["status"] for load in found] == ["out_of_memory"] * 2
    assert [load["reason"] for load in found] == [
        f"out of memory: {missing} MiB more were wanted on CPU" for missing in (1, 2)
    ]
    said = measure(load={**load, "speculation": NONE, "experts_in_ram": {"kind": "all"}}, devices=[])["msg"]
    assert said == "This load cannot be measured: experts_in_ram.kind must be experts or ffn, not 'all'."


@pytest.fixture
def drafting(measure, tmp_path, llama_bin, rpc_endpoints):
    """Measure a load on two devices, with a target of known next tokens and a draft that misses some."""
    write(tmp_path / "target.gguf", [1.0, 1.0])
    write(tmp_path / "draft.gguf", AGREEMENT, blocks=1, embedding_length=256, seed=5)
    devices = [
        {"device": f"RPC{number}", "id": endpoint, "backend": "RPC", "description": endpoint, "total_mib": 500,
         "free_mib": 500, "budget_mib": None}
        for number, endpoint in enumerate(rpc_endpoints[:2])
    ]  # fmt: skip
    draft = {
        "kind": "draft-simple", "draft": "draft", "n_max": 4, "path": str(tmp_path / "draft.gguf"),
        "device": devices[1]["id"], "cache_type_k": "f16", "cache_type_v": "f16",
    }  # fmt: skip

    def run(number=1, options=None, mode="layer", **changes):
        arm = {**draft, **changes}
        layers = [2, 1] if mode == "layer" else [3, 1]
        load = {"label": arm["kind"], "split_mode": mode, "layers": layers, "load": number, "speculation": arm}
        return measure(
            load=load, devices=devices, rpc_endpoints=rpc_endpoints[:2], llama_server=f"{llama_bin}/llama-server",
            prompt_tokens=100, **(options or {}),
        )  # fmt: skip

    return run


def texts_of(result):
    assert (result["load"]["status"], result["load"]["reason"]) == ("ok", None)
    rows = result["load"]["results"]
    texts = [row for row in rows if row["kind"] == "text"]
    prompt, greedy = rows[-2:]
    text = known_next_token.target(VOCABULARY, len(AGREEMENT), 0).texts[0]
    assert greedy == {"kind": "greedy", "tokens": text[1:65]}
    assert prompt["kind"] == "prompt" and prompt["prompt_tokens"] == 100 and prompt["prompt_ms"] > 0
    assert [(row["text"], row["tokens"]) for row in texts] == [("text 0", 99), ("text 1", 99)]
    return texts


@pytest.mark.live
def test_drafts_of_known_acceptance_on_the_real_llama_cpp(drafting):
    for row in texts_of(drafting(**NONE)):
        assert (row["drafted"], row["accepted"], row["positions"]) == (0, 0, [])
    drafted = drafting()
    assert drafted["changed"]
    as_computed(texts_of(drafted))
    shorter_drafts_are_as_computed(drafted, 4)
    again = drafting()
    assert not again["changed"] and again["load"]["results"] == drafted["load"]["results"]


def as_computed(rows):
    target = known_next_token.target(VOCABULARY, len(AGREEMENT), 0)
    wrong = known_next_token.draft(target, AGREEMENT, 5)[1]
    for row, text, missed in zip(rows, target.texts, wrong, strict=True):
        # the server drafts, accepts and corrects exactly as computed
        known = known_rounds.of_answer(text, missed, 4, row["tokens"])
        assert abs(row["accepted"] - known.accepted) <= 4
        shares = [count / known.rounds for count in known.by_position]
        assert row["positions"] == pytest.approx(shares, abs=2 / known.rounds)


def shorter_drafts_are_as_computed(result, n_max):
    """llama-server drafts no more than an answer has room for: each short answer is known token by token."""
    rows = [row for row in result["load"]["results"] if row["kind"] == "short"]
    assert [row["length"] for row in rows] == [length for length in (0, 1, 3, 5) if length < n_max] + [n_max]
    target = known_next_token.target(VOCABULARY, len(AGREEMENT), 0)
    text, missed = target.texts[0], known_next_token.draft(target, AGREEMENT, 5)[1][0]
    for row in rows:
        known = known_rounds.of_short_answer(text, missed, row["length"])
        answers = served_texts.SHORT_ANSWERS
        assert (row["rounds"], row["drafts"], row["drafted"]) == tuple(answers * count for count in known)
        assert row["decode_ms"] > 0
    # the log may lag behind the answers
    for said in (row for row in result["load"]["results"] if row["kind"] == "drafting"):
        assert 0 < said["drafts"] <= said["drafted"] and said["draft_ms"] > 0


@pytest.mark.live
def test_a_draft_of_a_model_in_tensor_mode_is_right_as_often(drafting):
    """The draft lies whole on its device, whatever the mode of its target."""
    as_computed(texts_of(drafting(mode="tensor")))


@pytest.mark.live
def test_the_models_own_blocks_draft_as_computed(drafting, tmp_path):
    """A model with recurrent blocks, whose state is kept for each drafted token."""
    mtp_model.write(str(tmp_path / "target.gguf"), AGREEMENT, 5)
    drafted = drafting(kind="draft-mtp", draft="", path="")
    as_computed(texts_of(drafted))
    shorter_drafts_are_as_computed(drafted, 4)
    for row in texts_of(drafting(number=2, **NONE)):
        assert (row["drafted"], row["accepted"]) == (0, 0)


@pytest.mark.live
@pytest.mark.parametrize("mode", ["layer", "tensor"])
def test_an_eagle3_head_drafts_and_the_text_stays(drafting, tmp_path, mode):
    eagle3_model.write(str(tmp_path / "draft.gguf"), VOCABULARY, len(AGREEMENT), [0, 1, 1])
    rows = texts_of(drafting(kind="draft-eagle3", mode=mode))
    assert all(row["drafted"] > 0 and row["accepted"] <= row["drafted"] for row in rows)


@pytest.mark.live
def test_a_head_that_has_nothing_to_read_is_known_by_the_last_words_of_the_server(drafting, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(random_shape, "architecture", lambda _parameters: "smollm3")
        write(tmp_path / "target.gguf", [1.0, 1.0])
    eagle3_model.write(str(tmp_path / "draft.gguf"), VOCABULARY, len(AGREEMENT), [0, 1, 1])
    load = drafting(kind="draft-eagle3")["load"]
    assert load["status"] == "crashed" and speculation_words.nothing_to_read(load)


NGRAM = {"draft": "", "device": "", "n_max": 0, "path": ""}


@pytest.mark.live
def test_n_gram_drafts_of_the_real_llama_cpp_need_no_model(drafting):
    texts_of(drafting(kind="ngram-simple", **NGRAM))


@pytest.mark.live
@pytest.mark.parametrize("kind", ["ngram-mod", "ngram-simple", "ngram-map-k", "ngram-map-k4v"])
def test_n_gram_drafts_of_a_text_that_repeats_are_right(drafting, tmp_path, kind):
    """A text of 70 tokens over and over: what follows an n-gram is known from its second time on."""
    vocabulary_size, tokens = 400, 300
    write(tmp_path / "target.gguf", [1.0, 1.0], vocabulary_size=vocabulary_size)
    target = known_next_token.target(vocabulary_size, 2, 0)
    texts = [{"name": f"text {place}", "prompt": [1, text[0]]} for place, text in enumerate(target.texts)]
    load = drafting(kind=kind, options={"texts": texts, "generated_tokens": tokens}, **NGRAM)["load"]
    assert (load["status"], load["reason"]) == ("ok", None)
    *rows, _prompt, greedy = load["results"]
    assert greedy["tokens"] == target.texts[0][1:65]
    for row in rows:
        assert row["tokens"] == tokens - 1
        # the first time nothing can be known, and the last draft may be cut off by the length of the answer
        assert 64 < row["drafted"] <= tokens - 70 and row["drafted"] - 64 <= row["accepted"] <= row["drafted"]
        assert 0 < row["drafts"] < row["drafted"] / 8
        assert row["positions"][0] == 1.0 and len(row["positions"]) <= 64


@pytest.mark.live
def test_what_the_real_llama_cpp_refuses_is_a_result(drafting):
    unknown = drafting(kind="draft-of-tomorrow")["load"]
    assert unknown["status"] == "refused" and "unknown speculative type" in unknown["reason"]


@pytest.mark.live
def test_a_draft_of_another_vocabulary_is_known_by_its_header(drafting, tmp_path):
    """The server takes it and drafts nothing, so the header has to tell."""
    path = tmp_path / "draft.gguf"
    files = [(str(each), each.stat().st_size, 0) for each in (tmp_path / "target.gguf", path)]
    target, draft = (gguf_model.read([file])["vocabulary"] for file in files)
    assert vocabulary.why_not(target, draft) is None
    write(path, [], vocabulary_size=512)
    other = gguf_model.read([(str(path), path.stat().st_size, 0)])["vocabulary"]
    assert vocabulary.why_not(target, other) == "its vocabulary has 512 tokens, and that of the target 1024"
    said = drafting(number=2)["load"]
    assert (said["status"], said["results"]) == ("refused", []) and "drafted no token" in said["reason"]
