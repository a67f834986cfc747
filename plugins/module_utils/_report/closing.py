# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a run says at its end. Private to this collection. Pure functions only."""

from __future__ import annotations

from .._base.text import number, terminal_line
from .._base.types import Mapping
from .recorded import model_name
from .served_rows import served_tests
from .untried import untried
from .words import gain_words, placement_words


def lines(entry: Mapping, served: Mapping | None, connect: str, page: str) -> list[str]:
    """Return one line each: the result, what it is worth, how to connect, the page, and what was not tried.

    C(connect) is a sentence, C(page) the path of the report.
    """
    result = f"Result: {model_name(entry)}, {placement_words(entry)}{_speed(entry, served)}."
    found = [result, gain_words(entry), connect, f"Report: {page}", *untried(entry)]
    return [terminal_line(line) for line in found]


def _speed(entry: Mapping, served: Mapping | None) -> str:
    """Return the speed that clients get, else the one that was measured without a server."""
    for test in served_tests(served):
        if test["decode_tokens_per_second"]:
            return f": {number(test['decode_tokens_per_second']['mean'])} tokens per second as served"
    rate = entry["decision"].get("decode_tokens_per_second")
    return f": {number(rate)} tokens per second in the benchmark" if rate else ""
