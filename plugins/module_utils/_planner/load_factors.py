# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What slows all tests of a load alike. Private to this collection. Pure functions only.

Heat, clocks and neighbours slow decoding and prompts of one load together. The two tests have fits of their own, so
where both lie above these the load was slow, and not its split. How much loads have in common shows itself: it is the
correlation within a class (Fisher) of the two deviations, over all loads, and a fifth of the variance before any tells.
"""

from __future__ import annotations

import math
import statistics
import typing as t

from .._split.layer_split import Layers
from . import hop_savings

if t.TYPE_CHECKING:
    from .evidence import Evidence

#: The share of the variance that is common to the tests of a load before loads tell, and for how many loads it counts.
USUAL_SHARE: t.Final = 0.2
USUAL_COUNTS: t.Final = 5
#: How many loads the two fits meet anyway: of what is left the correlation tells.
MET: t.Final = 2

#: How often the fit is made anew without what slowed loads: it is nearly settled then.
TURNS: t.Final = 2


def of_loads(deviations: t.Sequence[tuple[float, float]]) -> list[float]:
    """Return by how much each load was slow, as a logarithm; C(deviations) from the fit are those of its two tests."""
    together = sum(2 * one * other for one, other in deviations)
    each = sum(one**2 + other**2 for one, other in deviations)
    if not each:
        return [0.0] * len(deviations)
    count = max(0, len(deviations) - MET)
    share = max(0.0, (count * together / each + USUAL_COUNTS * USUAL_SHARE) / (count + USUAL_COUNTS))
    centre = statistics.fmean(one + other for one, other in deviations)
    return [share / (1 + share) * (one + other - centre) for one, other in deviations]


def of_evidence(evidence: Evidence) -> dict[tuple[Layers, int], float]:
    """Return by how much each load of the fitted splits was slow, by split and number; none without a fit of both."""
    if evidence.decode_fit is None or evidence.prefill_fit is None:
        return {}
    loads = [load for split in evidence.points for load in evidence.ok[split]]
    found = []
    for load in loads:
        decode, prefill = (
            (evidence.predicted(kind, load.layers) or 0.0) * hop_savings.factor(evidence, kind, load.layers)
            for kind in ("decode", "prefill")
        )
        if not decode or not prefill or not load.decode or not load.prefill:
            return {}
        found.append((math.log(load.decode / decode), math.log(load.prefill / prefill)))
    return {(load.layers, load.number): slow for load, slow in zip(loads, of_loads(found), strict=True)}
