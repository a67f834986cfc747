# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Are as many drafted tokens right as in the baseline? Builds have changed it. Private. Pure functions only.

C(observed) is described in verdict.py; its C(acceptance) is that of draft_acceptance_info.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._split import acceptance
from .checks import check

NAME: t.Final = "acceptance"


def checked(observed: Mapping, tolerance_percent: float) -> Json | None:
    """Return the check; None where the record does not draft, or nothing was asked.

    It regressed where the whole interval lies below the baseline's share, and rounds give fewer tokens by more than the
    tolerance. One text is generated otherwise by every build, so what the interval hides is no change.
    """
    seen, entry, baseline = observed["acceptance"], observed["entry"], observed["baseline"]
    if seen is None or not acceptance.comparable(entry):
        return None
    now, kind = acceptance.total(seen["rows"]), entry["speculation"]["kind"]
    if not now.drafted:
        cure = "see journalctl -u llama-server, or run site"
        return check(NAME, "broken", f"the record drafts with {kind}, and no token was drafted: {cure}")
    known = baseline["acceptance"] if baseline else None
    if known is None:
        return check(NAME, "ok", f"{_share(now)}; the baseline does not say how many were: site completes it")
    if known["texts"] != seen["texts"]:
        said = "the texts that are asked are not those of the baseline (split_tuning_texts, or this collection's)"
        return check(NAME, "inconclusive", f"{said}: -e accept=true makes a new one")
    return _compared(known["rows"], seen["rows"], tolerance_percent)


def _compared(before: t.Sequence[Mapping], rows: t.Sequence[Mapping], tolerance_percent: float) -> Json:
    old, now = acceptance.total(before), acceptance.total(rows)
    if not old.drafted:
        return check(NAME, "ok", f"{_share(now)}; none was drafted in the baseline")
    change = acceptance.difference(old, now)
    tokens = 100 * (now.tokens_per_draft / old.tokens_per_draft - 1)
    verdict = "ok"
    if change.high < 0 and tokens < -tolerance_percent:
        verdict = "regressed"
    elif change.low > 0 and tokens > tolerance_percent:
        verdict = "improved"
    detail = (
        f"{_share(now)}, {100 * old.share:.1f} % in the baseline (difference {100 * change.change:+.1f} points, 98 %"
        f" interval {100 * change.low:+.1f} to {100 * change.high:+.1f}): {now.tokens_per_draft:.2f} tokens per round"
        f" instead of {old.tokens_per_draft:.2f}"
    )
    if verdict == "regressed":
        detail += f"; {_by_text(before, rows)}"
    shares = {"share": round(now.share, 4), "share_before": round(old.share, 4)}
    return check(NAME, verdict, detail, tokens_per_round_percent=round(tokens, 2), **shares)


def _share(now: acceptance.Counted) -> str:
    return f"{100 * now.share:.1f} % of {now.drafted} drafted tokens were right"


def _by_text(before: t.Sequence[Mapping], rows: t.Sequence[Mapping]) -> str:
    """Return the share of each kind of text, before and now, the one that lost most first."""
    old = {row["text"]: acceptance.total([row]).share for row in before}
    now = {row["text"]: acceptance.total([row]).share for row in rows}
    lost = sorted(now, key=lambda text: now[text] - old[text])
    return ", ".join(f"{text} {100 * old[text]:.0f} -> {100 * now[text]:.0f} %" for text in lost)
