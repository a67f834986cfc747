# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The header reader against files that were made to break it. Every fault is one sentence, within memory and time."""

from __future__ import annotations

import io
import os
import pathlib
import resource
import struct
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_header, gguf_model
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._models import gguf_bytes as made
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GOOD = made.written()
KEYS = [made.value(name, held) for name, held in made.model().items()]


def read(data: bytes) -> gguf_header.Header:
    return gguf_header.read("/m.gguf", io.BytesIO(data), len(data))


def test_reads_what_was_written():
    header = read(GOOD)
    assert header.fields["general.architecture"] == "llama" and header.fields["llama.block_count"] == 2
    assert header.lengths == {"tokenizer.ggml.tokens": 3}
    assert [tensor.name for tensor in header.tensors] == list(made.NAMES)
    assert {(tensor.elements, tensor.n_bytes) for tensor in header.tensors} == {(256, 1024)}
    assert header.tensors[-1].offset + 1024 == len(GOOD)
    gguf_header.check_extent("/m.gguf", len(GOOD), header.tensors)


def test_a_header_longer_than_the_first_window_is_read_on():
    tokens = ["x" * 50] * 60_000
    header = read(made.written(made.model(changes={"tokenizer.ggml.tokens": tokens})))
    assert header.lengths["tokenizer.ggml.tokens"] == 60_000 and len(header.tensors) == len(made.NAMES)


def test_short_arrays_are_kept_and_long_ones_counted():
    long = made.key("x.long", made.ARRAY, struct.pack("<IQ", made.U8, 70_000) + bytes(70_000))
    header = read(made.file([made.value("x.short", [3, -4]), long], []))
    assert header.fields == {"x.short": [3, -4]} and header.lengths == {"x.short": 2, "x.long": 70_000}


def test_a_type_of_nobody_reaches_to_the_next_tensor():
    data = made.written(kinds={"blk.0.ffn_up.weight": 77, "output.weight": 77})
    assert {tensor.n_bytes for tensor in read(data).tensors} == {1024}


def test_truncation_names_tensor_and_missing_bytes():
    header = read(GOOD)
    with pytest.raises(UserError, match=f"output.weight' ends at byte {len(GOOD)}, .* so 1 bytes are missing"):
        gguf_header.check_extent("/m.gguf", len(GOOD) - 1, header.tensors)


HOSTILE = {
    "empty": (b"", "it is empty"),
    "another format": (b"PK\x03\x04" + bytes(30), "is no GGUF file"),
    "short": (b"GGUF\x03\x00\x00", "cut off"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 1, 1), "big-endian"),
    "version 1": (made.file(KEYS, [], version=1), "GGUF version 1"),
    "version 9": (made.file(KEYS, [], version=9), "GGUF version 9"),
    "more keys than bytes": (made.file(KEYS, [], n_keys=10**6), "list of 1000000 keys"),
    "more tensors than bytes": (made.file(KEYS, [], n_tensors=2**40), "cut off or damaged"),
    "too many keys": (made.file([made.value(f"k{i:06}", 1) for i in range(100_000)], []), "65536 is the most"),
    "array of 2^61 doubles": (
        made.file([made.key("x", made.ARRAY, struct.pack("<IQ", 12, 2**61))], []), "array 'x' would reach"),
    "array of 2^33 strings": (
        made.file([made.key("x", made.ARRAY, struct.pack("<IQ", made.STRING, 2**33))], []), "array 'x' would reach"),
    "strings that end beyond the file": (
        made.file([made.key("x", made.ARRAY, struct.pack("<IQQ", made.STRING, 2, 2**63))], []), "cut off"),
    "five million strings": (
        made.file([made.key("x", made.ARRAY, struct.pack("<IQ", made.STRING, 5_000_000) + bytes(40_000_000))], []),
        "more than 4000000 strings"),
    "array of arrays": (
        made.file([made.key("x", made.ARRAY, struct.pack("<IQIQ", made.ARRAY, 1, made.U8, 1))], []), "array of arrays"),
    "value of no type": (made.file([made.key("x", 13, bytes(8))], []), "of the type 13"),
    "string of 2^50 bytes": (made.file([made.key("x", made.STRING, struct.pack("<Q", 2**50))], []), "value of 'x'"),
    "key of 100000 bytes": (made.file([made.value("k" * 100_000, 1)], []), "a key of 100000 bytes"),
    "key without a name": (made.file([made.value("", 1)], []), "a key without a name"),
    "key with controls, twice": (made.file([made.value("a\n\x1b[2J", 1)] * 2, []), r"key 'a\\n\\x1b\[2J' twice"),
    "tensor twice": (made.file(KEYS, [made.tensor("a", [1])] * 2), "tensor 'a' twice"),
    "name of 64 bytes": (made.file(KEYS, [made.tensor("a" * 64, [1])]), "63 is the most"),
    "five dimensions": (made.file(KEYS, [made.tensor("a", [1] * 5)]), "5 dimensions"),
    "too many elements": (made.file(KEYS, [made.tensor("a", [2**40, 2**40])]), "elements"),
    "half a block": (made.file(KEYS, [made.tensor("a", [48], kind=8)]), "rows of 48 elements"),
    "alignment 12": (made.file([*KEYS, made.value("general.alignment", 12)], []), "no power of two"),
    "negative alignment": (made.file([*KEYS, made.value("general.alignment", -32)], []), "no power of two"),
    "alignment of text": (made.file([*KEYS, made.value("general.alignment", "32")], []), "no power of two"),
    "settings of 20 MB": (made.file([made.value(f"k{i}", "x" * 60_000) for i in range(350)], []), "16 MiB of settings"),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_fault_is_one_sentence(name):
    data, sentence = HOSTILE[name]
    with pytest.raises(UserError, match=sentence) as caught:
        read(data)
    said = str(caught.value)
    assert said.startswith(("/m.gguf ", "The header of /m.gguf ")) and said.endswith(".")
    assert said.isprintable() and len(said) < 400


def described(data: bytes) -> None:
    """Read and describe a file's bytes; any other error than UserError is a failure."""
    try:
        header = read(data)
        gguf_header.check_extent("/m.gguf", len(data), header.tensors)
        model = gguf_model.describe([header], [("/m.gguf", len(data))])
    except UserError as exc:
        assert str(exc).isprintable() and str(exc).endswith("."), str(exc)
        return
    assert 1 <= model["block_count"] <= len(header.tensors)
    numbers = [held for value in model.values() for held in (value if isinstance(value, list) else [value])]
    assert all(number >= 0 for number in numbers if isinstance(number, int))


SLOW = settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@SLOW
@given(st.binary(max_size=400))
def test_any_bytes_after_a_good_start(data):
    described(b"GGUF" + struct.pack("<I", 3) + data)


@SLOW
@given(st.data())
def test_any_mutation_of_a_good_file(data):
    changed = bytearray(GOOD)
    for _change in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(GOOD) - len(made.NAMES) * 1024 - 1))
        new = data.draw(st.binary(min_size=1, max_size=8) | st.sampled_from([b"\xff" * 8, bytes(8), b"\x09", b"\x08"]))
        changed[place : place + len(new)] = new
    described(bytes(changed[: data.draw(st.integers(0, len(changed)) | st.just(len(changed)))]))


VALUES = st.integers(-(2**31), 2**32 - 1) | st.text(max_size=5) | st.booleans() | st.lists(
    st.integers(-(2**31), 2**31 - 1), max_size=5)  # fmt: skip
SETTINGS = (
    "block_count", "embedding_length", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.sliding_window", "attention.sliding_window_pattern", "expert_count", "expert_used_count",
    "nextn_predict_layers", "vocab_size", "context_length", "pooling_type", "attention.value_length",
)  # fmt: skip


@SLOW
@given(
    st.sampled_from(["llama", "gemma3", "qwen35", "gpt-oss", "newcomer"]),
    st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=6),
)
def test_any_value_of_a_setting(architecture, changes):
    described(made.written(made.model(architecture, changes={f"{architecture}.{k}": v for k, v in changes.items()})))


RUN = """
import json, runpy, sys
from ansible.module_utils import basic
basic._ANSIBLE_ARGS = json.dumps({"ANSIBLE_MODULE_ARGS": {"path": sys.argv[1], "cache_dir": sys.argv[2]}}).encode()
basic._ANSIBLE_PROFILE = "legacy"
sys.argv = ["x"]
runpy.run_module("ansible_collections.homelab.mixed_gpu.plugins.modules.gguf_info", run_name="__main__")
"""

HEAVY = {
    "blocks without end": made.written(made.model(blocks=2**31 - 1)),
    "blocks and drafting without end": made.written(
        made.model("qwen35", 2**31 - 1, {"qwen35.nextn_predict_layers": 2**31 - 2})),
    "30 MB of small numbers": made.file(
        [*KEYS, made.key("x", made.ARRAY, struct.pack("<IQ", made.U8, 30_000_000) + bytes(30_000_000))], []),
    "4 million strings": made.file(
        [*KEYS, made.key("x", made.ARRAY, struct.pack("<IQ", made.STRING, 3_900_000) + bytes(31_200_000))], []),
    "100000 tensors": made.file(KEYS, [made.tensor(f"blk.{i}.x", [8]) for i in range(100_000)]),
    "array of arrays, 10000 deep": made.file(
        [*KEYS, made.key("x", made.ARRAY, struct.pack("<IQ", made.ARRAY, 1) * 10_000)], []),
}  # fmt: skip


@pytest.mark.parametrize("name", HEAVY)
def test_the_module_stays_below_a_gibibyte(name, tmp_path: pathlib.Path):
    """In a process of its own, with 1 GiB of address space and 20 seconds of processor time: the bars of the issue."""
    path = tmp_path / "m.gguf"
    path.write_bytes(HEAVY[name])

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        resource.setrlimit(resource.RLIMIT_CPU, (20, 20))

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(tmp_path / "cache")],
        capture_output=True, text=True, preexec_fn=limit, env=environment, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("\n{") and "Traceback" not in done.stderr, done.stderr[-500:]
    assert '"exception"' not in done.stdout
