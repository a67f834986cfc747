# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Entries of the variable llm_models: the files that each model needs, and what is known of them. Pure functions.

What is wrong is said of all entries at once, in one sentence each: WrongEntries.
"""

from __future__ import annotations

import hashlib
import os
import re
import typing as t
import urllib.parse

from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import catalogue, file_names, gguf_file, hub_api, random_model, random_shape
from .transfer import check_sha256, check_url, shown_url, size_text

# What an entry of `llm_models` may be. A further kind is one more key here, and one more branch in model_files().
KINDS = ("url", "shards", "path", "generate", "repo")
HUB_KEYS = ("revision", "files", "quant", "size_bytes")
_TYPES: t.Final[dict[str, tuple[type, str]]] = {
    **dict.fromkeys(("url", "path", "repo", "revision", "quant", "sha256", "draft_for"), (str, "text, in quotes")),
    **dict.fromkeys(("shards", "files"), (list, "list")), "generate": (dict, "dict"),
}  # fmt: skip


class WrongEntries(UserError):
    """What is wrong with entries of llm_models, as sentences."""

    def __init__(self, sentences: t.Sequence[str]) -> None:
        super().__init__(" ".join(sentences))
        self.sentences = list(sentences)


def _remote_file(identifier: str, shard: Mapping, directory: str) -> Json:
    url = shard.get("url") or ""
    check_url(url)
    if not shard.get("sha256"):
        raise UserError(f"The model {identifier} has no sha256 for {shown_url(url)}: add it.")
    name = urllib.parse.unquote(os.path.basename(urllib.parse.urlsplit(url).path))
    owner = f"The URL of the model {identifier}"
    parts = file_names.raw_parts([name])
    if parts:
        file_names.refuse_raw_parts(parts, owner, "")
    if not name.endswith(".gguf") or "/" in name:
        raise UserError(
            f"The model {identifier} is to come from {shown_url(url)}, which is no .gguf file: correct it."
        )
    file_names.check_name(name, owner)
    sha256 = check_sha256(shard["sha256"], f"The model {identifier}")
    return {"kind": "url", "path": os.path.join(directory, identifier, name), "url": url, "sha256": sha256}


def _remote_files(identifier: str, shards: t.Sequence[Mapping], directory: str) -> list[Json]:
    files, wrong = [], []
    for shard in shards:
        try:
            files.append(_remote_file(identifier, shard, directory))
        except UserError as exc:
            wrong.append(str(exc))
    if wrong:
        raise WrongEntries(wrong)
    paths = [file["path"] for file in files]
    try:
        expected = gguf_file.shard_paths(paths[0])
    except UserError as exc:
        raise UserError(f"The model {identifier}: {exc}") from exc
    if paths != expected:
        missing = [os.path.basename(path) for path in expected if path not in paths]
        raise UserError(
            f"The files of the model {identifier} are not the shards of one model in order"
            f"{' (' + ', '.join(missing) + ' missing)' if missing else ''}: list every shard once, from 00001 on."
        )
    return files


def entry_kind(entry: Mapping) -> tuple[str, Json, str]:
    """Return ``(id, entry, kind)`` of one entry of ``llm_models``, taken from the catalogue where it is only an id.

    Raises UserError on an entry that is not understood.
    """
    identifier = _identifier(entry)
    unknown = sorted(map(str, set(entry) - {"id", "sha256", "draft_for", *KINDS, *HUB_KEYS}))
    wrong = [
        f"The model {identifier} has the unknown key{'s' if len(unknown) > 1 else ''} {', '.join(unknown)}: known are"
        f" id, sha256, draft_for, {', '.join([*KINDS, *HUB_KEYS])}."
    ] if unknown else []
    given = {key: value for key, value in entry.items() if value is not None}
    wrong += _wrong_types(identifier, given)
    if wrong:
        raise WrongEntries(wrong)
    if set(given) <= {"id", "draft_for"} and identifier in catalogue.CATALOGUE:
        given = {**given, **catalogue.CATALOGUE[identifier].entry()}
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) != 1:
        words = " and ".join(kinds) or "none"
        known = "" if kinds else f", or name one of the catalogue ({', '.join(sorted(catalogue.CATALOGUE))})"
        raise UserError(
            f"The model {identifier} needs exactly one of {', '.join(KINDS)}, and has {words}: correct it{known}."
        )
    kind = kinds[0]
    strange = [key for key in HUB_KEYS if key in given and kind != "repo"]
    strange += ["sha256"] if "sha256" in given and kind not in ("url", "path", "repo") else []
    if strange:
        raise UserError(f"The model {identifier} has {', '.join(strange)}, which {kind} does not use: remove it.")
    if "sha256" in given and kind != "url":
        given["sha256"] = check_sha256(given["sha256"], f"The model {identifier}")
    return identifier, given, kind


def _identifier(entry: t.Any) -> str:
    """Return the id of an entry. Raises UserError for what has none."""
    if not isinstance(entry, t.Mapping):
        raise UserError(f"An entry of llm_models is {entry!r:.60}: give a dict with an id, such as {{id: my_model}}.")
    identifier = entry.get("id")
    if not isinstance(identifier, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", identifier):
        quotes = "" if isinstance(identifier, str) else ", in quotes"
        raise UserError(
            f"An entry of llm_models has the id {identifier!r:.120}: use letters, digits, dots, hyphens and "
            f"underscores, at most 100{quotes}."
        )
    return identifier


def _wrong_types(identifier: str, given: Mapping) -> t.Iterator[str]:
    """Yield what has another type than it must have: YAML takes 4.0 for a number and a hash of digits, too."""
    for key, value in given.items():
        kind, word = _TYPES.get(key, (object, ""))
        if not isinstance(value, kind):
            yield f"The model {identifier} has the {key} {value!r:.120}: give a {word}."
        elif key in ("url", "path") and not str(value).isprintable():
            yield f"The {key} of the model {identifier} has a character that cannot be shown: correct it."
    shards = given.get("shards")
    for shard in shards if isinstance(shards, list) else ():
        if not isinstance(shard, t.Mapping):
            yield f"The model {identifier} has the shard {shard!r:.120}: give a dict of url and sha256."
        else:
            yield from _wrong_types(identifier, {key: value for key, value in shard.items() if value is not None})


def hub_questions(entries: t.Sequence[Mapping]) -> list[Json]:
    """Return what is to be asked of the hub for the entries of ``llm_models``: id and options of hub_files.

    Raises UserError on an entry that is not understood.
    """
    checked = [entry_kind(entry) for entry in entries]
    return [_question(identifier, given) for identifier, given, kind in checked if kind == "repo"]


def _question(identifier: str, given: Mapping) -> Json:
    question = {
        "id": identifier, "repo": given["repo"], "revision": given.get("revision", "main"),
        "files": list(given.get("files", [])), "quant": given.get("quant"), "sha256": given.get("sha256"),
        "size_bytes": given.get("size_bytes"),
    }  # fmt: skip
    try:
        hub_api.check_request(question["repo"], question["revision"], question["files"], question["quant"])
        file_names.check_size(question["size_bytes"], f"its entry for {question['repo']}")
    except UserError as exc:
        raise UserError(f"The model {identifier}: {exc}") from exc
    return question


def _hub_model(
    question: Mapping, answer: Mapping | None, directory: str
) -> list[Json]:
    """Return the files of a repository: those of a model side by side, those of a folder as they lie in it."""
    identifier = question["id"]
    directory = os.path.join(directory, identifier)
    if answer is None or not answer.get("available", True):
        names = question["files"] if len(question["files"]) == 1 and not set(question["files"][0]) & set("*?[") else []
        name = os.path.basename(names[0]) if names else f"{identifier}.gguf"
        size_bytes = question["size_bytes"]
        return [{"kind": "repo", "path": os.path.join(directory, name), "size_bytes": size_bytes, "known": False}]
    folder = answer["format"] == "folder"
    return [
        {
            "kind": "repo", "path": os.path.join(directory, file["name"] if folder else os.path.basename(file["name"])),
            "url": file.get("url"), "sha256": file["sha256"], "git_sha1": file["git_sha1"],
            "size_bytes": file["size_bytes"], "model_path": directory if folder else None, "gguf": not folder,
        }
        for file in answer["files"]
    ]  # fmt: skip


def model_files(
    entries: t.Sequence[Mapping], directory: str, answers: t.Sequence[Mapping] = ()
) -> list[Json]:
    """Return every file that the entries of ``llm_models`` need, in order.

    ``answers``: results of hub_files looped over hub_questions(). Each file has ``id``, ``kind`` (url, path, generate,
    repo), ``path`` on the host, ``first`` (whether it is the model's first file), ``model_path`` (what an engine is
    given: the first file, or the folder), ``gguf``, ``known`` (false while the hub was not asked: the path is a guess
    then), ``url``, ``sha256``, ``git_sha1``, ``size_bytes`` and ``generate`` (options of random_gguf); None where there
    is none. Raises WrongEntries on entries that are not understood.
    """
    files, wrong = understood(entries, directory, answers)
    if wrong:
        raise WrongEntries(wrong)
    return files


def understood(
    entries: t.Sequence[Mapping], directory: str, answers: t.Sequence[Mapping] = ()
) -> tuple[list[Json], list[str]]:
    """Return the files of the entries that are understood, as model_files, and sentences about all others."""
    files: list[Json] = []
    wrong: list[str] = []
    asked = {answer["item"]["id"]: answer for answer in answers}
    named = [str(entry["id"]) for entry in entries if isinstance(entry, t.Mapping) and "id" in entry]
    wrong += [
        f"Two entries of llm_models have the id {name}: rename one."
        for name in dict.fromkeys(named) if named.count(name) > 1
    ]  # fmt: skip
    for one in entries:
        try:
            identifier, entry, kind = entry_kind(one)
            found = _entry_files(identifier, entry, kind, directory, asked.get(identifier))
        except UserError as exc:
            wrong += exc.sentences if isinstance(exc, WrongEntries) else [str(exc)]
            continue
        empty = {
            "url": None, "sha256": None, "git_sha1": None, "size_bytes": None, "generate": None, "gguf": True,
            "known": True,
        }  # fmt: skip
        draft_for = entry.get("draft_for")
        if draft_for is None and not {key for key in one if one[key] is not None} - {"id"}:
            draft_for = catalogue.target_of(identifier, named)
        for index, file in enumerate(found):
            path = file.get("model_path") or found[0]["path"]
            of_entry = {"id": identifier, "draft_for": draft_for, "first": index == 0}
            files.append({**of_entry, **empty, **file, "model_path": path})
    return files, [*wrong, *_wrong_drafts(files, named)]


def _entry_files(
    identifier: str, entry: Mapping, kind: str, directory: str, answer: Mapping | None
) -> list[Json]:
    """Return the files of one entry. Raises UserError on one that is not understood."""
    if kind == "url":
        return _remote_files(identifier, [entry], directory)
    if kind == "shards":
        if not entry["shards"]:
            raise UserError(f"The model {identifier} has an empty list of shards: fill it.")
        return _remote_files(identifier, entry["shards"], directory)
    if kind == "generate":
        return [_generated(identifier, entry["generate"], directory)]
    if kind == "repo":
        question = _question(identifier, entry)
        found = answer or hub_api.pinned(question, question["sha256"], question["size_bytes"])
        return _hub_model(question, found, directory)
    return _local_files(identifier, entry)


def _generated(identifier: str, options: Mapping, directory: str) -> Json:
    """Return the file of a model with random weights. Raises UserError for a shape that cannot be."""
    strange = sorted(map(str, set(options) - set(random_shape.RANDOM_OPTIONS)))
    if strange:
        raise UserError(
            f"The model {identifier} is to be generated with the unknown option {', '.join(strange)}: known are "
            f"{', '.join(random_shape.RANDOM_OPTIONS)}."
        )
    try:
        random_model.checked_options(options)
    except UserError as exc:
        raise UserError(f"The model {identifier} cannot be generated: {str(exc).rstrip('.')}.") from exc
    path = os.path.join(directory, identifier, f"{identifier}.gguf")
    return {"kind": "generate", "path": path, "generate": dict(options)}


def _wrong_drafts(files: t.Sequence[Mapping], named: t.Sequence[str]) -> t.Iterator[str]:
    """Yield a sentence per draft of a model that no entry has, or of itself."""
    for identifier, target in {file["id"]: file["draft_for"] for file in files}.items():
        if target is not None and (target not in named or target == identifier):
            others = ", ".join(name for name in dict.fromkeys(named) if name != identifier) or "no other"
            yield (
                f"The model {identifier} is a draft for {target}, which no other entry of llm_models has: name one of"
                f" {others}."
            )


def _local_files(identifier: str, entry: Mapping) -> list[Json]:
    path, sha256 = entry["path"], entry.get("sha256")
    if not os.path.isabs(path):
        raise UserError(f"The path {path} of the model {identifier} is not absolute: give the whole path.")
    try:
        paths = gguf_file.shard_paths(os.path.normpath(path))
    except UserError as exc:
        raise UserError(f"The model {identifier}: {exc}") from exc
    if sha256 is not None and len(paths) > 1:
        raise UserError(
            f"The model {identifier} has {len(paths)} shards, and one sha256 cannot be that of all: remove it."
        )
    return [{"kind": "path", "path": each, "sha256": sha256} for each in paths]


def installed_models(results: t.Iterable[Mapping]) -> dict[str, Json]:
    """Return ``{id: {path, sha256, size_bytes, draft_for}}`` from results of model_file, one per item of model_files().

    ``results``: dicts with ``item`` (the entry of model_files), ``sha256``, ``size_bytes``. Of a model that is not
    there yet it says what is known: the SHA-256 may be empty and the size None. The SHA-256 of a model of several files
    is that of their hashes, one a line.
    """
    by_id: dict[str, list[Mapping]] = {}
    for result in results:
        by_id.setdefault(result["item"]["id"], []).append(result)
    installed = {}
    for identifier, files in by_id.items():
        hashes = [file.get("sha256") or "" for file in files]
        sizes = [file.get("size_bytes") for file in files]
        lines = "".join(f"{value}\n" for value in hashes)
        whole = hashes[0] if len(hashes) == 1 else hashlib.sha256(lines.encode()).hexdigest()
        installed[identifier] = {
            "path": files[0]["item"]["model_path"],
            "sha256": whole if all(hashes) else "",
            "size_bytes": None if None in sizes else sum(size for size in sizes if size is not None),
            "draft_for": files[0]["item"].get("draft_for"),
        }
    return installed


def pending_files(results: t.Iterable[Mapping], read_again: bool) -> list[Json]:
    """Return the entries of model_files() that are not there yet, or were not recorded as they are, from a first look.

    ``results`` as for installed_models(), with ``present``. With ``read_again`` also those that can only be known by
    reading them; models that were generated are none of them.
    """
    return [
        dict(item)
        for item, result in ((result["item"], result) for result in results)
        if item["known"]
        and not (result.get("present") and result.get("sha256") and (not read_again or item["kind"] == "generate"))
    ]


def disk_shortfall(results: t.Iterable[Mapping]) -> str:
    """Return one sentence when what is still missing does not fit on its filesystem all together, or an empty string.

    ``results``: dicts with ``item``, ``missing_bytes`` (None when unknown), ``free_bytes`` and ``filesystem``.
    """
    by_filesystem: dict[str, list[Mapping]] = {}
    for result in results:
        if result.get("missing_bytes"):
            by_filesystem.setdefault(result["filesystem"], []).append(result)
    for filesystem, missing in by_filesystem.items():
        needed = sum(result["missing_bytes"] for result in missing)
        free = min(result["free_bytes"] for result in missing)
        if needed > free:
            names = sorted({result["item"]["id"] for result in missing})
            return (
                f"{filesystem} has {size_text(free)} free, and {', '.join(names)} still "
                f"{'needs' if len(names) == 1 else 'need'} {size_text(needed)}: free {size_text(needed - free)}, or "
                "choose another directory."
            )
    return ""
