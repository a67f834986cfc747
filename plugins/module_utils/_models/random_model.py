# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Models with random weights, written as GGUF with the gguf library: the same options give the same file.

Private to this collection. Modules random_gguf and model_plan are its faces.
"""

from __future__ import annotations

import contextlib
import os
import typing as t

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator

from .._base import host_python, json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping
from . import disk, known_next_token, manifest, part_file, random_shape, transfer

LOCK_WAIT_SECONDS = 30  # longer than any model of this kind takes to write

#: Options of random_gguf that make the model, as an argument_spec.
ARGUMENTS: t.Final[dict[str, Json]] = {
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
    "expert_count": {"type": "int", "default": 0},
    "expert_used_count": {"type": "int", "default": 0},
    "agreement": {"type": "list", "elements": "float", "default": []},
}


def checked_options(options: Mapping) -> Json:
    """Return the options of a random model with defaults. Raises UserError with what is wrong, as a clause."""
    checked = ArgumentSpecValidator(ARGUMENTS).validate(options)
    if checked.error_messages:
        raise UserError("; ".join(str(message).rstrip(".") for message in checked.error_messages))
    parameters: Json = checked.validated_parameters
    random_shape.check_random_parameters(parameters)
    return parameters


#: Begins a call of the first tool where tools are given, else a text. llama.cpp takes the marks for those of Cohere2
#: MoE, and its grammar for them lets nothing but a call follow, so that even random weights make tool calls.
CHAT_TEMPLATE: t.Final = """\
{%- for tool in tools or [] -%}
tool {{ tool.function.name }}: {{ tool.function.parameters | tojson }}{{ '\\n' }}
{%- endfor -%}
{%- for message in messages -%}
{{ message.role }}: {{ message.content or '' }}
{%- for call in message.tool_calls or [] %} {{ call.function.name }} {{ call.function.arguments | tojson }}{% endfor -%}
{{ '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>
{%- if tools -%}
<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "{{ tools[0].function.name }}", "parameters":
{%- else -%}
<|START_TEXT|>
{%- endif -%}
{%- endif -%}
"""


#: The tokens of single characters, see _vocabulary. Before them are the special tokens, 256 bytes and the space, behind
#: them are those that have no text at all.
_CHARACTERS: t.Final = slice(3 + 256 + 1, 3 + 256 + 1 + 94)


def _vocabulary(size: int, known: bool) -> list[tuple[bytes, float, int]]:
    """Return (text, score, type) of every token of a SentencePiece vocabulary that can spell any text by bytes.

    C(known): the rest are words, so that the text of an answer tells its tokens.
    """
    from gguf import TokenType

    tokens = [
        (b"<unk>", 0.0, TokenType.UNKNOWN), (b"<s>", 0.0, TokenType.CONTROL), (b"</s>", 0.0, TokenType.CONTROL),
        *((f"<0x{value:02X}>".encode(), 0.0, TokenType.BYTE) for value in range(256)),
        ("\u2581".encode(), -1.0, TokenType.NORMAL),
    ]  # fmt: skip
    if known:
        names = known_next_token.words(size - len(tokens))
        tokens += ((name.encode(), -2.0 - 0.001 * rank, TokenType.NORMAL) for rank, name in enumerate(names))
        return [(text, score, int(kind)) for text, score, kind in tokens]
    tokens += ((bytes([code]), -2.0 - 0.01 * rank, TokenType.NORMAL) for rank, code in enumerate(range(33, 127)))
    tokens += ((f"<unused{index}>".encode(), -1000.0, TokenType.UNUSED) for index in range(size - len(tokens)))
    return [(text, score, int(kind)) for text, score, kind in tokens]


def _add_metadata(writer: t.Any, parameters: Json, fingerprint: str) -> None:
    """Add the header: shape, tokenizer, chat template."""
    width = parameters["embedding_length"]
    writer.add_string(random_shape.PARAMETERS_KEY, fingerprint)  # early in the file, where it is looked for
    writer.add_name(f"Random {random_shape.architecture(parameters)} {parameters['blocks']}x{width}")
    writer.add_block_count(parameters["blocks"])
    writer.add_context_length(parameters["context_length"])
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(parameters["feed_forward_length"])
    writer.add_head_count(parameters["head_count"])
    writer.add_head_count_kv(parameters["head_count_kv"])
    writer.add_rope_dimension_count(width // parameters["head_count"])
    if parameters["expert_count"]:
        writer.add_expert_count(parameters["expert_count"])
        writer.add_expert_used_count(parameters["expert_used_count"])
        writer.add_expert_feed_forward_length(parameters["feed_forward_length"])
        writer.add_key_length(width // parameters["head_count"])
        writer.add_value_length(width // parameters["head_count"])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(parameters["vocabulary_size"])
    tokens = _vocabulary(parameters["vocabulary_size"], bool(parameters["agreement"]))
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


def _add_tensors(writer: t.Any, parameters: Json, stored: t.Any) -> None:
    """Add random weights of the type ``stored``. Deterministic: one generator, used in one order."""
    import gguf
    import numpy

    width, vocabulary = parameters["embedding_length"], parameters["vocabulary_size"]
    generator = numpy.random.default_rng(parameters["seed"])

    def matrix(*shape: int, scale: float = 0.02) -> t.Any:
        values = generator.standard_normal(shape, dtype=numpy.float32) * numpy.float32(scale)
        return gguf.quants.quantize(values, stored)

    def block() -> Json:
        return {name: matrix(*shape) for name, shape in random_shape.block_shapes(parameters).items()}

    def vectors() -> Json:
        # a router of equal weights would send all tokens to the same experts
        return {
            name: numpy.ones(shape, dtype=numpy.float32)
            if len(shape) == 1
            else generator.standard_normal(shape, dtype=numpy.float32)
            for name, shape in random_shape.vector_shapes(parameters).items()
        }

    norm = numpy.ones(width, dtype=numpy.float32)
    embedding, output = matrix(vocabulary, width, scale=1.0), matrix(vocabulary, width)
    if parameters["agreement"]:
        output = _successors(embedding, parameters, stored)
    else:
        # an answer neither ends at once, nor is it empty, nor has it bytes that are no text: llama-server refuses those
        said = output[_CHARACTERS].copy()
        output[:] = 0
        output[_CHARACTERS] = said
    writer.add_tensor("token_embd.weight", embedding, raw_dtype=stored)
    writer.add_tensor("output_norm.weight", norm)
    writer.add_tensor("output.weight", output, raw_dtype=stored)
    weights = block()
    for index in range(parameters["blocks"]):
        if index and parameters["distinct_blocks"]:
            weights = block()
        for name, values in vectors().items():
            writer.add_tensor(f"blk.{index}.{name}.weight", values)
        for name, values in weights.items():
            nothing = parameters["agreement"] and name in known_next_token.SILENT
            kept = numpy.zeros_like(values) if nothing else values
            writer.add_tensor(f"blk.{index}.{name}.weight", kept, raw_dtype=stored)


def _successors(embedding: t.Any, parameters: Json, stored: t.Any) -> t.Any:
    """Return the output matrix that makes the next token known (known_next_token.py)."""
    import gguf
    import numpy

    agreement = parameters["agreement"]
    known = known_next_token.target(parameters["vocabulary_size"], len(agreement), 0)
    if any(share < 1 for share in agreement):
        known, _wrong = known_next_token.draft(known, agreement, parameters["seed"])
    # the engine sees the stored embedding
    seen = gguf.quants.dequantize(embedding, stored)
    direction = seen / numpy.linalg.norm(seen, axis=1, keepdims=True)
    output = numpy.zeros_like(seen)
    numpy.add.at(output, known.following, direction)
    return gguf.quants.quantize(output, stored)


def write_model(path: str, parameters: Json, fingerprint: str) -> None:
    """Write the model. Deterministic: one generator, used in one order."""
    import gguf

    stored = gguf.GGMLQuantizationType[parameters["type"].upper()]
    writer = gguf.GGUFWriter(path, random_shape.architecture(parameters))
    _add_metadata(writer, parameters, fingerprint)
    writer.add_file_type(gguf.LlamaFileType[f"MOSTLY_{stored.name}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_tensors(writer, parameters, stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class RandomModel:
    """One generated model on the host. Every failure is a UserError with one sentence."""

    def __init__(self, module: t.Any, params: Mapping) -> None:
        """Take an AnsibleModule and the options of the module random_gguf. Raises UserError on a wrong shape."""
        self.module, self.path = module, os.path.abspath(params["path"])
        self.host_python, self.trusted_owners = params["host_python"], params["trusted_owners"]
        self.parameters = {name: params[name] for name in random_shape.RANDOM_OPTIONS}
        try:
            random_shape.check_random_parameters(self.parameters)
        except UserError as exc:
            raise UserError(f"No random model {self.path}: {exc}") from exc
        self.fingerprint = random_shape.parameters_hash(self.parameters)
        self.source = {"kind": "generated", "parameters_sha256": self.fingerprint}
        self.manifest_file = manifest.manifest_path(params["manifest_dir"], self.path)
        self.directory, free_bytes = disk.free_space(self.path)
        self.result: Json = {
            "changed": False, "path": self.path, "present": True, "sha256": None, "size_bytes": None,
            "missing_bytes": 0, "free_bytes": free_bytes, "filesystem": disk.filesystem(self.path),
        }  # fmt: skip

    def look(self) -> Json:
        """Return the result of random_gguf in check mode: changed and not present where it would be written."""
        made_of = self.present_parameters()
        recorded = manifest.read_manifest(self.manifest_file, self.module.warn)
        # A file of ours that was changed since it was recorded is written again: only then it is known to be right.
        if made_of == self.fingerprint and recorded is not None and recorded.get("source") == self.source:
            believed = manifest.believed(recorded, self.path)
            if believed is not None:
                return {**self.result, "sha256": believed.sha256, "size_bytes": os.path.getsize(self.path)}
        needed, free_bytes = random_shape.random_model_bytes(self.parameters), self.result["free_bytes"]
        result = {**self.result, "changed": True, "missing_bytes": needed, "present": False}
        if self.module._diff:
            before = {"parameters_sha256": made_of} if made_of else {}
            result["diff"] = {
                "before": before, "after": {"parameters_sha256": self.fingerprint, **self.parameters}
            }  # fmt: skip
        if needed > free_bytes:
            raise UserError(
                f"{self.directory} has {transfer.size_text(free_bytes)} free, and {self.path} needs "
                f"{transfer.size_text(needed)}: free some space, or ask for a smaller model."
            )
        return result

    def present_parameters(self) -> str | None:
        """Return the hash of the options that the present file was made with; None without a file."""
        try:
            with open(self.path, "rb") as handle:
                made_of = random_shape.stored_parameters_hash(handle.read(4096))
        except FileNotFoundError:
            return None
        except OSError as exc:
            raise UserError(
                f"{self.path} cannot be read ({exc.strerror}): check what is there, or choose another path."
            ) from exc
        if made_of is None:
            raise UserError(f"{self.path} was not made by random_gguf and is left alone: remove it, or choose another.")
        return made_of

    def write(self, result: Json) -> Json:
        """Write the model, and complete the result of look()."""
        reason = host_python.enter(["gguf", "numpy"], self.host_python)
        if reason:
            raise UserError(f"{self.path} cannot be made: {reason}")
        disk.check_owner(self.path, self.trusted_owners)
        part = part_file.PartFile(f"{self.path}.part")
        lock = json_file.take_lock(f"{self.manifest_file}.lock", LOCK_WAIT_SECONDS)
        if lock is None:
            raise UserError(f"Another play is making {self.path}: wait until it has ended, then run this again.")
        try:
            disk.make_parents(self.path)
            part.open(0).close()  # a file of ours, before the library opens it by its name
            write_model(part.path, self.parameters, self.fingerprint)
            digest, size_bytes = manifest.digest(part.path), os.path.getsize(part.path)
            disk.publish(part.path, self.path, self.module.atomic_move)
            manifest.write_manifest(self.manifest_file, self.path, digest, self.source, self.module.atomic_move)
        except OSError as exc:
            raise UserError(
                f"{self.path} cannot be written ({exc.strerror or exc}): check the directory and its disk."
            ) from exc
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(part.path)
            json_file.release_lock(lock)
        return {**result, "present": True, "sha256": digest.sha256, "size_bytes": size_bytes}
