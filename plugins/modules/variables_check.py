#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: variables_check
short_description: Validate the variables of the roles before anything is built
version_added: 0.1.0
description:
  - Reads the variables of this collection's roles that are set for the host, and fails with one sentence per value that
    cannot be used, with the name of the variable. All roles are judged at once, also those that run last.
  - Types, choices and keys follow the argument specs of the roles. A name that begins with a role's name and is none of
    its variables is refused, with the nearest name. C(split_tuning_model_id) must be an id of C(llm_models).
  - Control characters are refused, but line breaks and tabs where a command line or an environment carries them. An
    address that a server binds to must be one.
  - Works on the controller. What depends on a variable that a later role of this collection sets is left to that role.
  - In a play of one's own, a warning names a variable that is not set yet, since another role may set it. What is known
    of the value is judged, and the role that uses it refuses it where the variable is missing still. The playbooks of
    this collection refuse it at once.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  roles:
    description: Roles whose values are judged, all of them by default. Names are judged of all roles.
    type: list
    elements: str
    default: []
"""

EXAMPLES = r"""
- name: Validate the variables of the servers
  homelab.mixed_gpu.variables_check:
"""

RETURN = r"""#"""
