# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Watching cards through NVML while something uses them. Private to this collection.

Reads the cards and the clock, and waits; the caller passes in nvidia-ml-py's module.
"""

from __future__ import annotations

import ctypes
import time
import typing as t

from .._base.types import Json, Mapping

_CLOCK_SM = 1  # nvmlClockType_t
_XID_CRITICAL_ERROR = 8  # nvmlEventTypeXidCriticalError
_TIMEOUT = 10  # NVML_ERROR_TIMEOUT

#: What is watched, in the order in which it is read. All but throttle_mask become {min, mean, max}.
QUANTITIES: t.Final = (
    "pcie_generation",
    "pcie_width",
    "power_draw_watts",
    "clock_sm_mhz",
    "temperature_celsius",
    "utilization_gpu_percent",
)

#: Asks one NVML function; None where it is not supported, CardGoneError when the card is gone.
Ask = t.Callable[..., t.Any]
Reading = Json


class CardGoneError(Exception):
    """A card stopped answering; the text is a sentence with cause and cure."""


def throttle_mask(ask: Ask) -> int | None:
    """The bits of what holds the clocks down; `ask` knows its card."""
    mask = ask("nvmlDeviceGetCurrentClocksEventReasons")
    return ask("nvmlDeviceGetCurrentClocksThrottleReasons") if mask is None else mask  # its name before driver 535


def watch(
    nvml: t.Any,
    ask: Ask,
    handles: Mapping,
    seconds: float,
    interval_ms: int,
    ended: t.Callable[[], bool],
) -> Json:
    """Look at the cards every `interval_ms` for `seconds` or until `ended`, at least once, and collect Xid events.

    `handles` are NVML's by UUID; `ask(nvml, function, *arguments)` is _nvml's. Returns
    {cards: {card_id: [reading, ...]}, used_by: {card_id: {pid: percent of the time}}, seconds: float,
    gone: {card_id: sentence}, xid_events: [{id, xid}] or None where the driver reports none}.
    """
    readings: dict[str, list[Reading]] = {card_id: [] for card_id in handles}
    gone: dict[str, str] = {}
    events = _register(nvml, handles)
    xids: list[Json] = []
    started, began_us = time.monotonic(), time.time_ns() // 1000
    ends = started + seconds
    try:
        while True:
            due = time.monotonic() + interval_ms / 1000
            _read_all(nvml, ask, handles, readings, gone)
            _wait(nvml, events, min(due, ends), handles, xids)
            if time.monotonic() >= ends or ended():
                break
    finally:
        if events is not None:
            nvml.nvmlEventSetFree(events)
    return {
        "used_by": {card_id: _used_by(nvml, ask, handle, began_us) for card_id, handle in handles.items()},
        "cards": readings, "seconds": round(time.monotonic() - started, 2), "gone": gone,
        "xid_events": None if events is None else xids,
    }  # fmt: skip


def _used_by(nvml: t.Any, ask: Ask, handle: t.Any, since_us: int) -> dict[int, float]:
    """How much of a card's time each process had; NVML keeps the last seconds alone, and some cards say nothing."""
    try:
        samples = ask(nvml, "nvmlDeviceGetProcessUtilization", handle, since_us) or []
    except CardGoneError:
        return {}
    moments = len({sample.timeStamp for sample in samples})
    found: dict[int, float] = {}
    for sample in samples:
        found[sample.pid] = found.get(sample.pid, 0.0) + sample.smUtil / moments
    return {pid: round(percent, 1) for pid, percent in found.items()}


def _read_all(
    nvml: t.Any, ask: Ask, handles: Mapping, readings: dict[str, list[Reading]], gone: dict[str, str]
) -> None:
    """Append a reading of each card that is left, and note those that are gone from now on."""
    for card_id, handle in handles.items():
        if card_id in gone:
            continue
        try:
            readings[card_id].append(_read(nvml, ask, handle))
        except CardGoneError as error:
            gone[card_id] = str(error)


def summary(
    readings: t.Sequence[Reading], seconds: float, names: t.Callable[[int | None], list[str] | None]
) -> Json:
    """`sampled` as gpu_facts documents it, of one card's readings. `names` gives the names of throttle bits."""
    result: Json = {"count": len(readings), "seconds": seconds}
    for quantity in QUANTITIES:
        values = [reading[quantity] for reading in readings if reading[quantity] is not None]
        result[quantity] = None
        if values:
            mean = round(sum(values) / len(values), 1)
            result[quantity] = {"min": min(values), "mean": mean, "max": max(values)}
    masks = [reading["throttle_mask"] for reading in readings if reading["throttle_mask"] is not None]
    together = 0
    for mask in masks:
        together |= mask
    result["throttle_reasons"] = names(together if masks else None)
    return result


def _read(nvml: t.Any, ask: Ask, handle: t.Any) -> Reading:
    """One look at one card."""

    def ask_card(function: str, *arguments: t.Any) -> t.Any:
        return ask(nvml, function, handle, *arguments)

    milliwatts = ask_card("nvmlDeviceGetPowerUsage")
    utilization = ask_card("nvmlDeviceGetUtilizationRates")
    return {
        "at": time.monotonic(),
        "pcie_generation": ask_card("nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_width": ask_card("nvmlDeviceGetCurrPcieLinkWidth"),
        "power_draw_watts": None if milliwatts is None else round(milliwatts / 1000, 1),
        "clock_sm_mhz": ask_card("nvmlDeviceGetClockInfo", _CLOCK_SM),
        "temperature_celsius": ask_card("nvmlDeviceGetTemperature", 0),
        "utilization_gpu_percent": None if utilization is None else utilization.gpu,
        "throttle_mask": throttle_mask(ask_card),
    }


def _register(nvml: t.Any, handles: Mapping) -> t.Any:
    """An event set for the Xid errors of the cards, or None where no card reports them."""
    try:
        events = nvml.nvmlEventSetCreate()
    except (nvml.NVMLError, AttributeError):
        return None
    registered = 0
    for handle in handles.values():
        try:
            nvml.nvmlDeviceRegisterEvents(handle, _XID_CRITICAL_ERROR, events)
            registered += 1
        except (nvml.NVMLError, AttributeError):
            continue
    if registered:
        return events
    nvml.nvmlEventSetFree(events)
    return None


def _wait(
    nvml: t.Any, events: t.Any, until: float, handles: Mapping, xids: list[Json]
) -> None:
    """Wait until then, and append to `xids` what the driver reports in the meantime."""
    # a lost card no longer tells its UUID, but its handle is known
    by_address = {ctypes.cast(handle, ctypes.c_void_p).value: card_id for card_id, handle in handles.items()}
    while (left := until - time.monotonic()) > 0:
        if events is None:
            time.sleep(left)
            continue
        try:
            event = nvml.nvmlEventSetWait_v2(events, max(1, round(left * 1000)))
        except nvml.NVMLError as error:
            if error.value != _TIMEOUT:  # such as a lost card: the readings say so
                time.sleep(max(0.0, until - time.monotonic()))
            continue
        if event.eventType & _XID_CRITICAL_ERROR:
            address = ctypes.cast(event.device, ctypes.c_void_p).value
            xids.append({"id": by_address.get(address), "xid": int(event.eventData)})
