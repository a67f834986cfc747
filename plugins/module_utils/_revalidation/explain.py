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
from . import acceptance_check
from .changes import interval, signed

#: A device alone that takes this much more time than in the baseline is slower. Its probe is one load: two loads of
#: one device differ by more than their repetitions do.
DEVICE_TOLERANCE_PERCENT: t.Final = 3.0
#: The same for prompts, of which a load has fewer samples.
DEVICE_PREFILL_TOLERANCE_PERCENT: t.Final = 6.0

_KINDS: t.Final = {"decode": DEVICE_TOLERANCE_PERCENT, "prefill": DEVICE_PREFILL_TOLERANCE_PERCENT}
_UNITS: t.Final = {"decode": "token", "prefill": "prompt"}
_DIAGNOSE = "ansible-playbook homelab.mixed_gpu.diagnose"
_ROLLBACK = "ansible-playbook homelab.mixed_gpu.driver_rollback"
_OLD_BUILD = (
    "set llama_cpp_source and its version back to the former build, and run ansible-playbook homelab.mixed_gpu.site"
)
_OLD_EXLLAMA = (
    "set exllamav2_requirements_file and exllamav2_server_commit back, and run ansible-playbook homelab.mixed_gpu.site"
)
_OLD_KERNEL = "boot the former kernel from the boot menu, and revalidate again"
_RETUNE = "ansible-playbook homelab.mixed_gpu.revalidate -e retune=true, which measures other drafts and lengths"
_EXLLAMA = ("engine_build", "exllamav2", "exllamav3", "pytorch", "tabbyapi")
_SOFTWARE = ("driver_version", "cuda_driver_version", "kernel", "llama_cpp", "firmware", *_EXLLAMA)


def device_changes(before: Mapping | None, now: Mapping | None) -> list[Json]:
    """Compare two device probes: per device how much more time it takes alone, in percent; None where unknown.

    C(slower_in) are the kinds (decode, prefill) in which a device is slower beyond what two loads differ by: those
    whose interval excludes zero, with at least half of the worst device's slowdown (in logarithms). Where one card fell
    far behind, what a busy machine costs all of them is not its cause.
    """
    if not before or not now:
        return []
    known = {row["id"]: row for row in before["devices"]}
    found = []
    for row in now["devices"]:
        both = _changes(known.get(row["id"]), row)
        found.append({
            "device": row["device"],
            "id": row["id"],
            **{f"{kind}_change_percent": None if one is None else one[0] for kind, one in both.items()},
            **{f"{kind}_interval_percent": None if one is None else one[1:] for kind, one in both.items()},
            "slower_in": [],
            "hints": [],
        })  # fmt: skip
    for kind in _KINDS:
        amounts = [math.log1p(max(0.0, (device[f"{kind}_interval_percent"] or [0.0])[0]) / 100) for device in found]
        for device, amount in zip(found, amounts, strict=True):
            if amount > 0 and amount >= max(amounts) / 2:
                device["slower_in"].append(kind)
    return found


def _changes(old: Mapping | None, new: Mapping) -> dict[str, list[float] | None]:
    """Return by kind C([percent more time, low, high]); the interval has what two loads of one device differ by."""
    if old is None or old["status"] != "ok" or new["status"] != "ok":
        return dict.fromkeys(_KINDS)
    was, is_now = old["decode_ms_per_token"], new["decode_ms_per_token"]
    prefill = old["prefill_tokens_per_second"] / new["prefill_tokens_per_second"]
    ratios = {
        "decode": (is_now["median"] / was["median"], is_now["low"] / was["high"], is_now["high"] / was["low"]),
        "prefill": (prefill, prefill, prefill),
    }
    found: dict[str, list[float] | None] = {}
    for kind, (ratio, low, high) in ratios.items():
        apart = 1 + _KINDS[kind] / 100
        found[kind] = [round(100 * (value - 1), 2) for value in (ratio, low / apart, high * apart)]
    return found


def explain(
    checks: t.Sequence[Mapping], moved: t.Sequence[Mapping], devices: t.Sequence[Json], diagnosed: bool
) -> Json | None:
    """Return why a speed regressed, C({cause, detail, devices, next}), or None where none did.

    C(moved) is what changed in the configuration, C(devices) are those of device_changes, C(diagnosed) says whether
    the playbook diagnose knows the engine.
    """
    slow = [c["name"] for c in checks if c["verdict"] == "regressed" and "change_percent" in c]
    if not slow:
        return _drafts(checks, moved)
    for device in devices:
        told = ((check["name"], check.get("cards", {}).get(device["id"])) for check in checks)
        device["hints"] = [f"{name}: {words}" for name, words in told if words is not None]
    software = [change for change in moved if change["part"] in _SOFTWARE]
    cause, detail = _cause(slow, software, [d for d in devices if d["decode_change_percent"] is not None])
    undo = _undo(software)
    diagnose = [_DIAGNOSE] if diagnosed else []
    following = [*undo, *diagnose] if cause in ("prefill_only", "all_devices", "neither") else [*diagnose, *undo]
    return {"devices": [dict(device) for device in devices], "cause": cause, "detail": detail, "next": following}


def _drafts(checks: t.Sequence[Mapping], moved: t.Sequence[Mapping]) -> Json | None:
    """Return why text is slower where no device is: fewer drafted tokens are right than in the baseline."""
    fell = next((c for c in checks if c["name"] == acceptance_check.NAME and c["verdict"] == "regressed"), None)
    if fell is None:
        return None
    software = [change for change in moved if change["part"] in _SOFTWARE]
    named = ", ".join(f"{change['part']} {change['before']} -> {change['now']}" for change in software)
    detail = (
        f"no device is slower, but a round gives {abs(fell['tokens_per_round_percent']):.1f} % fewer tokens, since"
        f" fewer drafted tokens are right; {named or 'no software changed: look at the draft and at its file'}"
    )
    return {"devices": [], "cause": "acceptance", "detail": detail, "next": [*_undo(software), _RETUNE]}


def _cause(slow: t.Sequence[str], software: t.Sequence[Mapping], known: t.Sequence[Mapping]) -> tuple[str, str]:
    """Return the cause as a word and as a sentence; C(known) are the devices that were measured alone."""
    named = ", ".join(f"{change['part']} {change['before']} -> {change['now']}" for change in software)
    if not known:
        changed = f"; what changed: {named}" if named else ""
        return "unknown", f"no device was measured alone, so it is unknown which one is slower{changed}"
    kinds = [kind for kind in _KINDS if any(name.startswith(kind) for name in slow)]
    slower = [device for device in known if set(device["slower_in"]) & set(kinds)]
    alike = [kind for kind in kinds if all(kind in device["slower_in"] for device in known)]
    each = _each(known, alike or list(_KINDS))
    if not slower and all(name.startswith("prefill") for name in slow):
        return "prefill_only", (
            f"only prompts are slower, generating is not ({each}): a kernel for large batches, flash attention or a"
            f" link changed; {named or 'no software changed'}"
        )
    if alike and len(known) > 1:
        return "all_devices", (
            f"every device is slower ({each}): the driver, the build or the whole machine, not one card;"
            f" {named or 'no software changed: look for heat, power saving, another load'}"
        )
    if slower:
        which = " and ".join(f"{d['device']} ({d['id']})" for d in slower)
        hints = "; ".join(hint for device in slower for hint in device["hints"])
        why = hints or (named and f"what changed: {named}") or "look at its power limit, temperature and link"
        return "one_device", f"{which} {'is' if len(slower) == 1 else 'are'} slower ({each}); {why}"
    return "neither", (
        f"no device alone is slower ({each}): the link between the devices or the placement is;"
        f" {named or 'no software changed'}"
    )


def _interval(both: t.Sequence[float]) -> str:
    return interval(both[0], both[1], "interval")


def _each(known: t.Sequence[Mapping], kinds: t.Sequence[str]) -> str:
    """Return what each device alone takes, with intervals."""
    return "; ".join(
        f"{device['device']} alone takes "
        + " and ".join(
            f"{signed(device[f'{kind}_change_percent'])} per {_UNITS[kind]}"
            f" ({_interval(device[f'{kind}_interval_percent'])})"
            for kind in kinds
        )
        for device in known
    )


def _undo(software: t.Sequence[Mapping]) -> list[str]:
    """Return the commands that take back what changed."""
    parts = {change["part"] for change in software}
    found = []
    if parts & {"driver_version", "cuda_driver_version"}:
        found.append(_ROLLBACK)
    if "llama_cpp" in parts:
        found.append(_OLD_BUILD)
    if parts & set(_EXLLAMA):
        found.append(_OLD_EXLLAMA)
    if "kernel" in parts:
        found.append(_OLD_KERNEL)
    return found


def moved_optimum(devices: t.Sequence[Mapping], tolerance_percent: float) -> str | None:
    """Return why another split may be the best now, or None: the devices' speeds changed against each other."""
    known = [d for d in devices if d["decode_change_percent"] is not None]
    if len(known) < 2:
        return None
    for kind, words in (("decode", "in generating"), ("prefill", "in prompts")):
        tolerance = max(tolerance_percent, _KINDS[kind])
        low, high = (pick(known, key=lambda d: float(d[f"{kind}_change_percent"])) for pick in (min, max))
        ratio = _against(high[f"{kind}_change_percent"], low[f"{kind}_change_percent"])
        within = [
            _against(one, other)
            for one, other in zip(
                high[f"{kind}_interval_percent"], reversed(low[f"{kind}_interval_percent"]), strict=True
            )
        ]
        if ratio > tolerance and within[0] > 0:
            return (
                f"{high['device']} became {ratio:.1f} % slower against {low['device']} {words}"
                f" ({_interval(within)}), so another split may be the best now: measure with -e retune=true"
            )
    return None


def _against(one: float, other: float) -> float:
    """Return the change of a ratio of two times, all in percent."""
    return 100 * ((1 + one / 100) / (1 + other / 100) - 1)
