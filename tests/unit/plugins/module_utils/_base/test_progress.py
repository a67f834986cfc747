from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import progress
from hypothesis import given
from hypothesis import strategies as st


@pytest.mark.parametrize(
    ("tail", "line"),
    [
        ("", ""),
        ("\n\n  \n", ""),
        ("one\ntwo\n", "two"),
        ("one\ntwo", "two"),
        ("10 %\r50 %\r100 %\r\n\n", "100 %"),
        ("\x1b[32m[3/9]\x1b[0m Building\x1b[K\r\n", "[3/9] Building"),
        ("\x1b]0;a title\x07done\n", "done"),
        ("a\tb\x00\x08c\n", "a bc"),
        ("half of a line that tail cut\nwhole\n\x1b[2K\r", "whole"),
        ("größer 71,5 MB\n", "größer 71,5 MB"),
        ("model-\u202efugg.gguf\u2028 71 %\n", "model-fugg.gguf 71 %"),
    ],
)
def test_newest_line(tail, line):
    assert progress.newest_line(tail) == line


@given(st.text())
def test_newest_line_is_always_one_printable_line(tail):
    line = progress.newest_line(tail)
    assert not set(line) & set("\n\r\t\x00\x1b\x07\x7f\x9b")
    assert line == line.strip()
    assert line.isprintable()           # no mark that turns a line round, and no separator of lines either


def test_fit_keeps_the_counter_and_the_file_name():
    line = "[53/226  23%] Building CXX object ggml/src/CMakeFiles/ggml-cpu.dir/ggml-cpu/arch/x86/quants.cpp.o"
    short = progress.fit(line, 60)
    assert len(short) == 60
    assert short.startswith("[53/226  23%] Building CXX")
    assert short.endswith("x86/quants.cpp.o")
    assert progress.fit(line, 200) == line


@given(st.text(), st.integers(-5, 300))
def test_fit_never_exceeds_the_width(line, width):
    assert len(progress.fit(line, width)) <= max(width, 20)


def test_ticker_shows_new_lines_but_not_too_often():
    ticker = progress.Ticker(started=100, heartbeat_seconds=15, quiet_seconds=4)
    assert ticker.tick(100, "a") == "a"
    assert ticker.tick(102, "b") is None
    assert ticker.tick(104, "c") == "c"
    assert ticker.tick(110, "c") is None
    assert ticker.tick(111, "d") == "d"


def test_ticker_gives_a_sign_of_life_when_nothing_changes():
    ticker = progress.Ticker(started=100, heartbeat_seconds=15, quiet_seconds=4)
    assert ticker.tick(102, "") is None
    assert ticker.tick(115, "") == "still running, 15 s"
    assert ticker.tick(117, "a") is None
    assert ticker.tick(119, "a") == "a"
    assert ticker.tick(133, "a") is None
    assert ticker.tick(134, "a") == "still running, 34 s"
    assert ticker.tick(149, "a") == "still running, 49 s"


@given(st.lists(st.tuples(st.floats(0.1, 5), st.sampled_from(["", "a", "b"]))))
def test_ticker_never_stays_silent_longer_than_heartbeat_and_one_poll(polls):
    ticker = progress.Ticker(started=0, heartbeat_seconds=15, quiet_seconds=4)
    now = last = 0.0
    for pause, line in polls:
        now += pause
        if ticker.tick(now, line) is not None:
            last = now
        assert now - last < 15


def test_a_label_gives_way_before_the_line_does():
    line = "12.3 GiB of 39.6 GiB (31 %), 45 MiB/s, 10 min left"
    shown = progress.labelled("sandbox", "Llama-3.3-70B-Instruct-Q4_K_M.gguf", line, 79)
    assert shown == f"  sandbox | Llama-3.3-70...: {line}" and len(shown) <= 79
    assert progress.labelled("sandbox", "m.gguf", line, 79) == f"  sandbox | m.gguf: {line}"
    assert len(progress.labelled("sandbox", "m" * 99, "x" * 99, 79)) == 79
