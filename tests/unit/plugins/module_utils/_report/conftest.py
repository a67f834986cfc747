# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split.deployment import expand
from ansible_collections.homelab.mixed_gpu.tests.fixtures.experts import machine

FIXTURES = pathlib.Path(__file__).parents[4] / "fixtures/report"


def read(name: str) -> dict[str, t.Any]:
    """Return entry, served and the devices of the running server of a recorded deployment."""
    data = json.loads((FIXTURES / f"{name}.json").read_text(encoding="utf-8"))
    return {**data, "entry": expand(data["entry"])}


@pytest.fixture
def sandbox() -> dict[str, t.Any]:
    return read("sandbox")


@pytest.fixture
def mixed() -> dict[str, t.Any]:
    return read("mixed_70b")


@pytest.fixture(params=["sandbox", "mixed_70b", "three_devices"])
def deployment(request: pytest.FixtureRequest) -> dict[str, t.Any]:
    return read(request.param)


@pytest.fixture
def experts() -> dict[str, t.Any]:
    """A deployment with experts in RAM, of a simulated campaign with llama.cpp's own placement as a rival."""
    blocks = list(range(11, 24))
    override = "blk[.](1)[.]ffn_up_exps=CPU"
    moved = {"kind": "experts", "blocks": blocks, "partial": None, "threads": 0, "no_host": False, "override": override}
    own = {"layers": [10, 15], "experts_in_ram": moved}
    return machine.Machine(machine.make_problem(experts_in_ram={"own": own})).record()
