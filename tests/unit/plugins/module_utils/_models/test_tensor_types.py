# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Our table of tensor types and architectures beside llama.cpp's source and its built library."""

from __future__ import annotations

import ctypes
import os
import pathlib
import re
import shutil
import subprocess
import tarfile

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import architectures, tensor_types
from ansible_collections.homelab.mixed_gpu.tests.release import llama_cpp_pin

TREE = "vendor/llama.cpp"
WANTED = (
    "ggml/src/ggml.c", "ggml/src/ggml-common.h", "ggml/include/", "include/llama.h", "src/llama-arch.cpp", "src/models/"
)
CACHE = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "homelab-mixed-gpu"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The pinned source, as the sandbox downloaded it, or a tree that MIXED_GPU_LLAMA_SOURCE names."""
    if given := os.environ.get("MIXED_GPU_LLAMA_SOURCE"):
        return pathlib.Path(given)
    sdist = CACHE / f"downloads/llama_cpp_python-{llama_cpp_pin.pinned(llama_cpp_pin.ROOT).version}.tar.gz"
    if not sdist.is_file():
        pytest.skip("no source of llama.cpp: build the sandbox once, or set MIXED_GPU_LLAMA_SOURCE to its tree")
    folder = tmp_path_factory.mktemp("source")
    with tarfile.open(sdist) as archive:
        for member in archive:
            inside = member.name.partition("/")[2].removeprefix(f"{TREE}/")
            if member.isfile() and inside.startswith(WANTED):
                target = folder / inside
                target.parent.mkdir(parents=True, exist_ok=True)
                taken = archive.extractfile(member)
                assert taken is not None
                target.write_bytes(taken.read())
    return folder


def test_types_are_those_of_the_source(source: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Compile the sizes that ggml.c writes in its table, since they are those of C structures."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    text = (source / "ggml/src/ggml.c").read_text(encoding="utf-8")
    body = re.search(r"type_traits\[GGML_TYPE_COUNT\] = \{\n(.*?)\n\};", text, re.DOTALL)
    assert body is not None
    rows = re.findall(
        r"\[(\w+)\] = \{.*?\.type_name\s*= (\"[^\"]*\"),\s*\.blck_size\s*= (\w+),\s*\.type_size\s*= ([^,]+),", body[1],
        re.DOTALL,
    )
    line = 'printf("%d|%s|%d|%d\\n", (int) {}, {}, (int) {}, (int) ({}));'
    lines = [line.format(*row) for row in rows]
    program = tmp_path / "types.c"
    program.write_text(
        '#include "ggml.h"\n#define GGML_COMMON_DECL_C\n#include "ggml-common.h"\n#include <stdio.h>\n'
        "int main(void) {\n" + "\n".join(lines) + '\nprintf("%d|count|0|0\\n", GGML_TYPE_COUNT);\nreturn 0; }\n'
    )
    folders = ["-I", str(source / "ggml/include"), "-I", str(source / "ggml/src")]
    subprocess.run([compiler, "-w", *folders, str(program), "-o", str(tmp_path / "types")], check=True)
    out = subprocess.run([str(tmp_path / "types")], capture_output=True, text=True, check=True).stdout
    found = [line.split("|") for line in out.splitlines()]
    count = int(found.pop()[0])
    theirs = {int(n): (name, int(per), int(size)) for n, name, per, size in found if int(per)}
    assert theirs == {number: tuple(kind) for number, kind in tensor_types.TYPES.items()}
    for number in range(count):
        assert (number in theirs) == (tensor_types.foreign(number) is None), number


def test_names_of_file_types_are_those_of_the_source(source: pathlib.Path) -> None:
    text = (source / "include/llama.h").read_text(encoding="utf-8")
    found = re.findall(r"^\s*LLAMA_FTYPE_(?:ALL|MOSTLY)_(\w+)\s*= (\d+),", text, re.MULTILINE)
    assert {int(number): name for name, number in found} == tensor_types.FILE_TYPES


def test_architectures_are_those_of_the_source(source: pathlib.Path) -> None:
    text = (source / "src/llama-arch.cpp").read_text(encoding="utf-8")
    body = re.search(r"LLM_ARCH_NAMES = \{(.*?)\n\};", text, re.DOTALL)
    assert body is not None
    names = dict(re.findall(r'\{ (LLM_ARCH_\w+),\s*"([^"]+)"', body[1]))
    assert set(names.values()) - {"(unknown)"} == architectures.PINNED
    for table in (architectures.EMBEDDING, architectures.DRAFTING, architectures.SPEECH, architectures.MTP_OPTIONAL):
        assert table <= architectures.PINNED
    assert not architectures.PINNED & (architectures.IMAGE | architectures.OLLAMA)


def test_where_mtp_blocks_may_be_missing_is_as_in_the_source(source: pathlib.Path) -> None:
    """Each file of src/models is one architecture, and some architectures inherit from another one's."""
    optional = {
        path.stem.replace("-", "").replace("_", "")
        for path in (source / "src/models").glob("*.cpp")
        if "bool trunk_only =" in path.read_text(encoding="utf-8")
    }
    inherited = {"deepseek2-ocr", "mistral4"}                  # llama_model_deepseek2's
    ours = {name.replace("-", "").replace("_", "") for name in architectures.MTP_OPTIONAL - inherited}
    assert ours == optional


@pytest.mark.live
def test_types_are_those_of_the_built_engine(llama_bin: pathlib.Path) -> None:
    library = ctypes.CDLL(str(llama_bin / "libggml-base.so"))
    library.ggml_blck_size.restype = ctypes.c_int64
    library.ggml_type_size.restype = ctypes.c_size_t
    library.ggml_type_name.restype = ctypes.c_char_p
    for number, kind in tensor_types.TYPES.items():
        name = library.ggml_type_name(number).decode()
        assert (name, library.ggml_blck_size(number), library.ggml_type_size(number)) == tuple(kind)
