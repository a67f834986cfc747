# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What llama-server's counters say about its progress. Pure functions only.

Of /metrics the counters are read, requests_processing and requests_deferred. The other gauges are means since the last
scrape, and a scrape resets them. The server prints six significant digits: from a million on a counter seems to stand
still while it moves. /slots counts exactly, but wakes a sleeping server, so it is asked only where that cannot be:
while requests are in processing, and the counters are too coarse.
"""

from __future__ import annotations

import re
import typing as t

PROCESSING: t.Final = "requests_processing"
DEFERRED: t.Final = "requests_deferred"
#: Counters that move while the server computes; a build may lack some of them.
COUNTERS: t.Final = (
    "n_decode_total",
    "prompt_tokens_total",
    "prompt_tokens_cached_total",
    "tokens_predicted_total",
    "spec_decode_num_draft_tokens_total",
)
#: From here on the six digits that are printed hide a step of one.
COARSE_FROM: t.Final = 1_000_000.0
_SAMPLE: t.Final = re.compile(r"^llamacpp:([A-Za-z0-9_]+) +(\S+)", re.MULTILINE)


class Reading(t.NamedTuple):
    """One answer of /metrics."""

    processing: int  # requests; where no slot has one, those that wait for a slot
    counters: tuple[str, ...]  # as printed: equal texts mean that no progress is visible
    coarse: bool  # whether a counter of decodes may move without being seen


def of_metrics(text: str) -> Reading | None:
    """Return what an answer of /metrics says; None where it is no llama-server's."""
    found = dict(_SAMPLE.findall(text))
    try:
        # requests that wait for a slot while no slot is busy are as stuck as one in a slot
        processing = int(float(found[PROCESSING])) or int(float(found.get(DEFERRED, "0")))
        decodes = float(found["n_decode_total"])
    except (KeyError, ValueError, OverflowError):
        return None
    return Reading(processing, tuple(found.get(name, "") for name in COUNTERS), decodes >= COARSE_FROM)


def of_slots(slots: t.Any) -> tuple[str, ...]:
    """Return what moves in an answer of /slots (parsed JSON); empty where it is none."""
    if not isinstance(slots, list):
        return ()
    return tuple(_of_slot(slot) for slot in slots if isinstance(slot, dict) and slot.get("is_processing"))


def _of_slot(slot: t.Mapping[str, t.Any]) -> str:
    token = slot.get("next_token")
    if isinstance(token, list):
        token = token[0] if token else {}
    decoded = token.get("n_decoded") if isinstance(token, dict) else None
    return f"{slot.get('id')}/{slot.get('id_task')}: {slot.get('n_prompt_tokens_processed')} + {decoded}"
