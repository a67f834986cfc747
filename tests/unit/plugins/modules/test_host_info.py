# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import os

from ansible_collections.homelab.mixed_gpu.plugins.modules import host_info


def test_this_machine(call_module):
    result = call_module(host_info, {"_ansible_check_mode": True})
    assert not result.get("failed") and result["changed"] is False
    host = result["host"]
    assert host["machine"] == os.uname().machine
    assert host["uid"] == os.geteuid()
    assert host["os"]["id"]
    assert host["init"]
    assert 0 < host["memory_available_mib"] <= host["memory_total_mib"]
    assert host["kernel"] == os.uname().release and host["kernel_version"] == os.uname().version
    assert [device["address"] for device in host["nvidia_devices"]] == host["nvidia_pci"]
