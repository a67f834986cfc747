# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Lines that an action plugin prints while its task runs. Private to this collection."""

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import progress

_WIDEST = 160

display = Display()


def say(task_vars: t.Mapping[str, t.Any], label: str, text: str) -> None:
    """Print a result in full, with the host and a label."""
    host = task_vars.get("inventory_hostname", "")
    display.display(f"  {host} | {label}: {text}" if label else f"  {host} | {text}")


def show(action: ActionBase, task_vars: t.Mapping[str, t.Any], label: str, text: str) -> None:
    """Print a line of progress, shortened to the screen; of a task with no_log signs of life alone."""
    if action._task.no_log and not text.startswith("still running"):
        return
    width = min(getattr(display, "columns", 79), _WIDEST)
    display.display(progress.labelled(task_vars.get("inventory_hostname", ""), label, text, width))
