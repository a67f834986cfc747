# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import text
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import summary

PROBED = {
    "devices": [
        {
            "device": "CUDA0", "id": "GPU-11111111-2222-3333-4444-555555555555", "status": "ok", "reason": None,
            "decode_ms_per_token": {"median": 1.5, "low": 1.48, "high": 1.52}, "bandwidth_gb_per_s": 668.2,
            "theoretical_bandwidth_gb_per_s": 1008.1, "prefill_tokens_per_second": 9000.4, "rank": 2,
        },
        {
            "device": "CUDA1", "id": "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa", "status": "ok", "reason": None,
            "decode_ms_per_token": {"median": 1.2, "low": 1.19, "high": 1.21}, "bandwidth_gb_per_s": 835.0,
            "theoretical_bandwidth_gb_per_s": 936.1, "prefill_tokens_per_second": 7000.0, "rank": 1,
        },
    ],
    "warning": "CUDA0 should be the faster card.",
}


def test_each_device_alone_is_shown_the_fastest_first(mixed: dict[str, t.Any]) -> None:
    lines = summary.summary_lines({**mixed["entry"], "device_probe": PROBED}, None, None, None)
    start = next(index for index, line in enumerate(lines) if line.startswith("Each device alone"))
    assert [line.split() for line in lines[start + 2 : start + 5]] == [
        ["CUDA1", "NVIDIA", "GeForce", "RTX", "3090", "1", "1.20", "835", "936", "7000"],
        ["CUDA0", "NVIDIA", "GeForce", "RTX", "4090", "2", "1.50", "668", "1008", "9000"],
        ["Warning:", "CUDA0", "should", "be", "the", "faster", "card."],
    ]
    assert max(map(len, lines)) <= 100


def test_a_device_that_was_not_probed_says_why(mixed: dict[str, t.Any]) -> None:
    nothing = {
        "status": "skipped", "reason": "100 MiB are usable", "decode_ms_per_token": None, "bandwidth_gb_per_s": None,
        "prefill_tokens_per_second": None, "rank": None,
    }
    devices = [{**PROBED["devices"][0], **nothing}, {**PROBED["devices"][1]}]
    entry = {**mixed["entry"], "device_probe": {"devices": devices, "warning": None}}
    lines = summary.summary_lines(entry, None, None, None)
    assert "  CUDA0 NVIDIA GeForce RTX 4090: skipped, 100 MiB are usable" in lines
    assert not [line for line in lines if "Warning" in line]


def test_records_without_a_probe_show_none(mixed: dict[str, t.Any]) -> None:
    for entry in (mixed["entry"], {**mixed["entry"], "device_probe": None}):
        assert not [line for line in summary.summary_lines(entry, None, None, None) if "alone" in line]


def test_the_summary_stays_within_its_columns(deployment: dict[str, t.Any]) -> None:
    lines = summary.summary_lines(deployment["entry"], deployment["served"], deployment["devices"], None)
    assert all(len(line) <= 100 and line.isascii() for line in lines)
    chosen = text.vector(deployment["entry"]["decision"]["layers"])
    (marked,) = [line for line in lines if line.endswith("chosen")]
    assert marked.split()[0] == chosen


def test_the_summary_has_what_all_cards_draw_with_the_host_of_a_lent_one(mixed: dict[str, t.Any]) -> None:
    own, lent = mixed["served"]["power"]["cards"]
    power = {**mixed["served"]["power"], "cards": [own, {**lent, "device": "RPC0", "host": "pc2"}]}
    lines = summary.summary_lines(mixed["entry"], {**mixed["served"], "power": power}, None, None)
    said = " ".join(" ".join(lines[-2:]).split())
    assert said.endswith("29.8 J per token, 0.034 tokens per second per watt")
    assert said.startswith("Power: 516 W for all cards (CUDA0 265 W, RPC0 of pc2 251 W), ")
    unknown = summary.summary_lines(mixed["entry"], {**mixed["served"], "power": {"reason": "no driver"}}, None, None)
    assert not any("Power:" in line for line in unknown)


def test_the_summary_names_skipped_tests(sandbox: dict[str, t.Any]) -> None:
    lines = summary.summary_lines(sandbox["entry"], sandbox["served"], sandbox["devices"], None)
    assert "  at_8k: skipped, needs 8064 tokens and a slot of this server has 2048" in lines


def test_the_summary_holds_what_a_person_asks_for(sandbox: dict[str, t.Any]) -> None:
    lines = summary.summary_lines(sandbox["entry"], sandbox["served"], sandbox["devices"], None)
    assert lines[0] == "mixed_gpu sandbox: 23 of 33 layers on RPC0 and 10 on RPC1"
    assert lines[1].startswith("  It takes 11.2% less time than llama.cpp's default split 17,16")
    shown = "\n".join(lines)
    assert "RPC0 127.0.0.1:50052      23      285     283     300    17" in shown
    assert "24,9    out of memory" in shown


def test_a_summary_with_experts_in_ram(experts: dict[str, t.Any]) -> None:
    lines = summary.summary_lines(experts, None, None, None)
    (marked,) = [line for line in lines if line.endswith("chosen")]
    assert " in RAM" in marked and all(len(line) <= 100 or "in RAM" in line for line in lines)
