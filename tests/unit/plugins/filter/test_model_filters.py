# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.homelab.mixed_gpu.plugins.filter import (
    disk_shortfall,
    installed_models,
    model_files,
    pending_files,
)


def test_what_the_role_does_with_a_look_at_one_model():
    (item,) = model_files.FilterModule().filters()["model_files"]([{"id": "a", "generate": {}}], "/srv/models")
    looks = [{
        "item": item, "present": False, "sha256": None, "size_bytes": None, "missing_bytes": 5 << 20,
        "free_bytes": 1 << 20, "filesystem": "/srv/models",
    }]
    assert pending_files.FilterModule().filters()["pending_files"](looks) == [item]
    assert installed_models.FilterModule().filters()["installed_models"](looks)["a"]["path"] == item["path"]
    sentence = disk_shortfall.FilterModule().filters()["disk_shortfall"](looks)
    assert sentence == "/srv/models has 1 MiB free, and a still needs 5 MiB: free 4 MiB, or choose another directory."


def test_an_entry_that_is_not_understood_is_one_sentence():
    with pytest.raises(AnsibleFilterError, match="exactly one of url, shards, path, generate, repo"):
        model_files.model_files([{"id": "a"}], "/srv/models")
