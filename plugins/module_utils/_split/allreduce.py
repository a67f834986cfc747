# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How cards add up in split mode tensor: names and words for what ran. Private to this collection. Pure functions only.

An all-reduce adds the parts of the devices, twice per block. llama.cpp has three between CUDA devices: C(nccl), the
C(internal) one (two devices), and C(none), its generic way that every backend has. One that cannot be had is replaced
by the next in this order, with a warning in the log alone. ExLlamaV3 has two: C(native), through host memory, and
C(nccl). Recorded is what ran: C({asked, ran, transport, fallback}), each None where it is not known, C(transport) of
NCCL alone (P2P, SHM, NET), C(fallback) why the asked one did not run.
"""

from __future__ import annotations

import re
import typing as t

from .._base.types import Json, Mapping

#: Asks an engine of a family for an all-reduce: llama.cpp itself, or the worker that loads ExLlamaV3.
VARIABLES: t.Final = {"llama_cpp": "GGML_CUDA_ALLREDUCE", "exllama": "MIXED_GPU_EXLLAMA_ALLREDUCE"}
OF_LLAMA_CPP: t.Final = ("nccl", "internal", "none")
#: Through host memory, and NCCL; neither replaces the other.
OF_EXLLAMA: t.Final = ("native", "nccl")
#: Makes NCCL say that it runs, and what its channels go through.
NCCL_TELLS: t.Final = {"NCCL_DEBUG": "INFO"}
_CHANNEL = re.compile(r"NCCL INFO Channel \S+ : \S+ -> \S+ (?:\[\w+\] )?via (P2P|SHM|NET)\b")
_NAMES: t.Final = {
    "nccl": "NCCL", "internal": "llama.cpp's internal all-reduce", "none": "llama.cpp's generic all-reduce",
    "native": "ExLlama's native all-reduce",
}  # fmt: skip
_SHORT: t.Final = {"nccl": "NCCL", "internal": "internal", "none": "generic", "native": "native"}
_THROUGH: t.Final = {"P2P": "from card to card", "SHM": "through host memory", "NET": "through network sockets"}


def asked(load: Mapping) -> str:
    """Return the all-reduce that a load asked for, empty for llama.cpp's own choice."""
    given = load.get("environment") or {}
    return next((str(given[name]) for name in VARIABLES.values() if given.get(name)), "")


def environment(way: str, family: str) -> dict[str, str]:
    """Return the variables that ask an engine of a family for an all-reduce; none for llama.cpp's own choice."""
    return {VARIABLES[family]: way} if way else {}


def of_load(load: Mapping) -> str:
    """Return the all-reduce that a load ran with as far as known, else the one that it asked for."""
    return str((load.get("allreduce") or {}).get("ran") or asked(load))


def of_trial(trial: Mapping | None) -> Json | None:
    """Return what a trial added up with, None where it does not say: llama.cpp's server does, or ExLlama's load."""
    results = (trial or {}).get("results") or [{}]
    found = results[0].get("allreduce") or (trial or {}).get("allreduce")
    return dict(found) if found else None


def recorded(entry: Mapping) -> Json | None:
    """Return what ran where a recorded deployment was measured, None for one that is not served in tensor mode."""
    if entry["split_mode"] != "tensor":
        return None
    found = ((entry.get("decision") or {}).get("tensor") or {}).get("allreduce")
    return dict(found) if found and found.get("ran") else None


def with_seen(entry: Mapping, seen: Mapping | None) -> Json:
    """Return a recorded deployment with what its server adds up with now; unchanged where nothing is known of it."""
    if recorded(entry) is None or not seen or not seen.get("ran"):
        return dict(entry)
    decision = entry["decision"]
    return {**entry, "decision": {**decision, "tensor": {**decision["tensor"], "allreduce": dict(seen)}}}


def name(way: str) -> str:
    """Return an all-reduce in words."""
    return _NAMES.get(way, way)


def transport(text: str) -> str | None:
    """Return what the channels of NCCL go through, as it says with NCCL_DEBUG=INFO; None where it does not say.

    From the slowest: one slow channel is what everything waits for.
    """
    seen = set(_CHANNEL.findall(text))
    return next((name for name in ("NET", "SHM", "P2P") if name in seen), None)


def words(found: Mapping | None) -> str:
    """Return what ran in words, empty where it is not known: C(NCCL through host memory)."""
    if not found or not found.get("ran"):
        return ""
    through = _THROUGH.get(found.get("transport") or "")
    return f"{name(found['ran'])} {through}" if through else name(found["ran"])


def short(found: Mapping) -> str:
    """Return what ran for the cell of a table, empty where it is not known: C(NCCL, host memory)."""
    through = {"P2P": "card to card", "SHM": "host memory", "NET": "sockets"}.get(found.get("transport") or "")
    ran = _SHORT.get(found.get("ran") or "", found.get("ran") or "")
    return f"{ran}, {through}" if ran and through else ran


def same(one: Mapping, other: Mapping) -> bool:
    """Return whether two servers add up alike; what one of them does not say is no difference."""
    pairs = [(one.get(key), other.get(key)) for key in ("ran", "transport")]
    return all(mine is None or theirs is None or mine == theirs for mine, theirs in pairs)
