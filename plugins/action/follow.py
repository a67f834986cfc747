# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import dataclasses
import re
import shlex
import time
import typing as t

from ansible.errors import AnsibleActionFail, AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import progress

display = Display()

_QUIET_SECONDS = 6.0  # two lines of one job are at least this far apart
_TAIL_BYTES = 8192
_LOST_CONTACTS = 5  # polls in a row without an answer before the host counts as unreachable
_WIDEST = 160
_PLUMBING = ("started", "finished", "ansible_job_id", "results_file", "invocation")

# One cheap command per poll; Python runs on the host only when the job file has changed.
# Line 1: checksum and size of the job file. Line 2: the job's process ids, or ? where there is no /proc.
# Rest: the log's tail, if the job has written to it.
_LOOK = """\
cksum < {job} 2>/dev/null || echo gone
if [ -d /proc/self ]; then echo $(grep -lzsx -- {pattern} /proc/[0-9]*/cmdline | tr -dc '0-9\\n'); else echo '?'; fi
[ -n {log} ] && [ {log} -nt {job} ] && tail -c {bytes} -- {log} 2>/dev/null
:"""

# The wrapper starts a session of its own, and all that the job starts is in it. Its process group would not do: the
# wrapper moves itself there while the job is starting, so the job may stay behind in the old one.
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
done 2>/dev/null
:"""


@dataclasses.dataclass(frozen=True)
class _Look:
    """What one poll saw."""

    job_file: str
    processes: str
    line: str


def _read_look(stdout: str) -> _Look | None:
    lines = stdout.replace("\r\n", "\n").split("\n", 2)
    if len(lines) < 3:
        return None
    return _Look(lines[0].strip(), lines[1].strip(), progress.newest_line(lines[2]))


def _wrapper_pattern(jid: str) -> str:
    """Return a pattern that matches the job's wrapper process by an argument, and not the grep that looks for it."""
    name = jid.rpartition(".")[0] or jid
    return f"[{name[0]}]{re.escape(name[1:])}"


class ActionModule(ActionBase):
    """Waits for an asynchronous job and shows the newest line of its log while it runs."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        self._task_vars = task_vars or {}
        result = super().run(tmp, self._task_vars)
        args = self.validate_argument_spec(
            argument_spec={
                "jid": {"type": "str", "default": ""},
                "log": {"type": "path", "default": ""},
                "label": {"type": "str", "default": ""},
                "poll_seconds": {"type": "float", "default": 2},
                "heartbeat_seconds": {"type": "float", "default": 15},
                "timeout_seconds": {"type": "float", "default": 7200},
            },
        )[1]
        self._label = args["label"] or self._task.get_name().strip()
        self._jid = args["jid"]
        if not self._jid:
            if not self._task.check_mode:
                raise AnsibleActionFail(
                    f"{self._label}: no job to follow; pass the ansible_job_id of a task with async and poll 0."
                )
            return {**result, "changed": False, "skipped": True, "skip_reason": "no job was started in check mode"}
        if "/" in self._jid:
            raise AnsibleActionFail(
                f"{self._label}: {self._jid!r} is no job id; pass jid the ansible_job_id of the started task."
            )

        self._async_dir = self._remote_expand_user(self.get_shell_option("async_dir", default="~/.ansible_async"))
        self._job_file = self._connection._shell.join_path(self._async_dir, self._jid)
        self._log = args["log"]
        status = self._wait(args["poll_seconds"], args["heartbeat_seconds"], args["timeout_seconds"])
        self._async_status("cleanup")
        return {**result, **{key: value for key, value in status.items() if key not in _PLUMBING}}

    def _wait(self, poll_seconds: float, heartbeat_seconds: float, timeout_seconds: float) -> dict[str, t.Any]:
        """Return the job's own result. A job that runs too long is stopped; one that died is said to have died."""
        started = time.monotonic()
        ticker = progress.Ticker(started, heartbeat_seconds, _QUIET_SECONDS)
        seen = ""
        without_process = lost = 0
        while True:
            look = self._look()
            if look is None:
                lost += 1
                if lost >= _LOST_CONTACTS:
                    raise AnsibleConnectionFailure(
                        f"{self._label}: lost contact with the host; the job goes on there as {self._jid}."
                    )
                self._show(ticker.tick(time.monotonic(), ""))
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
                return self._failure(f"not finished after {timeout_seconds:g} s; {self._stop()}.", look.line)
            self._show(ticker.tick(time.monotonic(), look.line))
            time.sleep(poll_seconds)

    def _failure(self, sentence: str, last_line: str) -> dict[str, t.Any]:
        sentence = f"{self._label}: {sentence}"
        if last_line and not self._task.no_log:
            sentence += f" Its last line was: {progress.fit(last_line, _WIDEST)}"
        return {"failed": True, "changed": True, "rc": 1, "stdout": "", "stderr": "", "msg": sentence}

    def _look(self) -> _Look | None:
        command = _LOOK.format(
            job=shlex.quote(self._job_file),
            log=shlex.quote(self._log),
            pattern=shlex.quote(_wrapper_pattern(self._jid)),
            bytes=_TAIL_BYTES,
        )
        try:
            answer = self._low_level_execute_command(command)
        except AnsibleConnectionFailure:
            self._connection.reset()
            return None
        return _read_look(answer["stdout"]) if answer["rc"] == 0 else None

    def _stop(self) -> str:
        answer = self._low_level_execute_command(_KILL.format(pattern=shlex.quote(_wrapper_pattern(self._jid))))
        if "stopped" in answer["stdout"]:
            return "the job and its processes were stopped"
        return f"its processes were not found, so nothing was stopped (job {self._jid})"

    def _async_status(self, mode: str) -> dict[str, t.Any]:
        return self._execute_module(
            module_name="ansible.builtin.async_status",
            module_args={"jid": self._jid, "mode": mode, "_async_dir": self._async_dir},
            task_vars=self._task_vars,
        )

    def _show(self, text: str | None) -> None:
        if text is None:
            return
        if self._task.no_log and not text.startswith("still running"):
            return
        host = self._task_vars.get("inventory_hostname", "")
        width = min(getattr(display, "columns", 79), _WIDEST)
        display.display(progress.labelled(host, self._label, text, width))
