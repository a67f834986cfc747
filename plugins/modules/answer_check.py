#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: answer_check
short_description: Check that a placement computes what one device alone computes
version_added: 0.1.0
description:
  - Devices that exchange data wrongly (peer access, IOMMU, a driver) answer with garbage at full speed. This module
    compares the placement that is to be served with each of its devices alone.
  - A private C(llama-server) on loopback loads the model in the placement. It names the likeliest next tokens at places
    of a fixed text, and generates O(generated_tokens) tokens after it. Each device alone, with what does not fit into
    its memory in the host's, names the likeliest tokens at the same places.
  - The log-probabilities may differ by O(tolerance_percent), and each token of the placement must be the device's first
    choice, or at least a quarter as likely as that.
  - Where they disagree, the CPU computes the same, and decides which device is wrong. Where no device can be asked
    alone, the placement is compared with the CPU.
  - The module fails where the placement itself cannot be asked.
  - The result is a file in O(answers_dir). While the answers are wrong, there is O(wrong_file), and the unit of the
    role P(homelab.mixed_gpu.llama_server#role) does not start.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._measuring
attributes:
  check_mode:
    details: Checks nothing in check mode. RV(answers) is V(none) and RV(ignore:changed) is V(true).
options:
  llama_server:
    description: Path to the C(llama-server) program.
    type: path
    default: /opt/llama.cpp/current/bin/llama-server
  deployment:
    description: Id of the deployment.
    type: str
    required: true
  entry:
    description: Its entry in the host's facts.
    type: dict
    required: true
  load:
    description: Name of the check in messages (C(label)), with C(split_mode), C(layers) and C(load).
    type: dict
    required: true
  configuration:
    description: Everything that can change the result, in clear; the result is of this configuration.
    type: dict
    required: true
  text_tokens:
    description: How many tokens of the text are read.
    type: int
    default: 256
  generated_tokens:
    description: How many tokens the placement generates.
    type: int
    default: 64
  tolerance_percent:
    description: How far the log-probabilities may be apart, in percent of what the candidates of a token differ by.
    type: float
    default: 15.0
  reserve_mib:
    description: Memory that a device alone leaves free.
    type: int
    default: 1024
  answers_dir:
    description: Where the results are.
    type: path
    default: /var/lib/mixed_gpu/answers
  wrong_file:
    description: File that is there while the answers are wrong.
    type: path
    default: /var/lib/mixed_gpu/wrong_answers
  load_timeout_seconds:
    description: Time after which loading the model counts as a hang.
    type: int
    default: 1200
  request_timeout_seconds:
    description: Time after which one answer counts as a hang.
    type: int
    default: 600
seealso:
  - module: homelab.mixed_gpu.split_mode_trial
  - module: homelab.mixed_gpu.measurement_lease
"""

EXAMPLES = r"""
- name: Check the answers of the recorded placement
  homelab.mixed_gpu.answer_check:
    deployment: example-c8192
    entry: "{{ example_recorded.entry }}"
    load: {label: answers, split_mode: layer, layers: [45, 36], load: 1}
    serving: "{{ example_recorded.entry.serving }}"
    configuration: {driver_version: 580.105.08}
    campaign: answers
    fingerprint: example
  register: example_answers
"""

RETURN = r"""
answers:
  description: The result as it is recorded, see C(docs/data_formats.md). V(none) in check mode.
  returned: success
  type: dict
path:
  description: File that holds it.
  returned: success
  type: str
"""

import contextlib
import os
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state, unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import answer_check, answer_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp.trial_server import Server, TrialError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import answers
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_room, fact_record, placement


class AnswerCheck(run.StoredLoad):
    """One check. What the store offers is not used: the newest result of a deployment is what counts."""

    def __init__(self, module: AnsibleModule) -> None:
        super().__init__(module, module.params["load"])
        for name in ("text_tokens", "generated_tokens", "load_timeout_seconds", "request_timeout_seconds"):
            if self.params[name] < 1:
                self.fail(f"{name} is {self.params[name]}: give at least 1.")
        try:
            name = fact_record.check_deployment(self.params["deployment"])
        except UserError as exc:
            self.fail(f"{exc}.")
        self.path = os.path.join(self.params["answers_dir"], f"{name}.json")
        # drafts only guess: what is served is what the model itself finds likeliest
        self.entry: Json = {**self.params["entry"], "speculation": None}
        self.threads = max(1, (os.cpu_count() or 1) // 2)
        self.failures: dict[str, TrialError] = {}
        self.nonsense: list[str] = []

    def look_up(self) -> None:
        """Return nothing: whether a check is due was decided before."""

    def answers(self, stored: t.Any) -> bool:  # noqa: ARG002
        return False

    def check_programs(self) -> None:
        remedy = "install llama.cpp with this target (role llama_cpp, llama_cpp_targets)"
        self.need(self.params["llama_server"], "program", remedy, os.X_OK)
        self.need(self.entry["model"]["path"], "readable model", "fetch it (role llm_models)")

    def result(self, changed: bool, load: Json | None) -> Json:
        result: Json = {"changed": changed, "answers": load, "path": self.path}
        if self.module._diff:
            after = load or {"status": "would be checked"}
            result["diff"] = {"before_header": self.path, "after_header": self.path, "before": {}, "after": after}
        return result

    def measure(self, lock: int) -> Json:
        started = time.monotonic()
        with self.leased():
            try:
                found = self.check(lock)
            except UserError as exc:
                self.fail(f"{self.load.get('label')} cannot be checked: {exc}.")
        params = self.params
        record = {
            "schema": answers.SCHEMA, "deployment": params["deployment"], "checked_at": json_file.utc_now(),
            "configuration": params["configuration"], "text_tokens": params["text_tokens"],
            "generated_tokens": params["generated_tokens"], "tolerance_percent": params["tolerance_percent"],
            "seconds": round(time.monotonic() - started), **found,
            "failures": {who: end.reason for who, end in self.failures.items()},
            "sentence": answer_check.sentence(self.entry, found, self.failures),
        }  # fmt: skip
        with json_state.failures_told(self.module, self.path):
            self.write(record)
        return record

    def write(self, record: Json) -> None:
        """Write the result, and what keeps the server from starting: first where the answers are wrong."""
        mark = self.params["wrong_file"]
        json_file.make_directory(self.params["answers_dir"])
        if record["status"] == "wrong":
            json_file.write_text(mark, f"{record['sentence']}\n", 0o644, self.module.atomic_move)
        json_file.write_text(self.path, json_file.to_text(record), 0o644, self.module.atomic_move)
        if record["status"] == "ok":
            with contextlib.suppress(FileNotFoundError):
                os.unlink(mark)

    def check(self, lock: int) -> Json:
        """Ask the placement, then each device, then the CPU where somebody disagrees; return what was found."""
        params = self.params
        tokens: list[int] = []
        placed = None
        try:
            with self.server(self.entry, (), lock) as server:
                asked = answer_run.questions(server, params["text_tokens"], params["generated_tokens"])
                try:
                    tokens, placed = answer_run.of_placement(server, asked)
                except answer_run.NoNumbersError:
                    self.nonsense.append(answer_check.PLACEMENT)
        except TrialError as end:
            raise UserError(
                f"the placement could not be asked ({end.reason}): what cannot be asked cannot be served; correct that,"
                " then run site"
            ) from end

        def ask(who: str, served: tuple[Json, list[str]], device_mib: int) -> dict[str, answer_check.Answers]:
            """Return what one device alone says, by its id; nothing, where it could not be asked or says no numbers."""
            try:
                missing = expert_room.missing_mib(self.entry["model"]["path"], device_mib)
                if missing:
                    raise TrialError("out_of_memory", f"{missing} MiB of RAM are missing")
                with self.server(*served, lock) as server:
                    return {who: answer_run.of_device(server, asked, tokens)}
            except TrialError as end:
                self.failures[who] = end
            except answer_run.NoNumbersError as error:
                self.nonsense.append(who)
                self.failures[who] = TrialError("no_numbers", str(error))
            return {}

        alone: dict[str, answer_check.Answers] = {}
        for device in self.others():
            served = answer_run.alone(self.entry, device, asked.context, params["reserve_mib"], self.threads)
            alone |= ask(device["id"], served, device["free_mib"] - params["reserve_mib"])
        if self.nonsense or placed is None:
            return answer_check.no_numbers(self.entry, self.nonsense, list(alone))
        tolerance = params["tolerance_percent"]
        seen = answer_check.Seen(tokens, placed, alone)
        if not alone or answer_check.suspicious(seen, tolerance):
            own = ask(answer_check.PROCESSOR, answer_run.processor(self.entry, asked.context, self.threads), 0)
            seen = answer_check.Seen(tokens, placed, alone or own, own.get(answer_check.PROCESSOR) if alone else None)
        return answer_check.judge(self.entry, seen, self.failures, tolerance)

    def others(self) -> list[t.Any]:
        """Return the devices to compare with: those of the placement, or the others where it is one device alone."""
        used = placement.used_devices(self.entry)
        return used if len(used) > 1 else [one for one in self.entry["devices"] if one["id"] != used[0]["id"]]

    def server(self, served: Json, words: t.Sequence[str], lock: int) -> Server:
        params = self.params
        names = [device["device"] for device in self.entry["devices"]]
        environment = {name: str(value) for name, value in params["environment"].items()}
        box = self.sandbox(names, served["split_mode"], [self.entry["model"]["path"]])
        return Server(
            params["llama_server"], served, box, environment, lock, params["load_timeout_seconds"],
            params["request_timeout_seconds"], words,
        )  # fmt: skip


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "llama_server": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-server"},
            "deployment": {"type": "str", "required": True},
            "entry": {"type": "dict", "required": True},
            "load": {"type": "dict", "required": True},
            "configuration": {"type": "dict", "required": True},
            "text_tokens": {"type": "int", "default": 256, "no_log": False},
            "generated_tokens": {"type": "int", "default": 64, "no_log": False},
            "tolerance_percent": {"type": "float", "default": answer_check.TOLERANCE_PERCENT},
            "reserve_mib": {"type": "int", "default": 1024},
            "answers_dir": {"type": "path", "default": "/var/lib/mixed_gpu/answers"},
            "wrong_file": {"type": "path", "default": unit_end.WRONG_ANSWERS},
            "load_timeout_seconds": {"type": "int", "default": 1200},
            "request_timeout_seconds": {"type": "int", "default": 600},
            **run.ARGUMENTS,
        },
        supports_check_mode=True,
    )
    module.exit_json(**AnswerCheck(module).run())


if __name__ == "__main__":
    main()
