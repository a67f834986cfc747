# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The version of this collection, for what hosts record. Private to this collection.

A module on a host has neither galaxy.yml nor MANIFEST.json; a unit test compares the two.
"""

from __future__ import annotations

import typing as t

COLLECTION: t.Final = "0.1.0"
