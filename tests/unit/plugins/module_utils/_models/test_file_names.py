# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Names, sizes and hashes as a hub or a URL might give them, of every kind that must not be written."""

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import entries, file_names, hub_api
from hypothesis import given
from hypothesis import strategies as st

COMMIT, SHA, SHA1 = "b" * 40, "a" * 64, "c" * 40
REPO = "owner/name"
WEIGHTS = "model.safetensors"


def file(name: t.Any, size: t.Any = 10, sha256: t.Any = SHA, git_sha1: t.Any = None) -> dict[str, t.Any]:
    return {"name": name, "size_bytes": size, "sha256": sha256, "git_sha1": git_sha1}


def record(listed: list[dict[str, t.Any]], commit: t.Any = COMMIT, **question: t.Any) -> list[str]:
    asked = {"repo": REPO, "revision": "main", "files": [], "quant": None, **question}
    made = hub_api.record(asked, commit, listed, "https://hub", "now")
    assert hub_api.read_record(json.dumps(made), "/record") == made
    return [each["name"] for each in made["files"]]


def refused(listed: list[dict[str, t.Any]], **more: t.Any) -> str:
    with pytest.raises(UserError) as caught:
        record(listed, **more)
    said = str(caught.value)
    assert said.isprintable() and said.endswith(".") and len(said) < 700
    return said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\tb.gguf", "cannot be shown"), ("m.gguf\r\n", "cannot be shown"), ("\x9bm.gguf", "cannot be shown"),
        ("m\u2066x.gguf", "cannot be shown"), ("m\u200f.gguf", "cannot be shown"), ("m\ud800.gguf", "cannot be shown"),
        ("sub/./m.gguf", "leave its directory"), ("sub//m.gguf", "leave its directory"), ("", "leave its directory"),
        ("sub/../../m.gguf", "leave its directory"), ("C:\\m.gguf", "leave its directory"),
        ("/srv/m.gguf", "leave its directory"), ("m" * 201 + ".gguf", "longer than"), ("\u00e4" * 101, "longer than"),
        ("$HOME/m.gguf", "for a variable"), ("a-${PATH}.gguf", "for a variable"), ("{{ 1 }}.gguf", "for a variable"),
        ("{% raw %}.gguf", "for a variable"),
        ("d/" * 600 + "m.gguf", "longer than"), (None, "no text"), (7, "no text"), (["m.gguf"], "no text"),
    ],
)  # fmt: skip
def test_names_that_must_not_be_written(name: t.Any, words: str) -> None:
    assert words in refused([file(name), file("good.gguf")])


@pytest.mark.parametrize("name", ["Modell-\u00e4\u00f6.gguf", "a b (1).gguf", "m[v2].gguf", "m" * 190 + ".gguf"])
def test_names_that_are_merely_unusual(name: str) -> None:
    assert record([file(name)]) == [name]


@pytest.mark.parametrize("size", [-5, False, "12", 1.5, 3.0, None, [1], 1 << 62, 10**30, float("nan")])
def test_sizes_that_are_none(size: t.Any) -> None:
    assert "no hash or size of m.gguf" in refused([file("m.gguf", size)])


@pytest.mark.parametrize(
    ("sha256", "git_sha1"),
    [
        (f"{SHA}\n", None), (SHA.upper(), None), (SHA[1:], None), (7, None), (None, f"{SHA1}\n"), (SHA, "x"),
        (None, None), ([SHA], None), ("\u0661" * 64, None),
    ],
)  # fmt: skip
def test_hashes_that_are_none(sha256: t.Any, git_sha1: t.Any) -> None:
    assert "no hash or size of m.gguf" in refused([file("m.gguf", 10, sha256, git_sha1)])


@pytest.mark.parametrize("commit", [f"{COMMIT}\n", "B" * 40, "main", "", None, 5, "../" * 10])
def test_commits_that_are_none(commit: t.Any) -> None:
    assert "no commit" in refused([file("m.gguf")], commit=commit)


@pytest.mark.parametrize(
    ("names", "asked", "words"),
    [
        (["sub.json", "sub.json/a.json", WEIGHTS], [], "both a file 'sub.json' and a file 'sub.json/a.json' below it"),
        (["a.json", "a.json/b/c.json", WEIGHTS], [], "both a file 'a.json'"),
        ([WEIGHTS, "config.json.part.json"], [], "as this collection names unfinished files"),
        ([WEIGHTS, f"{WEIGHTS}.part"], [WEIGHTS, f"{WEIGHTS}.part"], "as this collection names unfinished files"),
        ([WEIGHTS, "sub/x.json.corrupt"], ["*", "sub/x.json.corrupt"], "as this collection names unfinished files"),
        ([WEIGHTS, ".new-a.json"], [".new-a.json"], "as this collection names unfinished files"),
        ([WEIGHTS, WEIGHTS], [], "twice"),
    ],
)
def test_names_that_cannot_lie_side_by_side(names: list[str], asked: list[str], words: str) -> None:
    assert words in refused([file(name) for name in names], files=asked)


def test_a_whole_repository_is_what_engines_read() -> None:
    wanted = ["chat_template.jinja", "config.json", "merges.txt", "sub/tokenizer.model", WEIGHTS]
    others = [
        "pytorch_model.bin", "weights.pt", "w.PTH", "w.ckpt", "w.pkl", "w.npz", "modeling_x.py", "run.sh", "x.so",
        ".gitattributes", ".cache/.x.json", "README.md", "w.h5", "w.msgpack", "image.png", "x.gguf.sha256",
    ]  # fmt: skip
    assert record([file(name) for name in wanted + others]) == sorted(wanted)
    assert record([file(name) for name in wanted + others], files=["*"]) == sorted(wanted)
    assert record([file(name) for name in wanted + others], files=["run.sh"]) == ["run.sh"]
    assert "neither GGUF nor safetensors files" in refused([file(name) for name in others[:-1] + wanted[:-1]])


@pytest.mark.parametrize(
    "parts",
    [
        ["m.Q8_0.gguf.part1of3", "m.Q8_0.gguf.part2of3", "m.Q8_0.gguf.part3of3"],
        ["m.Q8_0.gguf.partaa", "m.Q8_0.gguf.partab"], ["m.Q8_0.gguf.part-aa", "m.Q8_0.gguf.part-ab"],
        ["m.Q8_0.gguf.part_1", "m.Q8_0.gguf.part_2"], ["m.Q8_0.gguf.00001", "m.Q8_0.gguf.00002"],
        ["m.Q8_0.gguf.001"], ["m.Q8_0.gguf-split-a", "m.Q8_0.gguf-split-b"], ["m.Q8_0.gguf.1of2", "m.Q8_0.gguf.2of2"],
        ["m.Q8_0.gguf.split-00001-of-00002", "m.Q8_0.gguf.split-00002-of-00002"], ["m.Q8_0.gguf.chunk_07"],
        ["m.Q8_0.gguf.aa", "m.Q8_0.gguf.ab"], ["m.Q8_0.part1of2.gguf", "m.Q8_0.part2of2.gguf"],
        ["q/m-Q8_0.partaa", "q/m-Q8_0.partab"], ["m.Q8_0.gguf.zip.001", "m.Q8_0.gguf.zip.002"], ["m.Q8_0.gguf.z01"],
        ["m.Q8_0.GGUF.Part1Of2", "m.Q8_0.GGUF.Part2Of2"], ["m.Q8_0.ggufaa", "m.Q8_0.ggufab"],
        ["m.Q8_0.gguf00", "m.Q8_0.gguf01"], ["m.Q8_0.gguf-00001-of-00002", "m.Q8_0.gguf-00002-of-00002"],
        ["m-Q8_0-part1.gguf", "m-Q8_0-part2.gguf"], ["m-Q8_0_part_1_of_2.gguf", "m-Q8_0_part_2_of_2.gguf"],
        ["m-Q8_0-1of2.gguf", "m-Q8_0-2of2.gguf"], ["m-Q8_0-split-1.gguf", "m-Q8_0-split-2.gguf"],
        ["m-Q8_0.part1.rar", "m-Q8_0.part2.rar"], ["m-Q8_0.gguf.xaa", "m-Q8_0.gguf.xab"],
        ["m.Q8_0.gguf.tar.part1", "m.Q8_0.gguf.tar.part2"], ["m.Q8_0.gguf_part_aa", "m.Q8_0.gguf_part_ab"],
    ],
)  # fmt: skip
def test_raw_parts_are_refused_before_a_byte_however_they_are_asked_for(parts: list[str]) -> None:
    names = ["README.md", "m.Q4_K_M.gguf", *parts]
    for asked in ({"quant": "Q8_0"}, {"files": ["*Q8_0*"]}, {"files": parts}):
        said = refused([file(name) for name in names], **asked)
        assert "raw byte part" in said and parts[0] in said and "join the parts in order with cat" in said, said
    assert "raw byte part" in refused([file(name) for name in ["README.md", *parts]])
    assert (
        record([file(name) for name in names], quant="Q4_K_M")
        == ["m.Q4_K_M.gguf"]
        == record([file(name) for name in names])
    )


@pytest.mark.parametrize(
    "name",
    [
        "m-00001-of-00002.gguf", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "m.gguf.md5",
        "m.gguf.sha256", "m.gguf.md", "m.gguf.zip", "m.gguf.gz", "m.gguf.json", "m.gguf.part", "my-part-2-model.gguf",
        "m-part-00001-of-00002.gguf", "m-split-00001-of-00002.gguf", "Phi-3-vol-2.gguf",
        "model-1-of-2.safetensors", "pytorch_model.bin.index.json", "m.gguf.partial",
        "m.gguf2", "m.gguf.json5", "x.binary", "m.safetensorsx", "m.v0.1.gguf", "config.json",
    ],
)  # fmt: skip
def test_what_is_no_raw_part(name: str) -> None:
    assert file_names.raw_parts([name]) == {}


@given(st.lists(st.text(max_size=60), max_size=20))
def test_any_names_are_sorted_into_parts_and_others(names: list[str]) -> None:
    found = [name for parts in file_names.raw_parts(names).values() for name in parts]
    assert len(found) == len(set(found)) and set(found) <= set(names)


def test_a_name_with_brackets_means_itself() -> None:
    files = [file("m[v2].gguf"), file("mv.gguf"), file("m2.gguf")]
    assert record(files, files=["m[v2].gguf"]) == ["m[v2].gguf"]
    assert record(files[1:], files=["m[v].gguf"]) == ["mv.gguf"]


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"id": "m\n", "path": "/m.gguf"}, "the id"), ({"id": "m" * 101, "path": "/m.gguf"}, "the id"),
        ({"url": "https://h/a%09b.gguf", "sha256": SHA}, "cannot be shown"),
        ({"url": "https://h/m%E2%80%AEfugg.gguf", "sha256": SHA}, "cannot be shown"),
        ({"url": "https://h/a%0db.gguf", "sha256": SHA}, "cannot be shown"),
        ({"url": "https://h/a\nb.gguf", "sha256": SHA}, "cannot be shown"),
        ({"url": "https://h/" + "a" * 300 + ".gguf", "sha256": SHA}, "longer than"),
        ({"url": "https://h/m.gguf.part1of2", "sha256": SHA}, "raw byte part"),
        ({"url": "https://h/m.gguf.001?download=true", "sha256": SHA}, "raw byte part"),
        ({"url": "https://h/m.gguf", "sha256": f"{SHA}\n"}, "not 64 hexadecimal digits"),
        ({"repo": f"{REPO}\n"}, "no repository"), ({"repo": 5}, "the repo 5"),
        ({"repo": REPO, "revision": "main\n"}, "no revision"), ({"repo": REPO, "revision": 4.0}, "the revision 4.0"),
        ({"repo": REPO, "revision": "a/../../x"}, "no revision"), ({"repo": REPO, "revision": "a//b"}, "no revision"),
        ({"repo": REPO, "quant": "Q4\n"}, "no quant name"), ({"repo": REPO, "quant": 4}, "the quant 4"),
        ({"repo": REPO, "files": ["m.gguf\n"]}, "cannot be shown"), ({"repo": REPO, "files": [7]}, "no text"),
        ({"repo": REPO, "files": ["m.gguf.partaa"]}, "raw byte part"),
        ({"repo": REPO, "files": "m.gguf"}, "the files 'm.gguf'"), ({"url": 5, "sha256": SHA}, "the url 5"),
        ({"url": "https://h/m.gguf", "sha256": int("1" * 64)}, "the sha256 1111"), ({"path": 5}, "the path 5"),
        ({"path": "/m\0.gguf"}, "cannot be shown"), ({"path": "/m\n.gguf"}, "cannot be shown"),
        ({"generate": 5}, "the generate 5"), ({"shards": "x"}, "the shards 'x'"), ({"shards": [5]}, "the shard 5"),
        ({"shards": [{"url": 5}]}, "the url 5"), ({"url": "https://h/%24HOME.gguf", "sha256": SHA}, "for a variable"),
        ({"repo": REPO, "files": ["m.gguf"], "size_bytes": -1}, "the size_bytes -1"),
        ({"repo": REPO, "files": ["m.gguf"], "size_bytes": True}, "the size_bytes True"),
        ({"repo": REPO, "files": ["m.gguf"], "size_bytes": "10"}, "the size_bytes '10'"),
        ({"repo": REPO, "files": ["m.gguf"], "size_bytes": 2**80}, "the size_bytes 12089"),
    ],
)  # fmt: skip
def test_entries_that_must_not_be_followed(entry: dict[str, t.Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        entries.model_files([{"id": "m", **entry}], "/srv/models")
    said = str(caught.value)
    assert words in said and said.isprintable() and len(said) < 600


def test_many_shards_are_grouped_in_one_pass() -> None:
    names = [f"m-{number:05d}-of-20000.gguf" for number in range(1, 20001)]
    assert hub_api.select(names, [], None, REPO) == ("gguf", names)


def test_a_record_that_is_nested_too_deep_is_damaged() -> None:
    with pytest.raises(UserError, match="/r cannot be used: it holds no JSON .it is nested"):
        hub_api.read_record("[" * 100_000, "/r")
