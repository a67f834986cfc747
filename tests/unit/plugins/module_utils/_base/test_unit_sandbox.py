# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The one list of the sandbox, and the units that are rendered from it."""

from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_sandbox

ROOT = pathlib.Path(__file__).parents[5]
TEMPLATES = (
    "llama_server/templates/llama-server.service.j2",
    "llama_rpc/templates/ggml-rpc-server.service.j2",
    "exllamav2/templates/exllama-server.service.j2",
)


@pytest.mark.parametrize(
    ("devices", "nodes"),
    [
        (["CUDA0", "CUDA1"], ["char-nvidia*"]),
        (["RPC0", "CPU"], []),
        (["RPC0", "Vulkan0"], ["char-drm", "char-nvidia*"]),
        (["ROCm"], ["char-drm", "char-kfd"]),
    ],
)
def test_nodes_follow_the_devices(devices, nodes):
    assert unit_sandbox.nodes(devices) == nodes
    assert set(nodes) <= set(unit_sandbox.ALL_NODES)


def test_without_cards_there_are_no_devices():
    lines = unit_sandbox.lines("llama_cpp", [], ["localhost"])
    assert {"DynamicUser=yes", "PrivateDevices=yes", "ProcSubset=pid", "MemoryDenyWriteExecute=yes"} <= set(lines)
    assert "SystemCallFilter=~@privileged @resources" in lines
    assert lines[-2:] == ["IPAddressDeny=any", "IPAddressAllow=localhost"]
    assert not [line for line in lines if line.startswith("DeviceAllow")]


def test_cards_are_let_through_and_nothing_else():
    lines = unit_sandbox.lines("llama_cpp", ["char-nvidia*"], [])
    assert {"DevicePolicy=closed", "DeviceAllow=char-nvidia* rw", "SystemCallFilter=~@privileged"} <= set(lines)
    assert not {"PrivateDevices=yes", "ProcSubset=pid"} & set(lines)
    assert not [line for line in lines if line.startswith("IPAddress")]


def test_pytorch_may_compile_while_it_runs():
    ours, theirs = (set(unit_sandbox.lines(engine, ["char-nvidia*"], [])) for engine in ("llama_cpp", "exllama"))
    assert ours - theirs == {"MemoryDenyWriteExecute=yes"} and theirs < ours


def test_nccl_may_list_the_interfaces_where_cards_share_layers():
    assert unit_sandbox.uses_nccl(["char-nvidia*"], "tensor")
    assert not unit_sandbox.uses_nccl([], "tensor")
    assert not unit_sandbox.uses_nccl(["char-nvidia*"], "layer")
    more = set(unit_sandbox.lines("llama_cpp", ["char-nvidia*"], [], nccl=True))
    more -= set(unit_sandbox.lines("llama_cpp", ["char-nvidia*"], []))
    assert more == {"RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK", "Environment=NCCL_SOCKET_IFNAME=lo"}


def test_a_cache_directory_is_told_to_what_compiles():
    lines = unit_sandbox.cache_lines("exllama", "exllama-server")
    assert lines[:2] == ["CacheDirectory=exllama-server", "CacheDirectoryMode=0700"]
    assert "Environment=HOME=/var/cache/exllama-server" in lines
    assert "HOME" not in unit_sandbox.cache_environment("llama_cpp", "/var/cache/x")


def test_another_engine_is_refused():
    with pytest.raises(ValueError, match="the engine 'vllm' is unknown: llama_cpp or exllama"):
        unit_sandbox.lines("vllm", [], [])


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_units_that_serve_have_no_sandbox_of_their_own(template):
    text = (ROOT / "roles" / template).read_text(encoding="utf-8")
    assert "homelab.mixed_gpu.unit_sandbox(" in text
    names = {line.partition("=")[0] for line in unit_sandbox.lines("llama_cpp", ["char-nvidia*"], ["localhost"])}
    names |= {"PrivateDevices", "ProcSubset"}
    own = {line.partition("=")[0] for line in text.splitlines() if "=" in line and not line.startswith(("{", "#"))}
    assert own & names == set()


def test_what_builds_has_no_network_and_writes_where_it_may():
    lines = unit_sandbox.build_lines("u.service", ["/opt/build", "/var/cache/ccache"], network=False)
    closed = {"DynamicUser=yes", "PrivateNetwork=yes", "PrivateDevices=yes", "RestrictAddressFamilies=AF_UNIX"}
    assert closed <= set(lines)
    assert 'ReadWritePaths="/opt/build" "/var/cache/ccache"' in lines
    assert "UMask=0022" in lines and "UMask=0077" not in lines
    fetching = unit_sandbox.build_lines("u.service", ["/opt/build", "/var/cache/ccache"], network=True)
    assert {line for line in lines if line not in fetching} == {
        "PrivateNetwork=yes", "IPAddressDeny=any", "RestrictAddressFamilies=AF_UNIX",
    }  # fmt: skip
    assert [line for line in fetching if line not in lines] == [
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK"
    ]
    before = lines[-1]
    assert before.startswith("ExecStartPre=+/bin/sh -c 'chown -R $$(systemctl show") and "u.service" in before
