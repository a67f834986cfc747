# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Decisions of downloads: which files a model needs, what to ask a server for, what its answer means, what is recorded.

Private to this collection. Pure functions only: the modules do the input and output.
"""

from __future__ import annotations

import collections
import hashlib
import os
import re
import typing as t
import urllib.parse
from dataclasses import dataclass

from . import catalogue, gguf_file, hub_api

MANIFEST_SCHEMA = 1
MAXIMUM_WAIT_SECONDS = 30.0
MAXIMUM_ASKED_WAIT_SECONDS = 600.0       # the hub counts requests over five minutes
SYSTEM_CA_BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
RETRIED_STATUSES = frozenset({408, 425, 429, 500, 502, 503, 504})

_SHA256 = re.compile(r"^[0-9a-f]{64}$")
_CONTENT_RANGE = re.compile(r"^bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)$")


class DownloadError(Exception):
    """A download that cannot go on, phrased for the operator in one sentence."""


# ---- names and figures for people ----------------------------------------------------------------------------------


def shown_url(url: str) -> str:
    """Return a URL without what may be secret in it: user, password, query."""
    parts = urllib.parse.urlsplit(url)
    host = parts.hostname or ""
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{host}{port}{parts.path}"


def check_url(url: str) -> None:
    """Raise DownloadError unless the URL is http or https, names a host, and its path ends in a file name."""
    readable = re.sub(r"//[^/@]*@", "//", url.split("?", 1)[0])
    try:
        parts = urllib.parse.urlsplit(url)
        host, _port = parts.hostname, parts.port
    except ValueError as exc:
        raise DownloadError(f"{readable} is no URL ({exc}): correct it.") from exc
    if parts.scheme not in ("http", "https") or not host:
        raise DownloadError(
            f"{readable!r} is no http or https URL: give one, or name a file that is already on the host by its path."
        )
    if not os.path.basename(parts.path):
        raise DownloadError(f"{shown_url(url)} names no file: give the whole URL of the file.")


def size_text(n_bytes: float) -> str:
    """Return a size as people read it: ``393 MiB``, ``39.6 GiB``."""
    if n_bytes < 1 << 20:
        return f"{n_bytes / 1024:.0f} KiB"
    if n_bytes < 10 << 30:
        return f"{n_bytes / (1 << 20):.0f} MiB"
    return f"{n_bytes / (1 << 30):.1f} GiB"


def duration_text(seconds: float) -> str:
    """Return a duration as people read it: ``40 s``, ``12 min``, ``2 h 5 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def progress_line(what: str, done: int, total: int | None, bytes_per_second: float) -> str:
    """Return one line of progress: bytes, share, rate and time left, short enough for a terminal of 80 columns."""
    start = f"{what}: " if what else ""
    rate = f"{size_text(bytes_per_second)}/s" if bytes_per_second > 0 else "stalled"
    if not total:
        return f"{start}{size_text(done)}, {rate}"
    line = f"{start}{size_text(done)} of {size_text(total)} ({100 * done // total} %), {rate}"
    if bytes_per_second > 0 and done < total:
        line += f", {duration_text((total - done) / bytes_per_second)} left"
    return line


class Rate:
    """Bytes per second over the last ``window_seconds``."""

    def __init__(self, window_seconds: float = 10.0) -> None:
        self._window = window_seconds
        self._points: collections.deque[tuple[float, int]] = collections.deque()

    def add(self, now: float, done: int) -> float:
        """Take in how much was done at ``now`` (seconds, monotonic) and return the rate."""
        if self._points and done < self._points[-1][1]:
            self._points.clear()                      # began again
        self._points.append((now, done))
        while len(self._points) > 2 and now - self._points[0][0] > self._window:
            self._points.popleft()
        (first, start), (last, end) = self._points[0], self._points[-1]
        return (end - start) / (last - first) if last > first else 0.0


def wait_seconds(attempt: int, first_seconds: float, retry_after: str | None = None) -> float:
    """Return the pause before the next attempt: doubling, at least what the server asks for, both bounded."""
    wait = min(first_seconds * 2 ** (attempt - 1), MAXIMUM_WAIT_SECONDS)
    if retry_after is not None and retry_after.isascii() and retry_after.isdigit():
        wait = max(wait, min(float(retry_after), MAXIMUM_ASKED_WAIT_SECONDS))
    return wait


# ---- ranges ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """What to do with a server's answer.

    ``action``: ``write`` the body from ``offset`` on (0: begin again), ``complete`` (nothing is missing), ``discard``
    what is there and ask again, ``retry`` later, or ``refuse`` for good. ``reason`` is set for the last three.
    ``total``: size of the whole file, when the server names it.
    """

    action: str
    offset: int = 0
    total: int | None = None
    reason: str = ""


def part_state(url: str, wanted: str, headers: t.Mapping[str, str], total: int | None) -> dict[str, t.Any]:
    """Return what is kept beside a partial file, so that a later run knows what it holds a part of.

    ``wanted``: SHA-256 of the whole content, or the SHA-1 of its git blob, which are of different lengths.
    """
    return {
        "url": shown_url(url),
        "sha256": wanted,
        "etag": headers.get("ETag"),
        "last_modified": headers.get("Last-Modified"),
        "total_bytes": total,
    }


def can_resume(state: t.Any, wanted: str) -> bool:
    """Whether a partial file may be continued: only if it was begun for the same content."""
    return isinstance(state, dict) and state.get("sha256") == wanted


def range_headers(url: str, offset: int, state: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return the request headers that continue at ``offset``; none when there is nothing to continue.

    If-Range makes the server send the whole file when it has changed. Weak ETags are not allowed there (RFC 9110,
    13.1.5), and another server's validators mean nothing to this one; the final SHA-256 is the judge in any case.
    """
    if not offset:
        return {}
    headers = {"Range": f"bytes={offset}-"}
    if state.get("url") == shown_url(url):
        etag = state.get("etag")
        validator = etag if etag and not etag.startswith("W/") else state.get("last_modified")
        if validator:
            headers["If-Range"] = validator
    return headers


def judge_answer(
    url: str,
    status: int,
    headers: t.Mapping[str, str],
    offset: int,
    known_total: int | None = None,
    token: bool = False,
) -> Answer:
    """Decide what to do with a response to a request that continued at ``offset`` (0: asked for the whole file).

    ``token``: whether an access token was sent.
    """
    name = shown_url(url)
    match = _CONTENT_RANGE.match(headers.get("Content-Range", ""))
    ranged_total = int(match[3]) if match and match[3] != "*" else None
    if status == 200:
        length = headers.get("Content-Length", "")
        return Answer("write", 0, int(length) if length.isdigit() else None)
    if status == 206:
        if match is None or match[1] is None or int(match[1]) != offset:
            return Answer("discard", reason=f"{name} answered with another range than the one asked for")
        if known_total is not None and ranged_total is not None and known_total != ranged_total:
            return Answer("discard", reason=f"{name} has changed its size")
        return Answer("write", offset, ranged_total if ranged_total is not None else known_total)
    if status == 416 and offset:
        if ranged_total == offset:
            return Answer("complete", offset, ranged_total)
        return Answer("discard", reason=f"{name} cannot be continued at byte {offset}")
    if status in RETRIED_STATUSES:
        return Answer("retry", reason=f"{name} answered with HTTP status {status}")
    cures = {
        401: "it wants a login: choose a file that can be downloaded without one",
        403: "access is refused: check the URL, and whether its licence must be accepted or its link has expired",
        404: "there is no such file: check the URL",
        410: "the file is gone: find its new URL",
        416: "it refuses every range: check the URL, or the proxy in between",
    }
    endpoint, repo = hub_api.repo_page(url)
    revision = url.split("/resolve/", 1)[-1].split("/", 1)[0]
    code = headers.get("X-Error-Code", "")
    refusal = hub_api.refusal(endpoint, repo, revision, status, code, token) if repo and (code or token) else None
    cure = refusal or cures.get(status, "check the URL")
    return Answer("refuse", reason=f"{name} answered with HTTP status {status}, {cure}.")


def judge_size(answer: Answer, name: str, size_bytes: int | None) -> Answer:
    """Refuse to write what cannot become the wanted file, whose size is known."""
    if answer.action != "write" or None in (size_bytes, answer.total) or answer.total == size_bytes:
        return answer
    return Answer("refuse", reason=(
        f"{name} has {answer.total} bytes, and {size_bytes} were expected: the server has another file by that name; "
        "use another mirror, or correct the entry."
    ))  # fmt: skip


# ---- manifests -------------------------------------------------------------------------------------------------------


class Digest(t.NamedTuple):
    """Hashes of a file: SHA-256, and the SHA-1 that git gives it as a blob where that was asked for."""

    sha256: str
    git_sha1: str | None = None

    def meets(self, wanted: str | None) -> bool:
        """Whether this is the content with the hash ``wanted``; None is any content."""
        return wanted in (None, self.sha256, self.git_sha1)


def manifest_name(path: str) -> str:
    """Return the file name of the manifest of ``path`` (absolute): readable, and one for each path."""
    return f"{os.path.basename(path)}-{hashlib.sha256(path.encode()).hexdigest()[:12]}"


def manifest(
    path: str,
    digest: Digest,
    size_bytes: int,
    mtime_ns: int,
    inode: int,
    source: t.Mapping[str, t.Any],
) -> dict[str, t.Any]:
    """Return what is recorded about a file whose hashes were computed."""
    return {
        "schema": MANIFEST_SCHEMA,
        "path": path,
        "sha256": digest.sha256,
        **({"git_sha1": digest.git_sha1} if digest.git_sha1 else {}),
        "size_bytes": size_bytes,
        "mtime_ns": mtime_ns,
        "inode": inode,
        "source": dict(source),
    }


def describes(recorded: t.Any, size_bytes: int, mtime_ns: int, inode: int) -> bool:
    """Whether a manifest still describes the file with these properties, so that its SHA-256 may be believed."""
    if not isinstance(recorded, dict):
        return False
    seen = (recorded.get("schema"), recorded.get("size_bytes"), recorded.get("mtime_ns"), recorded.get("inode"))
    return (
        seen == (MANIFEST_SCHEMA, size_bytes, mtime_ns, inode)
        and isinstance(recorded.get("sha256"), str)
        and _SHA256.match(recorded["sha256"]) is not None
    )


# ---- models ----------------------------------------------------------------------------------------------------------

# What an entry of `llm_models` may be. A further kind is one more key here, and one more branch in model_files().
KINDS = ("url", "shards", "path", "generate", "repo")
HUB_KEYS = ("revision", "files", "quant", "size_bytes")


def _name_in_url(url: str) -> str:
    return urllib.parse.unquote(os.path.basename(urllib.parse.urlsplit(url).path))


def check_sha256(value: str, owner: str) -> str:
    """Return the SHA-256 in lower case, or raise DownloadError."""
    value = value.lower()
    if not _SHA256.match(value):
        raise DownloadError(f"{owner} has the SHA-256 {value!r}, which is not 64 hexadecimal digits: correct it.")
    return value


def _remote_files(identifier: str, shards: t.Sequence[t.Mapping[str, t.Any]], directory: str) -> list[dict[str, t.Any]]:
    files = []
    for shard in shards:
        url = shard.get("url") or ""
        check_url(url)
        if not shard.get("sha256"):
            raise DownloadError(f"The model {identifier} has no sha256 for {shown_url(url)}: add it.")
        name = _name_in_url(url)
        if not name.endswith(".gguf") or "/" in name:
            raise DownloadError(
                f"The model {identifier} is to come from {shown_url(url)}, which is no .gguf file: correct it."
            )
        path = os.path.join(directory, identifier, name)
        sha256 = check_sha256(shard["sha256"], f"The model {identifier}")
        files.append({"kind": "url", "path": path, "url": url, "sha256": sha256})
    paths = [file["path"] for file in files]
    try:
        expected = gguf_file.shard_paths(paths[0])
    except gguf_file.GgufError as exc:
        raise DownloadError(f"The model {identifier}: {exc}") from exc
    if paths != expected:
        missing = [os.path.basename(path) for path in expected if path not in paths]
        raise DownloadError(
            f"The files of the model {identifier} are not the shards of one model in order"
            f"{' (' + ', '.join(missing) + ' missing)' if missing else ''}: list every shard once, from 00001 on."
        )
    return files


def entry_kind(entry: t.Mapping[str, t.Any]) -> tuple[str, dict[str, t.Any], str]:
    """Return ``(id, entry, kind)`` of one entry of ``llm_models``, taken from the catalogue where it is only an id.

    Raises DownloadError on an entry that is not understood.
    """
    identifier = entry.get("id")
    if not isinstance(identifier, str) or not re.match(r"^[A-Za-z0-9][A-Za-z0-9._-]*$", identifier):
        raise DownloadError(
            f"An entry of llm_models has the id {identifier!r}: use letters, digits, dots, hyphens and underscores."
        )
    unknown = sorted(set(entry) - {"id", "sha256", *KINDS, *HUB_KEYS})
    if unknown:
        raise DownloadError(
            f"The model {identifier} has the unknown key {unknown[0]}: known are id, sha256, "
            f"{', '.join([*KINDS, *HUB_KEYS])}."
        )
    given = {key: value for key, value in entry.items() if value is not None}
    if set(given) == {"id"} and identifier in catalogue.CATALOGUE:
        given = {"id": identifier, **catalogue.CATALOGUE[identifier].entry()}
    kinds = [kind for kind in KINDS if kind in given]
    if len(kinds) != 1:
        words = " and ".join(kinds) or "none"
        known = "" if kinds else f", or name one of the catalogue ({', '.join(sorted(catalogue.CATALOGUE))})"
        raise DownloadError(
            f"The model {identifier} needs exactly one of {', '.join(KINDS)}, and has {words}: correct it{known}."
        )
    kind = kinds[0]
    if "sha256" in given and kind not in ("url", "path", "repo"):
        raise DownloadError(f"The model {identifier} has a sha256, which {kind} does not use: remove it.")
    if "sha256" in given and kind != "url":
        given["sha256"] = check_sha256(given["sha256"], f"The model {identifier}")
    strange = [key for key in HUB_KEYS if key in given and kind != "repo"]
    if strange:
        raise DownloadError(f"The model {identifier} has {strange[0]}, which {kind} does not use: remove it.")
    return identifier, given, kind


def hub_questions(entries: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """Return what is to be asked of the hub for the entries of ``llm_models``: id and options of hub_files.

    Raises DownloadError on an entry that is not understood.
    """
    questions = []
    for entry in entries:
        identifier, given, kind = entry_kind(entry)
        if kind == "repo":
            question = {
                "id": identifier, "repo": given["repo"], "revision": given.get("revision", "main"),
                "files": list(given.get("files", [])), "quant": given.get("quant"), "sha256": given.get("sha256"),
                "size_bytes": given.get("size_bytes"),
            }  # fmt: skip
            try:
                hub_api.check_request(question["repo"], question["revision"], question["files"], question["quant"])
            except hub_api.HubError as exc:
                raise DownloadError(f"The model {identifier}: {exc}") from exc
            questions.append(question)
    return questions


def _hub_model(
    question: t.Mapping[str, t.Any], answer: t.Mapping[str, t.Any] | None, directory: str
) -> list[dict[str, t.Any]]:
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
    entries: t.Sequence[t.Mapping[str, t.Any]], directory: str, answers: t.Sequence[t.Mapping[str, t.Any]] = ()
) -> list[dict[str, t.Any]]:
    """Return every file that the entries of ``llm_models`` need, in order.

    ``answers``: results of hub_files looped over hub_questions(). Each file has ``id``, ``kind`` (url, path, generate,
    repo), ``path`` on the host, ``first`` (whether it is the model's first file), ``model_path`` (what an engine is
    given: the first file, or the folder), ``gguf``, ``known`` (false while the hub was not asked: the path is a guess
    then), ``url``, ``sha256``, ``git_sha1``, ``size_bytes`` and ``generate`` (options of random_gguf); None where there
    is none. Raises DownloadError on an entry that is not understood.
    """
    files: list[dict[str, t.Any]] = []
    seen = set()
    asked = {answer["item"]["id"]: answer for answer in answers}
    for one in entries:
        identifier, entry, kind = entry_kind(one)
        if identifier in seen:
            raise DownloadError(f"Two entries of llm_models have the id {identifier}: rename one.")
        seen.add(identifier)
        if kind == "url":
            found = _remote_files(identifier, [entry], directory)
        elif kind == "shards":
            if not entry["shards"]:
                raise DownloadError(f"The model {identifier} has an empty list of shards: fill it.")
            found = _remote_files(identifier, entry["shards"], directory)
        elif kind == "generate":
            strange = sorted(set(entry["generate"]) - set(gguf_file.RANDOM_OPTIONS))
            if strange:
                raise DownloadError(
                    f"The model {identifier} is to be generated with the unknown option {strange[0]}: known are "
                    f"{', '.join(gguf_file.RANDOM_OPTIONS)}."
                )
            path = os.path.join(directory, identifier, f"{identifier}.gguf")
            found = [{"kind": "generate", "path": path, "generate": dict(entry["generate"])}]
        elif kind == "repo":
            (question,) = hub_questions([entry])
            answer = asked.get(identifier) or hub_api.pinned(question, question["sha256"], question["size_bytes"])
            found = _hub_model(question, answer, directory)
        else:
            found = _local_files(identifier, entry)
        empty = {
            "url": None, "sha256": None, "git_sha1": None, "size_bytes": None, "generate": None, "gguf": True,
            "known": True,
        }  # fmt: skip
        for index, file in enumerate(found):
            path = file.get("model_path") or found[0]["path"]
            files.append({"id": identifier, "first": index == 0, **empty, **file, "model_path": path})
    return files


def _local_files(identifier: str, entry: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    path, sha256 = entry["path"], entry.get("sha256")
    if not os.path.isabs(path):
        raise DownloadError(f"The path {path} of the model {identifier} is not absolute: give the whole path.")
    try:
        paths = gguf_file.shard_paths(os.path.normpath(path))
    except gguf_file.GgufError as exc:
        raise DownloadError(f"The model {identifier}: {exc}") from exc
    if sha256 is not None and len(paths) > 1:
        raise DownloadError(
            f"The model {identifier} has {len(paths)} shards, and one sha256 cannot be that of all: remove it."
        )
    return [{"kind": "path", "path": each, "sha256": sha256} for each in paths]


def installed_models(results: t.Iterable[t.Mapping[str, t.Any]]) -> dict[str, dict[str, t.Any]]:
    """Return ``{id: {path, sha256, size_bytes}}`` from the results of model_file, one per entry of model_files().

    ``results``: dicts with ``item`` (the entry of model_files), ``sha256``, ``size_bytes``. Of a model that is not
    there yet it says what is known: the SHA-256 may be empty and the size None. The SHA-256 of a model of several files
    is that of their hashes, one a line.
    """
    by_id: dict[str, list[t.Mapping[str, t.Any]]] = {}
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
        }
    return installed


def pending_files(results: t.Iterable[t.Mapping[str, t.Any]], read_again: bool = False) -> list[dict[str, t.Any]]:
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


def disk_shortfall(results: t.Iterable[t.Mapping[str, t.Any]]) -> str:
    """Return one sentence when what is still missing does not fit on its filesystem all together, or an empty string.

    ``results``: dicts with ``item``, ``missing_bytes`` (None when unknown), ``free_bytes`` and ``filesystem``.
    """
    by_filesystem: dict[str, list[t.Mapping[str, t.Any]]] = {}
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
