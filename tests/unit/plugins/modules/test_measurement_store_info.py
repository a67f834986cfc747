# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import store
from ansible_collections.homelab.mixed_gpu.plugins.modules import measurement_store_info

LOAD = {"split_mode": "layer", "layers": [20, 13], "load": 1, "status": "ok", "results": [{"kind": "decode"}]}


@pytest.fixture
def read(tmp_path, call_module):
    def _read(*campaigns, folder=tmp_path):
        return call_module(measurement_store_info, {"state_dir": str(folder), "campaigns": list(campaigns)})["loads"]

    return _read


def keep(folder, campaign, **changes):
    load = {**LOAD, **changes}
    key = store.load_key("f", campaign, load)
    path = folder / store.file_name(key)
    path.write_text(json_file.to_text(store.stored_form(key, load, "b1", [], [])))
    return path


def test_the_loads_of_the_campaigns_come_by_file_name(read, tmp_path):
    one, two = keep(tmp_path, "a"), keep(tmp_path, "b", load=2)
    keep(tmp_path, "c")
    assert set(read("a", "b")) == {one.name, two.name}
    assert read("b")[two.name]["load"] == 2


def test_damaged_and_foreign_files_are_left_out(read, tmp_path):
    good = keep(tmp_path, "a")
    keep(tmp_path, "a", load=2).rename(tmp_path / "copied.json")
    keep(tmp_path, "a", load=3).write_text("{")
    keep(tmp_path, "a", load=4).write_text("[]")
    (tmp_path / "notes.txt").write_text("x")
    assert list(read("a")) == [good.name]


def test_a_host_without_a_store_has_none(read, tmp_path):
    assert read("a", folder=tmp_path / "nowhere") == {}
