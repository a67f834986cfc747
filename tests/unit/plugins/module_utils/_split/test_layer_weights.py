# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_weights, model_weights

SERVING = {"cache_type_k": "f16", "cache_type_v": "f16"}


def model(**changes: object) -> dict[str, object]:
    """A model of four blocks, the last twice as heavy, and an output layer like a light block."""
    return {
        "block_count": 4, "block_bytes": [100, 100, 100, 200], "output_bytes": 100,
        "kv_k_elements_per_token": [1] * 4, "kv_v_elements_per_token": [1] * 4, **changes,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "amounts"),
    [((20, 13), (20, 12)), ((33, 0), (32, 0)), ((32, 1), (32, 0)), ((0, 20, 13, 0), (0, 20, 12, 0))],
)
def test_the_output_layer_is_no_work_in_a_prompt(layers: tuple[int, ...], amounts: tuple[int, ...]) -> None:
    weights = layer_weights.equal(33)
    assert weights.amounts("prefill", layers) == amounts
    assert weights.amounts("decode", layers) == layers
    assert weights.as_lists() is None


def test_layers_count_by_what_a_token_reads() -> None:
    weights = model_weights.of_model(model(), SERVING, 0)  # type: ignore[arg-type]
    assert weights.amounts("decode", (3, 2)) == pytest.approx((2.5, 2.5))
    assert weights.amounts("prefill", (3, 2)) == pytest.approx((2.4, 1.6))
    kept = layer_weights.of_lists(weights.as_lists(), 5)
    assert kept.amounts("prefill", (3, 2)) == pytest.approx((2.4, 1.6), rel=1e-4)


def test_the_cache_counts_at_a_depth_and_experts_by_those_in_use() -> None:
    deep = model_weights.of_model(model(), SERVING, 100)  # type: ignore[arg-type]
    assert deep.amounts("decode", (4, 1))[1] == pytest.approx(100 / 440)  # of 500, 500, 500, 600, 100
    sparse = model_weights.of_model(model(block_read_bytes=[50] * 4, output_bytes=50), SERVING, 0)  # type: ignore[arg-type]
    assert sparse.amounts("decode", (3, 2)) == pytest.approx((3, 2))
