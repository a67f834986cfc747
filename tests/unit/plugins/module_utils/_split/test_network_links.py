# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import network_links

#: A 70B: 32 KiB of activations per token, 128256 words.
MODEL = {"embedding_length": 8192, "vocabulary_size": 128256}
GIGABIT = {"protocol": "7.0.0", "round_trip_ms": 0.4, "to_mb_per_s": 117.0, "from_mb_per_s": 117.0}
IDS = ["10.0.0.2:50052", "GPU-a"]
LINKS = {IDS[0]: GIGABIT}
DEVICES = [{"id": identity} for identity in IDS]


def decided(layers, **more):
    """Return a decision."""
    return {
        "layers": layers, "micro_batch_size": 512, "mib": [20480, 20480], "decode_tokens_per_second": 20.0,
        "prefill_tokens_per_second": 800.0, **more,
    }  # fmt: skip


def test_only_other_hosts_are_remote():
    assert network_links.remote(["127.0.0.1:1", "10.0.0.2:2", "localhost:3"]) == ["10.0.0.2:2"]


def test_a_token_and_a_micro_batch_cross_to_the_lender_and_back():
    found = network_links.cost(MODEL, [40, 41], IDS, LINKS, 512)
    crossing = 32768 / 117e3
    assert found.token_ms == pytest.approx(0.4 + 2 * crossing)
    assert found.micro_batch_ms == pytest.approx(0.4 + 2 * 512 * crossing)


def test_the_logits_of_a_last_device_elsewhere_cost_each_token_more():
    there = network_links.cost(MODEL, [41, 40], list(reversed(IDS)), LINKS, 512)
    here = network_links.cost(MODEL, [40, 41], IDS, LINKS, 512)
    assert there.token_ms - here.token_ms == pytest.approx(4 * (128256 - 8192) / 117e3)
    assert there.micro_batch_ms < here.micro_batch_ms


def test_a_device_without_layers_and_one_of_this_host_cost_nothing():
    assert network_links.cost(MODEL, [0, 81], IDS, LINKS, 512) == (0.0, 0.0)
    assert network_links.cost(MODEL, [40, 41], IDS, {}, 512) == (0.0, 0.0)


def test_it_is_said_what_the_network_costs_and_what_it_buys():
    found = network_links.worth(decided([40, 41]), MODEL, DEVICES, LINKS, 2048)
    assert found is not None and found["mib"] == 20480
    assert found["decode_percent"] == pytest.approx(100 * (0.4 + 2 * 32768 / 117e3) / 50)
    batches, prompt_ms = 4, 1000 * 2048 / 800
    assert found["prefill_percent"] == pytest.approx(100 * batches * (0.4 + 2 * 512 * 32768 / 117e3) / prompt_ms)
    assert found["why"] == "the 1 GbE link (0.4 ms) costs 45 % of prompts and 2 % of decode; it buys 20.0 GiB of memory"


def test_a_lender_that_cannot_help_is_said():
    found = network_links.worth(decided([0, 81]), MODEL, DEVICES, LINKS, 2048)
    assert found is not None and found["mib"] == 0
    assert found["why"] == "the devices of other hosts hold no layer: over the 1 GbE link (0.4 ms) they would not help"
    assert network_links.worth(decided([40, 41]), MODEL, DEVICES, {}, 2048) is None


@pytest.mark.parametrize(
    ("rate", "name"), [(117, "1 GbE"), (290, "2.5 GbE"), (11.5, "0.1 GbE"), (1180, "10 GbE"), (50, "0.4 Gbit/s")]
)
def test_a_link_has_its_usual_name(rate, name):
    link = {**GIGABIT, "from_mb_per_s": rate, "to_mb_per_s": rate * 1.05}
    assert network_links.named(link) == f"{name} link (0.4 ms)"
