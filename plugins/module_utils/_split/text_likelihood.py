# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Do loads of an ExLlama find a fixed text equally likely? Private to this collection. Pure functions only.

Each load says what the model made of the text (docs/data_formats.md, C(answers)). Tokens alone accuse innocents: where
two are nearly as likely, another order of a sum decides. So the likelihood of the text is compared.
"""

from __future__ import annotations

import statistics
import typing as t

from .._base.types import Mapping

#: Two loads of one model differ by less, in nats a token: a sum in another order, by other kernels or on other cards,
#: moves a token by some hundredths to either side, and the mean of a hundred by some thousandths. One wrong layer, or
#: one card that returns noise, moves the mean by whole nats. 0.02 nats are 2 % of the perplexity.
TOLERANCE_NATS: t.Final = 0.02


def usable(loads: t.Iterable[Mapping], text: str) -> list[float]:
    """Return the nats per token of the loads that judged this text (a hash of its tokens), where they are a number."""
    said = [load["answers"] for load in loads if load.get("answers")]
    return [one["nats_per_token"] for one in said if one["text"] == text and one["nats_per_token"] is not None]


def difference(before: t.Sequence[Mapping], now: t.Sequence[Mapping]) -> str:
    """Return a sentence where a load of C(now) finds the text less or more likely than those of C(before), else "".

    Empty also where either says nothing of the text.
    """
    today = [load for load in now if load.get("answers")]
    for load in today:
        found = load["answers"]["nats_per_token"]
        if found is None:
            return f"{load['label']}: the likelihood of a fixed text is no number"
        known = usable(before, load["answers"]["text"])
        if known and abs(found - statistics.median(known)) > TOLERANCE_NATS:
            return (
                f"{load['label']}: a fixed text takes {found:.3f} nats a token instead of"
                f" {statistics.median(known):.3f}, which is more than rounding explains ({TOLERANCE_NATS})"
            )
    return ""
