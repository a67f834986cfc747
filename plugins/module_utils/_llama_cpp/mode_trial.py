# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The servers of a trial of another split mode, and how they end. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.types import Json, Mapping
from .._measuring import outcome
from .._split import placement
from . import llama_server


def deployment(
    model_path: str,
    devices: t.Sequence[Json],
    layers: t.Sequence[int],
    split_mode: str,
    serving: Mapping,
    rpc_endpoints: t.Sequence[str],
) -> Json:
    """Return a deployment of docs/data_formats.md as far as llama-server's command line needs it."""
    return {
        "model": {"path": model_path},
        "serving": dict(serving),
        "devices": list(devices),
        "environment": {},
        "placement": placement.by_id(devices, layers),
        "split_mode": split_mode,
        "rpc_endpoints": list(rpc_endpoints),
    }


def server_command(
    program: str, served: Mapping, port: int, more: t.Sequence[str]
) -> tuple[list[str], dict[str, str]]:
    """Return (command, environment) of a private llama-server on loopback for a deployment, with further words."""
    settings = {
        "host": "127.0.0.1", "port": port, "alias": "trial", "cache_ram_mib": 0, "cors_origins": "localhost",
        "log_verbosity": 4, "extra_arguments": list(more), "allowed_networks": [], "load_timeout_seconds": 0,
    }  # fmt: skip
    called = llama_server.command(served, settings)
    return [program, *called["arguments"]], called["environment"]


def first_divergence(one: t.Sequence[t.Any], other: t.Sequence[t.Any]) -> int | None:
    """Return the place of the first token that differs, or None where none does as far as both go."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return None


def why_it_ended(rc: int, log: str) -> tuple[str, str]:
    """Return (status, reason) of a server or program that ended by itself.

    The status is out_of_memory, device_lost, refused (exit status 1: llama.cpp said no) or crashed.
    """
    how = outcome.crash("llama.cpp", rc, log)
    return outcome.known(log) or ("refused" if rc == 1 else "crashed", how)


def soak_prompt_tokens(number: int, context: int, generated: int, micro_batch: int) -> int:
    """Return how long the n-th prompt of the soak is: a few tokens to several micro-batches, within the context."""
    longest = max(1, min(3 * micro_batch + 7, context - generated - 1))
    lengths = (16, micro_batch // 2, micro_batch, micro_batch + 1, longest)
    return max(1, min(lengths[number % len(lengths)], longest))
