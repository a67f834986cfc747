#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: serving_proof
short_description: Prove that a server answers those who have its key, and nobody else
version_added: 0.1.0
description:
  - Asks for a short completion with the key, because C(/health) stays fine when a device has died.
  - Asserts that a server with a key refuses requests without the key.
  - Asserts of llama-server that C(/tools), C(/cors-proxy), saving of slots, C(POST /props) and C(/models/load) are shut
    (HTTP status 403, 404 or 501), unless O(arguments) or O(environment) open them.
  - The key is read on the host, and never returned.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details: This module changes nothing.
  diff_mode:
    support: N/A
    details: This module changes nothing.
options:
  engine:
    description: Who serves.
    type: str
    choices: [llama_cpp, exllama]
    default: llama_cpp
  url:
    description: Where the server listens.
    type: str
    default: http://127.0.0.1:8080
  api_key_file:
    description: File on the host that holds the key. Empty for a server without a key.
    type: path
    default: ""
  api_key:
    description: The key that the file must hold, where a variable has one.
    type: str
    default: ""
  arguments:
    description:
      - Further arguments of llama-server, O(homelab.mixed_gpu.llama_server#role:main:llama_server_extra_arguments).
    type: list
    elements: str
    default: []
  environment:
    description: Variables of the server's environment.
    type: dict
    default: {}
  timeout_seconds:
    description: How long to wait for an answer.
    type: int
    default: 300
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Assert that the server answers
  homelab.mixed_gpu.serving_proof:
    url: "{{ llama_server_url }}"
    api_key_file: /etc/mixed_gpu/llama-server.key
"""

RETURN = r"""
connect:
  description: One sentence for clients, with the path of the key and a command that uses the key.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import access_key
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_proof
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import Client, read_api_key


def prove(module: AnsibleModule) -> None:
    """Ask the server. Raises UserError where an answer is not the right one."""
    params = module.params
    engine, url, path = served_proof.ENGINES[params["engine"]], params["url"], params["api_key_file"]
    key = read_api_key(path)
    if key:
        module.no_log_values.add(key)
    elif path:
        raise UserError(f"{path} holds no key: run the role that configures {engine.unit}.")
    served_proof.check_key(engine, params["api_key"], key or "")
    client = Client(url, key, params["timeout_seconds"])
    status, answer = client.status("POST", engine.completion, dict(engine.body))
    served_proof.check_completion(engine, status, answer, path)
    if key:
        stranger = Client(url, None, params["timeout_seconds"])
        served_proof.check_secured(engine, stranger.status("GET", engine.secured)[0])
    if params["engine"] == "llama_cpp":
        for endpoint in served_proof.shut(params["arguments"], params["environment"]):
            status, _answer = client.status(endpoint.method, endpoint.path, endpoint.body)
            served_proof.check_shut(engine, endpoint, status)


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "engine": {"type": "str", "choices": ["llama_cpp", "exllama"], "default": "llama_cpp"},
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "default": "", "no_log": False},
            "api_key": {"type": "str", "default": "", "no_log": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "environment": {"type": "dict", "default": {}},
            "timeout_seconds": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    try:
        prove(module)
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except OSError as exc:
        module.fail_json(msg=f"{module.params['api_key_file']} cannot be read ({exc.strerror}): run as root.")
    connect = access_key.connect(module.params["url"], module.params["api_key_file"])
    module.exit_json(changed=False, connect=connect)


if __name__ == "__main__":
    main()
