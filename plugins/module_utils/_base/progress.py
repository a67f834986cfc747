# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Private to this collection: what to show of a long job's log, and when."""

from __future__ import annotations

import dataclasses
import re

# CSI sequences (colours, cursor movement), OSC sequences (titles) and lone two-character escapes
_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROLS = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_MINIMUM_WIDTH = 20
_MINIMUM_LABEL = 12


def newest_line(tail: str) -> str:
    """Return the last line of a log's tail that says something, or an empty string.

    A carriage return starts a new line, as progress meters use it; terminal escapes and control characters are removed.
    """
    text = _CONTROLS.sub("", _ESCAPES.sub("", tail.replace("\r", "\n")).replace("\t", " "))
    # also marks without a width: one of them (U+202E) turns the rest of the terminal's line round
    text = "".join(character for character in text if character.isprintable() or character == "\n")
    for line in reversed(text.split("\n")):
        if line.strip():
            return line.strip()
    return ""


def fit(line: str, width: int) -> str:
    """Shorten a line to `width` characters in its middle: counters stand in front, file names at the end."""
    width = max(width, _MINIMUM_WIDTH)
    if len(line) <= width:
        return line
    behind = (width - 3) // 3
    return f"{line[: width - 3 - behind]}...{line[-behind:]}"


def labelled(host: str, label: str, line: str, width: int) -> str:
    """Return a job's line with its host and label in `width` characters; the label gives way before the line does."""
    room = width - len(f"  {host} | : {line}")
    if len(label) > room:
        room = max(room, _MINIMUM_LABEL)
        label = label if len(label) <= room else f"{label[: room - 3]}..."
    return fit(f"  {host} | {label}: {line}", width)


@dataclasses.dataclass
class Ticker:
    """Decides what to show next. Times are seconds of any monotonic clock.

    A changed line is shown at once, but not more often than every `quiet_seconds`; when nothing was shown for
    `heartbeat_seconds`, a sign of life is.
    """

    started: float
    heartbeat_seconds: float
    quiet_seconds: float
    _shown_line: str = ""
    _shown_at: float | None = None

    def tick(self, now: float, line: str) -> str | None:
        """Return the text to show now, or None."""
        since = now - (self.started if self._shown_at is None else self._shown_at)
        if line and line != self._shown_line and (self._shown_at is None or since >= self.quiet_seconds):
            self._shown_line, self._shown_at = line, now
            return line
        if since >= self.heartbeat_seconds:
            self._shown_at = now
            return f"still running, {int(now - self.started)} s"
        return None
