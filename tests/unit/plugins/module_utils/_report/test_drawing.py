# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import pathlib
import re
import typing as t
from xml.etree import ElementTree

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report.drawing import draw
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment

FIXTURES = pathlib.Path(__file__).parents[4] / "fixtures/report"


def entry_of(name: str) -> dict[str, t.Any]:
    return deployment.expand(json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))["entry"])


@pytest.mark.parametrize("name", ["sandbox", "mixed_70b", "three_devices"])
def test_a_chart_is_well_formed_and_names_what_it_marks(name: str) -> None:
    entry = entry_of(name)
    chart = draw(entry, ("decode", "prefill"))
    assert ElementTree.fromstring(chart).tag == "{http://www.w3.org/2000/svg}svg"
    layers = ",".join(str(place["layers"]) for place in entry["placement"])
    default = ",".join(map(str, entry["decision"]["default_layers"]))
    assert f"chosen ({layers})" in chart
    assert f"llama.cpp's default ({default})" in chart.replace("&apos;", "'")


def test_two_devices_get_the_line_and_what_does_not_fit() -> None:
    chart = draw(entry_of("sandbox"), ("decode", "prefill"))
    for words in ("measured (lowest to highest)", "fitted", "does not fit in memory", "failed when measured"):
        assert f">{words}<" in chart
    entry = entry_of("sandbox")
    entry["feasible"] = [{"layers": [first, 33 - first]} for first in range(34)]
    assert "does not fit in memory" not in draw(entry, ("decode", "prefill"))


def test_two_charts_can_stand_on_one_page() -> None:
    decode, prefill = (
        set(re.findall(r'\bid="([^"]+)"', draw(entry_of("sandbox"), [panel]))) for panel in ("decode", "prefill")
    )
    assert decode and prefill and not decode & prefill


def test_every_reference_leads_somewhere() -> None:
    chart = draw(entry_of("sandbox"), ("decode", "prefill"))
    names = set(re.findall(r'\bid="([^"]+)"', chart))
    used = set(re.findall(r'href="#([^"]+)"', chart)) | set(re.findall(r"url\(#([^)]+)\)", chart))
    assert used and used <= names


def test_no_colour_of_the_drawing_is_left() -> None:
    # all were replaced by variables, which follow the reader's preference
    assert not re.findall(r"#0[1-8]0[1-8]0[1-8]", draw(entry_of("sandbox"), ("decode", "prefill")))


def test_names_are_escaped() -> None:
    entry = entry_of("sandbox")
    entry["model"]["name"] = '<script>"&'
    chart = draw(entry, ("decode", "prefill"))
    ElementTree.fromstring(chart)
    assert "<script>" not in chart


def test_with_experts_in_ram_each_placement_is_a_bar(experts: dict[str, t.Any]) -> None:
    chart = draw(experts, ("decode", "prefill"))
    assert ElementTree.fromstring(chart).tag.endswith("svg")
    assert "in RAM; " in chart and "does not fit in memory" not in chart and "chosen (" in chart
