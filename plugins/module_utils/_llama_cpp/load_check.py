# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether llama.cpp can load a model, as it says itself. Private to this collection. Pure functions only.

`llama-fit-params` reads headers and no weights, so a file that consists of its header and a hole is enough. It runs
without devices, so neither a card nor an RPC server is touched.
"""

from __future__ import annotations

import re
import typing as t

#: Hides the cards from a build with CUDA, which asks for them even where none is used.
ENVIRONMENT: t.Final = {"GGML_NO_BACKTRACE": "1", "CUDA_VISIBLE_DEVICES": ""}
_CONTEXT = "512"

#: The program prints through a thread, so it may end before its reason is printed: then it is asked once more.
ATTEMPTS: t.Final = 6

_LOADER = re.compile(r"error loading model: (.*)")
#: The reader of headers says more than the loader that calls it.
_READER = re.compile(r" E gguf_init_from_\w+: (?!failed to read)(.*)")
_THROWN = re.compile(r"what\(\): +failed to load model")


def command(program: str, path: str) -> list[str]:
    """Return the command that asks about a model; it ends well where the model can be loaded."""
    return [*reason_command(program, path), "-fit", "off", "-fitp", "on"]


def reason_command(program: str, path: str) -> list[str]:
    """Return the command that is likelier to print why a model cannot be loaded. Its end says nothing."""
    return [program, "-m", path, "-dev", "none", "-c", _CONTEXT]


def refused(output: str) -> bool:
    """Return whether llama.cpp says that it cannot load the model."""
    return _LOADER.search(output) is not None or _THROWN.search(output) is not None


def reason(output: str) -> str | None:
    """Return why a model cannot be loaded, in llama.cpp's words and without a full stop; None where it says nothing."""
    loader = _LOADER.search(output)
    if loader is None:
        return None
    words = (_READER.search(output) or loader)[1].strip()
    return "".join(c if c.isprintable() else " " for c in words[:200]).rstrip(" .") or None
