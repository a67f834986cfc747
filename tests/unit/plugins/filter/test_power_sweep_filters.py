# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter.power_sweep_choice import power_sweep_choice
from ansible_collections.homelab.mixed_gpu.plugins.filter.power_sweep_plan import power_sweep_plan
from ansible_collections.homelab.mixed_gpu.plugins.filter.power_sweep_table import power_sweep_table

GPUS = [
    {
        "uuid": "GPU-b", "name": "NVIDIA GeForce RTX 3090", "power_limit_default_watts": 350.0,
        "power_limit_min_watts": 100.0, "power_limit_max_watts": 366.0,
    }
]  # fmt: skip
OBJECTIVE = {"name": "decode", "prompt_tokens": 0, "generated_tokens": 10}


def load(ms, joules):
    energy = {"seconds": 0, "joules": {"GPU-b": joules}, "source": {"GPU-b": "counter"}}
    result = {"kind": "decode", "n_prompt": 0, "n_gen": 10, "n_depth": 0, "samples_ms": [ms], "energy": energy}
    return {"status": "ok", "reason": None, "results": [result]}


def test_from_plan_to_table():
    points = power_sweep_plan(GPUS, [1.0, 0.8])
    assert [point["label"] for point in points] == ["350 W", "280 W"]
    measured = [{**points[0], "load": load(100, 34)}, {**points[1], "load": load(101, 28)}]
    measured.append({**points[0], "load": load(100.2, 34)})
    choice = power_sweep_choice(measured, GPUS, OBJECTIVE, 3.0)
    assert choice["limits_watts"] == {"GPU-b": 280} and choice["measured"] and choice["rows"][0]["loads"] == 2
    assert choice["noise_percent"] == 0.2
    assert any(line.startswith("  280 W") and line.endswith("recommended") for line in power_sweep_table(choice, GPUS))


def test_errors_say_what_to_do():
    with pytest.raises(AnsibleFilterError, match="correct the limits to sweep"):
        power_sweep_plan(GPUS, [1.0], {"GPU-b": [20]})
    with pytest.raises(AnsibleFilterError, match="correct the limits to sweep"):
        power_sweep_plan(None, [1.0])
    failed = {"status": "crashed", "reason": "it fell over", "results": []}
    with pytest.raises(AnsibleFilterError, match="it fell over.*run the sweep again"):
        power_sweep_choice([{**power_sweep_plan(GPUS, [1.0])[0], "load": failed}], GPUS, OBJECTIVE, 3.0)
    with pytest.raises(AnsibleFilterError, match="power_sweep_choice returned"):
        power_sweep_table({}, GPUS)
