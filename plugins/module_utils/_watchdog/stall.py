# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether a server hangs, from one look after the other. Pure functions only.

A server hangs when it has requests in processing and no counter moves for longer than a batch can take. Not hanging are
a server that loads its model, one that sleeps, one without requests, and one that works on a long prompt: each batch of
a prompt moves a counter. /health and the use of CPU and cards prove nothing.

All times are seconds of the monotonic clock: setting the host's clock changes nothing, and a suspended host has none.
"""

from __future__ import annotations

import typing as t

#: What a look can find. away: the unit is stopped, starts or stops, or its devices are lent to a measurement.
Answer = t.Literal["metrics", "loading", "silent", "no_metrics", "away"]
#: After this share of the limit an exact look is asked for, where the counters are coarse.
EXACT_AFTER: t.Final = 0.25
#: So many times longer is waited where coarse counters are all there is.
COARSE_FACTOR: t.Final = 10


class Limits(t.NamedTuple):
    """For how long nothing may move, in seconds."""

    stall_seconds: float
    load_seconds: float  # of a load, and of a server without requests that does not answer; 0: for ever


class Look(t.NamedTuple):
    """What was seen of the server at one time."""

    at: float  # seconds, taken before the server was asked
    start: str  # systemd's name for this start of the unit (InvocationID)
    answer: Answer
    processing: int = 0  # requests
    progress: tuple[str, ...] = ()  # of /metrics
    coarse: bool = False  # whether a step may not show in progress
    exact: tuple[str, ...] = ()  # of /slots, where it was asked for
    stopped: bool = False  # its process, or one of its RPC servers on this host, was stopped by a signal (state T)
    gave_token: bool = False  # of a server without metrics: whether it gave the token that it was asked for


class Seen(t.NamedTuple):
    """What is remembered from one look to the next."""

    start: str = ""
    state: str = "away"  # away, idle, busy, loading, silent, stopped, no_metrics
    since: float = 0.0  # of this state, or of its last progress
    progress: tuple[str, ...] = ()
    exact: tuple[str, ...] = ()
    exact_since: float | None = None  # None: no exact look was needed since the last progress


class Judgement(t.NamedTuple):
    """What a look means."""

    seen: Seen
    hung: str = ""  # what it does not do, as a clause; empty: it does not hang
    frozen_seconds: float = 0.0


def wants_exact(seen: Seen, look: Look, limits: Limits) -> bool:
    """Return whether /slots is to be asked: counters too coarse to show a step, and the server surely awake."""
    suspect = judge(seen, look._replace(coarse=False), limits).frozen_seconds
    return look.coarse and look.processing > 0 and suspect > EXACT_AFTER * limits.stall_seconds


def judge(seen: Seen, look: Look, limits: Limits) -> Judgement:
    """Return what to remember of the server, and what it does not do where it hangs."""
    if look.answer == "away":
        return Judgement(Seen())
    known = seen if look.start == seen.start else Seen()
    if look.answer == "metrics":
        return _answered(known, look, limits)
    if look.answer == "silent" and known.state == "busy":
        since = known.since if known.exact_since is None else known.exact_since
        return _judged(known, look, since, limits.stall_seconds, "was computing, and does not answer any more")
    return _without_metrics(known, look, limits)


def _answered(known: Seen, look: Look, limits: Limits) -> Judgement:
    """Judge a server that tells its counters."""
    if look.processing <= 0:
        return Judgement(Seen(look.start, "idle", look.at))
    if known.state != "busy" or look.progress != known.progress:
        return Judgement(Seen(look.start, "busy", look.at, look.progress))
    since = known.since
    if look.coarse and look.exact:
        if known.exact_since is not None and look.exact != known.exact:
            return Judgement(Seen(look.start, "busy", look.at, look.progress))
        if known.exact_since is None:
            known = known._replace(exact=look.exact, exact_since=look.at)
    limit = limits.stall_seconds
    if look.coarse and known.exact_since is None:  # /slots is switched off, or was not asked yet
        limit *= COARSE_FACTOR
    elif look.coarse:  # what did not show in the counters counts from the first exact look on
        since = t.cast(float, known.exact_since)
    count = f"{look.processing} request{'' if look.processing == 1 else 's'}"
    return _judged(known, look, since, limit, f"has {count} in processing, and no token counter moves")


def _without_metrics(known: Seen, look: Look, limits: Limits) -> Judgement:
    """Judge a server of which only the kind of its answer is known."""
    state = "stopped" if look.stopped else look.answer
    if look.gave_token or known.state != state:
        return Judgement(Seen(look.start, state, look.at))
    limit, clause = {
        "loading": (limits.load_seconds, "is still loading its model"),
        "silent": (limits.load_seconds, "does not answer"),
        "stopped": (limits.stall_seconds, "does not load" if look.answer == "loading" else "does not answer"),
        "no_metrics": (limits.stall_seconds, "answers, but gives neither metrics nor a token"),
    }[state]
    return _judged(known, look, known.since, limit, clause)


def _judged(known: Seen, look: Look, since: float, limit: float, clause: str) -> Judgement:
    frozen = look.at - since
    if limit <= 0 or frozen <= limit:
        return Judgement(known, "", frozen)
    stopped = " (it, or an RPC server of it, was stopped by a signal)" if look.stopped else ""
    return Judgement(known, f"{clause} for {frozen:.0f} s{stopped}", frozen)
