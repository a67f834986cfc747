# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the variables of the roles must not be, said before anything is built. Private. Pure functions only."""

from __future__ import annotations

import re
import typing as t

from .._base import access_key, addresses, escaping
from .._base.errors import UserError

Variables = t.Mapping[str, t.Any]

#: Roles of servers that have a host, a key and networks.
SERVERS: t.Final = ("llama_server", "exllamav2")

# Values that a command line or an environment carries, line breaks and tabs included.
_OF_SEVERAL_LINES: t.Final = re.compile(r"llama_server_extra_arguments|.*environment")
#: Flags of llama-server that the role sets from a variable of its own.
_OWN_FLAGS: t.Final = {
    "--host": "llama_server_host", "--port": "llama_server_port", "--alias": "llama_server_alias",
    "-a": "llama_server_alias", "--api-key": "llama_server_api_key", "--api-key-file": "llama_server_api_key",
    "--cors-origins": "llama_server_cors_origins", "-m": "split_tuning_model_id", "--model": "split_tuning_model_id",
}  # fmt: skip
# Texts of these roles go to pages of the controller, which escape them.
_PAGES: t.Final = ("report_",)
_SECRET: t.Final = re.compile(r".*_(key|token)")


def problems(variables: Variables) -> list[str]:
    """Return one sentence per value that cannot be used; `variables` holds those that the inventory sets, by name."""
    found = [*_control_characters(variables), *_hosts(variables), *_keys(variables), *_networks(variables)]
    return list(dict.fromkeys([*found, *_flags(variables)]))


def _flags(variables: Variables) -> t.Iterator[str]:
    """Yield what is set past its own variable, and so past the checks of that."""
    name = "llama_server_extra_arguments"
    given = variables.get(name)
    for word in given if isinstance(given, list) else [given]:
        flag = str(word).split("=", 1)[0].split(" ", 1)[0]
        if flag in _OWN_FLAGS:
            yield f"{name} has {flag}: set {_OWN_FLAGS[flag]} instead."


def _control_characters(variables: Variables) -> t.Iterator[str]:
    for name, value in variables.items():
        if name.startswith(_PAGES):
            continue
        for path, text, several in _texts(value, name, _OF_SEVERAL_LINES.fullmatch(name) is not None):
            secret = _SECRET.fullmatch(name) is not None
            yield from _said(escaping.refuse_controls, text, path, "\n\t" if several else "", secret)


def _texts(value: t.Any, path: str, several: bool) -> t.Iterator[tuple[str, str, bool]]:
    """Yield (where, text, may have several lines) of every text in a value, keys of dicts included."""
    if isinstance(value, str):
        yield path, value, several
    elif isinstance(value, t.Mapping):
        for key, inner in value.items():
            yield f"a key of {path}", str(key), False
            yield from _texts(inner, f"{path}.{key}", several or _OF_SEVERAL_LINES.fullmatch(str(key)) is not None)
    elif isinstance(value, (list, tuple)):
        for index, inner in enumerate(value):
            yield from _texts(inner, f"{path}[{index}]", several)


def _hosts(variables: Variables) -> t.Iterator[str]:
    for name in (f"{server}_host" for server in SERVERS):
        if name in variables:
            yield from _said(addresses.check_host, variables[name], name)
    for device in _rpc_devices(variables):
        if "host" in device:
            check = addresses.check_host if addresses.is_loopback(str(device["host"])) else addresses.check_lent
            yield from _said(check, device["host"], f"host of {device.get('name')} in llama_rpc_devices")
    if lent := variables.get("llama_rpc_address"):
        yield from _said(addresses.check_lent, lent, "llama_rpc_address")


def _keys(variables: Variables) -> t.Iterator[str]:
    """Yield what is wrong with keys, and with a server for other hosts that asks for none."""
    for server in SERVERS:
        name, host = f"{server}_api_key", variables.get(f"{server}_host", addresses.LOOPBACK)
        key = variables.get(name, "")
        if problem := access_key.problem(key, name):
            yield problem
        elif not access_key.wanted(key) and not addresses.is_loopback(str(host)):
            yield (
                f"{server}_host is {host}, which other hosts reach, and {name} is {access_key.NONE}: leave the key "
                f"empty for a generated one, or set {server}_host to 127.0.0.1."
            )


def _networks(variables: Variables) -> t.Iterator[str]:
    """Yield what is wrong with networks, and with RPC servers that other hosts reach."""
    for name in (f"{role}_allowed_networks" for role in (*SERVERS, "llama_rpc")):
        if name in variables:
            yield from _said(addresses.networks, variables[name], name)
    for device in _rpc_devices(variables):
        host = str(device.get("host", addresses.LOOPBACK))
        if addresses.is_loopback(host):
            continue
        start = f"The RPC server {device.get('name')} is to bind to {host}, which other hosts reach"
        if not variables.get("llama_rpc_allowed_networks"):
            yield (
                f"{start}, and llama_rpc_allowed_networks is empty; its protocol has no authentication, so set the"
                " list to the addresses of the hosts that use it, such as [192.168.1.5], or use 127.0.0.1."
            )


def _rpc_devices(variables: Variables) -> list[Variables]:
    devices = variables.get("llama_rpc_devices")
    return [device for device in devices if isinstance(device, t.Mapping)] if isinstance(devices, list) else []


def _said(check: t.Callable[..., t.Any], *arguments: t.Any) -> t.Iterator[str]:
    """Yield the sentence of a check that refuses."""
    try:
        check(*arguments)
    except UserError as error:
        yield str(error)
