# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which quants of a model a repository holds, by the names of its files. Private to this collection; pure."""

from __future__ import annotations

import os
import re
import typing as t

from .._base.errors import UserError
from . import file_names, gguf_file, gguf_kind, hub_api


class Quant(t.NamedTuple):
    """One model of a repository: what it is called, and its files in order."""

    name: str
    files: tuple[str, ...]


def of(every: t.Mapping[str, int], repo: str, wanted: str | None) -> list[Quant]:
    """Return the models among the files of a repository, the largest first.

    ``every``: size in bytes by name of a file. ``wanted``: the only quant to return, in any case of letters. A model
    that lacks a shard is left out where there are others. Raises UserError where there is none, or more than one of
    that quant.
    """
    raw = {name for names in file_names.raw_parts(every).values() for name in names}
    names = [name for name in every if name.endswith(".gguf") and name not in raw]
    found, faults = _grouped(sorted(gguf_kind.models_among(names)), every, repo)
    if not found:
        raise UserError(faults[0] if faults else f"{repo} has no GGUF file of a model: name another repository.")
    quants = sorted(_named(found), key=lambda quant: -sum(every[name] for name in quant.files))
    if wanted is None:
        return quants
    chosen = [quant for quant in quants if hub_api.has_quant(quant.files[0], wanted)]
    if not chosen:
        raise UserError(f"{repo} has no quant {wanted}: it has {', '.join(sorted(quant.name for quant in quants))}.")
    if len(chosen) > 1:
        firsts = ", ".join(quant.files[0] for quant in chosen)
        raise UserError(f"{repo} has {len(chosen)} models of quant {wanted} ({firsts}): name more of it as quant.")
    return chosen


def _grouped(
    names: t.Sequence[str], every: t.Container[str], repo: str
) -> tuple[list[tuple[str, ...]], list[str]]:
    """Return the files of each model, and a sentence for each that is not whole."""
    found: dict[str, tuple[str, ...]] = {}
    faults = []
    for name in names:
        try:
            shards = gguf_file.shard_paths(name)
        except UserError as exc:
            faults.append(f"{repo}: {exc}")
            continue
        missing = [shard for shard in shards if shard not in every]
        if missing:
            faults.append(f"{repo} lacks {missing[0]}, a part of {name}: name another revision or repository.")
        else:
            found[shards[0]] = tuple(shards)
    return list(found.values()), faults


def _named(models: t.Sequence[tuple[str, ...]]) -> list[Quant]:
    """Return the models by what tells them apart: the quant in the name, or else the whole name."""
    quants = [hub_api.named_quant(files[0]) for files in models]
    result = []
    for files, quant in zip(models, quants, strict=True):
        whole = re.sub(r"-00001-of-[0-9]{5}$", "", os.path.splitext(files[0])[0])
        alone = quant is not None and quants.count(quant) == 1
        result.append(Quant(quant if quant and alone else whole, files))
    return result
