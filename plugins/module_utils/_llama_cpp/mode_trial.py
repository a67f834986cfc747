# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Judges whether another split mode can be trusted. Private to this collection. Pure functions only.

The same model in two split modes computes the same sums in another order, so answers may part at a token whose
alternatives are nearly as likely; that is reported and means nothing by itself. What must not change is how well the
model predicts a text (perplexity), and what must not happen is a hang, a crash, or another answer to the same prompt.
"""

from __future__ import annotations

import math
import re
import typing as t

from .._base.types import Json, Mapping
from .._measuring import outcome
from .._split import placement
from . import llama_server

#: How llama-perplexity says its result.
PERPLEXITY: t.Final = re.compile(
    r"Final estimate: PPL = ([0-9.]+|-?nan|inf) \+/- ([0-9.]+|-?nan|inf)", re.IGNORECASE
)
#: Part of the tolerated difference that is tolerated where no sum is rounded to BF16. NCCL rounds each sum of 32768
#: elements or more to 8 bits of precision, twice a block: measured 0.25 % of perplexity on two cards.
EXACT_SUMS: t.Final = 0.5


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
    program: str, served: Mapping, port: int, more: t.Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    """Return (command, environment) of a private llama-server on loopback for a deployment, with further words."""
    settings = {
        "host": "127.0.0.1", "port": port, "alias": "trial", "cache_ram_mib": 0, "cors_origins": "localhost",
        "log_verbosity": 4, "extra_arguments": list(more), "allowed_networks": [], "load_timeout_seconds": 0,
    }  # fmt: skip
    called = llama_server.command(served, settings)
    return [program, *called["arguments"]], called["environment"]


def perplexity_command(
    program: str, served: Mapping, text_file: str, context: int, chunks: int
) -> list[str]:
    """Return the command that measures the perplexity of a text with the same placement and types as the server's."""
    command, _environment = server_command(program, served, 1)
    keep = {"-m", "--rpc", "-dev", "-sm", "-ts", "-ngl", "-fit", "-fa", "-ctk", "-ctv", "-t", "--poll", "-lm", "-ub"}
    words = [program]
    for flag, value in zip(command[1:], command[2:], strict=False):
        if flag in keep:
            words += [flag, value]
    return [*words, "-c", str(context), "-b", str(context), "-f", text_file, "--chunks", str(chunks)]


def parse_perplexity(text: str) -> tuple[float, float] | None:
    """Return (perplexity, its standard error) of llama-perplexity's output, or None where there is none."""
    match = PERPLEXITY.search(text)
    if match is None:
        return None
    return float(match[1]), float(match[2])


def first_divergence(one: t.Sequence[t.Any], other: t.Sequence[t.Any]) -> int | None:
    """Return the place of the first token that differs, or None where none does as far as both go."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=False)):
        if mine != theirs:
            return place
    return None


def compare_answers(reference: t.Sequence[t.Sequence[int]], candidate: t.Sequence[t.Sequence[int]]) -> Json:
    """Return {tokens_compared, first_divergence, diverging_answers} of greedy answers to the same prompts.

    C(first_divergence) is the earliest place over all answers, None where all agree.
    """
    places = [first_divergence(one, other) for one, other in zip(reference, candidate, strict=True)]
    found = [place for place in places if place is not None]
    return {
        "tokens_compared": sum(min(len(a), len(b)) for a, b in zip(reference, candidate, strict=True)),
        "first_divergence": min(found, default=None),
        "diverging_answers": len(found),
    }


def judge_perplexity(
    reference: tuple[float, float] | None, candidate: tuple[float, float] | None, tolerance_percent: float
) -> str | None:
    """Return why the mode is not trusted, or None. It may be worse by the tolerance; better is no fault.

    Both run the same tokens, so their errors are nearly the same and cancel in the difference.
    """
    if reference is None or candidate is None:
        which = "layer mode" if reference is None else "the mode on trial"
        return f"the perplexity in {which} could not be measured"
    if not math.isfinite(candidate[0]) or not math.isfinite(reference[0]):
        return f"its perplexity is {candidate[0]} ({reference[0]} in layer mode)"
    percent = difference_percent(reference, candidate)
    if percent > tolerance_percent:
        return (
            f"its perplexity is {candidate[0]:.4f}, {percent:.2f} % above the {reference[0]:.4f} of layer mode "
            f"({tolerance_percent:g} % are tolerated)"
        )
    return None


def perplexities(reference: tuple[float, float] | None, candidate: tuple[float, float] | None) -> Json:
    """Return {reference, candidate, difference_percent} for the record; null for what is no number."""
    values = [None if known is None or not math.isfinite(known[0]) else known[0] for known in (reference, candidate)]
    difference = None
    if reference is not None and candidate is not None and None not in values:
        difference = round(difference_percent(reference, candidate), 4)
    return {"reference": values[0], "candidate": values[1], "difference_percent": difference}


def difference_percent(reference: tuple[float, float], candidate: tuple[float, float]) -> float:
    """Return by how much a perplexity is above another one, in percent."""
    return 100 * (candidate[0] / reference[0] - 1)


def why_it_ended(rc: int, log: str) -> tuple[str, str]:
    """Return (status, reason) of a server or program that ended by itself.

    The status is out_of_memory, device_lost, refused (exit status 1: llama.cpp said no) or crashed.
    """
    memory = outcome.out_of_memory(log)
    if memory is not None:
        return "out_of_memory", memory
    lost = outcome.device_lost(log)
    if lost is not None:
        return "device_lost", lost
    how = outcome.crash("llama.cpp", rc, log)
    return ("refused" if rc == 1 else "crashed"), how


def soak_prompt_tokens(number: int, context: int, generated: int, micro_batch: int) -> int:
    """Return how long the n-th prompt of the soak is: a few tokens to several micro-batches, within the context."""
    longest = max(1, min(3 * micro_batch + 7, context - generated - 1))
    lengths = (16, micro_batch // 2, micro_batch, micro_batch + 1, longest)
    return max(1, min(lengths[number % len(lengths)], longest))
