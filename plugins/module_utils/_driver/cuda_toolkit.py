# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Where a CUDA toolkit is or will be, what it needs, and how a program is compiled with it. Private to this collection.

Pure functions only.
"""

from __future__ import annotations

import hashlib
import typing as t

from .._base.errors import UserError
from .._base.types import Json
from .cuda_compat import WHEELS_VERSION

# with downloads (Debian 13's package: 1.9 GB and 5.1 GB; the wheels: 0.5 GB and 0.9 GB, NCCL 0.3 GB and 0.4 GB)
_DISK_MIB = {"distribution": 8192, "nvidia": 8192, "wheels": 2560}
#: What to do where apt does not know a package.
CURES: t.Final = {
    "distribution": "enable the components contrib and non-free in them",
    "nvidia": "choose another cuda_toolkit_version, or cuda_toolkit_source wheels",
}
_PAIR = ["86", "89"]  # compute capabilities of RTX 3090 and RTX 4090, where no card is there


class Wishes(t.TypedDict):
    """Variables of the role cuda_toolkit. `requirements` is the hashed text of the wheels that are wanted."""

    root: str
    wheels_dir: str
    cublas: bool
    nccl: bool
    requirements: str


class Toolkit(t.TypedDict):
    """Where a toolkit is or will be. `nccl_root` is "" without NCCL; a system's own NCCL is found without."""

    root: str
    nvcc: str
    source: str
    version: str
    nccl_root: str


def wheels_name(requirements: str) -> str:
    """Return the name of the directory for a list of wheels: another list makes another toolkit."""
    return f"{WHEELS_VERSION}-{hashlib.sha256(requirements.encode()).hexdigest()[:12]}"


def wheels_job(wishes: Wishes) -> Json:
    """Return what cuda_wheels.py needs: prefix, name, requirements, and the record that it leaves in toolkit.json."""
    return {
        "prefix": wishes["wheels_dir"],
        "name": wheels_name(wishes["requirements"]),
        "requirements": wishes["requirements"],
        "record": {"schema": 1, "version": WHEELS_VERSION, "cublas": wishes["cublas"], "nccl": wishes["nccl"]},
    }


def toolkit(source: str, version: str, wishes: Wishes) -> Toolkit:
    """Return where the toolkit of a source is. Raises UserError where NCCL is wanted from a source without it."""
    if wishes["nccl"] and source not in ("wheels", "none"):
        raise UserError(
            f"cuda_toolkit_nccl brings NCCL with the wheels, and the toolkit comes from the source {source}: set "
            "cuda_toolkit_source to wheels, or install NCCL yourself and set llama_cpp_nccl_root to its path."
        )
    wheels_root = f"{wishes['wheels_dir']}/{wheels_name(wishes['requirements'])}"
    root = {"distribution": "/usr", "wheels": wheels_root}.get(source, wishes["root"])
    nccl_root = f"{root}/nccl" if source == "wheels" and wishes["nccl"] else ""
    return {"root": root, "nvcc": f"{root}/bin/nvcc", "source": source, "version": version, "nccl_root": nccl_root}


def packages(source: str, version: str) -> list[str]:
    """Return the packages that a source needs. Never the package `cuda`, which brings a driver along."""
    return {
        "distribution": ["nvidia-cuda-toolkit", "g++"],
        "nvidia": [f"cuda-toolkit-{version.replace('.', '-')}", "g++"],
        "wheels": ["g++", "python3-pip"],
    }.get(source, [])


def disk_path(source: str, wishes: Wishes) -> str:
    """Return the directory that a source fills."""
    return wishes["wheels_dir"] if source == "wheels" else "/usr"


def check_disk(source: str, path: str, free_mib: int) -> None:
    """Raise UserError where the file system of `path` has too little room for the installation."""
    needed = _DISK_MIB.get(source, 0)
    if free_mib < needed:
        raise UserError(
            f"{path} has {free_mib} MiB free, and the CUDA toolkit needs {needed} MiB while it is installed: make "
            "room, or use an existing toolkit (cuda_toolkit_root)."
        )


def compile_flags(there: Toolkit, wishes: Wishes, capabilities: t.Sequence[str]) -> list[str]:
    """Return the flags of nvcc for the check program: for the host's cards, or for the pair without a card.

    `capabilities` are compute capabilities, such as 8.9. With the wheels, what the role adds to them is linked too.
    """
    architectures = sorted({text.replace(".", "") for text in capabilities}) or _PAIR
    flags = [f"-gencode=arch=compute_{number},code=sm_{number}" for number in architectures]
    if there["source"] != "wheels":
        return flags
    flags += [f"-L{there['root']}/lib/stubs", "-lcuda", f"-Xlinker=-rpath={there['root']}/lib"]
    flags += ["-lcublas"] if wishes["cublas"] else []
    if there["nccl_root"]:
        nccl = there["nccl_root"]
        flags += ["-DWITH_NCCL", f"-I{nccl}/include", f"-L{nccl}/lib", "-lnccl", f"-Xlinker=-rpath={nccl}/lib"]
    return flags
