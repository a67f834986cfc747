# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What NVML says about the cards of a host. Private to this collection.

The caller passes in nvidia-ml-py's module, so that nothing here needs it to be installed.
"""

from __future__ import annotations

import contextlib
import itertools
import threading
import typing as t

from .._base.types import Json
from . import nvml_sampling

MIB = 1 << 20

# nvmlReturn_t values that say that the card is gone, not that it lacks one datum:
# no external power, off the bus, needs a reset
_CARD_GONE = {8, 15, 16}

# nvmlDeviceArchitecture_t
_ARCHITECTURES = {
    2: "Kepler",
    3: "Maxwell",
    4: "Pascal",
    5: "Volta",
    6: "Turing",
    7: "Ampere",
    8: "Ada",
    9: "Hopper",
    10: "Blackwell",
}

# nvmlClocksEventReasons
_THROTTLE_REASONS = {
    0x1: "gpu_idle",
    0x2: "applications_clocks_setting",
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake_slowdown",
    0x100: "display_clock_setting",
    0x200: "board_limit",
    0x400: "reliability",
}

# nvmlGpuP2PStatus_t; 1 is spelled both ways in NVIDIA's own header
_P2P_STATUS = {
    0: "ok",
    1: "chipset_not_supported",
    2: "gpu_not_supported",
    3: "ioh_topology_not_supported",
    4: "disabled_by_regkey",
    5: "not_supported",
    6: "unknown",
}
# nvmlGpuP2PCapsIndex_t, as numbers: nvidia-ml-py's NVML_P2P_CAPS_INDEX_READ is a tuple by mistake
_P2P_CAPABILITIES = {"read": 0, "write": 1, "nvlink": 2, "atomics": 3, "pci": 4}

_NVLINK_MAX_LINKS = 18  # NVML_NVLINK_MAX_LINKS

_CLOCK_MEMORY = 2  # nvmlClockType_t
_LONGEST_SECONDS = 86400.0
_NO_PROCESS_MEMORY = 0xFFFFFFFFFFFFFFFF  # NVML_VALUE_NOT_AVAILABLE


def explain(code: int, text: str, loaded_version: str | None = None) -> str:
    """One sentence with cause and cure for an NVML return code.

    `text` is NVML's own words; `loaded_version` is the kernel module's version, if one is loaded.
    """
    kernel = f" (kernel module {loaded_version})" if loaded_version else ""
    sentences = {
        4: "NVML refuses access to the NVIDIA driver (NVML error 4): run as root, or allow this user /dev/nvidia*.",
        8: (
            "An NVIDIA card lacks external power (NVML error 8): connect all of its power cables, "
            "then power-cycle the machine."
        ),
        9: (
            "The NVIDIA kernel module is not loaded (NVML error 9): install the driver with role nvidia_driver, "
            "or reboot if it has just been installed; 'dmesg | grep -i nvidia' says why it does not load."
        ),
        12: (
            "No NVIDIA driver: libnvidia-ml.so.1 cannot be loaded (NVML error 12): install the driver with role "
            "nvidia_driver, or, in a container, give it the GPU."
        ),
        15: (
            "An NVIDIA card fell off the bus (NVML error 15): power-cycle the machine, check riser and power cables, "
            "and read 'dmesg | grep Xid'."
        ),
        16: "An NVIDIA card needs a reset (NVML error 16): stop what uses it and reboot.",
        17: (
            "The operating system blocks the NVIDIA devices (NVML error 17): check the device policy of the unit or "
            "container that this runs in."
        ),
        18: (
            f"The loaded NVIDIA kernel module{kernel} and the installed NVIDIA libraries are of different versions "
            "(NVML error 18): a driver upgrade is half done, reboot to finish it."
        ),
    }
    return sentences.get(code, f"NVML answers error {code} ({text}): see what 'nvidia-smi' on the host says.")


def unavailable(reason: str) -> Json:
    """The facts of a host whose cards cannot be asked, with one sentence that says why."""
    return {
        "available": False, "reason": reason, "driver_version": None, "cuda_driver_version": None, "gpus": [],
        "p2p": [], "xid_events": [],
    }  # fmt: skip


def probe(
    nvml: t.Any,
    loaded_version: str | None = None,
    sample_seconds: float = 0.0,
    sample_interval_ms: int = 200,
    ended: t.Callable[[], bool] = lambda: False,
    readings: dict[str, list[nvml_sampling.Reading]] | None = None,
    used_by: dict[str, dict[int, float]] | None = None,
) -> Json:
    """Ask NVML for all cards; the result is `mixed_gpu_gpus` as gpu_facts documents it.

    `nvml` is nvidia-ml-py's module. With `sample_seconds` above 0 the cards are also watched for that long or until
    `ended`, every `sample_interval_ms`; what is read of each goes into `readings`, by UUID, and the share of its time
    that each process had into `used_by`, by UUID and pid. Never raises for what NVML
    answers: `reason` says what is wrong.
    """
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        return unavailable(explain(error.value, str(error), loaded_version))
    try:
        return _probe_cards(nvml, loaded_version, sample_seconds, sample_interval_ms, ended, readings, used_by)
    except nvml.NVMLError as error:
        return unavailable(explain(error.value, str(error), loaded_version))
    except nvml_sampling.CardGoneError as gone:
        return unavailable(str(gone))
    finally:
        nvml.nvmlShutdown()


@contextlib.contextmanager
def watched(nvml: t.Any, interval_ms: int = 500) -> t.Iterator[Json]:
    """Watch all cards in a thread while the body runs.

    The dict that it gives is filled at the end: by UUID what gpu_facts calls `sampled`, with the `processes` of the
    card at the beginning and the share that each had since (`gpu_percent`, None where the card does not say). It stays
    empty where NVML does not answer or there is no card: what is watched matters more than the watching.
    """
    found: Json = {}
    ended = threading.Event()
    said: list[Json] = []
    used_by: dict[str, dict[int, float]] = {}
    watcher = threading.Thread(
        target=lambda: said.append(
            probe(nvml, None, _LONGEST_SECONDS, interval_ms, ended.is_set, used_by=used_by)
        ),
        daemon=True,
    )
    watcher.start()
    try:
        yield found
    finally:
        ended.set()
        watcher.join(timeout=10)
        for gpu in (gpu for facts in said for gpu in facts["gpus"]):
            found[gpu["id"]] = {**gpu["sampled"], "processes": _users(gpu, used_by.get(gpu["id"], {}))}


def _users(gpu: Json, shares: t.Mapping[int, float]) -> list[Json]:
    """The processes that a card listed, and those that used it since, with the share of its time that each had."""
    listed = {one["pid"]: one for one in gpu["processes"] or []}
    since = {pid: {"pid": pid, "name": None, "memory_mib": None} for pid in shares if pid not in listed}
    return [{**one, "gpu_percent": shares.get(pid)} for pid, one in sorted({**listed, **since}.items())]


def missing_gpus(expected: list[str], gpus: list[Json]) -> list[str]:
    """Those of the expected UUIDs and (parts of) names for which no card is left.

    A card satisfies one expectation. UUIDs come first, then longer names, so that "RTX 3090" does not take the
    card of "RTX 3090 Ti".
    """
    left = list(gpus)
    missing = []
    for wanted in sorted(expected, key=lambda text: (not text.startswith("GPU-"), -len(text), text)):
        for gpu in left:
            if wanted == gpu["id"] or wanted.lower() in (gpu["name"] or "").lower():
                left.remove(gpu)
                break
        else:
            missing.append(wanted)
    return missing


def _probe_cards(
    nvml: t.Any,
    loaded_version: str | None,
    sample_seconds: float,
    sample_interval_ms: int,
    ended: t.Callable[[], bool],
    readings: dict[str, list[nvml_sampling.Reading]] | None,
    used_by: dict[str, dict[int, float]] | None,
) -> Json:
    found: list[tuple[Json, t.Any]] = []  # facts and handle of each card that answers
    problems: list[str] = []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            handle = nvml.nvmlDeviceGetHandleByIndex(index)
            found.append((_card(nvml, index, handle), handle))
        except nvml_sampling.CardGoneError as gone:
            problems.append(f"GPU {index}: {gone}")
        except nvml.NVMLError as error:
            problems.append(f"GPU {index}: {explain(error.value, str(error), loaded_version)}")
    if not found and not problems:
        problems = [
            "The NVIDIA driver runs but lists no card: check that the card is seated and powered ('lspci -d 10de:')."
        ]
    # PCI bus order is what nvidia-smi and CUDA_DEVICE_ORDER=PCI_BUS_ID mean; NVML itself promises no order.
    found.sort(key=lambda card: card[0]["pci_bus_id"] or "")
    xid_events: list[Json] | None = []
    if sample_seconds > 0:
        handles = {facts["id"]: handle for facts, handle in found}
        watch = nvml_sampling.watch(nvml, _ask, handles, sample_seconds, sample_interval_ms, ended)
        if readings is not None:
            readings.update(watch["cards"])
        xid_events = watch["xid_events"]
        for facts, _handle in found:
            facts["sampled"] = nvml_sampling.summary(watch["cards"][facts["id"]], watch["seconds"], throttle_reasons)
            if used_by is not None:
                used_by[facts["id"]] = watch["used_by"][facts["id"]]
            if facts["id"] in watch["gone"]:
                problems.append(f"GPU {facts['index']}: {watch['gone'][facts['id']]}")
    cuda = _ask(nvml, "nvmlSystemGetCudaDriverVersion_v2")
    return {
        "available": not problems,
        "reason": " ".join(problems) or None,
        "driver_version": _text(_ask(nvml, "nvmlSystemGetDriverVersion")),
        "cuda_driver_version": None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        "gpus": [facts for facts, _handle in found],
        "p2p": _p2p(nvml, found),
        "xid_events": xid_events,
    }


def _p2p(nvml: t.Any, found: t.Sequence[tuple[Json, t.Any]]) -> list[Json]:
    """What each pair of cards can do directly: one dict per pair, {a, b, read, write, nvlink, atomics, pci}."""
    pairs = []
    for (one, one_handle), (other, other_handle) in itertools.combinations(found, 2):
        pair: Json = {"a": one["id"], "b": other["id"]}
        for name, index in _P2P_CAPABILITIES.items():
            try:
                status = _ask(nvml, "nvmlDeviceGetP2PStatus", one_handle, other_handle, index)
            except nvml_sampling.CardGoneError:  # since it was read; what it said then stands
                status = None
            pair[name] = None if status is None else _P2P_STATUS.get(status, f"unknown_{status}")
        pairs.append(pair)
    return pairs


def _ask(nvml: t.Any, function: str, *arguments: t.Any) -> t.Any:
    """The answer, or None where card, driver or nvidia-ml-py do not have it; CardGoneError when the card is gone."""
    ask: t.Any = getattr(nvml, function, None)
    try:
        return ask(*arguments) if ask else None
    except UnicodeDecodeError:  # nvidia-ml-py decodes strictly; what it wraps gives the bytes
        return _text(ask.__wrapped__(*arguments)) if hasattr(ask, "__wrapped__") else None
    except nvml.NVMLError as error:
        if error.value in _CARD_GONE:
            raise nvml_sampling.CardGoneError(explain(error.value, str(error))) from error
        return None
    except AttributeError:  # an older nvidia-ml-py
        return None


def _card(nvml: t.Any, index: int, handle: t.Any) -> Json:
    def ask(name: str, *arguments: t.Any) -> t.Any:
        return _ask(nvml, name, handle, *arguments)

    pci = ask("nvmlDeviceGetPciInfo")
    capability = ask("nvmlDeviceGetCudaComputeCapability")
    limits = ask("nvmlDeviceGetPowerManagementLimitConstraints") or (None, None)
    bar1 = ask("nvmlDeviceGetBAR1MemoryInfo")
    persistence = ask("nvmlDeviceGetPersistenceMode")
    ecc = ask("nvmlDeviceGetEccMode")
    facts: Json = {
        "id": _text(ask("nvmlDeviceGetUUID")),
        "name": _text(ask("nvmlDeviceGetName")),
        "pci_bus_id": None if pci is None else _bus_id(pci),
        "index": index,
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "architecture": _ARCHITECTURES.get(ask("nvmlDeviceGetArchitecture")),
        "power_limit_watts": _watts(ask("nvmlDeviceGetPowerManagementLimit")),
        "power_limit_min_watts": _watts(limits[0]),
        "power_limit_max_watts": _watts(limits[1]),
        "power_limit_default_watts": _watts(ask("nvmlDeviceGetPowerManagementDefaultLimit")),
        "power_limit_enforced_watts": _watts(ask("nvmlDeviceGetEnforcedPowerLimit")),
        "power_draw_watts": _watts(ask("nvmlDeviceGetPowerUsage")),
        "temperature_celsius": ask("nvmlDeviceGetTemperature", 0),
        "pcie_generation": ask("nvmlDeviceGetCurrPcieLinkGeneration"),
        "pcie_generation_max": ask("nvmlDeviceGetMaxPcieLinkGeneration"),
        "pcie_generation_device_max": ask("nvmlDeviceGetGpuMaxPcieLinkGeneration"),
        "pcie_width": ask("nvmlDeviceGetCurrPcieLinkWidth"),
        "pcie_width_max": ask("nvmlDeviceGetMaxPcieLinkWidth"),
        "bar1_total_mib": None if bar1 is None else bar1.bar1Total // MIB,
        "persistence_mode": None if persistence is None else bool(persistence),
        "ecc_enabled": None if ecc is None else bool(ecc[0]),
        "nvlink": _nvlink(ask),
        "throttle_reasons": throttle_reasons(nvml_sampling.throttle_mask(ask)),
        "processes": _processes(nvml, ask),
        "sampled": None,
    }
    clock, width = ask("nvmlDeviceGetMaxClockInfo", _CLOCK_MEMORY), ask("nvmlDeviceGetMemoryBusWidth")
    return {**facts, "memory_bandwidth_gb_per_s": bandwidth_gb_per_s(clock, width), **_memory(nvml, ask)}


def bandwidth_gb_per_s(memory_clock_mhz: int | None, bus_width_bits: int | None) -> float | None:
    """Theoretical memory bandwidth in 10^9 bytes per second: two transfers per clock over the whole bus."""
    if not memory_clock_mhz or not bus_width_bits:
        return None
    return round(2 * memory_clock_mhz * 1e6 * bus_width_bits / 8 / 1e9, 1)


def throttle_reasons(mask: int | None) -> list[str] | None:
    """Names of the bits of nvmlClocksEventReasons, lowest bit first; bits without a name as unknown_0x..."""
    if mask is None:
        return None
    bits = [1 << position for position in range(mask.bit_length()) if mask >> position & 1]
    return [_THROTTLE_REASONS.get(bit, f"unknown_{bit:#x}") for bit in bits]


def _nvlink(ask: t.Callable[..., t.Any]) -> list[Json] | None:
    """The card's NVLink links; None for a card that has none. A link without a bridge is there and not active."""
    links = []
    for link in range(_NVLINK_MAX_LINKS):
        state = ask("nvmlDeviceGetNvLinkState", link)
        if state is not None:
            links.append({"link": link, "active": bool(state)})
    return links or None


def _memory(nvml: t.Any, ask: t.Callable[..., t.Any]) -> dict[str, int | None]:
    memory = ask("nvmlDeviceGetMemoryInfo", getattr(nvml, "nvmlMemory_v2", None))
    reserved = None
    if memory is None:  # an older driver: `used` then includes what the driver reserves
        memory = ask("nvmlDeviceGetMemoryInfo")
    elif hasattr(memory, "reserved"):
        reserved = memory.reserved // MIB
    return {
        "memory_total_mib": None if memory is None else memory.total // MIB,
        "memory_free_mib": None if memory is None else memory.free // MIB,
        "memory_used_mib": None if memory is None else memory.used // MIB,
        "memory_reserved_mib": reserved,
    }


def _processes(nvml: t.Any, ask: t.Callable[..., t.Any]) -> list[Json] | None:
    """Compute and graphics processes on the card, one entry per pid; None when the card does not say."""
    compute = ask("nvmlDeviceGetComputeRunningProcesses_v3")
    graphics = ask("nvmlDeviceGetGraphicsRunningProcesses_v3")
    if compute is None and graphics is None:
        return None
    memory: dict[int, int | None] = {}
    for process in (compute or []) + (graphics or []):
        used = process.usedGpuMemory
        mib = None if used is None or used == _NO_PROCESS_MEMORY else used // MIB
        known = memory.get(process.pid)
        memory[process.pid] = mib if known is None else max(known, mib or 0)
    return [
        {"pid": pid, "name": _text(_ask(nvml, "nvmlSystemGetProcessName", pid)), "memory_mib": memory[pid]}
        for pid in sorted(memory)
    ]


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else round(milliwatts / 1000, 1)


def _bus_id(pci: t.Any) -> str | None:
    try:
        return _text(pci.busId)
    except UnicodeDecodeError:
        return None


def _text(value: str | bytes | None) -> str | None:
    return value.decode(errors="replace") if isinstance(value, bytes) else value
