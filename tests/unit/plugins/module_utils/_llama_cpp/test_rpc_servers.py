# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_servers

CARDS = [{"id": "GPU-a"}, {"id": "GPU-b"}]
BOX = ["192.168.1.5"]


def test_a_host_that_lends_nothing_has_servers_for_itself_alone():
    (found,) = rpc_servers.servers([{"name": "fast", "port": 50052}], "", CARDS, [])
    assert found["unit"] == "ggml-rpc-server-fast.service"
    assert found["endpoint"] == "127.0.0.1:50052" and found["networks"] == ["localhost"] and not found["filtered"]
    assert rpc_servers.servers([], "", CARDS, []) == []


def test_a_lender_lends_each_card_to_its_box_alone():
    found = rpc_servers.servers([], "192.168.1.20", CARDS, BOX)
    assert [one["endpoint"] for one in found] == ["192.168.1.20:50052", "192.168.1.20:50053"]
    assert [one["environment"]["CUDA_VISIBLE_DEVICES"] for one in found] == ["GPU-a", "GPU-b"]
    assert all(one["device"] == "CUDA0" and one["nodes"] == ["char-nvidia*"] for one in found)
    assert all(one["networks"] == ["192.168.1.5/32"] and one["filtered"] for one in found)


def test_a_network_of_clients_and_one_behind_a_tunnel_are_let_in():
    networks = ["192.168.1.0/24", "100.64.0.0/10", "10.8.0.2"]
    found = rpc_servers.servers([], "192.168.1.20", CARDS, networks)
    assert found[0]["networks"] == ["192.168.1.0/24", "100.64.0.0/10", "10.8.0.2/32"]


def test_named_devices_are_lent_instead_of_the_cards():
    (found,) = rpc_servers.servers([{"name": "cpu", "port": 7, "threads": 4}], "192.168.1.20", CARDS, BOX)
    assert found["endpoint"] == "192.168.1.20:7" and found["threads"] == 4 and found["nodes"] == []


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (([], "192.168.1.20", [], BOX), "this host lends nothing: the driver reports no card, and llama_rpc_devices"),
        (([], "192.168.1.20", CARDS, []), "card0 is to bind to 192.168.1.20, and llama_rpc_allowed_networks is empty"),
        (([], "0.0.0.0", CARDS, BOX), "llama_rpc_address is 0.0.0.0, which means all interfaces"),
        (([{"name": "x", "port": 1, "host": "0.0.0.0"}], "", [], BOX), "host of x in llama_rpc_devices is 0.0.0.0"),
        (
            ([{"name": "x", "port": 1, "host": "10.9.0.2"}], "192.168.1.20", [], BOX),
            "host of x in llama_rpc_devices is 10.9.0.2, and llama_rpc_address is 192.168.1.20, which is lent on alone",
        ),
        (([{"name": "a.b", "port": 1}], "", [], []), 'has an entry named "a.b", which cannot be part'),
        (([{"name": "a\n", "port": 1}], "", [], []), "which cannot be part of a unit's name"),
        (([{"name": "a", "port": 1}, {"name": "a", "port": 2}], "", [], []), "the same name; give each its own"),
        (([{"name": "a", "port": 1}, {"name": "b", "port": "1"}], "", [], []), "the same port; give each its own"),
        (([], "192.168.1.20", CARDS, ["0.0.0.0/0"]), "has the entry 0.0.0.0/0, which has public addresses; write"),
        (([], "192.168.1.20", CARDS, [*BOX, "128.0.0.0/1"]), "has the entry 128.0.0.0/1, which has public addresses"),
        (([], "192.168.1.20", CARDS, ["127.0.0.0/8"]), "entry 127.0.0.0/8, which has addresses of the host itself"),
        (([], "192.168.1.20", CARDS, ["fd00::/8"]), "has the entry fd00::/8, which is IPv6, and the RPC of llama.cpp"),
        (([], "192.168.1.20", CARDS, ["lan"]), "llama_rpc_allowed_networks has the entry 'lan', which is no network"),
    ],
)
def test_what_anybody_could_reach_is_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        rpc_servers.servers(*arguments)
