# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import html.parser
import json
import pathlib
import re
import sys
import typing as t

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.report import (
    FilterModule,
    split_closing,
    split_report,
    split_summary,
)

ROOT = pathlib.Path(__file__).parents[4]
PAGE = (ROOT / "roles/report/templates/report.html.j2").read_text(encoding="utf-8")
CLAIMS = yaml.safe_load((ROOT / "roles/report/defaults/main.yml").read_text(encoding="utf-8"))["report_expectations"]


def page(name: str, change: dict[str, t.Any] | None = None, **arguments: t.Any) -> str:
    data = json.loads((ROOT / f"tests/fixtures/report/{name}.json").read_text(encoding="utf-8"))
    data["entry"].update(change or {})
    given = {
        "server": {"state": "ready", "server": {"devices": data["devices"], "build": "11312 (0c1e57098)"}},
        "served": data["served"], "expectations": CLAIMS, "host": "box", "url": "http://127.0.0.1:8080",
    }  # fmt: skip
    return split_report(data["entry"], PAGE, **{**given, **arguments})


class Nesting(html.parser.HTMLParser):
    """Follows the elements and collects the text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_says_where_the_key_is() -> None:
    path = "/etc/mixed_gpu/llama-server.key"
    server = {"state": "stopped", "server": {"devices": [], "build": None}}
    shown = page("sandbox", server={**server, "api_key_file": path})
    assert f"the key in <code>{path}</code>" in shown and f"Bearer /&#39; {path} | curl -H @- http://127.0.0.1" in shown
    assert "the key in" not in page("sandbox", server={**server, "api_key_file": ""})


def test_the_page_says_what_became_of_another_server() -> None:
    said = "Clients of http://127.0.0.1:5000 send <the> key."
    shown = page("sandbox", connect=said)
    assert "Clients of http://127.0.0.1:5000 send &lt;the&gt; key." in shown and "llama-server answers at" not in shown


def test_page_and_summary_say_which_chats_are_proved() -> None:
    line = "llama-server.service answers, as proved: a chat, a stream."
    server = {"state": "ready", "server": {"devices": [], "build": None}}
    assert line in page("sandbox", server={**server, "chats": {"line": line}})
    assert "as proved" not in page("sandbox", server={**server, "chats": None})
    entry = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))["entry"]
    assert f"  {line}" in split_summary(entry, server={**server, "chats": {"line": line}})
    assert not [said for said in split_summary(entry, server=server) if "as proved" in said]


@pytest.mark.parametrize("name", ["sandbox", "mixed_70b", "three_devices"])
def test_a_page_is_well_formed_and_needs_nothing_from_elsewhere(name: str) -> None:
    text = page(name)
    parser = Nesting()
    parser.feed(text)
    assert parser.open == []
    assert text.count("<svg") == 3
    assert not re.search(r"<(script|link|img|iframe)|@import|url\((?!#)|src=", text)


def test_contexts_are_a_table_with_the_source_of_its_speeds() -> None:
    text = page("mixed_70b")
    table = text[text.index("How much context") : text.index("Claimed and measured")]
    assert "interpolated from the costs" in table and "asked for" in table
    assert 'colspan="7">does not fit: ' in table and "missing</td>" in table
    assert "How much context" not in page("sandbox")


def test_the_same_data_gives_the_same_page() -> None:
    assert page("mixed_70b") == page("mixed_70b")


def test_served_numbers_and_bench_numbers_stand_apart() -> None:
    text = page("sandbox")
    served = text[text.index("What a client gets") : text.index("Measured splits")]
    bench = text[text.index("Measured splits") : text.index("<h2>Power")]
    assert "<b>6326</b>" in served and "needs 8064 tokens" in served and "llama-bench" not in served
    assert "llama-bench" in bench and "6326" not in bench and "ran out of memory" in bench


def test_claims_power_and_memory() -> None:
    text = page("mixed_70b")
    assert text.count("<td>not comparable</td>") == 1
    assert "400 to 600 ms" in text and "<b>1395</b> ms" in text
    assert "<b>516 W</b>" in text and "<b>29.8 J per token</b>" in text
    assert "Not available: not measured yet." in page("sandbox")


def test_a_server_that_does_not_run() -> None:
    text = page("sandbox", served=None, server={"state": "failed", "server": {"devices": [], "build": None}})
    assert "(state of the server: failed)" in text and "Not measured: the role llama_server measures" in text


def recorded(**models: t.Any) -> dict[str, t.Any]:
    """What split_record says of a host with the sandbox's deployment and others, after four revalidations."""
    row = {"at": "2026-11-20T03:00:00Z", "baseline_at": "2026-11-19T03:00:00Z", "driver_version": "580.95.05"}
    same = {"verdict": "ok", "accepted": True, "decode": {"percent": 0.3, "low": -0.5, "high": 1.1}, "prefill": None}
    trend = [
        {**row, **same},
        {**row, **same, "at": "2026-11-21T03:00:00Z", "decode": None},
        {**row, **same, "at": "2026-11-22T03:00:00Z", "verdict": "regressed", "accepted": False,
         "decode": {"percent": 8.25, "low": None, "high": None}},
        {**row, **same, "at": "2026-11-23T03:00:00Z", "baseline_at": "2026-11-22T09:00:00Z", "driver_version": None},
    ]  # fmt: skip
    entry = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))["entry"]
    record = {"schema": 3, "active": "other", "models": {"this": entry, **models}}
    return {"record": record, "active": "other", "deployment": "this", "trend": trend}


def test_the_page_shows_revalidations_and_the_other_deployments() -> None:
    other = json.loads((ROOT / "tests/fixtures/report/mixed_70b.json").read_text(encoding="utf-8"))["entry"]
    text = page("sandbox", recorded=recorded(other=other))
    assert text.count("<svg") == 4
    rows = text[text.index("<h2>Revalidations") : text.index("<h2>All deployments")]
    assert rows.index("2026-11-23 03:00") < rows.index("2026-11-22 03:00")
    assert "regressed, not accepted" in rows and "+8.2 %" in rows
    rows = text[text.index("<h2>All deployments") :]
    assert "44 of 81 layers on CUDA0 and 37 on CUDA1" in rows and rows.index("served</span>") < rows.index("this page")
    assert "All deployments" not in page("sandbox", recorded=recorded())
    assert page("sandbox", recorded=recorded(), panels=[]).count("<svg") == 0


def test_what_models_devices_and_records_call_themselves_is_no_markup() -> None:
    bad = "</script><img src=x onerror=alert(1)>{{ 7 * 7 }}'\""
    data = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))["entry"]
    devices = [{**device, "description": bad, "device": bad} for device in data["devices"]]
    decision = {**data["decision"], "why": bad, "advice": [bad]}
    decision["speculation"] = {"verdict": "not_tried", "why": bad, "served": None, "table": []}
    change = {"model": {"id": bad, "path": bad}, "devices": devices, "decision": decision, "campaign": f"after {bad}"}
    known = recorded(other={**data, **change, "recorded_at": bad})
    known["trend"] = [{**row, "verdict": bad, "driver_version": bad, "at": bad} for row in known["trend"]]
    server = {
        "state": "ready", "server": {"devices": [], "build": bad}, "api_key_file": bad, "bound_to": "10.0.0.5",
        "chats": {"line": bad},
    }  # fmt: skip
    text = page("sandbox", change, server=server, recorded=known, host=bad, url="http://10.0.0.5:80/<img>")
    parser = Nesting()
    parser.feed(text)
    assert parser.open == [] and "49'" not in text
    assert [text[max(0, at.start() - 60) : at.end()] for at in re.finditer("<img|</script", text)] == []
    assert text.count("&lt;/script&gt;&lt;img src=x onerror=alert(1)&gt;{{ 7 * 7 }}") > 10


def test_the_last_lines_of_a_run() -> None:
    data = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))
    key, url = "/etc/mixed_gpu/llama-server.key", "http://127.0.0.1:8080"
    server = {"state": "ready", "server": {"devices": data["devices"]}, "api_key_file": key}
    lines = split_closing(data["entry"], "/reports/box.html", server=server, served=data["served"], url=url)
    assert lines[0].startswith("Result: mixed_gpu sandbox, 23 of 33 layers")
    assert "48.9 tokens per second as served" in lines[0] and "11.2%" in lines[1]
    assert url in lines[2] and key in lines[2]
    assert lines[3] == "Report: /reports/box.html"
    assert ["tensor" in lines[4], "peculation" in lines[5], len(lines)] == [True, True, 6]
    assert "in the benchmark" in split_closing(data["entry"], "x.html")[0]
    assert "No server is installed" in split_closing(data["entry"], "x.html")[2]
    assert split_closing(data["entry"], "x.html", connect="Ask there.")[2] == "Ask there."


def test_no_chart_needs_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    text = page("sandbox", panels=[])
    assert "<svg" not in text and "Charts are switched off" in text
    with pytest.raises(AnsibleFilterError, match="matplotlib is missing on the controller .*pip install matplotlib"):
        page("sandbox")


def test_only_one_device_was_possible() -> None:
    data = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))["entry"]
    decision = {
        **data["decision"],
        "single_device": True,
        "verdict": "only_choice",
        "default_layers": None,
        "gain_over_default_percent": None,
        "gain_interval_percent": None,
        "decode_tokens_per_second": None,
        "prefill_tokens_per_second": None,
        "fit": None,
        "table": [],
    }
    placement = [{"id": "127.0.0.1:50052", "layers": 33}, {"id": "127.0.0.1:50053", "layers": 0}]
    text = page("sandbox", {"decision": decision, "placement": placement}, served=None, server=None)
    assert "All 33 layers on RPC0." in text and "<svg" not in text


@pytest.mark.parametrize("entry", [{}, {"decision": {}}, {"model": {"id": "x"}, "decision": None}])
def test_what_is_no_entry(entry: dict[str, object]) -> None:
    for name, arguments in (("split_report", [PAGE]), ("split_summary", [])):
        with pytest.raises(AnsibleFilterError, match=f"{name}: the input is no entry of .* run split_tuning again"):
            FilterModule().filters()[name](entry, *arguments)


def test_a_panel_that_does_not_exist() -> None:
    with pytest.raises(AnsibleFilterError, match="unknown panel speed; choose from decode, prefill, objective"):
        page("sandbox", panels=["speed"])


def test_the_summary_takes_what_the_page_takes() -> None:
    data = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))
    server = {"state": "ready", "server": {"devices": data["devices"]}}
    lines = split_summary(data["entry"], server=server, served=data["served"])
    assert lines[0] == "mixed_gpu sandbox: 23 of 33 layers on RPC0 and 10 on RPC1"
    assert any("RPC0 127.0.0.1:50052" in line and line.endswith(" 17") for line in lines)


def test_a_template_that_asks_for_what_is_not_there() -> None:
    data = json.loads((ROOT / "tests/fixtures/report/sandbox.json").read_text(encoding="utf-8"))["entry"]
    with pytest.raises(AnsibleFilterError, match="cannot be rendered: .*colour"):
        split_report(data, "{{ view.colour }}", panels=[])


def test_each_device_alone_is_on_the_page_when_it_was_measured() -> None:
    entry = json.loads((ROOT / "tests/fixtures/report/mixed_70b.json").read_text(encoding="utf-8"))["entry"]
    row = {
        "status": "ok", "reason": None, "decode_ms_per_token": {"median": 1.2, "low": 1.1, "high": 1.3}, "rank": 1,
        "bandwidth_gb_per_s": 835.0, "theoretical_bandwidth_gb_per_s": None, "prefill_tokens_per_second": 7000.0,
    }
    rows = [{**row, "device": device["device"], "id": device["id"]} for device in entry["devices"]]
    rows[1] |= {"status": "out_of_memory", "reason": "too <small>", "rank": None}
    html = page("mixed_70b", {"device_probe": {"devices": rows, "warning": "It looks swapped."}})
    assert '<b>1.20</b> <span class="range">1.10 to 1.30</span></td><td class="n">835</td>' in html
    assert "out of memory: too &lt;small&gt;" in html
    assert "<b>It looks swapped.</b>" in html
    assert "Each device alone" not in page("mixed_70b")


@pytest.mark.parametrize(
    "change",
    [
        {"fingerprint_parts": {"serving": -1}}, {"decision": {"contexts": {"rows": [{"missing_mib": None}]}}},
        {"decision": 5}, {"placement": [{"id": "x"}]}, {"serving": []},
    ],
)  # fmt: skip
def test_a_damaged_entry_is_one_sentence(change: dict[str, t.Any]) -> None:
    entry = json.loads((ROOT / "tests/fixtures/report/mixed_70b.json").read_text(encoding="utf-8"))["entry"]
    for name, value in change.items():
        entry[name] = {**entry[name], **value} if isinstance(value, dict) else value
    with pytest.raises(AnsibleFilterError, match="is no entry of .*run split_tuning again"):
        split_report(entry, PAGE)


def test_names_of_a_model_or_device_move_nothing_on_a_terminal() -> None:
    entry = json.loads((ROOT / "tests/fixtures/report/mixed_70b.json").read_text(encoding="utf-8"))["entry"]
    entry["model"]["name"] = entry["devices"][0]["device"] = "a\x1b[2J\nb\u202ec"
    for line in [*split_summary(entry), *split_closing(entry, "/r.html")]:
        assert line.isprintable(), line
