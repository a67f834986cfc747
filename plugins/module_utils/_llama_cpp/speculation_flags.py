# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How llama-server is told to speculate, and what it says about it. Private to this collection. Pure functions only.

Flags and counters are those of llama.cpp b11312.
"""

from __future__ import annotations

import re
import typing as t

from .._base.types import Json, Mapping
from .._split import placement, speculation

#: llama-server prints six digits of a counter: 1234567 is 1.23457e+06.
_VALUE: t.Final = r"([0-9]{1,20}(?:\.[0-9]{1,20})?(?:e\+?[0-9]{1,2})?)"
_COUNTER: t.Final = re.compile(
    r'^llamacpp:spec_decode_num_accepted_tokens_per_pos_total\{position="([0-9]{1,3})"\} ' + _VALUE, re.MULTILINE
)
_TOTALS: t.Final = tuple(
    re.compile(rf"^llamacpp:spec_decode_num_{name}_total {_VALUE}", re.MULTILINE)
    for name in ("draft_tokens", "accepted_tokens", "drafts")
)
#: What the log says at the end of each answer, of all so far (-lv 4).
_DRAFTING: t.Final = re.compile(
    r"statistics\s+(?:draft|ngram)-[\w-]+: .*#gen drafts = *([0-9]{1,15}), .*#gen tokens = *([0-9]{1,15}), .*"
    r"dur\(b,g,a\) = [0-9.]+, ([0-9]{1,15}(?:\.[0-9]{1,9})?), [0-9.]+ ms"
)


def arguments(deployment: Mapping) -> list[str]:
    """Return the words of llama-server's command line for C(deployment.speculation); none without one.

    With one device of its own a draft is not split, whatever the split of the target. Raises ValueError with one
    sentence for a device that is not among the recorded ones.
    """
    wanted = deployment.get("speculation")
    if not wanted or wanted["kind"] == speculation.NONE:
        return []
    words = ["--spec-type", wanted["kind"]]
    if wanted["n_max"]:
        words += ["--spec-draft-n-max", str(wanted["n_max"])]
    if wanted.get("path"):
        names = placement.device_names(deployment)
        if wanted["device"] not in names:
            raise ValueError(f"the draft is placed on {wanted['device']}, which is not among the recorded devices")
        words += ["-md", wanted["path"], "-devd", names[wanted["device"]]]
        words += ["-ngld", str(deployment["serving"]["gpu_layers"])]
        words += ["-ctkd", wanted["cache_type_k"], "-ctvd", wanted["cache_type_v"]]
    return words


def counters(metrics: str) -> tuple[int, list[int]]:
    """Return (rounds that drafted, accepted tokens by position) of the text of /metrics; (0, []) before any."""
    by_position = {int(position): int(float(value)) for position, value in _COUNTER.findall(metrics)}
    accepted = [by_position.get(position, 0) for position in range(max(by_position, default=-1) + 1)]
    return counted(metrics)[2], accepted


def counted(metrics: str) -> tuple[int, int, int]:
    """Return (drafted tokens, accepted ones, drafts) since the start of a server; zeros where it does not say."""
    found = [total.search(metrics) for total in _TOTALS]
    drafted, accepted, rounds = (int(float(match[1])) if match else 0 for match in found)
    return drafted, accepted, rounds


def drafting(log: str) -> Json | None:
    """Return C({drafts, drafted, draft_ms}), how long a server drafted for how many tokens; None if it does not say."""
    found = _DRAFTING.findall(log)
    if not found:
        return None
    drafts_, tokens, ms = found[-1]
    return {"drafts": int(drafts_), "drafted": int(tokens), "draft_ms": float(ms)}


def _exact(metrics: str) -> bool:
    """Return whether no counter is so large that it is printed rounded."""
    values = [value for _position, value in _COUNTER.findall(metrics)]
    values += [match[1] for total in _TOTALS if (match := total.search(metrics))]
    return not any("e" in value for value in values)


def drafts(before: str, after: str) -> int | None:
    """Return how many drafts were checked between two readings of /metrics; None where these are rounded."""
    return counters(after)[0] - counters(before)[0] if _exact(after) else None


def rates(before: str, after: str) -> list[float]:
    """Return the share of rounds in which the first, second, ... drafted token was accepted between two readings.

    Nothing where nothing was drafted, or the readings are rounded.
    """
    if not _exact(after):
        return []
    (rounds_before, accepted_before), (rounds, accepted) = counters(before), counters(after)
    accepted_before = [*accepted_before, *[0] * (len(accepted) - len(accepted_before))]
    drafted = rounds - rounds_before
    if drafted <= 0:
        return []
    return [round((now - then) / drafted, 4) for now, then in zip(accepted, accepted_before, strict=True)]
