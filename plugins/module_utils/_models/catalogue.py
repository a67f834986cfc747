# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ready-made entries of `llm_models`, used where an entry is nothing but one of these ids. Private to this collection.

Revisions are commits, so the files behind an entry never change. Sizes and hashes are written down only where several
independent publications of them agree; what is missing is asked of the hub once, at that commit, and recorded.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json


class Model(t.NamedTuple):
    """One model: where it is, and what to know before 40 GB are fetched."""

    repo: str
    revision: str
    file: str
    size_bytes: int
    layers: int                           # repeating blocks; the output layer is one slot more
    licence: str
    sha256: str | None = None

    def entry(self) -> Json:
        """Return the entry of `llm_models`, without its id."""
        found = {"repo": self.repo, "revision": self.revision, "files": [self.file], "size_bytes": self.size_bytes}
        return {**found, "sha256": self.sha256} if self.sha256 else found


_QWEN = ("Qwen/Qwen2.5-Coder-32B-Instruct-GGUF", "9d3053fce650fe1cdbdb75998c2a87add9d178ef")

CATALOGUE: dict[str, Model] = {
    "llama_3_3_70b_instruct_q4_k_m": Model(
        "bartowski/Llama-3.3-70B-Instruct-GGUF", "b6c5c9f176f3279204034e1d16d393105e95cb88",
        "Llama-3.3-70B-Instruct-Q4_K_M.gguf", 42520398816, 80,
        "Llama 3.3 Community License: name Llama where you build on it, ask Meta above 700 million monthly users",
        "32df3baccb556f9840059b2528b2dee4d3d516b24afdfb9d0c56ff5f63e3a664",
    ),
    "qwen2_5_coder_32b_instruct_q4_k_m": Model(
        *_QWEN, "qwen2.5-coder-32b-instruct-q4_k_m.gguf", 19851335872, 64, "Apache 2.0",
    ),
    "qwen2_5_coder_32b_instruct_q8_0": Model(
        *_QWEN, "qwen2.5-coder-32b-instruct-q8_0.gguf", 34820884672, 64, "Apache 2.0",
    ),
}
