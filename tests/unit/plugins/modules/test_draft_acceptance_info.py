# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module; where the mark live is asked for, on the real llama.cpp with a draft whose acceptance is known."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import mode_trial
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import known_next_token, random_model
from ansible_collections.homelab.mixed_gpu.plugins.modules import draft_acceptance_info
from ansible_collections.homelab.mixed_gpu.tests import local_server
from ansible_collections.homelab.mixed_gpu.tests.fixtures import known_rounds

VOCABULARY, AGREEMENT, N_MAX = 1024, [0.9, 0.5], 4
TARGET = known_next_token.target(VOCABULARY, len(AGREEMENT), 0)
TEXTS = [{"name": f"text {kind}", "prompt": [1, text[0]]} for kind, text in enumerate(TARGET.texts)]
ENTRY = {"speculation": {"kind": "draft-simple", "n_max": N_MAX}}
SERVING = {
    "context_size": 1024, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 64,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16", "threads": 1, "poll": 0,
    "load_mode": "auto", "gpu_layers": 99,
}  # fmt: skip


@pytest.fixture
def count(call_module):
    """Run the module; the result, or the message of its failure."""

    def run(**changes):
        arguments = {"entry": ENTRY, "texts": TEXTS, "generated_tokens": 100, "url": "http://127.0.0.1:1", **changes}
        return call_module(draft_acceptance_info, arguments)

    return run


@pytest.mark.parametrize(
    "changes", [{"entry": {}}, {"entry": {"speculation": {"kind": "ngram-mod"}}}, {"generated_tokens": 0}]
)
def test_nobody_is_asked_where_nothing_can_be_compared(count, changes):
    assert count(**changes)["acceptance"] is None


def test_what_is_wrong_is_said(count):
    assert "cannot be reached" in count()["msg"]
    assert count(generated_tokens=1)["msg"] == "generated_tokens is 1: give 0, or 2 and more."
    assert count(texts=[{"name": "code"}])["msg"].startswith("split_tuning_texts[0] (code) has no prompt")


class _LongRunning(local_server.Handler):
    """A server that has drafted more than a million times, and prints its counters as llama-server does."""

    timings: object = {
        "prompt_n": 2, "prompt_ms": 1.0, "predicted_n": 100, "predicted_ms": 500.0, "draft_n": 120,
        "draft_n_accepted": 60,
    }  # fmt: skip

    def do_GET(self):
        self.reply(200, b"llamacpp:spec_decode_num_drafts_total 1.28e+06\n", "text/plain")

    def do_POST(self):
        self.body()
        self.reply(200, {"timings": self.timings})


def test_rounded_counters_of_a_server_that_ran_for_long_do_not_count_as_no_drafts(count):
    with local_server.serving(_LongRunning) as server:
        rows = count(url=server.url)["acceptance"]["rows"]
    assert [(row["drafted"], row["accepted"], row["drafts"]) for row in rows] == [(120, 60, 39)] * len(TEXTS)


@pytest.mark.parametrize("timings", ["fast", 5, [1], {"predicted_n": "100", "predicted_ms": None}])
def test_an_answer_without_usable_timings_is_one_sentence(count, monkeypatch, timings):
    monkeypatch.setattr(_LongRunning, "timings", timings)
    with local_server.serving(_LongRunning) as server:
        said = count(url=server.url)["msg"]
    assert said == "The acceptance of drafts was not counted: the answers to text 0 have 0 tokens."


def write(path, agreement, **more):
    shape = {"blocks": 2, "embedding_length": 512, "feed_forward_length": 512, "head_count": 8, "head_count_kv": 4}
    options = {**shape, "vocabulary_size": VOCABULARY, "type": "q8_0", "agreement": agreement, **more}
    random_model.write_model(str(path), random_model.checked_options(options), "0" * 64)


@pytest.mark.live
def test_a_running_server_tells_what_was_computed(count, tmp_path, llama_bin, rpc_endpoints):
    write(tmp_path / "target.gguf", [1.0, 1.0])
    write(tmp_path / "draft.gguf", AGREEMENT, blocks=1, embedding_length=256, seed=5)
    devices = [
        {"device": f"RPC{number}", "id": endpoint, "backend": "RPC", "description": endpoint, "total_mib": 500,
         "free_mib": 500, "budget_mib": None}
        for number, endpoint in enumerate(rpc_endpoints[:2])
    ]  # fmt: skip
    model = f"{tmp_path}/target.gguf"
    served = mode_trial.deployment(model, devices, [2, 1], "layer", SERVING, rpc_endpoints[:2])
    served["speculation"] = {
        "kind": "draft-simple", "draft": "draft", "n_max": N_MAX, "path": str(tmp_path / "draft.gguf"),
        "device": devices[0]["id"], "cache_type_k": "f16", "cache_type_v": "f16",
    }  # fmt: skip
    box = sandboxed_run.Sandbox(endpoints=rpc_endpoints[:2], files=[str(tmp_path)])
    with Server(f"{llama_bin}/llama-server", served, box, {}, 0, 300, 300) as server:
        (tmp_path / "key").write_text(server.client.headers["Authorization"].split()[1])
        asked = {"url": server.client.url, "api_key_file": str(tmp_path / "key"), "entry": served}
        once, again = count(**asked)["acceptance"], count(**asked)["acceptance"]
        other = count(**asked, generated_tokens=50)["acceptance"]
        refused = count(**{**asked, "api_key_file": "/nowhere"})
    assert once == again and other["texts"] != once["texts"]
    assert "key" in refused["msg"]
    wrong = known_next_token.draft(TARGET, AGREEMENT, 5)[1]
    for row, text, missed in zip(once["rows"], TARGET.texts, wrong, strict=True):
        known = known_rounds.of_answer(text, missed, N_MAX, 99)
        assert abs(row["accepted"] - known.accepted) <= N_MAX and abs(row["drafts"] - known.rounds) <= 1
        assert row["drafts"] <= row["drafted"] <= N_MAX * row["drafts"]
