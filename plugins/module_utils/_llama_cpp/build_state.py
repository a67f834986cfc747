# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Builds of llama.cpp on a host: which exist, which are in use, whether they run. Private to this collection.

It reads and switches the directories and links below the role's prefix, on behalf of the module llama_cpp_build.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import re
import shutil
import signal
import typing as t

from .._base import json_file, json_state, sandboxed_run, unit_sandbox
from .._base.errors import UserError
from . import build_plan, build_source, web_ui_plan

Record = dict[str, t.Any]

#: A program that is asked for its options must have answered by then.
_ASK_SECONDS: t.Final = 120

#: Programs that state build number and commit of llama.cpp.
_VERSIONED = ("llama-server", "llama-bench", "llama-fit-params", "llama-cli")
_FLAG = re.compile(r"(?<![\w-])--?[A-Za-z][\w-]*")
_VERSION = re.compile(r"build:? ([0-9]+), commit ([0-9A-Za-z]+)|version: ([0-9]+) \(([0-9A-Za-z]+)\)")
_DIRECTORY = re.compile(r".+-[0-9a-f]{12}")
_KEY = re.compile(r"[0-9a-f]{64}")
_NOTHING: t.Final = {"present": False, "path": "", "bin_dir": "", "version": "", "build": 0, "commit": "", "key": ""}


def in_use(prefix: pathlib.Path, name: str) -> str:
    """Return the directory that the link of a build leads to, or "" where there is none."""
    with contextlib.suppress(OSError):
        return os.readlink(prefix / build_plan.link(name))
    return ""


def exists(prefix: pathlib.Path, directory: str) -> bool:
    """Return whether a complete build is in this directory."""
    return bool(directory) and (prefix / directory / "build.json").exists()


def read(prefix: pathlib.Path, name: str) -> Record | None:
    """Return what build.json says of the build in use, or None without one. Raises UserError for a damaged file."""
    path = prefix / build_plan.link(name) / "build.json"
    return parse(path) if path.exists() else None


def _check_record(record: Record) -> None:
    if not isinstance(record.get("key"), str) or not _KEY.fullmatch(record["key"]):
        raise UserError("it has no key")
    if not isinstance(record.get("targets"), list):
        raise UserError("it has no targets")


FORM: t.Final = json_state.Form(
    build_plan.SCHEMA, "run the role llama_cpp again: it makes that build anew", _check_record
)


def parse(path: pathlib.Path) -> Record:
    """Return what a build.json says. Raises UserError for a damaged file."""
    return FORM.parse(json_file.read_text(str(path)) or "", str(path))


def entry(prefix: pathlib.Path, name: str, record: Record | None) -> Record:
    """Return what the fact llama_cpp_installed says of one build."""
    link = {"link": str(prefix / build_plan.link(name))}
    if record is None:
        return _NOTHING | link
    path = prefix / build_plan.directory(record)
    return link | {
        "present": True,
        "path": str(path),
        "bin_dir": str(path / "bin"),
        "version": record["version"],
        "build": record["build"],
        "commit": record["commit"] or "",
        "key": record["key"],
    }


def _ask(program: pathlib.Path, option: str) -> tuple[int, str]:
    """Return exit status and output, errors first, of a program called with one option, in the sandbox of servers."""
    box = sandboxed_run.Sandbox(device_nodes=unit_sandbox.ALL_NODES)
    try:
        done = sandboxed_run.run([str(program), option], box, {"GGML_NO_BACKTRACE": "1"}, _ASK_SECONDS)
    except UserError as exc:
        return 127, str(exc)
    return done.rc, done.stderr + done.stdout


def ask_help(program: pathlib.Path) -> tuple[str, str]:
    """Run a program for its options; return why it does not run ("" where it does), and its help."""
    status, output = _ask(program, "--help")
    if status == 0:
        return "", output
    if status == -signal.SIGILL:
        return "it uses instructions that this CPU does not have", output
    reason = next((line.strip() for line in output.splitlines() if line.strip()), f"exit status {status}")[:300]
    if "libcuda.so" in reason:
        reason += " (the NVIDIA driver brings it: run the role nvidia_driver first)"
    return reason, output


def say_version(program: pathlib.Path) -> tuple[int, str | None]:
    """Return build number and commit as a program states them, or (0, None)."""
    said = _VERSION.search(_ask(program, "--version")[1])
    if not said:
        return 0, None
    return int(said[1] or said[3]), said[2] or said[4]


def lacking_flags(required: t.Sequence[str], help_text: str) -> list[str]:
    """Return the required options that a program's help does not name."""
    known = set(_FLAG.findall(help_text))
    return [flag for flag in required if flag not in known]


def check(path: pathlib.Path, record: Record, required_flags: t.Mapping[str, t.Sequence[str]]) -> None:
    """Raise UserError where a program of a build does not run, or lacks an option that other roles use."""
    for target in record["targets"]:
        program = path / "bin" / target
        reason, text = ask_help(program)
        if reason:
            raise UserError(
                f"{program} does not run ({reason}); remove {path} and run the role llama_cpp again to rebuild it."
            )
        if lacking := lacking_flags(required_flags.get(target, ()), text):
            raise UserError(
                f"llama.cpp {record['version']} is too old for this collection: its {target} has no "
                f"{', '.join(lacking)}. Choose a newer source, or remove unused options from llama_cpp_required_flags."
            )


def check_version(path: pathlib.Path, record: Record) -> None:
    """Raise UserError where the programs state another version than build.json."""
    versioned = [target for target in _VERSIONED if target in record["targets"]]
    if not versioned or not record["build"]:
        return
    said = _ask(path / "bin" / versioned[0], "--version")[1]
    if str(record["build"]) not in said or (record["commit"] or "") not in said:
        raise UserError(
            f"{path}/bin/{versioned[0]} is not the build {record['build']} ({record['commit']}) that its build.json "
            f'names, and says "{said.strip()[:300]}"; remove that directory and run the role llama_cpp again.'
        )


def switch(prefix: pathlib.Path, name: str, directory: str) -> None:
    """Lead the link of a build to another directory, in one step."""
    json_file.replace_link(str(prefix / build_plan.link(name)), directory)


def _upgrading(record: pathlib.Path) -> set[str]:
    """Return the builds that an upgrade under way leads from and to (docs/data_formats.md, upgrade)."""
    try:
        upgrade = json_file.from_text(record.read_text(encoding="utf-8"))["under_way"]
        return {build for end in ("from", "to") for build in upgrade[end]["builds"].values()} if upgrade else set()
    except FileNotFoundError:
        return set()
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise UserError(
            f"{record} is damaged, so it is unknown which builds an upgrade needs, and none was removed; move it away "
            f"(mv {record} {record}.old) and run the play again."
        ) from exc


def needed(prefix: pathlib.Path, upgrade_record: pathlib.Path) -> set[str]:
    """Return the directories that links lead to, and those of an upgrade under way."""
    links = [path for path in prefix.iterdir() if path.is_symlink()] if prefix.is_dir() else []
    return {os.path.basename(os.path.realpath(path)) for path in links} | _upgrading(upgrade_record)


def superfluous(
    prefix: pathlib.Path, keep_builds: int, previous: t.Collection[str], needed: t.Container[str]
) -> list[pathlib.Path]:
    """Return the builds to remove once those in `needed` are in use.

    Of each named build `keep_builds` remain: the one in use, which always does, then the one that was used before
    (in `previous`), then the newest others.
    """
    others: dict[str, list[tuple[bool, str, pathlib.Path]]] = {}
    for path in prefix.iterdir() if prefix.is_dir() else ():
        if path.is_symlink() or not path.is_dir() or not _DIRECTORY.fullmatch(path.name) or path.name in needed:
            continue
        # a directory without a readable build.json is not ours to remove
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            record = json_file.from_text(json_file.read_text(str(path / "build.json")) or "null")
            others.setdefault(str(record["name"]), []).append((path.name in previous, str(record["built_at"]), path))
    ranked = [sorted(builds, reverse=True) for builds in others.values()]
    return [path for builds in ranked for _previous, _built_at, path in builds[max(keep_builds - 1, 0) :]]


def prune(
    prefix: pathlib.Path, keep_builds: int, previous: t.Collection[str], upgrade_record: pathlib.Path
) -> list[str]:
    """Remove superfluous builds and unfinished work; return the directories of the removed builds."""
    removed = superfluous(prefix, keep_builds, previous, needed(prefix, upgrade_record))
    for path in removed:
        os.rename(path, path.with_name(f".old-{path.name}"))
    work = prefix / ".work"
    rubbish = [path for kind in ("tree-", "stage-", "download-") for path in work.glob(f"{kind}*")]
    for path in [*prefix.glob(".old-*"), *rubbish]:
        shutil.rmtree(path, ignore_errors=True)
    return [path.name for path in removed]


def spare_downloads(settings: t.Mapping[str, t.Any], records: t.Iterable[Record]) -> list[pathlib.Path]:
    """Return the sources that are not kept beside those of these builds; C(settings) are those of the role."""
    names = [build_source.archive_name(record["source"]) for record in records]
    folder = pathlib.Path(settings["download_dir"])
    return superfluous_downloads(folder, settings["keep_downloads"], {name for name in names if name})


def drop_downloads(settings: t.Mapping[str, t.Any], records: t.Iterable[Record]) -> list[str]:
    """Remove the sources of spare_downloads; return their names."""
    removed = spare_downloads(settings, records)
    for path in removed:
        path.unlink(missing_ok=True)
    return [path.name for path in removed]


def superfluous_downloads(folder: pathlib.Path, keep: int, used: t.Collection[str]) -> list[pathlib.Path]:
    """Return the sources to remove: all but `keep`, first those named in `used`, then those that were used last.

    What is in `used` stays, and counts also where it is not there yet. Of finished web pages, and of Node, those `keep`
    stay that were used last. Other hosts may share the folder.
    """
    sources = _newest(folder, build_source.ARCHIVE, used)
    present = sum(path.name in used for path in sources)
    superfluous = sources[max(keep - (len(set(used)) - present), present) :]
    for names in (web_ui_plan.PAGE_ARCHIVE, web_ui_plan.NODE_ARCHIVE):
        superfluous += _newest(folder, names, ())[keep:]
    return superfluous


def _newest(folder: pathlib.Path, names: re.Pattern[str], used: t.Collection[str]) -> list[pathlib.Path]:
    """Return the files of these names, first those in `used`, then those that were used last."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError):
            if names.fullmatch(path.name):
                found.append((path.name in used, path.stat().st_mtime, path))
    return [path for _used, _time, path in sorted(found, reverse=True)]
