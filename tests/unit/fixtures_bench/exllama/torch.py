# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for the little of PyTorch that exllama_worker.py itself calls: two cards of 24 GB, numpy for tensors."""

from __future__ import annotations

import contextlib
import os
import types

import numpy

UUIDS = os.environ.get("FAKE_UUIDS", "GPU-1,GPU-2").split(",")


class Tensor(numpy.ndarray):
    def cpu(self):
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


def manual_seed(_seed):
    pass


def device(name):
    return types.SimpleNamespace(index=int(str(name).partition(":")[2] or 0))


version = types.SimpleNamespace(cuda="13.0")
inference_mode = contextlib.nullcontext
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
