# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Stored results of measuring a running llama-server, a file per deployment. Private to this collection. Pure code.

docs/data_formats.md describes the file. Results belong to what was recorded and to where its layers are, so a new
campaign measures again.
"""

from __future__ import annotations

import typing as t

from .._base import json_file
from .._base.types import Json, Mapping
from .._split import deployment

SCHEMA: t.Final = 1
#: What is stored of a test that was asked for.
TEST_KEYS: t.Final = ("name", "prompt_tokens", "generated_tokens", "repetitions")
#: What a deployment has that was not measured.
NOTHING: t.Final[Json] = {"tests": [], "power": None, "context_per_slot": None, "measured_at": None}


def configuration(entry: Mapping) -> Json:
    """Return what identifies a recorded deployment as served. Raises KeyError for an entry that lacks it."""
    return {
        "fingerprint": entry["fingerprint"],
        "campaign": entry["campaign"],
        "split_mode": entry["split_mode"],
        "layers": deployment.layers(entry),
    }


def read(text: str, entry: Mapping) -> Json | None:
    """Return the stored results of an entry, or None where they are of another configuration.

    Raises ValueError when the text is damaged or of another schema.
    """
    stored = json_file.from_text(text)
    known = isinstance(stored, dict) and stored.get("schema") == SCHEMA
    if not known or not isinstance(stored.get("tests"), list):
        raise ValueError(f"it is not a result of schema {SCHEMA}")
    return stored if stored.get("configuration") == configuration(entry) else None


def covers(stored: Mapping, tests: t.Sequence[Mapping], power_tokens: int) -> bool:
    """Return whether stored results answer what is asked for."""

    def asked(rows: t.Iterable[Mapping]) -> list[list[t.Any]]:
        return [[row[key] for key in TEST_KEYS] for row in rows]

    return asked(stored["tests"]) == asked(tests) and stored.get("power_tokens") == power_tokens
