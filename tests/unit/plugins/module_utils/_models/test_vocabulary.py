# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Vocabularies of real headers, written with the gguf library."""

from __future__ import annotations

import pathlib
import typing as t

import gguf
import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, vocabulary


def read(path: pathlib.Path, words: t.Sequence[str], **changes: t.Any) -> dict[str, t.Any]:
    said = {"kind": "gpt2", "bos": 1, "eos": 2, "adds_bos": True, **changes}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model(said["kind"])
    writer.add_token_list([word.encode() for word in words])
    writer.add_bos_token_id(said["bos"])
    writer.add_eos_token_id(said["eos"])
    writer.add_add_bos_token(said["adds_bos"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return vocabulary.of_header(gguf_model.read_header(str(path), path.stat().st_size))


WORDS = [f"w{number}" for number in range(3000)]


@pytest.mark.parametrize(
    ("words", "changes", "why"),
    [
        (WORDS, {}, None),
        # the vocabulary of a larger model of the family is padded
        ([*WORDS, *(f"[PAD{number}]" for number in range(100))], {}, None),
        (WORDS[:2950], {}, None),
        (WORDS[:2800], {}, "its vocabulary has 2800 tokens, and that of the target 3000"),
        ([*WORDS[:500], "other", *WORDS[501:]], {}, "its tokens from 0 on are other words than those of the target"),
        ([*WORDS[:2999], "other"], {}, "its tokens from 2048 on are other words than those of the target"),
        (WORDS, {"kind": "llama"}, "its tokenizer is llama, and that of the target gpt2"),
        (WORDS, {"eos": 3}, None),
        (WORDS, {"bos": 3}, "its bos token is 3, and that of the target 1"),
        (WORDS, {"adds_bos": False}, "only one of the two adds the bos token"),
    ],
)  # fmt: skip
def test_what_keeps_a_draft_from_its_target(
    tmp_path: pathlib.Path, words: list[str], changes: dict[str, t.Any], why: str | None
) -> None:
    target = read(tmp_path / "target.gguf", WORDS)
    assert target["size"] == 3000 and len(target["sums"]) == 3
    assert vocabulary.why_not(target, read(tmp_path / "draft.gguf", words, **changes)) == why


def test_a_header_without_words_cannot_be_compared() -> None:
    assert vocabulary.why_not({}, {}) == "its header or that of the target has no vocabulary"
