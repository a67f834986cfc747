# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Why a split became slower: which device, and what changed on the host. Private to this collection.

Pure functions only. A split alone is one equation and cannot say which card became slower, so each device is measured
alone as well (C(device_probe)).
"""

from __future__ import annotations

import math
import typing as t

from .._base.types import Json, Mapping
from .changes import signed

#: A device alone that takes this much more time than in the baseline is slower. Its probe is one load: two loads of
#: one device differ by more than their repetitions do.
DEVICE_TOLERANCE_PERCENT: t.Final = 3.0
#: The same for prompts, of which a load has fewer samples.
DEVICE_PREFILL_TOLERANCE_PERCENT: t.Final = 6.0

_DIAGNOSE = "ansible-playbook homelab.mixed_gpu.diagnose"
_ROLLBACK = "ansible-playbook homelab.mixed_gpu.driver_rollback"
_OLD_BUILD = (
    "set llama_cpp_source and its version back to the former build, and run ansible-playbook homelab.mixed_gpu.site"
)
_OLD_KERNEL = "boot the former kernel from the boot menu, and revalidate again"
_SOFTWARE = ("driver_version", "cuda_driver_version", "kernel", "llama_cpp", "firmware")


def device_changes(before: Mapping | None, now: Mapping | None) -> list[Json]:
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
        decode, prefill, amount = _slowdown(known.get(row["id"]), row)
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


def _slowdown(old: Mapping | None, new: Mapping) -> tuple[float | None, float | None, float]:
    """Return (percent more time per token, the same for prompts, slowdown beyond the tolerance as a logarithm)."""
    if old is None or old["status"] != "ok" or new["status"] != "ok":
        return None, None, 0.0
    decode = 100 * (new["decode_ms_per_token"]["median"] / old["decode_ms_per_token"]["median"] - 1)
    prefill = 100 * (old["prefill_tokens_per_second"] / new["prefill_tokens_per_second"] - 1)
    amount = 0.0
    apart = new["decode_ms_per_token"]["low"] > old["decode_ms_per_token"]["high"]
    if apart and decode > DEVICE_TOLERANCE_PERCENT:
        amount = math.log1p(decode / 100)
    if prefill > DEVICE_PREFILL_TOLERANCE_PERCENT:
        amount = max(amount, math.log1p(prefill / 100))
    return decode, prefill, amount


def explain(checks: t.Sequence[Mapping], moved: t.Sequence[Mapping], devices: t.Sequence[Json]) -> Json | None:
    """Return why a speed regressed, C({cause, detail, devices, next}), or None where none did.

    C(moved) is what changed in the configuration, C(devices) are those of device_changes.
    """
    slow = [c["name"] for c in checks if c["verdict"] == "regressed" and "change_percent" in c]
    if not slow:
        return None
    for device in devices:
        device["hints"] = _hints(device["id"], checks)
    software = [change for change in moved if change["part"] in _SOFTWARE]
    cause, detail = _cause(slow, software, [d for d in devices if d["decode_change_percent"] is not None])
    undo = _undo(software)
    following = [*undo, _DIAGNOSE] if cause in ("prefill_only", "all_devices", "neither") else [_DIAGNOSE, *undo]
    return {"devices": [dict(device) for device in devices], "cause": cause, "detail": detail, "next": following}


def _cause(slow: t.Sequence[str], software: t.Sequence[Mapping], known: t.Sequence[Mapping]) -> tuple[str, str]:
    """Return the cause as a word and as a sentence; C(known) are the devices that were measured alone."""
    named = ", ".join(f"{change['part']} {change['before']} -> {change['now']}" for change in software)
    if not known:
        changed = f"; what changed: {named}" if named else ""
        return "unknown", f"no device was measured alone, so it is unknown which one is slower{changed}"
    slower = [device for device in known if device["slower"]]
    each = "; ".join(
        f"{d['device']} alone takes {signed(d['decode_change_percent'])} per token and"
        f" {signed(d['prefill_change_percent'])} per prompt"
        for d in known
    )
    if not slower and all(name.startswith("prefill") for name in slow):
        return "prefill_only", (
            f"only prompts are slower, generating is not ({each}): a kernel for large batches, flash attention or a"
            f" link changed; {named or 'no software changed'}"
        )
    if len(slower) == len(known) > 1:
        return "all_devices", (
            f"every device is slower ({each}): the driver, the build or the whole machine, not one card;"
            f" {named or 'no software changed: look for heat, power saving, another load'}"
        )
    if slower:
        which = " and ".join(f"{d['device']} ({d['id']})" for d in slower)
        hints = "; ".join(hint for device in slower for hint in device["hints"])
        why = hints or (named and f"what changed: {named}") or "look at its power limit, temperature and link"
        return "one_device", f"{which} is slower ({each}); {why}"
    return "neither", (
        f"no device alone is slower ({each}): the link between the devices or the placement is;"
        f" {named or 'no software changed'}"
    )


def _hints(card_id: str, checks: t.Sequence[Mapping]) -> list[str]:
    """Return what other checks say about one card."""
    return [f"{check['name']}: {check['cards'][card_id]}" for check in checks if card_id in check.get("cards", {})]


def _undo(software: t.Sequence[Mapping]) -> list[str]:
    """Return the commands that take back what changed."""
    parts = {change["part"] for change in software}
    found = []
    if parts & {"driver_version", "cuda_driver_version"}:
        found.append(_ROLLBACK)
    if "llama_cpp" in parts:
        found.append(_OLD_BUILD)
    if "kernel" in parts:
        found.append(_OLD_KERNEL)
    return found


def moved_optimum(devices: t.Sequence[Mapping], tolerance_percent: float) -> str | None:
    """Return why another split may be the best now, or None: the devices' speeds changed against each other."""
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
