# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Speculation in the summary and on the page."""

from __future__ import annotations

import copy
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import page, speculation_rows, summary
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report.view import Seen

TEMPLATE = pathlib.Path(__file__).parents[5] / "roles/report/templates/report.html.j2"
PLAIN: dict[str, t.Any] = {
    "kind": "none", "draft": "", "device": "", "n_max": 0, "name": "no speculation", "layers": [45, 36], "loads": 2,
    "status": "ok", "reason": None, "ms_per_token": 50.0, "prompt_tokens_per_second": 1000.0,
    "tokens_per_second": {"code": 20.0, "prose": 20.0}, "acceptance": {"code": None, "prose": None},
    "tokens_per_round": {"code": 1.0, "prose": 1.0},
}  # fmt: skip
DRAFT = {
    **PLAIN, "kind": "draft-simple", "draft": "small", "device": "GPU-1", "n_max": 4, "loads": 1,
    "name": "draft-simple small on CUDA0 n-max 4", "ms_per_token": 30.0, "prompt_tokens_per_second": 900.0,
    "tokens_per_second": {"code": 44.4, "prose": 19.0}, "acceptance": {"code": 0.81, "prose": 0.4},
    "tokens_per_round": {"code": 3.24, "prose": 1.6},
}  # fmt: skip
FAILED = {
    **DRAFT, "name": "draft-mtp on CUDA1 n-max 7", "kind": "draft-mtp", "draft": "", "status": "out_of_memory",
    "reason": "CUDA1 is full.", "ms_per_token": None, "prompt_tokens_per_second": None, "tokens_per_second": {},
    "acceptance": {}, "tokens_per_round": {},
}  # fmt: skip
SERVED = {name: DRAFT[name] for name in ("kind", "draft", "device", "n_max")}


@pytest.fixture
def entry(mixed: dict[str, t.Any]) -> dict[str, t.Any]:
    found = copy.deepcopy(mixed["entry"])
    why = "draft-simple small on CUDA0 n-max 4 takes 40.0 % less time"
    table = [PLAIN, DRAFT, FAILED]
    found["decision"]["speculation"] = {"verdict": "faster", "why": why, "served": SERVED, "table": table}
    return found


def test_the_summary_shows_each_kind_of_text(entry: dict[str, t.Any]) -> None:
    lines = summary.summary_lines(entry, None, None, None)
    start = next(index for index, line in enumerate(lines) if line.startswith("Speculation (tok/s by kind"))
    assert [" ".join(line.split()) for line in lines[start + 1 : start + 8]] == [
        "code prose prompt time",
        "1 20.0 20.0 1000 -",
        "2 44.4 (81%) 19.0 (40%) 900 -40.0% served",
        "3 - - - -",
        "1: no speculation",
        "2: draft-simple small on CUDA0 n-max 4; tokens per round: code 3.24, prose 1.60",
        "3: draft-mtp on CUDA1 n-max 7; out of memory: CUDA1 is full",
    ]
    assert any(line.strip().startswith("Speculation: draft-simple small on CUDA0") for line in lines)
    assert max(map(len, lines)) <= summary.WIDTH


def test_the_usual_kinds_of_text_and_long_names_have_room(entry: dict[str, t.Any]) -> None:
    kinds = ("code", "prose", "chat", "edit")
    name = "draft-simple llama_3_2_1b_instruct_q8_0 on CUDA0 n-max 4"
    drafted = {**DRAFT, "name": name, "tokens_per_second": dict.fromkeys(kinds, 144.4)}
    drafted |= {"acceptance": dict.fromkeys(kinds, 0.81), "tokens_per_round": dict.fromkeys(kinds, 3.24)}
    entry["decision"]["speculation"]["table"] = [drafted]
    lines = summary.summary_lines(entry, None, None, None)
    assert max(map(len, lines)) <= summary.WIDTH and any(line.strip().startswith(f"1: {name};") for line in lines)


def test_nothing_is_shown_where_nothing_was_tried(mixed: dict[str, t.Any]) -> None:
    assert speculation_rows.speculation_rows(mixed["entry"]) == []
    assert not any("Speculation" in line for line in summary.summary_lines(mixed["entry"], None, None, None))


def test_what_was_not_kept_leaves_none_as_served(entry: dict[str, t.Any]) -> None:
    entry["decision"]["speculation"]["served"] = None
    assert [row["chosen"] for row in speculation_rows.speculation_rows(entry)] == [True, False, False]


def test_the_page_has_the_same_table(entry: dict[str, t.Any]) -> None:
    template = TEMPLATE.read_text(encoding="utf-8")
    html = page.render(entry, template, Seen(), [], [], "", "", "")
    assert "<h2>Speculation</h2>" in html and "44.4 (81%)" in html and "out of memory: CUDA1 is full" in html
    assert html.count("<td>code 3.24, prose 1.60</td>") == 1 and html.count("<th>Tokens per round</th>") == 1
    entry["decision"]["speculation"] = None
    assert "<h2>Speculation</h2>" not in page.render(entry, template, Seen(), [], [], "", "", "")
