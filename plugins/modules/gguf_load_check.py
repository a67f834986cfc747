#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gguf_load_check
short_description: Refuse GGUF models that llama.cpp cannot load, before they are downloaded
version_added: 0.1.0
description:
  - Reads the headers of GGUF models, some megabytes each, from the host or from their URLs, and asks the llama.cpp of
    the host whether it can load them. A model that it refuses ends the module with the reason.
  - llama.cpp is asked by C(llama-fit-params) about a file that has the header and a hole. No weights are read, no
    device is used.
  - Where no llama.cpp is installed, a model that is not there yet is refused if the pinned llama.cpp does not know its
    architecture or a type of its tensors.
  - Of a model that is not there yet and has less than 1 GiB to download nothing is asked.
  - A draft (C(draft_for) of a file) whose vocabulary is not that of its target ends the module too, while one of both
    is not there yet.
  - A header that cannot be had, for instance without network, is no failure but a model of RV(models) that is unknown.
    The download names the cause.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._host_python
attributes:
  check_mode:
    details: This action does not modify state. It asks servers and llama.cpp in check mode too.
options:
  files:
    description: RV(homelab.mixed_gpu.model_plan#module:files). Models in other formats are passed over.
    type: list
    elements: dict
    required: true
  missing_only:
    description: Whether to look only at models of which a file is still missing.
    type: bool
    default: false
  program:
    description: Path to C(llama-fit-params).
    type: path
    default: /opt/llama.cpp/current/bin/llama-fit-params
  work_dir:
    description: Directory for the files that llama.cpp is asked about. They are removed.
    type: path
    default: /var/lib/mixed_gpu/models
  token_file:
    description: File with an access token for files of the hub.
    type: path
  timeout_seconds:
    description: How long llama.cpp may take for one model.
    type: int
    default: 60
seealso:
  - module: homelab.mixed_gpu.gguf_info
  - module: homelab.mixed_gpu.model_plan
"""

EXAMPLES = r"""
- name: Plan the models of a host
  homelab.mixed_gpu.model_plan:
    models:
      - id: qwen2_5_coder_32b_instruct_q4_k_m
  register: example_plan

- name: Assert that llama.cpp can load the missing models
  homelab.mixed_gpu.gguf_load_check:
    files: "{{ example_plan.files }}"
    missing_only: true
"""

RETURN = r"""
models:
  description: The models that were looked at.
  returned: success
  type: list
  elements: dict
  contains:
    id:
      description: Id of the model.
      type: str
    loads:
      description: Whether llama.cpp loads it. V(none) where that is not known.
      type: bool
    reason:
      description: Why that is not known, in one sentence, or V(none).
      type: str
"""

import os
import shutil
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import load_check
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import hub_lookup, load_question
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models.remote_header import HeaderUnknownError


class Check:
    """The questions of one run of the module."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module, self.params = module, module.params
        program = self.params["program"]
        self.installed = os.path.isfile(program) and os.access(program, os.X_OK)

    def answer(self, files: t.Sequence[t.Mapping[str, t.Any]]) -> tuple[bool | None, str | None]:
        """Return whether llama.cpp loads a model, and why that is not known. Raises UserError where it does not."""
        if not all(file["present"] for file in files):
            reason = host_python.enter(["requests"], self.params["host_python"])
            if reason:
                return None, reason
        try:
            found = [load_question.find(file, self.token(file)) for file in files]
            model = load_question.describe(found, bool(files[0].get("draft_for")))
            if not self.installed:
                if not all(file["present"] for file in files):
                    load_question.check_pinned(found, model)
                return None, f"There is no {self.params['program']} to ask."
            if all(file["present"] for file in files):
                return self.ask([file["path"] for file in files], found[0].name)
            return self.ask_of_copies(found)
        except HeaderUnknownError as exc:
            return None, f"{exc}."
        except OSError as exc:
            return None, f"{exc.filename or self.params['work_dir']} cannot be used ({exc.strerror or exc})."

    def token(self, file: t.Mapping[str, t.Any]) -> str | None:
        """Return the access token for a file of the hub, or None."""
        if file["present"] or file["kind"] != "repo":
            return None
        return hub_lookup.read_token(self.params["token_file"], file["url"])

    def check_drafts(self, files: t.Sequence[t.Mapping[str, t.Any]]) -> None:
        """Compare the vocabularies of drafts and targets before one is fetched. Raises UserError."""
        pairs = load_question.drafts(files)
        if not pairs or host_python.enter(["requests"], self.params["host_python"]):
            return
        for draft, target in pairs:
            try:
                found = [(str(file["id"]), load_question.find(file, self.token(file))) for file in (draft, target)]
            except (HeaderUnknownError, OSError):
                continue  # a tuning says it
            load_question.check_draft(*found)

    def ask_of_copies(self, found: t.Sequence[load_question.Found]) -> tuple[bool | None, str | None]:
        """Ask llama.cpp about files that consist of the headers alone."""
        os.makedirs(self.params["work_dir"], mode=0o755, exist_ok=True)
        directory = tempfile.mkdtemp(prefix="load_check-", dir=self.params["work_dir"])
        try:
            os.chmod(directory, 0o755)                   # an unprivileged user reads them
            return self.ask(load_question.write(found, directory), found[0].name)
        finally:
            shutil.rmtree(directory, ignore_errors=True)

    def ask(self, paths: t.Sequence[str], name: str) -> tuple[bool | None, str | None]:
        """Ask llama.cpp about files on the host."""
        program = self.params["program"]
        try:
            ended = self.run(load_check.command(program, paths[0]), paths)
            output, attempts = ended.stderr, 1
            while load_check.refused(ended.stderr) and not load_check.reason(output) and attempts < load_check.ATTEMPTS:
                output, attempts = self.run(load_check.reason_command(program, paths[0]), paths).stderr, attempts + 1
        except UserError as exc:
            return None, f"llama.cpp cannot be asked about {name}: {exc}."
        if load_check.refused(ended.stderr):
            raise UserError(
                f"llama.cpp does not load {name} ({load_check.reason(output) or 'it names no reason'}): choose another "
                "file or quantisation of the model, or update llama.cpp."
            )
        if ended.rc == 0:
            return True, None
        how = "did not end in time" if ended.timed_out else f"ended with {ended.rc}"
        return None, f"llama.cpp, asked about {name}, {how} without a word about the model."

    def run(self, command: list[str], paths: t.Sequence[str]) -> sandboxed_run.Ended:
        """Run a program that reads files of anybody's, in the sandbox of the units that serve. Raises UserError."""
        sandbox = sandboxed_run.Sandbox(files=paths)
        return sandboxed_run.run(command, sandbox, load_check.ENVIRONMENT, self.params["timeout_seconds"])


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "files": {"type": "list", "elements": "dict", "required": True},
            "missing_only": {"type": "bool", "default": False},
            "program": {"type": "path", "default": "/opt/llama.cpp/current/bin/llama-fit-params"},
            "work_dir": {"type": "path", "default": "/var/lib/mixed_gpu/models"},
            "token_file": {"type": "path", "no_log": False},
            "timeout_seconds": {"type": "int", "default": 60},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    check, models = Check(module), []
    try:
        asked = load_question.questions(module.params["files"], module.params["missing_only"])
        check.check_drafts(module.params["files"])
        for name, files in asked.items():
            loads, reason = check.answer(files)
            models.append({"id": name, "loads": loads, "reason": reason})
    except UserError as exc:
        module.fail_json(msg=str(exc))
    except KeyError as exc:
        module.fail_json(msg=f"A file has no {exc}: give the files that model_plan returns.")
    module.exit_json(changed=False, models=models)


if __name__ == "__main__":
    main()
