# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a load asks for, and the samples it gives, checked. Private to this collection. Pure functions only."""

from __future__ import annotations

import math
import typing as t

from .._base.errors import UserError
from .._base.fields import is_number, is_whole
from .._base.types import Mapping
from .types import Test


def _whole(value: t.Any, what: str, minimum: int = 0) -> int:
    if not is_whole(value, minimum):
        raise UserError(f"{what} is {value!r}: it must be a whole number, at least {minimum}")
    return int(value)


def check_layers(load: Mapping, devices: int) -> list[int]:
    """Return the layers of a load, one number per device; raises UserError when they, or its number, make no sense."""
    label = load.get("label", "the load")
    layers = load.get("layers")
    if not isinstance(layers, (list, tuple)) or len(layers) != devices or not devices:
        raise UserError(f"layers of {label} is {layers!r}: it must hold one number for each of {devices} devices")
    counts = [_whole(value, f"layers[{index}] of {label}") for index, value in enumerate(layers)]
    if sum(counts) == 0:
        raise UserError(f"layers of {label} puts nothing on any device: give at least one slot")
    _whole(load.get("load"), f"load of {label}", 1)
    return counts


def check_tests(load: Mapping) -> tuple[Test, ...]:
    """Return the tests of a load; raises UserError naming the field that is wrong."""
    label = load.get("label", "the load")
    tests = load.get("tests")
    if not isinstance(tests, (list, tuple)) or not tests:
        raise UserError(f"tests of {label} is {tests!r}: it must be a list with at least one test")
    for index, test in enumerate(tests):
        where = f"tests[{index}] of {label}"
        if not isinstance(test, t.Mapping):
            raise UserError(f"{where} is {test!r}: it must be a dict with n_prompt, n_gen, n_depth and repetitions")
        for field in ("n_prompt", "n_gen", "n_depth"):
            _whole(test.get(field), f"{field} of {where}")
        _whole(test.get("repetitions"), f"repetitions of {where}", 1)
        for field in ("micro_batch_size", "threads"):
            if field in test:
                _whole(test[field], f"{field} of {where}", 1)
        if test["n_prompt"] == 0 and test["n_gen"] == 0:
            raise UserError(f"{where} has n_prompt 0 and n_gen 0: it must process or generate at least one token")
    return tuple(tests)


def checked_samples(samples: t.Any) -> list[float] | None:
    """Return samples when they are positive numbers and there is one at least, else None."""
    if not isinstance(samples, list) or not samples:
        return None
    return samples if all(is_number(value) and 0 < value < math.inf for value in samples) else None


def samples_ms(row: Mapping) -> list[float] | None:
    """Return the samples of a row of llama-bench in milliseconds, or None where they are no positive times."""
    samples = checked_samples(row.get("samples_ns"))
    return None if samples is None else [value / 1e6 for value in samples]
