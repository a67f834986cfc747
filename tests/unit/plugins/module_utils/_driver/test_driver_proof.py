# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_proof
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import card_ages

CARDS = [
    {"id": "GPU-1111", "name": "NVIDIA GeForce RTX 4090"},
    {"id": "GPU-2222", "name": "NVIDIA GeForce RTX 3090"},
]
PCI = ("0000:01:00.0", "0000:02:00.0")


ENABLED = {"ActiveState": "active", "UnitFileState": "enabled"}


def problems(
    expected=(), pci=PCI, gpus=None, loaded="580.95.05", cuinit=0, detail="", missing_nodes=(), nodes_unit=ENABLED
):
    facts = {"available": True, "reason": None, "driver_version": "580.95.05", "gpus": CARDS, **(gpus or {})}
    cards = card_ages.cards([{"address": address, "device_id": "0x2204"} for address in pci])
    state = driver_proof.Loaded(loaded, missing_nodes, nodes_unit, {"result": cuinit, "detail": detail})
    return driver_proof.problems(state, facts, list(expected), cards)


def test_all_is_well():
    assert problems() == []
    assert problems(["GPU-2222", "RTX 4090"]) == []
    # the name must not take the card that the UUID means
    assert problems(["RTX", "GPU-1111"]) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"loaded": ""}, "not loaded: reboot"),
        ({"gpus": {"available": False, "reason": "No driver: install one."}}, "No driver: install one."),
        ({"gpus": {"driver_version": "580.105.08"}}, "half-done upgrade"),
        ({"pci": [*PCI, "0000:03:00.0"]}, "3 NVIDIA card(s) and NVML sees 2"),
        ({"expected": ["GPU-3333", "RTX 3090"]}, "wants GPU-3333"),
        ({"expected": ["RTX 3090", "RTX 3090"]}, "wants RTX 3090"),
        ({"expected": ["RTX 3090"]}, "add GPU-1111"),
        ({"cuinit": 3}, "nvidia_driver_uvm_disable_hmm"),
        ({"cuinit": 999}, "cuInit answers 999"),
        ({"cuinit": 999}, "systemctl restart mixed-gpu-nodes.service"),
        ({"missing_nodes": ["/dev/nvidia-uvm (nvidia_uvm is not loaded)"]}, "nvidia_uvm is not loaded"),
        ({"nodes_unit": {}}, "mixed-gpu-nodes.service is not there"),
        ({"nodes_unit": {"UnitFileState": "disabled"}}, "mixed-gpu-nodes.service is disabled"),
        ({"cuinit": 77}, "cuInit answers 77"),
        ({"cuinit": None, "detail": "libcuda.so.1: cannot open shared object file"}, "libcuda.so.1"),
    ],
)
def test_every_problem_is_a_sentence_with_its_cure(arguments, words):
    (sentence,) = problems(**arguments)
    assert words in sentence
    assert sentence.endswith(".")


# --- reboot ---

BUILT = {"6.8.0-90-generic": {"version": "580.95.05", "signer": ""}}


@pytest.mark.parametrize(
    ("loaded", "local", "words"),
    [
        ("580.95.05", False, ()),
        ("", False, ("its module is not loaded", "or set nvidia_driver_reboot_ok to true")),
        ("570.1", False, ("installed (580.95.05)", "version 570.1 is loaded")),
        ("570.1", True, ("reboot this machine, then run the play again.",)),
    ],
)
def test_a_reboot_is_due_where_another_module_is_loaded(host, loaded, local, words):
    message = driver_proof.reboot_due(host(loaded_version=loaded, modules=BUILT), rebooted=False, local=local)
    assert bool(message) is bool(words) and all(word in message for word in words)
    assert ("nvidia_driver_reboot_ok" in message) is (bool(words) and not local)


def test_after_a_reboot_the_module_must_be_loaded(host):
    assert driver_proof.reboot_due(host(loaded_version="580.95.05", modules=BUILT), rebooted=True, local=False) == ""
    with pytest.raises(UserError, match="came back with kernel 6.8.0-90-generic and without the NVIDIA module"):
        driver_proof.reboot_due(host(modules=BUILT), rebooted=True, local=False)
