# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one exception for what a user can put right. Private to this collection. Pure functions only."""

from __future__ import annotations

import contextlib
import typing as t


class UserError(ValueError):
    """A value, file or host that cannot be used; the message is one sentence with the value and the cure.

    Modules and filters catch this one class and show the message. Rooms derive from it only where a caller must tell
    two causes apart.
    """


@contextlib.contextmanager
def explained(role: str, failed: str, given: str = "settings") -> t.Iterator[None]:
    """Raise UserError for what ends the work of a module that a role starts with its variables.

    C(failed) says what cannot be done here, C(given) what of the role may lack a variable.
    """
    try:
        yield
    except KeyError as exc:
        raise UserError(f"The {given} lack {exc}: pass all variables of the role {role}.") from exc
    except OSError as exc:
        reason = f"{exc.filename}: {exc.strerror}" if exc.filename else (exc.strerror or str(exc))
        raise UserError(f"{failed} ({reason}); correct that, and run the play as root.") from exc
