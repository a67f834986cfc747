# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The split rule against llama.cpp itself."""

from __future__ import annotations

import collections
import pathlib
import random
import re
import subprocess
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_split

pytestmark = pytest.mark.live

DEVICES = 4
BLOCKS = 20


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("models") / "tiny.gguf")
    shape = {"blocks": BLOCKS, "embedding_length": 64, "feed_forward_length": 128, "head_count": 2, "head_count_kv": 2}
    options = random_model.checked_options({**shape, "vocabulary_size": 512, "context_length": 256, "seed": 1})
    random_model.write_model(path, options, "tiny")
    return path


@pytest.fixture(scope="module")
def placed(model: str, rpc_endpoints: list[str], llama_bin: pathlib.Path) -> t.Callable[[str], list[int]]:
    """Return a function that tells how many slots each device gets, as llama-bench says while it loads."""
    return lambda shares: _placed(llama_bin / "llama-bench", model, rpc_endpoints, shares)


def _placed(program: pathlib.Path, model: str, endpoints: list[str], shares: str) -> list[int]:
    result = subprocess.run(
        [str(program), "-m", model, "--rpc", ",".join(endpoints), "-ngl", "99", "-ts", shares,
         "-p", "0", "-n", "1", "-r", "1", "-t", "1", "-v"],
        capture_output=True, text=True, timeout=600, check=False,
    )
    text = result.stdout + result.stderr
    assert result.returncode == 0, text[-2000:]
    # the list is printed more than once when a dry run precedes the load: each slot counts once
    slots = dict(re.findall(r"layer +(\d+) assigned to device (\w+)", text))
    assert set(map(int, slots)) == set(range(BLOCKS + 1)), text[-2000:]
    counts = collections.Counter(slots.values())
    assert set(counts) <= {f"RPC{device}" for device in range(DEVICES)}
    return [counts[f"RPC{device}"] for device in range(DEVICES)]


def some_splits() -> list[tuple[int, ...]]:
    luck = random.Random(3)
    splits = [(21, 0, 0, 0), (0, 0, 0, 21), (0, 10, 0, 11), (1, 1, 1, 18), (6, 5, 5, 5)]
    for _sample in range(7):
        cuts = sorted(luck.randrange(BLOCKS + 2) for _device in range(DEVICES - 1))
        splits.append(tuple(high - low for low, high in zip([0, *cuts], [*cuts, BLOCKS + 1], strict=True)))
    return splits


@pytest.mark.parametrize("layers", some_splits(), ids=layer_split.split_name)
def test_llama_cpp_places_the_layers_that_the_shares_mean(
    placed: t.Callable[[str], list[int]], layers: tuple[int, ...]
) -> None:
    shares = layer_split.render_tensor_split(layers, "llama_bench")
    assert placed(shares) == list(layers)


@pytest.mark.parametrize("shares", ["1/1/1/1", "1.2/1/0.7/0.3", "24/16/12/8", "0.31/0.29/0.2/0.2"])
def test_llama_cpp_rounds_any_shares_as_the_rule_says(placed: t.Callable[[str], list[int]], shares: str) -> None:
    values = [float(share) for share in shares.split("/")]
    assert placed(shares) == list(layer_split.layers_from_shares(values, BLOCKS + 1))
