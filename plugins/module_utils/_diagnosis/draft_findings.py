# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether text is slow because few drafted tokens are right. Private to this collection. Pure functions only."""

from __future__ import annotations

from .._base.types import Json, Mapping
from .._llama_cpp import speculation_flags
from .._split import acceptance
from .finding import finding

_CURE = (
    "homelab.mixed_gpu.revalidate tells whether another build changed it; if only your texts differ from the measured"
    " ones, set split_tuning_texts to yours and run site"
)


def drafts(metrics: str, baseline: Mapping | None) -> list[Json]:
    """Return what the counters of a server say of its drafts since its start, beside the baseline's C(acceptance).

    C(metrics) is the text of /metrics, read before anything was sent; nothing is said of a server that drafted nothing.
    """
    now = acceptance.Counted(*speculation_flags.counted(metrics))
    if not now.drafted or not now.drafts:
        return []
    detail = f"since the start of the server {100 * now.share:.0f} % of {now.drafted} drafted tokens were right"
    before = acceptance.total(baseline["rows"]) if baseline else acceptance.Counted(0, 0, 0)
    if not before.drafted:
        return [finding("speculation", "acceptance", "ok", detail, None)]
    detail += f", {100 * before.share:.0f} % with the texts of the baseline"
    if acceptance.difference(before, now).high >= 0:
        return [finding("speculation", "acceptance", "ok", detail, None)]
    more = 100 * (before.tokens_per_draft / now.tokens_per_draft - 1)
    slower = f"so text takes about {more:.0f} % more time than it did then, and no device is to blame"
    return [finding("speculation", "acceptance", "note", f"{detail}: {slower}", _CURE)]
