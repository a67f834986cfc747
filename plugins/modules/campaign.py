#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: campaign
short_description: Plan and measure in turns until decided
version_added: 0.1.0
description:
  - Asks a planner for the next step, runs the module that the step names on the host, shows the result, and goes on
    until the planner has decided. One task replaces a loop over measurements.
  - It is an action plugin. It runs on the controller, and uses modules of this collection on the host.
  - A line is printed for each result, and at least every 30 seconds while something is measured. It says which
    measurement this is and about how many there are in all.
  - Measurements are stored on the host at once. A campaign that was killed and is run again reads the store once, and
    goes on where it was.
  - One lease (M(homelab.mixed_gpu.measurement_lease)) covers the campaign from the first step that needs the devices
    to the end. It is renewed while the campaign runs. When the controller is killed or lost, the lease ends by itself
    after the running measurement, and the server comes back.
  - Measurements that take long run as jobs on the host. They survive a lost connection, and their result is stored.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
attributes:
  check_mode:
    details: Measures nothing, and returns the planner's prediction.
  diff_mode:
    details: What a campaign decides is recorded by the modules that own the records.
options:
  planner:
    description:
      - What decides. V(tuning) finds the best split of a model, V(revalidation) compares a recorded split with its
        baseline, V(power_sweep) compares power limits, V(answers) compares a placement with each device alone.
        V(planning) predicts, and measures nothing. V(diagnosis) adds what was found of lenders to a diagnosis.
    type: str
    choices: [answers, diagnosis, planning, power_sweep, revalidation, tuning]
    required: true
  settings:
    description:
      - What the planner is told. For V(tuning) and V(planning) the variables of the role
        P(homelab.mixed_gpu.split_tuning#role) by name, for V(power_sweep) those of
        P(homelab.mixed_gpu.power_sweep#role), for V(revalidation) those of P(homelab.mixed_gpu.revalidate#role) with
        C(revalidate_host), the name of the host, C(revalidate_lenders) and C(revalidate_looks), for V(answers) those of
        P(homelab.mixed_gpu.llama_server#role), for V(diagnosis) those of P(homelab.mixed_gpu.diagnose#role) and what
        its tasks found; others are ignored.
    type: dict
    required: true
  label:
    description: What is printed in front of each line. The name of the planner when empty.
    type: str
    default: ""
seealso:
  - module: homelab.mixed_gpu.measurement_lease
  - module: homelab.mixed_gpu.split_benchmark
"""

EXAMPLES = r"""
- name: Tune a model with the variables of the role split_tuning
  homelab.mixed_gpu.campaign:
    planner: tuning
    settings: "{{ dict(__names | zip(query('ansible.builtin.vars', *__names))) }}"
  register: example_tuned
  vars:
    __names: "{{ query('ansible.builtin.varnames', '^split_tuning_') }}"
"""

RETURN = r"""
needed:
  description: Of V(tuning), whether something had to be measured.
  returned: success
  type: bool
why:
  description: One sentence about the result.
  returned: success
  type: str
lines:
  description: The lines that were printed at the end.
  returned: success
  type: list
  elements: str
tuning:
  description: Of V(tuning), the option O(homelab.mixed_gpu.split_record#module:tuning).
  returned: when a tuning has measured
  type: dict
baseline:
  description: Of V(tuning), the option O(homelab.mixed_gpu.revalidation_record#module:measured) but its entry.
  returned: when a tuning has measured
  type: dict
document:
  description: Of V(power_sweep), the result as the role writes it, see C(docs/data_formats.md).
  returned: when a sweep has measured
  type: dict
found:
  description: Of V(power_sweep), the option O(homelab.mixed_gpu.gpu_power#module:settings) that restores the limits.
  returned: when a sweep has measured
  type: dict
revalidation:
  description: Of V(revalidation), the verdict, see C(docs/data_formats.md).
  returned: when a host was compared
  type: dict
accepted:
  description:
    - Of V(revalidation), what makes this measurement the baseline. C(obstacle) says why that cannot be done, else it is
      V(none), and C(renewal) is the option O(homelab.mixed_gpu.split_record#module:renewal).
  returned: when a host was compared
  type: dict
answers:
  description: Of V(answers), the result, see C(docs/data_formats.md), V(none) where nothing was checked.
  returned: success
  type: dict
retuned:
  description: Of V(revalidation), what tunes this deployment again, with C(obstacle) likewise.
  returned: when a host was compared
  type: dict
told:
  description: Of V(diagnosis), what M(homelab.mixed_gpu.llama_server_diagnosis) returns, with the lenders.
  returned: success
  type: dict
prediction:
  description: Of V(tuning), what is to be expected, see C(docs/data_formats.md).
  returned: in check mode, when something can be predicted
  type: dict
"""
