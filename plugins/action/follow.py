# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible_collections.homelab.mixed_gpu.plugins.plugin_utils import job, lines


class ActionModule(ActionBase):
    """Waits for an asynchronous job and shows the newest line of its log while it runs."""

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        variables = task_vars or {}
        result = super().run(tmp, variables)
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
        label, jid = args["label"] or self._task.get_name().strip(), args["jid"]
        if not jid:
            if not self._task.check_mode:
                raise AnsibleActionFail(
                    f"{label}: no job to follow; pass the ansible_job_id of a task with async and poll 0."
                )
            return {**result, "changed": False, "skipped": True, "skip_reason": "no job was started in check mode"}
        if "/" in jid:
            raise AnsibleActionFail(
                f"{label}: {jid!r} is no job id; pass jid the ansible_job_id of the started task."
            )

        def show(text: str) -> None:
            lines.show(self, variables, label, text)

        followed = job.Job(self, variables, jid, label, show, args["log"])
        return {
            **result,
            **followed.wait(args["poll_seconds"], args["heartbeat_seconds"], args["timeout_seconds"]),
        }
