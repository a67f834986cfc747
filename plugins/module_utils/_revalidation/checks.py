# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Checks of a host against its baseline: is it whole, and as it was? Private to this collection. Pure functions only.

Each takes C(observed) (see verdict.py) and returns C({name, verdict, detail}), or None where it does not apply.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import allreduce, engines, link_changes
from . import baselines

#: From best to worst. A host is as good as the worst of its checks.
VERDICTS: t.Final = ("ok", "improved", "inconclusive", "regressed", "broken")
#: Throttle reasons that mean a fault or heat. A power limit (sw_power_cap) is somebody's wish.
THROTTLED: t.Final = ("hw_slowdown", "hw_thermal_slowdown", "sw_thermal_slowdown", "hw_power_brake_slowdown")
#: Memory that a driver or an engine may need more than before without a word, MiB.
MEMORY_SLACK_MIB: t.Final = 64


def worst(verdicts: t.Iterable[str]) -> str:
    """Return the worst verdict, C(ok) of none."""
    return max(verdicts, key=VERDICTS.index, default="ok")


def check(name: str, verdict: str, detail: str, **more: t.Any) -> Json:
    """Return a check; C(more) is what later code reads of it."""
    return {"name": name, "verdict": verdict, "detail": detail, **more}


def cards(observed: Mapping) -> Json | None:
    """Are the recorded cards there? Order alone breaks nothing: programs are told UUIDs."""
    baseline = observed["baseline"]
    known = baseline["configuration"]["gpus"] if baseline else []
    recorded = {d["id"] for d in observed["entry"]["devices"] if str(d["id"]).startswith("GPU-")}
    if not known and not recorded:
        return None
    gpus = observed["gpus"]
    if not gpus.get("available"):
        return check("cards", "broken", f"the cards cannot be read: {gpus.get('reason')}")
    present = [card["id"] for card in gpus["gpus"]]
    names = {card["id"]: card["name"] for card in known}
    gone = [card_id for card_id in sorted(recorded | set(names)) if card_id not in present]
    if gone:
        listed = ", ".join(f"{names.get(card_id, 'a card')} ({card_id})" for card_id in gone)
        return check(
            "cards", "broken", f"{listed} is gone: reseat it, check its power, see 'nvidia-smi -L' and the kernel's log"
        )
    order = [card["id"] for card in known]
    if [card_id for card_id in present if card_id in order] != order and order:
        return check(
            "cards",
            "ok",
            "all are there, in another order on the bus; every program is told their UUIDs, so it changes nothing",
        )
    return check("cards", "ok", f"{len(present)} as before: {', '.join(card['name'] for card in gpus['gpus'])}")


def server(observed: Mapping) -> Json:
    """Does the server run as its unit says?"""
    state, unit = observed["server"], engines.of(observed["entry"]["serving"]).unit
    if state["state"] != "ready":
        last = state["reason"].rstrip(".") or (state["last_lines"][-1:] or ["nothing in its journal"])[0]
        return check(
            "server",
            "broken",
            f"{unit} is {state['state']} ({last}): see journalctl -u {unit.removesuffix('.service')}, or run site",
        )
    if state["needs_reload"]:
        return check("server", "broken", f"its unit changed since it was started: restart {unit}, or run site")
    return check("server", "ok", f"ready, {state['automatic_restarts']} automatic restarts since it was started")


def placement(observed: Mapping) -> Json | None:
    """Is every layer where the record says? A changed device order shows here."""
    state = observed["server"]
    if state["state"] != "ready":
        return None
    if state.get("server", {}).get("complete") is False:
        return check(
            "placement",
            "inconclusive",
            "the journal no longer holds where the server put its layers: restart llama-server.service and revalidate"
            " again, or measure, which restarts the server (-e revalidate_measure=true)",
        )
    found = state.get("deviations") or []
    if found:
        return check("placement", "broken", f"{' '.join(found)} Run site, which puts the recorded split back")
    where = ", ".join(f"{place['id']}: {place['layers']}" for place in observed["entry"]["placement"])
    if "gpu_split_gb" in observed["entry"]:
        split = "/".join(f"{share:g}" for share in observed["entry"]["gpu_split_gb"])
        return check("placement", "ok", f"gpu_split and cards as recorded ({split} GB for layers {where})")
    return check("placement", "ok", f"layers as recorded ({where}), none on the CPU")


def lenders(observed: Mapping) -> Json | None:
    """Does the server use all its lenders? Without one it is neither as recorded nor broken."""
    sentence = (observed["server"].get("without_lenders") or {}).get("sentence")
    if not sentence:
        return None
    said = sentence[0].lower() + sentence[1:].rstrip(".")
    return check("lenders", "inconclusive", f"{said}; its speed is not compared")


def added_up(observed: Mapping) -> Json | None:
    """How do cards add up that share layers? Another way is a change of the configuration, and the speed judges it."""
    recorded, state = allreduce.recorded(observed["entry"]), observed["server"]
    seen = (state.get("server") or {}).get("allreduce")
    if recorded is None or state["state"] != "ready" or not seen or not seen.get("ran"):
        return None
    if allreduce.same(recorded, seen):
        return check("all-reduce", "ok", f"{allreduce.words(seen)}, as measured")
    why = f" ({seen['fallback']})" if seen.get("fallback") else ""
    return check("all-reduce", "ok", f"{allreduce.words(seen)}{why}, and {allreduce.words(recorded)} was measured")


def completion(observed: Mapping) -> Json | None:
    """Did one real completion go through all layers?"""
    answer = observed["completion"]
    if observed["server"]["state"] != "ready" or answer is None:
        return None
    if not answer["ok"] and observed["busy"]["busy"]:
        return check(
            "completion", "inconclusive", f"the server is busy ({observed['busy']['why']}): {answer['detail']}"
        )
    return check("completion", "ok" if answer["ok"] else "broken", answer["detail"])


def alone(observed: Mapping) -> Json | None:
    """Does each device work alone, with the small model?"""
    probed = observed["device_probe"]
    if not probed:
        return None
    if probed.get("failure"):
        return check("devices alone", "broken", probed["failure"])
    return check("devices alone", "ok", probed["summary"]) if probed.get("summary") else None


def model(observed: Mapping) -> Json:
    """Is the model the one that was tuned?"""
    seen, wanted = observed["model"], observed["entry"]["model"]["sha256"]
    path = observed["entry"]["model"]["path"]
    if not seen["exists"]:
        return check("model", "broken", f"{path} is not there: run site, which fetches it")
    cure = "put it back, or run site to tune the new one"
    headers = observed["entry"]["fingerprint_parts"].get("model_headers_sha256")
    if headers and seen["headers_sha256"] != headers:
        return check("model", "broken", f"{path} was replaced: it has other tensors than what was tuned; {cure}")
    if not wanted:  # a folder whose files nobody has hashed
        return check("model", "ok", f"{path}, tensors as tuned; the files themselves were not hashed")
    if seen["sha256"] != wanted:
        return check(
            "model", "broken", f"{path} was replaced: its sha256 is {str(seen['sha256'])[:12]}...,"
            f" {wanted[:12]}... was tuned; {cure}"
        )  # fmt: skip
    return check("model", "ok", f"{path}, sha256 {wanted[:12]}...")


def memory(observed: Mapping, reserve_mib: int) -> Json | None:
    """Does the model still fit? Compares what the loaded server reports with what was free at its start, and before."""
    seen = observed["server"]
    # a server that does not run holds nothing, whatever its last journal says
    rows = baselines.memory(observed["entry"], seen["server"]) if seen["state"] == "ready" else None
    rows = baselines.loaded(observed["entry"], observed["loads"]) or rows
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
        return check("memory", "ok", "the server does not say what each device holds (split mode tensor)")
    return check("memory", worst(verdicts), "; ".join(said))


def _less_than_before(left: float, old: Mapping, reserve_mib: int) -> bool:
    """Return whether what is left is a change: a box that had as little when it was tuned is as it was."""
    if old.get("free_mib") is None or old.get("loaded_mib") is None:
        return True
    return left < min(reserve_mib, old["free_mib"] - old["loaded_mib"]) - MEMORY_SLACK_MIB


def _under_load(loads: t.Iterable[Mapping], card_id: str, quantity: str) -> float | None:
    """Return the most that was seen of a quantity of one card while loads ran."""
    seen = []
    for load in loads:
        value = ((load.get("conditions") or {}).get(card_id) or {}).get(quantity)
        if value is not None:
            seen.append(value["max"])
    return max(seen, default=None)


def _by_card(
    name: str, fell: t.Mapping[str, str], rose: t.Sequence[str], same: t.Sequence[str], cure: str
) -> Json | None:
    """Return a check over cards; C(fell) says by UUID what became worse, and explain.py reads it."""
    if fell:
        return check(name, "regressed", f"{'; '.join(fell.values())}: {cure}", cards=dict(fell))
    if rose or same:
        return check(name, "improved" if rose else "ok", "; ".join([*rose, *same]))
    return None


def links(observed: Mapping) -> Json | None:
    """PCIe links under load against the baseline's; without a load the width alone, since idle links slow down."""
    baseline = observed["baseline"]
    known = {card["id"]: card for card in baseline["configuration"]["gpus"]} if baseline else {}
    fell: dict[str, str] = {}
    same = []
    for card in observed["gpus"].get("gpus", []):
        card_id = card["id"]
        for name, words in (("pcie_generation", "generation"), ("pcie_width", "lanes")):
            old = _under_load(baseline["loads"], card_id, name) if card_id in known else None
            new = _under_load(observed["loads"], card_id, name)
            if name == "pcie_width" and card_id in known and (old is None or new is None):
                old, new = known[card_id].get(name), card.get(name)
            if old is None or new is None:
                continue
            if new < old:
                fell[card_id] = f"{fell[card_id]}, " if card_id in fell else f"{card['name']}: "
                fell[card_id] += f"{words} {new:g}, was {old:g}"
            else:
                same.append(f"{card['name']}: {words} {new:g}")
    return _by_card("links", fell, [], same, "reseat the card or its riser, and look at the firmware's slot settings")


def network(observed: Mapping) -> Json | None:
    """The links to lenders against those of the tuning."""
    links = link_changes.compared(observed["entry"], observed["links"])
    fell = {link.endpoint: link.sentence() for link in links if link.to_blame}
    return _by_card("network", fell, [], [link.sentence() for link in links if not link.to_blame], link_changes.CURE)


def lender_cards(observed: Mapping) -> Json | None:
    """The lenders whose cards were not seen: driver and limits there may have changed."""
    said = [
        f"those of {name} are not seen ({why}), and taken as recorded: {cure}"
        for name, (why, cure) in observed["unseen_lenders"].items()
    ]
    return check("lender cards", "ok", "; ".join(said)) if said else None


def power(observed: Mapping) -> Json | None:
    """Power limits against the baseline's, also those of cards that are lent."""
    before = observed["baseline"]["configuration"] if observed["baseline"] else {}
    known = {card["id"]: card.get("power_limit_watts") for card in _all_cards(before)}
    fell: dict[str, str] = {}
    rose, same = [], []
    for card in _all_cards({**observed["configuration"], "gpus": observed["gpus"].get("gpus", [])}):
        old, new = known.get(card["id"]), card.get("power_limit_watts")
        if old is None or new is None:
            continue
        if abs(new - old) <= 0.5:
            same.append(f"{card['name']} {new:g} W")
        elif new < old:
            fell[str(card.get("endpoint", card["id"]))] = f"{card['name']} {new:g} W, was {old:g} W"
        else:
            rose.append(f"{card['name']} {new:g} W, was {old:g} W")
    return _by_card(
        "power limits", fell, rose, same, "a driver forgets limits when it is loaded anew; run site, which sets them"
    )


def _all_cards(configuration: Mapping) -> list[Json]:
    """Return the cards of a configuration; the names of those that are lent begin with the lender's."""
    lent = [
        {**card, "name": f"{name}: {card['name']}"}
        for name, lender in configuration.get("lenders", {}).items()
        for card in lender["cards"]
    ]
    return [*configuration.get("gpus", []), *lent]


def throttling(observed: Mapping) -> Json | None:
    """What held the clocks down while today's loads ran, and did not in the baseline's."""
    before = observed["baseline"]["loads"] if observed["baseline"] else []

    def reasons(loads: t.Iterable[Mapping], card_id: str) -> set[str]:
        own = [((load.get("conditions") or {}).get(card_id) or {}).get("throttle_reasons") or [] for load in loads]
        return {reason for one in own for reason in one if reason in THROTTLED}

    fell: dict[str, str] = {}
    same = []
    for card in observed["gpus"].get("gpus", []):
        card_id = card["id"]
        if not any(card_id in (load.get("conditions") or {}) for load in observed["loads"]):
            continue
        hot = _under_load(observed["loads"], card_id, "temperature_celsius")
        at = "" if hot is None else f" at up to {hot:g} C"
        new = sorted(reasons(observed["loads"], card_id) - reasons(before, card_id))
        if new:
            fell[card_id] = f"{card['name']}: {', '.join(new)}{at}"
        else:
            same.append(f"{card['name']}{at}")
    return _by_card("throttling", fell, [], same, "clean and cool the card, or lower its power limit")
