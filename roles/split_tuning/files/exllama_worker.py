# SPDX-License-Identifier: GPL-3.0-or-later
"""Load a model with ExLlama and measure it. Run by the collection with the Python of ExLlama's environment.

Its one argument is an order (JSON), and it prints one answer (JSON); what the engine says goes to standard error.
One process is one load of the model, with several tests.

The order: action (devices | measure), and to measure: engine (exllamav2 | exllamav3), split_mode (layer | tensor),
model (a folder), layers (wanted per card, in CUDA's order; in mode tensor shares of each layer), gpu_split_gb, block_gb
(what one block more moves a card's number), context_size, chunk_size, cache (exllamav2: FP16, Q8, Q6, Q4; exllamav3:
null or [bits of K, bits of V]), tests, tries, text, text_tokens, answer_tokens (see answers), and perhaps soak: seconds
of work, idle_gaps, idle_seconds.

The answer: status (ok | out_of_memory | misplaced | refused), reason, and when ok: versions, layers as loaded, the
gpu_split_gb that led there, tries, devices with their memory, results, answers, and in mode tensor allreduce (how cards
add up). Anything else ends with a traceback and an exit status.

In mode tensor exllamav3 starts a process per further card, which imports this file. How they add up is said by the
variable MIXED_GPU_EXLLAMA_ALLREDUCE, native or nccl. The engines are in exllama_engines.py.

The tests are ExLlama's own speed tests, test_inference.py (-ps, -s) of exllamav2, eval/perf.py of exllamav3: a prompt
through the model without its logits, and single tokens with the most likely one brought back to the host.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import sys
import time

import torch

sys.dont_write_bytecode = True  # this folder is not ours
from exllama_engines import LOGITS_AT_ONCE, V2, V3, Misplaced, Refused  # noqa: E402 (beside this file)

#: Tokens of a prompt, and of its answer, that keep the cards busy.
BUSY_TOKENS = (192, 16)


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


def soak(engine, ids, wanted):
    """Work and rest in turns: a known way to hang is a request after idling."""
    prompt, count = BUSY_TOKENS
    parts = wanted["idle_gaps"] + 1
    for part in range(parts):
        until = time.monotonic() + wanted["seconds"] / parts
        busy = True
        while busy:
            with engine.state(0):
                engine.prompt(ids[:, :prompt], 0)
                engine.generate(ids[:, prompt:], prompt, count)
            busy = time.monotonic() < until
        if part + 1 < parts:
            time.sleep(wanted["idle_seconds"])


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
    if "soak" in order:
        soak(engine, ids, order["soak"])
    said = answers(engine, text_ids(engine, ids))
    layers = engine.layers()
    answer = {
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
    if order["split_mode"] == "tensor":
        answer["allreduce"] = engine.allreduce
        engine.close()
    return answer


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
    except Refused as error:
        answer = {"status": "refused", "reason": str(error)}
    except Exception as error:
        if not out_of_memory(error):
            raise
        answer = {"status": "out_of_memory", "reason": (str(error).splitlines() or ["out of memory"])[0][:240]}
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
