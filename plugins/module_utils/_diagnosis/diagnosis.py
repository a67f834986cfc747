# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a split works as its record says, and if not, which device is to blame. Private to this collection. Pure."""

from __future__ import annotations

import typing as t

from .._base import json_file
from .._base.types import Json
from .._split import deployment
from . import card_findings, device_findings, draft_findings, rules, split_advice
from .finding import SEVERITIES, finding
from .observed import observe

#: What is known where there is no baseline.
_NOTHING: t.Final[Json] = {"configuration": {}, "acceptance": None}


def read_baseline(text: str) -> tuple[Json, list[Json]]:
    """Return (a baseline, findings about the file); one that knows nothing where there is none, or a damaged one."""
    if not text:
        return _NOTHING, []
    try:
        baseline = json_file.from_text(text)
        return {"configuration": dict(baseline["configuration"]), "acceptance": baseline["acceptance"]}, []
    except (KeyError, TypeError, ValueError) as error:
        detail = f"it is damaged ({error!r}), so power limits and links are not compared with it"
        cure = "move it away; the next revalidation writes a new one"
        return _NOTHING, [finding("baseline", "baseline", "note", detail, cure)]


def diagnose(
    entry: Json, watched: Json, server: Json, baseline: str, tolerance_percent: float, hung: t.Sequence[Json],
    metrics: str,
) -> Json:
    """Return the diagnosis of docs/data_formats.md, but for deployment and time.

    C(entry) is a deployment of the host's record, C(watched) what server_under_load.watch returned, C(server) what
    llama_server_info did, C(baseline) the text of the host's baseline of this deployment or empty, C(hung) what
    hangs.findings returned, C(metrics) what /metrics of the server said before anything was sent to it.
    """
    entry = deployment.expand(entry)
    observed = [observe(entry, phase, tolerance_percent) for phase in watched["phases"]]
    known, unread = read_baseline(baseline)
    layer_advice = split_advice.advice(entry, observed)
    found = [
        *_server_findings(server),
        *_lenders(server),
        *hung,
        *device_findings.devices(watched["devices"], observed),
        *device_findings.split(observed),
        *unread,
        *draft_findings.drafts(metrics, known["acceptance"]),
        *_all_cards(entry, watched, known["configuration"], server["state"] == "ready"),
        *_skipped(watched),
    ]
    judged = {
        "schema": 1,
        "busy": watched["busy"],
        "devices": watched["devices"],
        "phases": observed,
        "xid_journal_read": watched["kernel_lines"] is not None,
        "advice": layer_advice,
        "rules": rules.rules(entry, observed, layer_advice),
        "cards": {phase["kind"]: phase["cards"] for phase in watched["phases"]},
        "lenders": [],
        "lenders_before": known["configuration"].get("lenders") or {},
    }
    return with_findings(judged, found)


def with_findings(judged: Json, found: t.Sequence[Json]) -> Json:
    """Return a diagnosis with these findings, the worst first, and the verdict and summary that follow from them."""
    ranked = sorted(found, key=lambda one: -SEVERITIES.index(one["severity"]))
    verdict = _verdict(judged["busy"], judged["phases"], ranked)
    summary = _summary(verdict, judged["busy"], judged["phases"], ranked)
    return {**judged, "verdict": verdict, "summary": summary, "findings": ranked}


def failure(server: Json) -> str | None:
    """Return why a host was not diagnosed, with the cure, or None where its server runs.

    C(server) is what llama_server_info returned.
    """
    if server["state"] == "ready":
        return None
    (found,) = _server_findings(server)
    return f"{found['detail'].rstrip('.')} ({found['cure']}); run diagnose again then."


def _server_findings(server: Json) -> list[Json]:
    """Return where the running server differs from the record, or that it does not run."""
    if server["state"] == "ready":
        return [finding("server", "placement", "problem", text, "run site") for text in server["deviations"]]
    said = [server["reason"], *server["last_lines"][-2:]]
    detail = f"llama-server is {server['state']}, so nothing was sent: {' / '.join(text for text in said if text)}"
    return [finding("server", "state", "problem", detail, "journalctl -u llama-server says why; site starts it")]


def _lenders(server: Json) -> list[Json]:
    """Return what the server does without: its devices have other layers then, and are not measured."""
    sentence = (server.get("without_lenders") or {}).get("sentence")
    if not sentence:
        return []
    cure = "start the lender, or see the journal of its ggml-rpc-server units; the server uses it again by itself"
    return [finding("lenders", "absent", "problem", sentence, cure)]


def _all_cards(entry: Json, watched: Json, configuration: Json, loaded: bool) -> list[Json]:
    """Return the findings about the cards, their driver and Xid errors."""
    names = {device["id"]: device["device"] for device in entry["devices"]}
    found: list[Json] = []
    before = {gpu["id"]: gpu for gpu in configuration.get("gpus") or []}
    gpus = watched["gpus"]
    for gpu in gpus["gpus"]:
        seen = {
            phase["kind"]: phase["cards"][gpu["id"]] for phase in watched["phases"] if gpu["id"] in phase["cards"]
        }
        found += card_findings.card(gpu, seen, before.get(gpu["id"]), names, loaded)
    uses_cards = any(device["backend"] == "CUDA" for device in entry["devices"])
    if gpus["reason"] and (gpus["gpus"] or uses_cards):
        found.append(finding("cards", "driver", "problem", gpus["reason"], None))
    journal = card_findings.xid_lines(watched["kernel_lines"] or [])
    return found + card_findings.xids(journal, watched["xid_events"], gpus["gpus"], names)


def _skipped(watched: Json) -> list[Json]:
    """Return which phases were not measured and why; a busy server is the verdict and no finding."""
    return [
        finding("server", "load", "note", f"no {phase['kind']}: {phase['skipped_reason']}", None)
        for phase in watched["phases"]
        if phase["skipped_reason"] and not watched["busy"]
    ]


def _verdict(busy: str | None, observed: t.Sequence[Json], found: t.Sequence[Json]) -> str:
    """Return problem, busy, not_measured, within_noise or ok."""
    if any(one["severity"] == "problem" for one in found):
        return "problem"
    if busy:
        return "busy"
    if not any(phase["blocks"] for phase in observed):
        return "not_measured"
    verdicts = {row["verdict"] for phase in observed for row in (phase, *phase["devices"])}
    return "within_noise" if "within_noise" in verdicts else "ok"


def _summary(verdict: str, busy: str | None, observed: t.Sequence[Json], found: t.Sequence[Json]) -> str:
    """Return the verdict as one sentence."""
    worst = [one for one in found if one["severity"] == "problem"]
    if worst:
        more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
        return f"{worst[0]['subject']}: {worst[0]['detail']}{more}"
    if verdict == "busy":
        return str(busy)
    if verdict == "not_measured":
        return "nothing was measured"
    if verdict == "within_noise":
        return f"no problem found, within noise: {_doubtful(observed) or 'too few undisturbed parts'}"
    slow = [one for one in found if one["kind"] == "slower"]
    if slow:
        return f"no device has a problem; {slow[0]['subject']} {slow[0]['detail']}"
    if not any(row["expected_ms"] for phase in observed for row in phase["devices"]):
        return "no problem found; the record has no fit to compare the devices with"
    return "every device works as recorded"


def _doubtful(observed: t.Sequence[Json]) -> str:
    """Return the devices whose noise hides a change, with their intervals."""
    rows = [(row, phase["kind"]) for phase in observed for row in phase["devices"]]
    return ", ".join(
        f"{row['device']} {kind} ({row['interval_percent'][0]:+.0f} to {row['interval_percent'][1]:+.0f} %)"
        for row, kind in rows
        if row["verdict"] == "within_noise" and row["interval_percent"]
    )
