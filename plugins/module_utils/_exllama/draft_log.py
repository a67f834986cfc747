# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What TabbyAPI's log says of a draft. Private to this collection. Pure functions only.

Its answers say nothing of drafts, and of ExLlamaV3 not even that there is one. Both backends log that they take a draft
(79126f90 "Loading draft model: PATH", e632af41 "Using draft model: PATH"). For each answer that of ExLlamaV3 logs
"Draft: A / B tokens accepted"; that of ExLlamaV2 does not.
"""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError

_LOADED: t.Final = re.compile(r"(?:Loading|Using) draft model:")
_MODEL_LOADED: t.Final = re.compile(r"Loading model:")
#: Long lines are broken where the console ends.
_COUNTED: t.Final = re.compile(r"Draft:\s+(\d+)\s+/\s+(\d+)\s+tokens\s+accepted")


def loaded(text: str) -> bool:
    """Return whether a log of one start says that it takes a draft."""
    return _LOADED.search(text) is not None


def check_served(text: str, path: str, unit: str) -> None:
    """Raise UserError where the log of a start tells of its model and of no draft; C(path) is the draft's folder.

    A log whose beginning is gone tells nothing.
    """
    if _MODEL_LOADED.search(text) is not None and not loaded(text):
        raise UserError(
            f"{unit} loaded its model without the draft {path}, which it is to serve with: see journalctl -u {unit} for"
            f" why, then restart it."
        )


def counts(text: str) -> bool:
    """Return whether a log counts the drafted tokens of any answer."""
    return _COUNTED.search(text) is not None


def counted(text: str, answers: int) -> tuple[int, int]:
    """Return drafted and accepted tokens of so many answers in a piece of the log; (0, 0) where not all are counted."""
    rows = [(int(found[2]), int(found[1])) for found in _COUNTED.finditer(text)]
    if len(rows) != answers:
        return 0, 0
    return sum(drafted for drafted, _accepted in rows), sum(accepted for _drafted, accepted in rows)
