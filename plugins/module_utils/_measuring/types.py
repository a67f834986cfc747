# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What is in a load, the unit of measuring. Private to this collection. docs/data_formats.md has an example of each."""

from __future__ import annotations

import typing as t

from .._base.fields import Positive
from .._base.types import Json

#: The shape (_base/fields.py) of a result in a file, as far as readers rely on it.
RESULT: t.Final = {"n_prompt?": int, "n_gen?": int, "n_depth?": int, "samples_ms?": [Positive]}


class Test(t.TypedDict, total=False):
    """One test of a load; micro_batch_size and threads where they are others than those of the serving profile."""

    kind: t.Required[str]
    n_prompt: t.Required[int]
    n_gen: t.Required[int]
    n_depth: t.Required[int]
    repetitions: t.Required[int]
    micro_batch_size: int
    threads: int


class Result(t.TypedDict, total=False):
    """The samples of one test; energy of a power sweep alone."""

    kind: t.Required[str]
    n_prompt: t.Required[int]
    n_gen: t.Required[int]
    n_depth: t.Required[int]
    samples_ms: t.Required[list[float]]
    micro_batch_size: int
    threads: int
    energy: Json


class Load(t.TypedDict, total=False):
    """One process that loads the model once: what the planner asks for, and from status on what came of it."""

    label: t.Required[str]
    split_mode: t.Required[str]
    layers: t.Required[list[int]]
    load: t.Required[int]
    purpose: str
    tests: t.Required[list[Test]]
    environment: dict[str, str]
    experts_in_ram: Json | None  # _split/expert_placement.as_json
    campaign: str
    fingerprint: str
    status: str
    reason: str | None
    results: list[Result]
    measured_at: str
    conditions: Json
    contention: Json | None
    wall_ms: int
    sandboxed: bool
    reused: bool
