# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import addresses
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError


def test_loopback_is_an_address_and_not_the_beginning_of_a_name():
    assert all(addresses.is_loopback(host) for host in ("127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost"))
    others = ("0.0.0.0", "::", "127.0.0.1.evil.example", "127.0.0.1\n", "localhost.", "192.168.1.5", "127.1", "")
    assert not any(addresses.is_loopback(host) for host in others)


@pytest.mark.parametrize("host", ["127.0.0.1", "::", "[fd00::5]", "box", "box.home-lab.lan", "0.0.0.0"])
def test_a_server_binds_to_an_address_or_a_name(host):
    addresses.check_host(host, "x")


@pytest.mark.parametrize("host", ["", "192.168.*", "127.1", "1.2.3.400", "a b", "a\n", "-a", "10.0.0.0/8", None, 7])
def test_anything_else_is_refused_by_name(host):
    with pytest.raises(UserError, match="^some_host is .*; write an IP address"):
        addresses.check_host(host, "some_host")


@pytest.mark.parametrize("value", ["10.0.0.0/8", "192.168.1.5", "fd00::/8", "0.0.0.0/0"])
def test_networks_are_read(value):
    found = addresses.networks([value], "x")
    assert found and found[0].startswith(value.partition("/")[0])


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        (["10.0.0.1/8"], r"^nets has the entry '10.0.0.1/8', which is no network \(10.0.0.1/8 has host bits"),
        (["10.0.0.0/8\nUser=root"], r"^nets has the entry '10.0.0.0/8\\nUser=root', which is no network; write one"),
        (["localhost"], "no network"), (["any"], "no network"), ([""], "no network"), ([7], "no network"),
        ([None], "no network"), ("10.0.0.0/8", "write a list of networks"), (None, "write a list"),
        ({}, "write a list"),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused_by_name(values, sentence):
    with pytest.raises(UserError, match=sentence):
        addresses.networks(values, "nets")


@pytest.mark.parametrize(
    ("host", "given", "peers", "expected"),
    [
        ("127.0.0.1", [], [], ["localhost"]),
        ("127.0.0.1", [], ["127.0.0.1", "192.168.1.7"], ["localhost", "192.168.1.7"]),
        ("127.0.0.1", [], ["box.lan"], ["localhost", *addresses.PRIVATE]),
        ("0.0.0.0", [], [], ["localhost", *addresses.PRIVATE]),
        ("0.0.0.0", ["10.0.0.0/8"], [], ["localhost", "10.0.0.0/8"]),
        ("192.168.1.5", ["10.0.0.0/8"], ["[fd00::7]"], ["localhost", "10.0.0.0/8", "192.168.1.5", "fd00::7"]),
        ("192.168.1.5", [], [], ["localhost", "192.168.1.5", *addresses.PRIVATE]),
        ("box.lan", ["10.0.0.0/8"], [], ["localhost", "10.0.0.0/8"]),
    ],
)
def test_a_unit_talks_to_those_that_it_has_to(host, given, peers, expected):
    assert addresses.allowed(host, given, peers) == expected
