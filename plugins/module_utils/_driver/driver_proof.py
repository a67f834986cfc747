# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether the installed driver is loaded and the cards can be used. Private to this collection. Pure functions only."""

from __future__ import annotations

import typing as t

from .._base.errors import UserError
from .._base.types import Mapping
from .._hardware import card_ages, lost_cards
from . import card_needs
from .driver_packages import branch_of
from .driver_types import HostDriver

#: What cuInit answers (cuda.h): name and cure.
CUDA_ERRORS: t.Final = {
    2: ("out of memory", "end what holds the memory of the cards (nvidia-smi lists it)"),
    3: (
        "not initialized",
        "set nvidia_driver_uvm_disable_hmm to true (options nvidia_uvm uvm_disable_hmm=1: some kernels and open "
        "modules need it) and reboot",
    ),
    100: ("no device", "look whether CUDA_VISIBLE_DEVICES hides the cards, and read 'dmesg | grep -i nvrm'"),
    304: ("operating system", "load the module nvidia_uvm ('modprobe nvidia_uvm') and read 'dmesg | grep -i nvrm'"),
    802: ("system not ready", "start nvidia-fabricmanager where the cards have NVSwitch"),
    803: ("driver and library mismatch", "reboot: the library is of another version than the loaded module"),
    804: ("forward compatibility", "remove cuda-compat: it does not work with GeForce cards"),
    999: (
        "unknown",
        "run 'systemctl restart mixed-gpu-nodes.service', which loads nvidia_uvm and makes /dev/nvidia-uvm; reboot if "
        "that does not help, and read 'dmesg | grep -i nvrm'",
    ),
}


class CuInit(t.TypedDict):
    """What cuInit returned; `result` is None where it could not be called, with the reason in `detail`."""

    result: int | None
    detail: str


class Loaded(t.NamedTuple):
    """What of the driver is in force.

    `version` is that of the loaded module, or "". `missing_nodes` has one phrase per device node that is missing, and
    `nodes_unit` the state of the unit that makes them at boot. `cuinit` was called as a serving unit would call it.
    """

    version: str
    missing_nodes: t.Sequence[str]
    nodes_unit: t.Mapping[str, str]
    cuinit: CuInit


def reboot_due(host: HostDriver, rebooted: bool, local: bool) -> str:
    """Return "", or one sentence where the installed module of the next kernel is not the loaded one.

    `local` says whether the play runs on the host itself, so that Ansible may not reboot it. Raises UserError where
    the host has been `rebooted` and has no module.
    """
    module = host["modules"].get(host["kernel_next"])
    loaded = host["loaded_version"]
    if rebooted and not loaded:
        raise UserError(
            f"The host came back with kernel {host['kernel_running']} and without the NVIDIA module: read 'dmesg | "
            "grep -i nvidia' and 'dkms status', and look at Secure Boot ('mokutil --sb-state')."
        )
    if rebooted or (module and module["version"] == loaded):
        return ""
    state = f"version {loaded} is loaded" if loaded else "its module is not loaded"
    cure = "reboot this machine" if local else "reboot the host, or set nvidia_driver_reboot_ok to true"
    installed = module["version"] if module else "without a module"
    return f"The driver is installed ({installed}), but {state}: {cure}, then run the play again."


def cuda_problems(loaded: Loaded) -> list[str]:
    """Return one sentence for everything that keeps a serving unit from using CUDA, now or after the next boot."""
    found = []
    if loaded.missing_nodes:
        found.append(
            f"Device nodes that no server can make are missing: {', '.join(loaded.missing_nodes)}; "
            "run 'systemctl restart mixed-gpu-nodes.service', and see 'systemctl status mixed-gpu-nodes.service'."
        )
    if loaded.nodes_unit.get("UnitFileState") != "enabled":
        state = loaded.nodes_unit.get("UnitFileState") or "not there"
        found.append(
            f"mixed-gpu-nodes.service is {state}, so nothing loads nvidia_uvm at the next boot: run the role "
            "nvidia_driver."
        )
    if loaded.cuinit["result"] not in (0, None):
        number = loaded.cuinit["result"]
        name, cure = CUDA_ERRORS.get(number or 0, ("see cuda.h", "reboot, and read 'dmesg | grep -i nvrm'"))
        found.append(
            f"cuInit answers {number} ({name}) in the sandbox of a server, so no server can use the cards: {cure}."
        )
    elif loaded.cuinit["result"] is None:
        found.append(
            f"The CUDA library could not be asked ({loaded.cuinit['detail']}): install the driver's library "
            "libcuda.so.1 of the loaded module's version, then run the role nvidia_driver again."
        )
    return found


def problems(
    loaded: Loaded, gpus: Mapping, expected: t.Sequence[str], cards: t.Sequence[card_ages.Card]
) -> list[str]:
    """Return one sentence for everything that keeps the cards from being used; empty means that all is well.

    `gpus` is the fact mixed_gpu_gpus. `expected` holds UUIDs or parts of names, one per card, or nothing for any.
    `cards` are those on the PCI bus that the driver has to serve.
    """
    if not loaded.version:
        return [
            "The NVIDIA kernel module is not loaded: reboot; if that does not help, read 'modprobe nvidia' and 'dmesg "
            "| grep -i nvidia', and look at Secure Boot ('mokutil --sb-state')."
        ]
    if not gpus["available"]:
        return [str(gpus["reason"])]
    found = []
    if gpus["driver_version"] != loaded.version:
        found.append(
            f"The loaded module is {loaded.version} and the library {gpus['driver_version']}: reboot to end the "
            "half-done upgrade."
        )
    if len(gpus["gpus"]) != len(cards):
        found.append(_count_problem(loaded.version, gpus, cards))
    missing, surplus = _match(gpus["gpus"], expected)
    for want in missing:
        there = ", ".join(f"{card['name']} {card['id']}" for card in gpus["gpus"]) or "none"
        found.append(
            f"nvidia_driver_gpus_expected wants {want}, and NVML sees {there}: reseat the card or correct the list."
        )
    if expected and surplus and not found:
        found.append(
            f"NVML sees {len(gpus['gpus'])} cards, more than the {len(expected)} of nvidia_driver_gpus_expected: add "
            f"{surplus[0]['id']} to the list."
        )
    return [*found, *cuda_problems(loaded)]


def _count_problem(loaded: str, gpus: Mapping, cards: t.Sequence[card_ages.Card]) -> str:
    """Return the sentence about cards that NVML does not see: of an age that the driver does not drive, or lost."""
    unseen = lost_cards.unseen(cards, gpus)
    found = f"The PCI bus has {len(cards)} NVIDIA card(s) and NVML sees {len(gpus['gpus'])}"
    found += f", without the {' and the '.join(card.label for card in unseen)}" if unseen else ""
    branch = branch_of(loaded)
    old = [card for card in unseen if card.architecture and int(branch or 0) > (card.architecture.last_branch or 9999)]
    if old:
        return f"{found}: branch {branch} does not drive it; leave out nvidia_driver_branch, or {card_needs.CURE}."
    return f"{found}: read 'dmesg | grep -i nvrm', check power plugs and seating, and reboot."


def _match(cards: t.Sequence[Mapping], expected: t.Sequence[str]) -> tuple[list[str], list[Mapping]]:
    """Return (expected cards that are missing, cards that were not expected)."""
    free, missing = list(cards), []
    # UUIDs first, so that a name does not take the card that a UUID means
    for want in sorted(expected, key=lambda text: not text.startswith("GPU-")):
        card = next((card for card in free if want == card["id"] or want.lower() in card["name"].lower()), None)
        if card is None:
            missing.append(want)
        else:
            free.remove(card)
    return missing, free
