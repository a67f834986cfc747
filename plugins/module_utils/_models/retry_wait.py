# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How long a server asks to wait, from whichever of its headers says so. Private to this collection. Pure functions.

Forms in use, in the order in which they are believed:

- ``Retry-After``: seconds or a date (RFC 9110, 10.2.3); ``Retry-After-Ms`` and its like: milliseconds;
- ``RateLimit: "api";r=0;t=180`` (draft-ietf-httpapi-ratelimit-headers from 08 on, which the Hugging Face hub sends), or
  ``RateLimit: limit=500, remaining=0, reset=180`` (draft 07);
- ``RateLimit-Reset``, ``X-RateLimit-Reset``, ``X-Rate-Limit-Reset``, ``X-RateLimit-Reset-After`` and the like: seconds
  from now, seconds or milliseconds since 1970, a date, or a duration such as ``6m0s``;
- ``RateLimit-Policy: "fixed window";"api";q=500;w=300``: the window, where nothing else says when it ends.
"""

from __future__ import annotations

import datetime
import email.utils
import re
import typing as t

#: Values from here on are seconds since 1970 (2001), and from here on milliseconds (1973).
_EPOCH_SECONDS, _EPOCH_MILLISECONDS = 1e9, 1e11
_NUMBER = re.compile(r"[0-9]{1,15}(?:\.[0-9]{1,9})?")
_DURATION = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6}(?:\.\d{1,9})?)s)?(?:(\d{1,9})ms)?")
_RESET_NAME = re.compile(r"(?:.+-)?rate-?limit-(?:.+-)?reset(?:-.+)?|x-reset-after")
_REMAINING_NAME = re.compile(r"(?:.+-)?rate-?limit-(?:.+-)?remaining(?:-.+)?")
_MILLISECONDS_NAME = re.compile(r"(?:x-)?(?:ms-)?retry-after-ms")
_PARAMETER = re.compile(r"(?:^|[;,\s])([a-z]+)\s*=\s*([0-9]{1,15}(?:\.[0-9]{1,9})?)(?![^;,\s])")
_LONGEST_VALUE = 2000


def asked_seconds(headers: t.Mapping[str, str], now: float) -> float | None:
    """Return the seconds to wait that a response's headers ask for, or None where none does.

    ``now``: seconds since 1970 of this host; where the response has a Date, dates in it are compared with that.
    The result is not bounded: transfer.wait_seconds() does that.
    """
    given = {str(name).lower(): str(value).strip()[:_LONGEST_VALUE] for name, value in headers.items()}
    now = _date(given.get("date", "")) or now
    for name in ("retry-after", "x-retry-after"):
        seconds = _seconds(given.get(name, ""), now)
        if seconds is not None:
            return seconds
    for name, value in given.items():
        if _MILLISECONDS_NAME.fullmatch(name) and _NUMBER.fullmatch(value):
            return float(value) / 1000
    for found in (_limits(given.get("ratelimit", "")), _resets(given, now)):
        if found:
            return max(found)
    windows = [parameters["w"] for parameters in _items(given.get("ratelimit-policy", "")) if "w" in parameters]
    return max(windows) if windows else None


def _items(value: str) -> list[dict[str, float]]:
    """Return the numbers of each item of a list such as ``"burst";r=0;t=10, "day";r=5;t=3600``."""
    bare = re.sub(r'"[^"]*"', "", value.lower())
    return [{name: float(number) for name, number in _PARAMETER.findall(item)} for item in bare.split(",")]


def _limits(value: str) -> list[float]:
    """Return when the limits end that a header RateLimit names; those that are used up, where any is."""
    items = _items(value)
    if not any("t" in item for item in items):  # limit=500, remaining=0, reset=180
        return [item["reset"] for item in items if "reset" in item]
    timed = [item for item in items if "t" in item]
    used_up = [item["t"] for item in timed if not item.get("r", 0)]
    return used_up or [min(item["t"] for item in timed)]


def _resets(given: t.Mapping[str, str], now: float) -> list[float]:
    """Return when the limits end that headers such as X-RateLimit-Reset name; those that are used up, where known."""
    named = {}
    for name, value in given.items():
        if _RESET_NAME.fullmatch(name):
            whole = _seconds(value, now)
            each = [whole] if whole is not None else [_seconds(part.strip(), now) for part in value.split(",")]
            seconds = [one for one in each if one is not None]
            if seconds:
                named[name] = max(seconds)
    left = {name for name, value in given.items() if _REMAINING_NAME.fullmatch(name) and value.strip("0 .,")}
    used_up = [seconds for name, seconds in named.items() if name.replace("reset", "remaining") not in left]
    return used_up or list(named.values())


def _seconds(value: str, now: float) -> float | None:
    """Return how many seconds from ``now`` on a value means, or None where it means nothing."""
    if _NUMBER.fullmatch(value):
        number = float(value)
        if number >= _EPOCH_MILLISECONDS:
            return max(0.0, number / 1000 - now)
        return max(0.0, number - now) if number >= _EPOCH_SECONDS else number
    match = _DURATION.fullmatch(value.lower().replace(" ", ""))
    if match and match[0]:
        units = (86400, 3600, 60, 1, 0.001)
        return float(sum(float(match[index + 1] or 0) * unit for index, unit in enumerate(units)))
    moment = _date(value)
    return None if moment is None else max(0.0, moment - now)


def _date(value: str) -> float | None:
    """Return a date of HTTP or of ISO 8601 as seconds since 1970, or None."""
    for read in (email.utils.parsedate_to_datetime, datetime.datetime.fromisoformat):
        try:
            moment = read(value)
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=datetime.UTC)
            return moment.timestamp()
        except (ValueError, TypeError, OverflowError, IndexError):
            continue
    return None
