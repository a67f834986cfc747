# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase

_MODULE: t.Final = "homelab.mixed_gpu.apt_transaction"
_FOLLOW: t.Final = "homelab.mixed_gpu.follow"
_APT_LOG: t.Final = "/var/log/apt/term.log"
# far longer than any step of apt: follow keeps the time, and says what it stopped
_JOB_SECONDS: t.Final = 86400


class ActionModule(ActionBase):
    """Runs the module apt_transaction as a job and follows apt's log, where there is something to do."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result = super().run(tmp, task_vars)
        args = dict(self._task.args)
        if self._task.check_mode or args.get("look_only"):
            return {**result, **self._module(args, task_vars)}
        looked = self._module({**args, "look_only": True}, task_vars)
        if looked.get("failed") or not looked["changed"]:
            return {**result, **looked}
        self._task.async_val = _JOB_SECONDS
        try:
            job = self._module(args, task_vars, wrap_async=True)
        finally:
            self._task.async_val = 0
        if "ansible_job_id" not in job:
            return {**result, **job}
        following = {
            "jid": job["ansible_job_id"],
            "log": _APT_LOG,
            "label": args.get("label", "installing packages"),
            "timeout_seconds": args.get("timeout_seconds", 3600),
        }
        return {**result, **self._follow(following, task_vars)}

    def _module(
        self, args: dict[str, t.Any], task_vars: dict[str, t.Any] | None, wrap_async: bool = False
    ) -> dict[str, t.Any]:
        answer: dict[str, t.Any] = self._execute_module(
            module_name=_MODULE, module_args=dict(args), task_vars=task_vars, wrap_async=wrap_async
        )
        return answer

    def _follow(self, args: dict[str, t.Any], task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        task = self._task.copy()
        task.args = args
        follow = self._shared_loader_obj.action_loader.get(
            _FOLLOW,
            task=task,
            connection=self._connection,
            play_context=self._play_context,
            loader=self._loader,
            templar=self._templar,
            shared_loader_obj=self._shared_loader_obj,
        )
        answer: dict[str, t.Any] = follow.run(task_vars=task_vars)
        return answer
