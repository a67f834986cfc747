# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The table of what differs between the generations of ExLlama. Private to this collection. Pure functions only."""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.errors import UserError


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation of ExLlama, with the TabbyAPI that serves its models."""

    name: str  # value of exllamav2_engine
    package: str  # Python package, TabbyAPI's backend, and the engine's name in serving profiles
    module: str  # Python module that its extension is
    oldest_architecture: int  # compute capability without the dot
    server_commit: str  # of TabbyAPI
    environment: t.Mapping[str, str]
    environment_without_flash_attention: t.Mapping[str, str]


TABLE: t.Final[dict[str, Generation]] = {
    generation.name: generation
    for generation in (
        Generation(
            "v2", "exllamav2", "exllamav2_ext", 60,
            # the last commit that serves EXL2 (branch exl2-checkpoint, 2026-06-27)
            "79126f904c2e00aece026b36bb70bbb87e4892b2",
            # its attention by PyTorch alone (0.3.2, attn.py) lets a prompt see its own future; flash-attn or plain
            # products remain
            {"EXLLAMA_NO_SDPA": "1"},
            # without flash-attn the engine cannot batch, and TabbyAPI has to be told
            {"EXLLAMA_NO_FLASH_ATTN": "1"},
        ),
        # a commit of TabbyAPI's main (2026-08-13)
        Generation("v3", "exllamav3", "exllamav3_ext", 80, "e632af41eba68abeadc3437c62674360f2f8cbf1", {}, {}),
    )
}  # fmt: skip


def named(name: str) -> Generation:
    """Return a generation. Raises UserError for an unknown name."""
    if name not in TABLE:
        raise UserError(f"exllamav2_engine is {name!r}; set it to {' or '.join(TABLE)}.")
    return TABLE[name]
