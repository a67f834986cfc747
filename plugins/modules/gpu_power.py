#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_power
short_description: Set power limits and locked clocks of NVIDIA cards through NVML
version_added: 0.1.0
description:
  - Puts power limits, locked clocks and persistence mode into force, each card by its UUID.
  - Everything is checked against the cards' own constraints before anything is changed. When a card refuses in spite
    of that, what was changed before is set back.
  - The driver forgets all of it when it is reloaded and, without persistence mode, as soon as nothing uses the
    card. Role P(homelab.mixed_gpu.gpu_power#role) keeps it in force with a systemd unit.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.changes
  - homelab.mixed_gpu._host_python.nvml
options:
  limits_watts:
    description: Power limits in watts, by UUID.
    type: dict
    default: {}
  limits_by_name_watts:
    description:
      - Power limits in watts by the end of the product name, for cards that O(limits_watts) does not name. C(RTX 3090)
        is not C(RTX 3090 Ti).
    type: dict
    default: {}
  locked_clocks_mhz:
    description: Lists of the lowest and the highest graphics clock in MHz, by UUID.
    type: dict
    default: {}
  persistence:
    description:
      - Whether the cards that get anything get persistence mode too. Without it the driver forgets the settings as soon
        as nothing uses the card.
    type: bool
    default: true
  settings:
    description:
      - Exactly these settings, such as RV(found) of an earlier run, instead of the options above.
      - C(schema) is 1; C(cards) is a list of dicts with C(id), C(power_limit_watts), C(locked_clocks_mhz) (lowest and
        highest) and C(persistence_mode). What is V(none) is left alone.
    type: dict
  record:
    description:
      - File that keeps what was applied. NVML cannot tell which clocks are locked, so the module believes this file.
      - Without, locked clocks count as not in force, and nothing is remembered.
    type: path
  until_unit:
    description:
      - Unit with which the settings end. Before the first change the module starts a transient unit that is bound to
        this one. When it ends, whatever becomes of the play, the limits and modes that were found are in force again.
      - A unit of an earlier call that still runs is kept, so that several calls end in what the first one found.
    type: str
    default: ""
  settle_seconds:
    description: How long to wait after a change, so that clocks and temperatures settle.
    type: int
    default: 0
  runtime_dir:
    description: Where O(until_unit) keeps what was found, and the program that restores it; gone after a reboot.
    type: path
    default: /run/mixed_gpu
  required:
    description: Whether cards that cannot be asked fail the module; else it returns RV(available) V(false).
    type: bool
    default: true
seealso:
  - module: homelab.mixed_gpu.gpu_facts
"""

EXAMPLES = r"""
- name: Limit one card until the driver is reloaded
  homelab.mixed_gpu.gpu_power:
    limits_watts:
      GPU-11111111-2222-3333-4444-555555555555: 320
  register: before

- name: Limit it as long as the measurement lease lasts
  homelab.mixed_gpu.gpu_power:
    limits_watts:
      GPU-11111111-2222-3333-4444-555555555555: 280
    until_unit: mixed-gpu-lease.service

- name: Restore its limit
  homelab.mixed_gpu.gpu_power:
    settings: "{{ before.found }}"
"""

RETURN = r"""
available:
  description: Whether the cards could be asked.
  returned: success
  type: bool
reason:
  description: Why the cards cannot be asked, V(none) where they can.
  returned: success
  type: str
settings:
  description: What is to be in force, by card. C(cards) is empty where nothing is asked for of any card here.
  returned: success
  type: dict
deviations:
  description: What was not in force before, one phrase each.
  returned: success
  type: list
  elements: str
  sample: ["power limit of NVIDIA GeForce RTX 3090 (GPU-1111) is 350 W, not 280 W"]
found:
  description: The O(settings) that bring all cards back to how they were before; locked clocks are not among them.
  returned: success
  type: dict
"""

import contextlib
import importlib
import inspect
import sys
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python, json_file, json_state, systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host_hardware, lost_cards, power_limits
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import apply_power_limits
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import host_record


@contextlib.contextmanager
def opened(nvml: t.Any) -> t.Iterator[None]:
    """Keep NVML open meanwhile; raises PowerError where the driver does not answer."""
    apply_power_limits.open_nvml(nvml)
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def slot(nvml: t.Any, handle: t.Any) -> str | None:
    """Return the PCI address of a card, or None where NVML does not say."""
    try:
        return str(nvml.nvmlDeviceGetPciInfo(handle).busId)
    except (nvml.NVMLError, UnicodeDecodeError):
        return None


def lost_words(nvml: t.Any, lost: t.Sequence[str], cards: t.Sequence[power_limits.Card]) -> list[str]:
    """Return the lost cards with slot, name and UUID, as the bus and the host's record tell; else NVML's words."""
    if not lost:
        return []
    seen = [{"id": card["id"], "name": card["name"], "pci_bus_id": slot(nvml, card["handle"])} for card in cards]
    gpus, devices = {"driver_version": "any", "reason": None, "gpus": seen}, host_hardware.nvidia_devices()
    found = lost_cards.of_host({"nvidia_devices": devices, "gpus": gpus, "recorded": host_record.usable()})
    return [lost_cards.words(card) for card in found] or list(lost)


def wanted_settings(
    params: t.Mapping[str, t.Any], cards: t.Sequence[power_limits.Card], lost: t.Sequence[str]
) -> power_limits.Settings:
    """Return the settings for these cards. Raises PowerError for what they would not take, or a card that is lost."""
    wanted = params["settings"]
    if wanted is None:
        asked = (params["limits_watts"], params["limits_by_name_watts"], params["locked_clocks_mhz"])
        wanted = power_limits.settings(cards, *asked, params["persistence"])
    elif wanted.get("schema") != power_limits.SCHEMA or not isinstance(wanted.get("cards"), list):
        raise apply_power_limits.PowerError(
            f"settings is not of schema {power_limits.SCHEMA}: give what this module returned as found."
        )
    wrong = apply_power_limits.problems(wanted, cards, lost)
    if wrong:
        raise apply_power_limits.PowerError(f"{' '.join(wrong)} Nothing was changed.")
    return wanted


def restore_with(module: AnsibleModule, found: power_limits.Settings) -> None:
    """Have a unit put C(found) into force when O(until_unit) ends. Raises UserError where systemd does not start it."""
    unit = power_limits.RESTORE_UNIT
    if systemd.show(module, unit, "ActiveState").get("ActiveState") in systemd.ACTIVE:
        return
    settings, program = (f"{module.params['runtime_dir']}/{name}" for name in power_limits.RESTORE_FILES)
    json_file.write_text(settings, json_file.to_text(found), 0o644, module.atomic_move)
    json_file.write_text(program, inspect.getsource(apply_power_limits), 0o644, module.atomic_move)
    systemd_run, sleep = (module.get_bin_path(name, required=True) for name in ("systemd-run", "sleep"))
    restore = [sys.executable, program, "apply", f"--settings={settings}"]
    rc, stdout, stderr = module.run_command(
        [*power_limits.restore_unit(systemd_run, module.params["until_unit"], restore), sleep, "infinity"]
    )
    if rc != 0:
        raise UserError(
            f"systemd did not start {unit}, which restores the power limits ({(stderr or stdout).strip()}): nothing was"
            " changed; run as root, and look whether the unit given as until_unit runs"
        )


def run(module: AnsibleModule, nvml: t.Any) -> dict[str, t.Any]:
    """Return the result, after putting the settings into force."""
    path = module.params["record"]
    record = apply_power_limits.read_settings(path) if path else None
    lost: list[str] = []
    cards = apply_power_limits.read_cards(nvml, lost)
    wanted = wanted_settings(module.params, cards, lost_words(nvml, lost, cards))
    deviations = apply_power_limits.deviations(wanted, cards, record)
    found = power_limits.found_settings(cards)
    if deviations and not module.check_mode:
        if module.params["until_unit"]:
            restore_with(module, found)
        new = apply_power_limits.apply(nvml, wanted, record)
        if path:
            apply_power_limits.write_record(path, new)
        time.sleep(module.params["settle_seconds"])
    return {
        "changed": bool(deviations), "available": True, "reason": None, "settings": wanted, "deviations": deviations,
        "found": found,
    }  # fmt: skip


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "limits_watts": {"type": "dict", "default": {}},
            "limits_by_name_watts": {"type": "dict", "default": {}},
            "locked_clocks_mhz": {"type": "dict", "default": {}},
            "persistence": {"type": "bool", "default": True},
            "settings": {"type": "dict"},
            "record": {"type": "path"},
            "until_unit": {"type": "str", "default": ""},
            "settle_seconds": {"type": "int", "default": 0},
            "runtime_dir": {"type": "path", "default": "/run/mixed_gpu"},
            "required": {"type": "bool", "default": True},
            "host_python": {"type": "path", "default": host_python.DEFAULT},
        },
        supports_check_mode=True,
    )
    reason = host_python.enter(["pynvml"], module.params["host_python"])
    result: dict[str, t.Any] = {
        "changed": False, "available": False, "reason": reason, "settings": power_limits.settings([], {}, {}, {}, True),
        "deviations": [], "found": power_limits.found_settings([]),
    }  # fmt: skip
    if reason is None:
        nvml = importlib.import_module("pynvml")
        try:
            with opened(nvml), json_state.failures_told(module, module.params["runtime_dir"]):
                result = run(module, nvml)
        except apply_power_limits.NoDriverError as error:
            result["reason"] = str(error)
        except apply_power_limits.PowerError as error:
            module.fail_json(msg=str(error))
    if module.params["required"] and not result["available"]:
        module.fail_json(msg=result["reason"])
    if module._diff:
        result["diff"] = {"before": "".join(f"{line}\n" for line in result["deviations"]), "after": ""}
    module.exit_json(**result)


if __name__ == "__main__":
    main()
