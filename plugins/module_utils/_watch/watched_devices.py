# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The devices of one running server and what each does meanwhile. Private to this collection.

Cards are watched through NVML. A device that is an RPC server on this host is watched through the kernel's accounts of
its process (device_watch); one on another host is not seen.
"""

from __future__ import annotations

import threading
import typing as t

from .._base import systemd
from .._base.errors import UserError
from .._base.types import Json
from .._hardware import host_hardware, nvml, nvml_sampling
from . import device_watch

LONGEST_WATCH_SECONDS: t.Final = 3600.0
QUOTA_UNITS: t.Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


class Tools(t.NamedTuple):
    """What a module lends: the module, to run commands, and NVML's library, or a sentence why there is none."""

    module: t.Any
    nvml: t.Any


def quota_percent(text: str) -> float | None:
    """Return percent of one CPU of systemd's CPUQuotaPerSecUSec: C(500ms), C(1.500s) or C(infinity)."""
    for unit, seconds in QUOTA_UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return round(100 * float(number) * seconds, 1)
    return None


class WatchedDevices:
    """The devices of one server: how each is seen, and how long each was busy."""

    def __init__(self, devices: t.Sequence[t.Mapping[str, t.Any]], tools: Tools, interval_ms: int) -> None:
        self.tools = tools
        self.interval_ms = interval_ms
        self.gpus = self.ask_cards()
        self.devices = [self._device(device) for device in devices]
        self.readings: dict[str, list[nvml_sampling.Reading]] = {}
        self.xid_events: list[Json] | None = [] if self.gpus["available"] else None
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def ask_cards(self, **watching: t.Any) -> Json:
        """Return what gpu_facts calls C(mixed_gpu_gpus)."""
        if isinstance(self.tools.nvml, str):
            return nvml.unavailable(self.tools.nvml)
        return nvml.probe(self.tools.nvml, None, **watching)

    def _device(self, device: t.Mapping[str, t.Any]) -> Json:
        """Return how a device is seen: nvml, process or not at all, and why not."""
        seen: Json = {"device": device["device"], "id": device["id"], "seen": None, "reason": None, "pid": None,
                      "unit": None, "cpu_quota_percent": None}  # fmt: skip
        if device["backend"] == "CUDA":
            if any(gpu["id"] == device["id"] for gpu in self.gpus["gpus"]):
                return {**seen, "seen": "nvml"}
            return {**seen, "reason": self.gpus["reason"] or "NVML lists no card with this UUID"}
        if device["backend"] != "RPC":
            return {**seen, "reason": f"nothing tells how busy a device of backend {device['backend']} is"}
        try:
            host, port = device_watch.endpoint(device["id"])
        except ValueError as error:
            return {**seen, "reason": str(error)}
        if not device_watch.is_local(host):
            return {**seen, "reason": "it is on another host"}
        return {**seen, **self._process(port)}

    def _process(self, port: int) -> Json:
        """Return process, unit and CPU quota of whatever listens on a port of this host."""
        pid, unit = self._listener(port)
        properties = self._properties(unit)
        pid = pid or int(properties.get("MainPID") or 0)
        if not pid:
            return {"reason": f"no process of this host is known to listen on port {port}"}
        quota = quota_percent(properties.get("CPUQuotaPerSecUSec", ""))
        return {"seen": "process", "pid": pid, "unit": unit, "cpu_quota_percent": quota}

    def _listener(self, port: int) -> tuple[int | None, str | None]:
        """Return process and service that listen on a port; in a container root may not see the process."""
        ss = self.tools.module.get_bin_path("ss")
        if ss is None:
            return None, None
        _rc, stdout, _stderr = self.tools.module.run_command([ss, "-Hltnp", "--cgroup", f"sport = :{port}"])
        found: list[Json] = host_hardware.listeners(stdout)
        unit = found[0]["unit"] if found and str(found[0]["unit"]).endswith(".service") else None
        return (found[0]["pid"] if found else None), unit

    def _properties(self, unit: str | None) -> dict[str, str]:
        try:
            return systemd.show(self.tools.module, unit, "MainPID", "CPUQuotaPerSecUSec") if unit else {}
        except UserError:  # a server that runs without systemd is watched, too
            return {}

    def snapshot(self) -> dict[str, dict[int, device_watch.Spent]]:
        """Return what the threads of each process have had so far, by device id."""
        return {
            device["id"]: device_watch.threads(device["pid"])
            for device in self.devices
            if device["seen"] == "process"
        }

    def spent(self, before: t.Mapping[str, t.Mapping[int, device_watch.Spent]]) -> dict[str, Json]:
        """Return busy_ms and waiting_ms of each process since a snapshot, by device id."""
        found: dict[str, Json] = {}
        for key, after in self.snapshot().items():
            spent = device_watch.between(before[key], after)
            found[key] = {"busy_ms": round(sum(spent) / 1e6, 3), "waiting_ms": round(spent.waiting_ns / 1e6, 3)}
        return found

    def __enter__(self) -> WatchedDevices:
        """Begin to watch the cards, in a thread."""
        self.readings.clear()
        self._ended.clear()
        if self.gpus["gpus"]:
            self._thread = threading.Thread(target=self._watch_cards, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """End the watching of the cards."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch_cards(self) -> None:
        answer = self.ask_cards(
            sample_seconds=LONGEST_WATCH_SECONDS, sample_interval_ms=self.interval_ms, ended=self._ended.is_set,
            readings=self.readings,
        )  # fmt: skip
        self.xid_events = [*(self.xid_events or []), *(answer["xid_events"] or [])]

    def cards_spent(self, start: float, end: float) -> dict[str, Json]:
        """Return busy_ms of the split's cards from start to end: their utilisation is a share of that time."""
        ids = {device["id"] for device in self.devices}
        return {
            card_id: {"busy_ms": round(percent / 100 * (end - start) * 1000, 3), "waiting_ms": 0.0}
            for card_id, percent in device_watch.cards_between(self.readings, start, end).items()
            if card_id in ids and percent is not None
        }

    def cards(self, start: float, end: float) -> Json:
        """Return what every card did from start to end, by UUID: sampled (as in gpu_facts) and throttled_percent."""
        found = {}
        for card_id, all_rows in self.readings.items():
            rows = [row for row in all_rows if start <= row["at"] <= end]
            sampled = nvml_sampling.summary(rows, round(end - start, 2), nvml.throttle_reasons)
            throttled = device_watch.throttled_percent(rows, nvml.throttle_reasons)
            found[card_id] = {"sampled": sampled, "throttled_percent": throttled}
        return found
