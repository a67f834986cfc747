# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Loads a running llama-server for some seconds and watches its devices. Private to this collection.

One request at a time, the same prompt again and again. Nothing is stopped, started or stored. While other requests are
handled nothing is sent, and parts that overlap with other requests are left out.
"""

from __future__ import annotations

import time
import typing as t

from .._base.types import Json
from .._llama_cpp import server_timings
from .._llama_cpp.llama_client import Client, ServerError
from .watched_devices import Tools, WatchedDevices

SEED: t.Final = "homelab.mixed_gpu diagnosis"
SAMPLE_INTERVAL_MS: t.Final = 100
#: NVML's utilisation is that of its last sampling period, up to a second ago.
CARD_SETTLE_SECONDS: t.Final = 1.0
#: A busy machine takes its time over HTTP, too.
QUEUED_MS: t.Final = 250.0


class Asked(t.NamedTuple):
    """What to load the server with, one phase after the other, and for how long."""

    phases: t.Sequence[Json]
    seconds: float
    blocks: int
    wait_seconds: int
    journal_days: int
    sample_interval_ms: int = SAMPLE_INTERVAL_MS


def watch(client: Client, devices: t.Sequence[t.Mapping[str, t.Any]], asked: Asked, tools: Tools) -> Json:
    """Return {busy, devices, phases, gpus, xid_events, kernel_lines}: what a server's devices did under each phase.

    C(devices) are those of the record (device, id, backend). A phase is {kind, prompt_tokens, generated_tokens}; each
    comes back with skipped_reason (None when it was measured), overlapped (parts left out), blocks ({requests, ms,
    wall_ms, devices: {id: {busy_ms, waiting_ms}}}) and cards ({card_id: {sampled, throttled_percent}}). C(busy) is a
    sentence where other requests did not end. Raises ServerError when the server does not answer at first.
    """
    watched = WatchedDevices(devices, tools, asked.sample_interval_ms)
    busy, phases = None, []
    if asked.phases:
        context, vocabulary_size = client.context_per_slot(), client.vocabulary_size()
        busy = _wait_until_idle(client, asked.wait_seconds)
        for phase in asked.phases:
            reason = busy or server_timings.does_not_fit(phase, context)
            phases.append(_nothing(phase, reason) if reason else _run(phase, client, watched, asked, vocabulary_size))
    return {
        "busy": busy,
        "devices": watched.devices,
        "phases": phases,
        "gpus": watched.ask_cards(),
        "xid_events": watched.xid_events,
        "kernel_lines": _kernel_lines(tools, asked.journal_days),
    }


def _nothing(phase: Json, reason: str | None) -> Json:
    return {**phase, "skipped_reason": reason, "overlapped": 0, "blocks": [], "cards": {}}


def _run(phase: Json, client: Client, devices: WatchedDevices, asked: Asked, vocabulary_size: int) -> Json:
    """Load the server with one phase and return what its devices did."""
    result = _nothing(phase, None)
    request = _Request(client, phase, server_timings.prompt_tokens(phase["prompt_tokens"], vocabulary_size, SEED))
    began: float | None = None
    spans: list[tuple[float, float]] = []
    with devices:
        try:
            _warm_up(request, CARD_SETTLE_SECONDS if devices.gpus["gpus"] else 0.0)
            began = time.monotonic()
            _measure_blocks(request, devices, asked, result, spans)
        except ServerError as error:
            result["skipped_reason"] = str(error)
        over = time.monotonic()
    for block, span in zip(result["blocks"], spans, strict=True):
        block["devices"].update(devices.cards_spent(*span))
    if began is not None:
        result["cards"] = devices.cards(began, over)
    return result


class _Request(t.NamedTuple):
    """The one request that a phase sends again and again."""

    client: Client
    phase: Json
    prompt: list[int]

    def send(self) -> float:
        """Send it and return what the server says that the answer took, in ms. Raises ServerError."""
        timings = self.client.generate(self.prompt, self.phase["generated_tokens"])
        try:
            server_timings.sample(timings, self.phase["prompt_tokens"])
            return float(timings["prompt_ms"]) + float(timings["predicted_ms"])
        except (KeyError, TypeError, ValueError) as exc:
            raise ServerError(f"{self.phase['kind']}: {exc}.") from exc


def _warm_up(request: _Request, seconds: float) -> None:
    ready = time.monotonic() + seconds
    while True:
        request.send()
        if time.monotonic() >= ready:
            return


def _measure_blocks(
    request: _Request, devices: WatchedDevices, asked: Asked, result: Json, spans: list[tuple[float, float]]
) -> None:
    """Add blocks to the result until the time is over: at least two undisturbed ones, or two that were disturbed."""
    ends = time.monotonic() + asked.seconds
    while True:
        before, start = devices.snapshot(), time.monotonic()
        ms, requests, alone = _one_block(request, start + asked.seconds / asked.blocks)
        end = time.monotonic()
        if alone:
            block = {
                "requests": requests,
                "ms": round(ms, 3),
                "wall_ms": round((end - start) * 1000, 3),
                "devices": devices.spent(before),
            }
            result["blocks"].append(block)
            spans.append((start, end))
        else:
            result["overlapped"] += 1
        tried = len(result["blocks"]) + result["overlapped"]
        enough = len(result["blocks"]) >= 2 or result["overlapped"] >= 2
        if enough and (time.monotonic() >= ends or tried >= 2 * asked.blocks):
            return


def _one_block(request: _Request, ends: float) -> tuple[float, int, bool]:
    """Return the server's ms, the number of requests, and whether no other request came in between."""
    ms, requests, alone = 0.0, 0, True
    while alone and (not requests or time.monotonic() < ends):
        sent = time.monotonic()
        took = request.send()
        ms, requests = ms + took, requests + 1
        # time far beyond the server's own account was spent in a queue behind another request
        queued = (time.monotonic() - sent) * 1000 - took
        alone = queued <= max(QUEUED_MS, 0.25 * took) and request.client.busy_slots() == 0
    return ms, requests, alone


def _wait_until_idle(client: Client, seconds: int) -> str | None:
    """Wait for other requests to end; return one sentence when they do not."""
    ends = time.monotonic() + seconds
    while requests := client.busy_slots():
        if time.monotonic() >= ends:
            return (
                f"{client.url} was busy with {requests} other request{'s' * (requests > 1)} for {seconds} s, so "
                "nothing was sent: run this again when nobody uses the server, or raise the time to wait"
            )
        time.sleep(1)
    return None


def _kernel_lines(tools: Tools, days: int) -> list[str] | None:
    """Return the kernel's lines about Xid errors, of any boot of the last days; None where there is no journal."""
    journalctl = tools.module.get_bin_path("journalctl")
    if not days or journalctl is None:
        return None
    since = f"--since=-{days}d"
    rc, stdout, _stderr = tools.module.run_command(
        [journalctl, "--no-pager", "--quiet", "-o", "short-iso", since, "_TRANSPORT=kernel"]
    )
    return [line for line in stdout.splitlines() if "NVRM: Xid" in line] if rc in (0, 1) else None  # 1: no entries
