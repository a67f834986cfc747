# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Is the recorded split still right? Verdicts on a host of today against its baseline. Private to this collection.
Pure functions only.

docs/data_formats.md describes the dicts (baseline, revalidation, load, device_probe); _revalidation_statistics judges
speeds. C(observed) is what the role `revalidate` saw:

  at, host, deployment, entry (of the fact), baseline (or None), configuration (of today, as _baseline.configuration),
  gpus (mixed_gpu_gpus), server (llama_server_info), completion ({ok, detail}), served (tests, or None),
  busy ({busy, why}), model ({path, exists, sha256}), loads (of today),
  device_probe (of today, or None), failure (what ended measuring, or None)
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._split import layer_split
from . import baselines
from . import speed as speed

SCHEMA: t.Final = 1

Json = dict[str, t.Any]
Dict = t.Mapping[str, t.Any]

#: From best to worst. A host is as good as the worst of its checks.
VERDICTS: t.Final = ("ok", "improved", "inconclusive", "regressed", "broken")
#: Throttle reasons that mean a fault or heat. A power limit (sw_power_cap) is somebody's wish.
THROTTLED: t.Final = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
#: A device alone that takes this much more time than in the baseline is slower. Its probe is one load: two loads of
#: one device differ by more than their repetitions do.
DEVICE_TOLERANCE_PERCENT: t.Final = 3.0
#: The same for prompts, of which a load has fewer samples.
DEVICE_PREFILL_TOLERANCE_PERCENT: t.Final = 6.0
#: Memory that a driver or an engine may need more than before without a word, MiB.
MEMORY_SLACK_MIB: t.Final = 64

_DIAGNOSE = "ansible-playbook homelab.mixed_gpu.diagnose"
_ROLLBACK = "ansible-playbook homelab.mixed_gpu.driver_rollback"


def worst(verdicts: t.Iterable[str]) -> str:
    """Return the worst verdict, C(ok) of none."""
    return max(verdicts, key=VERDICTS.index, default="ok")


def _check(name: str, verdict: str, detail: str, **more: t.Any) -> Json:
    return {"name": name, "verdict": verdict, "detail": detail, **more}


def _signed(percent: float) -> str:
    return f"{abs(percent):.1f} % {'more' if percent >= 0 else 'less'} time"


# --- what changed ----------------------------------------------------------------------------------------------------


def changes(before: Dict, now: Dict) -> list[Json]:
    """Return what differs between two configurations: C({part, before, now}) each, cards told apart by UUID."""
    found = []
    for part in sorted(set(before) | set(now)):
        old, new = before.get(part), now.get(part)
        if old == new:
            continue
        if part == "gpus":
            found += _card_changes(old or [], new or [])
        elif part == "serving":
            old, new = old or {}, new or {}
            for name in sorted(set(old) | set(new)):
                if old.get(name) != new.get(name):
                    found.append({"part": f"serving.{name}", "before": old.get(name), "now": new.get(name)})
        else:
            found.append({"part": part, "before": old, "now": new})
    return found


def _card_changes(before: t.Sequence[Dict], now: t.Sequence[Dict]) -> list[Json]:
    found: list[Json] = []
    old, new = ({card["uuid"]: card for card in cards} for cards in (before, now))
    for uuid, card in old.items():
        if uuid not in new:
            found.append({"part": f"card {uuid}", "before": card["name"], "now": None})
            continue
        for name in sorted(card):
            if card[name] != new[uuid].get(name):
                found.append({"part": f"{name} of {uuid}", "before": card[name], "now": new[uuid].get(name)})
    found += [
        {"part": f"card {uuid}", "before": None, "now": card["name"]} for uuid, card in new.items() if uuid not in old
    ]
    kept_before, kept_now = [u for u in old if u in new], [u for u in new if u in old]
    if kept_before != kept_now:
        found.append({"part": "order of the cards", "before": kept_before, "now": kept_now})
    return found


# --- checks ----------------------------------------------------------------------------------------------------------


def cards(observed: Dict) -> Json | None:
    """Are the recorded cards there? Order alone breaks nothing: programs are told UUIDs."""
    baseline = observed["baseline"]
    known = baseline["configuration"]["gpus"] if baseline else []
    recorded = {d["id"] for d in observed["entry"]["devices"] if str(d["id"]).startswith("GPU-")}
    if not known and not recorded:
        return None
    gpus = observed["gpus"]
    if not gpus.get("available"):
        return _check("cards", "broken", f"the cards cannot be read: {gpus.get('reason')}")
    present = [card["uuid"] for card in gpus["gpus"]]
    names = {card["uuid"]: card["name"] for card in known}
    gone = [uuid for uuid in sorted(recorded | set(names)) if uuid not in present]
    if gone:
        listed = ", ".join(f"{names.get(uuid, 'a card')} ({uuid})" for uuid in gone)
        return _check(
            "cards", "broken", f"{listed} is gone: reseat it, check its power, see 'nvidia-smi -L' and the kernel's log"
        )
    order = [card["uuid"] for card in known]
    if [uuid for uuid in present if uuid in order] != order and order:
        return _check(
            "cards",
            "ok",
            "all are there, in another order on the bus; every program is told their UUIDs, so it changes nothing",
        )
    return _check("cards", "ok", f"{len(present)} as before: {', '.join(card['name'] for card in gpus['gpus'])}")


def server(observed: Dict) -> Json:
    """Does the server run, as its unit describes it?"""
    state = observed["server"]
    if state["state"] != "ready":
        last = state["last_lines"][-1:] or ["nothing in its journal"]
        return _check(
            "server",
            "broken",
            f"llama-server.service is {state['state']} ({last[0]}): see journalctl -u llama-server, or run site",
        )
    if state["needs_reload"]:
        return _check(
            "server", "broken", "its unit changed since it was started: restart llama-server.service, or run site"
        )
    return _check("server", "ok", f"ready, {state['automatic_restarts']} automatic restarts since it was started")


def placement(observed: Dict) -> Json | None:
    """Is every layer where the record says? A changed device order shows here."""
    state = observed["server"]
    if state["state"] != "ready":
        return None
    if state.get("server", {}).get("complete") is False:
        return _check(
            "placement",
            "inconclusive",
            "the journal no longer holds where the server put its layers: restart llama-server.service and run this"
            " again, or measure, which restarts it (-e revalidate_measure=true)",
        )
    found = state.get("deviations") or []
    if found:
        return _check("placement", "broken", f"{' '.join(found)} Run site, which puts the recorded split back")
    where = ", ".join(f"{place['device']}: {place['layers']}" for place in observed["entry"]["placement"])
    return _check("placement", "ok", f"layers as recorded ({where}), none on the CPU")


def completion(observed: Dict) -> Json | None:
    """Did one real completion go through all layers?"""
    answer = observed["completion"]
    if observed["server"]["state"] != "ready" or answer is None:
        return None
    if not answer["ok"] and observed["busy"]["busy"]:
        return _check(
            "completion", "inconclusive", f"the server is busy ({observed['busy']['why']}): {answer['detail']}"
        )
    return _check("completion", "ok" if answer["ok"] else "broken", answer["detail"])


def alone(observed: Dict) -> Json | None:
    """Does each device work alone, with the small model?"""
    probed = observed["device_probe"]
    if not probed:
        return None
    if probed.get("failure"):
        return _check("devices alone", "broken", probed["failure"])
    return _check("devices alone", "ok", probed["summary"]) if probed.get("summary") else None


def model(observed: Dict) -> Json:
    """Is the model the one that was tuned?"""
    seen, wanted = observed["model"], observed["entry"]["model"]["sha256"]
    path = observed["entry"]["model"]["path"]
    if not seen["exists"]:
        return _check("model", "broken", f"{path} is not there: run site, which fetches it")
    if seen["sha256"] != wanted:
        return _check(
            "model", "broken", f"{path} was replaced: its sha256 is {str(seen['sha256'])[:12]}...,"
            f" {wanted[:12]}... was tuned; put it"
            " back, or run site to tune the new one"
        )  # fmt: skip
    return _check("model", "ok", f"{path}, sha256 {wanted[:12]}...")


def memory(observed: Dict, reserve_mib: int) -> Json | None:
    """Does it still fit? Compares what the loaded server reports with what was free when it started, and with"
    " before."""
    rows = baselines.memory(observed["entry"], observed["server"]["server"]) if "server" in observed["server"] else None
    if not rows:
        return None
    baseline = observed["baseline"]
    before = {row["id"]: row for row in (baseline["memory"] or [])} if baseline else {}
    verdicts, said = [], []
    for row in rows:
        own, old = row["loaded_mib"], before.get(row["id"], {})
        if own is None:
            continue
        verdict, words = "ok", f"{row['id']} {own:.0f} MiB"
        if old.get("loaded_mib") is not None and own - old["loaded_mib"] > MEMORY_SLACK_MIB:
            words += f", {own - old['loaded_mib']:.0f} more than before"
        if row["free_mib"] is not None:
            left = row["free_mib"] - own
            words += f", {left:.0f} left of {row['free_mib']}"
            if left < 0:
                verdict, words = "broken", f"{words}: it does not fit"
            elif left < reserve_mib and _less_than_before(left, old, reserve_mib):
                verdict, words = "regressed", f"{words}, less than the reserve of {reserve_mib}"
        verdicts.append(verdict)
        said.append(words)
    if not said:
        return _check("memory", "ok", "the server does not say what each device holds (split mode tensor)")
    return _check("memory", worst(verdicts), "; ".join(said))


def _less_than_before(left: float, old: Dict, reserve_mib: int) -> bool:
    """Return whether what is left is a change: a box that had as little when it was tuned is as it was."""
    if old.get("free_mib") is None or old.get("loaded_mib") is None:
        return True
    return left < min(reserve_mib, old["free_mib"] - old["loaded_mib"]) - MEMORY_SLACK_MIB


def _under_load(loads: t.Iterable[Dict], uuid: str, quantity: str) -> float | None:
    """Return the most that was seen of a quantity of one card while loads ran."""
    seen = []
    for load in loads:
        value = ((load.get("conditions") or {}).get(uuid) or {}).get(quantity)
        if value is not None:
            seen.append(value["max"])
    return max(seen, default=None)


def _by_card(
    name: str, fell: t.Mapping[str, str], rose: t.Sequence[str], same: t.Sequence[str], cure: str
) -> Json | None:
    """Return a check over cards; C(fell) says by UUID what became worse, and stays with the check for the"
    " explanation."""
    if fell:
        return _check(name, "regressed", f"{'; '.join(fell.values())}: {cure}", cards=dict(fell))
    if rose or same:
        return _check(name, "improved" if rose else "ok", "; ".join([*rose, *same]))
    return None


def links(observed: Dict) -> Json | None:
    """PCIe links under load against the baseline's; without a load the width alone, since idle links slow down."""
    baseline = observed["baseline"]
    known = {card["uuid"]: card for card in baseline["configuration"]["gpus"]} if baseline else {}
    fell: dict[str, str] = {}
    same = []
    for card in observed["gpus"].get("gpus", []):
        uuid = card["uuid"]
        for name, words in (("pcie_generation", "generation"), ("pcie_width", "lanes")):
            old = _under_load(baseline["loads"], uuid, name) if uuid in known else None
            new = _under_load(observed["loads"], uuid, name)
            if name == "pcie_width" and uuid in known and (old is None or new is None):
                old, new = known[uuid].get(name), card.get(name)
            if old is None or new is None:
                continue
            if new < old:
                fell[uuid] = f"{fell[uuid]}, " if uuid in fell else f"{card['name']}: "
                fell[uuid] += f"{words} {new:g}, was {old:g}"
            else:
                same.append(f"{card['name']}: {words} {new:g}")
    return _by_card("links", fell, [], same, "reseat the card or its riser, and look at the firmware's slot settings")


def power(observed: Dict) -> Json | None:
    """Power limits against the baseline's."""
    baseline = observed["baseline"]
    known = (
        {card["uuid"]: card.get("power_limit_watts") for card in baseline["configuration"]["gpus"]} if baseline else {}
    )
    fell: dict[str, str] = {}
    rose, same = [], []
    for card in observed["gpus"].get("gpus", []):
        old, new = known.get(card["uuid"]), card.get("power_limit_watts")
        if old is None or new is None:
            continue
        if abs(new - old) <= 0.5:
            same.append(f"{card['name']} {new:g} W")
        elif new < old:
            fell[card["uuid"]] = f"{card['name']} {new:g} W, was {old:g} W"
        else:
            rose.append(f"{card['name']} {new:g} W, was {old:g} W")
    return _by_card(
        "power limits", fell, rose, same, "a driver forgets limits when it is loaded anew; run site, which sets them"
    )


def throttling(observed: Dict) -> Json | None:
    """What held the clocks down while today's loads ran, and did not in the baseline's."""
    before = observed["baseline"]["loads"] if observed["baseline"] else []

    def reasons(loads: t.Iterable[Dict], uuid: str) -> set[str]:
        own = [((load.get("conditions") or {}).get(uuid) or {}).get("throttle_reasons") or [] for load in loads]
        return {reason for one in own for reason in one if reason in THROTTLED}

    fell: dict[str, str] = {}
    same = []
    for card in observed["gpus"].get("gpus", []):
        uuid = card["uuid"]
        if not any(uuid in (load.get("conditions") or {}) for load in observed["loads"]):
            continue
        hot = _under_load(observed["loads"], uuid, "temperature_celsius")
        at = "" if hot is None else f" at up to {hot:g} C"
        new = sorted(reasons(observed["loads"], uuid) - reasons(before, uuid))
        if new:
            fell[uuid] = f"{card['name']}: {', '.join(new)}{at}"
        else:
            same.append(f"{card['name']}{at}")
    return _by_card("throttling", fell, [], same, "clean and cool the card, or lower its power limit")


# --- speeds ----------------------------------------------------------------------------------------------------------


def _served_values(tests: t.Sequence[Dict] | None) -> dict[str, float]:
    """Return, by name, ms per token of prompt and of generation as the server's own timings say: medians."""
    found = {}
    for test in tests or []:
        prompts = [1000 / s["prompt_tokens_per_second"] for s in test["samples"] if s.get("prompt_tokens_per_second")]
        tokens = [1000 / s["decode_tokens_per_second"] for s in test["samples"] if s.get("decode_tokens_per_second")]
        if tokens:
            found[f"decode ({test['name']})"] = statistics.median(tokens)
        elif prompts:  # a test of generation has a prompt too short to say anything
            found[f"prefill ({test['name']})"] = statistics.median(prompts)
    return found


def served(observed: Dict) -> list[tuple[str, float]]:
    """Return C([(name, percent more time than in the baseline)]) of the serving instance's own timings."""
    baseline = observed["baseline"]
    before = _served_values(baseline["served"] if baseline else None)
    now = _served_values(observed["served"])
    return [(name, 100 * (now[name] / old - 1)) for name, old in before.items() if name in now]


def suspicion(observed: Dict, tolerance_percent: float) -> str | None:
    """Return why the serving instance's own timings are not enough, or None when they are."""
    if observed["baseline"] is None:
        return "there is no baseline"
    if observed["server"]["state"] == "ready" and observed["server"]["server"].get("complete") is False:
        return "the journal no longer holds where the server put its layers"
    compared = served(observed)
    kinds = {name.split(" ")[0] for name, _percent in compared}
    if not {"decode", "prefill"} <= kinds:
        return "the serving instance's timings cannot be compared with the baseline's"
    slower = [f"{name} takes {percent:.1f} % more time" for name, percent in compared if percent > tolerance_percent]
    return f"as served, {', '.join(slower)} than in the baseline" if slower else None


def speeds(observed: Dict, tolerance_percent: float) -> list[Json]:
    """Return a check per test: from today's loads where there are any, else from the serving instance's timings."""
    baseline = observed["baseline"]
    # what was measured until then would say too much
    if observed.get("failure"):
        return [_check("speed", "broken", observed["failure"])]
    if observed["loads"]:
        return _measured(baseline["loads"] if baseline else [], observed["loads"], tolerance_percent)
    compared = served(observed)
    found = []
    for name, percent in compared:
        verdict = "ok" if percent <= tolerance_percent else "inconclusive"
        detail = f"{_signed(percent)} than in the baseline, as served; not measured under a lease"
        found.append(_check(name, verdict, detail, change_percent=round(percent, 2), interval_percent=None, loads=0))
    if not found and observed["server"]["state"] == "ready":
        found.append(
            _check("speed", "inconclusive", "nothing to compare with; measure with -e revalidate_measure=true")
        )
    return found


def _measured(before: t.Sequence[Dict], now: t.Sequence[Dict], tolerance_percent: float) -> list[Json]:
    failed = [load for load in now if load["status"] != "ok"]
    if failed:
        detail = (
            f"{failed[0]['label']}: {failed[0]['reason'] or failed[0]['status']}; the recorded split no"
            " longer works here"
        )
        return [_check("speed", "broken", detail)]
    found = []
    for key in baselines.keys(now):
        name = baselines.test_name(key)
        old, new = baselines.samples(before, key), baselines.samples(now, key)
        if not old:
            found.append(
                _check(name, "inconclusive", "the baseline has no such test; make a new one with -e accept=true")
            )
            continue
        aside = speed.set_aside(old, new)
        calm = [samples for place, samples in enumerate(new) if place not in aside]
        change = speed.compare(old, calm, tolerance_percent)
        if len(calm) < speed.LEAST_LOADS:
            change = change._replace(verdict="inconclusive")
        interval = None if change.low is None or change.high is None else [round(change.low, 2), round(change.high, 2)]
        tokens = key[2] or key[1]
        rates = [1000 * tokens / statistics.fmean(speed.medians(group)) for group in (old, calm)]
        detail = f"{_signed(change.percent)} than in the baseline ({rates[0]:.4g} -> {rates[1]:.4g} tok/s"
        detail += f", 98 % interval {interval[0]:.1f} to {interval[1]:.1f} %" if interval else ""
        detail += f", {len(old)} and {len(calm)} loads)"
        if change.verdict == "inconclusive":
            least = "unknown noise" if change.smallest_visible is None else f"{change.smallest_visible:.1f} %"
            detail += f"; the smallest slowdown that could be seen is {least}"
        for place, why in sorted(aside.items()):
            detail += f"; load {place + 1} set aside: {why}"
        found.append(
            _check(
                name, change.verdict, detail, change_percent=round(change.percent, 2),
                interval_percent=interval, loads=len(new),
                smallest_visible_percent=change.smallest_visible,
            )
        )  # fmt: skip
    return found


def next_load(entry: Dict, before: t.Sequence[Dict], now: t.Sequence[Dict], limits: Dict) -> Json | None:
    """Return the next load of the recorded split that a verdict needs, or None when it is clear or there were enough.

    C(limits) has C(tolerance_percent), C(least_loads), C(most_loads), and C(baseline): whether today's loads are to
    become
    a baseline, which wants more of them (_baseline.LEAST_LOADS, and a slowdown of the tolerance visible).
    """
    done, most, tolerance = len(now), int(limits["most_loads"]), float(limits["tolerance_percent"])
    if any(load["status"] != "ok" for load in now) or done >= most:
        return None
    least = max(int(limits["least_loads"]), speed.LEAST_LOADS)
    clear = done >= least and not any(
        check["verdict"] == "inconclusive" for check in (_measured(before, now, tolerance) if before else [])
    )
    if limits.get("baseline") and clear:
        visible = baselines.visible_percent(now, most).values()
        clear = done >= baselines.LEAST_LOADS and all(value is not None and value <= tolerance for value in visible)
    if clear:
        return None
    layers = [place["layers"] for place in entry["placement"]]
    name = layer_split.split_name(layers)
    return {
        "label": f"{name} load {done + 1} (revalidation)", "split_mode": entry["split_mode"], "layers": layers,
        "load": done + 1,
        "purpose": "revalidation", "tests": list(entry["fingerprint_parts"]["tests"]),
        "environment": dict(entry.get("environment") or {}),
    }  # fmt: skip


def blocked(observed: Dict, for_baseline: bool) -> str | None:
    """Return why measuring would tell nothing, or None."""
    for check in (cards(observed), model(observed)):
        if check is not None and check["verdict"] == "broken":
            return str(check["detail"])
    if observed["configuration"]["llama_cpp"] is None:
        return "there is no llama.cpp build to measure with: run site, which installs one"
    if observed["baseline"] is None and not for_baseline:
        return "there is no baseline to compare with; -e accept=true measures and records one"
    return None


def step(observed: Dict, limits: Dict) -> Json:
    """Return C({suspicion, blocked, load}), each None where there is nothing to say.

    Why the serving instance's timings are not enough, why nothing can be measured, and the next load to measure.
    """
    baseline = observed["baseline"]
    return {
        "blocked": blocked(observed, bool(limits.get("baseline"))),
        "suspicion": suspicion(observed, float(limits["tolerance_percent"])),
        "load": next_load(observed["entry"], baseline["loads"] if baseline else [], observed["loads"], limits),
    }


# --- why -------------------------------------------------------------------------------------------------------------


def device_changes(before: Dict | None, now: Dict | None) -> list[Json]:
    """Compare two device probes: per device how much more time it takes alone, in percent; None where unknown.

    C(slower) is a device beyond its tolerance whose slowdown is at least half of the worst one's (in logarithms): where
    one card fell far behind, what a busy machine costs all of them is not its cause.
    """
    if not before or not now:
        return []
    known = {row["id"]: row for row in before["devices"]}
    found = []
    amounts = []
    for row in now["devices"]:
        old = known.get(row["id"])
        decode = prefill = None
        amount = 0.0
        if old is not None and old["status"] == "ok" and row["status"] == "ok":
            decode = 100 * (row["decode_ms_per_token"]["median"] / old["decode_ms_per_token"]["median"] - 1)
            prefill = 100 * (old["prefill_tokens_per_second"] / row["prefill_tokens_per_second"] - 1)
            apart = row["decode_ms_per_token"]["low"] > old["decode_ms_per_token"]["high"]
            if apart and decode > DEVICE_TOLERANCE_PERCENT:
                amount = math.log1p(decode / 100)
            if prefill > DEVICE_PREFILL_TOLERANCE_PERCENT:
                amount = max(amount, math.log1p(prefill / 100))
        amounts.append(amount)
        found.append({
            "device": row["device"],
            "id": row["id"],
            "decode_change_percent": None if decode is None else round(decode, 2),
            "prefill_change_percent": None if prefill is None else round(prefill, 2),
            "slower": False,
            "hints": [],
        })  # fmt: skip
    for device, amount in zip(found, amounts, strict=True):
        device["slower"] = amount > 0 and amount >= max(amounts) / 2
    return found


def explain(checks: t.Sequence[Dict], moved: t.Sequence[Dict], devices: t.Sequence[Json]) -> Json | None:
    """Say why a speed regressed, from each device alone: the split alone is one equation and cannot say which card."""
    slow = [c["name"] for c in checks if c["verdict"] == "regressed" and "change_percent" in c]
    if not slow:
        return None
    software = [
        c for c in moved if c["part"] in ("driver_version", "cuda_driver_version", "kernel", "llama_cpp", "firmware")
    ]
    named = ", ".join(f"{c['part']} {c['before']} -> {c['now']}" for c in software)
    for device in devices:
        device["hints"] = _hints(device["id"], checks)
    known = [device for device in devices if device["decode_change_percent"] is not None]
    slower = [device for device in known if device["slower"]]
    undo = _undo(software)
    result: Json = {"devices": [dict(device) for device in devices]}
    only_prefill = all(name.startswith("prefill") for name in slow)
    if not known:
        return {
            **result, "cause": "unknown", "detail": "no device was measured alone, so it is unknown which one is slower"
            + (f"; what changed: {named}" if named else ""), "next": [_DIAGNOSE, *undo],
        }  # fmt: skip
    each = "; ".join(
        f"{d['device']} alone takes {_signed(d['decode_change_percent'])} per token and"
        f" {_signed(d['prefill_change_percent'])} per prompt"
        for d in known
    )
    if only_prefill and not slower:
        detail = (
            f"only prompts are slower, generating is not ({each}): a kernel for large batches, flash"
            " attention or a link changed"
        )
        return {
            **result,
            "cause": "prefill_only",
            "detail": f"{detail}; {named or 'no software changed'}",
            "next": [*undo, _DIAGNOSE],
        }
    if len(slower) == len(known) and len(known) > 1:
        detail = f"every device is slower ({each}): the driver, the build or the whole machine, not one card"
        return {
            **result,
            "cause": "all_devices",
            "detail": f"{detail}; {named or 'no software changed: look for heat, power saving, another load'}",
            "next": [*undo, _DIAGNOSE],
        }
    if slower:
        hints = "; ".join(hint for device in slower for hint in device["hints"])
        which = " and ".join(f"{d['device']} ({d['id']})" for d in slower)
        cause = hints or (named and f"what changed: {named}") or "look at its power limit, temperature and link"
        return {
            **result,
            "cause": "one_device",
            "detail": f"{which} is slower ({each}); {cause}",
            "next": [_DIAGNOSE, *undo],
        }
    detail = (
        f"no device alone is slower ({each}): the way between them or the placement is;"
        f" {named or 'no software changed'}"
    )
    return {**result, "cause": "neither", "detail": detail, "next": [*undo, _DIAGNOSE]}


def _hints(uuid: str, checks: t.Sequence[Dict]) -> list[str]:
    """Return what other checks say about one card."""
    return [f"{check['name']}: {check['cards'][uuid]}" for check in checks if uuid in check.get("cards", {})]


def _undo(software: t.Sequence[Dict]) -> list[str]:
    """Return the commands that take back what changed."""
    parts = {change["part"] for change in software}
    found = []
    if parts & {"driver_version", "cuda_driver_version"}:
        found.append(_ROLLBACK)
    if "llama_cpp" in parts:
        found.append(
            "set llama_cpp_source and its version back to the build before, and run ansible-playbook"
            " homelab.mixed_gpu.site"
        )
    if "kernel" in parts:
        found.append("boot the kernel before, from the boot menu, and run this again")
    return found


def moved_optimum(devices: t.Sequence[Dict], tolerance_percent: float) -> str | None:
    """Return why the best split may be another now: the devices' speeds changed against each other."""
    known = [d for d in devices if d["decode_change_percent"] is not None]
    if len(known) < 2:
        return None
    for field, words, tolerance in (
        ("decode_change_percent", "in generating", max(tolerance_percent, DEVICE_TOLERANCE_PERCENT)),
        ("prefill_change_percent", "in prompts", max(tolerance_percent, DEVICE_PREFILL_TOLERANCE_PERCENT)),
    ):
        low, high = (pick(known, key=lambda d: float(d[field])) for pick in (min, max))
        ratio = 100 * ((1 + high[field] / 100) / (1 + low[field] / 100) - 1)
        if ratio > tolerance:
            return (
                f"{high['device']} became {ratio:.1f} % slower against {low['device']} {words}, so another split may be"
                " the best now: measure with -e retune=true"
            )
    return None


# --- the whole -------------------------------------------------------------------------------------------------------


def judge(observed: Dict, settings: Dict) -> Json:
    """Return the C(revalidation) of docs/data_formats.md.

    C(settings): tolerance_percent, reserve_mib, accept (verdicts). Raises KeyError or TypeError for what is not as
    described at the top.
    """
    tolerance = float(settings["tolerance_percent"])
    baseline, now = observed["baseline"], observed["configuration"]
    moved = changes(baseline["configuration"], now) if baseline else []
    checks = [
        cards(observed),
        server(observed),
        placement(observed),
        completion(observed),
        model(observed),
        alone(observed),
        memory(observed, int(settings["reserve_mib"])),
        links(observed),
        power(observed),
        throttling(observed),
        *speeds(observed, tolerance),
    ]
    found = [check for check in checks if check is not None]
    slower = any(check["verdict"] == "regressed" and "change_percent" in check for check in found)
    for check in found:
        if check["name"] == "throttling" and check["verdict"] == "regressed" and not slower:
            check.update(verdict="ok", detail=f"{check['detail']}; no speed fell by it")
    if baseline is None:
        found.append(
            _check("baseline", "inconclusive", "there is none to compare with; -e accept=true measures and records one")
        )
    verdict = worst(check["verdict"] for check in found)
    devices = device_changes(baseline["device_probe"] if baseline else None, observed["device_probe"])
    retune = moved_optimum(devices, tolerance)
    accepted = verdict in settings["accept"]
    return {
        "schema": SCHEMA,
        "host": observed["host"],
        "deployment": observed["deployment"],
        "at": observed["at"],
        "baseline_at": baseline["recorded_at"] if baseline else None,
        "verdict": verdict,
        "accepted": accepted,
        "measured": bool(observed["loads"]),
        "summary": _summary(verdict, found, baseline),
        "changes": moved,
        "checks": found,
        "explanation": explain(found, moved, devices),
        "retune": retune,
        "advice": _advice(verdict, moved, retune, observed),
    }


def _summary(verdict: str, checks: t.Sequence[Dict], baseline: Dict | None) -> str:
    since = f" since {baseline['recorded_at'][:10]}" if baseline else ""
    if verdict == "ok":
        return f"the recorded split holds: nothing is slower or broken{since}"
    said = [f"{check['name']}: {check['detail']}" for check in checks if check["verdict"] == verdict]
    return f"{verdict}{since}: {'; '.join(said)}"


def _advice(verdict: str, moved: t.Sequence[Dict], retune: str | None, observed: Dict) -> list[str]:
    found = []
    measured = bool(observed["loads"])
    if measured and "model_path" not in (observed["entry"].get("device_probe") or {}):
        found.append(
            "The record does not say how each device was measured alone, so that was not repeated: -e retune=true."
        )
    if moved and verdict in ("ok", "improved"):
        what = ", ".join(change["part"] for change in moved)
        found.append(
            f"The configuration changed ({what}) and the speed did not fall: -e accept=true makes this the new"
            " baseline, and site"
            " then measures nothing."
        )
    if verdict == "inconclusive" and not measured:
        found.append("Measure under a lease, which stops the server for some minutes: -e revalidate_measure=true.")
    if retune:
        found.append(f"{retune[0].upper()}{retune[1:]}.")
    return found


def since(before: Dict | None, after: Dict) -> str | None:
    """Return in one sentence what became of the speed from one baseline to the next, or None without a former one.

    The split may be another: it is the speed of what is served. The interval is that of a revalidation.
    """
    if before is None:
        return None
    said = []
    for key in baselines.keys(after["loads"]):
        old, new = baselines.samples(before["loads"], key), baselines.samples(after["loads"], key)
        if old and new:
            change = speed.compare(old, new, 0.0)
            if change.verdict in ("regressed", "improved"):
                said.append(f"{baselines.test_name(key)} takes {_signed(change.percent)}")
            else:
                said.append(f"{baselines.test_name(key)} is the same within noise ({change.percent:+.1f} %)")
    moved = ", ".join(f"{c['part']} {c['before']} -> {c['now']}" for c in _named(before, after))
    speeds_now = "; ".join(said) or "nothing comparable was measured"
    return f"Against the baseline of {before['recorded_at']}: {speeds_now}. Changed since: {moved or 'nothing'}."


def _named(before: Dict, after: Dict) -> list[Json]:
    """Return the changes of two baselines' configurations that fit into a sentence."""
    moved = changes(before["configuration"], after["configuration"])
    for change in moved:
        if change["part"] == "placement":
            for name in ("before", "now"):
                change[name] = "/".join(str(place["layers"]) for place in change[name] or [])
    return moved


def failure_text(result: t.Any) -> str:
    """Return what a failed task says, in one text; of a loop, what its first failed item says."""
    if not isinstance(result, t.Mapping):
        return str(result)
    for item in result.get("results") or []:
        if isinstance(item, t.Mapping) and item.get("failed"):
            return failure_text(item)
    words = result.get("msg") or "it failed without a word"
    return " ".join(str(word) for word in words) if isinstance(words, (list, tuple)) else str(words)


def broken(host: str, deployment: str | None, at: str, reason: str) -> Json:
    """Return the C(revalidation) of a host on which revalidating itself failed."""
    return {
        "schema": SCHEMA, "host": host, "deployment": deployment, "at": at, "baseline_at": None, "verdict": "broken",
        "accepted": False, "measured": False, "summary": f"broken: {reason}", "changes": [],
        "checks": [_check("revalidation", "broken", reason)], "explanation": None, "retune": None, "advice": [],
    }  # fmt: skip


def together(hosts: t.Mapping[str, Dict], unreachable: t.Iterable[str] = ()) -> Json:
    """Return the report over all hosts; the worst one decides, and one that was not reached is not accepted."""
    missing = sorted(unreachable)
    verdict = worst([result["verdict"] for result in hosts.values()] + ["broken"] * bool(missing))
    return {
        "schema": SCHEMA,
        "verdict": verdict,
        "accepted": bool(hosts) and not missing and all(result["accepted"] for result in hosts.values()),
        "unreachable": missing,
        "hosts": {name: dict(result) for name, result in sorted(hosts.items())},
    }


def table(result: Dict) -> list[str]:
    """Return a revalidation as lines for people."""
    lines = [
        f"{result['host']}: {result['verdict'].upper()}{'' if result['accepted'] else ' (not accepted)'},"
        f" {result['deployment']}"
    ]
    if result["baseline_at"]:
        lines.append(f"baseline of {result['baseline_at']}, {'measured again' if result['measured'] else 'as served'}")
    for change in result["changes"]:
        lines.append(f"changed: {change['part']}: {change['before']} -> {change['now']}")
    width = max((len(check["name"]) for check in result["checks"]), default=0)
    lines += [f"{check['verdict']:<12} {check['name']:<{width}}  {check['detail']}" for check in result["checks"]]
    if result["explanation"]:
        lines.append(f"why: {result['explanation']['detail']}")
        lines += [f"next: {command}" for command in result["explanation"]["next"]]
    return lines + list(result["advice"])
