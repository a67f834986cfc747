# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The settings of watchdog and notifier, a JSON file that the role writes. The module watchdog_plan makes it."""

from __future__ import annotations

import dataclasses
import json
import typing as t

PATH: t.Final = "/etc/mixed_gpu/watchdog.json"
STATE_DIR: t.Final = "/var/lib/mixed_gpu/watchdog"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What to watch, for how long nothing may move, and whom to tell. Times are seconds."""

    unit: str = "llama-server.service"
    url: str = "http://127.0.0.1:8080"
    peer_units: list[str] = dataclasses.field(default_factory=list)  # RPC servers of this host that the server uses
    #: Endpoints of other hosts that each recorded placement uses, the preferred one first, which uses all of them.
    lender_placements: list[list[str]] = dataclasses.field(default_factory=list)
    lender_protocol: str = ""  # that the server speaks, as major.minor; empty: not known
    lender_program: str = "/opt/mixed_gpu/lib/choose_placement.py"
    lease_unit: str = "mixed-gpu-lease.service"
    notify_unit: str = "mixed-gpu-notify@"
    stall_seconds: float = 60.0
    load_seconds: float = 3600.0
    poll_seconds: float = 5.0
    timeout_seconds: float = 5.0  # of one question to the server
    end_seconds: float = 15.0  # from SIGKILL to the end of the process
    return_seconds: float = 60.0  # a lender has to answer for so long before the server is restarted to use it
    restarts_per_hour: int = 3
    metrics_path: str = ""
    command: list[str] = dataclasses.field(default_factory=list)
    webhook_url: str = ""

    @property
    def lenders(self) -> list[str]:
        """Endpoints of other hosts that the server uses."""
        return next(iter(self.lender_placements), [])


def parse(text: str) -> Settings:
    """Return the settings in a JSON text. Raises ValueError naming what is wrong."""
    data = json.loads(text)
    if not isinstance(data, dict):
        raise ValueError("it is no object")
    try:
        found = Settings(**data)
    except TypeError as exc:
        raise ValueError(str(exc)) from exc
    for name, usual in dataclasses.asdict(Settings()).items():
        value = getattr(found, name)
        kinds = (int, float) if isinstance(usual, float) else (type(usual),)
        items = value if isinstance(value, list) else []
        if type(value) not in kinds or not all(isinstance(item, (str, list)) for item in items):
            raise ValueError(f"{name} is {value!r:.60}, which is no value like {usual!r}")
    return found


def read(path: str) -> Settings:
    """Return the settings in a file. Raises OSError, and ValueError naming what is wrong."""
    with open(path, encoding="utf-8") as file:
        return parse(file.read())
