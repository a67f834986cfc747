# SPDX-License-Identifier: GPL-3.0-or-later
"""Let an engine compile its own extension now instead of at its first import. Run inside the engine's environment.

usage: exllama_extension.py exllamav2|exllamav3

The engine knows its sources and flags; PyTorch compiles them below TORCH_EXTENSIONS_DIR for TORCH_CUDA_ARCH_LIST.
Only PyTorch's reticence is changed: it is to say what it compiles.
"""

from __future__ import annotations

import functools
import importlib
import sys

from torch.utils import cpp_extension

load = cpp_extension.load


@functools.wraps(load)
def talkative(*args: object, **options: object) -> object:
    return load(*args, **{**options, "verbose": True})


cpp_extension.load = talkative
importlib.import_module(f"{sys.argv[1]}.ext")
