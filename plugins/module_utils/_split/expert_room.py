# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the experts of a load have room in RAM, before anything is started. Private to this collection.

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


def shortage(model_path: str, experts: expert_placement.ExpertPlacement | None) -> outcome.Verdict | None:
    """Return the Verdict over a load whose experts have no room in RAM, which would swap or be killed, or None.

    Of a model that cannot be read the program itself says why.
    """
    if experts is None:
        return None
    try:
        model = gguf_model.read(gguf_model.files_of(model_path))
    except UserError:
        return None
    needed = expert_placement.ram_bytes(t.cast(Model, model), experts)
    missing = expert_placement.ram_missing_mib(needed, job.available_memory_mib())
    if not missing:
        return None
    # in the words of outcome.out_of_memory, which names a full device so
    reason = f"out of memory: {missing} MiB more were wanted on CPU"
    return outcome.Verdict("out_of_memory", reason, [], [], None, True)
