# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Watches the cards of a host while a module measures. Private to this collection."""

from __future__ import annotations

import contextlib
import importlib

from .._base import host_python
from .._base.types import Json
from . import nvml


def once(interpreter: str) -> contextlib.AbstractContextManager[Json]:
    """Return what watches all cards once; its dict has their conditions at the end (nvml.watched), none without NVML.

    C(interpreter) has NVML's library where this one lacks it. Call it before anything is changed: it may move the
    module into that interpreter.
    """
    if host_python.enter(["pynvml"], interpreter) is not None:
        return contextlib.nullcontext({})
    return nvml.watched(importlib.import_module("pynvml"))
