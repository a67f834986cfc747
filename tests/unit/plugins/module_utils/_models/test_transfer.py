# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import transfer
from hypothesis import given
from hypothesis import strategies as st

URL = "https://user:secret@models.example:8443/a/m.gguf?token=secret"
SHA = "ab" * 32


def test_nothing_secret_is_shown():
    assert transfer.shown_url(URL) == "https://models.example:8443/a/m.gguf"
    with pytest.raises(UserError) as caught:
        transfer.check_url("ftp://user:secret@models.example/m.gguf?token=secret")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["", "m.gguf", "file:///m.gguf", "http://", "http://host/", "http://host:x/m", "http://[::1/m"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(UserError):
        transfer.check_url(url)


def test_figures_for_people():
    sizes = (0, 2048, 393 << 20, 42520395008)
    assert [transfer.size_text(n) for n in sizes] == ["0 KiB", "2 KiB", "393 MiB", "39.6 GiB"]
    assert [transfer.duration_text(n) for n in (40, 720, 7500)] == ["40 s", "12 min", "2 h 5 min"]
    line = transfer.progress_line("m.gguf: downloading", 50 << 20, 100 << 20, 10 << 20)
    assert line == "m.gguf: downloading: 50 MiB of 100 MiB (50 %), 10 MiB/s, 5 s left"
    assert transfer.progress_line("m", 5 << 20, None, 0) == "m: 5 MiB, stalled"


def test_rate_covers_a_window_and_starts_anew():
    rate = transfer.Rate()
    assert rate.add(0, 0) == 0
    assert rate.add(5, 500) == 100
    assert rate.add(20, 500) == 0          # nothing came within the window
    assert rate.add(21, 100) == 0          # began again: one point says nothing
    assert rate.add(22, 200) == 100


@given(st.integers(1, 60), st.floats(0, 10), st.one_of(st.none(), st.floats(0, 1e18)))
def test_pauses_are_bounded(attempt, first, asked):
    assert 0 <= transfer.wait_seconds(attempt, first, None) <= 30
    assert 0 <= transfer.wait_seconds(attempt, first, asked) <= 600


def test_pauses_double_and_heed_the_server():
    assert [transfer.wait_seconds(n, 1, None) for n in (1, 2, 3, 9)] == [1, 2, 4, 30]
    assert transfer.wait_seconds(1, 1, 7) == 7 and transfer.wait_seconds(1, 1, 180) == 180
    assert transfer.wait_seconds(4, 1, 2) == 8 and transfer.wait_seconds(1, 1, 3600) == 600


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
        (206, {"Content-Range": "bytes 40-89/30"}, 40, None, ("discard", 0, None)),
        (206, {"Content-Range": f"bytes 40-89/{'9' * 5000}"}, 40, None, ("discard", 0, None)),
        (206, {"Content-Range": "bytes 40-89/90\n"}, 40, 90, ("discard", 0, None)),
        (200, {"Content-Length": "9" * 5000}, 0, None, ("write", 0, None)),
        (200, {"Content-Length": "-1"}, 0, None, ("write", 0, None)),
        (200, {"Content-Length": "\u00b2"}, 0, None, ("write", 0, None)),
        (200, {"Content-Length": "90", "Content-Encoding": "gzip"}, 0, None, ("refuse", 0, None)),
        (206, {"Content-Range": "bytes 40-89/90", "Content-Encoding": "br"}, 40, 90, ("refuse", 0, None)),
        (200, {"Content-Length": "90", "Content-Encoding": "identity"}, 0, None, ("write", 0, 90)),
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
    answer = transfer.judge_answer(URL, status, headers, offset, known, False)
    assert (answer.action, answer.offset, answer.total) == action
    assert "secret" not in answer.reason
    assert answer.reason.isprintable()
    assert bool(answer.reason) == (answer.action in ("discard", "retry", "refuse"))


def test_a_refusal_says_what_to_do():
    assert "there is no such file" in transfer.judge_answer(URL, 404, {}, 0, None, False).reason
    assert "licence" in transfer.judge_answer(URL, 403, {}, 0, None, False).reason


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


@pytest.mark.parametrize("total", [True, -1, "90", 1.5, None, [1], 2**70])
def test_a_state_that_somebody_else_wrote_is_believed_as_far_as_it_can_be_true(total):
    state = {"url": 7, "sha256": SHA, "etag": "a\r\nX: y", "last_modified": ["a"], "total_bytes": total, "more": {}}
    assert transfer.sound_state(state) == {"sha256": SHA, "total_bytes": None}
    assert transfer.range_headers(URL, 40, transfer.sound_state(state)) == {"Range": "bytes=40-"}
    good = transfer.part_state(URL, SHA, {"ETag": '"1"', "Last-Modified": "yesterday"}, 90)
    assert transfer.sound_state(good) == good
