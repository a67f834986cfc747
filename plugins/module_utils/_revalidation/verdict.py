# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Is the recorded split still right? The verdict on a host against its baseline. Private to this collection.

Pure functions only. docs/data_formats.md describes the dicts (baseline, revalidation, load, device_probe). C(observed)
is what the role revalidate saw of a host:

  at, host, deployment, entry (of the fact), baseline (or None), configuration (of today, as baselines.configuration),
  gpus (mixed_gpu_gpus), server (llama_server_info), completion ({ok, detail}), served (tests, or None),
  served_answer (to a fixed question, or None), acceptance (of drafted tokens, or None),
  busy ({busy, why}), model ({path, exists, sha256, headers_sha256}), loads (of today),
  device_probe (of today, or None), answers (the newest check of them, or None),
  links (of rpc_link_info, to lenders; empty where not measured),
  unseen_lenders (lent_devices.Unseen by name; not even looked at counts as recorded),
  failure (what ended measuring, or None), contention ({served, probe}: what else computed meanwhile)
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._measuring import contention
from .._split import engines, fact_record, link_changes
from . import acceptance_check, answers, checks, contended, explain, speed_checks, text_answers
from .changes import changes

SCHEMA: t.Final = 1


def judge(observed: Mapping, settings: Mapping) -> Json:
    """Return the C(revalidation) of docs/data_formats.md, with C(lines), the same for people.

    C(settings): tolerance_percent, reserve_mib, accept (verdicts). Raises KeyError or TypeError for what is not as
    described at the top.
    """
    tolerance = float(settings["tolerance_percent"])
    baseline, engine = observed["baseline"], engines.of(observed["entry"]["serving"])
    moved = changes(baseline["configuration"], observed["configuration"]) if baseline else []
    found = _checks(observed, tolerance, int(settings["reserve_mib"]))
    verdict = checks.worst(check["verdict"] for check in found)
    said = contended.whose(observed)
    calm = said is None and contended.of_probe(observed) is None
    probed = baseline["device_probe"] if baseline and calm else None
    devices = explain.device_changes(probed, observed["device_probe"])
    retune = explain.moved_optimum(devices, tolerance)
    result = {
        "schema": SCHEMA,
        "host": observed["host"],
        "deployment": observed["deployment"],
        "at": observed["at"],
        "baseline_at": baseline["recorded_at"] if baseline else None,
        "driver_version": observed["configuration"]["driver_version"],
        "verdict": verdict,
        "accepted": verdict in settings["accept"],
        "measured": bool(observed["loads"]),
        # what is worse than open was found in spite of it
        "contended": None if said is None or verdict in ("regressed", "broken") else contention.sentence(said),
        "summary": _summary(verdict, found, baseline),
        "changes": moved,
        "checks": found,
        "links": _links(observed),
        "explanation": explain.explain(found, moved, devices, engine.family == "llama_cpp"),
        "retune": retune,
        "advice": _advice(verdict, moved, retune, observed),
    }
    return {**result, "lines": lines(result)}


def _links(observed: Mapping) -> list[Json]:
    """Return the link to each lender, when it was tuned and now; C(now) is None where it was not measured."""
    entry, now = observed["entry"], observed["links"]
    slower = {link.endpoint for link in link_changes.compared(entry, now) if link.slower}
    return [
        {"endpoint": endpoint, "before": dict(link), "now": now.get(endpoint), "slower": endpoint in slower}
        for endpoint, link in link_changes.recorded(entry).items()
    ]


def _checks(observed: Mapping, tolerance_percent: float, reserve_mib: int) -> list[Json]:
    """Return all checks of a host that apply."""
    baseline = observed["baseline"]
    lent = checks.lenders(observed)
    if lent is not None:  # it is another placement than that of the baseline
        placed = checks.placement(observed)
        told = [lent, checks.cards(observed), checks.server(observed)]
        told += [checks.completion(observed), checks.model(observed)]
        told += [placed] if placed is not None and placed["verdict"] != "ok" else []
        return [check for check in told if check is not None]
    speeds = speed_checks.speeds(observed, tolerance_percent)
    every = [
        checks.cards(observed),
        checks.server(observed),
        checks.placement(observed),
        checks.added_up(observed),
        answers.check(observed),
        checks.completion(observed),
        checks.model(observed),
        checks.alone(observed),
        checks.memory(observed, reserve_mib),
        text_answers.checked(baseline and baseline.get("all_loads", baseline["loads"]), observed["loads"]),
        text_answers.served(baseline, observed),
        acceptance_check.checked(observed, tolerance_percent),
        checks.links(observed),
        checks.network(observed),
        checks.lender_cards(observed),
        checks.power(observed),
        checks.throttling(observed),
        *speeds,
    ]
    found = [check for check in every if check is not None]
    slower = any(check["verdict"] == "regressed" and "change_percent" in check for check in found)
    known = all(check["verdict"] != "inconclusive" for check in speeds)
    for check in found:
        if check["name"] not in ("throttling", "network") or check["verdict"] != "regressed" or slower:
            continue
        if check["name"] == "network" and not known:
            check.update(verdict="inconclusive")
        else:
            check.update(verdict="ok", detail=f"{check['detail']}; no speed fell by it")
    if baseline is None:
        detail = "there is none to compare with; -e accept=true measures and records one"
        found.append(checks.check("baseline", "inconclusive", detail))
    return found


def _summary(verdict: str, found: t.Sequence[Mapping], baseline: Mapping | None) -> str:
    since = f" since {baseline['recorded_at'][:10]}" if baseline else ""
    if verdict == "ok":
        return f"the recorded split holds: nothing is slower or broken{since}"
    said = [f"{check['name']}: {check['detail']}" for check in found if check["verdict"] == verdict]
    return f"{verdict}{since}: {'; '.join(said)}"


def _advice(verdict: str, moved: t.Sequence[Mapping], retune: str | None, observed: Mapping) -> list[str]:
    found = []
    measured = bool(observed["loads"])
    probing = "probe" in engines.of(observed["entry"]["serving"]).stages
    if probing and measured and fact_record.repeatable_probe(observed["entry"]) is None:
        found.append(
            "The record does not say how each device was measured alone, so that was not repeated: -e retune=true."
        )
    if moved and verdict in ("ok", "improved"):
        what = ", ".join(change["part"] for change in moved)
        found.append(
            f"The configuration changed ({what}) and the speed did not fall: -e accept=true makes this the new"
            " baseline, and site then measures nothing."
        )
    if verdict == "inconclusive" and not measured and contended.whose(observed) is None:
        found.append("Measure under a lease, which stops the server for some minutes: -e revalidate_measure=true.")
    if retune:
        found.append(f"{retune[0].upper()}{retune[1:]}.")
    return found


def lines(result: Mapping) -> list[str]:
    """Return a revalidation as lines for people."""
    accepted = "" if result["accepted"] else " (not accepted)"
    deployment = f", {result['deployment']}" if result["deployment"] else ""
    found = [f"{result['host']}: {result['verdict'].upper()}{accepted}{deployment}"]
    if result["baseline_at"]:
        found.append(f"baseline of {result['baseline_at']}, {'measured again' if result['measured'] else 'as served'}")
    for change in result["changes"]:
        found.append(f"changed: {change['part']}: {change['before']} -> {change['now']}")
    width = max((len(check["name"]) for check in result["checks"]), default=0)
    found += [f"{check['verdict']:<12} {check['name']:<{width}}  {check['detail']}" for check in result["checks"]]
    if result["explanation"]:
        found.append(f"why: {result['explanation']['detail']}")
        found += [f"next: {command}" for command in result["explanation"]["next"]]
    return found + list(result["advice"])


def without_lines(result: Mapping) -> Json:
    """Return a revalidation as it is stored and reported."""
    return {name: value for name, value in result.items() if name != "lines"}


def broken(host: str, at: str, reason: str, found: Mapping | None) -> Json:
    """Return the C(revalidation) of a host on which revalidating itself failed, with C(lines).

    C(found) is the verdict where one was found before something failed: it stays, and is not accepted.
    """
    if found is not None:
        result = {**found, "accepted": False, "summary": reason}
        return {**result, "lines": lines(result)}
    result = {
        "schema": SCHEMA, "host": host, "deployment": None, "at": at, "baseline_at": None,
        "driver_version": None, "verdict": "broken", "accepted": False, "measured": False, "contended": None,
        "summary": f"broken: {reason}", "changes": [],
        "checks": [checks.check("revalidation", "broken", reason)], "links": [], "explanation": None, "retune": None,
        "advice": [],
    }  # fmt: skip
    return {**result, "lines": lines(result)}


def failure_text(result: t.Any) -> str:
    """Return what a failed task says, in one text; of a loop, what its first failed item says."""
    if not isinstance(result, t.Mapping):
        return str(result)
    for item in result.get("results") or []:
        if isinstance(item, t.Mapping) and item.get("failed"):
            return failure_text(item)
    words = result.get("msg") or "it failed without a word"
    return " ".join(str(word) for word in words) if isinstance(words, (list, tuple)) else str(words)


def together(hosts: t.Mapping[str, Mapping], unreachable: t.Iterable[str]) -> Json:
    """Return the report over all hosts; the worst one decides, and one that was not reached is not accepted."""
    missing = sorted(unreachable)
    verdict = checks.worst([result["verdict"] for result in hosts.values()] + ["broken"] * bool(missing))
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "accepted": bool(hosts) and not missing and all(result["accepted"] for result in hosts.values()),
        "unreachable": missing,
        "hosts": {name: without_lines(result) for name, result in sorted(hosts.items())},
    }
