# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.fingerprints import fingerprint
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import tuning_key

GPU = {"id": "GPU-1", "pci_bus_id": "0:1", "power_limit_watts": 400, "temperature_celsius": 41}
GIVEN = {
    "engine": "llama_cpp",
    "build": "b1",
    "model_sha256": "5a",
    "driver_version": "580.95",
    "gpus": [GPU],
    "rpc_endpoints": [],
    "serving": {"context_size": 8192},
    "split_modes": ["layer"],
    "micro_batches": [256, 512],
    "tensor_allreduce": [],
    "objective": {"name": "decode"},
    "tests": [{"kind": "decode"}],
    "budgets_mib": {},
    "reserve_mib": 512,
    "environment": {},
    "extra": {},
    "speculation": {"kinds": []},
    "model_headers_sha256": "",
}


def test_the_parts_are_all_that_can_move_the_result():
    parts = tuning_key.parts(GIVEN)
    for name in set(GIVEN) - {"engine", "build", "gpus", "model_headers_sha256"}:
        assert parts[name] == GIVEN[name]
    assert parts["llama_cpp"] == "b1" and "engine" not in parts and "model_headers_sha256" not in parts
    assert parts["gpus"] == [{"id": "GPU-1", "pci_bus_id": "0:1", "power_limit_watts": 400}]
    other = {**GIVEN, "engine": "exllamav3", "model_headers_sha256": "7c"}
    parts = tuning_key.parts(other)
    assert (parts["engine"], parts["engine_build"], parts["model_headers_sha256"]) == ("exllamav3", "b1", "7c")
    assert "llama_cpp" not in parts


def test_a_card_that_got_warm_makes_no_tuning_due_and_one_with_another_limit_does():
    recorded = {"fingerprint": fingerprint(tuning_key.parts(GIVEN)), "fingerprint_parts": tuning_key.parts(GIVEN)}
    warm = tuning_key.parts({**GIVEN, "gpus": [{**GPU, "temperature_celsius": 80}]})
    assert tuning_key.due(recorded, "d", warm, retune=False) is None
    limited = tuning_key.parts({**GIVEN, "gpus": [{**GPU, "power_limit_watts": 300}], "reserve_mib": 256})
    assert tuning_key.due(recorded, "d", limited, retune=False) == "gpus, reserve_mib changed since d was measured"
    assert tuning_key.due(recorded, "d", warm, retune=True) == "a retune was asked for"
    assert tuning_key.due(None, "d", warm, retune=True) == "nothing is recorded for d"


def test_a_part_that_is_new_or_gone_counts_as_changed():
    assert tuning_key.changed({"a": 1, "b": 2}, {"b": 2, "c": None}) == ["a", "c"]


def test_a_revalidation_asks_for_what_a_tuning_would_compute():
    now = {**GIVEN, "build": "b2", "driver_version": "580.105", "gpus": [{**GPU, "power_limit_watts": 300}]}
    recorded = tuning_key.parts({**GIVEN, "extra": {"x": 1}})
    asked = tuning_key.renewed(recorded, now["build"], now["driver_version"], now["gpus"], {})
    assert asked == tuning_key.parts({**now, "extra": {"x": 1}})
    assert tuning_key.renewed(recorded, "b2", "580.105", now["gpus"], {"y": 2}) == {**asked, "extra": {"y": 2}}


def test_the_probe_of_the_devices_does_not_depend_on_the_tuned_model():
    def probe(**changes):
        parts = tuning_key.parts({**GIVEN, **changes})
        return tuning_key.probe_parts(parts, "probe sha", ["GPU-1"], {"threads": 1}, [{"kind": "decode"}])

    assert probe(model_sha256="6b", reserve_mib=1, serving={}) == probe()
    assert probe(build="b2") != probe() and probe(driver_version="x") != probe()
    assert probe()["devices"] == ["GPU-1"] and probe()["model_sha256"] == "probe sha"


def test_what_is_missing_or_unknown_is_named():
    with pytest.raises(KeyError, match="objective"):
        tuning_key.parts({name: value for name, value in GIVEN.items() if name != "objective"})
    with pytest.raises(UserError, match="unknown engine 'vllm'"):
        tuning_key.parts({**GIVEN, "engine": "vllm"})
