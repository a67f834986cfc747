# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which addresses a server binds to, and with which networks its unit may talk. Private. Pure functions only."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from .errors import UserError

#: Networks that no router of the internet forwards to (RFC 1918, RFC 4193, and the link itself).
PRIVATE: t.Final = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "169.254.0.0/16", "fc00::/7", "fe80::/10")
#: systemd's word for 127.0.0.0/8 and ::1.
LOOPBACK: t.Final = "localhost"

_LOOPBACK_NETWORK: t.Final = ipaddress.ip_network("127.0.0.0/8")
_HOST_NAME: t.Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]*[A-Za-z0-9])?)*")


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return None


def is_loopback(host: str) -> bool:
    """Return whether only programs of the same host reach a server that binds to this address or name."""
    found = _address(host)
    return host == LOOPBACK if found is None else found.is_loopback


def host_of(endpoint: str) -> str:
    """Return the host of C(host:port)."""
    return endpoint.rpartition(":")[0]


def check_host(host: t.Any, name: str) -> None:
    """Raise UserError, which names the variable, for what is neither an address nor the name of a host."""
    number_like = isinstance(host, str) and re.fullmatch(r"[0-9.]+", host)
    named = isinstance(host, str) and _HOST_NAME.fullmatch(host) and not number_like
    if not (isinstance(host, str) and (_address(host) or named)):
        raise UserError(f"{name} is {str(host)[:60]!r}; write an IP address, such as 127.0.0.1, or a host name.")


def network(value: t.Any, name: str) -> str:
    """Return a network as systemd reads it. Raises UserError, which names the variable, for anything else."""
    try:
        return str(ipaddress.ip_network(value if isinstance(value, str) else ""))
    except ValueError as exc:
        hint = f" ({exc})" if "host bits" in str(exc) else ""
        raise UserError(
            f"{name} has the entry {str(value)[:60]!r}, which is no network{hint}; write one such as 192.168.1.0/24."
        ) from exc


def networks(values: t.Any, name: str) -> list[str]:
    """Return the networks of a variable. Raises UserError, which names the variable."""
    if not isinstance(values, (list, tuple)):
        raise UserError(f"{name} is {str(values)[:60]!r}; write a list of networks, such as [192.168.1.0/24].")
    return [network(value, name) for value in values]


def check_lent(host: t.Any, name: str) -> None:
    """Raise UserError, which names the variable, for an address on which nothing may be lent.

    Whoever reaches an RPC server can run code there, so it listens on one private address, never on all.
    """
    found = _address(host) if isinstance(host, str) else None
    cure = "write the private address of one interface, such as 192.168.1.20"
    if found is None:
        raise UserError(f"{name} is {str(host)[:60]!r}, which is no IP address; {cure}.")
    kinds = {
        "means all interfaces": found.is_unspecified,
        "is reached by the host itself alone": found.is_loopback,
        "is the address of a group": found.is_multicast,
        "is IPv6, and the RPC of llama.cpp speaks IPv4 alone": found.version == 6,
        "is public": found.is_global,
    }
    for kind, holds in kinds.items():
        if holds:
            raise UserError(f"{name} is {host}, which {kind}; {cure}.")


def check_devices(devices: t.Any, address: str, of: str = "") -> None:
    """Raise UserError for an entry of llama_rpc_devices that listens elsewhere than what a host lends on.

    Whoever uses the host is let in by C(address), and reaches nothing else; C(of) names the host, " of pc2".
    """
    for device in devices if isinstance(devices, (list, tuple)) else ():
        host = device.get("host", address) if isinstance(device, t.Mapping) else address
        name = f"host of {device.get('name')} in llama_rpc_devices{of}" if host != address else ""
        if name:
            check_lent(host, name)
            raise UserError(
                f"{name} is {host}, and llama_rpc_address is {address}, which is lent on alone: remove that host."
            )


def clients(values: t.Any, name: str) -> list[str]:
    """Return the networks of those who may use what is lent. Raises UserError, which names the variable.

    A public network, or one with the loopback's addresses, would be no filter.
    """
    found = networks(values, name)
    for one in map(ipaddress.ip_network, found):
        kinds = {
            "has public addresses": one.is_global,
            "has addresses of the host itself": one.version == 4 and one.overlaps(_LOOPBACK_NETWORK),
            "is IPv6, and the RPC of llama.cpp speaks IPv4 alone": one.version == 6,
        }
        for kind, holds in kinds.items():
            if holds:
                raise UserError(f"{name} has the entry {one}, which {kind}; write private addresses of the clients.")
    return found


def allowed(host: str, given: t.Iterable[str], peers: t.Iterable[str] = ()) -> list[str]:
    """Return all that a unit may talk to, for IPAddressAllow=; everything else is denied.

    `host` is what the server binds to, `given` the networks of the variable, `peers` the hosts that the server itself
    connects to. A server for others whose variable is empty gets the private networks.
    """
    given = list(given)
    found = [LOOPBACK, *given]
    for other in (host, *peers):
        known = _address(other)
        if is_loopback(other):
            continue
        if known is None or known.is_unspecified:
            found += [] if given else PRIVATE
        else:
            found.append(str(known))
    if not is_loopback(host) and not given:
        found += PRIVATE
    return list(dict.fromkeys(found))
