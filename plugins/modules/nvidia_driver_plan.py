#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_plan
short_description: Look at the NVIDIA driver of a host, and decide what to do about it
version_added: 0.1.0
description:
  - Reads packages with their holds, the kernels in C(/boot), which of them boots next, and the kernel module of each.
    Reads DKMS, Secure Boot, the unit of the persistence daemon, and the record of
    M(homelab.mixed_gpu.nvidia_driver_record). Then it decides about O(goal).
  - What cannot be had or cannot work fails with one message that names the cure.
  - Changes nothing. With O(fetch_lists) it fetches apt's package lists.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
attributes:
  check_mode:
    details: Package lists are not fetched in check mode.
options:
  goal:
    description:
      - V(packages) decides which packages the host is to have, and with O(fetch_lists) in which versions.
      - V(settings) decides what keeps the installed driver as it is, RV(settings).
      - V(rollback) decides how to go back to a recorded driver.
      - V(loaded) says whether a reboot is due, RV(reboot_due).
      - V(proof) fails where module, library, cards and CUDA do not agree.
    type: str
    choices: [packages, settings, rollback, loaded, proof]
    required: true
  system:
    description: Name and release of the system whose packages are taken, such as V(Ubuntu 24.04). Empty means the
      host's own.
    type: str
    default: ""
  source:
    description: Source of the packages, for V(packages).
    type: str
    choices: [distribution, nvidia]
    default: distribution
  branch:
    description: Branch of the driver, for V(packages). Empty means what the cards need, by their PCI device ids.
    type: str
    default: ""
  version:
    description: Exact version of the driver, for V(packages). Empty means any version of the branch.
    type: str
    default: ""
  requested:
    description:
      - A version, or a branch whose newest version is wanted, that counts instead of O(branch) and O(version), for
        V(packages). Empty means those two.
    type: str
    default: ""
  open_modules:
    description: Whether the open kernel modules are wanted, for V(packages). V(auto) means what the cards need.
    type: str
    choices: [auto, "true", "false"]
    default: auto
  slots_left_out:
    description: PCI addresses of cards that may stay without this driver, for V(packages) and V(proof).
    type: list
    elements: str
    default: []
  signed_modules:
    description: Whether modules that the distribution signed are wanted, for V(packages).
    type: bool
    default: false
  fetch_lists:
    description: Whether to fetch the package lists and decide about versions, for V(packages).
    type: bool
    default: false
  main:
    description: Package that states the driver's version, for V(settings). Empty means somebody else's driver, whose
      recorded holds are given back.
    type: str
    default: ""
  hold:
    description: Whether the driver is held and pinned, for V(settings).
    type: bool
    default: true
  hold_kernel:
    description: Whether kernel metapackages are held as well, for V(settings).
    type: bool
    default: true
  uvm_disable_hmm:
    description: Whether heterogeneous memory management is switched off, for V(settings).
    type: bool
    default: false
  to:
    description: Version to go back to, for V(rollback). Empty means the newest recorded state before the present one.
    type: str
    default: ""
  rebooted:
    description: Whether the host has just been rebooted, for V(loaded). A host without the module fails then.
    type: bool
    default: false
  local:
    description: Whether the play runs on the host itself, for V(loaded), so that Ansible may not reboot the host.
    type: bool
    default: false
  gpus:
    description: The fact C(mixed_gpu_gpus) of M(homelab.mixed_gpu.gpu_facts), for V(proof).
    type: dict
  gpus_expected:
    description: UUIDs or parts of names of the cards, one per card, for V(proof). Empty means any cards.
    type: list
    elements: str
    default: []
  directory:
    description: Where the record and the kept package files are.
    type: path
    default: /var/lib/mixed_gpu/driver
"""

EXAMPLES = r"""
- name: Plan the packages of the driver
  homelab.mixed_gpu.nvidia_driver_plan:
    goal: packages
    branch: "580"
    fetch_lists: true
  register: planned

- name: Show the kernel that boots next
  ansible.builtin.debug:
    msg: "{{ planned.driver.kernel_next }}: {{ planned.driver.modules[planned.driver.kernel_next] }}"
"""

RETURN = r"""
driver:
  description:
    - What was found, with C(packages) (by name, each with C(version), C(source), C(arch), C(held), C(whole)),
      C(kernel_running), C(kernel_next), C(kernels_next) (that one, or all installed ones where it is not known which
      boots next), C(kernel_next_why), C(headers) and C(images) (packages by kernel), C(modules) (by kernel, each with
      C(version) and C(signer), or none), C(dkms), C(loaded_version), C(nouveau_loaded), C(secure_boot), C(mok),
      C(persistence) and C(kept).
  returned: O(goal) is not V(proof)
  type: dict
plan:
  description: The C(packages), with C(main), C(installed) (its version), C(missing), C(foreign) and C(headers).
  returned: O(goal=packages)
  type: dict
step:
  description:
    - What M(homelab.mixed_gpu.apt_transaction) has to do, with C(main), C(version), C(install), C(files), C(remove),
      C(removable), C(pin_path) and C(pin).
    - None where nothing is to be done, or nothing is known yet.
  returned: O(goal) is V(packages) or V(rollback)
  type: dict
error:
  description: Why the archive cannot give what is wanted, or an empty text.
  returned: O(goal=packages)
  type: str
planned:
  description: The versions C(present) and C(wanted), and C(foreign), whose driver is left alone, each empty for none.
  returned: O(goal=packages)
  type: dict
message:
  description: What a user should know, or an empty text.
  returned: O(goal) is not V(proof)
  type: str
settings:
  description:
    - C(ours) (whether the driver is this collection's), C(build_for) (kernels that lack its module),
      C(hold) and C(unhold) (packages), C(directories), C(files) (each with C(path) and
      C(content)), C(absent) (paths), C(initramfs) (a kernel, C(all), or empty),
      C(link_persistence), C(enable_persistence), C(reload_systemd), C(restart_persistence), C(load_module), and
      C(problem), which is empty or says why the driver will not work after the next boot.
  returned: O(goal=settings)
  type: dict
main:
  description: Package that states the version of the driver to go back to, empty for somebody else's.
  returned: O(goal=rollback)
  type: str
reboot_due:
  description: Whether the installed module is another than the loaded one; RV(message) says what to do.
  returned: O(goal=loaded)
  type: bool
"""

import os
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import (
    apt,
    card_needs,
    driver_host,
    driver_plan,
    driver_proof,
    driver_record,
    driver_settings,
    driver_versions,
)
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver.driver_packages import branch_of, own_versions
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver.driver_types import HostDriver, Request, Step
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages, host_hardware
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import make_device_nodes

Result = dict[str, t.Any]


def step_of(step: Step, main: str) -> Result:
    """Return what apt_transaction needs; with the pin, apt takes dependencies in the pin's version, and goes back."""
    return {
        **step,
        "main": main,
        "removable": driver_settings.REMOVABLE,
        "pin_path": driver_settings.PIN_PATH,
        "pin": driver_settings.pin(step["version"]),
    }


class Planner:
    """Looks at the host and decides about one goal."""

    def __init__(self, module: AnsibleModule) -> None:
        self.params = module.params
        self.check_mode = module.check_mode
        self.host = driver_host.Host(module, os.path.join(self.params["directory"], "packages"))

    def _look(self) -> tuple[HostDriver, driver_record.Record]:
        path = os.path.join(self.params["directory"], "record.json")
        return self.host.look(), driver_record.parse(json_file.read_text(path), path)

    def _wishes(self) -> driver_settings.Wishes:
        keys = driver_settings.Wishes.__annotations__
        return t.cast(driver_settings.Wishes, {key: self.params[key] for key in keys})

    def _cards(self) -> list[card_ages.Card]:
        """Return the cards that the driver has to serve."""
        return card_ages.cards(host_hardware.nvidia_devices(), self.params["slots_left_out"])

    def _request(self, system: str) -> tuple[Request, str]:
        """Return the driver that is asked for, with what the cards need where nothing is said, and a note."""
        asked = self.params["requested"]
        branch, version = self.params["branch"], self.params["version"]
        if asked:
            branch = branch_of(asked) or asked
            version = "" if branch == asked else asked
        modules = {"true": True, "false": False}.get(self.params["open_modules"])
        source = self.params["source"]
        choice = card_needs.choose(branch or branch_of(version), modules, system, source, self._cards())
        request: Request = {
            "source": source, "branch": choice.branch, "version": version, "open_modules": choice.open_modules,
            "signed_modules": self.params["signed_modules"],
        }  # fmt: skip
        return request, choice.note

    def _fetch_lists(self) -> str:
        """Fetch the package lists; return words about those that could not be fetched."""
        if self.check_mode:
            return ""
        why = apt.update_lists(self.host.run)
        return f" (package lists could not all be fetched: {why})" if why else ""

    def packages(self) -> Result:
        """Decide which packages the host is to have, in which versions."""
        host, record = self._look()
        host["system"] = self.params["system"] or host["system"]
        request, note = self._request(host["system"])
        plan = driver_plan.plan(host, request, driver_record.ours(record))
        step, error, message = None, "", " ".join(filter(None, [plan["foreign"] or plan["note"], note]))
        if plan["missing"] and self.params["fetch_lists"]:
            unfetched = self._fetch_lists()
            host["policies"] = self.host.policies([*plan["missing"], plan["main"], *host["packages"]])
            try:
                step = step_of(driver_plan.choose(plan, host, request), plan["main"])
            except UserError as exc:
                error = f"{exc}{unfetched}"
                # in check mode the lists may be old, or lack a repository that would be added
                message = f"Would install {', '.join(plan['missing'])}; with the package lists of now: {error}"
        state = driver_record.state_of(self._with_present(host, record), own_versions(host["packages"]))
        wanted = step["version"] if step else "" if plan["missing"] else plan["installed"]
        planned = {"present": state["version"] if state else "", "wanted": wanted, "foreign": plan["foreign"]}
        return {"driver": host, "plan": plan, "step": step, "error": error, "planned": planned, "message": message}

    def settings(self) -> Result:
        """Decide what to change around the installed driver."""
        host, record = self._look()
        main, present = self.params["main"], own_versions(host["packages"])
        state = driver_record.state_of(record, present)
        if main in host["packages"]:
            settings = driver_settings.settings(host, main, self._wishes())
        elif not main and state is not None:
            settings = driver_settings.restored(host["packages"], state["holds"])
        else:
            settings = driver_settings.unchanged()
        return {"driver": host, "settings": settings, "message": settings["note"]}

    def rollback(self) -> Result:
        """Decide how to go back."""
        host, record = self._look()
        record = self._with_present(host, record)
        present = own_versions(host["packages"])
        target = driver_record.target(record, present, self.params["to"])
        if target is None:
            state = driver_record.state_of(record, present)
            versions = ", ".join(dict.fromkeys(state["version"] for state in record["states"]))
            message = (
                "The driver has been brought back already; to go on, name another of the recorded versions in "
                f"nvidia_driver_rollback_to: {versions}"
            )
            return {"driver": host, "step": None, "main": state["main"] if state else "", "message": message}
        self._fetch_lists()
        host["policies"] = self.host.policies(target["packages"])
        step = driver_record.way_back(target, present, host["policies"], host["kept"])
        verb = "would come back" if self.check_mode else "is back"
        message = (
            f"The driver {target['version']} {verb}. So that site keeps it, write into the inventory "
            f'nvidia_driver_version: "{target["version"]}", and nvidia_driver_branch to match.'
        )
        return {"driver": host, "step": step_of(step, target["main"]), "main": target["main"], "message": message}

    def loaded(self) -> Result:
        """Say whether a reboot is due."""
        host, _record = self._look()
        message = driver_proof.reboot_due(host, self.params["rebooted"], self.params["local"])
        return {"driver": host, "reboot_due": bool(message), "message": message}

    def proof(self) -> Result:
        """Fail where something keeps the cards from being used."""
        # the nodes first: whatever calls CUDA as root makes them
        missing = make_device_nodes.missing(make_device_nodes.Host(left_out=tuple(self.params["slots_left_out"])))
        loaded = driver_proof.Loaded(
            driver_versions.loaded(), missing, self.host.nodes_unit(), self.host.cuinit()
        )  # fmt: skip
        problems = driver_proof.problems(loaded, self.params["gpus"], self.params["gpus_expected"], self._cards())
        if problems:
            raise UserError(" ".join(problems))
        return {}

    def _with_present(self, host: HostDriver, record: driver_record.Record) -> driver_record.Record:
        present = driver_record.Present(host["packages"], "", host["kernel_next"])
        return driver_record.with_state(record, driver_record.snapshot(present, "", "found", ""))


def main() -> None:
    goals = ["packages", "settings", "rollback", "loaded", "proof"]
    module = AnsibleModule(
        argument_spec={
            "goal": {"type": "str", "choices": goals, "required": True},
            "system": {"type": "str", "default": ""},
            "source": {"type": "str", "choices": ["distribution", "nvidia"], "default": "distribution"},
            "branch": {"type": "str", "default": ""},
            "version": {"type": "str", "default": ""},
            "requested": {"type": "str", "default": ""},
            "open_modules": {"type": "str", "choices": ["auto", "true", "false"], "default": "auto"},
            "slots_left_out": {"type": "list", "elements": "str", "default": []},
            "signed_modules": {"type": "bool", "default": False},
            "fetch_lists": {"type": "bool", "default": False},
            "main": {"type": "str", "default": ""},
            "hold": {"type": "bool", "default": True},
            "hold_kernel": {"type": "bool", "default": True},
            "uvm_disable_hmm": {"type": "bool", "default": False},
            "to": {"type": "str", "default": ""},
            "rebooted": {"type": "bool", "default": False},
            "local": {"type": "bool", "default": False},
            "gpus": {"type": "dict"},
            "gpus_expected": {"type": "list", "elements": "str", "default": []},
            "directory": {"type": "path", "default": "/var/lib/mixed_gpu/driver"},
        },
        required_if=[("goal", "proof", ("gpus",))],
        supports_check_mode=True,
    )
    try:
        result = getattr(Planner(module), module.params["goal"])()
    except UserError as exc:
        module.fail_json(msg=str(exc))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()
