# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The models of a host as lines of text: what is wanted, what is there, what it uses. Private. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Mapping
from . import catalogue, transfer

_HEAD = ("model", "state", "on disk", "size", "from")


def table(
    results: t.Sequence[Mapping], answers: t.Sequence[Mapping], store: Mapping, expected: t.Mapping[str, str] | None
) -> list[str]:
    """Return one line per model, then per directory that no entry names, the filesystem, and the catalogue.

    ``results``: of model_file with verify recorded, looped over model_files(). ``answers``: of hub_files, looped over
    hub_questions(). ``store``: of model_store_info. ``expected``: what each model of the catalogue would give here.
    """
    directories = {directory["name"]: directory for directory in store["directories"]}
    commits = {answer["item"]["id"]: answer for answer in answers}
    by_id: dict[str, list[Mapping]] = {}
    for result in results:
        by_id.setdefault(result["item"]["id"], []).append(result)
    rows = [_row(name, files, directories.get(name), commits.get(name)) for name, files in by_id.items()]
    for name, directory in directories.items():
        if name not in by_id:
            marks = _marks("not in llm_models", directory)
            rows.append((name, marks, transfer.size_text(directory["disk_bytes"]), "-", directory["path"]))
    used = sum(directory["disk_bytes"] for directory in directories.values())
    lines = _aligned([_HEAD, *rows]) if rows else [f"No models in llm_models, and none in {store['path']}."]
    lines.append(
        f"{store['filesystem']}: {transfer.size_text(used)} in {store['path']}, "
        f"{transfer.size_text(store['free_bytes'])} of {transfer.size_text(store['total_bytes'])} free"
    )
    offered = [(name, model) for name, model in catalogue.CATALOGUE.items() if name not in by_id]
    if offered:
        lines.append("In the catalogue (an entry of llm_models that is only the id):")
        told = expected or {}
        lines += _aligned([
            (
                name, transfer.size_text(model.size_bytes), f"{model.layers} layers",
                *([told.get(name, "-")] if told else []), _remarks(name, model),
            )
            for name, model in offered
        ])  # fmt: skip
    return lines


def _remarks(name: str, model: catalogue.Model) -> str:
    drafts = catalogue.drafts_of(name)
    return "; ".join(filter(None, (model.licence, f"drafts: {', '.join(drafts)}" if drafts else "", model.notes)))


def _row(
    name: str,
    files: t.Sequence[Mapping],
    directory: Mapping | None,
    answer: Mapping | None,
) -> tuple[str, ...]:
    item = files[0]["item"]
    there = [file for file in files if file["present"]]
    sizes = [file["size_bytes"] if file["size_bytes"] is not None else file["item"]["size_bytes"] for file in files]
    if not item["known"] and not there:
        state = "not asked for yet"
    elif len(there) < len(files):
        state = f"{len(there)} of {len(files)} files" if there else "missing"
    else:
        state = "complete" if all(file["sha256"] for file in files) else "not recorded, or changed since"
    if item["kind"] == "repo" and answer:
        commit = answer.get("commit")
        origin = f"{answer['item']['repo']}@{commit[:8] if commit else answer['item']['revision']}"
    else:
        origin = transfer.shown_url(item["url"]) if item["url"] else "made here" if item["generate"] else item["path"]
    on_disk = directory["disk_bytes"] if directory else sum(file["size_bytes"] or 0 for file in there)
    whole = None if None in sizes else sum(size for size in sizes if size is not None)
    return (
        name, _marks(state, directory), transfer.size_text(on_disk),
        "?" if whole is None else transfer.size_text(whole), origin,
    )  # fmt: skip


def _marks(state: str, directory: Mapping | None) -> str:
    words = [state]
    if directory:
        for key, word in (("unfinished_bytes", "unfinished"), ("set_aside_bytes", "set aside")):
            if directory[key]:
                words.append(f"{transfer.size_text(directory[key])} {word}")
        if directory["served"]:
            words.append("served")
    return ", ".join(words)


def _aligned(rows: t.Sequence[t.Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
