# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Following an asynchronous job of the host from the controller. Private to this collection."""

from __future__ import annotations

import dataclasses
import re
import shlex
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import progress, sandboxed_run

#: What async_status adds to the result of a job.
PLUMBING: t.Final = ("started", "finished", "ansible_job_id", "results_file", "invocation")

_COMMAND_FAILED = "non-zero return code"  # what ansible.builtin.command says of every failure
_QUIET_SECONDS = 6.0  # two lines of one job are at least this far apart
_TAIL_BYTES = 8192
_LOST_CONTACTS = 5  # polls in a row without an answer before the host counts as unreachable
_WIDEST = 160

# One cheap command per poll; Python runs on the host only when the job file has changed.
# Line 1: checksum and size of the job file. Line 2: the job's process ids, or ? where there is no /proc.
# Rest: the log's tail, if the job has written to it.
_LOOK = """\
cksum < {job} 2>/dev/null || echo gone
if [ -d /proc/self ]; then echo $(grep -lzsx -- {pattern} /proc/[0-9]*/cmdline | tr -dc '0-9\\n'); else echo '?'; fi
[ -n {log} ] && [ {log} -nt {job} ] && tail -c {bytes} -- {log} 2>/dev/null
{also}:"""

# The wrapper starts a session of its own, and all that the job starts is in it. Its process group would not do: the
# wrapper moves itself there while the job is starting, so the job may stay behind in the old one. What runs in a
# sandbox is not in the session: its unit is named after it (_base/sandboxed_run.py).
_KILL = """\
session() {{ sed 's/.*) //' /proc/$1/stat | cut -d' ' -f4; }}
members() {{ sed -n "s/^\\([0-9]*\\) (.*) [A-Za-z] -*[0-9]* -*[0-9]* $1 .*/\\1/p" /proc/[0-9]*/stat; }}
own=$(session $$)
for p in $(grep -lzsx -- {pattern} /proc/[0-9]*/cmdline | tr -dc '0-9\\n'); do
  s=$(session $p)
  [ -n "$s" ] && [ "$s" != "$own" ] || continue
  kill -s TERM $(members $s)
  echo stopped
  sleep 2
  kill -s KILL $(members $s)
  systemctl kill --signal=KILL "{units}-$s-*.service"
done 2>/dev/null
:"""


@dataclasses.dataclass(frozen=True)
class Look:
    """What one poll saw."""

    job_file: str
    processes: str
    line: str


def read_look(stdout: str) -> Look | None:
    """Return what a poll printed, or None when it was cut off."""
    lines = stdout.replace("\r\n", "\n").split("\n", 2)
    if len(lines) < 3:
        return None
    return Look(lines[0].strip(), lines[1].strip(), progress.newest_line(lines[2]))


def wrapper_pattern(jid: str) -> str:
    """Return a pattern that matches the job's wrapper process by an argument, and not the grep that looks for it."""
    name = jid.rpartition(".")[0] or jid
    return f"[{name[0]}]{re.escape(name[1:])}"


class Job:
    """One job that was started with async and poll 0, as an action plugin sees it."""

    def __init__(
        self,
        action: ActionBase,
        task_vars: dict[str, t.Any],
        jid: str,
        label: str,
        show: t.Callable[[str], None],
        log: str = "",
        also: str = "",
    ) -> None:
        """Take the action plugin whose connection is used.

        C(label) names the job in sentences, C(show) prints a line, C(log) is a file on the host that the job writes
        its progress to, C(also) a shell command, ended by a newline, that is run on the host with each look.
        """
        self._action, self._task_vars = action, task_vars
        self._jid, self._label, self._show, self._log, self._also = jid, label, show, log, also
        self._async_dir = action._remote_expand_user(
            action.get_shell_option("async_dir", default="~/.ansible_async")
        )
        self._job_file = action._connection._shell.join_path(self._async_dir, jid)

    def wait(
        self,
        poll_seconds: float,
        heartbeat_seconds: float,
        timeout_seconds: float,
        each_poll: t.Callable[[], None] | None = None,
    ) -> dict[str, t.Any]:
        """Return the job's own result, and remove its status file.

        A job that runs too long is stopped; one that died is said to have died. C(each_poll) may raise to end waiting.
        A command that failed says why in its last line.
        """
        status = self._wait(poll_seconds, heartbeat_seconds, timeout_seconds, each_poll)
        self._async_status("cleanup")
        said = str(status.get("stderr", "")).strip().splitlines()
        if status.get("failed") and status.get("msg") == _COMMAND_FAILED and said:
            status = {**status, "msg": f"{self._label}: {said[-1]}"}
        return {key: value for key, value in status.items() if key not in PLUMBING}

    def _wait(
        self,
        poll_seconds: float,
        heartbeat_seconds: float,
        timeout_seconds: float,
        each_poll: t.Callable[[], None] | None,
    ) -> dict[str, t.Any]:
        started = time.monotonic()
        ticker = progress.Ticker(started, heartbeat_seconds, _QUIET_SECONDS)
        seen = ""
        without_process = lost = 0
        while True:
            if each_poll is not None:
                each_poll()
            look = self._look()
            if look is None:
                lost += 1
                if lost >= _LOST_CONTACTS:
                    raise AnsibleConnectionFailure(
                        f"{self._label}: lost contact with the host; the job goes on there as {self._jid}."
                    )
                self._tick(ticker, "")
                time.sleep(poll_seconds)
                continue
            lost = 0
            without_process = 0 if look.processes else without_process + 1
            if look.job_file != seen or without_process:
                seen = look.job_file
                status = self._async_status("status")
                if status.get("finished") or (status.get("failed") and not status.get("started")):
                    return status
                if without_process > 1:
                    return self._failure(
                        "the job ended without a result; it was killed, or the host restarted; run the play again.",
                        look.line,
                    )
            if time.monotonic() - started >= timeout_seconds:
                return self._failure(f"not finished after {timeout_seconds:g} s; {self.stop()}.", look.line)
            self._tick(ticker, look.line)
            time.sleep(poll_seconds)

    def stop(self) -> str:
        """Stop the job with all that it started; return in words what became of it."""
        answer = self._run(_KILL.format(pattern=shlex.quote(wrapper_pattern(self._jid)), units=sandboxed_run.PREFIX))
        if "stopped" in answer["stdout"]:
            return "the job and its processes were stopped"
        return f"its processes were not found, so nothing was stopped (job {self._jid})"

    def _tick(self, ticker: progress.Ticker, line: str) -> None:
        text = ticker.tick(time.monotonic(), line)
        if text is not None:
            self._show(text)

    def _failure(self, sentence: str, last_line: str) -> dict[str, t.Any]:
        sentence = f"{self._label}: {sentence}"
        if last_line and not self._action._task.no_log:
            sentence += f" Its last line was: {progress.fit(last_line, _WIDEST)}"
        return {"failed": True, "changed": True, "rc": 1, "stdout": "", "stderr": "", "msg": sentence}

    def _look(self) -> Look | None:
        command = _LOOK.format(
            job=shlex.quote(self._job_file),
            log=shlex.quote(self._log),
            pattern=shlex.quote(wrapper_pattern(self._jid)),
            bytes=_TAIL_BYTES,
            also=self._also,
        )
        try:
            answer = self._run(command)
        except AnsibleConnectionFailure:
            self._action._connection.reset()
            return None
        return read_look(answer["stdout"]) if answer["rc"] == 0 else None

    def _run(self, command: str) -> dict[str, t.Any]:
        return t.cast("dict[str, t.Any]", self._action._low_level_execute_command(command))

    def _async_status(self, mode: str) -> dict[str, t.Any]:
        return t.cast(
            "dict[str, t.Any]",
            self._action._execute_module(
                module_name="ansible.builtin.async_status",
                module_args={"jid": self._jid, "mode": mode, "_async_dir": self._async_dir},
                task_vars=self._task_vars,
            ),
        )
