# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""All deployments of a host's record, side by side. Private to this collection. Pure functions only."""

from __future__ import annotations

from .._base.text import number
from .._base.types import Json, Mapping
from .._split import deployment
from .recorded import engine_name, model_name, when
from .words import placement_words


def rows(recorded: Mapping | None) -> list[Json]:
    """Return a row per deployment as text, in order of their names; empty where there is one alone.

    C(recorded) is the result of split_record with C(state=query); C(served) is the active one, C(here) the one that
    was asked for.
    """
    models = ((recorded or {}).get("record") or {}).get("models") or {}
    if recorded is None or len(models) < 2:
        return []
    return [
        {"name": name, "served": name == recorded["active"], "here": name == recorded["deployment"], **_row(entry)}
        for name, entry in sorted(models.items())
    ]


def _row(recorded: Mapping) -> Json:
    entry = deployment.expand(recorded)
    return {
        "model": model_name(entry),
        "engine": engine_name(entry),
        "context": str(entry["serving"]["context_size"]),
        "placement": placement_words(entry),
        "rate": number(entry["decision"].get("decode_tokens_per_second")),
        "recorded_at": when(entry["recorded_at"]),
    }
