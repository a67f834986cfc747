# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is wrong with a card at work, what it means and what to do. Private to this collection. Pure functions only.

Clock event reasons: NVML API reference, nvmlClocksEventReasons. Xid numbers: NVIDIA's Xid catalog
(docs.nvidia.com/deploy/xid-errors), reworded for a workstation.
"""

from __future__ import annotations

import re
import typing as t

from .._base.text import card_name
from .._base.types import Json
from .._hardware import pcie
from .finding import finding

#: GeForce cards lower their clocks so as not to exceed 83 or 84 degrees of the chip.
HOT_CELSIUS = 83
#: A reason that was seen in fewer looks than this is a moment, as at every change of clocks.
MOMENT_PERCENT = 5.0

#: Less memory than this left on a card is worth a word.
LITTLE_MIB = 128

#: Reason -> (severity, what it means, cure).
THROTTLES: dict[str, tuple[str, str, str | None]] = {
    "sw_power_cap": (
        "note",
        "it draws what its power limit allows, so its clocks are lower than they could be",
        "normal for a prompt; the playbook power_sweep measures what another limit would give",
    ),
    "applications_clocks_setting": (
        "note",
        "its clocks were locked (nvidia-smi -lgc, or the role gpu_power)",
        "unset gpu_power_locked_clocks_mhz and run site, or 'nvidia-smi -rgc'",
    ),
    "display_clock_setting": ("note", "the display's clocks limit it", "drive the monitor from another card"),
    "sync_boost": ("note", "it waits for the clocks of another card of a sync boost group", "leave the group"),
    "hw_slowdown": (
        "problem",
        "the hardware halves its clocks or worse, because of heat or at the request of the power supply",
        "see the other reasons; check fans, dust and power cables",
    ),
    "sw_thermal_slowdown": (
        "problem",
        "the driver lowers its clocks because chip or memory are too hot; NVML does not show the memory's temperature "
        "of GeForce cards, and GDDR6X of an RTX 3090 is hot long before the chip",
        "more air between the cards, a lower power limit (playbook power_sweep), on an RTX 3090 new thermal pads",
    ),
    "hw_thermal_slowdown": (
        "problem",
        "the hardware halves its clocks because it is too hot",
        "check fans, dust, and the room between the cards; lower its power limit until then",
    ),
    "hw_power_brake_slowdown": (
        "problem",
        "the power supply or the mainboard requests half the clocks",
        "check the power cables and adapters and the size of the supply ('preflight' adds it up)",
    ),
    "board_limit": ("note", "a limit of its board holds its clocks down", "lower its power limit a little"),
    "reliability": ("note", "its voltage is at the highest reliable value", None),
}

#: Xid -> (severity, what it means, cure).
XIDS: dict[int, tuple[str, str, str]] = {
    8: ("problem", "the card stopped processing a program's work", "restart the program, then see the Xid beside it"),
    13: (
        "note",
        "a program's kernel did something that is not allowed",
        "restart the program; if llama-server causes it again and again, try another llama.cpp build",
    ),
    31: (
        "note",
        "a program accessed memory that is not its own",
        "restart the program; if llama-server causes it again and again, try another llama.cpp build",
    ),
    32: (
        "problem",
        "commands reached the card damaged, over PCIe",
        "check riser and seating; set the slot's PCIe generation one lower in the firmware",
    ),
    38: ("problem", "the firmware of the driver failed", "reboot; if the error returns, try another driver"),
    43: ("note", "a program's work was stopped after its own error", "look at the program's journal"),
    45: ("note", "a program's work was removed, as when it is killed", "nothing, unless another Xid came before it"),
    48: ("problem", "two bits of its memory were wrong at once", "reboot; if the error returns, the card is broken"),
    61: ("problem", "its internal controller stopped at a fault", "power-cycle the machine; try another driver"),
    62: (
        "problem",
        "its internal controller halted",
        "power-cycle the machine; if the error returns, check power cables and heat, then the card",
    ),
    63: ("note", "a row of its memory was marked as bad and is replaced at the next reset", "reboot soon"),
    64: (
        "problem",
        "a bad row of its memory could not be replaced",
        "reboot; if the error returns, the card is broken",
    ),
    69: ("note", "a program sent the card something that it does not know", "restart the program; try another build"),
    74: ("problem", "an NVLink link failed", "check the bridge and its seating"),
    79: (
        "problem",
        "the card fell off the bus: no answer over PCIe",
        "power-cycle the machine; then power cables (one cable per plug), the size of the supply, riser, seating, heat",
    ),
    92: (
        "note",
        "many single-bit errors of its memory were corrected",
        "watch their number; memory that is too hot causes them",
    ),
    94: ("problem", "an error of its memory that hit one program only", "restart the program; reboot soon"),
    95: ("problem", "an error of its memory that may have hit any program", "reboot; do not trust what it computed"),
    109: ("problem", "a program's work could not be switched in time", "restart the program; try another driver"),
    119: (
        "problem",
        "the card's own processor (GSP) did not answer the driver",
        "power-cycle the machine; try another driver, or with proprietary modules NVreg_EnableGpuFirmware=0",
    ),
    120: ("problem", "the card's own processor (GSP) failed", "power-cycle the machine; try another driver"),
    140: ("problem", "errors of its memory could not be corrected", "reboot; if the error returns, the card is broken"),
    143: ("problem", "the card could not be started", "power-cycle the machine; then power cables, riser and seating"),
    154: (
        "note",
        "the driver says how to recover the card; the Xid before says why",
        "follow the driver's message",
    ),
}

_XID_LINE = re.compile(
    r"^(?P<at>\S+).*?NVRM: Xid \((?:PCI:)?(?P<pci>[0-9a-fA-F:.]+)\): (?P<xid>\d+)(?:, )?(?P<text>.*)$"
)
_PROGRAM = re.compile(r"\bname=([^,\s]+)")


def xid_lines(lines: t.Iterable[str]) -> list[Json]:
    """Return the Xid errors of kernel lines (`journalctl -o short-iso`), oldest first.

    Each is {at, pci_bus_id, xid, text}; C(text) is what follows the number. Other lines are left out.
    """
    found = []
    for line in lines:
        match = _XID_LINE.search(line)
        if match:
            found.append(
                {"at": match["at"], "pci_bus_id": match["pci"], "xid": int(match["xid"]), "text": match["text"].strip()}
            )
    return found


def _bus(address: str | None) -> str:
    """Return bus and device of a PCI address in lower case, so that C(0000:01:00) and C(00000000:01:00.0) agree."""
    return ":".join((address or "").lower().partition(".")[0].split(":")[-2:])


def xids(
    journal: t.Sequence[Json], events: t.Sequence[Json] | None, gpus: t.Sequence[Json], names: t.Mapping[str, str]
) -> list[Json]:
    """Return findings about Xid errors: one per card and number, from the journal and from the time of watching.

    C(names) names the cards of the split by UUID.
    """
    by_bus = {_bus(gpu["pci_bus_id"]): gpu for gpu in gpus}
    by_id = {gpu["id"]: gpu for gpu in gpus}
    seen: dict[tuple[str, int], list[Json]] = {}
    for entry in journal:
        gpu = by_bus.get(_bus(entry["pci_bus_id"]))
        subject = called(gpu, names) if gpu else f"the card at {entry['pci_bus_id']}"
        seen.setdefault((subject, entry["xid"]), []).append(entry)
    now: dict[tuple[str, int], int] = {}
    for event in events or ():
        gpu = by_id.get(event["id"])
        key = (called(gpu, names) if gpu else str(event["id"]), event["xid"])
        now[key] = now.get(key, 0) + 1
    found = []
    for subject, xid in sorted({*seen, *now}):
        severity, meaning, cure = XIDS.get(
            xid, ("note", "see NVIDIA's Xid catalog for its meaning", "docs.nvidia.com/deploy/xid-errors")
        )
        entries = seen.get((subject, xid), [])
        times = f"{len(entries)} times, last at {entries[-1]['at']}" if entries else ""
        if len(entries) == 1:
            times = f"at {entries[0]['at']}"
        if (subject, xid) in now:
            times = f"during the measurement{', and in the journal ' + times if times else ''}"
        programs = sorted({match[1] for entry in entries if (match := _PROGRAM.search(entry["text"]))} - {"<unknown>"})
        by = f" (by {', '.join(programs)})" if programs else ""
        found.append(finding(subject, "xid", severity, f"Xid {xid} {times}{by}: {meaning}", cure))
    return found


def called(gpu: Json, names: t.Mapping[str, str]) -> str:
    """Return what a card is called: llama.cpp's name and its own."""
    own = card_name(gpu["name"] or gpu["id"])
    return f"{names[gpu['id']]} ({own})" if gpu["id"] in names else own


def _highest(sampled: t.Sequence[Json], key: str) -> float | None:
    values = [one[key]["max"] for one in sampled if one.get(key)]
    return max(values) if values else None


def _merged(sampled: t.Sequence[Json]) -> Json:
    """Return one `sampled` with the highest of each quantity, for checks that look at that alone."""
    quantities = {key for one in sampled for key, value in one.items() if isinstance(value, t.Mapping)}
    merged: Json = {}
    for key in quantities:
        highest = _highest(sampled, key)
        merged[key] = {"min": highest, "mean": highest, "max": highest}
    return merged


def card(
    gpu: Json, phases: t.Mapping[str, Json], before: Json | None, names: t.Mapping[str, str], loaded: bool = True
) -> list[Json]:
    """Return the findings about one card.

    C(gpu) is an entry of gpu_facts; C(phases) what server_under_load.watch saw of the card, by kind; C(before) its
    entry in the baseline's configuration, or None, C(loaded) whether the model is on the card: what else is free says
    nothing.
    """
    subject = called(gpu, names)
    sampled = [phase["sampled"] for phase in phases.values() if phase["sampled"]["count"]]
    return [
        *_throttles(subject, phases),
        *_link(subject, gpu, sampled, before),
        *_power(subject, gpu, sampled, before),
        *_temperature(subject, sampled),
        *(_memory(subject, gpu) if loaded else []),
    ]


def _throttles(subject: str, phases: t.Mapping[str, Json]) -> list[Json]:
    shares: dict[str, dict[str, float]] = {}
    for kind, phase in phases.items():
        for reason, percent in (phase["throttled_percent"] or {}).items():
            shares.setdefault(reason, {})[kind] = percent
    shares.pop("gpu_idle", None)  # it waits for its turn
    found = []
    for reason, by_kind in shares.items():
        severity, meaning, cure = THROTTLES.get(reason, ("note", "a reason that this release does not know", None))
        if max(by_kind.values()) < MOMENT_PERCENT:
            severity = "ok"
        looks = ", ".join(f"{percent:g} % of {kind}" for kind, percent in by_kind.items())
        found.append(finding(subject, "throttle", severity, f"{reason} in {looks}: {meaning}", cure))
    return found


def _link(subject: str, gpu: Json, sampled: t.Sequence[Json], before: Json | None) -> list[Json]:
    if not sampled:
        return []
    worked = {**gpu, "sampled": _merged(sampled)}
    host: Json = {"hypervisor": None, "gpus": {"gpus": [worked]}, "nvidia_devices": []}
    (judged,) = pcie.links(host)
    severity = "ok" if judged["ok"] else "problem" if judged["severity"] == "warning" else "note"
    found = [finding(subject, "link", severity, f"PCIe {judged['detail']}", judged["cure"])]
    width = _highest(sampled, "pcie_width")
    had = (before or {}).get("pcie_width")
    if had and width and width < had:
        detail = f"PCIe x{width:g}, it was x{had} at the baseline"
        found.append(finding(subject, "link", "problem", detail, "reseat card and riser; look for dust in the slot"))
    return found


def _power(subject: str, gpu: Json, sampled: t.Sequence[Json], before: Json | None) -> list[Json]:
    found = []
    limit, enforced, default = (
        gpu.get(f"power_limit_{name}watts") for name in ("", "enforced_", "default_")
    )
    drawn = _highest(sampled, "power_draw_watts")
    if drawn is not None and limit:
        detail = f"draws up to {drawn:.0f} W of its limit of {limit:.0f} W"
        found.append(finding(subject, "power", "ok", detail, None))
    had = (before or {}).get("power_limit_watts")
    if had and limit and abs(limit - had) >= 1:
        detail = f"its power limit is {limit:.0f} W, at the baseline it was {had:.0f} W"
        cure = "run site, which sets gpu_power_limits_watts, or tunes the split for the new limit"
        found.append(finding(subject, "power", "problem" if limit < had else "note", detail, cure))
    elif default and limit and limit < default - 1:
        detail = f"its power limit is {limit:.0f} W, by default it is {default:.0f} W"
        found.append(finding(subject, "power", "note", detail, "nothing, if you set it (gpu_power_limits_watts)"))
    if enforced and limit and enforced < limit - 1:
        detail = f"{enforced:.0f} W are enforced, less than its limit of {limit:.0f} W: something else caps it"
        cure = "check its power cables: a card that misses a plug caps itself"
        found.append(finding(subject, "power", "problem", detail, cure))
    return found


def _temperature(subject: str, sampled: t.Sequence[Json]) -> list[Json]:
    highest = _highest(sampled, "temperature_celsius")
    if highest is None:
        return []
    hot = highest >= HOT_CELSIUS
    detail = f"up to {highest:g} degrees Celsius" + (", where GeForce cards lower their clocks" if hot else "")
    cure = "more air between the cards, or a lower power limit (playbook power_sweep)" if hot else None
    return [finding(subject, "temperature", "note" if hot else "ok", detail, cure)]


def _memory(subject: str, gpu: Json) -> list[Json]:
    free = gpu.get("memory_free_mib")
    if free is None:
        return []
    little = free < LITTLE_MIB
    detail = f"{free} MiB left with the model loaded"
    if little:
        detail += ": another program's window, or the next driver, may take that much"
    cure = "nvidia-smi shows which programs use the card; stop one, or set split_tuning_device_budget_mib and run site"
    return [finding(subject, "memory", "note" if little else "ok", detail, cure if little else None)]
