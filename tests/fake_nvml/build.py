# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compile the stand-in for NVIDIA's management library, so that tests run the real nvidia-ml-py on any machine.

Structures and constants come from NVIDIA's own header, which the wheel nvidia-nvml-dev brings.
As a program: build.py DIRECTORY makes DIRECTORY/libnvidia-ml.so.1.
"""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve().parent


def header_directory() -> pathlib.Path:
    """Return the folder that holds nvml.h."""
    try:
        files = importlib.metadata.files("nvidia-nvml-dev") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "nvml.h":
            return pathlib.Path(str(file.locate())).parent
    raise RuntimeError("The NVML tests need nvml.h: run 'make venv', which installs nvidia-nvml-dev, then run again.")


def build_library(directory: pathlib.Path) -> pathlib.Path:
    """Compile libnvidia-ml.so.1 into `directory` and return its path. Needs a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("The NVML tests need a C compiler: install gcc, then run again.")
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [
            compiler, "-std=c11", "-O1", "-Wall", "-Wextra", "-Wno-format-truncation", "-shared", "-fPIC",
            # not -I: warnings about NVIDIA's header are not ours
            "-isystem", str(header_directory()), "-o", str(library), str(HERE / "libnvidia_ml.c"),
        ],
        check=True,
    )  # fmt: skip
    return library


def environment(library: pathlib.Path, profile: str | None, text: str | None = None) -> dict[str, str]:
    """The environment in which a new process sees the machine of profiles/<profile>.txt, or of the given text."""
    description = HERE / "profiles" / f"{profile}.txt"
    if text is not None:
        description = library.parent / "profile.txt"
        description.write_text(text, encoding="utf-8")
    return os.environ | {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_PROFILE": str(description)}


if __name__ == "__main__":
    build_library(pathlib.Path(sys.argv[1]))
