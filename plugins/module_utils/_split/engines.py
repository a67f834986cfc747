# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The engines. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

Mapping = t.Mapping[str, t.Any]

#: engine -> what people call it.
NAMES: t.Final = {"llama_cpp": "llama.cpp", "exllamav2": "ExLlamaV2", "exllamav3": "ExLlamaV3"}
ENGINES: t.Final = ("exllamav2", "exllamav3")


def engine_of(serving: Mapping) -> str:
    """Return the engine of a serving profile; profiles without one are llama.cpp's."""
    return str(serving.get("engine", "llama_cpp"))


def engine_name(serving: Mapping) -> str:
    """Return what people call the engine of a serving profile."""
    return NAMES.get(engine_of(serving), engine_of(serving))
