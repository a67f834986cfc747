# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which all-reduce ran in split mode tensor, read from what llama.cpp and NCCL print. Private. Pure functions only.

The lines are those of llama.cpp b11312 (ggml-cuda.cu, allreduce.cu) and NCCL 2.32. Where NCCL runs llama.cpp says
nothing; NCCL itself speaks when it is asked to (NCCL_DEBUG), on standard output, which it does not flush.
"""

from __future__ import annotations

import re
import typing as t

from .._base.types import Json
from .._split import allreduce

#: Where NCCL writes in a unit, in its private /tmp: to standard output it would write without flushing.
NCCL_FILE: t.Final = "/tmp/nccl.log"  # noqa: S108 (of the unit alone, PrivateTmp)

_OF_NCCL = re.compile(r"\bNCCL (?:INFO|WARN|TRACE|CALL|version) ")
_READY = re.compile(r"NCCL INFO .*- Init COMPLETE")
_INTERNAL: t.Final = "initialized AllReduce pipeline"
_NO_NCCL = re.compile(r"NCCL init failed \([^)\n]*\)|NCCL not compiled in|NCCL disabled: [^;\n]*")
_NO_INTERNAL = re.compile(r"internal AllReduce init failed|unknown GGML_CUDA_ALLREDUCE value: \S*")


def is_of_nccl(line: str) -> bool:
    """Return whether NCCL printed a line."""
    return _OF_NCCL.search(line) is not None


def read(text: str, asked: str = "") -> Json | None:
    """Return what a program printed of its all-reduce (_split/allreduce.py), None where it says nothing of one.

    C(asked) is the all-reduce that it was told to use.
    """
    reasons = [match[0] for pattern in (_NO_NCCL, _NO_INTERNAL) if (match := pattern.search(text))]
    ran = None
    if _NO_INTERNAL.search(text):
        ran = "none"
    elif _INTERNAL in text:
        ran = "internal"
    elif _READY.search(text) and not _NO_NCCL.search(text):
        ran = "nccl"
    if ran is None and not reasons:
        return None
    fallback = ", ".join(reasons) if reasons and asked != ran else None
    transport = allreduce.transport(text) if ran == "nccl" else None
    return {"asked": asked or None, "ran": ran, "transport": transport, "fallback": fallback}


def environment(cuda: bool, split_mode: str) -> dict[str, str]:
    """Return the variables under which a program says which all-reduce runs; none where there is none to tell."""
    return dict(allreduce.NCCL_TELLS) if cuda and split_mode == "tensor" else {}
