# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for the little of PyTorch that exllama_worker.py itself calls: two cards of 24 GB, numpy for tensors.

With FAKE_CLOCK the worker's clock is this one's, so that what is measured follows from FAKE_BLOCK_MS alone. The file
that FAKE_OVERRIDES names, where it exists, says what is otherwise than in the environment (JSON).
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import time
import types

import numpy

_overrides = pathlib.Path(os.environ.get("FAKE_OVERRIDES", "/nowhere"))
if _overrides.exists():
    os.environ.update(json.loads(_overrides.read_text(encoding="utf-8")))
_passed = [0.0, 0]


def passes(seconds):
    """Let so much time pass; on the clock of the stand-in with some tenths of a percent of noise."""
    if not os.environ.get("FAKE_CLOCK"):
        return time.sleep(seconds)
    _passed[1] += 1
    _passed[0] += seconds * (1 + 0.001 * (_passed[1] % 3 - 1))


if os.environ.get("FAKE_CLOCK"):
    time.perf_counter = lambda: _passed[0]
UUIDS = os.environ.get("FAKE_UUIDS", "GPU-1,GPU-2").split(",")


class Tensor(numpy.ndarray):
    def cpu(self):
        return self

    def float(self):
        return self

    def clamp(self, low, high):
        return numpy.clip(self, low, high)


class OutOfMemoryError(RuntimeError):
    pass


def tensor(values):
    return numpy.asarray(values).view(Tensor)


def zeros(*shape, device=None):
    return tensor(numpy.zeros(shape))


def randint(low, high, shape):
    return tensor(numpy.random.default_rng(0).integers(low, high, shape))


def argmax(values):
    return tensor([numpy.argmax(values)])


def log_softmax(values, _axis):
    return values - numpy.log(numpy.exp(values).sum(axis=-1, keepdims=True))


def next_token(ids, vocabulary, mode):
    """The logits of an engine that finds the next number most likely; of a wrong one the number before."""
    logits = numpy.zeros((1, ids.shape[-1], vocabulary))
    step = -1 if mode == "wrong" else 1
    for place, token in enumerate(numpy.asarray(ids)[0]):
        logits[0, place, int(token + step) % vocabulary] = float("nan") if mode == "nan" else 4.0
    return tensor(logits)


def manual_seed(_seed):
    pass


def device(name):
    return types.SimpleNamespace(index=int(str(name).partition(":")[2] or 0))


version = types.SimpleNamespace(cuda="13.0")
inference_mode = contextlib.nullcontext
distributed = types.SimpleNamespace(is_nccl_available=lambda: os.environ.get("FAKE_MODE") != "no nccl")
#: bytes on each card, which the engines' stand-ins add to
used = [0] * len(UUIDS)
cuda = types.SimpleNamespace(
    OutOfMemoryError=OutOfMemoryError,
    device_count=lambda: len(UUIDS),
    get_device_properties=lambda card: types.SimpleNamespace(
        uuid=UUIDS[card].removeprefix("GPU-"), name=f"Card {card}", total_memory=24 * 2**30
    ),
    mem_get_info=lambda card: (23 * 2**30 - used[card], 24 * 2**30),
    memory_allocated=lambda card: used[card],
    max_memory_allocated=lambda card: used[card] + 2**20,
    synchronize=lambda card: None,
    empty_cache=lambda: None,
)
