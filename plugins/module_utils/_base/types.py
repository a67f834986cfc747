# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The shared aliases of types. Private to this collection.

A Json is a dict that a function makes; a Mapping is one that it only reads, whatever made it. What is in the dicts that
rooms pass to each other says _split/types.py.
"""

from __future__ import annotations

import typing as t

Json: t.TypeAlias = dict[str, t.Any]
Mapping: t.TypeAlias = t.Mapping[str, t.Any]
