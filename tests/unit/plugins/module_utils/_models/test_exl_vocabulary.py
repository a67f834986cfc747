# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The vocabularies of folders, compared as those of GGUF files are."""

from __future__ import annotations

import json

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import exl_folder, exl_vocabulary, vocabulary
from ansible_collections.homelab.mixed_gpu.tests.exl_models import write_model


def tokenizer(words=3000, kind="BPE", added=("<|end|>",), changed=None):
    tokens = [f"w{number}" for number in range(words)]
    for place, word in (changed or {}).items():
        tokens[place] = word
    listed = {token: place for place, token in enumerate(tokens)}
    own = {"type": kind, "vocab": [[token, -1.0] for token in tokens] if kind == "Unigram" else listed}
    extra = [{"id": words + place, "content": text, "special": True} for place, text in enumerate(added)]
    return json.dumps({"added_tokens": extra, "model": own}).encode()


def why_not(target, draft):
    return vocabulary.why_not(exl_vocabulary.of_tokenizer(target), exl_vocabulary.of_tokenizer(draft))


def test_the_same_tokens_are_the_same_vocabulary():
    assert why_not(tokenizer(), tokenizer()) is None
    assert why_not(tokenizer(kind="Unigram"), tokenizer(kind="Unigram")) is None
    # a few more added ones at the end, as models of one family have them
    assert why_not(tokenizer(), tokenizer(added=("<|end|>", "<|tool|>"))) is None


@pytest.mark.parametrize(
    ("draft", "words"),
    [
        (tokenizer(changed={1500: "other"}), "its tokens from 1024 on are other words than those of the target"),
        (tokenizer(added=("<|fin|>",)), "its tokens from 2048 on are other words"),
        (tokenizer(words=4000), "its vocabulary has 4001 tokens, and that of the target 3001"),
        (tokenizer(kind="Unigram"), "its tokenizer is Unigram, and that of the target BPE"),
        (None, "its header or that of the target has no vocabulary"),
        (b"{", "has no vocabulary"),
        (b'{"model": {"type": "BPE", "vocab": {"a": "b"}}}', "has no vocabulary"),
        (b'{"model": {"type": "BPE", "vocab": {"a": 99999999999}}}', "has no vocabulary"),
    ],
)
def test_another_vocabulary_is_one_clause(draft, words):
    assert words in (why_not(tokenizer(), draft) or "")


def test_a_folder_tells_its_vocabulary_or_that_there_is_none(tmp_path):
    write_model(tmp_path / "m", "exl2", hidden=128)
    assert exl_folder.read(str(tmp_path / "m"))[0]["vocabulary"]["kind"] is None
    (tmp_path / "m" / "tokenizer.json").write_bytes(tokenizer())
    found = exl_folder.read(str(tmp_path / "m"))[0]["vocabulary"]
    assert (found["kind"], found["size"], len(found["sums"])) == ("BPE", 3001, 3)
