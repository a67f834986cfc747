# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module with the real start program and a server that stands in for TabbyAPI, whose times are its own."""

from __future__ import annotations

import pathlib
import shutil
import sys

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import server_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import exl_split
from ansible_collections.homelab.mixed_gpu.plugins.modules import exllama_draft_benchmark
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model

ROOT = pathlib.Path(__file__).parents[4]
LOGURU = """
class Logger:
    def configure(self, patcher):
        self.patcher = patcher

    def add(self, sink, **options):
        return 1

    def info(self, message):
        record = {"message": message}
        self.patcher(record)
        print("INFO:     " + record["message"], flush=True)


logger = Logger()
"""
TEXTS = [{"name": "code", "prompt": "Write a loop."}, {"name": "prose", "prompt": "Describe a harbour."},
         {"name": "code", "prompt": "Write a test."}]  # fmt: skip
DEVICES = [{"device": f"CUDA{card}", "id": f"GPU-{card + 1}"} for card in range(2)]
NONE = {"kind": "none", "draft": "", "device": "", "n_max": 0}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """An installation of both generations in which the server of molecule/exllamav2 is TabbyAPI."""
    # what the unit's sandbox hides is where tests have their files
    monkeypatch.setattr(server_plan, "_HIDDEN", server_plan.re.compile("/home/"))
    monkeypatch.setattr(AnsibleModule, "warn", lambda *_args, **_more: None)
    top = tmp_path / "exllama"
    for generation in ("v2", "v3"):
        checkout = top / generation / "current" / "tabbyapi"
        for folder in ("templates", "sampler_overrides"):
            (checkout / folder).mkdir(parents=True)
            (checkout / folder / "here").write_text("")
        server = (ROOT / "molecule/exllamav2/server.py").read_text(encoding="utf-8").replace("NUMBER", "1")
        (checkout / "main.py").write_text(server, encoding="utf-8")
        (checkout.parent / "venv/bin").mkdir(parents=True)
        (checkout.parent / "venv/bin/python").symlink_to(sys.executable)
    shutil.copy(ROOT / "roles/exllamav2/files/exllama_server.py", top)
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/loguru.py").write_text(LOGURU, encoding="utf-8")
    for name in ("m", "d"):
        write_model(tmp_path / name, "exl2", hidden=128)
    return top


@pytest.fixture
def measure(root, tmp_path, call_module):
    def _measure(speculation=NONE, engine="exllamav2", environment=(), **changes):
        load = {"label": "2/2 load 1", "split_mode": "layer", "layers": [2, 2], "load": 1, "gpu_split_gb": [1.0, 2.0],
                "speculation": speculation}  # fmt: skip
        arguments = {
            "exllama_root": str(root), "model_path": str(tmp_path / "m"), "load": load, "devices": DEVICES,
            "serving": exl_split.serving_profile(engine, 2048, "Q8"), "texts": TEXTS, "campaign": "c",
            "fingerprint": "f", "state_dir": str(tmp_path / "state"), "lease_unit": "", "generated_tokens": 101,
            "prompt_tokens": 500, "load_timeout_seconds": 120, "request_timeout_seconds": 120,
            "environment": {"PYTHONPATH": str(tmp_path / "packages"), "FAKE_ANSWER_MS": "20,12", **dict(environment)},
            **changes,
        }  # fmt: skip
        return call_module(exllama_draft_benchmark, arguments)

    return _measure


@pytest.fixture
def draft(tmp_path):
    return {"kind": "draft-model", "draft": "d", "device": "GPU-2", "n_max": 0, "path": str(tmp_path / "d"),
            "memory_gb": 0.5, "cache_mode": "Q8"}  # fmt: skip


def test_each_kind_of_text_has_the_times_that_the_server_says(measure):
    load = measure()["load"]
    assert (load["status"], load["reason"]) == ("ok", None)
    rows = {row["text"]: row for row in load["results"] if row["kind"] == "text"}
    assert list(rows) == ["code", "prose"]
    # 101 tokens of 20 ms, of which the first is the prompt's
    assert (rows["code"]["tokens"], rows["code"]["decode_ms"]) == (200, 4040.0)
    assert (rows["prose"]["tokens"], rows["prose"]["decode_ms"], rows["prose"]["drafted"]) == (100, 2020.0, 0)
    (prompt,) = [row for row in load["results"] if row["kind"] == "prompt"]
    # a millisecond for each token, rounded as TabbyAPI rounds
    assert prompt["prompt_ms"] == pytest.approx(prompt["prompt_tokens"], abs=5) and prompt["prompt_tokens"] > 50
    again = measure()
    assert again["load"]["reused"] and not again["changed"]


@pytest.mark.parametrize(("engine", "counted"), [("exllamav2", (0, 0)), ("exllamav3", (2020, 1212))])
def test_a_draft_is_loaded_and_its_tokens_count_where_the_backend_says_them(measure, draft, engine, counted):
    load = measure(draft, engine)["load"]
    assert load["status"] == "ok", load["reason"]
    code = next(row for row in load["results"] if row.get("text") == "code")
    tokens = 2 * (97 if engine == "exllamav2" else 101)  # ExLlamaV2 stops where a whole draft has no room left
    assert code["tokens"] == tokens - 2 and code["decode_ms"] == pytest.approx(12 * tokens, abs=20)
    assert (code["drafted"], code["accepted"]) == counted
    assert load["speculation"] == draft


@pytest.mark.parametrize(
    ("fate", "status", "words"),
    [
        ("not taken", "refused", "this TabbyAPI takes no draft: leave exllamav2_server_commit empty"),
        ("too large", "out_of_memory", "CUDA out of memory. Tried to allocate 1.00 GiB"),
    ],
)
def test_a_draft_that_is_not_served_is_a_result_in_one_sentence(measure, draft, fate, status, words):
    load = measure(draft, environment={"FAKE_DRAFT": fate})["load"]
    assert (load["status"], load["results"]) == (status, []) and words in load["reason"]


def test_a_server_that_dies_is_told_by_its_last_words(measure, root):
    (root / "v2/current/tabbyapi/main.py").write_text("raise ValueError('no such cache mode')\n", encoding="utf-8")
    load = measure()["load"]
    assert load["status"] == "refused" and "TabbyAPI" in load["reason"] and "no such cache mode" in load["reason"]


def test_what_is_missing_or_wrong_is_said(measure, draft, tmp_path, root):
    said = measure({**draft, "path": str(tmp_path / "nowhere")})["msg"]
    assert said == f"There is no readable model {tmp_path}/nowhere/config.json: fetch it (role llm_models)."
    assert "exllamav2_draft.cache_mode cannot be used" in measure({**draft, "cache_mode": "8,8"})["msg"]
    assert measure(texts=[])["msg"] == "texts is empty: give at least one text."
    ids = measure(texts=[{"name": "ids", "prompt": [1, 2]}])["msg"]
    assert ids == "The prompt of ids is no text: TabbyAPI takes no token ids, so give words."
    assert measure(load={"label": "x"})["msg"] == "load.split_mode is missing."
    (root / "exllama_server.py").unlink()
    assert "There is no program that starts TabbyAPI" in measure()["msg"]


def test_nothing_is_measured_in_check_mode(measure):
    result = measure(_ansible_check_mode=True)
    assert (result["changed"], result["load"]) == (True, None)
