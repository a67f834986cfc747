# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a split works as its record says, and if not, which device is to blame. Private to this collection. Pure.

What is expected comes from the record's fit (see _cost_model), with n_i slots and b_i blocks on device i:

- decode, per token: device i works n_i * a_i ms of the token's T = sum(n_i * a_i), one after the other. So its
  utilisation is its share n_i * a_i / T, and all shares together are 100 %: in a layer split no card is ever at 100 %.
- prefill, per prompt of m micro-batches: device i works m * b_i * c_i ms of T = of_sum * sum(b_i * c_i) + of_max *
  max(b_i * c_i) (_cost_model.prefill_weights). In a full pipeline the slower stage is busy nearly all the time, the
  other one for the ratio of the stages.

What is observed is how long each device was busy. The fit spreads over the devices what belongs to none of them (hops,
launches, the host), so what is observed is spread too: with s_i the device's part of all busy time, its stage is
scale * s_i with the scale for which T is the time that the server reports. For decoding that is T * s_i.

A device's change is the mean over the blocks of a phase of ln(observed / expected). Its interval is Student's of 99 %:
several devices are judged in two phases, and with 95 % up to 13 % of noisy runs of a healthy pair blame one. In
quadrature it has what the record itself does not know: the fit's residual, and the interval of the recorded split.
"""

from __future__ import annotations

import json
import math
import statistics
import typing as t

from .._base import stats
from .._split import cost_model
from . import card_findings, split_advice
from .card_findings import finding

Json = dict[str, t.Any]

#: So much waiting for a CPU, in percent of the busy time, is a problem; a note from _layer_advice.WAITS_PERCENT on.
WAITING_PROBLEM_PERCENT = 40.0
#: A device whose work is stretched so much more by waiting than another's is held up by itself, not by a busy machine.
WAITS_ALONE_RATIO = 1.5
#: Outside of the interval of a change, both ends together.
OUTSIDE = 0.01
#: How far apart utilisations are when a rule of thumb calls one much higher, in percent points.
MUCH_HIGHER_POINTS = 20.0


# --- what to measure -------------------------------------------------------------------------------------------------


def context_of(serving: Json) -> int:
    """Return the tokens that one request can have."""
    return int(serving["context_size"] // (1 if serving["kv_unified"] else serving["parallel_slots"]))


def phases(entry: Json, block_seconds: float) -> list[Json]:
    """Return what llama_server_watch is to load the server with: the tests of the record, as far as they fit.

    A decode request has one token of prompt, which costs what a generated one does, and lasts no longer than a block
    where the record says how long a token takes.
    """
    tests, room = split_advice.tests_of(entry), context_of(entry["serving"])
    generated = tests["decode"]["n_gen"] if "decode" in tests else split_advice.DECODE_TOKENS
    rate = entry["decision"].get("decode_tokens_per_second")
    if rate:
        generated = min(generated, max(4, round(rate * block_seconds)))
    prompt = tests["prefill"]["n_prompt"] if "prefill" in tests else split_advice.PROMPT_TOKENS
    return [
        {"kind": "decode", "prompt_tokens": 1, "generated_tokens": max(1, min(generated, room - 1))},
        {"kind": "prefill", "prompt_tokens": max(1, min(prompt, room - 1)), "generated_tokens": 1},
    ]


# --- what is expected ------------------------------------------------------------------------------------------------


class Expected(t.NamedTuple):
    """What the record expects of one unit of work: a token of decoding, or a prompt."""

    ms: float
    busy_ms: tuple[float, ...]
    of_sum: float
    of_max: float
    batches: int

    def utilisation(self) -> list[float]:
        """Return the share of time that each device is busy, from 0 to 1."""
        return [min(1.0, busy / self.ms) for busy in self.busy_ms]


def expected(entry: Json, kind: str, prompt_tokens: int) -> Expected | None:
    """Return what the fit of a record expects, or None where there is none for layers."""
    decision = entry["decision"]
    layers, fit = decision["layers"], decision.get("fit")
    if not fit or decision["split_mode"] != "layer" or not fit.get(f"{kind}_ms_per_slot"):
        return None
    costs = fit[f"{kind}_ms_per_slot"]
    if kind == "decode":
        busy = tuple(cost * count for cost, count in zip(costs, layers, strict=True))
        return Expected(sum(busy), busy, 1.0, 0.0, 1) if sum(busy) > 0 else None
    micro_batch = min(entry["serving"]["micro_batch_size"], entry["serving"]["batch_size"])
    tested = split_advice.tests_of(entry).get("prefill", {}).get("n_prompt") or prompt_tokens
    batches = cost_model.micro_batches(prompt_tokens, micro_batch)
    fullness = (prompt_tokens / batches) / (tested / cost_model.micro_batches(tested, micro_batch))
    overlap = fit.get("prefill_overlap", 1.0)
    stages = [fullness * ms for ms in cost_model.stages_ms(costs, layers)]
    of_sum, of_max = cost_model.prefill_weights(batches, overlap)
    total = of_sum * sum(stages) + of_max * max(stages)
    return Expected(total, tuple(batches * ms for ms in stages), of_sum, of_max, batches) if total > 0 else None


def record_error(entry: Json, kind: str) -> float:
    """Return the relative error of what the record expects of one more load.

    In quadrature the fit's largest residual and the noise between loads: the recorded split's interval h of n loads is
    t * s / sqrt(n) wide, and a new load differs from their mean by t * s * sqrt(1 + 1/n) = h * sqrt(n + 1).
    """
    decision = entry["decision"]
    residual = ((decision.get("fit") or {}).get(f"{kind}_residual_percent") or 0.0) / 100
    key = "decode_ms_per_token" if kind == "decode" else "prefill_ms"
    row: Json = next((row for row in decision.get("table") or [] if row["layers"] == decision["layers"]), {})
    cell = row.get(key)
    if not cell:
        return residual
    loads = max(1, row["loads"] - len(row.get("disturbed_loads") or []))
    return math.hypot(residual, (cell["high"] - cell["low"]) / 2 / cell["mean"] * math.sqrt(loads + 1))


# --- what is observed ------------------------------------------------------------------------------------------------


class Change(t.NamedTuple):
    """How much more time something takes than recorded, in percent, with the verdict."""

    percent: float | None
    interval: tuple[float, float] | None
    verdict: str


def change(ratios: t.Sequence[float], error: float, tolerance_percent: float) -> Change:
    """Return the change from observed/expected of each block; C(error) is the record's own relative error.

    C(slower) and C(faster): the interval excludes zero and the change exceeds the tolerance. C(within_noise): the
    interval includes zero, and something beyond the tolerance too, so nothing can be said. C(as_recorded): the rest.
    With one block there is no interval, and nothing can be said.
    """
    if len(ratios) < 2:
        percent = 100 * (ratios[0] - 1) if ratios else None
        return Change(percent, None, "within_noise" if ratios else "not_seen")
    logs = [math.log(ratio) for ratio in ratios]
    mean = statistics.fmean(logs)
    own = stats.t_quantile(len(logs) - 1, OUTSIDE) * statistics.stdev(logs) / math.sqrt(len(logs))
    half = math.hypot(own, math.log1p(error))
    percent, low, high = (100 * (math.exp(value) - 1) for value in (mean, mean - half, mean + half))
    verdict = "as_recorded"
    if low > 0 and percent > tolerance_percent:
        verdict = "slower"
    elif high < 0 and percent < -tolerance_percent:
        verdict = "faster"
    elif low <= 0 <= high and max(-low, high) > tolerance_percent:
        verdict = "within_noise"
    return Change(percent, (low, high), verdict)


def attributed(ms: float, busy_ms: t.Sequence[float | None], model: Expected | None) -> list[float | None]:
    """Return the time of each device by the fit's own accounts, so that they add up to C(ms) of a unit of work.

    C(busy_ms) is None for a device that is not seen; of decoding a single one of those gets what is left. Without
    C(model) devices are taken to take turns.
    """
    of_sum, of_max, batches = (model.of_sum, model.of_max, model.batches) if model else (1.0, 0.0, 1)
    known = [value for value in busy_ms if value is not None]
    if len(known) == len(busy_ms):
        together = of_sum * sum(known) + of_max * max(known, default=0.0)
        scale = batches * ms / together if together > 0 else 0.0
        return [value * scale for value in known]
    if of_max or len(busy_ms) - len(known) > 1:
        return list(busy_ms)
    return [max(0.0, ms - sum(known)) if value is None else value for value in busy_ms]


class _Part(t.NamedTuple):
    """One block of a phase, in ms per unit of work: a token, or a prompt. The lists have one entry per device."""

    ms: float
    wall_ms: float
    busy_ms: list[float | None]
    waiting_ms: list[float]
    own_ms: list[float | None]


def _parts(entry: Json, phase: Json, model: Expected | None) -> list[_Part]:
    layers = entry["decision"]["layers"]
    found = []
    for block in phase["blocks"]:
        units = block["requests"] * (phase["generated_tokens"] if phase["kind"] == "decode" else 1)
        spent = [block["devices"].get(device["id"]) for device in entry["devices"]]
        busy: list[float | None] = [
            # a device without layers is no part of the server
            0.0 if not count else None if one is None else one["busy_ms"] / units
            for one, count in zip(spent, layers, strict=True)
        ]
        waiting = [one["waiting_ms"] / units if one else 0.0 for one in spent]
        ms = block["ms"] / units
        # in tensor mode all work at the same time: there is nothing to share out
        own = attributed(ms, busy, model) if entry["decision"]["split_mode"] == "layer" else busy
        found.append(_Part(ms, block["wall_ms"] / units, busy, waiting, own))
    return found


def observe(entry: Json, phase: Json, tolerance_percent: float) -> Json:
    """Compare one phase of llama_server_watch with the record; see docs/data_formats.md, diagnosis."""
    kind, depth = phase["kind"], _depth(entry, phase["kind"])
    model, error = expected(entry, kind, phase["prompt_tokens"]), record_error(entry, kind)
    parts = _parts(entry, phase, model)
    compared = model if not depth else None
    whole = change([part.ms / compared.ms for part in parts] if compared else [], error, tolerance_percent)
    # the busy time of a card leaves out what the fit puts into its layers: it compares only if all can be shared out
    shared = all(busy is not None for part in parts for busy in part.busy_ms)
    rows = []
    for index, device in enumerate(entry["devices"]):
        if entry["decision"]["layers"][index]:
            row = _device_row(entry, index, parts, model)
            own = [part.own_ms[index] for part in parts]
            ratios = [ms / compared.busy_ms[index] for ms in own if ms] if compared and shared else []
            result = change(ratios if len(ratios) == len(parts) else [], error, tolerance_percent)
            rows.append({"device": device["device"], "id": device["id"], **row, **_change_out(result)})
    for name in ("", "expected_"):
        together = sum(row[f"{name}ms"] or 0.0 for row in rows)
        for row in rows:
            own_ms = row[f"{name}ms"]
            row[f"{name}share_percent"] = _rounded(100 * own_ms / together if own_ms and together else None, 1)
    ms = statistics.fmean(part.ms for part in parts) if parts else None
    tokens = 1 if kind == "decode" else phase["prompt_tokens"]
    return {
        **{key: phase[key] for key in ("kind", "prompt_tokens", "skipped_reason", "overlapped")},
        "blocks": len(parts),
        "tokens_per_second": _rounded(1000 * tokens / ms if ms else None, 3),
        "ms": _rounded(ms, 4),
        "expected_ms": _rounded(model.ms if model else None, 4),
        "depth_tokens": depth,
        **_change_out(whole),
        "devices": rows,
    }


def _device_row(entry: Json, index: int, parts: t.Sequence[_Part], model: Expected | None) -> Json:
    """Return what was seen of one device and what is expected of it, without a verdict."""
    layers = entry["decision"]["layers"][index]
    busy = [part.busy_ms[index] for part in parts]
    known = [ms for part in parts if (ms := part.own_ms[index]) is not None]
    mean = statistics.fmean(known) if known else None
    seen = bool(parts) and None not in busy
    used = [ms / part.wall_ms for ms, part in zip(busy, parts, strict=True) if ms is not None]
    total = sum(ms for ms in busy if ms is not None)
    waited = sum(part.waiting_ms[index] for part in parts)
    return {
        "layers": layers,
        "seen": seen,
        "ms": _rounded(mean, 4),
        "expected_ms": _rounded(model.busy_ms[index] if model else None, 4),
        "ms_per_layer": _rounded(None if mean is None else mean / layers, 5),
        "utilisation_percent": _rounded(100 * statistics.fmean(used) if seen else None, 1),
        "expected_utilisation_percent": _rounded(100 * model.utilisation()[index] if model else None, 1),
        "waiting_percent": _rounded(100 * waited / total if total else None, 1),
    }


def _depth(entry: Json, kind: str) -> int:
    """Return the depth at which the record was measured: there attention takes time that a short request does not."""
    return int((split_advice.tests_of(entry).get(kind) or {}).get("n_depth") or 0)


def _change_out(result: Change) -> Json:
    interval = None if result.interval is None else [round(value, 1) for value in result.interval]
    return {"change_percent": _rounded(result.percent, 1), "interval_percent": interval, "verdict": result.verdict}


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


# --- rules of thumb --------------------------------------------------------------------------------------------------


def rules(entry: Json, observed: t.Sequence[Json], layer_advice: Json) -> list[Json]:
    """Return what the usual rules of thumb for an RTX 4090 with an RTX 3090 say here, beside what was measured.

    Each is {rule, says, measured, agrees, why}; C(agrees) is None where the rule does not apply. They are about two
    devices; with more or fewer there are none.
    """
    decision = entry["decision"]
    if len(decision["layers"]) != 2 or not all(decision["layers"]) or decision["split_mode"] != "layer":
        return []
    found = []
    for phase in observed:
        rule = _busier_gets_more(entry, phase, layer_advice)
        if rule:
            found.append(rule)
    first, second = decision["layers"]
    pair = [device["description"] for device in entry["devices"]]
    if "4090" in pair[0] and "3090" in pair[1]:
        ratio, percent = first / second, 100 * first / (first + second)
        found.append(
            {
                "rule": "the RTX 4090 gets 1.15 to 1.25 times the layers (55 % of them)",
                "says": "a ratio of 1.15 to 1.25",
                "measured": f"{first}/{second}, a ratio of {ratio:.2f} ({percent:.0f} %)",
                "agrees": 1.15 <= ratio <= 1.25,
                "why": "the ratio follows from memory and what a layer costs on each card; only whole layers count",
            }
        )
    decode = next((phase for phase in observed if phase["kind"] == "decode"), None)
    if decode and all(row["ms_per_layer"] for row in decode["devices"]) and len(decode["devices"]) == 2:
        fast, slow = sorted(decode["devices"], key=lambda row: row["ms_per_layer"])
        waits = 100 - fast["share_percent"]
        found.append(
            {
                "rule": "the faster card spends 30 % of its time waiting for the slower one",
                "says": "30 % of waiting",
                "measured": f"while a token is generated {fast['device']} waits {waits:.0f} % of the time, "
                f"{slow['device']} {100 - slow['share_percent']:.0f} %",
                "agrees": abs(waits - 30) <= 5,
                "why": "they take turns, so each waits while the other works, whatever the split; more layers on the "
                f"faster one save time because a layer takes {slow['ms_per_layer'] / fast['ms_per_layer']:.2f} times "
                f"as long on {slow['device']}",
            }
        )
    return found


def _busier_gets_more(entry: Json, phase: Json, layer_advice: Json) -> Json | None:
    """Return the rule "the card with the higher utilisation gets more layers", if utilisations are seen."""
    rows = phase["devices"]
    if len(rows) != 2 or any(row["utilisation_percent"] is None for row in rows):
        return None
    idle, busy = sorted(rows, key=lambda row: row["utilisation_percent"])
    apart = busy["utilisation_percent"] - idle["utilisation_percent"]
    seen = ", ".join(f"{row['device']} {row['utilisation_percent']:.0f} %" for row in rows)
    expected_text = ", ".join(
        f"{row['device']} {row['expected_utilisation_percent']:.0f} %"
        for row in rows
        if row["expected_utilisation_percent"] is not None
    )
    measured = f"{phase['kind']}: {seen}" + (f" (expected of this split: {expected_text})" if expected_text else "")
    rule = "one card at 95 %, the other at 30 %: give the busier one more layers"
    wants = {one["to"] for one in layer_advice["moves"]}
    if apart < MUCH_HIGHER_POINTS:
        says, agrees = f"nothing: they are {apart:.0f} points apart", None
    else:
        says = f"move layers from {idle['device']} to {busy['device']}"
        agrees = busy["device"] in wants
    if phase["kind"] == "decode":
        why = (
            "while a token is generated the cards take turns: utilisation is the share of time per token, which more "
            "layers on a card raise further. What a layer costs on each card decides, and memory"
        )
    else:
        why = "a prompt passes through both at once and the busier one sets the pace: more layers on it make it slower"
    return {"rule": rule, "says": says, "measured": measured, "agrees": agrees, "why": why}


# --- the whole -------------------------------------------------------------------------------------------------------


def read_baseline(text: str) -> tuple[Json, list[Json]]:
    """Return (C(configuration) of a baseline, findings about it); empty where there is no baseline or it is damaged."""
    if not text:
        return {}, []
    try:
        baseline = json.loads(text)
        return dict(baseline["configuration"]), []
    except (KeyError, TypeError, ValueError) as error:
        detail = f"it is damaged ({error!r}), so power limits and links are not compared with it"
        cure = "move it away; the next revalidation writes a new one"
        return {}, [finding("baseline", "baseline", "note", detail, cure)]


def diagnose(entry: Json, watched: Json, server: Json, baseline: str, tolerance_percent: float) -> Json:
    """Return the diagnosis of docs/data_formats.md, but for host, deployment and time.

    C(entry) is a deployment of the host's record, C(watched) what llama_server_watch returned, C(server) what
    llama_server_info did, C(baseline) the text of the host's baseline of this deployment or empty.
    """
    observed = [observe(entry, phase, tolerance_percent) for phase in watched["phases"]]
    layer_advice = split_advice.advice(entry, observed)
    names = {device["id"]: device["device"] for device in entry["devices"]}
    configuration, found = read_baseline(baseline)
    before = {gpu["uuid"]: gpu for gpu in configuration.get("gpus") or []}
    if server["state"] == "ready":
        found += [finding("server", "placement", "problem", text, "run site") for text in server["deviations"]]
    else:
        detail = f"llama-server is {server['state']}, so nothing was sent: {' / '.join(server['last_lines'][-2:])}"
        cure = "journalctl -u llama-server says why; site starts it"
        found.append(finding("server", "state", "problem", detail, cure))
    found += _device_findings(watched["devices"], observed)
    found += _split_findings(observed)
    for gpu in watched["gpus"]["gpus"]:
        seen = {
            phase["kind"]: phase["cards"][gpu["uuid"]] for phase in watched["phases"] if gpu["uuid"] in phase["cards"]
        }
        found += card_findings.card(gpu, seen, before.get(gpu["uuid"]), names)
    if watched["gpus"]["reason"] and (watched["gpus"]["gpus"] or _uses_cards(entry)):
        found.append(finding("cards", "driver", "problem", watched["gpus"]["reason"], None))
    journal = card_findings.xid_lines(watched["kernel_lines"] or [])
    found += card_findings.xids(journal, watched["xid_events"], watched["gpus"]["gpus"], names)
    for phase in watched["phases"]:
        if phase["skipped_reason"] and not watched["busy"]:
            found.append(finding("server", "load", "note", f"no {phase['kind']}: {phase['skipped_reason']}", None))
    found.sort(key=lambda one: -card_findings.SEVERITIES.index(one["severity"]))
    verdict = _verdict(watched, observed, found)
    return {
        "schema": 1,
        "verdict": verdict,
        "summary": _summary(verdict, watched, observed, found),
        "busy": watched["busy"],
        "devices": watched["devices"],
        "phases": observed,
        "findings": found,
        "xid_journal_read": watched["kernel_lines"] is not None,
        "advice": layer_advice,
        "rules": rules(entry, observed, layer_advice),
        "cards": {phase["kind"]: phase["cards"] for phase in watched["phases"]},
    }


def _uses_cards(entry: Json) -> bool:
    return any(device["backend"] == "CUDA" for device in entry["devices"])


def _device_findings(devices: t.Sequence[Json], observed: t.Sequence[Json]) -> list[Json]:
    """Return which device waits for a CPU, which is slower or faster than recorded, and which is not seen."""
    found = _waiting_findings(devices, observed)
    for device in devices:
        name = device["device"]
        if device["seen"] is None:
            found.append(finding(name, "seen", "note", f"not seen: {device['reason']}", None))
        rows = [(phase["kind"], row) for phase in observed for row in phase["devices"] if row["id"] == device["id"]]
        for verdict, word, severity in (("slower", "more", "problem"), ("faster", "less", "note")):
            shown = [
                f"{abs(row['change_percent']):.0f} % {word} time per {split_advice.unit(kind)} (99 % interval "
                f"{row['interval_percent'][0]:+.0f} to {row['interval_percent'][1]:+.0f} %)"
                for kind, row in rows
                if row["verdict"] == verdict
            ]
            if shown:
                detail = f"takes {' and '.join(shown)} than recorded"
                waits = any((row["waiting_percent"] or 0.0) >= split_advice.WAITS_PERCENT for _kind, row in rows)
                if waits:
                    severity, detail = "note", f"{detail}, waiting for a CPU included"
                cure = "see what else is said here of it; homelab.mixed_gpu.revalidate measures each device alone"
                found.append(finding(name, verdict, severity, detail, cure if severity == "problem" else None))
    return found


def _split_findings(observed: t.Sequence[Json]) -> list[Json]:
    """Return which phase is slower or faster than recorded although no device alone is."""
    found = []
    for phase in observed:
        if phase["verdict"] not in ("slower", "faster"):
            continue
        if any(row["verdict"] == phase["verdict"] for row in phase["devices"]):
            continue
        less, (low, high) = phase["verdict"] == "faster", phase["interval_percent"]
        waits = any((row["waiting_percent"] or 0.0) >= split_advice.WAITS_PERCENT for row in phase["devices"])
        word = "less" if less else "more"
        detail = (
            f"{phase['kind']} takes {abs(phase['change_percent']):.0f} % {word} time than recorded "
            f"(99 % interval {low:+.0f} to {high:+.0f} %), and that is no device's alone"
            + (", waiting for a CPU included" if waits else "")
        )
        cure = "homelab.mixed_gpu.revalidate says what changed since the baseline"
        severity = "note" if less or waits else "problem"
        found.append(
            finding("the split", phase["verdict"], severity, detail, cure if severity == "problem" else None)
        )
    return found


def _waiting_findings(devices: t.Sequence[Json], observed: t.Sequence[Json]) -> list[Json]:
    """Return who waits for a CPU: a device by itself, or all of them on a machine that computes something else."""
    waits: dict[str, dict[str, float]] = {}
    for device in devices:
        if device["seen"] == "process":
            waits[device["id"]] = {
                phase["kind"]: row["waiting_percent"]
                for phase in observed
                for row in phase["devices"]
                if row["id"] == device["id"] and row["waiting_percent"] is not None
            }
    most = {key: max(by_kind.values(), default=0.0) for key, by_kind in waits.items()}
    stretched = {key: 1 / max(0.01, 1 - percent / 100) for key, percent in most.items()}
    least = min(stretched.values(), default=1.0)
    found, together = [], []
    for device in devices:
        key, quota = device["id"], device["cpu_quota_percent"]
        if key not in waits or (most[key] < split_advice.WAITS_PERCENT and quota is None):
            continue
        shown = ", ".join(f"{percent:.0f} % of its {kind}" for kind, percent in waits[key].items()) or "not measured"
        severity = "problem" if most[key] >= WAITING_PROBLEM_PERCENT else "note"
        detail = f"its process ({device['unit'] or device['pid']}) waits for a CPU, {shown}"
        cure = "see with top what else computes there, and stop it, or give the device a CPU of its own (CPUAffinity)"
        if quota is not None:
            detail += f"; its unit has a CPU quota of {quota:g} %"
            cure = f"systemctl cat {device['unit']} shows where CPUQuota is set: take it away"
        elif len(waits) > 1 and stretched[key] < WAITS_ALONE_RATIO * least:
            together.append((device, shown, severity))
            continue
        found.append(finding(device["device"], "waiting", severity, detail, cure))
    if together:
        shown = "; ".join(f"{device['device']} {text}" for device, text, _severity in together)
        severity = "problem" if any(one == "problem" for _device, _text, one in together) else "note"
        cure = "see with top what else computes on it, and run this again without that"
        found.append(finding("the machine", "waiting", severity, f"its devices wait for a CPU: {shown}", cure))
    return found


def _verdict(watched: Json, observed: t.Sequence[Json], found: t.Sequence[Json]) -> str:
    if any(one["severity"] == "problem" for one in found):
        return "problem"
    if watched["busy"]:
        return "busy"
    if not any(phase["blocks"] for phase in observed):
        return "not_measured"
    verdicts = {row["verdict"] for phase in observed for row in (phase, *phase["devices"])}
    return "within_noise" if "within_noise" in verdicts else "ok"


def _summary(verdict: str, watched: Json, observed: t.Sequence[Json], found: t.Sequence[Json]) -> str:
    worst = [one for one in found if one["severity"] == "problem"]
    if worst:
        more = f" (and {len(worst) - 1} more)" if len(worst) > 1 else ""
        return f"{worst[0]['subject']}: {worst[0]['detail']}{more}"
    if verdict == "busy":
        return str(watched["busy"])
    if verdict == "not_measured":
        return "nothing was measured"
    if verdict == "within_noise":
        doubtful = [
            f"{row['device']} {phase['kind']} ({low:+.0f} to {high:+.0f} %)"
            for phase in observed
            for row in phase["devices"]
            if row["verdict"] == "within_noise" and row["interval_percent"]
            for low, high in [row["interval_percent"]]
        ]
        what = ", ".join(doubtful) or "too few undisturbed parts"
        return f"nothing wrong to be seen, within noise: {what}"
    slow = [one for one in found if one["kind"] == "slower"]
    if slow:
        return f"nothing wrong with a device; {slow[0]['subject']} {slow[0]['detail']}"
    if not any(row["expected_ms"] for phase in observed for row in phase["devices"]):
        return "nothing wrong to be seen; the record has no fit to compare the devices with"
    return "every device works as its record says"
