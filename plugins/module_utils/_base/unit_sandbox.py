# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The user and the devices of a serving unit, for a program that is to run as the unit would run it.

Private to this collection. Pure functions only.
"""

from __future__ import annotations

import typing as t

#: Groups of character devices (/proc/devices) that a program on NVIDIA cards opens.
NVIDIA_NODES: t.Final = ("char-nvidia*",)

#: What the serving units with cards have in common about privileges. ProtectClock= alone filters devices already.
USER: t.Final = (
    "DynamicUser=yes",
    "UMask=0077",
    "NoNewPrivileges=yes",
    "CapabilityBoundingSet=",
    "AmbientCapabilities=",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallFilter=~@privileged",
    "SystemCallErrorNumber=EPERM",
    "ProtectSystem=strict",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "RemoveIPC=yes",
    "KeyringMode=private",
    "LimitCORE=0",
)


def device_properties(nodes: t.Sequence[str]) -> list[str]:
    """Return the properties that let a unit open these groups of device nodes and no others; none hides all devices."""
    if not nodes:
        return ["PrivateDevices=yes"]
    return ["DevicePolicy=closed", *(f"DeviceAllow={node} rw" for node in nodes)]


def command(systemd_run: str, properties: t.Sequence[str], program: t.Sequence[str]) -> list[str]:
    """Return the command that runs a program in a unit of these properties, with its output and exit status."""
    options = [word for value in properties for word in ("-p", value)]
    return [systemd_run, "--pipe", "--wait", "--collect", "--quiet", *options, "--", *program]
