# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of the host that a module runs on. Private to this collection."""

from __future__ import annotations

from .._base import json_file
from .._base.errors import UserError
from . import fact_record


def read(path: str = fact_record.PATH) -> fact_record.Record | None:
    """Return the host's recorded splits; None where there are none, or where the file is damaged."""
    text = json_file.read_text(path)
    try:
        return fact_record.FORM.parse(text, path) if text else None
    except UserError:
        return None
