# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
name: llama_server_url
short_description: Say where a server is reached on its own host
version_added: 0.1.0
description:
  - Returns the URL of a server that binds to an address. One that binds to all of them is reached by the loopback.
positional: _input
options:
  _input:
    description: Address that the server binds to, O(homelab.mixed_gpu.llama_server#role:main:llama_server_host).
    type: str
    required: true
  port:
    description: Port that it listens on.
    type: int
    required: true
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Show where it is reached
  ansible.builtin.debug:
    msg: "{{ '0.0.0.0' | homelab.mixed_gpu.llama_server_url(port=8080) }}"
"""

RETURN = r"""
_value:
  description: The URL.
  type: str
  sample: http://127.0.0.1:8080
"""

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_server


class FilterModule:
    """Filters about servers."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"llama_server_url": llama_server.url}
