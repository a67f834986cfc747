#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: random_gguf
short_description: Make a GGUF model with random weights
version_added: 0.1.0
description:
  - Writes a model of the llama architecture that llama.cpp loads and generates from, to try a host without a download.
  - What it says is noise; what it costs is that of a real model of the same shape.
  - The same options give the same file, byte for byte.
  - A file at O(path) that was not made by this module is never replaced.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
options:
  path:
    description: The file to write. It appears whole or not at all.
    type: path
    required: true
  blocks:
    description: Number of repeating blocks.
    type: int
    default: 16
  embedding_length:
    description: Width of the model. A multiple of 32, and of twice O(head_count).
    type: int
    default: 256
  feed_forward_length:
    description: Width of the feed-forward layers. A multiple of 32.
    type: int
    default: 512
  head_count:
    description: Number of attention heads.
    type: int
    default: 8
  head_count_kv:
    description: Number of key and value heads. A divisor of O(head_count).
    type: int
    default: 4
  vocabulary_size:
    description: Number of tokens. Special tokens, bytes and printable ASCII take 354; the rest is unused.
    type: int
    default: 512
  context_length:
    description: Tokens of context that the header declares.
    type: int
    default: 4096
  type:
    description: Type of the weights.
    type: str
    choices: [f16, q8_0, q4_0]
    default: f16
  seed:
    description: Seed of the random weights.
    type: int
    default: 0
  distinct_blocks:
    description:
      - Whether every block has weights of its own.
      - Otherwise all blocks repeat the first one, which is quicker to write.
    type: bool
    default: false
  manifest_dir:
    description: Directory of the manifests, which make a second run quick.
    type: path
    default: /var/lib/mixed_gpu/models
  host_python:
    description: Python interpreter with the C(gguf) library, used when the module's own has no such library.
    type: path
    default: /opt/mixed_gpu/venv/bin/python
requirements:
  - gguf >= 0.10 (the P(homelab.mixed_gpu.host_python#role) role installs it)
seealso:
  - module: homelab.mixed_gpu.gguf_info
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Make a model of about 400 MB
  homelab.mixed_gpu.random_gguf:
    path: /var/lib/llm_models/sandbox/sandbox.gguf
    blocks: 32
    embedding_length: 1024
    feed_forward_length: 2816
    type: q8_0
"""

RETURN = r"""
path:
  description: The file.
  returned: success
  type: str
present:
  description: Whether the file exists now, as asked for.
  returned: success
  type: bool
sha256:
  description: SHA-256 of the file. V(none) in check mode when it would be written.
  returned: success
  type: str
size_bytes:
  description: Size of the file. V(none) in check mode when it would be written.
  returned: success
  type: int
missing_bytes:
  description: Bytes of disk that had to be free before the file was written, V(0) when nothing was to be done.
  returned: success
  type: int
free_bytes:
  description: Bytes that were free on the file's filesystem.
  returned: success
  type: int
filesystem:
  description: Where the file's filesystem is mounted.
  returned: success
  type: str
"""

import contextlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_file, model_files, transfer

LOCK_WAIT_SECONDS = 30                    # longer than any model of this kind takes to write

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def _vocabulary(size: int) -> list[tuple[bytes, float, int]]:
    """Return (text, score, type) of every token of a SentencePiece vocabulary that can spell any text by bytes."""
    from gguf import TokenType

    tokens = [
        (b"<unk>", 0.0, TokenType.UNKNOWN), (b"<s>", 0.0, TokenType.CONTROL), (b"</s>", 0.0, TokenType.CONTROL),
        *((f"<0x{value:02X}>".encode(), 0.0, TokenType.BYTE) for value in range(256)),
        ("\u2581".encode(), -1.0, TokenType.NORMAL),
        *((bytes([code]), -2.0 - 0.01 * rank, TokenType.NORMAL) for rank, code in enumerate(range(33, 127))),
    ]
    tokens += ((f"<unused{index}>".encode(), -1000.0, TokenType.UNUSED) for index in range(size - len(tokens)))
    return [(text, score, int(kind)) for text, score, kind in tokens]


def _write(path: str, parameters: dict[str, t.Any], fingerprint: str) -> None:
    """Write the model. Deterministic: one generator, used in one order."""
    import gguf
    import numpy

    stored = gguf.GGMLQuantizationType[parameters["type"].upper()]
    width, vocabulary = parameters["embedding_length"], parameters["vocabulary_size"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string(gguf_file.PARAMETERS_KEY, fingerprint)           # early in the file, where it is looked for
    writer.add_name(f"Random llama {parameters['blocks']}x{width}")
    writer.add_block_count(parameters["blocks"])
    writer.add_context_length(parameters["context_length"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(parameters["feed_forward_length"])
    writer.add_head_count(parameters["head_count"])
    writer.add_head_count_kv(parameters["head_count_kv"])
    writer.add_rope_dimension_count(width // parameters["head_count"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(vocabulary)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{stored.name}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    tokens = _vocabulary(vocabulary)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([text for text, _score, _kind in tokens])
    writer.add_token_scores([score for _text, score, _kind in tokens])
    writer.add_token_types([kind for _text, _score, kind in tokens])
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    generator = numpy.random.default_rng(parameters["seed"])

    def matrix(rows: int, columns: int, scale: float = 0.02) -> t.Any:
        values = generator.standard_normal((rows, columns), dtype=numpy.float32) * numpy.float32(scale)
        return gguf.quants.quantize(values, stored)

    def block() -> dict[str, t.Any]:
        return {name: matrix(rows, columns) for name, (rows, columns) in gguf_file.block_shapes(parameters).items()}

    norm = numpy.ones(width, dtype=numpy.float32)
    writer.add_tensor("token_embd.weight", matrix(vocabulary, width, scale=1.0), raw_dtype=stored)
    writer.add_tensor("output_norm.weight", norm)
    writer.add_tensor("output.weight", matrix(vocabulary, width), raw_dtype=stored)
    weights = block()
    for index in range(parameters["blocks"]):
        if index and parameters["distinct_blocks"]:
            weights = block()
        writer.add_tensor(f"blk.{index}.attn_norm.weight", norm)
        writer.add_tensor(f"blk.{index}.ffn_norm.weight", norm)
        for name, values in weights.items():
            writer.add_tensor(f"blk.{index}.{name}.weight", values, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "blocks": {"type": "int", "default": 16},
            "embedding_length": {"type": "int", "default": 256},
            "feed_forward_length": {"type": "int", "default": 512},
            "head_count": {"type": "int", "default": 8},
            "head_count_kv": {"type": "int", "default": 4},
            "vocabulary_size": {"type": "int", "default": 512},
            "context_length": {"type": "int", "default": 4096},
            "type": {"type": "str", "choices": ["f16", "q8_0", "q4_0"], "default": "f16"},
            "seed": {"type": "int", "default": 0},
            "distinct_blocks": {"type": "bool", "default": False},
            "manifest_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    parameters = {name: module.params[name] for name in gguf_file.RANDOM_OPTIONS}
    path = os.path.abspath(module.params["path"])
    try:
        gguf_file.check_random_parameters(parameters)
    except gguf_file.GgufError as exc:
        module.fail_json(msg=f"No random model {path}: {exc}")
    fingerprint = gguf_file.parameters_hash(parameters)
    source = {"kind": "generated", "parameters_sha256": fingerprint}
    manifest_file = model_files.manifest_path(module.params["manifest_dir"], path)
    recorded = model_files.read_manifest(manifest_file, module.warn)
    directory, free_bytes = model_files.free_space(path)
    result: dict[str, t.Any] = {
        "changed": False, "path": path, "present": True, "sha256": None, "size_bytes": None, "missing_bytes": 0,
        "free_bytes": free_bytes, "filesystem": model_files.filesystem(path),
    }
    made_of, size_bytes = None, None
    try:
        with open(path, "rb") as handle:
            made_of = gguf_file.stored_parameters_hash(handle.read(4096))
            size_bytes = os.fstat(handle.fileno()).st_size
    except FileNotFoundError:
        pass
    except OSError as exc:
        module.fail_json(msg=f"{path} cannot be read ({exc.strerror}): check what is there, or choose another path.")
    if size_bytes is not None and made_of is None:
        module.fail_json(msg=f"{path} was not made by random_gguf and is left alone: remove it, or choose another.")

    # A file of ours that was changed since it was recorded is written again: only then it is known to be right.
    if made_of == fingerprint and recorded is not None and recorded.get("source") == source:
        believed = model_files.believed(recorded, path)
        if believed is not None:
            module.exit_json(**{**result, "sha256": believed.sha256, "size_bytes": size_bytes})

    needed = gguf_file.random_model_bytes(parameters)
    result.update(changed=True, missing_bytes=needed)
    if module._diff:
        before = {"parameters_sha256": made_of} if made_of else {}
        result["diff"] = {"before": before, "after": {"parameters_sha256": fingerprint, **parameters}}
    if needed > free_bytes:
        module.fail_json(
            msg=f"{directory} has {transfer.size_text(free_bytes)} free, and {path} needs "
            f"{transfer.size_text(needed)}: free some space, or ask for a smaller model.",
        )
    if module.check_mode:
        module.exit_json(**{**result, "present": False})

    reason = host_python.enter(["gguf", "numpy"], module.params["host_python"])
    if reason:
        module.fail_json(msg=f"{path} cannot be made: {reason}")
    part = f"{path}.part"
    lock = None
    try:
        lock = json_file.take_lock(f"{manifest_file}.lock", LOCK_WAIT_SECONDS)
        if lock is None:
            module.fail_json(msg=f"Another play is making {path}: wait until it has ended, then run this one again.")
        model_files.make_parents(path)
        _write(part, parameters, fingerprint)
        digest = model_files.digest(part)
        size_bytes = os.path.getsize(part)
        model_files.publish(part, path, module.atomic_move)
        model_files.write_manifest(manifest_file, path, digest, source, module.atomic_move)
    except OSError as exc:
        module.fail_json(msg=f"{path} cannot be written ({exc.strerror or exc}): check the directory and its disk.")
    finally:
        if lock is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part)
            json_file.release_lock(lock)
    module.exit_json(**{**result, "sha256": digest.sha256, "size_bytes": size_bytes})


if __name__ == "__main__":
    main()
