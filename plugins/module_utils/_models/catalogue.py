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
    #: how it drafts without another model, and what its template needs, as far as publications say
    notes: str = ""
    #: ids of the models that it can draft for, in the order in which they are looked for among the entries
    drafts_for: tuple[str, ...] = ()

    def entry(self) -> Json:
        """Return the entry of `llm_models`, without its id."""
        found: Json = {"repo": self.repo, "revision": self.revision, "files": [self.file]}
        if self.exact:
            found["size_bytes"] = self.size_bytes
        return {**found, "sha256": self.sha256} if self.sha256 else found


_QWEN = ("Qwen/Qwen2.5-Coder-32B-Instruct-GGUF", "9d3053fce650fe1cdbdb75998c2a87add9d178ef")
_QWEN_TARGETS = ("qwen2_5_coder_32b_instruct_q4_k_m", "qwen2_5_coder_32b_instruct_q8_0")
_LLAMA_TARGETS = ("llama_3_3_70b_instruct_q4_k_m",)
_LLAMA_3_2 = "Llama 3.2 Community License: name Llama where you build on it, ask Meta above 700 million monthly users"

CATALOGUE: dict[str, Model] = {
    "llama_3_3_70b_instruct_q4_k_m": Model(
        "bartowski/Llama-3.3-70B-Instruct-GGUF", "b6c5c9f176f3279204034e1d16d393105e95cb88",
        "Llama-3.3-70B-Instruct-Q4_K_M.gguf", 42520398816, 80,
        "Llama 3.3 Community License: name Llama where you build on it, ask Meta above 700 million monthly users",
        "32df3baccb556f9840059b2528b2dee4d3d516b24afdfb9d0c56ff5f63e3a664", shape="llama_3_3_70b_q4_k_m",
    ),
    "qwen2_5_coder_32b_instruct_q4_k_m": Model(
        *_QWEN, "qwen2.5-coder-32b-instruct-q4_k_m.gguf", 19851335872, 64, "Apache 2.0",
        shape="qwen2_5_coder_32b_q4_k_m",
    ),
    "qwen2_5_coder_32b_instruct_q8_0": Model(
        *_QWEN, "qwen2.5-coder-32b-instruct-q8_0.gguf", 34820884672, 64, "Apache 2.0",
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
    "llama_3_2_1b_instruct_q8_0": Model(
        "bartowski/Llama-3.2-1B-Instruct-GGUF", "067b946cf014b7c697f3654f621d577a3e3afd1c",
        "Llama-3.2-1B-Instruct-Q8_0.gguf", 1321083008, 16, _LLAMA_3_2,
        "432f310a77f4650a88d0fd59ecdd7cebed8d684bafea53cbff0473542964f0c3", drafts_for=_LLAMA_TARGETS,
    ),
    "llama_3_2_3b_instruct_q4_k_m": Model(
        "bartowski/Llama-3.2-3B-Instruct-GGUF", "5ab33fa94d1d04e903623ae72c95d1696f09f9e8",
        "Llama-3.2-3B-Instruct-Q4_K_M.gguf", 2019377696, 28, _LLAMA_3_2,
        "6c1a2b41161032677be168d354123594c0e6e67d2b9227c84f296ad037c728ff", drafts_for=_LLAMA_TARGETS,
    ),
    "qwen2_5_coder_0_5b_instruct_q8_0": Model(
        "Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "ebb2015119c907b064c512bf053e945850b5875f",
        "qwen2.5-coder-0.5b-instruct-q8_0.gguf", 675710848, 24, "Apache 2.0",
        "e1a77721fa97d412f121878223eec81fb4ae6f271e18f922d746711f67b344d1", drafts_for=_QWEN_TARGETS,
    ),
    "qwen2_5_coder_1_5b_instruct_q4_k_m": Model(
        "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF", "f86cb2c1fa58255f8052cc32aeede1b7482d4361",
        "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf", 1117320768, 28, "Apache 2.0",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046", drafts_for=_QWEN_TARGETS,
    ),
}


def drafts_of(identifier: str) -> list[str]:
    """Return the models of the catalogue that can draft for one, the smallest first."""
    found = [name for name, model in CATALOGUE.items() if identifier in model.drafts_for]
    return sorted(found, key=lambda name: CATALOGUE[name].size_bytes)


def target_of(identifier: str, entries: t.Container[object]) -> str | None:
    """Return the first of the entries, by id, that a model of the catalogue can draft for, or None."""
    model = CATALOGUE.get(identifier)
    return next((target for target in (model.drafts_for if model else ()) if target in entries), None)
