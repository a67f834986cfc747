# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The way to devices of other hosts in a tuning: measured first, judged at the end. Private. Pure functions."""

from __future__ import annotations

import typing as t

from .._base.steps import Step
from .._base.types import Json, Mapping
from .._split import memory_plan, network_links
from .._split.types import Serving
from .tuning_state import State

NAME = "links"


def step(state: State) -> Step | None:
    """Return the step that measures the way to other hosts; None where no device is on another host."""
    endpoints = network_links.remote(state.settings.rpc_endpoints) if state.engine.family == "llama_cpp" else []
    if not endpoints:
        return None
    label = "measure the network to other hosts"
    return Step(NAME, "rpc_link_info", {"endpoints": endpoints}, label, 5 * len(endpoints))


def judged(state: State, decision: Mapping) -> Json:
    """Return the decision with C(network): links, what they cost and buy, and why; as it is without other hosts."""
    if not state.links:
        return dict(decision)
    tests = {test["kind"]: test for test in state.problem["tests"]}
    prompt, answer = tests["prefill"], tests["decode"]
    asked = network_links.work(
        prompt["n_prompt"], decision["micro_batch_size"], prompt["n_depth"], answer["n_depth"] + answer["n_gen"] / 2,
        memory_plan.flash_attention(t.cast(Serving, state.serving)),
    )  # fmt: skip
    worth = network_links.worth(decision, state.model, state.devices, state.links, prompt["n_prompt"], asked)
    # what a later look at the links is priced by
    sizes = {name: state.model[name] for name in ("embedding_length", "vocabulary_size")}
    return {**decision, "network": {"links": state.links, "model": sizes, "work": asked._asdict(), **worth}}
