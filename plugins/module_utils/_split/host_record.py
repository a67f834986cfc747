# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The record of the host that a module runs on. Private to this collection."""

from __future__ import annotations

from .._base.errors import UserError
from . import fact_record


def read(path: str) -> fact_record.Record:
    """Return the host's recorded splits, an empty record where there is no file.

    Raises UserError for a damaged file, OSError for one that cannot be read.
    """
    return fact_record.FORM.read(path) or fact_record.empty()


def usable(path: str = fact_record.PATH) -> fact_record.Record:
    """Return the same, and an empty record for a file that is damaged or cannot be read, too."""
    try:
        return read(path)
    except (OSError, UserError):
        return fact_record.empty()
