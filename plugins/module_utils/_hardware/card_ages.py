# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one table of card generations, by PCI device id, before a driver is there. Private. Pure functions only.

Sources. Device ids: the PCI ID Repository (pci.ids of 2026-08-22), whose names begin with the chip; a range is what
one chip's entries span, so a new id inside it is known too. Kernel modules: NVIDIA's Driver Installation Guide, "Kernel
Modules" (open modules begin with Turing and are the only ones for Blackwell; from branch 620 on there are no others).
Branches: NVIDIA's supported-products lists; 580 is the last for Maxwell, Pascal and Volta, 470 for Kepler, 390 for
Fermi; 570 is the first for Blackwell. Targets: CUDA release notes and `nvcc --list-gpu-arch` (13.0 dropped all before
7.5, 12.0 dropped Kepler; 12.8 added 10.0 and 12.0, 12.9 added 10.3).
"""

from __future__ import annotations

import typing as t

from .._base.types import Mapping

Version = tuple[int, int]
#: From this branch on NVIDIA has the open kernel modules only.
OPEN_ONLY_BRANCH: t.Final = 620
#: What nvidia_driver takes where no card says otherwise.
USUAL_BRANCH: t.Final = 580


class Architecture(t.NamedTuple):
    """A generation: driver branches (None: no limit that matters), and whether open and closed modules drive it."""

    name: str
    first_branch: int | None
    last_branch: int | None
    open_modules: bool
    closed_modules: bool


_FERMI = Architecture("Fermi", None, 390, False, True)
_KEPLER = Architecture("Kepler", None, 470, False, True)
_MAXWELL = Architecture("Maxwell", None, 580, False, True)
_PASCAL = Architecture("Pascal", None, 580, False, True)
_VOLTA = Architecture("Volta", None, 580, False, True)
_TURING = Architecture("Turing", None, None, True, True)
_AMPERE = Architecture("Ampere", None, None, True, True)
_ADA = Architecture("Ada", 525, None, True, True)
_HOPPER = Architecture("Hopper", 525, None, True, True)
_BLACKWELL = Architecture("Blackwell", 570, None, True, False)

#: First and last CUDA release that compiles for a compute capability; None: still does.
TARGETS: t.Final[dict[str, tuple[Version, Version | None]]] = {
    "2.0": ((3, 0), (8, 0)), "2.1": ((3, 2), (8, 0)),
    "3.0": ((5, 0), (10, 2)), "3.5": ((5, 0), (11, 8)), "3.7": ((6, 5), (11, 8)),
    "5.0": ((6, 5), (12, 9)), "5.2": ((6, 5), (12, 9)),
    "6.0": ((8, 0), (12, 9)), "6.1": ((8, 0), (12, 9)), "7.0": ((9, 0), (12, 9)),
    "7.5": ((10, 0), None), "8.0": ((11, 0), None), "8.6": ((11, 1), None), "8.9": ((11, 8), None),
    "9.0": ((11, 8), None), "10.0": ((12, 8), None), "10.3": ((12, 9), None), "12.0": ((12, 8), None),
}  # fmt: skip

#: (first id, last id, architecture, compute capability), in order and without overlaps.
_RANGES: t.Final = (
    (0x06C0, 0x06DF, _FERMI, "2.0"), (0x0DC0, 0x0F06, _FERMI, "2.1"), (0x0FC0, 0x0FFF, _KEPLER, "3.0"),
    (0x1001, 0x102C, _KEPLER, "3.5"), (0x102D, 0x102D, _KEPLER, "3.7"), (0x102E, 0x103F, _KEPLER, "3.5"),
    (0x1040, 0x107D, _FERMI, "2.1"), (0x1080, 0x109B, _FERMI, "2.0"), (0x1140, 0x1140, _FERMI, "2.1"),
    (0x1180, 0x11FF, _KEPLER, "3.0"), (0x1200, 0x1251, _FERMI, "2.1"), (0x1280, 0x12BF, _KEPLER, "3.5"),
    (0x1340, 0x13AC, _MAXWELL, "5.0"), (0x13AF, 0x13BD, _MAXWELL, "5.0"), (0x13BE, 0x1436, _MAXWELL, "5.2"),
    (0x15C2, 0x15FF, _PASCAL, "6.0"), (0x1613, 0x1676, _MAXWELL, "5.2"), (0x1725, 0x172F, _PASCAL, "6.0"),
    (0x174D, 0x179C, _MAXWELL, "5.0"), (0x17C2, 0x17FD, _MAXWELL, "5.2"), (0x1AF1, 0x1AF1, _AMPERE, "8.0"),
    (0x1B00, 0x1D56, _PASCAL, "6.1"), (0x1D81, 0x1DF6, _VOLTA, "7.0"), (0x1E02, 0x1FF9, _TURING, "7.5"),
    (0x2080, 0x20FF, _AMPERE, "8.0"), (0x2182, 0x21D1, _TURING, "7.5"), (0x2200, 0x223F, _AMPERE, "8.6"),
    (0x22A3, 0x22A3, _HOPPER, "9.0"), (0x2302, 0x23F0, _HOPPER, "9.0"), (0x2414, 0x25FB, _AMPERE, "8.6"),
    (0x2681, 0x28F8, _ADA, "8.9"), (0x2900, 0x29F1, _BLACKWELL, "10.0"), (0x2B85, 0x2DF9, _BLACKWELL, "12.0"),
    (0x2F04, 0x2F58, _BLACKWELL, "12.0"), (0x3180, 0x323E, _BLACKWELL, "10.3"),
)  # fmt: skip


class Card(t.NamedTuple):
    """A card by its PCI slot. Without a known device id the architecture is None and the capability ""."""

    address: str
    label: str  # as sentences name it
    architecture: Architecture | None
    compute_capability: str


class Needs(t.NamedTuple):
    """What one driver and one toolkit must be to serve all cards; None where the cards leave that open.

    C(problem) is one sentence where no single choice serves them all, without what to do about it, or "".
    C(unknown) names the cards that the table does not know; nothing is derived from them.
    """

    first_branch: int | None
    last_branch: int | None
    open_modules: bool | None
    first_cuda: Version | None
    last_cuda: Version | None
    problem: str
    unknown: list[str]


def of_id(device_id: t.Any) -> tuple[Architecture, str] | None:
    """Return architecture and compute capability of a PCI device id ("0x2204", "2204" or a number), or None."""
    try:
        number = device_id if isinstance(device_id, int) else int(str(device_id), 16)
    except ValueError:
        return None
    return next(((kind, capability) for first, last, kind, capability in _RANGES if first <= number <= last), None)


def cards(devices: t.Sequence[Mapping], left_out: t.Collection[str] = ()) -> list[Card]:
    """Return the cards among entries of host_hardware.nvidia_devices that this host's driver has to serve.

    Without those in slots that are left out, and those that a virtual machine has (vfio-pci).
    """
    out = {same_slot(address) for address in left_out}
    return [
        _card(device)
        for device in devices
        if same_slot(device["address"]) not in out and device.get("driver") != "vfio-pci"
    ]


def _card(device: Mapping) -> Card:
    known = of_id(device["device_id"])
    number = str(device["device_id"] or "without a device id").removeprefix("0x")
    kind = f"{known[0].name}, " if known else ""
    label = f"{device.get('name') or f'card 10de:{number}'} ({kind}{device['address']})"
    return Card(device["address"], label, known[0] if known else None, known[1] if known else "")


def same_slot(address: str) -> str:
    """Return a PCI address in one form: NVML writes the domain with eight digits, and people leave it out."""
    domain, _colon, rest = address.strip().lower().rpartition(":")[0].rpartition(":")
    slot = f"{rest}:{address.strip().lower().rpartition(':')[2]}"
    try:
        return f"{int(domain or '0', 16):04x}:{slot}"
    except ValueError:
        return address


def capabilities(gpus: Mapping | None, found: t.Sequence[Card]) -> list[str]:
    """Return the compute capabilities of a host's cards, sorted as numbers, each once.

    NVML (the fact mixed_gpu_gpus) is believed where it sees all cards; else the device ids speak for those it misses.
    """
    said = {gpu["compute_capability"] for gpu in (gpus or {}).get("gpus") or [] if gpu["compute_capability"]}
    if not (gpus and gpus["available"]):
        said |= {card.compute_capability for card in found if card.compute_capability}
    return sorted(said, key=version)


def targets(gpus: Mapping, found: t.Sequence[Card]) -> list[str] | None:
    """Return the compute capabilities of a host's cards without their dot, to compile for; None where one is unknown.

    C(gpus) is what the driver says (fact mixed_gpu_gpus), C(found) what the PCI bus does.
    """
    known = gpus["available"] or (found and all(card.compute_capability for card in found))
    return [capability.replace(".", "") for capability in capabilities(gpus, found)] if known else None


def version(text: str) -> Version:
    """Return the two numbers of a compute capability or of a CUDA release such as 12.8 or 13.0.2."""
    first, second = text.split(".")[:2]
    return int(first), int(second)


def words(number: Version) -> str:
    """Return a version as text: 12.8."""
    return f"{number[0]}.{number[1]}"


def needs(found: t.Sequence[Card]) -> Needs:
    """Return what driver, kernel modules and toolkit must be for all of these cards."""
    known = [card for card in found if card.architecture]
    kinds = [card.architecture for card in known if card.architecture]
    first = max((kind.first_branch for kind in kinds if kind.first_branch), default=None)
    last = min((kind.last_branch for kind in kinds if kind.last_branch), default=None)
    only_open = [card for card in known if card.architecture and not card.architecture.closed_modules]
    only_closed = [card for card in known if card.architecture and not card.architecture.open_modules]
    first_cuda, last_cuda = cuda_range([card.compute_capability for card in known])
    return Needs(
        first,
        last,
        True if only_open else False if only_closed else None,
        first_cuda,
        last_cuda,
        _problem(known, only_open, only_closed, first, last),
        [card.label for card in found if not card.architecture],
    )


def _problem(
    known: t.Sequence[Card],
    only_open: t.Sequence[Card],
    only_closed: t.Sequence[Card],
    first: int | None,
    last: int | None,
) -> str:
    """Return why no driver serves all of these cards, or ""."""
    if only_open and only_closed:
        return (
            f"No driver serves both the {only_open[0].label}, which needs the open kernel modules, and "
            f"the {only_closed[0].label}, which needs the closed ones"
        )
    ended = [card for card in known if card.architecture and (card.architecture.last_branch or 580) < USUAL_BRANCH]
    if ended:
        branch = ended[0].architecture.last_branch if ended[0].architecture else None
        return f"No driver that is still maintained serves the {ended[0].label}: branch {branch} was its last"
    if first and last and first > last:
        return f"No driver serves all cards: some need branch {first} or later, and others {last} or earlier"
    return ""


def cuda_range(wanted: t.Iterable[str]) -> tuple[Version | None, Version | None]:
    """Return the first and the last CUDA release that compiles for all of these compute capabilities (None: open).

    A capability that the table does not know, such as that of a card newer than it, limits nothing.
    """
    limits = [TARGETS[capability] for capability in wanted if capability in TARGETS]
    return max((first for first, _last in limits), default=None), min(
        (last for _first, last in limits if last), default=None
    )


def target_problem(release: str, wanted: t.Iterable[str]) -> str:
    """Return why a CUDA release does not compile for one of these compute capabilities, or "" (no full stop)."""
    cuda = version(release)
    for capability in wanted:
        first, last = TARGETS.get(capability, ((0, 0), None))
        if cuda < first:
            return f"CUDA {release} has no target for compute capability {capability}, which begins with {words(first)}"
        if last and cuda > last:
            return f"CUDA {release} has no target for compute capability {capability}, which ended with {words(last)}"
    return ""
