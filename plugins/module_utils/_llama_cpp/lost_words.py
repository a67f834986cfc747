# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Runs a program of llama.cpp again where its last words are lost. Private to this collection.

llama-server and llama-fit-params print through a thread that nobody waits for (common/log.cpp of
llama.cpp b11312 leaks it, and not every return flushes it). On a busy machine a program may thus end before the thread
was scheduled, and why it failed is lost. Decisions rest on these words, so the program is started again, as nothing
else would bring them back.
"""

from __future__ import annotations

import typing as t

from .._base import sandboxed_run
from .._measuring import outcome

#: How often a program is started, at most. Of 30 starts 3 were silent on two CPUs with ten programs that computed.
STARTS: t.Final = 5


def lost(rc: int, text: str) -> bool:
    """Return whether a program that ended by itself owes an explanation.

    An abort is printed without the thread, and what was killed by another signal had no last words.
    """
    return rc > 0 and not outcome.complaints(text)


def run(
    command: t.Sequence[str], box: sandboxed_run.Box, environment: t.Mapping[str, t.Any], limit_seconds: int
) -> sandboxed_run.Ended:
    """Run a program as sandboxed_run.run does, and again while its words are lost, STARTS times at most."""
    for _start in range(STARTS):
        ended = sandboxed_run.run(command, box, environment, limit_seconds)
        if not lost(ended.rc, f"{ended.stdout}\n{ended.stderr}"):
            break
    return ended
