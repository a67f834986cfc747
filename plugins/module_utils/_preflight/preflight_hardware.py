# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What host_preflight thinks of cards, slots, kernel and power. Private to this collection. Pure functions.

Each function returns checks, see _preflight, of a host as the module host_info returns it, with `gpus`, the fact
mixed_gpu_gpus, or None. Of that fact every datum may be missing or None: what is not known is never a warning.
"""

from __future__ import annotations

import typing as t

from .._hardware import nvml, power_budget
from . import tensor_parallel_check

Json = dict[str, t.Any]
Check = dict[str, t.Any]

#: Programs that this collection runs on a card.
OWN_PROGRAMS = ("llama-server", "ggml-rpc-server", "llama-bench")
#: Where the role exllamav2 puts its Python.
OWN_DIRECTORY = "/opt/exllama/"
#: A desktop's share of a card is below this; more is somebody's work.
OTHERS_MIB = 1024
#: 10^9 bytes per second of one lane in one direction, by generation, from the PCIe base specifications.
LANE_GB_PER_S = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
#: BAR1 of a card without resizable BAR.
SMALL_BAR1_MIB = 256
#: 580 branch: 580.126.16 fails to build on Linux 7.0 and 580.142 on 7.1; 580.159.04 builds.
NEWEST_SAFE_KERNEL = (6, 99)


def check(name: str, ok: bool, severity: str, detail: str, cure: str | None) -> Check:
    """Return a check; what is ok needs no cure."""
    return {"name": name, "ok": ok, "severity": severity, "detail": detail, "cure": None if ok else cure}


def cards(host: t.Mapping[str, t.Any]) -> list[Json]:
    """What is known of each card: entries of gpu_facts, or, before there is a driver, names by PCI device id."""
    gpus = host["gpus"]
    if gpus and gpus["gpus"]:
        return list(gpus["gpus"])
    return [
        {"name": power_budget.DEVICE_IDS.get(device["device_id"]), "pci_bus_id": device["address"]}
        for device in host["nvidia_devices"]
    ]


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


# --- kernel and machine -----------------------------------------------------------------------------------------------


def kernel(host: t.Mapping[str, t.Any]) -> list[Check]:
    """The running kernel, the one that boots next, and what a driver's module does not build for."""
    release, installed = host["kernel"], host["kernels"]
    newest = installed[-1] if installed else release
    detail = release
    if host["container"]:
        return [check("kernel", True, "note", f"{release}, of the machine around this container", None)]
    if "-rt" in release or "PREEMPT_RT" in host["kernel_version"]:
        cure = "boot a kernel without PREEMPT_RT: NVIDIA's modules are not built for it"
        return [check("kernel", False, "warning", f"{release}, a real-time kernel", cure)]
    if newest != release and release in installed:
        cure = "reboot before the driver is installed, or check its module for both kernels ('dkms status')"
        detail = f"{release} runs, {newest} is newer and boots next unless told otherwise"
        return [check("kernel", False, "note", detail, cure)]
    if host["nvidia_pci"] and host["nvidia_module_version"] is None and _numbers(release)[:2] > NEWEST_SAFE_KERNEL:
        cure = "use driver 580.159.04 or later, or the distribution's kernel 6.x: older 580 do not build on Linux 7"
        return [check("kernel", False, "warning", detail, cure)]
    return [check("kernel", True, "note", detail, None)]


def machine(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> list[Check]:
    """Bare metal, virtual machine or container, and whether the cards reach into it."""
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


def secure_boot(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Secure Boot only matters until a module is loaded, which proves that its signature is accepted."""
    state, loaded = host["secure_boot"], host["nvidia_module_version"]
    if host["container"]:
        return []
    if state is None:
        return [check("Secure Boot", True, "note", "unknown: the firmware's variables cannot be read", None)]
    if not state or loaded or not host["nvidia_pci"]:
        detail = "off" if not state else "on, and the driver is loaded" if loaded else "on"
        return [check("Secure Boot", True, "note", detail, None)]
    cure = (
        "use modules that the distribution signed (Ubuntu's linux-modules-nvidia-*), or enrol the key that DKMS signs"
        " with ('mokutil --import', confirmed at the console of the next boot), or switch Secure Boot off"
    )
    return [check("Secure Boot", False, "warning", "on: the kernel refuses an unsigned driver", cure)]


def binding(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> list[Check]:
    """Which kernel driver holds each card."""
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
        cure = "the role nvidia_driver blocks it; it goes with the reboot after that"
        return [check("card's driver", False, "warning", detail, cure)]
    kinds = sorted({driver or "none" for driver in held.values()})
    return [check("card's driver", True, "note", " and ".join(kinds), None)]


# --- slots ------------------------------------------------------------------------------------------------------------


def links(host: t.Mapping[str, t.Any]) -> list[Check]:
    """One check per card: PCIe width and generation, judged by what was seen under load where that is known."""
    if host["hypervisor"] and host["nvidia_devices"]:
        return [check("PCIe", True, "note", "not judged: a virtual machine does not see the real slots", None)]
    by_address = {device["address"][-10:].lower(): device for device in host["nvidia_devices"]}
    found = []
    for gpu in cards(host):
        address = (gpu.get("pci_bus_id") or "")[-10:].lower()
        found.append(_link(gpu, by_address.get(address, {}), address))
    return found


def _sampled(gpu: t.Mapping[str, t.Any], key: str) -> int | None:
    """The highest value that was seen while something ran on the card; None where nothing was sampled or it idled."""
    sampled = gpu.get("sampled") or {}
    busy = (sampled.get("utilization_gpu_percent") or {}).get("max") or 0
    value = (sampled.get(key) or {}).get("max")
    return int(value) if busy and value is not None else None


def _link(gpu: t.Mapping[str, t.Any], device: t.Mapping[str, t.Any], address: str) -> Check:
    name = f"PCIe {address or gpu.get('uuid')}"
    # idle links lower their generation and keep their width
    loaded = _sampled(gpu, "pcie_generation")
    width = _sampled(gpu, "pcie_width") or gpu.get("pcie_width") or device.get("width")
    possible = gpu.get("pcie_generation_max") or _least(device.get("generation_max"), device.get("slot_generation_max"))
    own = gpu.get("pcie_generation_device_max") or device.get("generation_max")
    now = gpu.get("pcie_generation") or device.get("generation")
    if width is None:
        return check(name, True, "note", "unknown: neither driver nor kernel says", None)
    seen = loaded if loaded is not None else now if now == possible else None
    at = "generation unknown"
    if seen is not None:
        at = f"generation {seen}"
    elif possible is not None:
        at = f"generation {possible} at most, now unknown (an idle card lowers it)"
    detail = f"x{width}, {at}"
    if width < 8:
        detail += f", {_speed(width, loaded or possible)}slow for loading, prompts and tensor split"
        cure = (
            "use a slot with 8 lanes or more (the board's manual says which share lanes with M.2), or check riser and"
            " seating"
        )
        return check(name, False, "warning", detail, cure)
    if loaded is not None and possible is not None and loaded < possible:
        cure = "set the slot's generation in the firmware instead of Auto, and check riser and seating"
        return check(name, False, "warning", f"{detail} under load, {possible} possible", cure)
    if possible is not None and own is not None and possible < own:
        cure = "the slot or the firmware's setting allows no more; an old riser is a reason to set it so"
        return check(name, False, "warning" if possible < 3 else "note", f"{detail}; the card could do {own}", cure)
    if width == 8:
        detail += ": enough, a layer split sends one row of activations per token, 32 KiB of a 70B model"
    return check(name, True, "note", detail, None)


def _least(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None


def _speed(width: int, gen: int | None) -> str:
    return f"{width * LANE_GB_PER_S[gen]:.1f} GB/s at most: " if gen in LANE_GB_PER_S else ""


def resizable_bar(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Whether the whole memory of every card can be addressed over PCIe."""
    if not host["nvidia_devices"]:
        return []
    sizes = {device["address"][-10:].lower(): device["bar1_mib"] for device in host["nvidia_devices"]}
    words, off = [], False
    for gpu in cards(host):
        size = gpu.get("bar1_total_mib") or sizes.get((gpu.get("pci_bus_id") or "")[-10:].lower())
        off = off or (size is not None and size <= SMALL_BAR1_MIB)
        words.append(f"{tensor_parallel_check.short_name(gpu)} {'unknown' if size is None else f'{size} MiB'}")
    cure = (
        "switch on Above 4G Decoding and Resizable BAR in the firmware (an RTX 3090 may need a newer VBIOS); a layer"
        " split works without it, access from card to card wants it"
    )
    return [check("resizable BAR", not off, "note", ", ".join(words), cure)]


def iommu(host: t.Mapping[str, t.Any]) -> list[Check]:
    """An IOMMU that translates, together with cards that reach each other's memory."""
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


def peer_to_peer(gpus: t.Mapping[str, t.Any] | None) -> bool:
    """Whether NVML calls reading from card to card OK for any pair."""
    pairs = (gpus or {}).get("p2p") or []
    return any(pair.get("read") == "ok" for pair in pairs)


# --- cards and power --------------------------------------------------------------------------------------------------


def expected_cards(host: t.Mapping[str, t.Any], expected: t.Sequence[str]) -> Check:
    """Too few cards on the bus is an error; a missing or broken driver is not, because a later role installs it."""
    slots, gpus, loaded = host["nvidia_pci"], host["gpus"], host["nvidia_module_version"]
    on_bus = f"{_count(len(slots), 'NVIDIA card')} on the PCI bus"
    if len(slots) < len(expected) and not (gpus and gpus["available"]):
        cure = "check seating and power, pass the cards through to a VM, or correct host_preflight_gpus_expected"
        return check("GPUs", False, "error", f"{on_bus}, {len(expected)} expected ({', '.join(expected)})", cure)
    if gpus and gpus["available"]:
        names = ", ".join(gpu["name"] or gpu["uuid"] or "unnamed" for gpu in gpus["gpus"])
        detail = f"{names}; driver {gpus['driver_version']}"
        missing = nvml.missing_gpus(list(expected), gpus["gpus"])
        cure = f"missing is {', '.join(missing)}: check seating and power, or correct host_preflight_gpus_expected"
        return check("GPUs", not missing, "error", detail, cure)
    if not slots:
        return check("GPUs", True, "note", "no NVIDIA card, and none expected", None)
    if loaded is None:
        who = "nouveau holds them" if host["nouveau_loaded"] else "no NVIDIA driver is loaded"
        return check("GPUs", False, "warning", f"{on_bus}, {who}", "the role nvidia_driver installs the driver")
    if gpus is None:
        detail = f"{on_bus}, driver {loaded} is loaded; their names are read once the role host_python has run"
        return check("GPUs", True, "note", detail, None)
    return check("GPUs", False, "warning", f"{on_bus}, driver {loaded} is loaded", gpus["reason"])


def others_on_the_cards(host: t.Mapping[str, t.Any]) -> list[Check]:
    """Programs other than ours that hold memory of a card."""
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
    cure = "stop it, or leave it room with split_tuning_device_budget_mib: what it takes later a measured split lacks"
    return [check("memory of the cards", False, "warning" if most >= OTHERS_MIB else "note", ", ".join(held), cure)]


def power(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    """The power supply against the cards' limits and peaks."""
    known = cards(host)
    if not known:
        return []
    budget = power_budget.budget(
        known, wanted["psu_watts"], wanted["rest_of_machine_watts"], wanted["power_limits_watts"],
        wanted["locked_clocks_mhz"],
    )
    detail, verdict = power_budget.words(budget), budget["verdict"]
    policy = wanted["power_budget_policy"]
    severity = power_budget.severity(verdict, policy)
    if policy == "ignore" and verdict != "ok":
        return [check("power supply", True, "note", f"{detail}; ignored, as gpu_power_budget_policy says", None)]
    problem = {
        "exceeded": "more than the power supply gives: ", "peaks": "peaks beyond the power supply's rating: ",
        "peaks_possible": "peaks may go beyond the power supply's rating: ", "ok": "",
        "unknown": "" if wanted["psu_watts"] else "rating not known: ",
    }[verdict]
    cure = ", ".join(budget["advice"]) or None
    return [check("power supply", verdict == "ok", severity, problem + detail, cure)]


def tensor_parallel(
    host: t.Mapping[str, t.Any], engines: t.Sequence[t.Mapping[str, t.Any]] | None, recorded: t.Any
) -> list[Check]:
    """Other engines that split tensors over unlike cards: a warning, never more."""
    known = cards(host)
    if not engines:
        found = engines is not None and len(known) > 1
        return [check("other engines", True, "note", "no vLLM or SGLang runs or is set up", None)] if found else []
    judged = tensor_parallel_check.judge(engines, known, recorded, peer_to_peer(host["gpus"]))
    return [check("other engines", each["ok"], "warning", each["detail"], each["cure"]) for each in judged]


def _numbers(version: str) -> tuple[int, ...]:
    """The numbers a kernel's release begins with."""
    return tuple(int(part) for part in version.split("-")[0].split(".") if part.isdigit())
