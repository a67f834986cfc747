# SPDX-License-Identifier: GPL-3.0-or-later
"""Load a model with ExLlama and measure it. Run by the collection with the Python of ExLlama's environment.

Its one argument is an order (JSON), and it prints one answer (JSON); what the engine says goes to standard error.
One process is one load of the model, with several tests.

The order: action (devices | measure), and to measure: engine (exllamav2 | exllamav3), model (a folder), layers (wanted
per card, in CUDA's order), gpu_split_gb, block_gb (what one block more moves a card's number), context_size,
chunk_size, cache (exllamav2: FP16, Q8, Q6, Q4; exllamav3: null or [bits of K, bits of V]), tests, tries, and text,
text_tokens, answer_tokens (see answers).

The answer: status (ok | out_of_memory | misplaced), reason, and when ok: versions, layers as loaded, the gpu_split_gb
that led there, tries, devices with their memory, results, and answers. Anything else ends with a traceback and an exit
status.

The tests are ExLlama's own speed tests, test_inference.py (-ps, -s) of exllamav2, eval/perf.py of exllamav3: a prompt
through the model without its logits, and single tokens with the most likely one brought back to the host.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import importlib.metadata
import json
import math
import os
import sys
import time

import torch

#: How often a misplaced split is corrected where nothing is loaded for it (exllamav2 decides on paper).
PAPER_TRIES = 24
#: Tokens whose logits are asked for at once: ExLlamaV2 keeps scratch space for so many (max_output_len).
LOGITS_AT_ONCE = 16


class Misplaced(Exception):
    """The engine does not put the layers where they are wanted."""


def free_mib(card):
    return torch.cuda.mem_get_info(card)[0] // 2**20


def devices():
    """The cards in CUDA's order; free memory with this process's context already on them."""
    found = []
    for card in range(torch.cuda.device_count()):
        torch.zeros(1, device=f"cuda:{card}")
        properties = torch.cuda.get_device_properties(card)
        uuid = str(getattr(properties, "uuid", "") or "")
        found.append(
            {
                "id": uuid if not uuid or uuid.startswith("GPU-") else f"GPU-{uuid}",
                "name": properties.name,
                "total_mib": properties.total_memory // 2**20,
                "free_mib": free_mib(card),
            }
        )
    return found


def synchronize():
    for card in range(torch.cuda.device_count()):
        torch.cuda.synchronize(card)


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
        # as TabbyAPI for models whose blocks keep a state: each slot has one, and the library's own default is 16
        self.cache = exllamav3.Cache(self.model, max_num_tokens=order["context_size"], max_batch_size=4, **kind)

    def encode(self, text):
        return self.package.Tokenizer.from_config(self.config).encode(text, add_bos=True)

    def layers(self):
        counts = [0] * len(self.order["layers"])
        for module in self.model.modules:
            if module.caps.get("logits_output") or getattr(module, "layer_idx", None) is not None:
                counts[torch.device(module.device).index or 0] += 1
        return counts

    def load(self):
        split, tried = list(self.order["gpu_split_gb"]), []
        for attempt in range(1, self.order["tries"] + 1):
            self.tries = attempt
            self.model.load(use_per_device=split, max_chunk_size=self.order["chunk_size"])
            found = self.layers()
            if found == self.order["layers"]:
                return split
            tried.append((split, found))
            better = corrected(tried, self.order["layers"], self.order["block_gb"])
            self.model.unload()
            gc.collect()
            torch.cuda.empty_cache()
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

    def logits(self, ids, past):
        return self.model.forward(ids, self.parameters(past))

    def generate(self, ids, past, count):
        token, tokens = ids[:, :1], []
        for number in range(count):
            logits = self.model.forward(token, self.parameters(past + number))
            token = torch.argmax(logits[0, -1]).cpu().reshape(1, 1).clamp(0, self.vocabulary - 1)
            tokens.append(token)
        return tokens


def sample(engine, ids, test):
    """One sample of a test in milliseconds: its prompt, then its tokens, after what the cache already holds."""
    past, prompt = test["n_depth"], test["n_prompt"]
    with engine.state(past):
        synchronize()
        started = time.perf_counter()
        if prompt:
            engine.prompt(ids[:, past : past + prompt], past)
        if test["n_gen"]:
            engine.generate(ids, past + prompt, test["n_gen"])
        synchronize()
        return (time.perf_counter() - started) * 1000


def answers(engine, ids):
    """What the model makes of a text: how unlikely it finds the second half, and what it says after the first one.

    The first half goes through the model as a prompt, so that the second one rests on the cache of every block. It is
    unlikely by so many nats a token, the natural logarithm of the perplexity; None where that is no number.
    """
    length = ids.shape[-1]
    half, nats = length // 2, 0.0
    with engine.state(0):
        engine.prompt(ids[:, :half], 0)
        for start in range(half, length - 1, LOGITS_AT_ONCE):
            end = min(start + LOGITS_AT_ONCE, length - 1)
            # on the CPU: the cards are as full as the tuning wants them
            scores = torch.log_softmax(engine.logits(ids[:, start:end], start)[0].cpu().float(), -1)
            nats -= sum(float(scores[place - start, int(ids[0, place + 1])]) for place in range(start, end))
    with engine.state(0):
        engine.prompt(ids[:, :half], 0)
        said = engine.generate(ids[:, half:], half, engine.order["answer_tokens"])
    per_token = nats / (length - 1 - half)
    return {
        "text": hashlib.sha256(" ".join(str(int(token)) for token in ids[0]).encode()).hexdigest()[:16],
        "judged_tokens": length - 1 - half,
        "nats_per_token": round(per_token, 6) if math.isfinite(per_token) else None,
        "tokens": [int(token[0, 0]) for token in said],
    }


def text_ids(engine, numbers):
    """The tokens of the order's text; numbers where the model has no tokenizer that can be used."""
    length = engine.order["text_tokens"]
    try:
        return engine.encode(engine.order["text"])[:, :length]
    except Exception as error:
        print(f"the text is replaced by numbers: {error!r}", file=sys.stderr)
        return numbers[:, :length]


def measure(order):
    before = devices()
    if len(before) != len(order["layers"]):
        raise Misplaced(f"CUDA shows {len(before)} cards where {len(order['layers'])} were named")
    engine = {"exllamav2": V2, "exllamav3": V3}[order["engine"]](order)
    started = time.perf_counter()
    split = engine.load()
    load_ms = round((time.perf_counter() - started) * 1000)
    torch.manual_seed(0)
    ids = torch.randint(0, engine.vocabulary - 1, (1, order["context_size"]))
    results = []
    for test in order["tests"]:
        if test["n_depth"]:
            with engine.state(0):
                engine.prompt(ids[:, : test["n_depth"]], 0)
        # a whole one: on an H100 the first 64 tokens took 4 s, the next 0.3 s, since kernels are prepared by length
        sample(engine, ids, test)
        own = {key: test[key] for key in ("kind", "n_prompt", "n_gen", "n_depth")}
        results.append({**own, "samples_ms": [sample(engine, ids, test) for _number in range(test["repetitions"])]})
    said = answers(engine, text_ids(engine, ids))
    layers = engine.layers()
    return {
        "status": "ok",
        "reason": None,
        "versions": {name: importlib.metadata.version(name) for name in (order["engine"], "torch")},
        "layers": layers,
        "gpu_split_gb": [round(share, 6) for share in split],
        "tries": engine.tries,
        "load_ms": load_ms,
        "devices": [
            {
                **device,
                "layers": layers[card],
                "allocated_mib": torch.cuda.memory_allocated(card) // 2**20,
                "peak_mib": torch.cuda.max_memory_allocated(card) // 2**20,
                # of the whole card, beyond the context: kernels, and what PyTorch holds back
                "used_mib": device["free_mib"] - free_mib(card),
            }
            for card, device in enumerate(before)
        ],
        "results": results,
        "answers": said,
    }


def out_of_memory(error):
    words = str(error)
    return type(error).__name__ == "OutOfMemoryError" or any(
        known in words for known in ("out of memory", "Insufficient VRAM", "Insufficient space in device allocation")
    )


def main():
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what the engine prints must not mix with the answer
    order = json.loads(sys.argv[1])
    try:
        with torch.inference_mode():
            answer = {"devices": devices()} if order["action"] == "devices" else measure(order)
    except Misplaced as error:
        answer = {"status": "misplaced", "reason": str(error)}
    except Exception as error:
        if not out_of_memory(error):
            raise
        answer = {"status": "out_of_memory", "reason": (str(error).splitlines() or ["out of memory"])[0][:240]}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
