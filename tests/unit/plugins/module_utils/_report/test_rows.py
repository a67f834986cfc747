# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import typing as t

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import rows


def test_memory_left_is_what_is_usable_less_what_is_loaded(sandbox: dict[str, t.Any]) -> None:
    known = rows.memory_rows(sandbox["entry"], sandbox["devices"])
    # the budget of 300 MiB bounds it, not the 19876 MiB that are free
    left = [(row["limit_mib"], row["loaded_mib"], row["left_mib"]) for row in known]
    assert left == [(300, 283, 17), (300, 141, 159)]
    unknown = rows.memory_rows(sandbox["entry"], [])
    assert [row["left_mib"] for row in unknown] == [None, None]


def test_the_names_of_the_running_server_find_the_planned_cards(mixed: dict[str, t.Any]) -> None:
    entry, devices = mixed["entry"], mixed["devices"]
    # A third card that is not used stands first: the server, which does not see it, still says CUDA0 and CUDA1.
    entry["devices"].insert(0, {**entry["devices"][0], "device": "CUDA0", "id": "GPU-other"})
    entry["devices"][1]["device"], entry["devices"][2]["device"] = "CUDA1", "CUDA2"
    entry["placement"].insert(0, {"id": "GPU-other", "layers": 0})
    for key in ("layers", "mib", "headroom_mib"):
        entry["decision"][key].insert(0, 0)
    devices[0]["device"], devices[1]["device"] = "CUDA1", "CUDA2"
    devices[0]["id"], devices[1]["id"] = "CUDA1", "CUDA2"
    first, second = (device["model_mib"] for device in devices)
    assert first != second and [row["model_mib"] for row in rows.memory_rows(entry, devices)] == [None, first, second]


def test_rows_of_one_split_are_told_apart_by_experts_and_micro_batch(experts: dict[str, t.Any]) -> None:
    shown = rows.table_rows(experts)
    assert len({row["layers"] for row in shown}) == len(shown)
    (chosen,) = [row for row in shown if row["chosen"]]
    decision = experts["decision"]
    assert chosen["layers"].startswith(",".join(map(str, decision["layers"])))
    assert chosen["layers"].endswith(f" in RAM; {decision['micro_batch_size']}")
    (default,) = [row for row in shown if row["default"]]
    assert default["layers"].startswith("10,15; ")


def test_spare_memory_is_told_as_context(mixed: dict[str, t.Any]) -> None:
    assert rows.largest_context(mixed["entry"]) == 16384
    assert rows.spare_context(mixed["entry"]) == [
        "8192 more tokens of context fit: up to split_tuning_context_size: 16384."
    ]
    contexts = mixed["entry"]["decision"]["contexts"]["rows"]
    largest = {**contexts[-1], "context_size": 28672}
    smaller = [row for row in contexts if row["context_size"] < 16384]
    mixed["entry"]["decision"]["contexts"]["rows"] = [*smaller, largest]
    assert rows.spare_context(mixed["entry"]) == [
        "The context of 8192 tokens is the largest that fits with this KV cache.",
        "With split_tuning_cache_type_k: q8_0 and split_tuning_cache_type_v: q8_0, 20480 more fit: up to 28672.",
    ]


def test_spare_context_may_be_unknown(sandbox: dict[str, t.Any]) -> None:
    assert rows.largest_context(sandbox["entry"]) is None and rows.spare_context(sandbox["entry"]) == []
