# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import llama_bench
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import next_load
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

from .described_pair import LIMITS


def test_experts_stay_where_they_are_recorded_and_the_tests_are_those_of_the_baseline() -> None:
    entry = machine.Machine(machine.make_problem()).record()
    load = next_load.next_load(entry, [], [], LIMITS)
    assert load is not None
    order = llama_bench.make_order(load, ["CUDA0", "CUDA1"], entry["serving"])
    placed = expert_placement.from_json(load["layers"], entry["experts_in_ram"])
    assert order.experts == placed and order.serving["threads"] == entry["experts_in_ram"]["threads"]
    sizes = {llama_bench.micro_batch(test, order.serving) for test in order.tests}
    assert sizes == {entry["serving"]["micro_batch_size"]}
    assert [test["n_prompt"] for test in load["tests"]] == [test["n_prompt"] for test in entry["decision"]["tests"]]
