#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: split_tuning_info
short_description: Gather what a recorded split depends on
version_added: 0.1.0
description:
  - Gathers in one call what decides whether a recorded split still holds, without touching a device. It is the first
    step of M(homelab.mixed_gpu.campaign) with the planner C(tuning).
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._host_python.nvml
options:
  needed:
    description: Files without which nothing can be measured.
    type: list
    elements: path
    default: []
  build_file:
    description: The C(build.json) of the engine.
    type: path
    required: true
  cuda_library:
    description: The CUDA backend of llama.cpp, asked for NCCL where it exists.
    type: path
    default: ""
  site_packages:
    description: The C(lib) directory of ExLlama's environment, searched for the package flash-attn.
    type: path
    default: ""
  fact_file:
    description: The host's recorded splits.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
"""

EXAMPLES = r"""
- name: Gather what the split depends on
  homelab.mixed_gpu.split_tuning_info:
    needed: [/srv/models/example.gguf]
    build_file: /opt/llama.cpp/current/build.json
"""

RETURN = r"""
missing:
  description: Which of O(needed) do not exist.
  returned: success
  type: list
  elements: str
build:
  description: The key of the engine's build, or V(none).
  returned: success
  type: str
versions:
  description: Of an ExLlama, the versions of engine, C(pytorch) and C(tabbyapi) in this build; empty for llama.cpp.
  returned: success
  type: dict
gpus:
  description: The NVIDIA cards, as C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
  returned: success
  type: dict
record:
  description: The recorded splits, see C(docs/data_formats.md); an empty record where there is no file.
  returned: success
  type: dict
record_problem:
  description: Why the recorded splits cannot be read, with the cure, or V(none).
  returned: success
  type: str
cpu:
  description: How many cores the CPU has, and how many threads they run.
  returned: success
  type: dict
  sample: {physical_cores: 8, threads: 16}
memory_total_mib:
  description: RAM of the host in MiB.
  returned: success
  type: int
nccl:
  description: Whether O(cuda_library) is linked with NCCL.
  returned: success
  type: bool
flash_attention:
  description: Whether O(site_packages) holds the package flash-attn.
  returned: success
  type: bool
"""

import glob
import importlib
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, job, json_file, sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import release_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host, nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import fact_record, host_record

_LDD_SECONDS = 30


def cards(reason: str | None) -> dict[str, t.Any]:
    """Return the cards, or why they cannot be read."""
    return nvml.unavailable(reason) if reason is not None else nvml.probe(importlib.import_module("pynvml"), None)


def recorded(path: str) -> tuple[fact_record.Record, str | None]:
    """Return the record, and why it cannot be read."""
    try:
        return host_record.read(path), None
    except UserError as exc:
        return fact_record.empty(), str(exc)
    except OSError as exc:
        return fact_record.empty(), f"{path} cannot be read ({exc.strerror}): run as root"


def linked_with_nccl(module: AnsibleModule, library: str) -> bool:
    """Return whether a library is there and linked with NCCL."""
    ldd = module.get_bin_path("ldd")
    if ldd is None or not os.path.exists(library):
        return False
    # it runs the loader that the library names
    return "libnccl" in sandboxed_run.run([ldd, library], sandboxed_run.Sandbox(), {}, _LDD_SECONDS).stdout


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "needed": {"type": "list", "elements": "path", "default": []},
            "build_file": {"type": "path", "required": True},
            "cuda_library": {"type": "path", "default": ""},
            "site_packages": {"type": "path", "default": ""},
            "fact_file": {"type": "path", "default": "/etc/ansible/facts.d/mixed_gpu.fact"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    params = module.params
    gpus = cards(host_python.enter(["pynvml"], params["host_python"]))
    record, problem = recorded(params["fact_file"])
    packages = params["site_packages"]
    module.exit_json(
        changed=False,
        cpu=host.processor(),
        memory_total_mib=host.memory(json_file.read_text("/proc/meminfo") or "")["memory_total_mib"],
        missing=[path for path in params["needed"] if not os.path.exists(path)],
        build=job.build_key(params["build_file"]),
        versions=release_plan.versions(job.build_record(params["build_file"])),
        gpus=gpus,
        record=record,
        record_problem=problem,
        nccl=linked_with_nccl(module, params["cuda_library"]),
        flash_attention=bool(packages and glob.glob(f"{packages}/python*/site-packages/flash_attn-*.dist-info")),
    )


if __name__ == "__main__":
    main()
