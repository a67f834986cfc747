# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Each cause once, and the healthy card that has none."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import card_findings
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import nvml

FAST = "GPU-11111111-2222-3333-4444-555555555555"
GPU = {
    "id": FAST, "name": "NVIDIA GeForce RTX 4090", "pci_bus_id": "00000000:01:00.0", "power_limit_watts": 450.0,
    "power_limit_default_watts": 450.0, "power_limit_enforced_watts": 450.0, "pcie_generation_max": 4,
    "pcie_generation_device_max": 4, "pcie_width_max": 16, "memory_free_mib": 900,
}  # fmt: skip
NAMES = {FAST: "CUDA0"}


def quantity(value):
    return {"min": value, "mean": value, "max": value}


def phases(throttled=None, **sampled):
    usual = {
        "pcie_generation": 4, "pcie_width": 8, "power_draw_watts": 230.0, "temperature_celsius": 60,
        "utilization_gpu_percent": 51,
    }  # fmt: skip
    seen = {"count": 80, **{key: quantity(value) for key, value in {**usual, **sampled}.items()}}
    return {"decode": {"sampled": seen, "throttled_percent": {"gpu_idle": 40.0} if throttled is None else throttled}}


def worst(found, kind):
    (one,) = [one for one in found if one["kind"] == kind and one["severity"] != "ok"]
    assert one["subject"] == "CUDA0 (RTX 4090)"
    return one


def test_a_healthy_card_has_nothing_that_anybody_must_know():
    found = card_findings.card(GPU, phases(), None, NAMES)
    assert [one for one in found if one["severity"] != "ok"] == []
    assert {one["kind"] for one in found} == {"link", "power", "temperature", "memory"}


@pytest.mark.parametrize(
    "reason", sorted({n for bit in range(11) for n in nvml.throttle_reasons(1 << bit)} - {"gpu_idle"})
)
def test_every_reason_that_nvml_has_is_explained(reason):
    one = worst(card_findings.card(GPU, phases({reason: 30.0}), None, NAMES), "throttle")
    severity, meaning, cure = card_findings.THROTTLES[reason]
    assert one["severity"] == severity
    assert one["detail"] == f"{reason} in 30 % of decode: {meaning}"
    assert one["cure"] == cure


def test_a_moment_of_throttling_is_no_trouble_and_an_unknown_reason_is_said():
    found = card_findings.card(GPU, phases({"sw_thermal_slowdown": 2.0}), None, NAMES)
    assert [one["severity"] for one in found if one["kind"] == "throttle"] == ["ok"]
    unknown = worst(card_findings.card(GPU, phases({"unknown_0x800": 50.0}), None, NAMES), "throttle")
    assert "does not know" in unknown["detail"]


@pytest.mark.parametrize(
    ("sampled", "before", "words"),
    [
        ({"pcie_width": 4}, None, "x4"),
        ({"pcie_generation": 1}, None, "generation 1 under load, 4 possible"),
        ({"pcie_width": 8}, {"pcie_width": 16}, "it was x16 at the baseline"),
    ],
)
def test_a_link_that_is_slow_or_got_slower(sampled, before, words):
    one = worst(card_findings.card(GPU, phases(**sampled), before, NAMES), "link")
    assert one["severity"] == "problem" and words in one["detail"] and one["cure"]


@pytest.mark.parametrize(
    ("gpu", "before", "severity", "words"),
    [
        (
            {"power_limit_watts": 250.0, "power_limit_enforced_watts": 250.0},
            {"power_limit_watts": 315},
            "problem",
            "was 315 W",
        ),
        (
            {"power_limit_watts": 350.0, "power_limit_enforced_watts": 350.0},
            {"power_limit_watts": 315},
            "note",
            "was 315 W",
        ),
        ({"power_limit_watts": 315.0, "power_limit_enforced_watts": 315.0}, None, "note", "by default it is 450 W"),
        ({"power_limit_enforced_watts": 150.0}, None, "problem", "150 W are enforced"),
    ],
)
def test_power_that_is_limited(gpu, before, severity, words):
    one = worst(card_findings.card({**GPU, **gpu}, phases(), before, NAMES), "power")
    assert one["severity"] == severity and words in one["detail"]


def test_a_limit_that_is_the_baselines_is_said_once():
    limited = {**GPU, "power_limit_watts": 315.0, "power_limit_enforced_watts": 315.0}
    found = card_findings.card(limited, phases(), {"power_limit_watts": 315}, NAMES)
    assert worst(found, "power")["severity"] == "note"


def test_heat_and_little_memory():
    found = card_findings.card({**GPU, "memory_free_mib": 40}, phases(temperature_celsius=84), None, NAMES)
    assert "84 degrees" in worst(found, "temperature")["detail"]
    assert worst(found, "memory")["detail"].startswith("40 MiB left")


def test_what_the_card_does_not_say_is_no_finding():
    bare = {"id": FAST, "name": None, "pci_bus_id": None}
    empty = {"decode": {"sampled": {"count": 3, "power_draw_watts": None}, "throttled_percent": None}}
    found = card_findings.card(bare, empty, None, {})
    assert [one for one in found if one["severity"] != "ok"] == []


LINES = [
    "2026-11-20T08:00:01+01:00 box kernel: NVRM: loading NVIDIA UNIX Open Kernel Module",
    "2026-11-21T19:22:11+01:00 box kernel: NVRM: Xid (PCI:0000:01:00): 31, pid=4711, name=llama-server, Ch 00000008",
    "2026-11-22T19:22:11+01:00 box kernel: NVRM: Xid (PCI:0000:01:00): 31, pid=4712, name=llama-server, Ch 00000008",
    "2026-11-23T20:15:42+01:00 box kernel: NVRM: Xid (PCI:0000:21:00): 79, pid='<unknown>', name=<unknown>, GPU has"
    " fallen off the bus.",
    "2026-11-24T20:15:42+0100 box kernel: [ 12.3] NVRM: Xid (0000:41:00): 13, 0005 00000000 0000502d",
]


def test_kernel_lines_are_read():
    read = card_findings.xid_lines(LINES)
    assert [(one["at"], one["pci_bus_id"], one["xid"]) for one in read] == [
        ("2026-11-21T19:22:11+01:00", "0000:01:00", 31),
        ("2026-11-22T19:22:11+01:00", "0000:01:00", 31),
        ("2026-11-23T20:15:42+01:00", "0000:21:00", 79),
        ("2026-11-24T20:15:42+0100", "0000:41:00", 13),
    ]
    assert read[2]["text"].endswith("GPU has fallen off the bus.")


def test_xid_errors_belong_to_a_card_and_say_what_to_do():
    slow = {**GPU, "id": "GPU-slow", "name": "NVIDIA GeForce RTX 3090", "pci_bus_id": "00000000:21:00.0"}
    found = card_findings.xids(
        card_findings.xid_lines(LINES),
        [{"id": "GPU-slow", "xid": 79}, {"id": "GPU-slow", "xid": 999}],
        [GPU, slow],
        NAMES,
    )
    by_text = {(one["subject"], one["detail"].split()[1]): one for one in found}
    access = by_text["CUDA0 (RTX 4090)", "31"]
    assert "2 times, last at 2026-11-22T19:22:11+01:00 (by llama-server)" in access["detail"]
    fallen = by_text["RTX 3090", "79"]
    assert fallen["severity"] == "problem"
    assert "during the measurement, and in the journal at 2026-11-23" in fallen["detail"]
    assert "power-cycle" in fallen["cure"]
    assert by_text["the card at 0000:41:00", "13"]["severity"] == "note"
    assert "catalog" in by_text["RTX 3090", "999"]["detail"]


@pytest.mark.parametrize("xid", sorted(card_findings.XIDS))
def test_the_meanings_are_whole(xid):
    severity, meaning, cure = card_findings.XIDS[xid]
    assert severity in ("note", "problem") and meaning and cure


def test_without_the_model_free_memory_says_nothing():
    def kinds(**more):
        return {one["kind"] for one in card_findings.card(GPU, phases(), None, NAMES, **more)}

    assert kinds() - kinds(loaded=False) == {"memory"}
