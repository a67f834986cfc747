# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: stages
type: stdout
short_description: One line per stage, and what was changed, found or refused
version_added: 0.1.0
description:
  - Shows a line with the time since the start when a role begins, each change, what tasks show on purpose, warnings,
    and one sentence for a failure. Progress of builds, downloads and model loads is shown as with the default output.
  - With C(-v) or more it is the default output of Ansible with all tasks.
extends_documentation_fragment:
  - default_callback
  - result_format_callback
requirements:
  - Set as stdout in the configuration.
"""

EXAMPLES = r"""
# ansible.cfg
# [defaults]
# stdout_callback = homelab.mixed_gpu.stages
"""

import re
import time
import typing as t

from ansible import constants
from ansible.plugins.callback.default import CallbackModule as Default

C: t.Any = constants  # its names come from Ansible's configuration
#: Ansible names the check of a role's arguments like this; the role's short description follows.
ROLE_BEGINS: t.Final = "Validating arguments against arg spec "
#: Keys of a failed result that say more than its message.
DETAILS: t.Final = ("stderr", "stdout", "module_stderr", "module_stdout")
LAST_LINES: t.Final = 15
#: What Ansible puts before the sentence of a filter: the name of the task's argument, which says nothing to users.
FILTER_FAILED: t.Final = re.compile(r"^Task failed: .*?The filter plugin '[^']+' failed: ")


class CallbackModule(Default):  # type: ignore[misc]  # ansible-core is not typed
    """The screen of a person who waits for a stage, not for a task."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "homelab.mixed_gpu.stages"

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._stage = ""
        self._play_name = ""

    def _brief(self) -> bool:
        return bool(self._display.verbosity == 0)

    def _line(self, result: t.Any, text: str, color: str | None = None) -> None:
        # a task that runs once speaks of all hosts
        where = "" if result.task.run_once else f"{result.host.get_name()} | "
        self._display.display(f"  {where}{text}", color=color)

    def v2_playbook_on_play_start(self, play: t.Any) -> None:
        if not self._brief():
            super().v2_playbook_on_play_start(play)
            return
        self._play = play
        self._play_name = play.get_name().strip()  # shown once it does something

    def v2_playbook_on_no_hosts_matched(self) -> None:
        if not self._brief():
            super().v2_playbook_on_no_hosts_matched()

    def v2_playbook_on_stats(self, stats: t.Any) -> None:
        if self._brief() and not stats.processed:
            super().v2_playbook_on_no_hosts_matched()
        super().v2_playbook_on_stats(stats)

    def _task_start(self, task: t.Any, prefix: str | None = None) -> None:
        if not self._brief():
            super()._task_start(task, prefix)
            return
        self._show_stage(self._play_name)
        self._play_name = ""
        name = task.get_name().strip()
        if ROLE_BEGINS in name:
            self._show_stage(name.split(ROLE_BEGINS, 1)[1].partition(" - ")[2])

    def _show_stage(self, stage: str) -> None:
        if stage and stage != self._stage:
            self._stage = stage
            minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
            self._display.display(f"{minutes:3d}:{seconds:02d}  {stage}", color=C.COLOR_HIGHLIGHT)

    def v2_playbook_on_include(self, included_file: t.Any) -> None:
        if not self._brief():
            super().v2_playbook_on_include(included_file)

    def v2_runner_on_skipped(self, result: t.Any) -> None:
        if not self._brief():
            super().v2_runner_on_skipped(result)

    def v2_runner_item_on_skipped(self, result: t.Any) -> None:
        if not self._brief():
            super().v2_runner_item_on_skipped(result)

    def v2_runner_on_ok(self, result: t.Any) -> None:
        if not self._brief():
            super().v2_runner_on_ok(result)
            return
        self._handle_warnings_and_exception(result)
        if result.task.loop and "results" in result.result:
            return
        self._show_ok(result, result.task.get_name().strip())

    def v2_runner_item_on_ok(self, result: t.Any) -> None:
        if not self._brief():
            super().v2_runner_item_on_ok(result)
            return
        self._handle_warnings_and_exception(result)
        self._show_ok(result, f"{result.task.get_name().strip()} ({self._get_item_label(result.result)})")

    def _show_ok(self, result: t.Any, name: str) -> None:
        """Show a change by the task's name, and a message that a task shows on purpose."""
        if result.result.get("changed"):
            self._line(result, f"changed: {_without_role(name)}", C.COLOR_CHANGED)
        if result.result.get("_ansible_verbose_always"):
            for line in _lines(result.result.get("msg", "")):
                self._line(result, line)

    def v2_runner_on_failed(self, result: t.Any, ignore_errors: bool = False) -> None:
        if not self._brief():
            super().v2_runner_on_failed(result, ignore_errors)
            return
        if result.task.loop and "results" in result.result:
            self._handle_warnings(result.result)
            return  # each item said it
        self._show_failed(result, result.task.get_name().strip(), ignore_errors)

    def v2_runner_item_on_failed(self, result: t.Any) -> None:
        if not self._brief():
            super().v2_runner_item_on_failed(result)
            return
        name = f"{result.task.get_name().strip()} ({self._get_item_label(result.result)})"
        self._show_failed(result, name, bool(result.task.ignore_errors))

    def _show_failed(self, result: t.Any, name: str, ignored: bool) -> None:
        self._handle_warnings(result.result)
        word, color = ("ignored", C.COLOR_SKIP) if ignored else ("FAILED", C.COLOR_ERROR)
        self._line(result, f"{word}: {_without_role(name)}", color)
        for line in _lines(result.result.get("msg") or result.result.get("censored", "")):
            self._line(result, FILTER_FAILED.sub("", line), color)
        for key in DETAILS:
            for line in _lines(result.result.get(key, ""))[-LAST_LINES:]:
                self._line(result, f"{key}: {line}", color)

    def v2_runner_on_unreachable(self, result: t.Any) -> None:
        if not self._brief():
            super().v2_runner_on_unreachable(result)
            return
        self._handle_warnings(result.result)
        for line in _lines(result.result.get("msg", "")):
            self._line(result, f"UNREACHABLE: {line}", C.COLOR_UNREACHABLE)


def _without_role(name: str) -> str:
    """Return a task's name without its role's, which the stage says."""
    return name.rpartition(" : ")[2]


def _lines(message: t.Any) -> list[str]:
    """Return the lines of a message, which is a text or a list of texts."""
    texts = message if isinstance(message, (list, tuple)) else [message]
    return [line for text in texts for line in str(text).splitlines()]
