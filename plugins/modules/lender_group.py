#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: lender_group
short_description: Check the hosts that lend devices and the boxes that use them
version_added: 0.1.0
description:
  - Run first without, then with O(registered), on all hosts of both groups. The first run judges the inventory and
    looks at the host, the second one compares the hosts. Each host fails with one sentence about itself.
  - A lender is refused that has no private address of its own, is listed twice, or is a box. So is one without a clear
    box or without a route to it, and one that asks for another llama.cpp than its box.
  - The second run returns, on a lender, the variables that say which llama.cpp its box builds.
  - It is an action plugin. It reads variables on the controller, and runs M(homelab.mixed_gpu.network_info) on the
    host.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  lenders:
    description: Names of the hosts that lend devices. Each has C(llama_rpc_address), and C(mixed_gpu_box) where there
      are several boxes.
    type: list
    elements: str
    required: true
  boxes:
    description: Names of the hosts that serve.
    type: list
    elements: str
    required: true
  registered:
    description:
      - Name of the variable in which each host of the play has registered the first run. A box fails where one of its
        lenders in the play does not take part any more.
    type: str
  together:
    description: Whether a box takes part with all of its lenders or not at all; a lender that is left out is refused.
    type: bool
    default: false
seealso:
  - module: homelab.mixed_gpu.network_info
"""

EXAMPLES = r"""
- name: Read the network of the hosts
  homelab.mixed_gpu.lender_group:
    lenders: "{{ groups['mixed_gpu_lenders'] }}"
    boxes: "{{ groups['mixed_gpu'] }}"
  register: example_look

- name: Check the group
  homelab.mixed_gpu.lender_group:
    lenders: "{{ groups['mixed_gpu_lenders'] }}"
    boxes: "{{ groups['mixed_gpu'] }}"
    registered: example_look
  register: example_member
"""

RETURN = r"""
hosts:
  description: The box and its lenders that take part in the run, the box first.
  returned: with O(registered)
  type: list
  elements: str
order:
  description: All hosts of the run, each box in front of its lenders.
  returned: with O(registered)
  type: list
  elements: str
serial:
  description: Number of hosts of each box in RV(order), the box included.
  returned: with O(registered)
  type: list
  elements: int
lenders:
  description: Of a box, its lenders that take part in the run.
  returned: with O(registered), on a box
  type: list
  elements: str
absent:
  description: Of a box, its other lenders.
  returned: with O(registered), on a box
  type: list
  elements: str
box:
  description: Of a lender, its box.
  returned: with O(registered), on a lender
  type: str
clients:
  description: Of a lender, the address from which its box reaches it. Nobody else may use it.
  returned: with O(registered), on a lender
  type: list
  elements: str
variables:
  description:
    - What the roles llama_cpp and llama_rpc are told on a lender, all variables that say which llama.cpp its box builds
      among them; empty on a box.
  returned: with O(registered)
  type: dict
"""
