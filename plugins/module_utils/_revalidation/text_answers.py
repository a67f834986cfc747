# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Does the model answer as in the baseline? Private to this collection. Pure functions only.

Each load of an ExLlama says what the model made of a fixed text (_split/text_likelihood.py).
"""

from __future__ import annotations

import statistics
import typing as t

from .._base.types import Json, Mapping
from .._split import text_likelihood
from .checks import check

#: What makes results wrong at full speed.
CAUSES: t.Final = (
    "the cards return wrong results: peer access through an IOMMU, a fault of memory, the driver, or another build; see"
    " docs/troubleshooting.md, and do not use this server"
)


def checked(before: t.Sequence[Mapping] | None, now: t.Sequence[Mapping]) -> Json | None:
    """Return the check of the answers of today's loads, or None where they say nothing or there is no baseline.

    C(before) are the loads of the baseline, contended ones too: other programs change no result.
    """
    today = [load for load in now if load.get("answers")]
    for load in today:
        if load["answers"]["nats_per_token"] is None:
            return check("answers", "broken", f"{load['label']}: the likelihood of a fixed text is no number: {CAUSES}")
    if not today or before is None:
        return None
    known = text_likelihood.usable(before, today[0]["answers"]["text"])
    if not known or max(known) - min(known) > text_likelihood.TOLERANCE_NATS:
        why = "says nothing of this text" if not known else "has loads that answer differently"
        return check("answers", "inconclusive", f"the baseline {why}: make a new one with -e retune=true")
    usual = statistics.median(known)
    worst = max(today, key=lambda load: abs(load["answers"]["nats_per_token"] - usual))
    found = worst["answers"]["nats_per_token"]
    told = f"({usual:.3f} -> {found:.3f} nats a token)"
    if abs(found - usual) > text_likelihood.TOLERANCE_NATS:
        how = "less" if found > usual else "more"
        return check(
            "answers", "broken", f"{worst['label']}: the model finds a fixed text {how} likely than in the baseline"
            f" {told}, by more than rounding explains ({text_likelihood.TOLERANCE_NATS}): {CAUSES}",
        )  # fmt: skip
    return check("answers", "ok", f"a fixed text is as likely as in the baseline {told}{_same(before, worst)}")


def _same(before: t.Sequence[Mapping], load: Mapping) -> str:
    """Return how many of the tokens that a load answered are those of the baseline."""
    first: list[int] = next((one["answers"]["tokens"] for one in before if one.get("answers")), [])
    own = load["answers"]["tokens"]
    count = next((n for n, (a, b) in enumerate(zip(first, own, strict=False)) if a != b), min(len(first), len(own)))
    return f", and the first {count} of {len(own)} answered tokens are the same"


def wrong(before: t.Sequence[Mapping] | None, now: t.Sequence[Mapping]) -> bool:
    """Return whether answers are so wrong that measuring on tells nothing."""
    found = checked(before, now)
    return found is not None and found["verdict"] == "broken"


def served(baseline: Mapping | None, observed: Mapping) -> Json | None:
    """Return the check of what the serving instance answers to a fixed question; None where nothing is known.

    The question is one to which a model has one answer. A server that answers otherwise is measured (suspicion); one
    that answers otherwise after it was measured and started anew computes something else than what was measured.
    """
    before, now = _said(baseline, observed)
    if before is None or now is None:
        return None
    if before == now:
        return check("served answer", "ok", "the server answers a fixed question as in the baseline")
    told = f"the server answers a fixed question with {now!r} instead of {before!r}"
    if observed["loads"]:
        return check("served answer", "broken", f"{told}: {CAUSES}")
    return check("served answer", "inconclusive", f"{told}: measure with -e revalidate_measure=true")


def _said(baseline: Mapping | None, observed: Mapping) -> tuple[str | None, str | None]:
    return (baseline or {}).get("answer"), observed.get("served_answer")


def differs(baseline: Mapping | None, observed: Mapping) -> bool:
    """Return whether the serving instance answers a fixed question otherwise than in the baseline."""
    before, now = _said(baseline, observed)
    return before is not None and now is not None and before != now
