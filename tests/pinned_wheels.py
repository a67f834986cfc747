# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Other projects' wheels, of which tests run single functions to compare with. Fetched with pip, kept, checked.

Nothing of them is installed, and none of their dependencies: a function's source is taken out of its file and executed
with stand-ins for what it refers to.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import pathlib
import subprocess
import sys
import typing as t
import zipfile

import pytest

CACHE = pathlib.Path(os.environ.get("MIXED_GPU_CACHE") or pathlib.Path.home() / ".cache" / "homelab-mixed-gpu")
#: file -> sha256
WHEELS = {
    "exllamav2-0.3.2-py3-none-any.whl": "7cd61ae4bf1d8d12034595ab9731f0f43bac415d6394fbb273d4383293d6079e",
    "exllamav3-1.6.5-py3-none-any.whl": "550c0d04c755f249840e5c1edc26b0e80c7342c33b5d99ad17479abb407e8ded",
    "ray-2.60.0-cp311-cp311-manylinux2014_x86_64.whl":
        "e227f6b2af8ab4626dd9a35a5860b33864325ea137383d57f854d4637ee3fea2",
    "vllm-0.33.0-cp38-abi3-manylinux_2_28_x86_64.whl":
        "4b6bdec4ab269990bf70d45a3c1e94c3760a27064513760193b26d6f0da883aa",
}
#: Hundreds of MB: fetched where make vllm-test asks for it, else used where they are in the cache.
LARGE = {"ray", "vllm"}


@functools.cache
def wheel(file: str) -> zipfile.ZipFile:
    """Open a wheel of the cache, fetched where it is not there.

    Skips the test where it cannot be fetched, and fails it where make vllm-test asks for the large ones.
    """
    path = CACHE / "wheels" / file
    name, version = file.split("-")[:2]
    wanted = os.environ.get("MIXED_GPU_LARGE_WHEELS")
    if not path.exists() and name in LARGE and not wanted:
        pytest.skip(f"{path} is not there, which make vllm-test fetches")
    if not path.exists():
        fetched = subprocess.run(
            [
                sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(path.parent),
                f"{name}=={version}",
                *(["--python-version=3.11", "--only-binary=:all:"] if name in LARGE else []),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=600 if name in LARGE else 120,
        )
        if not path.exists() and wanted:
            pytest.fail(f"{path} is not there, and pip could not fetch it: {fetched.stderr.strip()[-300:]}")
    if not path.exists():
        pytest.skip(f"{path} is not there, and pip could not fetch it")
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    assert digest == WHEELS[file], f"{path} is another file: remove it"
    return zipfile.ZipFile(path)


def functions(
    archive: zipfile.ZipFile, member: str, names: t.Container[str], scope: dict[str, t.Any], cls: str | None = None
) -> dict[str, t.Any]:
    """Return functions of a file (of a class in it) with C(scope) as their globals."""
    tree: t.Any = ast.parse(archive.read(member))
    if cls is not None:
        tree = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls)
    found = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    for node in found:
        for argument in [*node.args.args, *node.args.kwonlyargs]:
            argument.annotation = None
        node.returns = None
    exec(compile(ast.Module(found, []), member, "exec"), scope)  # noqa: S102
    return {node.name: scope[node.name] for node in found}
