"""prepare.py VERSION [FOLDER]: version and notes of a release, in the checkout FOLDER (default: this one).

Sets the version in galaxy.yml, in the code that records it, and in what was added since the last release, and lets
antsibull-changelog turn the fragments into CHANGELOG.rst. What is committed, tagged and published stays with people:
docs/releasing.md.
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import typing as t

import yaml

ROOT: t.Final = pathlib.Path(__file__).parents[2]
#: The sections that speak of earlier versions. Before the first release nobody had one.
_SINCE_RELEASE: t.Final = (
    "minor_changes", "breaking_changes", "bugfixes", "deprecated_features", "removed_features", "security_fixes",
)  # fmt: skip
_DOCUMENTED: t.Final = ("plugins/*/*.py", "plugins/*/*.yml", "roles/*/meta/argument_specs.yml")
#: What hosts record.
_CODE: t.Final = "plugins/module_utils/_base/version.py"
_MAIN: t.Final = "\n  main:\n"
_VERSION: t.Final = re.compile(r"\d+\.\d+\.\d+(-[a-z]+\.\d+)?")


def versioned(text: str, old: str, new: str) -> str:
    """Return a plugin's documentation with a version that was not released replaced by the new one."""
    return re.sub(rf"(?m)^( *version_added): {re.escape(old)}$", rf"\1: {new}", text)


def first_release(fragment: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the part of a changelog fragment that means something to those who never had another release."""
    return {section: notes for section, notes in fragment.items() if section not in _SINCE_RELEASE}


def set_version_added(folder: pathlib.Path, old: str, new: str) -> list[str]:
    """Write the new version into what was added since the last release; return the names of the changed files.

    A role whose entry point main has no version yet gets one: antsibull-changelog lists new roles by it.
    """
    changed = []
    for file in sorted(path for pattern in _DOCUMENTED for path in folder.glob(pattern)):
        text = file.read_text(encoding="utf-8")
        now = versioned(text, old, new)
        if file.name == "argument_specs.yml" and f"{_MAIN}    version_added:" not in text:
            now = now.replace(_MAIN, f"{_MAIN}    version_added: {new}\n", 1)
        if now != text:
            file.write_text(now, encoding="utf-8")
            changed.append(str(file.relative_to(folder)))
    return changed


def drop_what_nobody_had(folder: pathlib.Path) -> list[str]:
    """Shorten the fragments for a first release; return the names of those that changed."""
    changed = []
    for file in sorted(folder.glob("changelogs/fragments/*.yml")):
        fragment = yaml.safe_load(file.read_text(encoding="utf-8"))
        kept = first_release(fragment)
        if kept == fragment:
            continue
        changed.append(file.name)
        if kept:
            file.write_text(yaml.safe_dump(kept, explicit_start=True, width=150), encoding="utf-8")
        else:
            file.unlink()
    return changed


def _changelog(folder: pathlib.Path, *arguments: str) -> None:
    """Run antsibull-changelog, which asks ansible-doc what the plugins are."""
    path = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, "-m", "antsibull_changelog", *arguments]
    if subprocess.run(command, cwd=folder, env={**os.environ, "PATH": path}, check=False).returncode:
        sys.exit(f"prepare: antsibull-changelog {arguments[0]} failed: correct the fragments and check out the rest.")


def unnamed_playbooks(folder: pathlib.Path) -> list[str]:
    """Return the playbooks that the notes of no release name: nothing finds new ones, a fragment has to."""
    releases = yaml.safe_load((folder / "changelogs/changelog.yaml").read_text(encoding="utf-8"))["releases"].values()
    named = {item["name"] for release in releases for item in release.get("objects", {}).get("playbook", [])}
    return sorted({path.stem for path in folder.glob("playbooks/*.yml")} - named)


def main(arguments: t.Sequence[str]) -> None:
    """Prepare the release, or end with one sentence that says why not."""
    version, folder = (*arguments, "")[0], pathlib.Path(arguments[1]) if len(arguments) > 1 else ROOT
    if not _VERSION.fullmatch(version):
        sys.exit(f"prepare: {version!r} is no version: give three numbers, such as VERSION=1.0.0.")
    releases = yaml.safe_load((folder / "changelogs/changelog.yaml").read_text(encoding="utf-8"))["releases"]
    if version in releases:
        sys.exit(f"prepare: {version} was released on {releases[version]['release_date']}: give a newer version.")
    galaxy = (folder / "galaxy.yml").read_text(encoding="utf-8")
    said = yaml.safe_load(galaxy)
    if not releases:
        print(f"prepare: first release: {len(drop_what_nobody_had(folder))} fragments lose what nobody had before")
    if said["version"] not in releases:
        files = set_version_added(folder, said["version"], version)
        print(f"prepare: version_added is {version} instead of {said['version']} in {len(files)} files")
    galaxy = re.sub(r"(?m)^version: .*$", f"version: {version}", galaxy)
    (folder / "galaxy.yml").write_text(galaxy, encoding="utf-8")
    code = (folder / _CODE).read_text(encoding="utf-8")
    code = re.sub(r"(?m)^(COLLECTION: t.Final = ).*$", rf'\g<1>"{version}"', code)
    (folder / _CODE).write_text(code, encoding="utf-8")
    _changelog(folder, "release", "--version", version)
    _changelog(folder, "lint")
    _changelog(folder, "lint-changelog-yaml", "changelogs/changelog.yaml")
    if unnamed := unnamed_playbooks(folder):
        print(f"prepare: no notes name {', '.join(unnamed)}: add it to a fragment, under add object.playbook")
    if ".invalid" in said["repository"]:
        print(f"prepare: repository in galaxy.yml is {said['repository']}: write the real one before publishing")


if __name__ == "__main__":
    main(sys.argv[1:])
