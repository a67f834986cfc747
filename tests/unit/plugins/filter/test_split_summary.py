# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import pathlib

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.split_summary import FilterModule

FIXTURES = pathlib.Path(__file__).parents[3] / "fixtures/report"
split_summary = FilterModule().filters()["split_summary"]


def test_it_holds_what_a_person_asks_for() -> None:
    data = json.loads((FIXTURES / "sandbox.json").read_text(encoding="utf-8"))
    lines = split_summary(data["entry"], data["served"], data["devices"], url="http://127.0.0.1:8080", report="r.html")
    assert lines[0] == "mixed_gpu sandbox: 23 of 33 layers on RPC0 and 10 on RPC1"
    assert lines[1].startswith("  It takes 11.2% less time than llama.cpp's default split 17,16")
    text = "\n".join(lines)
    assert "RPC0 127.0.0.1:50052      23      285     283     300    17" in text
    assert "24,9    out of memory" in text
    assert lines[-2:] == ["URL     http://127.0.0.1:8080", "Report  r.html"]


@pytest.mark.parametrize("entry", [{}, {"decision": {}}, {"model": {"id": "x"}, "decision": None}])
def test_what_is_no_entry(entry: dict[str, object]) -> None:
    with pytest.raises(AnsibleFilterError, match="is no entry of ansible_local.* run split_tuning again"):
        split_summary(entry)
