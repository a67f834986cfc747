# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the Hugging Face hub's answers mean: which files are a model, what is recorded of them, what a refusal asks for.

Private to this collection. Pure functions only, standard library only: the modules do the input and output.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import typing as t
import urllib.parse

from .._base import json_state
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import file_names, gguf_file, gguf_kind
from .file_names import check_name

OFFICIAL = "https://huggingface.co"
#: Where the role llm_models is given a token.
TOKEN_PLACE: t.Final = "llm_models_hub_token (in ansible-vault)"

# all with fullmatch: $ would let a line end pass
_REPO = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*(?:/[A-Za-z0-9_+-][A-Za-z0-9._+-]*)*")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_QUANT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_HASHES = {"sha256": re.compile(r"[0-9a-f]{64}"), "git_sha1": re.compile(r"[0-9a-f]{40}")}
_NAMED_QUANT = re.compile(r"(?:^|[-._/])((?:UD-)?(?:IQ|Q|TQ|MXFP)\d\w*|BF16|F16|FP16|F32)(?=[-./]|$)", re.IGNORECASE)


# ---- names -----------------------------------------------------------------------------------------------------------


def is_commit(revision: str) -> bool:
    """Whether a revision is a whole commit hash, which always names the same files."""
    return _COMMIT.fullmatch(revision) is not None


def check_request(repo: str, revision: str, patterns: t.Sequence[str], quant: str | None) -> None:
    """Raise UserError unless a repository's files can be asked for in these words."""
    if not isinstance(repo, str) or not _REPO.fullmatch(repo):
        raise UserError(f"{repo!r} is no repository of the hub: write owner/name, as the head of its page shows it.")
    if not isinstance(revision, str) or not _REVISION.fullmatch(revision):
        raise UserError(f"{revision!r} is no revision of {repo}: give a branch, a tag, or a commit hash.")
    if patterns and quant:
        raise UserError(f"Both files and quant are given for {repo}: give one of them.")
    if quant and not (isinstance(quant, str) and _QUANT.fullmatch(quant)):
        raise UserError(f"{quant!r} is no quant name such as Q4_K_M: correct the quant of {repo}.")
    for pattern in patterns:
        check_name(pattern, repo)
    named = [pattern for pattern in patterns if not set(pattern) & set("*?")]
    parts = file_names.raw_parts(named)
    if parts:
        file_names.refuse_raw_parts(parts, repo, "")
    file_names.check_together(named, repo)


def file_url(endpoint: str, repo: str, commit: str, name: str) -> str:
    """Return where the hub at ``endpoint`` serves a file of a commit."""
    return f"{endpoint.rstrip('/')}/{repo}/resolve/{urllib.parse.quote(commit, safe='')}/{urllib.parse.quote(name)}"


def repo_page(url: str) -> tuple[str, str]:
    """Return ``(endpoint, owner/name)`` of an URL that file_url() made, or empty strings for another URL."""
    parts = urllib.parse.urlsplit(url.split("/resolve/", 1)[0])
    repo = parts.path.strip("/")
    if "/resolve/" not in url or not _REPO.fullmatch("/".join(repo.split("/")[-2:])):
        return "", ""
    owner_name = "/".join(repo.split("/")[-2:])
    prefix = f"/{repo}"[: -len(owner_name) - 1]
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{prefix}", owner_name


# ---- which files -----------------------------------------------------------------------------------------------------


def _models(names: t.Iterable[str], every: t.Collection[str], repo: str) -> list[list[str]]:
    """Group GGUF files into models: one file each, or all shards in order. Raises UserError when a shard is missing."""
    found: dict[str, list[str]] = {}
    grouped: set[str] = set()
    for name in sorted(names):
        if name in grouped:
            continue
        try:
            shards = gguf_file.shard_paths(name)
        except UserError as exc:
            raise UserError(f"{repo}: {exc}") from exc
        missing = [shard for shard in shards if shard not in every]
        if missing:
            raise UserError(f"{repo} lacks {missing[0]}, a part of {name}: choose another revision or repository.")
        found.setdefault(shards[0], shards)
        grouped.update(shards)
    return list(found.values())


def select(every: t.Collection[str], patterns: t.Sequence[str], quant: str | None, repo: str) -> tuple[str, list[str]]:
    """Return ``(format, names)`` of the files that are asked for: ``gguf``, one model, or ``folder``.

    ``every``: all names in the repository. ``patterns``: names, or shell patterns over the whole name. ``quant``: as in
    the files' names, in any case. Without both it is the only GGUF model of the repository, or what an engine reads of
    the whole repository where it has none. One shard stands for all of its model. Raises UserError, with what there is
    to choose from.
    """
    parts = file_names.raw_parts(every)
    raw = {name for names in parts.values() for name in names}
    ggufs = [name for name in every if name.endswith(".gguf") and name not in raw]
    offered = gguf_kind.models_among(ggufs)
    if quant:
        chosen = [name for name in offered if has_quant(name, quant)]
        asked_parts = {base: names for base, names in parts.items() if has_quant(base, quant)}
        what = f"quant {quant}"
    elif patterns:
        chosen = _matched(every, patterns, repo, _choice(offered or every))
        asked_parts = {base: names for base, names in parts.items() if set(names) & set(chosen)}
        chosen = [name for name in chosen if name not in raw]
        if not any(name.endswith(".gguf") for name in chosen):
            if asked_parts:
                file_names.refuse_raw_parts(asked_parts, repo, _choice(ggufs) if ggufs else "")
            return "folder", sorted(set(chosen))
        strange = next((name for name in chosen if not name.endswith(".gguf")), None)
        if strange:
            raise UserError(f"The files of {repo} mix GGUF with {strange}: make two entries of them.")
        chosen = gguf_kind.models_among(chosen) or chosen
        what = "files"
    elif not ggufs:
        return "folder", _whole(every, parts, repo)
    else:
        chosen = offered
        what, asked_parts = "repository", parts
    models = _models(chosen, set(every), repo)
    if len(models) == 1:
        return "gguf", models[0]
    if not models and asked_parts:
        file_names.refuse_raw_parts(asked_parts, repo, _choice(ggufs) if ggufs else "")
    if not offered and ggufs:
        shown = f"{', '.join(sorted(ggufs)[:3])}{', ...' if len(ggufs) > 3 else ''}"
        raise UserError(f"{repo} has only parts of a model ({shown}): name the repository that has the model itself.")
    if not models:
        raise UserError(f"{repo} has no GGUF file of {what}: {_choice(offered)}.")
    firsts = ", ".join(model[0] for model in models[:6]) + (", ..." if len(models) > 6 else "")
    raise UserError(f"{repo} has {len(models)} models of that {what} ({firsts}): name one with quant or files.")


def _matched(every: t.Collection[str], patterns: t.Sequence[str], repo: str, choice: str) -> list[str]:
    """Return the names that patterns name. A name that is there means itself, also with brackets in it.

    A pattern matches what engines read; what it is not for has to be named. Raises UserError.
    """
    chosen = []
    for pattern in patterns:
        if pattern in every:
            matched = [pattern]
        else:
            fitting = [name for name in every if fnmatch.fnmatchcase(name, pattern)]
            raw = {name for names in file_names.raw_parts(fitting).values() for name in names}
            matched = [
                name for name in fitting
                if name in raw or name.endswith(".gguf") or file_names.is_for_engines(name)
            ]  # fmt: skip
        if not matched:
            raise UserError(f"{repo} has no file {pattern}: {choice}.")
        chosen += matched
    return chosen


def _whole(every: t.Collection[str], parts: t.Mapping[str, t.Sequence[str]], repo: str) -> list[str]:
    """Return what an engine reads of a repository without GGUF. Raises UserError where that is no model."""
    names = sorted(name for name in every if file_names.is_for_engines(name))
    weights = any(name.lower().endswith(".safetensors") for name in names)
    in_parts = {b: n for b, n in parts.items() if not weights or b.lower().endswith((".gguf", ".safetensors"))}
    if in_parts:
        file_names.refuse_raw_parts(in_parts, repo, "")
    if every and not weights:
        raise UserError(
            f"{repo} has neither GGUF nor safetensors files ({_choice(every)}), which is what the engines read: choose "
            "another repository or revision."
        )
    return names


def named_quant(name: str) -> str | None:
    """Return the quant that the name of a GGUF file tells, such as Q4_K_M, in capitals; None where it tells none."""
    found = [match[1].upper() for match in _NAMED_QUANT.finditer(name.removesuffix(".gguf"))]
    return found[-1] if found else None


def has_quant(name: str, quant: str) -> bool:
    """Whether the name of a GGUF file has this quant in it, in any case: UD-Q4_K_XL is found by Q4_K_XL, too."""
    named = re.compile(rf"(?:^|[-._/]){re.escape(quant)}(?=[-./]|$)", re.IGNORECASE)
    return named.search(name.removesuffix(".gguf")) is not None


def _choice(names: t.Collection[str]) -> str:
    quants = sorted({match[1].upper() for name in names for match in _NAMED_QUANT.finditer(name.removesuffix(".gguf"))})
    if quants:
        return f"it has the quants {', '.join(quants)}"
    shown = sorted(names)[:10]
    return f"it has {', '.join(shown)}{', ...' if len(names) > len(shown) else ''}" if shown else "it is empty"


# ---- what is recorded ------------------------------------------------------------------------------------------------


def record_name(repo: str, revision: str, patterns: t.Sequence[str], quant: str | None) -> str:
    """Return the file name of the record of a question: readable, and one for each question."""
    question = json.dumps([repo, revision, sorted(patterns), (quant or "").lower()])
    return f"{repo.replace('/', '--')}-{hashlib.sha256(question.encode()).hexdigest()[:12]}.hub.json"


def record(
    question: Mapping, commit: str, every: t.Sequence[Mapping], endpoint: str, at: str
) -> Json:
    """Return what is recorded of the hub's answer. Raises UserError where it does not fit the question.

    ``question``: dict with repo, revision, files, quant. ``every``: all files of the commit, dicts with name,
    size_bytes, sha256 (None for a file outside of LFS) and git_sha1 (None for a file in LFS).
    """
    repo = question["repo"]
    by_name: dict[str, Mapping] = {}
    for file in every:
        if not isinstance(file, t.Mapping) or "name" not in file:
            raise UserError(f"{repo} lists a file without a name: the hub's answer cannot be used; use another hub.")
        if check_name(file["name"], repo) in by_name:
            raise UserError(f"{repo} lists the file {file['name']} twice: the hub's answer cannot be used.")
        by_name[file["name"]] = file
    format_, names = select(by_name, question["files"], question["quant"], repo)
    if not names:
        raise UserError(f"{repo} has no files at {question['revision']}: correct the repository or the revision.")
    file_names.check_together(names, repo)
    made = {
        "schema": FORM.schema, "repo": repo, "revision": question["revision"],
        "asked": {"files": list(question["files"]), "quant": question["quant"]}, "commit": commit, "format": format_,
        "files": [dict(by_name[name]) for name in names], "endpoint": endpoint, "recorded_at": at,
    }  # fmt: skip
    try:
        _check(made)
    except UserError as exc:
        said = f"The hub at {endpoint} says nothing that can be used of {repo}"
        raise UserError(f"{said} ({exc}): use another one.") from exc
    return made


def _check(found: Json) -> None:
    """Raise UserError with what is wrong with a record."""
    if not isinstance(found.get("commit"), str) or not is_commit(found["commit"]):
        raise UserError("it has no commit")
    if found.get("format") not in ("gguf", "folder") or not isinstance(found.get("files"), list) or not found["files"]:
        raise UserError("it has no files")
    try:
        for file in found["files"]:
            check_name(file["name"], "it")
            hashes = {key: file[key] for key in _HASHES if file[key] is not None}
            sound = all(isinstance(value, str) and _HASHES[key].fullmatch(value) for key, value in hashes.items())
            if not hashes or not sound or not file_names.is_size(file["size_bytes"]):
                raise UserError(f"it has no hash or size of {file['name']}")
        file_names.check_together([file["name"] for file in found["files"]], "it")
    except UserError as exc:
        raise UserError(str(exc).rstrip(".")) from exc
    except (KeyError, TypeError, AttributeError) as exc:
        raise UserError("one of its files is not understood") from exc


FORM: t.Final = json_state.Form(1, "run the role llm_models again: the hub is asked again", _check)


def read_record(text: str, path: str) -> Json:
    """Return a record from its text. Raises UserError with the cure when it is damaged."""
    try:
        return FORM.parse(text, path)
    except UserError as exc:
        raise UserError(f"{exc}.") from exc


def pinned(question: Mapping, sha256: str | None, size_bytes: int | None) -> Json | None:
    """Return the answer to a question that contains it: one file of a commit with its SHA-256; else None."""
    files = question["files"]
    if not (sha256 and is_commit(question["revision"]) and len(files) == 1) or set(files[0]) & set("*?["):
        return None
    file = {"name": files[0], "size_bytes": size_bytes, "sha256": sha256, "git_sha1": None}
    return {**question, "commit": question["revision"], "format": "gguf" if files[0].endswith(".gguf") else "folder",
            "files": [file]}  # fmt: skip


# ---- refusals --------------------------------------------------------------------------------------------------------


def token_problem(endpoint: str) -> str | None:
    """Say why a token must not be sent to an endpoint, or return None."""
    parts = urllib.parse.urlsplit(endpoint)
    if parts.scheme == "https" or parts.hostname in ("127.0.0.1", "::1", "localhost"):
        return None
    return f"{endpoint} has no TLS, and a token sent there could be read by others: use https, or remove the token"


def refusal(
    endpoint: str, repo: str, revision: str, status: int, code: str, token: bool, place: str = TOKEN_PLACE
) -> str | None:
    """Return what a refusal of the hub means and asks for, in one clause; None when nothing is known beyond the status.

    ``code`` is its header X-Error-Code, ``token`` whether one was sent, ``place`` where it is given.
    """
    page = f"{endpoint}/{repo}"
    if code == "GatedRepo" and not token:
        return (
            f"{repo} is gated: log in at {page}, accept its terms there, make a token that may read gated repositories "
            f"at {endpoint}/settings/tokens, and put it into {place}"
        )
    if code == "GatedRepo":
        return (
            f"the account of the token has no access to {repo} yet: log in at {page} with it and accept the terms "
            "(some owners then have to agree), and see that the token may read gated repositories"
        )
    if status == 401 and token:
        return f"the token is not accepted: make a new one at {endpoint}/settings/tokens for {place}"
    if code == "RevisionNotFound":
        return f"{repo} has no revision {revision}: {page}/tree/main lists its branches and tags"
    if code == "EntryNotFound":
        return f"{repo} has no such file at {revision}: see {page}/tree/{revision}"
    if code == "RepoNotFound" or status in (401, 404):
        return (
            f"there is no repository {repo}, or it is private: check the name, or put a token that may read it into "
            f"{place}"
        )
    if status == 403:
        return f"access to {repo} is refused: see {page}, and whether the token may read it"
    return None
