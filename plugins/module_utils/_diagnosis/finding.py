# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One finding of a diagnosis. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json

#: What a finding can be, worst last.
SEVERITIES: t.Final = ("ok", "note", "problem")


def finding(subject: str, kind: str, severity: str, detail: str, cure: str | None) -> Json:
    """Return one finding: about whom, which kind, C(ok), C(note) or C(problem), a sentence, what to do."""
    return {"subject": subject, "kind": kind, "severity": severity, "detail": detail, "cure": cure}
