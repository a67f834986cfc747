# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one table of tensor types: their numbers in GGUF files, their sizes, and whose they are. Private; pure.

TYPES and FILE_TYPES are those of llama.cpp b11312 (ggml/src/ggml.c, include/llama.h); tests compare them with its
source, and with the built engine where there is one. A number that is in no table is unknown, not wrong.
"""

from __future__ import annotations

import typing as t


class TensorType(t.NamedTuple):
    """A type of llama.cpp: ``elements`` of one block take ``n_bytes``."""

    name: str
    elements: int
    n_bytes: int


TYPES: t.Final[dict[int, TensorType]] = {
    number: TensorType(*row)
    for number, row in {
        0: ("f32", 1, 4), 1: ("f16", 1, 2), 2: ("q4_0", 32, 18), 3: ("q4_1", 32, 20), 6: ("q5_0", 32, 22),
        7: ("q5_1", 32, 24), 8: ("q8_0", 32, 34), 9: ("q8_1", 32, 36), 10: ("q2_K", 256, 84), 11: ("q3_K", 256, 110),
        12: ("q4_K", 256, 144), 13: ("q5_K", 256, 176), 14: ("q6_K", 256, 210), 15: ("q8_K", 256, 292),
        16: ("iq2_xxs", 256, 66), 17: ("iq2_xs", 256, 74), 18: ("iq3_xxs", 256, 98), 19: ("iq1_s", 256, 50),
        20: ("iq4_nl", 32, 18), 21: ("iq3_s", 256, 110), 22: ("iq2_s", 256, 82), 23: ("iq4_xs", 256, 136),
        24: ("i8", 1, 1), 25: ("i16", 1, 2), 26: ("i32", 1, 4), 27: ("i64", 1, 8), 28: ("f64", 1, 8),
        29: ("iq1_m", 256, 56), 30: ("bf16", 1, 2), 34: ("tq1_0", 256, 54), 35: ("tq2_0", 256, 66),
        39: ("mxfp4", 32, 17), 40: ("nvfp4", 64, 36), 41: ("q1_0", 128, 18), 42: ("q2_0", 64, 18),
    }.items()
}  # fmt: skip

#: name in lower case -> number, and its row of the table
NUMBERS: t.Final[dict[str, int]] = {kind.name.lower(): number for number, kind in TYPES.items()}
BY_NAME: t.Final[dict[str, TensorType]] = {kind.name.lower(): kind for kind in TYPES.values()}

#: general.file_type -> name, as LLAMA_FTYPE has it without its prefix.
FILE_TYPES: t.Final[dict[int, str]] = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16", 36: "TQ1_0", 37: "TQ2_0", 38: "MXFP4_MOE", 39: "NVFP4",
    40: "Q1_0", 41: "Q2_0",
}  # fmt: skip

#: Types that llama.cpp once had; a file that still has one cannot be loaded.
_REMOVED: t.Final[dict[int, str]] = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8",
}  # fmt: skip
#: The same numbers in bitnet.cpp, a fork of that time.
_BITNET: t.Final[dict[int, str]] = {36: "I2_S", 37: "I8_S", 38: "TL1"}
#: ggml/include/ggml.h of ik_llama.cpp. Its numbers from 200 on are types of llama.cpp or its own, repacked in rows.
_IK_LLAMA: t.Final[dict[int, str]] = {
    97: "Q8_0_X4", 98: "Q8_1_X4", 99: "Q8_2_X4", 133: "Q6_0", 134: "IQ1_BN", 135: "IQ2_BN", 136: "Q8_K64", 137: "IQ2_K",
    138: "IQ3_K", 139: "IQ4_K", 140: "IQ5_K", 141: "IQ6_K", 144: "IQ4_KS", 145: "IQ2_KS", 146: "IQ4_KSS",
    147: "Q8_K16", 148: "Q8_K32", 149: "Q8_KR8", 150: "Q8_K128", 151: "Q8_KV", 152: "IQ5_KS", 153: "IQ2_KT",
    154: "IQ3_KT", 155: "IQ4_KT", 156: "IQ3_KS", 157: "IQ2_KL", 158: "IQ1_KT",
}  # fmt: skip
_IK_LLAMA_RANGES: t.Final = (range(97, 100), range(133, 200), range(200, 400))


def foreign(number: int) -> str | None:
    """Return whose a type is that llama.cpp has not, as a clause; None for its own types and for unknown ones."""
    if number in TYPES:
        return None
    removed, bitnet = _REMOVED.get(number), _BITNET.get(number)
    if removed and bitnet:
        return f"which is {bitnet} of bitnet.cpp, or {removed}, which llama.cpp has removed"
    if removed:
        return f"which is {removed}, and llama.cpp has removed it"
    if any(number in numbers for numbers in _IK_LLAMA_RANGES):
        named = _IK_LLAMA.get(number) or ("a repacked quantisation" if number >= 200 else "a quantisation")
        return f"which is {named} of ik_llama.cpp, another engine"
    return None
