#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: lent_power
short_description: Measure what cards of a box and of its lenders draw
version_added: 0.1.0
description:
  - Run on the box, in four parts. V(planned) says whose cards are to be watched, V(loaded) has the running
    llama-server answer while M(homelab.mixed_gpu.gpu_facts) watches those cards on their hosts, until V(watched) says
    that they were. V(recorded) adds both to the stored results of M(homelab.mixed_gpu.llama_server_benchmark).
  - Nothing is planned where the power of a configuration is known, where nothing was measured of it, or where one of
    its devices is no NVIDIA card.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.no_diff
  - homelab.mixed_gpu._server
  - homelab.mixed_gpu._host_python.nvml
attributes:
  check_mode:
    details: Sends nothing and writes nothing.
options:
  state:
    description: Which part.
    type: str
    choices: [planned, loaded, watched, recorded]
    default: planned
  record:
    description: What M(homelab.mixed_gpu.split_record) has returned, of which C(deployment), C(entry), C(lenders).
    type: dict
    required: true
  load:
    description: For V(recorded), what V(loaded) has returned as RV(load).
    type: dict
    default: {}
  watches:
    description: For V(recorded), the results of the starts of M(homelab.mixed_gpu.gpu_facts).
    type: list
    elements: dict
    default: []
  looks:
    description: For V(recorded), what became of those starts.
    type: list
    elements: dict
    default: []
  state_dir:
    description: Directory of the stored results.
    type: path
    default: /var/lib/mixed_gpu/served
seealso:
  - module: homelab.mixed_gpu.llama_server_benchmark
"""

EXAMPLES = r"""
- name: Plan the measurement of lent cards
  homelab.mixed_gpu.lent_power:
    record: "{{ example_recorded }}"
  register: example_plan
"""

RETURN = r"""
watch:
  description: Names of the lenders whose cards are to be watched.
  returned: state is planned
  type: list
  elements: str
watch_seconds:
  description: For how long.
  returned: state is planned
  type: float
load:
  description: What the box's own cards drew (C(cards)), C(tokens_per_second), or a C(reason) why that is not known.
  returned: state is loaded
  type: dict
power:
  description: As M(homelab.mixed_gpu.llama_server_benchmark) returns it, with C(host) at each lent card.
  returned: state is recorded
  type: dict
"""

import importlib
import os
import secrets
import statistics
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_store, server_timings
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.llama_client import (
    Client,
    ServerError,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import lent_devices
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._watch import power, watched_devices

#: A server that takes longer for one answer hangs.
ANSWER_SECONDS: t.Final = 600
PROMPT_TOKENS: t.Final = 16
#: An answer is no longer than that, so that the load ends soon after it was told.
ANSWER_TOKENS: t.Final = 64
INTERVAL_MS: t.Final = 100


class Group:
    """A box and its lenders, and where the results of the box are."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.params = module, module.params
        record = self.params["record"]
        self.entry, self.lenders = record["entry"], record["lenders"]
        self.devices = self.entry["devices"]
        self.path = os.path.join(self.params["state_dir"], f"{record['deployment']}.json")
        #: Is there once all cards were watched.
        self.end = f"{self.path}.watched"

    def stored(self) -> Json | None:
        """Return the stored results of this configuration. Raises ValueError for a damaged file."""
        text = json_file.read_text(self.path)
        return None if text is None else served_store.read(text, self.entry)

    def planned(self) -> Json:
        """Say whose cards are to be watched."""
        stored = self.stored()
        due = stored is not None and bool((stored.get("power") or {}).get("reason")) and bool(stored["power_tokens"])
        watch = power.lending(self.devices, self.lenders) if due else []
        self._forget_end()
        return {"changed": False, "watch": watch, "watch_seconds": power.WATCH_SECONDS}

    def loaded(self) -> Json:
        """Have the server answer, and watch the cards of this host meanwhile. Raises ServerError."""
        if self.module.check_mode:
            return {"changed": False, "load": {"reason": "not measured in check mode"}}
        missing = host_python.enter(["pynvml"], self.params["host_python"])
        tools = watched_devices.Tools(self.module, missing or importlib.import_module("pynvml"))
        own = power.own(self.devices)
        watched = watched_devices.WatchedDevices(own, tools, INTERVAL_MS)
        if own and not watched.gpus["available"]:
            return {"changed": False, "load": {"reason": watched.gpus["reason"]}}
        with watched:
            rate = self._answers()
        if not os.path.exists(self.end):
            return {"changed": False, "load": {"reason": power.TOO_LATE}}
        drawn = power.drawn(own, watched.readings, rate)
        if drawn is None:
            return {"changed": False, "load": {"reason": "the cards do not say what they draw"}}
        return {"changed": False, "load": {"reason": None, "cards": drawn["cards"], "tokens_per_second": rate}}

    def _answers(self) -> float:
        """Return the tokens per second of answers that follow one another until all cards were watched."""
        client = Client.of_module(self.module, ANSWER_SECONDS)
        length = min(ANSWER_TOKENS, client.context_per_slot() - PROMPT_TOKENS)
        rates: list[float] = []
        vocabulary, until = client.vocabulary_size(), time.monotonic() + power.LOAD_SECONDS
        while not rates or (time.monotonic() < until and not os.path.exists(self.end)):
            prompt = server_timings.prompt_tokens(PROMPT_TOKENS, vocabulary, secrets.token_hex(8))
            sample = server_timings.sample(client.generate(prompt, length), PROMPT_TOKENS)
            rates.append(sample["decode_tokens_per_second"])
        return statistics.median(rates)

    def watched(self) -> Json:
        """Say that all cards were watched, which ends the load."""
        if not self.module.check_mode:
            json_file.write_text(self.end, "", 0o644, self.module.atomic_move)
        return {"changed": False}

    def _forget_end(self) -> None:
        if os.path.exists(self.end) and not self.module.check_mode:
            os.remove(self.end)

    def recorded(self) -> Json:
        """Add what all cards drew to the stored results."""
        stored = self.stored()
        if stored is None:
            self.module.fail_json(msg=f"{self.path} has no results of this configuration: run llama_server_benchmark.")
        started = [one for one in self.params["watches"] if "ansible_job_id" not in one]
        looks = lent_devices.looks([*started, *self.params["looks"]])
        found = power.of_group(self.devices, self.lenders, self.params["load"], looks)
        self._forget_end()
        if not self.module.check_mode:
            text = json_file.to_text({**stored, "power": found})
            json_file.write_text(self.path, text, 0o644, self.module.atomic_move)
        return {"changed": stored["power"] != found, "power": found}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["planned", "loaded", "watched", "recorded"], "default": "planned"},
            "url": {"type": "str", "default": "http://127.0.0.1:8080"},
            "api_key_file": {"type": "path", "no_log": False},
            "record": {"type": "dict", "required": True},
            "load": {"type": "dict", "default": {}},
            "watches": {"type": "list", "elements": "dict", "default": []},
            "looks": {"type": "list", "elements": "dict", "default": []},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu/served"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    group = Group(module)
    try:
        result = getattr(group, module.params["state"])()
    except ServerError as exc:
        result = {"changed": False, "load": {"reason": str(exc).rstrip(".")}}
    except (KeyError, ValueError) as exc:
        module.fail_json(msg=f"{group.path} is damaged ({exc}): remove it, then it is measured again.")
    except OSError as exc:
        module.fail_json(msg=f"{group.path} cannot be written ({exc.strerror}): make room.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()
