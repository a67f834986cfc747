# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What systemd says of units. Private to this collection.

Only show acts on the host, for a module that it is given; the rest is pure.
"""

from __future__ import annotations

import re
import typing as t

from .errors import UserError

#: Values of ActiveState under which a service runs or is about to.
RUNNING: t.Final = ("active", "activating", "reloading")
#: The same, and a service that is about to end.
ACTIVE: t.Final = (*RUNNING, "deactivating")


def unit_name(name: str) -> str:
    """Return C(name) with C(.service) where it has no unit type."""
    return name if re.search(r"\.[a-z]+$", name) else f"{name}.service"


def units(text: str) -> list[dict[str, str]]:
    """Return the properties of each unit in the output of C(systemctl show).

    Of a property that is printed more than once (ExecStart, ExecStopPost) all values, joined by newlines.
    """
    found: list[dict[str, str]] = [{}]
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if not line:
            found.append({})
        elif equals:
            found[-1][name] = f"{found[-1][name]}\n{value}" if name in found[-1] else value
    return [unit for unit in found if unit]


def properties(text: str) -> dict[str, str]:
    """Return the properties of the one unit in the output of C(systemctl show)."""
    return next(iter(units(text)), {})


def show(module: t.Any, unit: str, *names: str) -> dict[str, str]:
    """Return properties of a unit. Raises UserError where systemd does not answer."""
    systemctl = module.get_bin_path("systemctl")
    if systemctl is None:
        raise UserError("there is no systemctl: this host must run systemd")
    rc, stdout, stderr = module.run_command([systemctl, "show", "-p", ",".join(names), unit])
    if rc != 0:
        raise UserError(
            f"systemd does not answer about {unit} ({stderr.strip() or stdout.strip()}): this host must run systemd"
        )
    return properties(stdout)
