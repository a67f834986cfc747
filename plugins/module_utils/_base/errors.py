# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one exception for what a user can put right. Private to this collection. Pure functions only."""

from __future__ import annotations


class UserError(ValueError):
    """A value, file or host that cannot be used; the message is one sentence with the value and the cure.

    Modules and filters catch this one class and show the message. Rooms derive from it only where a caller must tell
    two causes apart.
    """
