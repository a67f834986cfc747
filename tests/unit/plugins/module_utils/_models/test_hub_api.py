# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names, choices and refusals of the hub; whole answers are among the tests of the modules."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_api
from hypothesis import given
from hypothesis import strategies as st

COMMIT = "a" * 40
REPO = "owner/name"


@pytest.mark.parametrize(
    ("names", "quant", "chosen"),
    [
        (["m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "m-Q4_K.gguf"], "Q4_K", "m-Q4_K.gguf"),
        (["m.Q4_K_M.gguf", "m.IQ4_XS.gguf"], "q4_k_m", "m.Q4_K_M.gguf"),
        (["m_q8_0.gguf"], "Q8_0", "m_q8_0.gguf"),
        (["m-UD-Q4_K_XL.gguf", "m-Q4_K_M.gguf"], "Q4_K_XL", "m-UD-Q4_K_XL.gguf"),
        (["X.Q8_0.gguf", "X.mmproj-Q8_0.gguf", "X.Q4_K_M.gguf"], "Q8_0", "X.Q8_0.gguf"),
        (["Q-27B-Q8_0.gguf", "mtp-Q-27B-Q8_0.gguf", "Q-27B-eagle3-Q8_0.gguf"], "Q8_0", "Q-27B-Q8_0.gguf"),
        (["Q-27B-Q8_0.gguf", "Q-1B-draft-Q8_0.gguf", "Q-lora-Q8_0.gguf"], "Q8_0", "Q-27B-Q8_0.gguf"),
        (["m-Q8_0.gguf", "mmproj-Q8_0.gguf"], "Q8_0", "m-Q8_0.gguf"),
        (["BF16/m-00001-of-00001.gguf", "m-Q8_0.gguf"], "BF16", "BF16/m-00001-of-00001.gguf"),
    ],
)
def test_a_quant_is_a_whole_word_of_a_name(names: list[str], quant: str, chosen: str) -> None:
    assert hub_api.select(names, [], quant, REPO) == ("gguf", [chosen])


def test_the_only_model_needs_no_name() -> None:
    names = ["X-Q4_0.gguf", "X-mmproj-F16.gguf", "X.imatrix.gguf"]
    assert hub_api.select(names, [], None, REPO) == ("gguf", ["X-Q4_0.gguf"])
    assert hub_api.select(names, ["X*.gguf"], None, REPO) == ("gguf", ["X-Q4_0.gguf"])
    assert hub_api.select(names, ["X-mmproj-F16.gguf"], None, REPO) == ("gguf", ["X-mmproj-F16.gguf"])   # by its name
    assert hub_api.select(["README.md", "m.gguf", "mmproj-m.gguf"], [], None, REPO) == ("gguf", ["m.gguf"])


@pytest.mark.parametrize(
    ("names", "patterns", "quant", "sentence"),
    [
        (["m-Q8_0-00001-of-00002.gguf"], [], "Q8_0", "lacks m-Q8_0-00002-of-00002.gguf"),
        (["m-Q8_0-00003-of-00002.gguf"], [], "Q8_0", "shard 3 of 2"),
        (["m-q8_0.gguf", "m-q8_0-00001-of-00001.gguf"], [], "Q8_0", "has 2 models of that quant Q8_0"),
        (["a.bin", "b.bin"], ["c.bin"], None, "has no file c.bin: it has a.bin, b.bin"),
        ([], ["c.bin"], None, "it is empty"),
    ],
)
def test_what_cannot_be_chosen(names: list[str], patterns: list[str], quant: str | None, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        hub_api.select(names, patterns, quant, REPO)


@given(st.text(max_size=40))
def test_no_name_leaves_the_directory(name: str) -> None:
    try:
        checked = hub_api.check_name(name, REPO)
    except UserError:
        return
    assert checked == name and not name.startswith("/") and not set(name.split("/")) & {"", ".", ".."}


@pytest.mark.parametrize("endpoint", ["https://huggingface.co", "http://127.0.0.1:8099", "https://mirror.example/hf"])
def test_an_address_is_told_apart_again(endpoint: str) -> None:
    url = hub_api.file_url(f"{endpoint}/", REPO, COMMIT, "a b/m#1.gguf")
    assert url == f"{endpoint}/{REPO}/resolve/{COMMIT}/a%20b/m%231.gguf"
    assert hub_api.repo_page(url) == (endpoint, REPO)
    assert hub_api.repo_page("https://models.example/m.gguf") == ("", "")


def test_a_question_has_one_record_whatever_its_order() -> None:
    name = hub_api.record_name(REPO, "main", ["a", "b"], None)
    assert name == hub_api.record_name(REPO, "main", ["b", "a"], None) and name.startswith("owner--name-")
    others = {
        hub_api.record_name(REPO, "dev", ["a", "b"], None), hub_api.record_name(REPO, "main", ["a"], None),
        hub_api.record_name(REPO, "main", [], "Q8_0"),
    }  # fmt: skip
    assert len(others | {name}) == 4
    assert hub_api.record_name(REPO, "main", [], "Q8_0") == hub_api.record_name(REPO, "main", [], "q8_0")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 2}, {"commit": "main"}, {"format": "zip"}, {"files": []}, {"files": ["a"]},
        {"files": [{"name": "../a", "size_bytes": 1, "sha256": "1" * 64, "git_sha1": None}]},
        {"files": [{"name": "a", "size_bytes": 1, "sha256": "x", "git_sha1": None}]},
        {"files": [{"name": "a", "size_bytes": None, "sha256": "1" * 64, "git_sha1": None}]},
    ],
)
def test_a_record_is_not_believed_when_it_is_damaged(change: dict[str, t.Any]) -> None:
    file = {"name": "m.gguf", "size_bytes": 1, "sha256": "1" * 64, "git_sha1": None}
    question = {"repo": REPO, "revision": "main", "files": [], "quant": None}
    made = hub_api.record(question, COMMIT, [file], "https://hub", "now")
    assert hub_api.read_record(json.dumps(made), "/r") == made
    with pytest.raises(UserError, match="^/r cannot be used: .*; move it away .*: the hub is asked again.$"):
        hub_api.read_record(json.dumps({**made, **change}), "/r")


def test_only_an_answer_that_is_complete_is_taken_as_given() -> None:
    whole = {"repo": REPO, "revision": COMMIT, "files": ["m.gguf"], "quant": None}
    assert hub_api.pinned(whole, "1" * 64, None)
    for change, sha256 in (({"revision": "main"}, "1" * 64), ({"files": ["*"]}, "1" * 64), ({}, None)):
        assert hub_api.pinned({**whole, **change}, sha256, None) is None


def test_a_token_goes_nowhere_without_tls_but_to_this_machine() -> None:
    assert hub_api.token_problem("http://hub.example") and not hub_api.token_problem("https://hub.example")
    assert not hub_api.token_problem("http://127.0.0.1:1")


def test_what_is_refused_is_not_offered():
    names = ["g-BF16.gguf", "g-Q4_K_M.gguf", "g.mmproj-F16.gguf", "draft-g-Q2_K.gguf"]
    for quant in ("F16", "Q2_K"):
        with pytest.raises(UserError, match=r"no GGUF file of quant \w+: it has the quants BF16, Q4_K_M\."):
            hub_api.select(names, [], quant, REPO)


@pytest.mark.parametrize(
    "other",
    [
        "mmproj/g-Q8_0.gguf", "mtp/g-Q8_0.gguf", "drafts/g-0.6B-Q8_0.gguf", "g-vision-Q8_0.gguf",
        "mm_projector-Q8_0.gguf", "g-medusa-Q8_0.gguf", "g-nextn-Q8_0.gguf", "eagle-g-Q8_0.gguf", "g-talker-Q8_0.gguf",
        "tokenizer-Q8_0.gguf",
    ],
)  # fmt: skip
def test_a_part_by_its_name_or_folder_is_not_taken_for_the_model(other):
    for quant in ("Q8_0", None):
        assert hub_api.select(["g-Q8_0.gguf", other], [], quant, REPO) == ("gguf", ["g-Q8_0.gguf"])
    assert hub_api.select(["g-Q4_0.gguf", other], [other], None, REPO) == ("gguf", [other])


def test_a_repository_of_parts_says_so_and_offers_none():
    for quant in ("F16", "Q8_0", None):
        with pytest.raises(UserError, match=r"only parts of a model \(mmproj-F16.gguf\): name the repository"):
            hub_api.select(["README.md", "mmproj-F16.gguf"], [], quant, REPO)


@pytest.mark.parametrize("file", [None, {}, "m.gguf", ["m.gguf"]])
def test_a_file_of_the_hub_without_a_name_is_one_sentence(file):
    question = {"repo": REPO, "revision": "main", "files": [], "quant": None}
    with pytest.raises(UserError, match="lists a file without a name.*use another hub"):
        hub_api.record(question, "b" * 40, [file], "https://hub.example", "now")
