# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What host_preflight thinks of cards, slots and power. Private to this collection. Pure functions only.

Each function returns checks, see host_checks, of a host as host.describe returns it, with `gpus`, the fact
mixed_gpu_gpus, or None. Of that fact every datum may be missing or None: what is not known is never a warning.
"""

from __future__ import annotations

import typing as t

from .._base.checks import check
from .._base.errors import UserError
from .._driver import card_needs
from .._driver.driver_packages import branch_of
from .._hardware import card_ages, known_cards, lost_cards, nvml, power_budget
from .._split import device_list
from . import tensor_parallel_check

Check = dict[str, t.Any]

#: Programs that this collection runs on a card.
OWN_PROGRAMS: t.Final = ("llama-server", "ggml-rpc-server", "llama-bench")
#: Where the role exllamav2 puts its Python.
OWN_DIRECTORY: t.Final = "/opt/exllama/"
#: A desktop's share of a card is below this; more is another program's work.
OTHERS_MIB: t.Final = 1024
#: Branches before are offered by nobody any more.
OLDEST_BRANCH: t.Final = 535
#: BAR1 of a card without resizable BAR.
SMALL_BAR1_MIB: t.Final = 256


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def machine(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> list[Check]:
    """Return whether this is bare metal, a virtual machine or a container, and whether the cards reach into it."""
    kind = host["container"] and f"{host['container']} container" or host["hypervisor"] and (
        f"virtual machine ({host['hypervisor']})"
    )
    if kind is None:
        return [check("machine", True, "note", "bare metal", None)]
    on_bus = _count(len(host["nvidia_pci"]), "NVIDIA card")
    # without a card in sight the check of the cards says all there is to say
    if host["container"] and host["nvidia_pci"] and "nvidiactl" not in host["nvidia_nodes"]:
        detail = f"{kind} without access to the machine's {on_bus}: no /dev/nvidiactl"
        cure = (
            "give the container its cards (podman: --device nvidia.com/gpu=all, docker: --gpus all, with NVIDIA's"
            " container toolkit), or run on the machine itself: a driver cannot be installed from inside"
        )
        return [check("machine", False, "error" if expected else "note", detail, cure)]
    if not host["container"] and not host["nvidia_pci"] and expected:
        detail = f"{kind} without an NVIDIA card on its PCI bus"
        cure = (
            "pass the cards through (IOMMU on, card bound to vfio-pci on the machine around it), or run on that machine"
        )
        return [check("machine", False, "error", detail, cure)]
    return [check("machine", True, "note", kind, None)]


def binding(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> list[Check]:
    """Return which kernel driver holds each card."""
    devices = host["nvidia_devices"]
    if not devices:
        return []
    held = {device["address"]: device["driver"] for device in devices}
    passed = [address for address, driver in held.items() if driver == "vfio-pci"]
    nouveau = [address for address, driver in held.items() if driver == "nouveau"]
    if passed:
        missing = len(devices) - len(passed) < len(expected)
        detail = f"{' and '.join(passed)} reserved for a virtual machine (vfio-pci)"
        cure = "run inside that machine, or remove the card from vfio-pci's ids and reboot"
        return [check("card's driver", False, "error" if missing else "note", detail, cure)]
    if nouveau or host["nouveau_loaded"]:
        detail = f"nouveau holds {' and '.join(nouveau)}" if nouveau else "nouveau is loaded"
        cure = "the role nvidia_driver blocks nouveau; the reboot after that unloads it"
        return [check("card's driver", False, "warning", detail, cure)]
    kinds = sorted({driver or "none" for driver in held.values()})
    return [check("card's driver", True, "note", " and ".join(kinds), None)]


def resizable_bar(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Return whether the whole memory of every card can be addressed over PCIe."""
    if not host["nvidia_devices"]:
        return []
    sizes = {device["address"][-10:].lower(): device["bar1_mib"] for device in host["nvidia_devices"]}
    words, off = [], False
    for gpu in known_cards.of_host(host):
        size = gpu.get("bar1_total_mib") or sizes.get((gpu.get("pci_bus_id") or "")[-10:].lower())
        off = off or (size is not None and size <= SMALL_BAR1_MIB)
        words.append(f"{tensor_parallel_check.short_name(gpu)} {'unknown' if size is None else f'{size} MiB'}")
    cure = (
        "switch on Above 4G Decoding and Resizable BAR in the firmware (an RTX 3090 may need a newer VBIOS); a layer"
        " split works without it, access from card to card wants it"
    )
    return [check("resizable BAR", not off, "note", ", ".join(words), cure)]


def iommu(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Return whether an IOMMU translates while the cards reach each other's memory."""
    kinds = sorted({device["iommu"] for device in host["nvidia_devices"] if device["iommu"]})
    if len(host["nvidia_devices"]) < 2:
        return []
    translates = any(kind.startswith("DMA") for kind in kinds)
    state = f"on ({', '.join(kinds)})" if translates else "passes through" if kinds else "off"
    if translates and not host["hypervisor"] and peer_to_peer(host["gpus"]):
        cure = (
            "NVIDIA does not support access from card to card under an IOMMU that translates: switch it off in the"
            " firmware, or boot with iommu=pt"
        )
        return [check("IOMMU", False, "warning", f"{state}, and the cards use peer-to-peer access", cure)]
    reach = "cards do not reach each other, so it does no harm" if host["gpus"] and host["gpus"].get("p2p") else ""
    detail = f"{state}, {reach}" if translates and reach and not peer_to_peer(host["gpus"]) else state
    return [check("IOMMU", True, "note", detail, None)]


def ages(host: t.Mapping[str, t.Any], left_out: t.Collection[str]) -> list[Check]:
    """Return what driver, kernel modules and CUDA toolkit the cards need, by their PCI device ids."""
    gpus = (host["gpus"] or {}).get("gpus") or []
    names = {card_ages.same_slot(gpu["pci_bus_id"]): gpu["name"] for gpu in gpus if gpu.get("pci_bus_id")}
    devices = [
        {**device, "name": names.get(card_ages.same_slot(device["address"])) or device.get("name")}
        for device in host["nvidia_devices"]
    ]
    cards = card_ages.cards(devices, left_out)
    if not cards:
        return []
    needs = card_ages.needs(cards)
    labels = ", ".join(card.label for card in cards if card.architecture)
    if needs.problem:
        severity = "warning" if host["nvidia_module_version"] else "error"
        return [check("card generations", False, severity, needs.problem, card_needs.CURE)]
    loaded = branch_of(host["nvidia_module_version"] or "")
    if loaded and not (needs.first_branch or 0) <= int(loaded) <= (needs.last_branch or int(loaded)):
        detail = f"{labels}: driver {host['nvidia_module_version']} is loaded, and {needs_words(needs)}"
        cure = "leave out nvidia_driver_branch: the role nvidia_driver installs the branch that fits"
        return [check("card generations", False, "warning", detail, cure)]
    detail = f"{labels}: {needs_words(needs)}" if labels else ""
    if needs.unknown:
        unknown = f"not known: {' and '.join(needs.unknown)}"
        cure = "look up its driver branch, kernel modules and CUDA release, since nothing is derived from this card"
        return [check("card generations", False, "note", "; ".join(filter(None, [detail, unknown])), cure)]
    return [check("card generations", True, "note", detail, None)]


def needs_words(needs: card_ages.Needs) -> str:
    """Return what cards need, in words."""
    first, last = needs.first_cuda, needs.last_cuda
    words = [
        f"driver up to {needs.last_branch}" if needs.last_branch else "",
        f"driver {needs.first_branch} or later" if (needs.first_branch or 0) > OLDEST_BRANCH else "",
        {True: "open kernel modules", False: "closed kernel modules", None: ""}[needs.open_modules],
        f"CUDA up to {card_ages.words(last)}" if last else "",
        f"CUDA {card_ages.words(first)} or later" if first and first >= (12, 5) else "",
    ]
    return ", ".join(word for word in words if word) or "any maintained driver and CUDA toolkit"


def peer_to_peer(gpus: t.Mapping[str, t.Any] | None) -> bool:
    """Return whether NVML calls reading from card to card OK for any pair."""
    pairs = (gpus or {}).get("p2p") or []
    return any(pair.get("read") == "ok" for pair in pairs)


def expected_cards(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> Check:
    """Return whether the expected cards are there. A missing driver is no error, because a later role installs it."""
    slots, gpus, loaded = host["nvidia_pci"], host["gpus"], host["nvidia_module_version"]
    on_bus = f"{_count(len(slots), 'NVIDIA card')} on the PCI bus"
    if len(slots) < len(expected) and not (gpus and gpus["available"]):
        cure = "check seating and power, pass the cards through to a VM, or correct host_preflight_gpus_expected"
        detail = f"{on_bus}, {len(expected)} expected ({', '.join(expected)})"
        if gpus and gpus["gpus"]:
            detail += f", missing: {', '.join(nvml.missing_gpus(list(expected), gpus['gpus']))}"
        return check("GPUs", False, "error", detail, cure)
    if gpus and gpus["driver_version"]:
        return _answering(host, expected)
    if not slots:
        return check("GPUs", True, "note", "no NVIDIA card, and none expected", None)
    if loaded is None:
        who = "nouveau holds them" if host["nouveau_loaded"] else "no NVIDIA driver is loaded"
        return check("GPUs", False, "warning", f"{on_bus}, {who}", "the role nvidia_driver installs the driver")
    if gpus is None:
        detail = f"{on_bus}, driver {loaded} is loaded; their names are read once the role host_python has run"
        return check("GPUs", True, "note", detail, None)
    return check("GPUs", False, "warning", f"{on_bus}, driver {loaded} is loaded", gpus["reason"])


def _answering(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> Check:
    """Return whether the cards that answer are the expected ones, with the names of those that are lost."""
    gpus = host["gpus"]
    names = ", ".join(gpu["name"] or gpu["id"] or "unnamed" for gpu in gpus["gpus"]) or "no card answers"
    detail = f"{names}; driver {gpus['driver_version']}"
    missing = nvml.missing_gpus(list(expected), gpus["gpus"])
    lost = lost_cards.of_host(host, expected)
    if lost:
        detail += f"; lost: {' and '.join(lost_cards.words(card) for card in lost)}"
    cure = f"missing is {', '.join(missing)}: check seating and power, or correct host_preflight_gpus_expected"
    if lost and not missing:
        cure = "power-cycle the machine, check riser and power cables, and read 'dmesg | grep Xid'"
    if gpus["reason"]:
        cure = f"{lost_cards.reason(gpus, lost)}" + (f" Expected and missing: {', '.join(missing)}" if missing else "")
    ok = not missing and not lost and gpus["available"]
    return check("GPUs", ok, "error" if missing else "warning", detail, cure)


def others_on_the_cards(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Return which programs other than ours hold memory of a card."""
    gpus = host["gpus"]
    if not gpus or not gpus["gpus"]:
        return []
    held, most = [], 0
    for gpu in gpus["gpus"]:
        for process in gpu.get("processes") or []:
            path = process["name"] or "a process"
            name = path.rsplit("/", 1)[-1]
            if name not in OWN_PROGRAMS and not path.startswith(OWN_DIRECTORY):
                size = process["memory_mib"] or 0
                most = max(most, size)
                held.append(f"{name} (pid {process['pid']}) {size} MiB of the {tensor_parallel_check.short_name(gpu)}")
    if not held:
        return [check("memory of the cards", True, "note", "held by no other program", None)]
    cure = "stop the program, or leave room for it with split_tuning_device_budget_mib: a measured split needs the rest"
    return [check("memory of the cards", False, "warning" if most >= OTHERS_MIB else "note", ", ".join(held), cure)]


def budgets(host: t.Mapping[str, t.Any], budgets_mib: t.Mapping[str, t.Any]) -> list[Check]:
    """Return what is wrong where memory budgets are given for cards that are not there."""
    try:
        device_list.check_budgets(budgets_mib, host["gpus"])
    except UserError as error:
        return [check("memory budgets", False, "error", str(error), "correct its keys")]
    return []


def power(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    """Return how the power supply compares with the cards' limits and peaks."""
    expected = wanted["gpus_expected"]
    known = known_cards.of_host(host, expected)
    if not known:
        return []
    budget = power_budget.budget(
        known, wanted["psu_watts"], wanted["rest_of_machine_watts"], wanted["power_limits_watts"],
        wanted["locked_clocks_mhz"],
    )
    detail, verdict = power_budget.words(budget), budget["verdict"]
    policy = wanted["power_budget_policy"]
    severity = power_budget.severity(verdict, policy)
    lost = lost_cards.of_host(host, expected)
    if lost and nvml.missing_gpus(list(expected), host["gpus"]["gpus"]):
        gone = f"lost: {' and '.join(lost_cards.words(card) for card in lost)}; {detail}"
        back = "bring the card back, as the line GPUs says: what it draws then is a part of the budget"
        return [check("power supply", False, "error", gone, back)]
    if policy == "ignore" and verdict != "ok":
        return [check("power supply", True, "note", f"{detail}; ignored, as gpu_power_budget_policy says", None)]
    problem = {
        "exceeded": "more than the power supply gives: ", "peaks": "peaks beyond the power supply's rating: ",
        "peaks_possible": "peaks may go beyond the power supply's rating: ", "ok": "",
        "unknown": "" if wanted["psu_watts"] else "rating not known: ",
    }[verdict]
    cure = ", ".join(budget["advice"]) or None
    return [check("power supply", verdict == "ok", severity, problem + detail, cure)]


def tensor_parallel(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Return which other engines split tensors over unlike cards: a warning, never more."""
    known, engines = known_cards.of_host(host), host["engines"]
    if not engines:
        return [check("other engines", True, "note", "no vLLM or SGLang runs", None)] if len(known) > 1 else []
    judged = tensor_parallel_check.judge(engines, known, host["recorded"], peer_to_peer(host["gpus"]))
    return [check("other engines", each["ok"], "warning", each["detail"], each["cure"]) for each in judged]
