# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import copy
import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import text
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report.view import Seen, report_view


def seen(data: dict[str, t.Any], **more: t.Any) -> Seen:
    """What the host of a fixture says, with its server running."""
    return Seen(server={"state": "ready", "server": {"devices": data["devices"]}}, served=data["served"], **more)


def test_a_served_number_is_preferred_to_one_of_the_bench(sandbox: dict[str, t.Any]) -> None:
    entry = sandbox["entry"]
    served = report_view(entry, seen(sandbox), (), "", "", "")["tiles"][0]
    bench = report_view(entry, Seen(), (), "", "", "")["tiles"][0]
    assert (served["value"], served["label"].split(",")[0]) == ("48.9", "served decode")
    rate = text.number(entry["decision"]["decode_tokens_per_second"])
    assert (bench["value"], bench["label"]) == (rate, "decode (bench)")


def test_a_server_that_does_not_run_has_no_devices(sandbox: dict[str, t.Any]) -> None:
    stopped = Seen(server={"state": "stopped", "server": {"devices": sandbox["devices"], "build": None}})
    view = report_view(sandbox["entry"], stopped, (), "", "", "")
    assert view["state"] == "stopped" and not view["loaded_known"]
    assert report_view(sandbox["entry"], seen(sandbox), (), "", "", "")["loaded_known"]


def test_power_is_shown_or_says_why_not(sandbox: dict[str, t.Any], mixed: dict[str, t.Any]) -> None:
    power = report_view(mixed["entry"], seen(mixed), (), "", "", "")["power"]
    assert (power["watts"], power["joules_per_token"]) == ("516", "29.8")
    assert [card["watts"] for card in power["cards"]] == ["265", "251"]
    assert power["tokens_per_second_per_watt"] == "0.034"
    assert report_view(sandbox["entry"], seen(sandbox), (), "", "", "")["power_reason"] == "not measured yet"
    none = {**sandbox["served"], "power": {"reason": "there is no NVML to ask."}}
    view = report_view(sandbox["entry"], Seen(served=none), (), "", "", "")
    assert (view["power"], view["power_reason"]) == (None, "there is no NVML to ask")


def test_versions_are_those_of_what_serves(mixed: dict[str, t.Any]) -> None:
    facts = {"driver_version": "580.95.05", "cuda_driver_version": "13.0"}
    machine = {"os": {"pretty_name": "Debian GNU/Linux 13 (trixie)"}, "kernel": "6.12.1"}
    server = {"state": "ready", "server": {"devices": [], "build": "11312 (0c1e57098)"}}
    versions = dict(report_view(mixed["entry"], Seen(server, facts, machine), (), "", "", "")["versions"])
    assert list(versions.values()) == [
        "11312 (0c1e57098)", "580.95.05", "13.0", "Debian GNU/Linux 13 (trixie)", "6.12.1"
    ]  # fmt: skip
    nothing = dict(report_view(mixed["entry"], Seen(), (), "", "", "")["versions"])
    assert list(nothing.values()) == ["unknown", "none", "none", "unknown", "unknown"]


def test_nothing_of_the_input_is_changed(mixed: dict[str, t.Any]) -> None:
    before = copy.deepcopy(mixed)
    claim = {"name": "x", "metric": "layer_ratio", "low": 1.1, "high": 1.2, "unit": "", "source": "a guide"}
    report_view(mixed["entry"], seen(mixed), [claim], "", "", "")
    assert mixed == before


def test_a_page_with_experts_in_ram(experts: dict[str, t.Any]) -> None:
    shown = report_view(experts, Seen(), (), "", "", "")
    assert "in RAM" in shown["sentence"] and any(row["chosen"] for row in shown["table"])
    assert shown["advice"] == experts["decision"]["advice"]
