# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import io
import json
import pathlib
import shutil
import subprocess
import tarfile

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_plan
from ansible_collections.homelab.mixed_gpu.tests.release import llama_cpp_pin as pin

ROOT = pin.ROOT
NEW = pin.Pin("0.4.0", "ab" * 32, 12001, "1234567890" * 4)


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """The files of this checkout in which the pin stands."""
    for place in pin.PLACES:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / place, tmp_path / place)
    return tmp_path


def archive(folder: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    path = folder / "llama_cpp_python-0.4.0.tar.gz"
    with tarfile.open(path, "w:gz") as made:
        for name, text in files.items():
            member = tarfile.TarInfo(f"llama_cpp_python-0.4.0/{name}")
            member.size = len(text)
            made.addfile(member, io.BytesIO(text.encode()))
    return path


def test_the_pin_moves_everywhere_and_back(checkout: pathlib.Path) -> None:
    old = pin.pinned(checkout)
    before = {place: (checkout / place).read_text(encoding="utf-8") for place in pin.PLACES}
    pin.move(checkout, old, NEW)
    assert pin.pinned(checkout) == NEW
    for place in pin.PLACES:
        text = (checkout / place).read_text(encoding="utf-8")
        for gone in (old.version, old.sha256, old.commit[:9], f"b{old.build}", f"b{old.build + 1}"):
            assert gone not in text, (place, gone)
    assert "b12001, commit 123456789, of llama-cpp-python 0.4.0" in (checkout / "docs/support.md").read_text()
    stages = (checkout / "molecule/upgrade/tests/test_stages.py").read_text()
    assert "from b12001 to b12002 is done" in stages and "sdist_build_number=12002" in stages
    pin.move(checkout, NEW, old)
    assert before == {place: (checkout / place).read_text(encoding="utf-8") for place in pin.PLACES}


def test_another_number_of_the_same_source_moves(checkout: pathlib.Path) -> None:
    old = pin.pinned(checkout)
    new = old._replace(build=old.build + 1)
    pin.move(checkout, old, new)
    assert pin.pinned(checkout) == new
    assert old.commit in (checkout / "roles/llama_cpp/README.md").read_text(encoding="utf-8")


def test_nothing_moves_where_a_place_does_not_have_the_pin(checkout: pathlib.Path) -> None:
    old = pin.pinned(checkout)
    (checkout / "docs/support.md").write_text("nothing", encoding="utf-8")
    with pytest.raises(pin.PinError, match=r"docs/support\.md does not name the pin"):
        pin.move(checkout, old, NEW)
    assert pin.pinned(checkout) == old


def test_no_other_place_has_the_pin() -> None:
    """What sets the version, its hash or its commit moves; a build that is only named says what was read of it."""
    old = pin.pinned(ROOT)
    looked = [*ROOT.glob("roles/**/*"), *ROOT.glob("playbooks/*"), *ROOT.glob("inventories/**/*"), *ROOT.glob("docs/*")]
    places = {
        str(path.relative_to(ROOT)) for path in looked if path.is_file() and path.suffix in (".yml", ".md", ".j2")
    }
    having = {
        place for place in places
        if any(text in (ROOT / place).read_text(encoding="utf-8") for text in (old.version, old.sha256, old.commit))
    }  # fmt: skip
    assert having == {place for place in pin.PLACES if not place.startswith("molecule/")}


def test_the_variables_of_a_pin_are_those_of_the_role() -> None:
    old = pin.pinned(ROOT)
    assert build_plan.is_commit(old.commit)
    assert set(old.variables()) == {
        f"llama_cpp_{name}"
        for name in ("sdist_version", "sdist_sha256", "sdist_build_number", "sdist_build_commit", "git_version")
    }


def test_pages_of_an_index_in_both_forms() -> None:
    name = "llama_cpp_python-0.3.{}.tar.gz"
    html = (
        f'<a href="/f/{name.format(9)}#sha256={"cd" * 32}">x</a><a href="/f/{name.format(10)}">x</a><a href="/f/a.whl">'
    )
    assert pin.offered(html) == {"0.3.9": "cd" * 32, "0.3.10": ""}
    files = [
        {"filename": name.format(10), "hashes": {"sha256": "ef" * 32}}, {"filename": name.format(9), "hashes": {}},
        {"filename": "llama_cpp_python-0.3.9-py3-none-any.whl"},
    ]  # fmt: skip
    assert list(pin.offered(json.dumps({"files": files})).items()) == [("0.3.9", ""), ("0.3.10", "ef" * 32)]


def test_the_source_says_its_commit(tmp_path: pathlib.Path) -> None:
    log = "## [Unreleased]\n\n## [0.4.0]\n- feat: update llama.cpp to ggml-org/llama.cpp@{}\n"
    log = log.format("123456789") + log.format("abcdef123")
    head = {".git/modules/vendor/llama.cpp/HEAD": f"{NEW.commit}\n"}
    assert pin.commit_of(archive(tmp_path, {"CHANGELOG.md": log, **head})) == NEW.commit
    assert pin.commit_of(archive(tmp_path, {"CHANGELOG.md": log})) == "123456789"
    with pytest.raises(pin.PinError, match="does not say which"):
        pin.commit_of(archive(tmp_path, {"CHANGELOG.md": "nothing", ".git/modules/vendor/llama.cpp/HEAD": "ref: x"}))


def test_a_tag_gives_the_build_number(tmp_path: pathlib.Path) -> None:
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@example.invalid"]
    for command in (
        ["init", "-q"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["tag", "b12001"],
        ["tag", "gguf-v1"],
    ):
        subprocess.run([*git, *command], check=True)
    tags = subprocess.run(
        ["git", "ls-remote", "--tags", str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    assert pin.number_of(head[:9], tags) == (12001, head)
    with pytest.raises(pin.PinError, match="give its build number as BUILD_NUMBER"):
        pin.number_of("0" * 9, tags)


HELP = """usage: llama-bench [options]

options:
  -h, --help
  -m, --model <filename>                    (default: models/7B/ggml-model-q4_0.gguf)
  -no-kvu, --no-kv-unified                  use a buffer per sequence, see --other
"""


def test_what_two_builds_differ_in() -> None:
    assert pin.flags(HELP) == {"-h", "--help", "-m", "--model", "-no-kvu", "--no-kv-unified"}
    after = HELP.replace("-no-kvu, --no-kv-unified", "--swa-full")
    assert pin.differences({"llama-bench": HELP, "x": HELP}, {"llama-bench": after, "x": HELP}) == [
        "- llama-bench (5 flags): gone: --no-kv-unified, -no-kvu; new: --swa-full",
        "- x (6 flags): the same flags",
    ]
