# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sentences about speculation. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.text import less_time
from .._base.types import Json, Mapping
from .._split import speculation
from .._split.layer_split import split_name
from .._split.speculation import Arm

if t.TYPE_CHECKING:
    from .speculation_search import Verdict
    from .speculation_stage import Stage

#: What a llama-server says that does not know a flag, or a kind.
_UNKNOWN: t.Final = ("invalid argument", 'handling argument "--spec')
#: What llama.cpp aborts with that gives an EAGLE-3 head no inputs of blocks of the model's architecture (b11312).
_NOTHING_TO_READ: t.Final = "layer input tensor"


def why(stage: Stage, verdict: Verdict, row: Mapping | None) -> str:
    """Return what became of speculation, and why, in one sentence."""
    refused = "".join(f"; {reason}" for reason in stage.refused)
    if verdict.verdict == "not_tried":
        return f"speculation was not tried: {_obstacle(stage)}{refused if stage.failed else ''}"
    if verdict.verdict == "slower" or row is None or verdict.comparison is None:
        best = _best(stage.table)
        tried = f": the best, {best['name']}, takes {_percent(best, stage.table)}" if best else ""
        return f"speculation is not faster here{tried}{_ended(stage)}{refused}"
    result = verdict.comparison
    size, word, interval = less_time(*result[:3])
    takes, sure = f"{row['name']} takes {size} % {word} time", f" (95 % interval {interval} %)" if interval else ""
    if verdict.verdict != "faster":
        return f"speculation is not kept: {takes}{sure}, which is not sure enough{_ended(stage)}{refused}"
    plain = next(row for row in stage.table if row["kind"] == speculation.NONE)
    speeds = ", ".join(
        f"{text} {row['tokens_per_second'][text]:.1f} instead of {plain['tokens_per_second'][text]:.1f}"
        for text in row["tokens_per_second"]
    )
    losers = [text for text, speed in row["tokens_per_second"].items() if speed < plain["tokens_per_second"][text]]
    loses = f"; it loses on {' and '.join(losers)}" if losers else ""
    return f"{takes}{sure} than no speculation: {speeds} tokens/s{loses}{_ended(stage)}{refused}"


def moved(decision: Mapping, kept: Mapping) -> str:
    """Return why another split or split mode is served with drafts than without."""
    where, without = split_name(kept["layers"]), split_name(decision["layers"])
    if kept["split_mode"] != decision["split_mode"]:
        told = f"with drafts split mode {kept['split_mode']} is faster ({where})"
    else:
        told = f"{where} instead of {without} leaves the draft its room"
    return f"{told}. Without a draft: {decision['why']}"


def _obstacle(stage: Stage) -> str:
    if stage.failed:
        return _end_of(stage, stage.failed[-1])
    if stage.refused:
        return "; ".join(stage.refused)
    if set(stage.question.kinds) <= {"draft-mtp"}:
        return "the model has no MTP blocks: take a file that was converted with them"
    return "the inventory names no draft (draft_for), and the model has no MTP blocks"


def _ended(stage: Stage) -> str:
    return "".join(f"; {_end_of(stage, load)}" for load in stage.failed)


def nothing_to_read(load: Mapping) -> bool:
    """Return whether a load failed since llama.cpp reads nothing for an EAGLE-3 head in the model's architecture."""
    return load["speculation"]["kind"] == "draft-eagle3" and _NOTHING_TO_READ in str(load.get("reason"))


def _end_of(stage: Stage, load: Mapping) -> str:
    """Return how a load ended, with what to do where a build is too old or a head cannot draft."""
    reason = str(load.get("reason") or "").rstrip(".")
    if nothing_to_read(load):
        architecture = stage.question.problem.raw["model"]["architecture"]
        return (
            f"{load['speculation']['draft']} cannot draft for this model: llama.cpp gives an EAGLE-3 head nothing to"
            f" read in the architecture {architecture}, so take a small model as draft"
        )
    if any(words in reason for words in _UNKNOWN):
        return f"this llama-server has no such speculation ({reason}): update llama.cpp to b11312 or later"
    return f"{load['label']} ended as {load['status']} ({reason})"


def _best(table: t.Sequence[Json]) -> Json | None:
    tried = [row for row in table if row["kind"] != speculation.NONE and row["ms_per_token"]]
    return min(tried, key=lambda row: float(row["ms_per_token"]), default=None)


def _percent(row: Mapping, table: t.Sequence[Json]) -> str:
    plain = next(row for row in table if row["kind"] == Arm().kind)
    size, word, _interval = less_time(100 * (1 - row["ms_per_token"] / plain["ms_per_token"]))
    return f"{size} % {word} time"
