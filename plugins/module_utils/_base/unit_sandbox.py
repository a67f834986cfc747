# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The sandbox of the programs that read models and talk to devices: one list. Private to this collection. Pure.

The units that serve are rendered from it (filter unit_sandbox), and sandboxed_run measures in it: what is measured is
what is served, and what is not trusted never runs as root.
"""

from __future__ import annotations

import typing as t

#: What a unit has to let through for the devices of a backend; CPU and RPC devices need no device node.
DEVICE_NODES: t.Final[dict[str, tuple[str, ...]]] = {
    "CUDA": ("char-nvidia*",),
    "Vulkan": ("char-drm", "char-nvidia*"),
    "ROCm": ("char-drm", "char-kfd"),
}
#: Every node that some backend needs, for a program that says which devices there are.
ALL_NODES: t.Final = ("char-nvidia*", "char-drm", "char-kfd")

_ENGINES: t.Final = ("llama_cpp", "exllama")
#: What every unit of this collection that runs something has, the servers as well as those that stay root.
EVERY_UNIT: t.Final = (
    "UMask=0077",
    "NoNewPrivileges=yes",
    "AmbientCapabilities=",
    "SystemCallArchitectures=native",
    "SystemCallFilter=@system-service",
    "SystemCallErrorNumber=EPERM",
    "ProtectSystem=strict",
    "PrivateMounts=yes",
    "ProtectProc=invisible",
    "ProtectClock=yes",
    "ProtectControlGroups=yes",
    "ProtectHostname=yes",
    "ProtectKernelLogs=yes",
    "ProtectKernelModules=yes",
    "ProtectKernelTunables=yes",
    "RestrictNamespaces=yes",
    "RestrictRealtime=yes",
    "RestrictSUIDSGID=yes",
    "LockPersonality=yes",
    "KeyringMode=private",
)
_COMMON: t.Final = (
    *EVERY_UNIT,
    "DynamicUser=yes",
    "LimitCORE=0",
    "CapabilityBoundingSet=",
    "ProtectHome=yes",
    "PrivateTmp=yes",
    "RemoveIPC=yes",
)


def nodes(devices: t.Iterable[str]) -> list[str]:
    """Return the device nodes for devices as llama.cpp names them (C(CUDA0)) or for backends (C(CUDA))."""
    found = [node for name in devices for node in DEVICE_NODES.get(name.rstrip("0123456789"), ())]
    return list(dict.fromkeys(found))


def uses_nccl(device_nodes: t.Collection[str], split_mode: str) -> bool:
    """Return whether NCCL may run: cards that share layers."""
    return "char-nvidia*" in device_nodes and split_mode == "tensor"


def lines(
    engine: str, device_nodes: t.Collection[str], networks: t.Collection[str], nccl: bool = False
) -> list[str]:
    """Return the directives C(NAME=value) of a [Service] section, in order.

    C(engine) is llama_cpp or exllama; C(networks) are addresses that may be talked to, all where it is empty. C(nccl)
    is for NCCL, which lists the host's interfaces by netlink. Raises ValueError for another engine.
    """
    if engine not in _ENGINES:
        raise ValueError(f"the engine {engine!r} is unknown: {' or '.join(_ENGINES)}")
    found = list(_COMMON)
    # the driver of a GPU sets memory policy and affinity
    found.append("SystemCallFilter=~@privileged" + ("" if device_nodes else " @resources"))
    # PyTorch compiles kernels while it runs (oneDNN, Triton), and reads /proc/cpuinfo and /proc/meminfo
    if engine == "llama_cpp":
        found.append("MemoryDenyWriteExecute=yes")
    if device_nodes:
        # PrivateDevices=yes would hide the cards, ProcSubset=pid what their driver reads below /proc
        found += ["DevicePolicy=closed", *(f"DeviceAllow={node} rw" for node in device_nodes)]
    else:
        found += ["PrivateDevices=yes", *(["ProcSubset=pid"] if engine == "llama_cpp" else [])]
    found.append("RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX" + (" AF_NETLINK" if nccl else ""))
    if nccl:
        # else NCCL begins with an interface that the address filter closes
        found.append("Environment=NCCL_SOCKET_IFNAME=lo")
    if networks:
        # a line each: systemd-run takes a word such as localhost alone only
        found += ["IPAddressDeny=any", *(f"IPAddressAllow={one}" for one in networks)]
    return found


def build_lines(unit: str, writable: t.Sequence[str], network: bool) -> list[str]:
    """Return the directives of a unit in which a program builds: no privileges, no devices, no network unless asked.

    It writes to the folders C(writable), which exist and are given to its user first. Others can read what it makes.
    """
    own = [line for line in _COMMON if not line.startswith("UMask=")]
    folders = " ".join(f'"{folder}"' for folder in writable)
    # not StateDirectory=: ccache's files are where the owner wants them, and the build beside its source, as ccache
    # knows it. systemd alone knows the user that it made up.
    user = f"$$(systemctl show --value --property=UID {unit})"
    closed = ["PrivateNetwork=yes", "IPAddressDeny=any", "RestrictAddressFamilies=AF_UNIX"]
    # netlink: the C library asks it which kinds of addresses the host has before it resolves a name
    opened = ["RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK"]
    return [
        *own,
        "UMask=0022",
        "SystemCallFilter=~@privileged",
        "PrivateDevices=yes",
        *(opened if network else closed),
        f"ReadWritePaths={folders}",
        f"ExecStartPre=+/bin/sh -c 'chown -R {user} {folders}'",
    ]


def cache_environment(engine: str, directory: str) -> dict[str, str]:
    """Return the variables that keep what is compiled for the cards in a cache directory."""
    found = {"CUDA_CACHE_PATH": directory, "XDG_CACHE_HOME": directory}
    if engine == "exllama":
        found |= {
            "HOME": directory,
            "TRITON_CACHE_DIR": f"{directory}/triton",
            "TORCHINDUCTOR_CACHE_DIR": f"{directory}/inductor",
        }
    return found


def cache_lines(engine: str, name: str) -> list[str]:
    """Return the directives of a cache directory below /var/cache for what is compiled for the cards."""
    given = cache_environment(engine, f"/var/cache/{name}")
    return [
        f"CacheDirectory={name}",
        "CacheDirectoryMode=0700",
        *(f"Environment={key}={value}" for key, value in given.items()),
    ]


def command(unit: t.Sequence[str], properties: t.Sequence[str], program: t.Sequence[str]) -> list[str]:
    """Return the command that runs a program in a unit of these properties, with its streams and its exit status.

    C(unit) is the path of systemd-run with more options of it.
    """
    given = [word for value in properties for word in ("-p", value)]
    return [*unit, "--pipe", "--wait", "--collect", "--quiet", *given, "--", *program]
