# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""One check of a host, as preflight and diagnosis report it. Private to this collection. Pure functions only."""

from __future__ import annotations

from .types import Json


def check(name: str, ok: bool, severity: str, detail: str, cure: str | None) -> Json:
    """Return a check; what is ok needs no cure."""
    return {"name": name, "ok": ok, "severity": severity, "detail": detail, "cure": None if ok else cure}
