# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Compile the stand-in for NVIDIA's management library, so that tests run the real nvidia-ml-py on any machine."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess

HERE = pathlib.Path(__file__).resolve().parent


def build_library(directory: pathlib.Path) -> pathlib.Path:
    """Compile libnvidia-ml.so.1 into `directory` and return its path. Needs a C compiler."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise RuntimeError("The NVML tests need a C compiler: install gcc, then run again.")
    library = directory / "libnvidia-ml.so.1"
    subprocess.run(
        [compiler, "-std=c11", "-O1", "-shared", "-fPIC", "-o", str(library), str(HERE / "libnvidia_ml.c")], check=True
    )
    return library


def environment(library: pathlib.Path, profile: str | None, text: str | None = None) -> dict[str, str]:
    """The environment in which a new process sees the machine of profiles/<profile>.txt, or of the given text."""
    description = HERE / "profiles" / f"{profile}.txt"
    if text is not None:
        description = library.parent / "profile.txt"
        description.write_text(text, encoding="utf-8")
    return os.environ | {"LD_LIBRARY_PATH": str(library.parent), "FAKE_NVML_PROFILE": str(description)}
