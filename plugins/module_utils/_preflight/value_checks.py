# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Values of the right type that no role can use, said before anything is built. Private. Pure functions only.

What an argument spec cannot say: ranges and types of the KV cache. Entries of llm_models: model_checks.
"""

from __future__ import annotations

import math
import typing as t

from .._planner import tuning_settings
from .._split import engines, memory_plan

Variables = t.Mapping[str, t.Any]

_CACHE_TYPES: t.Final = ("split_tuning_cache_type_k", "split_tuning_cache_type_v")
_LARGEST_PORT: t.Final = 65535
_ENGINES: t.Final = tuple(dict.fromkeys(engine.site_engine for engine in engines.TABLE.values()))


def problems(values: Variables) -> list[str]:
    """Return one sentence per value that cannot be used; C(values) holds those that are known, by name."""
    return [*_engine(values), *_numbers(values), *_cache_types(values), *_budgets(values)]


def _engine(values: Variables) -> t.Iterator[str]:
    engine = values.get("mixed_gpu_engine", engines.DEFAULT)
    # the playbook plan knows one more, and has refused all others by then
    if engine not in (*_ENGINES, values.get("split_tuning_start_engine")):
        yield f"mixed_gpu_engine is {engine!r:.60}, and must be {' or '.join(_ENGINES)}."


def _number(value: t.Any) -> float | None:
    """Return a number as the command line or YAML gives it; None for what is none, which its type says."""
    try:
        number = float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
    except (TypeError, ValueError):
        return None
    return None if isinstance(value, bool) or math.isnan(number) else number


def _numbers(values: Variables) -> t.Iterator[str]:
    for name, value in values.items():
        number = _number(value)
        if number is None:
            continue
        if name.endswith("_port") and not 1 <= number <= _LARGEST_PORT:
            yield f"{name} is {value!r:.60}, and must be a port from 1 to {_LARGEST_PORT}."
        # a key, an alias or a commit may look like a number, and has no bounds
        least, most = tuning_settings.BOUNDS.get(name, (number, number))
        if number < least:
            yield f"{name} is {value!r:.60}, and must be at least {least}."
        if number > most:
            yield f"{name} is {value!r:.60}, and must be at most {most}."


def _cache_types(values: Variables) -> t.Iterator[str]:
    known = memory_plan.cache_types(None)
    for name in _CACHE_TYPES:
        value = values.get(name)
        if isinstance(value, str) and value not in known:
            yield f"{name} is {value!r:.60}, and must be one of {', '.join(known)}."


def _budgets(values: Variables) -> t.Iterator[str]:
    name = "split_tuning_device_budget_mib"
    budgets = values.get(name)
    for device, value in budgets.items() if isinstance(budgets, t.Mapping) else ():
        number = _number(value)
        if number is None or number < 1:
            yield f"{name} gives {device!r:.60} the budget {value!r:.60}, and must give it a number of MiB from 1 on."
