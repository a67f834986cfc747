#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: follow
short_description: Wait for an asynchronous job and show its progress
version_added: 0.1.0
description:
  - Waits for a job that was started with C(async) and C(poll=0). Meanwhile it prints the newest line of the job's log,
    so that a long compilation or download is not a silent screen.
  - Returns the job's own result, as if the task had run in the foreground, and removes the job's status file.
  - Must run as the same user (C(become)) as the task that started the job.
  - A line of the log counts only once the job has written to the log; what other jobs wrote there earlier is not shown.
  - Nothing but signs of life is printed when the task has C(no_log).
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
attributes:
  check_mode:
    details: Skipped when no job was started, which is what most modules do in check mode.
  diff_mode:
    details: The job's own result is returned as it is.
options:
  jid:
    description:
      - The C(ansible_job_id) that the asynchronous task returned.
      - May be empty in check mode alone; the task is skipped then.
    type: str
    required: true
  log:
    description:
      - File on the managed host that the job writes its progress to. Carriage returns and colours are understood.
    type: path
    default: ""
  label:
    description: What is printed in front of each line. The name of the task when empty.
    type: str
    default: ""
  poll_seconds:
    description: Seconds between two looks at the job.
    type: float
    default: 2
  heartbeat_seconds:
    description: When nothing new was printed for this many seconds, a line says how long the job has been running.
    type: float
    default: 15
  timeout_seconds:
    description: After this many seconds the job is stopped with all processes that it started, and the task fails.
    type: float
    default: 7200
"""

EXAMPLES = r"""
- name: Start a long job
  ansible.builtin.shell: make -C /usr/local/src/thing > /var/log/thing.log 2>&1
  async: 3600
  poll: 0
  register: thing_job

- name: Wait for it
  homelab.mixed_gpu.follow:
    jid: "{{ thing_job.ansible_job_id }}"
    log: /var/log/thing.log
    label: compiling thing
    timeout_seconds: 3600
  register: thing
"""

RETURN = r"""
msg:
  description:
    - The job's own message, or one sentence when the job ran too long or vanished.
    - Of a command that failed it is the last line of its error output.
  type: str
  returned: when the job returns one, or on failure
rc:
  description: The job's own return code; every other value that the job returned is passed on in the same way.
  type: int
  returned: when the job returns one
stdout:
  description: The job's own output.
  type: str
  returned: when the job returns one
stderr:
  description: The job's own error output.
  type: str
  returned: when the job returns one
"""
