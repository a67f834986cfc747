# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one table of engines: what each is called and which parts of a tuning it has. Private to this collection.

Pure functions only. Code asks the table (C(of(serving).dry_run)) instead of comparing names of engines.
"""

from __future__ import annotations

import dataclasses
import typing as t

from .._base.errors import UserError
from .._base.types import Mapping

DEFAULT: t.Final = "llama_cpp"


@dataclasses.dataclass(frozen=True)
class Engine:
    """One engine. C(stages) are those of the planner that make sense for it, in the planner's order."""

    name: str                # in serving profiles and in split_tuning_engine
    display: str
    family: str              # engines of one family share modules: llama_cpp, exllama
    site_engine: str         # value of mixed_gpu_engine, and the role that installs it
    build_file: str          # below the directory that the role installs into
    model_file: str          # below the path of a model; empty where the path is a file itself
    stages: tuple[str, ...]
    dry_run: bool            # whether a program tells the memory of a split without loading the model
    unit: str                # of the server
    build_part: str          # name of the build's key in a fingerprint and in a baseline


TABLE: t.Final[dict[str, Engine]] = {
    engine.name: engine
    for engine in (
        Engine("llama_cpp", "llama.cpp", "llama_cpp", "llama_cpp", build_file="build.json", model_file="",
               stages=("probe", "layers", "micro_batch", "mode", "speculation", "baseline"), dry_run=True,
               unit="llama-server.service", build_part="llama_cpp"),
        Engine("exllamav2", "ExLlamaV2", "exllama", "exllamav2", build_file="v2/current/build.json",
               model_file="config.json", stages=("layers", "speculation", "baseline"), dry_run=False,
               unit="exllama-server.service", build_part="engine_build"),
        Engine("exllamav3", "ExLlamaV3", "exllama", "exllamav2", build_file="v3/current/build.json",
               model_file="config.json", stages=("layers", "mode", "speculation", "baseline"), dry_run=False,
               unit="exllama-server.service", build_part="engine_build"),
    )
}  # fmt: skip

#: family -> what people call it, for sentences about either generation.
FAMILIES: t.Final = {"llama_cpp": "llama.cpp", "exllama": "ExLlama"}


def named(name: str) -> Engine:
    """Return an engine by name. Raises UserError with those that exist."""
    if name not in TABLE:
        raise UserError(f"unknown engine {name!r}: known are {', '.join(TABLE)}")
    return TABLE[name]


def of(serving: Mapping) -> Engine:
    """Return the engine of a serving profile; profiles without one are llama.cpp's. Raises UserError if unknown."""
    return named(str(serving.get("engine", DEFAULT)))


def in_family(family: str) -> list[Engine]:
    """Return the engines of a family, in the order of the table."""
    return [engine for engine in TABLE.values() if engine.family == family]


def cuda_environment(ids: t.Sequence[str]) -> dict[str, str]:
    """Return the variables under which CUDA0, CUDA1, ... are the cards with these ids, in this order.

    CUDA's own order is fastest first; without cards there is nothing to say.
    """
    if not ids:
        return {}
    return {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": ",".join(ids)}
