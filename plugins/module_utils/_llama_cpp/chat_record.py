# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a start of a server was proved to answer, kept until the next boot. Private to this collection.

docs/data_formats.md describes the file.
"""

from __future__ import annotations

import os
import typing as t

from .._base import json_file, systemd
from .._base.types import Json, Mapping

SCHEMA: t.Final = 1


def path(unit: str, directory: str) -> str:
    """Return the file of a unit."""
    return os.path.join(directory, f"chats-{systemd.unit_name(unit)}.json")


def keep(unit: str, directory: str, invocation: str, chats: Mapping) -> None:
    """Keep what the proof of a start returned. Raises OSError where it cannot be written."""
    data = {"schema": SCHEMA, "invocation_id": invocation, "chats": {**chats, "proved_at": json_file.utc_now()}}
    json_file.write_text(path(unit, directory), json_file.to_text(data), 0o644, os.replace)


def kept(unit: str, directory: str, invocation: str) -> Json | None:
    """Return what is kept of a start with C(proved_at), or None; what is damaged is not known."""
    try:
        data = json_file.from_text(json_file.read_text(path(unit, directory)) or "")
    except (OSError, ValueError):
        return None
    right = isinstance(data, dict) and (data.get("schema"), data.get("invocation_id")) == (SCHEMA, invocation)
    chats = data.get("chats") if right else None
    return chats if isinstance(chats, dict) and isinstance(chats.get("line"), str) else None
