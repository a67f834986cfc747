# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether what a load keeps in RAM has room there, before anything is started. Private to this collection.

Reads the model's header and /proc/meminfo.
"""

from __future__ import annotations

import typing as t

from .._base import job
from .._base.errors import UserError
from .._measuring import outcome
from .._models import gguf_model
from . import expert_placement
from .types import Model


def shortage(
    model_path: str, experts: expert_placement.ExpertPlacement | None, draft_path: str = ""
) -> outcome.Verdict | None:
    """Return the Verdict over a load whose experts have no room in RAM, which would swap or be killed, or None.

    A draft keeps its token embedding there as well. Of a model that cannot be read the program itself says why.
    """
    if experts is None:
        return None
    try:
        model = gguf_model.read(gguf_model.files_of(model_path))
        draft = gguf_model.read(gguf_model.files_of(draft_path), draft=True) if draft_path else None
    except UserError:
        return None
    needed = expert_placement.ram_bytes(t.cast(Model, model), experts)
    needed += draft["token_embedding_bytes"] if draft else 0
    missing = expert_placement.ram_missing_mib(needed, job.available_memory_mib())
    if not missing:
        return None
    # in the words of outcome.out_of_memory, which names a full device so
    reason = f"out of memory: {missing} MiB more were wanted on CPU"
    return outcome.Verdict("out_of_memory", reason, [], [], None, True)


def missing_mib(model_path: str, device_mib: int) -> int:
    """Return the MiB of RAM that are missing for what a device of so much memory cannot hold of a model, or 0.

    Raises UserError for a model that cannot be read.
    """
    left = sum(size for _path, size, _mtime in gguf_model.files_of(model_path)) - device_mib * expert_placement.MIB
    return expert_placement.ram_missing_mib(left, job.available_memory_mib()) if left > 0 else 0
