# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import importlib
import json
import shutil

import pytest
from ansible.errors import AnsibleFilterError
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.modules import nvidia_driver_info

FILTERS = "ansible_collections.homelab.mixed_gpu.plugins.filter"
SOURCE = {"cure": "add non-free", "packages": [{"open": ["nvidia-open-{branch}"]}]}
TABLE = {"branches": {"580": {}}, "systems": {"Debian 13": {"distribution": SOURCE}}}
REQUEST = {
    "system": "Debian 13", "source": "distribution", "branch": "580", "version": "", "open_modules": True,
    "signed_modules": False, "recorded": [],
}  # fmt: skip
RECORD = {"schema": 1, "states": [], "rollback": None}


def the(name):
    return importlib.import_module(f"{FILTERS}.{name}").FilterModule().filters()[name]


@pytest.fixture
def info(capsys):
    """What the module really says about this machine: the filters must take it as it is."""
    if shutil.which("dpkg-query") is None:
        pytest.skip("needs dpkg")
    with patch_module_args({"policies": ["coreutils"]}), pytest.raises(SystemExit):
        nvidia_driver_info.main()
    return json.loads(capsys.readouterr().out)["driver"]


def test_the_filters_take_what_the_module_says(info):
    planned = the("nvidia_driver_plan")(info, REQUEST, TABLE)
    assert (planned["error"], planned["main"]) == ("", "nvidia-open-580")
    chosen = the("nvidia_driver_choice")(planned, info, REQUEST)
    assert "add non-free" in chosen["error"]
    settings = the("nvidia_driver_settings")(info, "580.95.05-1", True, True)
    assert "Pin: version 580.95.05*" in settings["pin"] and '"^nvidia-"' in settings["blacklist"]
    assert the("nvidia_driver_kept")(info, RECORD)["folders"] == []
    assert the("nvidia_driver_way_back")({"version": "1", "packages": {}}, info)["install"] == {}
    assert len(the("nvidia_driver_problems")(info, {"available": False, "reason": "None."}, [], [])) == 1


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("nvidia_driver_plan", ({}, REQUEST, TABLE)),
        ("nvidia_driver_choice", ({}, {}, REQUEST)),
        ("nvidia_driver_settings", ({}, "1", True, True)),
        ("nvidia_driver_kept", ({}, RECORD)),
        ("nvidia_driver_way_back", ({}, {})),
        ("nvidia_driver_problems", ({}, {}, [], [])),
        ("cuda_toolkit_choice", ({}, {})),
    ],
)
def test_what_is_not_understood_is_one_sentence(name, arguments):
    with pytest.raises(AnsibleFilterError, match=rf"^{name}: .*\.$"):
        the(name)(*arguments)
