# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The two generations of ExLlama behind one form, for exllama_worker.py beside this file, whose orders they read."""

from __future__ import annotations

import contextlib
import gc
import os

import torch

#: How often a misplaced split is corrected where nothing is loaded for it (exllamav2 decides on paper).
PAPER_TRIES = 24
#: Tokens whose logits are asked for at once: ExLlamaV2 keeps scratch space for so many (max_output_len).
LOGITS_AT_ONCE = 16


#: By how much numbers grow that did not give the wanted shares: the more is left, the better the ratio holds.
ROOMIER = 1.25


class Misplaced(Exception):
    """The engine does not put the layers where they are wanted."""


class Refused(Exception):
    """The engine has no tensor parallelism for this model."""


def corrected(tried, wanted, block_gb):
    """The next split to try after those tried, [(split, found)] with the latest last; None where no number can help.

    The first card that is wrong is moved, since what lies on later cards follows from it: by the blocks that it has too
    many or too few of, and halfway between once one number is known to be too small and one too large (the output
    layer can be far smaller than a block, and a step of whole blocks leaps over it). The last card takes what is left.
    """
    split, found = tried[-1]
    card = next((card for card, (want, have) in enumerate(zip(wanted, found, strict=True)) if want != have), None)
    if card is None or not any(wanted[card + 1 :]):
        return None
    alike = [(shares[card], layers[card]) for shares, layers in tried if shares[:card] == split[:card]]
    too_small = [share for share, layers in alike if layers < wanted[card]]
    too_large = [share for share, layers in alike if layers > wanted[card]]
    if too_small and too_large:
        share = (max(too_small) + min(too_large)) / 2
    else:
        share = split[card] + (wanted[card] - found[card]) * block_gb
    return [*split[:card], share, *split[card + 1 :]]


class V2:
    """exllamav2: gpu_split is a plan on paper, so it is corrected before anything is loaded."""

    def __init__(self, order):
        import exllamav2

        self.order, self.package, self.tries = order, exllamav2, 0
        config = exllamav2.ExLlamaV2Config(order["model"])
        config.arch_compat_overrides()
        # as TabbyAPI sets them: they decide the memory that is kept for scratch space
        config.max_seq_len = order["context_size"]
        config.max_input_len = order["chunk_size"]
        config.max_attention_size = order["chunk_size"] ** 2
        config.max_output_len = LOGITS_AT_ONCE
        self.config = config
        self.model = exllamav2.ExLlamaV2(config)
        self.vocabulary = config.vocab_size

    def encode(self, text):
        return self.package.ExLlamaV2Tokenizer(self.config).encode(text, add_bos=True)

    def state(self, _past):
        return contextlib.nullcontext()

    def layers(self):
        """Blocks and the output layer per card; a block whose halves part counts half on each."""
        counts = [0.0] * len(self.order["layers"])
        parts = [part for part in self.model.modules if getattr(part, "layer_idx", None) is not None]
        blocks = len({part.layer_idx for part in parts})
        for part in parts:
            counts[part.device_idx] += blocks / len(parts)
        counts[self.model.modules[self.model.head_layer_idx].device_idx] += 1
        return [round(count, 3) for count in counts]

    def load(self):
        split, tried = list(self.order["gpu_split_gb"]), []
        tries = PAPER_TRIES if self.order["tries"] > 1 else 1  # one of a recorded split
        for attempt in range(1, tries + 1):
            self.tries = attempt
            try:
                self.model.load(split, lazy=True)
                found = self.layers()
            except AssertionError:  # "Insufficient space in device allocation"
                found = None
            if found == self.order["layers"]:
                break
            tried += [(split, found)] if found else []
            better = found and attempt < tries and corrected(tried, self.order["layers"], self.order["block_gb"])
            if not better:
                raise Misplaced(f"exllamav2 makes {found or 'nothing'} of gpu_split {split}")
            split = better
        self.model.load(split)
        suffix = {"FP16": "", "Q8": "_Q8", "Q6": "_Q6", "Q4": "_Q4"}[self.order["cache"]]
        cache_class = getattr(self.package, f"ExLlamaV2Cache{suffix}")
        self.cache = cache_class(self.model, max_seq_len=self.order["context_size"])
        return split

    def prompt(self, ids, past):
        self.cache.current_seq_len = past
        self.model.forward(ids, self.cache, preprocess_only=True)

    def logits(self, ids, past):
        self.cache.current_seq_len = past
        return self.model.forward(ids, self.cache)

    def generate(self, ids, past, count):
        self.cache.current_seq_len = past
        token, tokens = ids[:, :1], []
        for _number in range(count):
            logits = self.model.forward(token, self.cache)
            token = torch.argmax(logits[0, -1]).cpu().reshape(1, 1).clamp(0, self.vocabulary - 1)
            tokens.append(token)
        return tokens


class V3:
    """exllamav3: where a block goes shows only when it is loaded, so a correction is another load."""

    def __init__(self, order):
        import exllamav3

        self.order, self.package, self.tries, self.recurrent = order, exllamav3, 0, None
        self.config = config = exllamav3.Config.from_directory(order["model"])
        self.model = exllamav3.Model.from_config(config)
        self.vocabulary = config.vocab_size
        bits = order["cache"]
        kind = {"layer_type": exllamav3.CacheLayer_quant, "k_bits": bits[0], "v_bits": bits[1]} if bits else {}
        self.shared = order["split_mode"] == "tensor"
        self.allreduce = os.environ.get("MIXED_GPU_EXLLAMA_ALLREDUCE") or "native"
        # as TabbyAPI for models whose blocks keep a state: each slot has one, and the library's own default is 16
        self.cache = exllamav3.Cache(self.model, max_num_tokens=order["context_size"], max_batch_size=4, **kind)

    def encode(self, text):
        return self.package.Tokenizer.from_config(self.config).encode(text, add_bos=True)

    def layers(self):
        counts = [0] * len(self.order["layers"])
        if self.shared:
            return self.shares()
        for module in self.model.modules:
            if module.caps.get("logits_output") or getattr(module, "layer_idx", None) is not None:
                counts[torch.device(module.device).index or 0] += 1
        return counts

    def shares(self):
        """What each card has of the attention of all blocks, in the units of the order."""
        units, plan = sum(self.order["layers"]), self.model.plan
        heads = [sum(end - start for start, end, unit in part.values() if unit == "heads") for part in plan]
        return [round(units * count / max(1, sum(heads))) for count in heads]

    def load(self):
        return self.load_shared() if self.shared else self.load_layers()

    def load_shared(self):
        if self.allreduce == "nccl" and not torch.distributed.is_nccl_available():
            raise Refused("this PyTorch has no NCCL")
        split = list(self.order["gpu_split_gb"])
        for attempt in range(1, self.order["tries"] + 1):
            self.tries = attempt
            try:
                self.model.load(
                    tensor_p=True,
                    tp_backend=self.allreduce,
                    use_per_device=split,
                    max_chunk_size=self.order["chunk_size"],
                )
            except (NotImplementedError, AssertionError) as error:
                raise Refused(str(error) or repr(error)) from error
            found = self.shares()
            if found == self.order["layers"]:
                # a card that compiles kernels for the first time can keep the others waiting for too long
                self.model.warmup(self.cache, self.order["chunk_size"], max_batch_size=1, long_context=False)
                return split
            self.close()
            split = [share * ROOMIER for share in split]
        raise Misplaced(f"exllamav3 makes shares {found} of gpu_split {self.order['gpu_split_gb']}")

    def close(self):
        """Unload the model, and end the processes of further cards."""
        self.model.unload()
        gc.collect()
        torch.cuda.empty_cache()

    def load_layers(self):
        split, tried = list(self.order["gpu_split_gb"]), []
        for attempt in range(1, self.order["tries"] + 1):
            self.tries = attempt
            self.model.load(use_per_device=split, max_chunk_size=self.order["chunk_size"])
            found = self.layers()
            if found == self.order["layers"]:
                return split
            tried.append((split, found))
            better = corrected(tried, self.order["layers"], self.order["block_gb"])
            self.close()
            if not better:
                break
            split = better
        raise Misplaced(f"exllamav3 makes {found} of gpu_split {tried[-1][0]} at load {self.tries}")

    def parameters(self, past):
        return {
            "attn_mode": "flash_attn",
            "cache": self.cache,
            "past_len": past,
            "batch_shape": (1, self.order["context_size"]),
            "recurrent_states": self.recurrent,
        }

    @contextlib.contextmanager
    def state(self, past):
        """A state for models that have one beside their KV cache."""
        recurrent = self.model.caps.get("recurrent_states", False)
        self.recurrent = [self.cache.get_test_state(past)] if recurrent else None
        yield
        if recurrent:
            self.recurrent[0].free()

    def prompt(self, ids, past):
        step = self.order["chunk_size"]
        for start in range(0, ids.shape[-1], step):
            self.model.prefill(ids[:, start : start + step], self.parameters(past + start))
        if self.shared:
            self.model.tp_drain_acks()  # the other cards' processes go on

    def logits(self, ids, past):
        return self.model.forward(ids, self.parameters(past))

    def generate(self, ids, past, count):
        token, tokens = ids[:, :1], []
        for number in range(count):
            logits = self.model.forward(token, self.parameters(past + number))
            token = torch.argmax(logits[0, -1]).cpu().reshape(1, 1).clamp(0, self.vocabulary - 1)
            tokens.append(token)
        return tokens
