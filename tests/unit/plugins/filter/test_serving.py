# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter import serving

FILTERS = serving.FilterModule().filters()


def test_values_are_written_for_their_place():
    assert FILTERS["escaped"]('100% of "it"', "argument", "x") == '"100%% of \\"it\\""'
    assert FILTERS["assignments"]({"B": 1, "A": "a b"}, "x") == ['"A=a b"', "B=1"]


def test_a_key_is_given_generated_or_not_wanted():
    assert FILTERS["api_key"]("") == {"wanted": True, "given": ""}
    assert FILTERS["api_key"]("none") == {"wanted": False, "given": ""}
    assert FILTERS["api_key"]("0123456789abcdef") == {"wanted": True, "given": "0123456789abcdef"}


def test_a_unit_talks_to_this_host_and_named_networks():
    devices = [{"name": "a", "port": 1}, {"name": "b", "port": 2, "host": "10.0.0.7"}]
    servers = FILTERS["rpc_servers"](devices, "", {}, ["10.0.0.5"])
    assert [server["networks"] for server in servers] == [["localhost"], ["10.0.0.5/32"]]
    cards = {"mixed_gpu_gpus": {"gpus": [{"id": "GPU-a"}]}}
    assert FILTERS["rpc_servers"]([], "10.0.0.7", cards, ["10.0.0.5"])[0]["endpoint"] == "10.0.0.7:50052"


@pytest.mark.parametrize(
    ("name", "arguments", "sentence"),
    [
        ("escaped", ["a\nb", "text", "some_variable"], "some_variable contains a line break"),
        ("escaped", ["a", "yaml", "x"], "yaml is no form of escaping"),
        ("assignments", [{"A B": "1"}, "some_variable"], "some_variable sets the variable 'A B'"),
        ("assignments", [7, "x"], "not iterable"),
        ("api_key", ["short"], "The API key has 5 characters"),
        ("rpc_servers", [[{"name": "a", "port": 1}], "10.0.0.7", {}, ["lan"]], "the entry 'lan', which"),
    ],
)
def test_what_cannot_be_written_is_one_sentence(name, arguments, sentence):
    with pytest.raises(AnsibleFilterError, match=sentence):
        FILTERS[name](*arguments)
