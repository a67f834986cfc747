# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Ready-made entries of `llm_models`, used where an entry is nothing but one of these ids. Private to this collection.

Revisions are commits that several independent publications name, so the files behind an entry never change. Sizes and
hashes are written down only where such publications agree, too; what is missing is asked of the hub once, at that
commit, and recorded. tests/fixtures/hub_listings.json has what was published of each repository, and where.
"""

from __future__ import annotations

import typing as t

from .._base.types import Json


class Model(t.NamedTuple):
    """One model: where it is, and what to know before 40 GB are fetched."""

    repo: str
    revision: str
    file: str                             # the first one of a model in shards
    size_bytes: int                       # of all files
    layers: int                           # repeating blocks; the output layer is one slot more
    licence: str
    sha256: str | None = None
    #: whether size_bytes is what the hub's only file must have, or about what the files have together
    exact: bool = True
    #: well-known shape that predicts it, see model_shapes
    shape: str | None = None
    #: how it can draft tokens, and what its template needs, as far as publications say
    notes: str = ""

    def entry(self) -> Json:
        """Return the entry of `llm_models`, without its id."""
        found: Json = {"repo": self.repo, "revision": self.revision, "files": [self.file]}
        if self.exact:
            found["size_bytes"] = self.size_bytes
        return {**found, "sha256": self.sha256} if self.sha256 else found


_QWEN = ("Qwen/Qwen2.5-Coder-32B-Instruct-GGUF", "9d3053fce650fe1cdbdb75998c2a87add9d178ef")

CATALOGUE: dict[str, Model] = {
    "llama_3_3_70b_instruct_q4_k_m": Model(
        "bartowski/Llama-3.3-70B-Instruct-GGUF", "b6c5c9f176f3279204034e1d16d393105e95cb88",
        "Llama-3.3-70B-Instruct-Q4_K_M.gguf", 42520398816, 80,
        "Llama 3.3 Community License: name Llama where you build on it, ask Meta above 700 million monthly users",
        "32df3baccb556f9840059b2528b2dee4d3d516b24afdfb9d0c56ff5f63e3a664", shape="llama_3_3_70b_q4_k_m",
        notes="drafts: Llama 3.2 1B or 3B",
    ),
    "qwen2_5_coder_32b_instruct_q4_k_m": Model(
        *_QWEN, "qwen2.5-coder-32b-instruct-q4_k_m.gguf", 19851335872, 64, "Apache 2.0",
        shape="qwen2_5_coder_32b_q4_k_m", notes="drafts: Qwen2.5 Coder 0.5B",
    ),
    "qwen2_5_coder_32b_instruct_q8_0": Model(
        *_QWEN, "qwen2.5-coder-32b-instruct-q8_0.gguf", 34820884672, 64, "Apache 2.0",
        notes="drafts: Qwen2.5 Coder 0.5B",
    ),
    "qwen3_8_27b_ud_q4_k_xl": Model(
        "unsloth/Qwen3.8-27B-GGUF", "4ca720788d1e01f1bff70c033e0d0028fd02e502", "Qwen3.8-27B-UD-Q4_K_XL.gguf",
        17559178144, 64, "see the repository", "3f227079003add2511437e5b1e94812e363385225bf6a9b47b0054a72bc8b01e",
        shape="qwen3_5_27b_q4_k_m", notes="drafts: MTP head in the file; thinks unless told not to",
    ),
    "llama_3_1_8b_instruct_q4_k_m": Model(
        "bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "bf5b95e96dac0462e2a09145ec66cae9a3f12067",
        "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf", 4_920_000_000, 32,
        "Llama 3.1 Community License: name Llama where you build on it, ask Meta above 700 million monthly users",
        exact=False, shape="llama_3_1_8b_q4_k_m",
    ),
    "qwen3_30b_a3b_q4_k_m": Model(
        "Qwen/Qwen3-30B-A3B-GGUF", "e4d4bafdfb96a411a163846265362aceb0b9c63a", "Qwen3-30B-A3B-Q4_K_M.gguf",
        18_600_000_000, 48, "Apache 2.0", exact=False, shape="qwen3_30b_a3b_q4_k_m",
    ),
    "gpt_oss_20b_mxfp4": Model(
        "ggml-org/gpt-oss-20b-GGUF", "ef9b12f2ff56c69cf32153a02784e7a3c88bf524", "gpt-oss-20b-MXFP4.gguf",
        12109566624, 24, "Apache 2.0", shape="gpt_oss_20b_mxfp4", notes="needs the template of its file (harmony)",
    ),
    "gpt_oss_120b_mxfp4": Model(
        "ggml-org/gpt-oss-120b-GGUF", "d932fcea62f83e088d8f076a2cd2d7eb02dfa682",
        "gpt-oss-120b-mxfp4-00001-of-00003.gguf", 63387346464, 36, "Apache 2.0", exact=False,
        shape="gpt_oss_120b_mxfp4", notes="needs the template of its file (harmony)",
    ),
    "qwen3_5_122b_a10b_q4_k_m": Model(
        "unsloth/Qwen3.5-122B-A10B-GGUF", "51eab4d59d53f573fb9206cb3ce613f1d0aa392b",
        "Q4_K_M/Qwen3.5-122B-A10B-Q4_K_M-00001-of-00003.gguf", 74_000_000_000, 48, "Apache 2.0", exact=False,
        shape="qwen3_5_122b_a10b_q4_k_m",
    ),
}
