"""The pin of llama.cpp: where it stands, what a source distribution says of itself, and what two builds differ in.

Pure, but for reading and writing the files of a checkout and for reading an archive.
"""

from __future__ import annotations

import json
import pathlib
import re
import tarfile
import typing as t

import yaml

ROOT: t.Final = pathlib.Path(__file__).parents[2]
DEFAULTS: t.Final = "roles/llama_cpp/defaults/main.yml"
#: The files that move with the pin. What else names a build says what was read or recorded of that build.
PLACES: t.Final = (
    DEFAULTS,
    "roles/llama_cpp/meta/argument_specs.yml",
    "roles/llama_cpp/README.md",
    "docs/support.md",
    "molecule/default/tests/test_upgrade.py",
    "molecule/upgrade/tests/test_stages.py",
)
_TREE: t.Final = "vendor/llama.cpp"
_GIT: t.Final = ".git/modules/vendor/llama.cpp/HEAD"
_NAMED: t.Final = re.compile(r"update llama\.cpp to [\w-]+/llama\.cpp@([0-9a-f]{7,40})", re.IGNORECASE)
_COMMIT: t.Final = re.compile(r"[0-9a-f]{40}")
_SDIST: t.Final = re.compile(r"llama_cpp_python-(\d+(?:\.\d+)*)\.tar\.gz")
#: A flag at the start of a line of --help, or after another: -m, --model, -no-kvu.
_FLAGS: t.Final = re.compile(r"(?:^|,) {0,8}(--?[a-zA-Z][\w-]*)", re.MULTILINE)


class PinError(Exception):
    """One sentence that says why the pin cannot move, and what to do."""


class Pin(t.NamedTuple):
    """A source distribution of llama-cpp-python and the llama.cpp in it; C(commit) has all 40 digits."""

    version: str
    sha256: str
    build: int
    commit: str

    def variables(self) -> dict[str, t.Any]:
        """Return the variables of the role llama_cpp that say so."""
        return {
            "llama_cpp_sdist_version": self.version,
            "llama_cpp_sdist_sha256": self.sha256,
            "llama_cpp_sdist_build_number": self.build,
            "llama_cpp_sdist_build_commit": self.commit[:9],
            "llama_cpp_git_version": self.commit,
        }


_OTHER: t.Final = Pin("0.0.0", "f" * 64, -2, "f" * 40)


def defaults(root: pathlib.Path) -> dict[str, t.Any]:
    """Return the variables of the role llama_cpp."""
    return t.cast("dict[str, t.Any]", yaml.safe_load((root / DEFAULTS).read_text(encoding="utf-8")))


def pinned(root: pathlib.Path) -> Pin:
    """Return the pin of a checkout."""
    said = defaults(root)
    names = ("sdist_version", "sdist_sha256", "sdist_build_number", "git_version")
    return Pin(*(said[f"llama_cpp_{name}"] for name in names))


def moved(text: str, old: Pin, new: Pin) -> str:
    """Return a text with the new pin in the place of the old one, and so the build after it, which tests use."""
    pairs = [
        (old.commit, new.commit), (old.commit[:9], new.commit[:9]), (old.sha256, new.sha256),
        (old.version, new.version), (str(old.build + 1), str(new.build + 1)), (str(old.build), str(new.build)),
    ]  # fmt: skip
    for number, (before, _after) in enumerate(pairs):
        # a number may follow the b of a build, and nothing may go on
        text = re.sub(rf"(?<![0-9a-fA-F.]){re.escape(before)}(?![0-9a-zA-Z]|\.[0-9])|(?<=\bb){re.escape(before)}\b",
                      f"\0{number}\0", text)  # fmt: skip
    return re.sub("\0(\\d)\0", lambda found: pairs[int(found[1])][1], text)


def move(root: pathlib.Path, old: Pin, new: Pin) -> None:
    """Write the new pin into all its places. Where one lacks the old pin: raises PinError and writes nothing."""
    texts = {}
    for place in PLACES:
        text = (root / place).read_text(encoding="utf-8")
        texts[place] = moved(text, old, new)
        # two pins may share their version: what a place names is seen with one that has nothing in common
        if moved(text, old, _OTHER) == text:
            raise PinError(f"{place} does not name the pin {old.version}: correct PLACES in llama_cpp_pin.py.")
    for place, text in texts.items():
        (root / place).write_text(text, encoding="utf-8")


def offered(page: str) -> dict[str, str]:
    """Return the SHA-256 of every source distribution on a page of a package index, by version, oldest first.

    The page is JSON (PEP 691) or HTML (PEP 503). A file without a hash has "".
    """
    if page.lstrip().startswith("{"):
        files = [(file["filename"], file.get("hashes", {}).get("sha256", "")) for file in json.loads(page)["files"]]
    else:
        files = re.findall(r"/([^/\"#]+\.tar\.gz)(?:#sha256=([0-9a-f]{64}))?", page)
    found = {name[1]: sha256 for file, sha256 in files if (name := _SDIST.fullmatch(file))}
    return dict(sorted(found.items(), key=lambda item: [int(part) for part in item[0].split(".")]))


def is_commit(text: str) -> bool:
    """Return whether a commit has all its digits."""
    return _COMMIT.fullmatch(text) is not None


def tree(archive: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Return the members of a source distribution that are llama.cpp's source."""
    return [member for member in archive if member.name.partition("/")[2].startswith(f"{_TREE}/")]


def commit_of(archive: pathlib.Path) -> str:
    """Return the commit of the llama.cpp in a source distribution: all digits, or those that its changelog has.

    The archive usually holds the submodule's HEAD; else the newest entry of its changelog names the commit. Raises
    PinError where neither does.
    """
    named = ""
    with tarfile.open(archive) as members:
        for member in members:
            inside = member.name.partition("/")[2]
            if inside not in (_GIT, "CHANGELOG.md"):
                continue
            text = t.cast("t.IO[bytes]", members.extractfile(member)).read().decode("utf-8", errors="replace")
            if inside == _GIT and _COMMIT.fullmatch(text.strip()):
                return text.strip()
            named = found[1] if (found := _NAMED.search(text)) else named
    if not named:
        raise PinError(f"{archive.name} does not say which llama.cpp it holds: choose another version.")
    return named


def number_of(commit: str, tags: str) -> tuple[int, str]:
    """Return build number and full commit, by what `git ls-remote --tags` prints. Raises PinError for no such tag."""
    for line in tags.splitlines():
        full, _tab, name = line.partition("\t")
        tag = re.fullmatch(r"refs/tags/b(\d+)(?:\^\{\})?", name)
        if tag and full.startswith(commit):
            return int(tag[1]), full
    raise PinError(f"no tag of the repository is the commit {commit}: give its build number as BUILD_NUMBER.")


def flags(help_text: str) -> set[str]:
    """Return the flags that a program's --help names."""
    return set(_FLAGS.findall(help_text))


def differences(before: t.Mapping[str, str], after: t.Mapping[str, str]) -> list[str]:
    """Return a line per program: which flags the second build lost and gained, by the texts of --help."""
    lines = []
    for program in sorted({*before, *after}):
        old, new = flags(before.get(program, "")), flags(after.get(program, ""))
        gone, added = sorted(old - new), sorted(new - old)
        changed = [f"gone: {', '.join(gone)}"] * bool(gone) + [f"new: {', '.join(added)}"] * bool(added)
        lines.append(f"- {program} ({len(new)} flags): {'; '.join(changed) or 'the same flags'}")
    return lines


def still_named(root: pathlib.Path, files: t.Iterable[str], old: Pin) -> list[str]:
    """Return the files of a list, without PLACES and records, that name the old build: what was read in its source."""
    looked = [name for name in files if name.startswith(("plugins/", "roles/", "docs/")) and name not in PLACES]
    return [
        name for name in looked
        if re.search(rf"\bb?{old.build}\b", (root / name).read_text(encoding="utf-8", errors="replace"))
    ]  # fmt: skip
