# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The NVIDIA cards of the host that a module runs on. Private to this collection."""

from __future__ import annotations

import importlib
import typing as t

from .._base import host_python
from . import nvml


def read(python: str, sample_seconds: float = 0.0, sample_interval_ms: int = 200) -> dict[str, t.Any]:
    """Return `mixed_gpu_gpus` as gpu_facts documents it; `python` is an interpreter that has nvidia-ml-py.

    Call it before anything is changed: the module may start again in that interpreter.
    """
    reason = host_python.enter(["pynvml"], python)
    if reason is not None:
        return nvml.unavailable(reason)
    return nvml.probe(importlib.import_module("pynvml"), loaded_version(), sample_seconds, sample_interval_ms)


def loaded_version() -> str | None:
    """Return the version of the NVIDIA kernel module that is loaded, or None without one."""
    try:
        with open("/sys/module/nvidia/version", encoding="ascii") as handle:
            return handle.read().strip()
    except OSError:
        return None
