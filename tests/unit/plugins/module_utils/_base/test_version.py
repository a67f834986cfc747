# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pathlib

import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import version


def test_hosts_record_the_version_of_galaxy_yml() -> None:
    galaxy = pathlib.Path(__file__).parents[5] / "galaxy.yml"
    assert yaml.safe_load(galaxy.read_text(encoding="utf-8"))["version"] == version.COLLECTION
