#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: draft_acceptance_info
short_description: Count how many drafted tokens of a running llama-server are right
version_added: 0.1.0
description:
  - Has a running llama-server answer texts, one after the other, at its own temperature and without its prompt cache.
    Counts its drafted tokens and those of them that were right.
  - Nothing is asked where the recorded entry drafts neither with a model nor with the model's own blocks. n-gram kinds
    draft from all text that a server has seen, so their acceptance cannot be compared.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._server
attributes:
  check_mode:
    details: Nothing is asked in check mode.
options:
  entry:
    description: The recorded entry that is served.
    type: dict
    required: true
  texts:
    description:
      - The texts, as O(homelab.mixed_gpu.split_tuning#role:main:split_tuning_texts). None means those of this
        collection.
    type: list
    elements: dict
    default: []
  generated_tokens:
    description: Length of each answer. V(0) asks nothing.
    type: int
    default: 192
  timeout_seconds:
    description: Time limit of one request.
    type: int
    default: 600
seealso:
  - module: homelab.mixed_gpu.speculation_benchmark
"""

EXAMPLES = r"""
- name: Read the active deployment
  homelab.mixed_gpu.split_record:
    state: query
  register: example_recorded

- name: Count how many drafted tokens are right
  homelab.mixed_gpu.draft_acceptance_info:
    entry: "{{ example_recorded.entry }}"
  register: example_drafted
"""

RETURN = r"""
acceptance:
  description: What was counted, V(none) where nothing was asked.
  returned: success
  type: dict
  contains:
    texts:
      description: Hash of the texts and of the length of their answers.
      type: str
    rows:
      description: A dict per kind of text with C(text), C(drafted), C(accepted) and C(drafts).
      type: list
      elements: dict
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import fingerprints
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import TrialError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import speculation_texts
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import acceptance


def count(module: AnsibleModule) -> dict[str, t.Any] | None:
    """Return what was counted, None where nothing is to be asked. Raises ServerError, TrialError and ValueError."""
    params = module.params
    tokens = params["generated_tokens"]
    texts, _weights = speculation_texts.read(params["texts"])
    if not tokens or module.check_mode or not acceptance.comparable(params["entry"]):
        return None
    client = Client.of_module(module, params["timeout_seconds"])
    rows = served_texts.answered(client, texts, tokens)
    return {
        "texts": fingerprints.fingerprint({"texts": texts, "tokens": tokens}),
        "rows": [{name: row[name] for name in ("text", "drafted", "accepted", "drafts")} for row in rows],
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "no_log": False},
            "entry": {"type": "dict", "required": True},
            "texts": {"type": "list", "elements": "dict", "default": []},
            "generated_tokens": {"type": "int", "default": 192, "no_log": False},
            "timeout_seconds": {"type": "int", "default": 600},
        },
        supports_check_mode=True,
    )
    tokens = module.params["generated_tokens"]
    if tokens < 0 or tokens == 1:
        module.fail_json(msg=f"generated_tokens is {tokens}: give 0, or 2 and more.")
    try:
        counted = count(module)
    except (ServerError, ValueError) as exc:
        module.fail_json(msg=f"{str(exc).rstrip('.?')}.")
    except TrialError as exc:
        module.fail_json(msg=f"The acceptance of drafts was not counted: {exc.reason}.")
    module.exit_json(changed=False, acceptance=counted)


if __name__ == "__main__":
    main()
