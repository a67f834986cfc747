# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import hashlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer
from hypothesis import given
from hypothesis import strategies as st

URL = "https://user:secret@models.example:8443/a/m.gguf?token=secret"
SHA = "ab" * 32


def test_nothing_secret_is_shown():
    assert transfer.shown_url(URL) == "https://models.example:8443/a/m.gguf"
    with pytest.raises(transfer.DownloadError) as caught:
        transfer.check_url("ftp://user:secret@models.example/m.gguf?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "m.gguf", "file:///m.gguf", "http://", "http://host/", "http://host:x/m", "http://[::1/m"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(transfer.DownloadError):
        transfer.check_url(url)


def test_figures_for_people():
    sizes = (0, 2048, 393 << 20, 42520395008)
    assert [transfer.size_text(n) for n in sizes] == ["0 KiB", "2 KiB", "393 MiB", "39.6 GiB"]
    assert [transfer.duration_text(n) for n in (40, 720, 7500)] == ["40 s", "12 min", "2 h 5 min"]
    line = transfer.progress_line("m.gguf: downloading", 50 << 20, 100 << 20, 10 << 20)
    assert line == "m.gguf: downloading: 50 MiB of 100 MiB (50 %), 10 MiB/s, 5 s left"
    assert transfer.progress_line("m", 5 << 20, None, 0) == "m: 5 MiB, stalled"


def test_rate_covers_a_window_and_starts_anew():
    rate = transfer.Rate(10)
    assert rate.add(0, 0) == 0
    assert rate.add(5, 500) == 100
    assert rate.add(20, 500) == 0          # nothing came within the window
    assert rate.add(21, 100) == 0          # began again: one point says nothing
    assert rate.add(22, 200) == 100


@given(st.integers(1, 60), st.floats(0, 10), st.one_of(st.none(), st.text(), st.integers(0, 10**6).map(str)))
def test_pauses_are_bounded(attempt, first, retry_after):
    assert 0 <= transfer.wait_seconds(attempt, first) <= 30
    assert 0 <= transfer.wait_seconds(attempt, first, retry_after) <= 600


def test_pauses_double_and_heed_the_server():
    assert [transfer.wait_seconds(n, 1) for n in (1, 2, 3, 9)] == [1, 2, 4, 30]
    assert transfer.wait_seconds(1, 1, "7") == 7
    assert transfer.wait_seconds(1, 1, "Wed, 21 Oct 2026 07:28:00 GMT") == 1


@pytest.mark.parametrize(
    ("status", "headers", "offset", "known", "action"),
    [
        (200, {"Content-Length": "90"}, 0, None, ("write", 0, 90)),
        (200, {}, 40, 90, ("write", 0, None)),                              # no ranges: from the beginning
        (206, {"Content-Range": "bytes 40-89/90"}, 40, 90, ("write", 40, 90)),
        (206, {"Content-Range": "bytes 40-89/*"}, 40, 90, ("write", 40, 90)),
        (206, {"Content-Range": "bytes 30-89/90"}, 40, 90, ("discard", 0, None)),
        (206, {}, 40, 90, ("discard", 0, None)),
        (206, {"Content-Range": "bytes 40-98/99"}, 40, 90, ("discard", 0, None)),
        (416, {"Content-Range": "bytes */40"}, 40, None, ("complete", 40, 40)),
        (416, {"Content-Range": "bytes */30"}, 40, None, ("discard", 0, None)),
        (416, {}, 0, None, ("refuse", 0, None)),
        (503, {}, 0, None, ("retry", 0, None)),
        (429, {}, 0, None, ("retry", 0, None)),
        (404, {}, 0, None, ("refuse", 0, None)),
        (302, {}, 0, None, ("refuse", 0, None)),
    ],
)
def test_answers_are_judged(status, headers, offset, known, action):
    answer = transfer.judge_answer(URL, status, headers, offset, known)
    assert (answer.action, answer.offset, answer.total) == action
    assert "secret" not in answer.reason
    assert bool(answer.reason) == (answer.action in ("discard", "retry", "refuse"))


def test_a_refusal_says_what_to_do():
    assert "there is no such file" in transfer.judge_answer(URL, 404, {}, 0).reason
    assert "licence" in transfer.judge_answer(URL, 403, {}, 0).reason


def test_only_the_same_content_is_continued_and_only_with_validators_of_the_same_server():
    state = transfer.part_state(URL, SHA, {"ETag": '"1"', "Last-Modified": "yesterday"}, 90)
    assert "secret" not in str(state)
    assert transfer.can_resume(state, SHA) and not transfer.can_resume(state, "cd" * 32)
    assert not transfer.can_resume(None, SHA) and not transfer.can_resume([], SHA)
    assert transfer.range_headers(URL, 0, state) == {}
    assert transfer.range_headers(URL, 40, state) == {"Range": "bytes=40-", "If-Range": '"1"'}
    assert transfer.range_headers("http://other/m.gguf", 40, state) == {"Range": "bytes=40-"}
    weak = {**state, "etag": 'W/"1"'}
    assert transfer.range_headers(URL, 40, weak) == {"Range": "bytes=40-", "If-Range": "yesterday"}


def test_a_manifest_describes_one_state_of_one_file():
    recorded = transfer.manifest("/m/x.gguf", transfer.Digest(SHA), 90, 1, 2, {"kind": "url"})
    assert transfer.describes(recorded, 90, 1, 2)
    for changed in ((91, 1, 2), (90, 2, 2), (90, 1, 3)):
        assert not transfer.describes(recorded, *changed)
    for damaged in (None, [], {}, {**recorded, "sha256": None}, {**recorded, "sha256": "x"}, {**recorded, "schema": 2}):
        assert not transfer.describes(damaged, 90, 1, 2)
    assert transfer.manifest_name("/a/x.gguf") != transfer.manifest_name("/b/x.gguf")


def shards(count=3):
    numbers = range(1, count + 1)
    return [{"url": f"http://host/x-{i:05d}-of-{count:05d}.gguf", "sha256": f"{i}{i}" * 32} for i in numbers]


def test_files_of_models():
    files = transfer.model_files(
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
    ("entries", "sentence"),
    [
        ([{}], "the id None"),
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
def test_entries_that_are_not_understood(entries, sentence):
    with pytest.raises(transfer.DownloadError, match=sentence) as caught:
        transfer.model_files(entries, "/models")
    assert "\n" not in str(caught.value)


def look(identifier, path, present=True, sha256=SHA, size=10, missing=0, free=100):
    return {
        "item": {"id": identifier, "path": path, "model_path": path, "kind": "url", "known": True}, "filesystem": "/m",
        "present": present, "sha256": sha256, "size_bytes": size,
        "missing_bytes": missing, "free_bytes": free,
    }


def test_installed_models_say_what_is_known():
    results = [
        look("a", "/m/a/a.gguf"),
        look("b", "/m/b/1.gguf", sha256="11" * 32, size=3), look("b", "/m/b/2.gguf", sha256="22" * 32, size=4),
        look("c", "/m/c/c.gguf", present=False, sha256=None, size=None),
        look("d", "/m/d/1.gguf", sha256=SHA), look("d", "/m/d/2.gguf", present=False, sha256=None, size=None),
    ]
    both = hashlib.sha256(("11" * 32 + "\n" + "22" * 32 + "\n").encode()).hexdigest()
    assert transfer.installed_models(results) == {
        "a": {"path": "/m/a/a.gguf", "sha256": SHA, "size_bytes": 10},
        "b": {"path": "/m/b/1.gguf", "sha256": both, "size_bytes": 7},
        "c": {"path": "/m/c/c.gguf", "sha256": "", "size_bytes": None},
        "d": {"path": "/m/d/1.gguf", "sha256": "", "size_bytes": None},
    }
    assert transfer.installed_models([]) == {}


def test_pending_is_what_is_missing_or_was_never_recorded():
    results = [look("a", "/a"), look("b", "/b", present=False), look("c", "/c", sha256=None)]
    assert [file["id"] for file in transfer.pending_files(results)] == ["b", "c"]


def test_what_is_missing_must_fit_all_together():
    gib = 1 << 30
    fits = [look("a", "/m/a/a", missing=3 * gib, free=6 * gib), look("b", "/m/b/b", missing=3 * gib, free=6 * gib)]
    assert transfer.disk_shortfall(fits) == "" == transfer.disk_shortfall([look("c", "/c", missing=None, free=0)])
    sentence = transfer.disk_shortfall([*fits, look("b", "/m/b/c", missing=gib, free=6 * gib)])
    assert sentence == "/m has 6144 MiB free, and a, b still need 7168 MiB: free 1024 MiB, or choose another directory."
