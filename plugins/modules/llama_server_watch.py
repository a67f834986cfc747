#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: llama_server_watch
short_description: Load a running llama-server for some seconds and watch its devices
version_added: 0.1.0
description:
  - Sends a fixed prompt again and again to a running llama-server, one request at a time, and watches meanwhile what
    each of its devices does. Nothing is stopped, started or stored.
  - Cards are watched through NVML. A device that is an RPC server on this host is watched through the kernel's accounts
    of its process; one on another host is not seen.
  - While other requests are handled nothing is sent, and what overlaps with other requests is left out.
  - Also reads the Xid errors of the kernel's journal.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details: Sends nothing in check mode, and says so for each phase.
  diff_mode:
    support: N/A
    details: This module changes nothing.
options:
  url:
    description: Where the server listens.
    type: str
    default: http://127.0.0.1:8080
  api_key_file:
    description: File on the host that holds the API key. An absent or empty file means that the server needs none.
    type: path
  devices:
    description: The devices of the split, C(devices) of the host's record. C(device), C(id) and C(backend) are read.
    type: list
    elements: dict
    required: true
  phases:
    description: What to load the server with, one after the other. An empty list only reads the cards and the journal.
    type: list
    elements: dict
    required: true
    suboptions:
      kind:
        description: What is measured.
        type: str
        choices: [decode, prefill]
        required: true
      prompt_tokens:
        description:
          - Length of the prompt. With V(1) a request of V(decode) is nothing but equal steps, as one token of prompt
            costs as much as one that is generated.
        type: int
        required: true
      generated_tokens:
        description: Tokens to generate.
        type: int
        required: true
  seconds:
    description: For how long each phase is measured, after a short warm-up. Long requests make it longer.
    type: float
    default: 8
  blocks:
    description: Parts that a phase is divided into; they show the noise.
    type: int
    default: 4
  wait_seconds:
    description: How long to wait for a server that is busy with other requests.
    type: int
    default: 30
  sample_interval_ms:
    description: Time between two looks at the cards.
    type: int
    default: 100
  journal_days:
    description: How far back the journal is searched for Xid errors. V(0) does not read it.
    type: int
    default: 7
  timeout_seconds:
    description: Time limit of one request.
    type: int
    default: 300
  host_python:
    description: Python interpreter that has C(nvidia-ml-py), used when the one that runs this module lacks it.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - nvidia-ml-py >= 12.535.108, in the interpreter that runs the module or in O(host_python), to watch cards
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Watch the devices while the server generates
  homelab.mixed_gpu.llama_server_watch:
    devices: "{{ ansible_local.mixed_gpu.models[ansible_local.mixed_gpu.active].devices }}"
    phases:
      - {kind: decode, prompt_tokens: 1, generated_tokens: 64}
      - {kind: prefill, prompt_tokens: 1024, generated_tokens: 1}
  register: example_watched
"""

RETURN = r"""
busy:
  description: One sentence when the server was busy with other requests, so that nothing was sent.
  returned: always
  type: str
devices:
  description: How each device is seen.
  returned: always
  type: list
  elements: dict
  contains:
    device:
      description: Name of llama.cpp.
      type: str
      returned: always
    id:
      description: UUID or endpoint.
      type: str
      returned: always
    seen:
      description: V(nvml), V(process), or V(none) for a device that cannot be watched.
      type: str
      returned: always
    reason:
      description: Why it is not seen.
      type: str
      returned: always
    pid:
      description: Its process.
      type: int
      returned: always
    unit:
      description: systemd's unit of the process.
      type: str
      returned: always
    cpu_quota_percent:
      description: CPU quota of that unit in percent of one CPU, V(none) without one.
      type: float
      returned: always
phases:
  description: What was seen, one entry per phase.
  returned: always
  type: list
  elements: dict
  contains:
    kind:
      description: As given, like the next two.
      type: str
      returned: always
    prompt_tokens:
      description: Length of the prompt.
      type: int
      returned: always
    generated_tokens:
      description: Tokens generated.
      type: int
      returned: always
    skipped_reason:
      description: Why nothing was measured, V(none) when it was.
      type: str
      returned: always
    overlapped:
      description: Parts that were left out because other requests came in between.
      type: int
      returned: always
    blocks:
      description: The parts.
      type: list
      elements: dict
      returned: always
      contains:
        requests:
          description: Requests answered.
          type: int
          returned: always
        ms:
          description: What the server says that they took, in ms.
          type: float
          returned: always
        wall_ms:
          description: What the part took, in ms.
          type: float
          returned: always
        devices:
          description: By id. The time in which the device was busy, and of it that in which it waited for a CPU, in ms.
          type: dict
          returned: always
    cards:
      description:
        - By UUID, what gpu_facts calls C(sampled), and C(throttled_percent), the share of looks with each reason.
      type: dict
      returned: always
gpus:
  description: The fact C(mixed_gpu_gpus) of gpu_facts, read after the load.
  returned: always
  type: dict
xid_events:
  description: Xid errors that the driver reported meanwhile, as in C(mixed_gpu_gpus).
  returned: always
  type: list
  elements: dict
kernel_lines:
  description: Lines of the kernel's journal about Xid errors, with date; V(none) where the journal cannot be read.
  returned: always
  type: list
  elements: str
"""

import importlib
import threading
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware, nvml, nvml_sampling
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
    read_api_key,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import device_watch

Json = dict[str, t.Any]

SEED = "homelab.mixed_gpu diagnosis"
#: NVML's utilisation is that of its last sampling period, up to a second ago.
CARD_SETTLE_SECONDS = 1.0
LONGEST_WATCH_SECONDS = 3600.0
#: A busy machine takes its time over HTTP, too.
QUEUED_MS = 250.0
QUOTA_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}


def quota_percent(text: str) -> float | None:
    """Percent of one CPU, of systemd's CPUQuotaPerSecUSec: C(500ms), C(1.500s) or C(infinity)."""
    for unit, seconds in QUOTA_UNITS.items():
        number = text.removesuffix(unit)
        if number != text and number.replace(".", "", 1).isdigit():
            return round(100 * float(number) * seconds, 1)
    return None


class Watcher:
    """The devices of one server, and what they do."""

    def __init__(self, module: AnsibleModule, nvml: t.Any) -> None:
        self.module = module
        self.nvml = nvml
        self.gpus = self.ask_cards()
        self.devices = [self._device(device) for device in module.params["devices"]]
        self.readings: dict[str, list[nvml_sampling.Reading]] = {}
        self.xid_events: list[Json] | None = [] if self.gpus["available"] else None

    def ask_cards(self, **watching: t.Any) -> Json:
        if isinstance(self.nvml, str):
            return nvml.unavailable(self.nvml)
        return nvml.probe(self.nvml, None, **watching)

    def _device(self, device: Json) -> Json:
        seen: Json = {"device": device["device"], "id": device["id"], "seen": None, "reason": None, "pid": None,
                      "unit": None, "cpu_quota_percent": None}  # fmt: skip
        if device["backend"] == "CUDA":
            if any(gpu["uuid"] == device["id"] for gpu in self.gpus["gpus"]):
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
        pid, unit = self._listener(port)
        properties = self._properties(unit)
        pid = pid or int(properties.get("MainPID") or 0)
        if not pid:
            return {**seen, "reason": f"no process of this host is known to listen on port {port}"}
        quota = quota_percent(properties.get("CPUQuotaPerSecUSec", ""))
        return {**seen, "seen": "process", "pid": pid, "unit": unit, "cpu_quota_percent": quota}

    def _listener(self, port: int) -> tuple[int | None, str | None]:
        """Process and service that listen there; in a container the process can be hidden even from root."""
        ss = self.module.get_bin_path("ss")
        if ss is None:
            return None, None
        _rc, stdout, _stderr = self.module.run_command([ss, "-Hltnp", "--cgroup", f"sport = :{port}"])
        found: list[Json] = host_hardware.listeners(stdout)
        unit = found[0]["unit"] if found and str(found[0]["unit"]).endswith(".service") else None
        return (found[0]["pid"] if found else None), unit

    def _properties(self, unit: str | None) -> dict[str, str]:
        if not unit:
            return {}
        try:
            return systemd.show(self.module, unit, "MainPID", "CPUQuotaPerSecUSec")
        except UserError:  # a server that runs without systemd is watched, too
            return {}

    def snapshot(self) -> dict[str, dict[int, device_watch.Spent]]:
        """What the threads of each process have had so far."""
        return {
            device["id"]: device_watch.threads(device["pid"])
            for device in self.devices
            if device["seen"] == "process"
        }

    def spent(self, before: dict[str, dict[int, device_watch.Spent]]) -> dict[str, Json]:
        """What each process did since then."""
        found: dict[str, Json] = {}
        for key, after in self.snapshot().items():
            spent = device_watch.between(before[key], after)
            found[key] = {"busy_ms": round(sum(spent) / 1e6, 3), "waiting_ms": round(spent.waiting_ns / 1e6, 3)}
        return found

    def run(self, phase: Json, client: Client, vocabulary_size: int, context: int) -> Json:
        """Load the server with one phase and return what is seen."""
        result: Json = {**phase, "skipped_reason": llama_server.does_not_fit(phase, context), "overlapped": 0,
                        "blocks": [], "cards": {}}  # fmt: skip
        if result["skipped_reason"]:
            return result
        self.readings.clear()
        ended = threading.Event()
        facts: list[Json] = []
        thread = threading.Thread(target=self._watch_cards, args=(ended, facts), daemon=True)
        if self.gpus["gpus"]:
            thread.start()
        began: float | None = None
        spans: list[tuple[float, float]] = []
        try:
            prompt = llama_server.prompt_tokens(phase["prompt_tokens"], vocabulary_size, SEED)
            self._warm_up(client, phase, prompt)
            began = time.monotonic()
            self._blocks(client, phase, prompt, result, spans)
        except ServerError as error:
            result["skipped_reason"] = str(error)
        finally:
            over = time.monotonic()
            ended.set()
            if thread.ident is not None:
                thread.join()
        for answer in facts:
            self.xid_events = [*(self.xid_events or []), *(answer["xid_events"] or [])]
        for block, span in zip(result["blocks"], spans, strict=True):
            block["devices"].update(self._cards_spent(*span))
        if began is not None:
            result["cards"] = self._cards(began, over)
        return result

    def _cards_spent(self, start: float, end: float) -> dict[str, Json]:
        """What the cards of the split did from start to end: their utilisation is a share of that time."""
        ids = {device["id"] for device in self.devices}
        return {
            uuid: {"busy_ms": round(percent / 100 * (end - start) * 1000, 3), "waiting_ms": 0.0}
            for uuid, percent in device_watch.cards_between(self.readings, start, end).items()
            if uuid in ids and percent is not None
        }

    def _watch_cards(self, ended: threading.Event, facts: list[Json]) -> None:
        facts.append(
            self.ask_cards(
                sample_seconds=LONGEST_WATCH_SECONDS, sample_interval_ms=self.module.params["sample_interval_ms"],
                ended=ended.is_set, readings=self.readings,
            )
        )  # fmt: skip

    def _cards(self, began: float, over: float) -> Json:
        found = {}
        for uuid, all_rows in self.readings.items():
            rows = [row for row in all_rows if began <= row["at"] <= over]
            sampled = nvml_sampling.summary(rows, round(over - began, 2), nvml.throttle_reasons)
            throttled = device_watch.throttled_percent(rows, nvml.throttle_reasons)
            found[uuid] = {"sampled": sampled, "throttled_percent": throttled}
        return found

    def _warm_up(self, client: Client, phase: Json, prompt: list[int]) -> None:
        ready = time.monotonic() + (CARD_SETTLE_SECONDS if self.gpus["gpus"] else 0.0)
        while True:
            _request(client, phase, prompt)
            if time.monotonic() >= ready:
                return

    def _blocks(
        self, client: Client, phase: Json, prompt: list[int], result: Json, spans: list[tuple[float, float]]
    ) -> None:
        """Measure until the time is over, at least two parts that nobody else disturbed, or as many that were."""
        params = self.module.params
        length = params["seconds"] / params["blocks"]
        ends = time.monotonic() + params["seconds"]
        while True:
            before, start = self.snapshot(), time.monotonic()
            ms, requests, alone = 0.0, 0, True
            while alone and (not requests or time.monotonic() - start < length):
                sent = time.monotonic()
                took = _request(client, phase, prompt)
                ms, requests = ms + took, requests + 1
                # what the client waited far beyond the server's own account, it waited behind somebody else
                queued = (time.monotonic() - sent) * 1000 - took
                alone = queued <= max(QUEUED_MS, 0.25 * took) and client.busy_slots() == 0
            end = time.monotonic()
            if alone:
                block = {
                    "requests": requests,
                    "ms": round(ms, 3),
                    "wall_ms": round((end - start) * 1000, 3),
                    "devices": self.spent(before),
                }
                result["blocks"].append(block)
                spans.append((start, end))
            else:
                result["overlapped"] += 1
            tried = len(result["blocks"]) + result["overlapped"]
            enough = len(result["blocks"]) >= 2 or result["overlapped"] >= 2
            if enough and (time.monotonic() >= ends or tried >= 2 * params["blocks"]):
                return


def _request(client: Client, phase: Json, prompt: list[int]) -> float:
    """Send the prompt and return what the server says that the answer took, in ms."""
    timings = client.generate(prompt, phase["generated_tokens"])
    try:
        llama_server.sample(timings, phase["prompt_tokens"])
        return float(timings["prompt_ms"]) + float(timings["predicted_ms"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ServerError(f"{phase['kind']}: {exc}.") from exc


def _wait_until_idle(client: Client, seconds: int) -> str | None:
    """Wait for other requests to end; one sentence when they do not."""
    ends = time.monotonic() + seconds
    while requests := client.busy_slots():
        if time.monotonic() >= ends:
            return (
                f"{client.url} was busy with {requests} other request{'s' * (requests > 1)} for {seconds} s, so "
                "nothing was sent: run this again when nobody uses the server, or raise the time to wait"
            )
        time.sleep(1)
    return None


def _kernel_lines(module: AnsibleModule) -> list[str] | None:
    """What the kernel said of Xid errors, in any boot of the last days."""
    journalctl = module.get_bin_path("journalctl")
    if not module.params["journal_days"] or journalctl is None:
        return None
    since = f"--since=-{module.params['journal_days']}d"
    rc, stdout, _stderr = module.run_command(
        [journalctl, "--no-pager", "--quiet", "-o", "short-iso", since, "_TRANSPORT=kernel"]
    )
    return [line for line in stdout.splitlines() if "NVRM: Xid" in line] if rc in (0, 1) else None  # 1: no entries


def main() -> None:
    phase = {
        "kind": {"type": "str", "choices": ["decode", "prefill"], "required": True},
        "prompt_tokens": {"type": "int", "required": True, "no_log": False},
        "generated_tokens": {"type": "int", "required": True, "no_log": False},
    }
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "no_log": False},
            "devices": {"type": "list", "elements": "dict", "required": True},
            "phases": {"type": "list", "elements": "dict", "required": True, "options": phase},
            "seconds": {"type": "float", "default": 8},
            "blocks": {"type": "int", "default": 4},
            "wait_seconds": {"type": "int", "default": 30},
            "sample_interval_ms": {"type": "int", "default": 100},
            "journal_days": {"type": "int", "default": 7},
            "timeout_seconds": {"type": "int", "default": 300},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    params = module.params
    if not 0 < params["seconds"] <= 600 or params["blocks"] < 2 or params["sample_interval_ms"] < 10:
        module.fail_json(
            msg="seconds must be more than 0 and at most 600, blocks at least 2 and sample_interval_ms at least 10: "
            f"they are {params['seconds']}, {params['blocks']} and {params['sample_interval_ms']}."
        )
    nameless = [device for device in params["devices"] if not {"device", "id", "backend"} <= device.keys()]
    if nameless:
        module.fail_json(
            msg=f"devices must have device, id and backend each, as in the host's record, not {nameless[0]}."
        )
    reason = host_python.enter(["pynvml"], params["host_python"])
    watcher = Watcher(module, reason if reason else importlib.import_module("pynvml"))
    busy = None
    phases = []
    if params["phases"] and not module.check_mode:
        key = read_api_key(None, params["api_key_file"])
        if key:
            module.no_log_values.add(key)
        client = Client(params["url"], key, params["timeout_seconds"])
        try:
            context, vocabulary_size = client.context_per_slot(), client.vocabulary_size()
            busy = _wait_until_idle(client, params["wait_seconds"])
        except ServerError as exc:
            module.fail_json(msg=str(exc))
        if busy is None:
            phases = [watcher.run(phase, client, vocabulary_size, context) for phase in params["phases"]]
    if not phases:
        why = busy or "not measured in check mode"
        nothing: Json = {"skipped_reason": why, "overlapped": 0, "blocks": [], "cards": {}}
        phases = [{**phase, **nothing} for phase in params["phases"]]
    module.exit_json(
        changed=False, busy=busy, devices=watcher.devices, phases=phases, gpus=watcher.ask_cards(),
        xid_events=watcher.xid_events, kernel_lines=_kernel_lines(module),
    )  # fmt: skip


if __name__ == "__main__":
    main()
