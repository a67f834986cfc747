# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The models that a host is to have: their files and sizes, and the checks about them. Private to this collection.

Pure functions. A check is a dict {name, ok, severity, detail, cure}, see host_checks.
"""

from __future__ import annotations

import posixpath
import re
import typing as t

from .._base.checks import check
from .._base.types import Json
from .._hardware import known_cards
from .._models import entries as llm_models
from .._models import model_shapes, random_model, random_shape

Check = dict[str, t.Any]

MIB: t.Final = 1 << 20


def read_models(entries: t.Sequence[t.Mapping[str, t.Any]], directory: str, sizes_mib: t.Mapping[str, t.Any]) -> Json:
    """Return what the entries of llm_models mean for a host: {directory, problems, unused_sizes, files, models}.

    `files` are all paths to look at; `models` has id, paths, kind and size_mib per model, where size_mib is what
    `sizes_mib` gives by id, or what the catalogue or a well-known file of that name has, or None. `problems` has a
    sentence per entry that is not understood and per size that is none, `unused_sizes` the ids of no entry.
    """
    files, problems = llm_models.understood(entries, directory)
    named = {str(entry["id"]) for entry in entries if isinstance(entry, t.Mapping) and "id" in entry}
    models = []
    for first in (file for file in files if file["first"]):
        name = first["id"]
        given = sizes_mib.get(name)
        if given is not None and not str(given).isdecimal():
            problems.append(f"The size of the model {name} is {given!r:.60}: give a whole number of MiB.")
            given = None
        paths = [file["path"] for file in files if file["id"] == name]
        bytes_each = [_wanted_bytes(file) for file in files if file["id"] == name]
        size = int(given) if given is not None else _published_mib(posixpath.basename(first["path"]))
        known = [count for count in bytes_each if count is not None]
        if given is None and len(known) == len(bytes_each):
            size = round(sum(known) / MIB)
        models.append({"id": name, "paths": paths, "kind": first["kind"], "size_mib": size})
    return {
        "directory": directory, "problems": problems, "files": [file["path"] for file in files], "models": models,
        "unused_sizes": [name for name in map(str, sizes_mib) if name not in named],
    }  # fmt: skip


def _wanted_bytes(file: t.Mapping[str, t.Any]) -> int | None:
    """Return the size of a file of llm_models in bytes, of a generated one what it needs on disk; None where unknown.
    """
    if file["kind"] != "generate":
        return t.cast("int | None", file["size_bytes"])
    return random_shape.random_model_bytes(random_model.checked_options(file["generate"]))


def _published_mib(name: str) -> int | None:
    """Return the size of a well-known file by its name, whatever its punctuation."""
    letters = _letters(name.removesuffix(".gguf"))
    for key, gigabytes in model_shapes.PUBLISHED_GB.items():
        if letters == _letters(f"{model_shapes.SHAPES[key].name} Q4_K_M"):
            return round(gigabytes * 1e9 / MIB)
    return None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def sizes(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Json]:
    """Return the models with the size of what is on the host, where all their files are there."""
    on_host = {file["path"]: file["size_bytes"] for file in host["files"]}
    found = []
    for model in wanted["models"]:
        bytes_each = [on_host.get(path) for path in model["paths"]]
        whole = None not in bytes_each
        size = sum(count for count in bytes_each if count) // MIB if whole else model["size_mib"]
        found.append({**model, "size_mib": size, "there": whole})
    return found


def entries(wanted: t.Mapping[str, t.Any], known: t.Sequence[Json]) -> list[Check]:
    """Return what is wrong with llm_models, before an hour of building."""
    found = []
    for sentence in wanted["problems"]:
        problem, _colon, cure = sentence.rstrip(".").rpartition(": ")
        found.append(check("models", False, "error", problem, cure))
    if wanted["unused_sizes"]:
        detail = f"a size is given for {', '.join(wanted['unused_sizes'])}, which no entry of llm_models has"
        found.append(check("models", False, "warning", detail, "correct the ids in host_preflight_model_sizes_mib"))
    missing = [model for model in known if model["kind"] == "path" and not model["there"]]
    return found + [
        check(
            "models",
            False,
            "error",
            f"{model['id']} is expected at {model['paths'][0]}, and not all of its files are there",
            "put them there, correct its path in llm_models, or give a url",
        )
        for model in missing
    ]


def _sizes_words(known: t.Sequence[Json]) -> str:
    return ", ".join(
        f"{model['id']} {'of unknown size' if model['size_mib'] is None else str(model['size_mib']) + ' MiB'}"
        for model in known
    )


def memory(host: t.Mapping[str, t.Any], known: t.Sequence[Json]) -> list[Check]:
    """Return whether the largest model stays cached in main memory, which makes loading it again quick."""
    if not known:
        return []
    largest = max((model["size_mib"] for model in known if model["size_mib"] is not None), default=None)
    if largest is None:
        return [check("memory for models", True, "note", f"not judged: {_sizes_words(known)}", None)]
    total = host["memory_total_mib"]
    unknown = [model for model in known if model["size_mib"] is None]
    detail = f"{total} MiB; {_sizes_words([model for model in known if model['size_mib'] == largest] + unknown)}"
    cure = (
        "every load, five to seven in a tuning, reads it from disk again; more memory than the largest model makes"
        " loads quick"
    )
    return [check("memory for models", total > largest, "warning", detail, cure)]


def disk_wanted(want: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any], known: t.Sequence[Json]) -> Json:
    """Return what is wanted of a path; in the models' directory at least the known sizes of the models."""
    if posixpath.normpath(want["path"]) != posixpath.normpath(wanted["directory"]):
        return dict(want)
    sizes = [model["size_mib"] or 0 for model in known if model["kind"] != "path"]
    return {**want, "needed_mib": max(want["needed_mib"], sum(sizes))}


def disk_of(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any] | None:
    """Return the disk of the models' directory, or None where it is not among those that were read."""
    pairs = zip(host["disks"], wanted["disk"], strict=True)
    return next((disk for disk, want in pairs if want["path"] == wanted["models"]["directory"]), None)


def slow_disk(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    """Return whether the models lie on a spinning disk."""
    disk = disk_of(host, wanted)
    if disk is None or disk["medium"] != "disk" or not known_cards.of_host(host):
        return []
    cure = "put the models on an SSD: a spinning disk reads 40 GB in three to five minutes, at each load"
    return [check("kind of disk", False, "warning", f"{disk['path']} lies on a spinning disk", cure)]
