# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How fast the CPU computes experts in RAM, before that was measured for a model. Private. Pure functions only.

A token takes the bytes of its experts over what RAM reaches, and something for each block, whose work is handed to the
CPU and back. Nobody publishes either of a box, so there is a range: what published runs took. A user may say what RAM
reaches, and a host that was tuned with experts in RAM has measured it.
"""

from __future__ import annotations

import math
import typing as t

from .._base.types import Json, Mapping

#: How far what was measured with one model may be from another one's, to each side.
ERROR: t.Final = 0.25


class RamSpeed(t.NamedTuple):
    """10^9 bytes per second, and ms of each block besides: slow end and fast end of each, and the source."""

    gb_per_s: tuple[float, float]
    block_ms: tuple[float, float]
    source: str

    def ms(self, size: float, blocks: int) -> tuple[float, float]:
        """Return what a token takes that reads C(size) bytes of experts in C(blocks) blocks: fast and slow end."""
        slow, fast = (
            size / (rate * 1e6) + blocks * more for rate, more in zip(self.gb_per_s, self.block_ms, strict=True)
        )
        return fast, slow


USUAL: t.Final = RamSpeed(
    (40.0, 75.0), (1.0, 0.15),
    "RAM of 40 to 75 GB/s (two channels, DDR4-3200 to DDR5-5600) and 0.15 to 1 ms for each block, as in runs"
    " published from 2025-08 to 2026-02",
)  # fmt: skip


def middle(ends: tuple[float, float]) -> float:
    """Return what is expected between a fast and a slow end."""
    return math.sqrt(ends[0] * ends[1])


def known(given_gb_per_s: float, record: Mapping | None) -> Json | None:
    """Return C(ram_speed) of a problem's experts_in_ram: as given, as measured on the host, or None for the usual.

    C(given_gb_per_s): 0 where nothing is given. C(record): of the host (docs/data_formats.md), or None.
    """
    if given_gb_per_s > 0:
        rates = (given_gb_per_s, given_gb_per_s)
        slow, fast = USUAL.block_ms
        said = f"RAM of {given_gb_per_s:g} GB/s, as given, and {fast:g} to {slow:g} ms for each block"
        return RamSpeed(rates, USUAL.block_ms, said)._asdict()
    told = {}
    for name, entry in ({} if record is None else record["models"]).items():
        fit = entry["decision"].get("fit") or {}
        if fit.get("bytes_per_block_in_ram") and fit["decode_ms_per_block_in_ram"]:
            told[name] = (str(entry["recorded_at"]), fit)
    if not told:
        return None
    latest = max(told, key=lambda name: told[name][0])
    fit = told[latest][1]
    rate = fit["bytes_per_block_in_ram"] / fit["decode_ms_per_block_in_ram"] / 1e6
    said = f"RAM of {rate:.0f} GB/s, what {latest} measured on this host, give or take {ERROR:.0%}"
    return RamSpeed((rate * (1 - ERROR), rate * (1 + ERROR)), (0.0, 0.0), said)._asdict()


def of(experts_in_ram: Mapping | None) -> RamSpeed:
    """Return the speed that a problem's experts_in_ram tells."""
    told = (experts_in_ram or {}).get("ram_speed")
    return USUAL if told is None else RamSpeed(tuple(told["gb_per_s"]), tuple(told["block_ms"]), told["source"])
