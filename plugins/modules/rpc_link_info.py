#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: rpc_link_info
short_description: Measure round trip and rate of the way to RPC servers of other hosts
version_added: 0.1.0
description:
  - Talks to each C(ggml-rpc-server) a few times, and sends and receives 8 to 72 MiB. Nothing else listens on the other
    host.
  - A server serves one client at a time, so hold the lease (M(homelab.mixed_gpu.measurement_lease)) while it runs.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: This action does not modify state. It asks the servers in check mode too.
options:
  endpoints:
    description: Servers (C(host:port)) on other hosts.
    type: list
    elements: str
    required: true
  required:
    description: Whether the module fails where a server is not measured. Else RV(unmeasured) says why.
    type: bool
    default: true
  timeout_seconds:
    description: Time after which a server that does not answer is given up.
    type: int
    default: 30
seealso:
  - module: homelab.mixed_gpu.llama_devices_info
  - module: homelab.mixed_gpu.lender_record
"""

EXAMPLES = r"""
- name: Measure the way to a lender
  homelab.mixed_gpu.rpc_link_info:
    endpoints: ["192.168.1.20:50052"]
  register: example_links
"""

RETURN = r"""
unmeasured:
  description: By each endpoint that was not measured, why, in a sentence.
  returned: always
  type: dict
links:
  description: By each endpoint, how quick the way to it is.
  returned: always
  type: dict
  contains:
    protocol:
      description: Version of the protocol that the server speaks; empty where it does not take the greeting known here.
      type: str
      sample: 7.0.0
    round_trip_ms:
      description: Time of a small exchange, the median of 100.
      type: float
      sample: 0.4
    stalls_ms:
      description: What packets that are lost on the way add to a small exchange, on average.
      type: float
      sample: 0.0
    to_mb_per_s:
      description: Rate to the server, in 10^6 bytes per second; V(none) for another version of the protocol than is
        known here.
      type: float
      sample: 117.0
    from_mb_per_s:
      description: Rate from the server, likewise.
      type: float
      sample: 117.0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_link


def measured(endpoint: str, timeout_seconds: int) -> rpc_link.Link:
    """Return how quick the way to a server is. Raises UserError with one sentence."""
    host, _colon, port = endpoint.rpartition(":")
    try:
        return rpc_link.measure(host, int(port), timeout_seconds=timeout_seconds)
    except UserError as error:
        raise UserError(
            f"The RPC server {endpoint} is not the one that was expected: {error}; run homelab.mixed_gpu.site, so that"
            " all hosts have the same llama.cpp."
        ) from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"The RPC server {endpoint} is not reached ({error}): wake its host, see that its unit ggml-rpc-server-*"
            " runs, and that nothing else uses it."
        ) from error


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "endpoints": {"type": "list", "elements": "str", "required": True},
            "required": {"type": "bool", "default": True},
            "timeout_seconds": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    links, unmeasured = {}, {}
    for endpoint in module.params["endpoints"]:
        try:
            links[endpoint] = measured(endpoint, module.params["timeout_seconds"])
        except UserError as error:
            if module.params["required"]:
                module.fail_json(msg=str(error))
            unmeasured[endpoint] = str(error)
    module.exit_json(changed=False, links=links, unmeasured=unmeasured)


if __name__ == "__main__":
    main()
