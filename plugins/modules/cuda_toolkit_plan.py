#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: cuda_toolkit_plan
short_description: Decide where a host's CUDA toolkit comes from, and verify the toolkit
version_added: 0.1.0
description:
  - Reads system, compiler, C library and the toolkit that is there, and decides where the toolkit comes from. A
    combination that cannot work fails with a message that names one that does.
  - With O(goal=proof), compiles a program with the toolkit, and runs it where there is a card.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
options:
  goal:
    description: V(choice) only decides. V(proof) also verifies the toolkit.
    type: str
    choices: [choice, proof]
    default: choice
  manage:
    description: Whether a toolkit is wanted. Without, a combination that cannot work is no failure.
    type: bool
    default: true
  system:
    description: Name and release of the system whose toolkits are taken, such as V(Ubuntu 24.04). Empty means the
      host's own.
    type: str
    default: ""
  source:
    description: Source of the toolkit.
    type: str
    choices: [auto, existing, distribution, nvidia, wheels]
    default: auto
  version:
    description: Release to install from NVIDIA's repository. Empty means one that fits the cards and the system.
    type: str
    default: ""
  root:
    description: Where an existing toolkit is; NVIDIA's packages keep a link there.
    type: path
    default: /usr/local/cuda
  wheels_dir:
    description: Where toolkits out of wheels are.
    type: path
    default: /opt/mixed_gpu/cuda
  requirements:
    description: Hashed requirements of the wheels. The directory of their toolkit is named after the text.
    type: str
    default: ""
  cublas:
    description: Whether the wheels have cuBLAS.
    type: bool
    default: true
  nccl:
    description: Whether the wheels have NCCL.
    type: bool
    default: false
  gpus:
    description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
    type: dict
    required: true
  slots_left_out:
    description: PCI addresses of cards that need no programs.
    type: list
    elements: str
    default: []
  program:
    description: Source of the program to compile. Needed for V(proof).
    type: str
    default: ""
"""

EXAMPLES = r"""
- name: Gather facts about the cards
  homelab.mixed_gpu.gpu_facts:

- name: Plan the CUDA toolkit
  homelab.mixed_gpu.cuda_toolkit_plan:
    gpus: "{{ ansible_facts['mixed_gpu_gpus'] }}"
  register: planned

- name: Show the root of the toolkit
  ansible.builtin.debug:
    msg: "{{ planned.toolkit.root }}"
"""

RETURN = r"""
toolkit:
  description: Where the toolkit is or will be, with C(present), C(root), C(nvcc), C(source), C(version), C(nccl_root).
  returned: success
  type: dict
packages:
  description: Packages that the source needs.
  returned: success
  type: list
  elements: str
cure_unknown:
  description: What to do where apt does not know a package, or an empty text.
  returned: success
  type: str
wheels_job:
  description: What the script cuda_wheels.py of the role P(homelab.mixed_gpu.cuda_toolkit#role) needs.
  returned: success
  type: dict
message:
  description: What was verified.
  returned: O(goal=proof)
  type: str
"""

import os
import re
import shutil
import tempfile
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import cuda_compat, cuda_toolkit, driver_host
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages, host_hardware


class Planner:
    """Looks at the host and decides."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.params = module.params
        self.gpus = module.params["gpus"]
        wishes = {key: self.params[key] for key in cuda_toolkit.Wishes.__annotations__}
        found = card_ages.cards(host_hardware.nvidia_devices(), self.params["slots_left_out"])
        self.targets = card_ages.capabilities(self.gpus, found)
        self.wishes = t.cast(cuda_toolkit.Wishes, wishes)

    def _ask(self, *command: str) -> str:
        """What a program prints, or "" where it is missing or fails."""
        program = self.module.get_bin_path(command[0])
        returncode, out, _err = self.module.run_command([program, *command[1:]]) if program else (127, "", "")
        return out.strip() if returncode == 0 else ""

    def _system(self) -> cuda_compat.System:
        gcc = self._ask("c++", "-dumpversion").partition(".")[0]
        return {
            "system": self.params["system"] or driver_host.system(),
            "gcc": int(gcc) if gcc.isdigit() else 0,
            "glibc": self._ask("getconf", "GNU_LIBC_VERSION").removeprefix("glibc "),
            "driver": self.gpus["driver_version"] if self.gpus["available"] else "",
            "targets": self.targets,
        }

    def choice(self) -> dict[str, t.Any]:
        """Decide where the toolkit comes from."""
        existing = cuda_compat.nvcc_release(self._ask(f"{self.params['root']}/bin/nvcc", "--version"))
        try:
            source, version = cuda_compat.choose(
                self.params["source"], self.params["version"], existing, self._system()
            )
            toolkit = cuda_toolkit.toolkit(source, version, self.wishes)
            present = os.path.exists(toolkit["nvcc"])
            if self.params["manage"] and not present:
                self._check_installation(source)
        except UserError:
            if self.params["manage"]:
                raise
            toolkit = cuda_toolkit.toolkit("none", "", self.wishes)
            present = os.path.exists(toolkit["nvcc"])
        return {
            "toolkit": {"present": present, **toolkit},
            "packages": cuda_toolkit.packages(toolkit["source"], toolkit["version"]),
            "cure_unknown": cuda_toolkit.CURES.get(toolkit["source"], ""),
            "wheels_job": cuda_toolkit.wheels_job(self.wishes),
        }

    def _check_installation(self, source: str) -> None:
        if os.geteuid() != 0 and not self.module.check_mode:
            raise UserError("The role cuda_toolkit installs packages, so it needs root; set become to true for it.")
        path = os.path.abspath(cuda_toolkit.disk_path(source, self.wishes))
        while not os.path.exists(path):
            path = os.path.dirname(path)
        cuda_toolkit.check_disk(source, path, shutil.disk_usage(path).free >> 20)

    def proof(self) -> dict[str, t.Any]:
        """Compile a program, and run it where there is a card. Raises UserError where that fails."""
        result = self.choice()
        toolkit = result["toolkit"]
        release = self._nvcc(toolkit, ["--version"], "run", "run the role cuda_toolkit, or correct cuda_toolkit_root")
        cards = self.gpus["gpus"] if self.gpus["available"] else []
        with tempfile.TemporaryDirectory(prefix="mixed_gpu_cuda.") as directory:
            self._compile_and_run(toolkit, directory, cards)
        named = re.search(r"release [^,]+", release)
        runs = "that runs on this host" if cards else "here; no card is there to run it on"
        message = f"CUDA {named[0] if named else 'toolkit'} at {toolkit['root']} compiles a program {runs}."
        return {**result, "message": message}

    def _compile_and_run(self, toolkit: cuda_toolkit.Toolkit, directory: str, cards: t.Sequence[t.Any]) -> None:
        source = os.path.join(directory, "check.cu")
        with open(source, "w", encoding="utf-8") as handle:
            handle.write(self.params["program"])
        flags = cuda_toolkit.compile_flags(toolkit, self.wishes, self.targets)
        cure = "its C++ compiler may be too new or missing; choose another cuda_toolkit_source"
        self._nvcc(toolkit, ["-o", f"{source}.out", source, *flags], "compile a small program", cure)
        returncode, _out, err = self.module.run_command([f"{source}.out"]) if cards else (0, "", "")
        if returncode:
            raise UserError(
                f"A program compiled by {toolkit['nvcc']} does not run on this host's cards ({err.strip()}): install a "
                "newer driver or an older toolkit."
            )

    def _nvcc(self, toolkit: cuda_toolkit.Toolkit, arguments: list[str], what: str, cure: str) -> str:
        try:
            returncode, out, err = self.module.run_command([toolkit["nvcc"], *arguments], handle_exceptions=False)
        except OSError as exc:
            raise UserError(f"{toolkit['nvcc']} does not {what} ({exc.strerror}): {cure}.") from None
        if returncode:
            lines = [line for line in (err + out).splitlines() if re.search("error|fatal|cannot|not found", line)]
            raise UserError(f"{toolkit['nvcc']} does not {what} ({(lines or ['no message'])[0]}): {cure}.")
        return out


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "goal": {"type": "str", "choices": ["choice", "proof"], "default": "choice"},
            "manage": {"type": "bool", "default": True},
            "system": {"type": "str", "default": ""},
            "source": {
                "type": "str",
                "choices": ["auto", "existing", "distribution", "nvidia", "wheels"],
                "default": "auto",
            },
            "version": {"type": "str", "default": ""},
            "root": {"type": "path", "default": "/usr/local/cuda"},
            "wheels_dir": {"type": "path", "default": "/opt/mixed_gpu/cuda"},
            "requirements": {"type": "str", "default": ""},
            "cublas": {"type": "bool", "default": True},
            "nccl": {"type": "bool", "default": False},
            "gpus": {"type": "dict", "required": True},
            "slots_left_out": {"type": "list", "elements": "str", "default": []},
            "program": {"type": "str", "default": ""},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **getattr(Planner(module), module.params["goal"])())
    except UserError as exc:
        module.fail_json(msg=str(exc))


if __name__ == "__main__":
    main()
