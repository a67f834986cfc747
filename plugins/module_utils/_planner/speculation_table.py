# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What loads of speculation measured: as the search reads them, and as rows of a table. Private. Pure functions only.

A row is an arm with what a token takes over the mix, and speed, acceptance and tokens per round of each kind of text
(docs/data_formats.md).
"""

from __future__ import annotations

import statistics
import typing as t

from .._base.types import Json, Mapping
from .._split import speculation
from .._split.speculation import Arm, ServedLoad, ShortAnswers, TextResult

if t.TYPE_CHECKING:
    from .speculation_search import Search


def served(load: Mapping) -> ServedLoad:
    """Return what a load measured. Raises KeyError naming a field that is missing."""
    arm = speculation.from_json(load["speculation"])
    rows: dict[str, list[Mapping]] = {}
    for row in load["results"]:
        rows.setdefault(row["kind"], []).append(row)
    results = tuple(
        TextResult(
            row["text"], row["tokens"], row["decode_ms"], row["drafted"], row["accepted"], tuple(row["positions"])
        )
        for row in rows.get("text", ())
    )
    prompt_ms = next((row["prompt_ms"] / row["prompt_tokens"] for row in rows.get("prompt", ())), 0.0)
    short = tuple(
        ShortAnswers(row["rounds"], row["drafts"], row["drafted"], row["decode_ms"]) for row in rows.get("short", ())
    )
    # of some kinds llama.cpp counts the tokens that are checked, though n-max are drafted
    draft_ms = next((row["draft_ms"] / _drafted(arm, row) for row in rows.get("drafting", ()) if row["drafted"]), 0.0)
    return ServedLoad(arm, results, prompt_ms, short, draft_ms)


def _drafted(arm: Arm, row: Mapping) -> float:
    return float(row["drafts"] * arm.n_max if arm.kind in speculation.WHOLE_DRAFTS else row["drafted"])


def rows(search: Search, loads: t.Sequence[Mapping], name: t.Callable[[Arm], str]) -> list[Json]:
    """Return one row per arm that was measured, in the order of measuring."""
    of_arm: dict[Arm, list[Mapping]] = {}
    for load in loads:
        of_arm.setdefault(speculation.from_json(load["speculation"]), []).append(load)
    return [_row(search, arm, own, name(arm)) for arm, own in of_arm.items()]


def with_arm(
    table: t.Sequence[Json], search: Search, loads: t.Sequence[Mapping], arm: Arm, name: str
) -> list[Json]:
    """Return a table with a row of C(arm): where it had no load of its own, as loads with longer drafts tell it."""
    if arm == Arm() or any(speculation.from_json(row) == arm for row in table):
        return list(table)
    family = [load for load in loads if speculation.from_json(load["speculation"]).family == arm.family]
    round_ms, tokens = search.costs.round_ms(arm).value, search.tokens_per_round(arm)
    return [*table, {
        **speculation.as_json(arm), "name": name, "layers": list(family[0]["layers"]), "loads": 0, "status": "ok",
        "reason": None, "ms_per_token": round(search.predicted(arm).value, 4),
        "prompt_tokens_per_second": _prompt_speed([served(load) for load in family if load["status"] == "ok"]),
        "tokens_per_second": {text: round(1000 * value / round_ms, 2) for text, value in tokens.items()},
        "acceptance": {text: round((value - 1) / arm.n_max, 4) for text, value in tokens.items()},
        "tokens_per_round": {text: round(value, 3) for text, value in tokens.items()},
    }]  # fmt: skip


def _row(search: Search, arm: Arm, loads: t.Sequence[Mapping], name: str) -> Json:
    good = [served(load) for load in loads if load["status"] == "ok"]
    bad = next((load for load in loads if load["status"] != "ok"), None)
    texts = {
        text: [found for load in good for found in load.results if found.text == text]
        for text in (search.weights if good else ())
    }
    return {
        **speculation.as_json(arm),
        "name": name,
        "layers": list(loads[0]["layers"]),
        "loads": len(loads),
        "status": "ok" if bad is None else bad["status"],
        "reason": None if bad is None else bad.get("reason"),
        "ms_per_token": round(statistics.fmean(map(search.mix_ms, good)), 4) if good else None,
        "prompt_tokens_per_second": _prompt_speed(good),
        "tokens_per_second": {
            text: round(1000 * _sum(found, "tokens") / _sum(found, "decode_ms"), 2) for text, found in texts.items()
        },
        "acceptance": {
            text: round(_sum(found, "accepted") / _sum(found, "drafted"), 4) if _sum(found, "drafted") else None
            for text, found in texts.items()
        },
        "tokens_per_round": {
            text: round(_sum(found, "tokens") / _sum(found, "rounds"), 3) for text, found in texts.items()
        },
    }


def _prompt_speed(loads: t.Sequence[ServedLoad]) -> float | None:
    prompts = [load.prompt_ms for load in loads if load.prompt_ms]
    return round(1000 / statistics.fmean(prompts), 2) if prompts else None


def _sum(found: t.Sequence[TextResult], name: str) -> float:
    return sum(float(getattr(result, name)) for result in found)
