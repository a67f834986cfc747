#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: revalidation_info
short_description: Gather what a revalidation compares
version_added: 0.1.0
description:
  - Gathers in one call the recorded split, its baseline, and everything on the host that can change its speed and is
    read without touching a device. It is the first step of M(homelab.mixed_gpu.campaign) with the planner
    C(revalidation).
  - A model file that is not the one of its manifest is hashed, which takes half a minute for 40 GB on an NVMe disk.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._host_python.nvml
options:
  deployment:
    description: Deployment to revalidate. Empty means the one that is served.
    type: str
    default: ""
  served_only:
    description: Whether another deployment than the one that is served is refused.
    type: bool
    default: true
  llama_cpp:
    description: Directory of the llama.cpp build.
    type: path
    default: /opt/llama.cpp/current
  exllama_root:
    description: Directory that ExLlama is installed in, for a deployment of it.
    type: path
    default: /opt/exllama
  fact_file:
    description: The host's recorded splits.
    type: path
    default: /etc/ansible/facts.d/mixed_gpu.fact
  state_dir:
    description: Directory of this collection's state.
    type: path
    default: /var/lib/mixed_gpu
"""

EXAMPLES = r"""
- name: Gather what a revalidation compares
  homelab.mixed_gpu.revalidation_info:
  register: example_host
"""

RETURN = r"""
why:
  description: Why there is nothing to revalidate, with the cure; V(none) where there is. Then the rest is returned.
  returned: success
  type: str
deployment:
  description: Id of the deployment.
  returned: RV(why) is none
  type: str
entry:
  description: Its entry in the host's facts.
  returned: RV(why) is none
  type: dict
baseline:
  description: Its baseline, V(none) where there is none.
  returned: RV(why) is none
  type: dict
answers:
  description: The newest check of its answers (M(homelab.mixed_gpu.answer_check)), V(none) where there is none.
  returned: RV(why) is none
  type: dict
wrong_answers:
  description: Whether the last check found wrong answers, so that the server does not start.
  returned: RV(why) is none
  type: bool
build:
  description: The key of the engine's build in use, V(none) without one.
  returned: RV(why) is none
  type: str
rpc_protocol:
  description: The version of the RPC protocol that this build speaks, as C(major.minor); empty where it does not say.
  returned: a deployment is found
  type: str
versions:
  description: Of an ExLlama, the versions of engine, C(pytorch) and C(tabbyapi) in that build; empty for llama.cpp.
  returned: RV(why) is none
  type: dict
gpus:
  description: The NVIDIA cards, as C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts).
  returned: RV(why) is none
  type: dict
host:
  description: C(kernel) and C(firmware), as M(homelab.mixed_gpu.host_info) returns them.
  returned: RV(why) is none
  type: dict
model:
  description:
    - C(path) of the model, whether it C(exists), its C(sha256), and of a folder C(headers_sha256).
    - The SHA-256 of a folder is that of its files with a manifest, V(none) without any.
  returned: RV(why) is none
  type: dict
"""

import glob
import importlib
import os
import platform

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import (
    host_python,
    job,
    json_state,
    unit_end,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.types import Json
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._exllama import release_plan
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware, nvml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import entries, exl_folder, manifest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import answers, baselines
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import engines, fact_record, host_record


def cards(reason: str | None) -> Json:
    """Return the cards, or why they cannot be read."""
    loaded = host_hardware.read("/sys/module/nvidia/version")
    return nvml.unavailable(reason) if reason is not None else nvml.probe(importlib.import_module("pynvml"), loaded)


def folder(module: AnsibleModule, path: str) -> Json:
    """Return whether a model in a folder is there, with the hashes of its headers and of the files with a manifest."""
    try:
        headers = exl_folder.read(path)[1]
    except UserError as exc:
        module.warn(str(exc))
        return {"path": path, "exists": False, "sha256": None, "headers_sha256": None}
    directory = os.path.join(module.params["state_dir"], "models")
    recorded = [manifest.read_manifest(file, module.warn) for file in sorted(glob.glob(f"{directory}/*.json"))]
    files = {one["path"]: one for one in recorded if one and str(one.get("path", "")).startswith(f"{path}/")}
    if not all(os.path.isfile(file) for file in files):
        return {"path": path, "exists": False, "sha256": None, "headers_sha256": headers}
    hashed = []
    for file in sorted(files):
        digest = manifest.believed(files[file], file) or manifest.digest(file)
        item = {"id": "tuned", "model_path": path}
        hashed.append({"item": item, "sha256": digest.sha256, "size_bytes": None})
    whole = entries.installed_models(hashed)["tuned"]["sha256"] if hashed else None
    return {"path": path, "exists": True, "sha256": whole, "headers_sha256": headers}


def model(module: AnsibleModule, path: str) -> Json:
    """Return whether the model is there, and its hash as the role llm_models counts that of several files."""
    directory = os.path.join(module.params["state_dir"], "models")
    files = entries.model_files([{"id": "tuned", "path": path}], "/")
    if not all(os.path.isfile(file["path"]) for file in files):
        return {"path": path, "exists": False, "sha256": None, "headers_sha256": None}
    hashed = []
    for file in files:
        recorded = manifest.read_manifest(manifest.manifest_path(directory, file["path"]), module.warn)
        digest = manifest.believed(recorded, file["path"]) or manifest.digest(file["path"])
        hashed.append({"item": file, "sha256": digest.sha256, "size_bytes": None})
    whole = entries.installed_models(hashed)["tuned"]["sha256"]
    return {"path": path, "exists": True, "sha256": whole, "headers_sha256": None}


def gather(module: AnsibleModule, gpus: Json) -> Json:
    """Return everything that is compared. Raises UserError for a file that cannot be used."""
    params = module.params
    found = fact_record.find(host_record.read(params["fact_file"]), params["fact_file"], params["deployment"])
    deployment, entry = found["deployment"], found["entry"]
    if deployment is None or entry is None:
        return {"why": found["why"]}
    if deployment != found["active"] and params["served_only"]:
        return {
            "why": f"{deployment} is not what is served ({found['active']} is), and only a served model can be"
            " revalidated: serve it first (split_tuning_model_id, then site)"
        }
    engine = engines.of(entry["serving"])
    root = params["llama_cpp"] if engine.family == "llama_cpp" else params["exllama_root"]
    build_file, path = os.path.join(root, engine.build_file), entry["model"]["path"]
    return {
        "why": None,
        "deployment": deployment,
        "entry": entry,
        "baseline": baselines.FORM.read(baselines.path(params["state_dir"], deployment)),
        "answers": answers.FORM.read(answers.path(params["state_dir"], deployment)),
        "wrong_answers": os.path.exists(unit_end.WRONG_ANSWERS),
        "build": job.build_key(build_file),
        "rpc_protocol": job.build_record(build_file).get("rpc_protocol", ""),
        "versions": release_plan.versions(job.build_record(build_file)),
        "gpus": gpus,
        "host": {"kernel": platform.release(), "firmware": host_hardware.firmware()},
        "model": folder(module, path) if engine.model_file else model(module, path),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "deployment": {"type": "str", "default": ""},
            "llama_cpp": {"type": "path", "default": "/opt/llama.cpp/current"},
            "exllama_root": {"type": "path", "default": "/opt/exllama"},
            "fact_file": {"type": "path", "default": "/etc/ansible/facts.d/mixed_gpu.fact"},
            "state_dir": {"type": "path", "default": "/var/lib/mixed_gpu"},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "served_only": {"type": "bool", "default": True},
        },
        supports_check_mode=True,
    )
    # before anything else: it may move this module into the other interpreter
    gpus = cards(host_python.enter(["pynvml"], module.params["host_python"]))
    with json_state.failures_told(module, module.params["state_dir"]):
        module.exit_json(changed=False, **gather(module, gpus))


if __name__ == "__main__":
    main()
