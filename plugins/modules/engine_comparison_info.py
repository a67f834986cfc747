#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: engine_comparison_info
short_description: Compare what was measured with each engine on a host
version_added: 0.1.0
description:
  - Reads the host's record and returns one row per deployment, llama.cpp's and ExLlama's alike, by time per request
    where both have been measured by the same objective.
  - Weights differ between formats, so the size of the file stands beside its speed. Nothing here says which
    quantisation answers better.
  - Fails where nothing is recorded.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  fact_file:
    description: The host's recorded splits, see M(homelab.mixed_gpu.split_record).
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
"""

EXAMPLES = r"""
- name: Compare the engines
  homelab.mixed_gpu.engine_comparison_info:
  register: example_comparison

- name: Show the comparison
  ansible.builtin.debug:
    msg: "{{ example_comparison.lines }}"
"""

RETURN = r"""
deployments:
  description:
    - One dict per recorded deployment, the quickest request first, with C(deployment), C(active), C(engine),
      C(size_gib), C(context_size), C(layers), C(decode_tokens_per_second), C(prefill_tokens_per_second), C(request_ms),
      C(objective),
      C(same_objective) and C(loads).
  returned: success
  type: list
  elements: dict
lines:
  description: The same as lines of text.
  returned: success
  type: list
  elements: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import engine_comparison
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record


def main() -> None:
    module = AnsibleModule(
        argument_spec={"fact_file": {"type": "path", "default": fact_record.PATH}},
        supports_check_mode=True,
    )
    path = module.params["fact_file"]
    try:
        record = host_record.read(path)
        why = None if record["models"] else fact_record.find(record, path)["why"]
        compared = engine_comparison.compare(record)
    except UserError as exc:
        module.fail_json(msg=f"{exc}.")
    except OSError as exc:
        module.fail_json(msg=f"{path} cannot be read ({exc.strerror}): run as root, or move it away.")
    except (KeyError, TypeError) as exc:
        module.fail_json(msg=f"{path} is not complete ({exc!r}): run the site playbook, which writes the file.")
    if why:
        module.fail_json(msg=f"{why}.")
    module.exit_json(changed=False, **compared)


if __name__ == "__main__":
    main()
