# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import hashlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import catalogue, entries

URL = "https://user:secret@models.example:8443/a/m.gguf?token=secret"
SHA = "ab" * 32


def shards(count=3):
    numbers = range(1, count + 1)
    return [{"url": f"http://host/x-{i:05d}-of-{count:05d}.gguf", "sha256": f"{i}{i}" * 32} for i in numbers]


def look(identifier, path, present=True, sha256=SHA, size=10, missing=0, free=100):
    return {
        "item": {"id": identifier, "path": path, "model_path": path, "kind": "url", "known": True}, "filesystem": "/m",
        "present": present, "sha256": sha256, "size_bytes": size,
        "missing_bytes": missing, "free_bytes": free,
    }


def test_files_of_models():
    files = entries.model_files(
        [
            {"id": "a", "url": "http://host/dir/a%20b.gguf?x=1", "sha256": SHA.upper()},
            {"id": "b", "shards": shards(2)},
            {"id": "c", "path": "/srv/../srv/c-00002-of-00002.gguf"},
            {"id": "d", "generate": {"blocks": 2}},
            {"id": "e", "path": "/e.gguf", "sha256": SHA, "url": None},
        ],
        "/models",
    )
    assert [(file["id"], file["kind"], file["path"], file["first"]) for file in files] == [
        ("a", "url", "/models/a/a b.gguf", True),
        ("b", "url", "/models/b/x-00001-of-00002.gguf", True),
        ("b", "url", "/models/b/x-00002-of-00002.gguf", False),
        ("c", "path", "/srv/c-00001-of-00002.gguf", True),
        ("c", "path", "/srv/c-00002-of-00002.gguf", False),
        ("d", "generate", "/models/d/d.gguf", True),
        ("e", "path", "/e.gguf", True),
    ]
    assert [file["sha256"] for file in files] == [SHA, "11" * 32, "22" * 32, None, None, None, SHA]
    assert files[5]["generate"] == {"blocks": 2} and files[0]["url"].endswith("?x=1")
    assert len({tuple(sorted(file)) for file in files}) == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ([{}], "the id None"), ([None], "llm_models is None: give a dict with an id"),
        (["a"], "llm_models is 'a': give"), ([{"id": ["a"]}], r"the id \['a'\]"),
        ([{"id": "../a"}], "the id '../a'"),
        ([{"id": "a", "path": "/a"}, {"id": "a", "path": "/b"}], "Two entries .* a"),
        ([{"id": "a", "repository": "x/y"}], "unknown key repository"),
        ([{"id": "a", "repo": "x"}], "'x' is no repository of the hub"),
        ([{"id": "a", "repo": "x/y", "files": ["a"], "quant": "Q4_K_M"}], "Both files and quant"),
        ([{"id": "a", "repo": "x/y", "files": ["../a"]}], "leave its directory"),
        ([{"id": "a", "repo": "x/y", "revision": "--x"}], "no revision of x/y"),
        ([{"id": "a", "path": "/a", "quant": "Q4_K_M"}], "has quant, which path does not use"),
        ([{"id": "a"}], "one of the catalogue .*qwen2_5_coder_32b_instruct_q8_0"),
        ([{"id": "a"}], "has none"),
        ([{"id": "a", "path": "/a", "url": "http://h/a.gguf"}], "has url and path"),
        ([{"id": "a", "url": "http://h/a.gguf"}], "no sha256"),
        ([{"id": "a", "url": "http://h/a.gguf", "sha256": ""}], "no sha256"),
        ([{"id": "a", "url": "http://h/a.gguf", "sha256": "12"}], "not 64 hexadecimal digits"),
        ([{"id": "a", "url": "http://h/a.zip", "sha256": SHA}], "no .gguf file"),
        ([{"id": "a", "url": "http://h/%2e%2e%2fa.gguf", "sha256": SHA}], "no .gguf file"),
        ([{"id": "a", "url": "ftp://h/a.gguf", "sha256": SHA}], "no http or https URL"),
        ([{"id": "a", "shards": []}], "empty list of shards"),
        ([{"id": "a", "shards": shards()[:2]}], "x-00003-of-00003.gguf missing"),
        ([{"id": "a", "shards": shards()[::-1]}], "not the shards of one model in order"),
        ([{"id": "a", "shards": shards(), "sha256": SHA}], "which shards does not use"),
        ([{"id": "a", "path": "a.gguf"}], "not absolute"),
        ([{"id": "a", "path": "/a-00001-of-00002.gguf", "sha256": SHA}], "2 shards, and one sha256"),
        ([{"id": "a", "path": "/a-00003-of-00002.gguf"}], "shard 3 of 2"),
        ([{"id": "a", "generate": {"block": 3}}], "unknown option block"),
    ],
)
def test_entries_that_are_not_understood(given, sentence):
    with pytest.raises(UserError, match=sentence) as caught:
        entries.model_files(given, "/models")
    assert "\n" not in str(caught.value)


def test_all_that_is_wrong_is_said_at_once():
    given = [
        {"id": "a", "url": 7, "quant": 4.0, "colour": "red", "size": 1}, {"id": "../b"}, {"id": "c", "path": "/c"},
        {"id": "d", "shards": [{"url": "ftp://h/d.gguf"}, {"url": "http://h/d.gguf"}]},
        {"id": "e", "path": "/e", "sha256": SHA, "revision": "main", "files": []},
        {"id": "f", "generate": {"blocks": "many", "type": "q9"}}, {"id": "c", "path": "/d", "draft_for": "b"},
        {"id": "g", "path": "/g", "draft_for": "a"},
    ]  # fmt: skip
    with pytest.raises(entries.WrongEntries) as caught:
        entries.model_files(given, "/models")
    words = [
        "Two entries of llm_models have the id c", "unknown keys colour, size", "has the url 7", "has the quant 4.0",
        "the id '../b'", "no http or https URL", "d has no sha256 for http://h/d.gguf",
        "e has revision, files, which path does not use", "'many'", "c is a draft for b, which no other",
    ]  # fmt: skip
    assert len(caught.value.sentences) == len(words)
    assert all(word in said for word, said in zip(words, caught.value.sentences, strict=True))
    assert "q9" in caught.value.sentences[8] and str(caught.value) == " ".join(caught.value.sentences)


def test_installed_models_say_what_is_known():
    results = [
        look("a", "/m/a/a.gguf"),
        look("b", "/m/b/1.gguf", sha256="11" * 32, size=3), look("b", "/m/b/2.gguf", sha256="22" * 32, size=4),
        look("c", "/m/c/c.gguf", present=False, sha256=None, size=None),
        look("d", "/m/d/1.gguf", sha256=SHA), look("d", "/m/d/2.gguf", present=False, sha256=None, size=None),
    ]
    both = hashlib.sha256(("11" * 32 + "\n" + "22" * 32 + "\n").encode()).hexdigest()
    assert entries.installed_models(results) == {
        "a": {"path": "/m/a/a.gguf", "sha256": SHA, "size_bytes": 10, "draft_for": None},
        "b": {"path": "/m/b/1.gguf", "sha256": both, "size_bytes": 7, "draft_for": None},
        "c": {"path": "/m/c/c.gguf", "sha256": "", "size_bytes": None, "draft_for": None},
        "d": {"path": "/m/d/1.gguf", "sha256": "", "size_bytes": None, "draft_for": None},
    }
    assert entries.installed_models([]) == {}


def test_pending_is_what_is_missing_or_was_never_recorded():
    results = [look("a", "/a"), look("b", "/b", present=False), look("c", "/c", sha256=None)]
    assert [file["id"] for file in entries.pending_files(results, False)] == ["b", "c"]


def test_what_is_missing_must_fit_all_together():
    gib = 1 << 30
    fits = [look("a", "/m/a/a", missing=3 * gib, free=6 * gib), look("b", "/m/b/b", missing=3 * gib, free=6 * gib)]
    assert entries.disk_shortfall(fits) == "" == entries.disk_shortfall([look("c", "/c", missing=None, free=0)])
    sentence = entries.disk_shortfall([*fits, look("b", "/m/b/c", missing=gib, free=6 * gib)])
    assert sentence == "/m has 6144 MiB free, and a, b still need 7168 MiB: free 1024 MiB, or choose another directory."


def test_a_draft_names_the_model_that_it_drafts_for():
    draft = {"id": "d", "draft_for": "m", "path": "/m/d.gguf"}
    target = {"id": "m", "path": "/m/m.gguf"}
    files = entries.model_files([draft, target], "/m")
    assert [(file["id"], file["draft_for"]) for file in files] == [("d", "m"), ("m", None)]
    looked = [{"item": file, "sha256": SHA, "size_bytes": 1} for file in files]
    assert entries.installed_models(looked)["d"]["draft_for"] == "m"
    with pytest.raises(UserError, match="d is a draft for m, which no other entry of llm_models has: name one of no o"):
        entries.model_files([draft], "/m")
    with pytest.raises(UserError, match="has the draft_for 7: give a text"):
        entries.model_files([{**draft, "draft_for": 7}, target], "/m")


def test_a_draft_of_the_catalogue_knows_for_which_entry_it_drafts():
    draft = {"id": "qwen2_5_coder_0_5b_instruct_q8_0"}
    others = [{"id": "qwen2_5_coder_32b_instruct_q8_0"}, {"id": "llama_3_3_70b_instruct_q4_k_m"}]

    def target(*listed):
        return {file["id"]: file["draft_for"] for file in entries.model_files(listed, "/m")}[draft["id"]]

    assert target(draft, *others) == "qwen2_5_coder_32b_instruct_q8_0"
    assert target(draft, others[1]) is None and target(draft) is None
    assert target({**draft, "draft_for": others[1]["id"]}, *others) == others[1]["id"]
    # a model of one's own under the same id is no draft unless it says so
    assert target({**draft, "path": "/m/d.gguf"}, *others) is None


def test_drafts_of_the_catalogue_have_their_targets_there_and_are_smaller():
    drafts = {name: model for name, model in catalogue.CATALOGUE.items() if model.drafts_for}
    assert len(drafts) == 4
    for model in drafts.values():
        targets = [catalogue.CATALOGUE[target] for target in model.drafts_for]
        assert all(10 * model.size_bytes < target.size_bytes for target in targets)
        assert model.exact and model.sha256
    assert catalogue.drafts_of("llama_3_3_70b_instruct_q4_k_m")[0] == "llama_3_2_1b_instruct_q8_0"
    assert catalogue.drafts_of("llama_3_2_1b_instruct_q8_0") == []
