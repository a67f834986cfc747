# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import network_links, split_problem

#: A 70B: 32 KiB of activations per token, 128256 words.
MODEL = {"embedding_length": 8192, "vocabulary_size": 128256, "block_count": 80}
GIGABIT = {
    "protocol": "7.0.0", "round_trip_ms": 0.4, "stalls_ms": 0.0, "to_mb_per_s": 117.0, "from_mb_per_s": 117.0,
}  # fmt: skip
IDS = ["10.0.0.2:50052", "GPU-a"]
LINKS = {IDS[0]: GIGABIT}
DEVICES = [{"id": identity} for identity in IDS]
#: Micro-batches of 512 tokens of a prompt of 512; nothing is cached before.
WORK = network_links.work(512, 512, 0, 0, True)
LONG = network_links.work(2048, 512, 0, 1024, True)


def decided(layers, **more):
    """Return a decision."""
    return {
        "layers": layers, "micro_batch_size": 512, "mib": [20480, 20480], "decode_tokens_per_second": 20.0,
        "prefill_tokens_per_second": 800.0, **more,
    }  # fmt: skip


def test_only_other_hosts_are_remote():
    assert network_links.remote(["127.0.0.1:1", "10.0.0.2:2", "localhost:3"]) == ["10.0.0.2:2"]


def test_a_token_and_a_micro_batch_cross_to_the_lender_and_back():
    found = network_links.cost(MODEL, [40, 41], IDS, LINKS, WORK)
    crossing = 32768 / 117e3
    assert found.token_ms == pytest.approx(0.4 + 2 * crossing)
    mask_and_graph = (512 * 512 * 2 + 40 * network_links.GRAPH_BYTES) / 117e3
    assert found.micro_batch_ms == pytest.approx(0.4 + 2 * 512 * crossing + mask_and_graph)


def test_the_mask_grows_with_what_is_looked_back_on():
    # four micro-batches see 512, 1024, 1536 and 2048 tokens; as counted on the wire with such a prompt
    assert tuple(LONG) == (512, 2 * 1280, 2 * 1024)
    assert network_links.work(2048, 512, 4096, 6300, False) == network_links.Work(512, 4 * (4096 + 1280), 4 * 6400)
    assert network_links.work(100, 512, 0, 10, True) == network_links.Work(100, 2 * 256, 2 * 256)
    more = network_links.cost(MODEL, [40, 41], IDS, LINKS, LONG), network_links.cost(MODEL, [40, 41], IDS, LINKS, WORK)
    assert more[0].micro_batch_ms - more[1].micro_batch_ms == pytest.approx(512 * 2 * (1280 - 512) / 117e3)
    assert more[0].token_ms - more[1].token_ms == pytest.approx(2 * 1024 / 117e3)


def test_the_logits_of_a_last_device_elsewhere_cost_each_token_more():
    there = network_links.cost(MODEL, [41, 40], list(reversed(IDS)), LINKS, WORK)
    here = network_links.cost(MODEL, [40, 41], IDS, LINKS, WORK)
    assert there.token_ms - here.token_ms == pytest.approx(4 * (128256 - 8192) / 117e3)
    assert there.micro_batch_ms < here.micro_batch_ms


def test_of_a_prompt_little_comes_back_where_the_output_layer_alone_follows():
    most, all_but_one = (network_links.cost(MODEL, [80 - n, 1 + n], IDS, LINKS, WORK).micro_batch_ms for n in (0, 1))
    assert all_but_one - most == pytest.approx((512 * 32768 - network_links.GRAPH_BYTES) / 117e3)


def test_a_lender_of_the_output_layer_alone_costs_a_prompt_a_wait():
    found = network_links.costs(MODEL, [80, 1], [None, GIGABIT], network_links.work(2048, 512, 0, 2048, True))[1]
    assert found.micro_batch_ms == pytest.approx(0.4 + 32768 / 117e3)
    assert found.token_ms == pytest.approx(0.4 + 4 * (8192 + 128256) / 117e3)


def test_what_a_device_that_gives_nothing_back_gets_crosses_while_it_computes():
    behind = network_links.costs(MODEL, [41, 40], [None, GIGABIT], WORK)[1]
    front = network_links.costs(MODEL, [40, 41], [GIGABIT, None], WORK)[0]
    assert front.hidden_ms == 0.0
    assert behind.hidden_ms == pytest.approx(network_links.SOCKET_BYTES / 117e3) and behind.micro_batch_ms > 100
    few = network_links.work(64, 512, 0, 0, True)
    small = network_links.costs(MODEL, [41, 40], [None, GIGABIT], few)[1]
    assert small.hidden_ms == pytest.approx(small.micro_batch_ms - 0.4)
    one, four = (
        network_links.worth(decided([41, 40]), MODEL, DEVICES[::-1], LINKS, 512 * batches, WORK) for batches in (1, 4)
    )
    assert one["prefill_percent"] == pytest.approx(behind.micro_batch_ms * 800 / 5120)
    hidden = 3 * behind.hidden_ms
    assert four["prefill_percent"] == pytest.approx((4 * behind.micro_batch_ms - hidden) * 800 / (4 * 5120))


def test_lost_packets_are_said_and_cost_each_wait():
    lossy = {**GIGABIT, "stalls_ms": 8.0}
    found, whole = (network_links.cost(MODEL, [40, 41], IDS, {IDS[0]: link}, WORK) for link in (lossy, GIGABIT))
    assert found.token_ms - whole.token_ms == pytest.approx(8.0)
    assert found.micro_batch_ms - whole.micro_batch_ms == pytest.approx(8.0)
    assert network_links.named(lossy) == "1 GbE link (0.4 ms, loses packets)"


def test_each_device_has_its_own_part():
    found = network_links.costs(MODEL, [20, 20, 41], [GIGABIT, GIGABIT, None], WORK)
    assert found[0] == found[1] and found[2] == (0.0, 0.0, 0.0)


def test_a_device_without_layers_and_one_of_this_host_cost_nothing():
    assert network_links.cost(MODEL, [0, 81], IDS, LINKS, WORK) == (0.0, 0.0, 0.0)
    assert network_links.cost(MODEL, [40, 41], IDS, {}, WORK) == (0.0, 0.0, 0.0)


def test_it_is_said_what_the_network_costs_and_what_it_buys():
    found = network_links.worth(decided([40, 41]), MODEL, DEVICES, LINKS, 2048, LONG)
    assert found["mib"] == 20480
    assert found["decode_percent"] == pytest.approx(100 * (0.4 + (2 * 32768 + 2048) / 117e3) / 50)
    batches, prompt_ms = 4, 1000 * 2048 / 800
    sent = 512 * (2 * 32768 + 2560) + 40 * network_links.GRAPH_BYTES
    assert found["prefill_percent"] == pytest.approx(100 * batches * (0.4 + sent / 117e3) / prompt_ms)
    assert found["why"] == "the 1 GbE link (0.4 ms) costs 47 % of prompts and 2 % of decode; it buys 20.0 GiB of memory"


def test_a_lender_that_cannot_help_is_said():
    found = network_links.worth(decided([0, 81]), MODEL, DEVICES, LINKS, 2048, LONG)
    assert found["mib"] == 0
    assert found["why"] == "the devices of other hosts hold no layer: over the 1 GbE link (0.4 ms) they would not help"


@pytest.mark.parametrize(
    ("rate", "name"), [(117, "1 GbE"), (290, "2.5 GbE"), (11.5, "0.1 GbE"), (1180, "10 GbE"), (50, "0.4 Gbit/s")]
)
def test_a_link_has_its_usual_name(rate, name):
    link = {**GIGABIT, "from_mb_per_s": rate, "to_mb_per_s": rate * 1.05}
    assert network_links.named(link) == f"{name} link (0.4 ms)"


@pytest.mark.parametrize(
    ("objective", "lent_first"),
    [
        ({"name": "decode", "prompt_tokens": 1024, "generated_tokens": 256}, True),
        ({"name": "agent", "prompt_tokens": 1024, "generated_tokens": 256}, True),
        ({"name": "request", "prompt_tokens": 1024, "generated_tokens": 256}, True),
        ({"name": "request", "prompt_tokens": 32768, "generated_tokens": 256}, False),
        ({"name": "ttft", "prompt_tokens": 1024, "generated_tokens": 256}, False),
        ({"name": "prefill", "prompt_tokens": 1024, "generated_tokens": 256}, False),
    ],
)
def test_lent_devices_come_first_where_logits_would_be_more(objective, lent_first):
    own, lent = {"id": "GPU-a"}, {"id": IDS[0]}
    found = network_links.ordered([own, lent], LINKS, MODEL, objective, False)
    assert found == ([lent, own] if lent_first else [own, lent])


def test_the_order_is_kept_without_another_host_and_where_ram_is_needed():
    devices = [{"id": "GPU-a", "free_mib": 1000}, {"id": IDS[0], "free_mib": 1000}]
    objective = {"name": "decode", "prompt_tokens": 1, "generated_tokens": 1}
    assert network_links.ordered(devices, {}, MODEL, objective, False) == devices
    assert network_links.ordered(devices, LINKS, MODEL, objective, True) == devices
    assert network_links.ordered(devices, LINKS, MODEL, objective, False) == devices[::-1]


def test_a_probe_of_a_lent_device_crosses_once_per_prompt_token_and_sends_logits():
    found = network_links.alone(MODEL, LINKS, 1024, 512)[IDS[0]]
    assert found["decode"] == pytest.approx(0.4 + 4 * (8192 + 128256) / 117e3)
    graph = 81 * network_links.GRAPH_BYTES / 512
    assert found["prefill"] == pytest.approx((4 * 8192 + 2 * 768 + graph) / 117e3 + 0.4 / 512)


def test_memory_of_less_than_a_gib_is_said_in_mib():
    found = network_links.worth(decided([40, 41], mib=[23, 24]), MODEL, DEVICES, LINKS, 2048, LONG)
    assert found["why"].endswith("it buys 23 MiB of memory")


@pytest.mark.parametrize(
    ("network", "left"), [(None, 2.0), ({"decode": 0.5, "prefill": 0.1}, 1.5), ({"decode": 9.0}, 0.2)]
)
def test_what_a_probe_tells_of_a_device_is_without_the_network(network, left):
    row = {"decode_ms_per_token": {"median": 2.0}, "network_ms": network}
    assert split_problem._computing(row, 2.0, "decode") == pytest.approx(left)


def test_without_a_rate_the_share_is_unknown_and_the_round_trip_counts():
    link = {**GIGABIT, "to_mb_per_s": None, "from_mb_per_s": None}
    assert network_links.cost(MODEL, [40, 41], IDS, {IDS[0]: link}, WORK) == (0.4, 0.4, 0.0)
    found = network_links.worth(decided([40, 41]), MODEL, DEVICES, {IDS[0]: link}, 2048, LONG)
    assert found["decode_percent"] is None and found["prefill_percent"] is None
    assert found["why"] == "the link (0.4 ms) costs an unknown share; it buys 20.0 GiB of memory"


def test_the_mask_of_a_prompt_of_many_micro_batches_is_averaged_over_some_of_them():
    exact = network_links.work(4096, 1, 0.0, 0.0, True)
    long = network_links.work(1 << 24, 1, 0.0, 0.0, True)
    assert long.prompt_mask == pytest.approx(exact.prompt_mask * 4096, rel=0.06)
