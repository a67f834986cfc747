# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter import device_probe, device_probe_loads

loads = device_probe_loads.FilterModule().filters()["device_probe_loads"]
probe = device_probe.FilterModule().filters()["device_probe"]
MODEL = {"block_bytes": [1000000], "output_bytes": 0}
DEVICES = [{"device": "RPC0", "id": "host:1", "free_mib": 100, "budget_mib": None}]


def test_from_devices_to_a_rank() -> None:
    (load,) = loads(DEVICES, MODEL, [], 16)
    results = [
        {"kind": "prefill", "n_prompt": 8, "samples_ms": [4.0]}, {"kind": "decode", "n_gen": 2, "samples_ms": [4.0]},
    ]
    measured = {**load, "status": "ok", "reason": None, "results": results, "fingerprint": "f", "campaign": "c"}
    (row,) = probe([measured], DEVICES, MODEL, 16)["devices"]
    assert (row["rank"], row["bandwidth_gb_per_s"], row["prefill_tokens_per_second"]) == (1, 0.5, 2000)


def test_what_does_not_belong_there_is_named() -> None:
    with pytest.raises(AnsibleFilterError, match="device_probe_loads: 'free_mib' is missing"):
        loads([{"device": "RPC0", "id": "host:1"}], MODEL, [], 16)
    with pytest.raises(AnsibleFilterError, match="device_probe: model.block_bytes must be a list"):
        probe([], DEVICES, {"block_bytes": None}, 16)
