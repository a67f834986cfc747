#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: gpu_facts
short_description: Collect NVIDIA GPU facts through NVML
version_added: 0.1.0
description:
  - Reads everything that NVIDIA's management library says about the cards of the host and returns it as host facts.
  - A host without card, driver or C(nvidia-ml-py) is an answer (C(available) is V(false), with the reason), not a
    failure, unless O(required=true).
  - What a card, its driver or its library does not support is V(none).
  - A card at rest says little of what it does at work, its PCIe link for example falls back to generation 1. With
    O(sample_seconds) the cards are watched while something else uses them.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
  - homelab.mixed_gpu._attributes.facts
  - homelab.mixed_gpu._host_python.nvml
options:
  required:
    description: Fail, with cause and cure, when the cards cannot be read.
    type: bool
    default: false
  sample_interval_ms:
    description: Time between two looks at the cards while they are watched.
    type: int
    default: 200
  sample_seconds:
    description:
      - For how long the cards are watched after they were read; V(0) does not watch them.
      - Start the load before, or with C(async), and see that it lasts longer.
    type: float
    default: 0
"""

EXAMPLES = r"""
- name: Read the GPUs
  homelab.mixed_gpu.gpu_facts:

- name: Show them, or why there are none
  ansible.builtin.debug:
    msg: "{{ ansible_facts['mixed_gpu_gpus'].reason or ansible_facts['mixed_gpu_gpus'].gpus | map(attribute='name') }}"

- name: Watch the cards for ten seconds while a server generates
  homelab.mixed_gpu.gpu_facts:
    sample_seconds: 10

- name: Show links that were slower than card and slot allow
  ansible.builtin.debug:
    msg: "{{ item.name }} at {{ item.pci_bus_id }}: at most generation {{ item.sampled.pcie_generation.max }}"
  loop: "{{ ansible_facts['mixed_gpu_gpus'].gpus }}"
  loop_control:
    label: "{{ item.id }}"
  when: item.sampled.pcie_generation.max < item.pcie_generation_max

- name: Insist on working cards
  homelab.mixed_gpu.gpu_facts:
    required: true
"""

RETURN = r"""
ansible_facts:
  description: Facts added to the host.
  returned: always
  type: dict
  contains:
    mixed_gpu_gpus:
      description: What NVML reports.
      type: dict
      contains:
        available:
          description: Whether NVML works and every card that it counts could be read.
          type: bool
        reason:
          description: Cause and cure when not C(available), else V(none).
          type: str
        lost:
          description:
            - Cards on the PCI bus that do not answer while the driver does.
            - Name and UUID are those of the host's record of measurements, or of the list of PCI ids, else none.
          type: list
          elements: dict
          sample: [{"pci_bus_id": "0000:41:00.0", "name": "NVIDIA GeForce RTX 3090", "id": "GPU-..."}]
        driver_version:
          description: Version of the loaded driver.
          type: str
          sample: 580.95.05
        cuda_driver_version:
          description: Newest CUDA version that the driver supports.
          type: str
          sample: "13.0"
        p2p:
          description:
            - What each pair of cards can do without a detour through the host's memory, one entry per pair.
            - The values are V(ok), V(chipset_not_supported), V(gpu_not_supported), V(ioh_topology_not_supported),
              V(disabled_by_regkey), V(not_supported) or V(unknown).
          type: list
          elements: dict
          contains:
            a:
              description: UUID of the card with the lower PCI bus number.
              type: str
            b:
              description: UUID of the other card.
              type: str
            read:
              description: Reading the other card's memory.
              type: str
              sample: chipset_not_supported
            write:
              description: Writing to the other card's memory.
              type: str
            nvlink:
              description: The same over NVLink.
              type: str
            atomics:
              description: Atomic operations on the other card's memory.
              type: str
            pci:
              description: The same over PCIe.
              type: str
        xid_events:
          description:
            - Errors that the driver reported (Xid) while the cards were watched, in the order of their coming.
            - V(none) where they were watched and the driver does not report such events.
          type: list
          elements: dict
          contains:
            id:
              description: The card.
              type: str
            xid:
              description: Number of the error, see NVIDIA's list of Xid errors.
              type: int
              sample: 79
        gpus:
          description:
            - One entry per card that could be read, in PCI bus order, which is CUDA's order with
              C(CUDA_DEVICE_ORDER=PCI_BUS_ID).
          type: list
          elements: dict
          contains:
            id:
              description: The card's UUID; the key for whatever is stored about a card.
              type: str
              sample: GPU-11111111-2222-3333-4444-555555555555
            name:
              description: Product name.
              type: str
              sample: NVIDIA GeForce RTX 4090
            pci_bus_id:
              description: PCI domain, bus, device and function.
              type: str
              sample: "00000000:01:00.0"
            index:
              description: NVML's index.
              type: int
            compute_capability:
              description: CUDA compute capability.
              type: str
              sample: "8.9"
            architecture:
              description: Architecture name.
              type: str
              sample: Ada
            memory_total_mib:
              description: All of the card's memory.
              type: int
              sample: 24564
            memory_free_mib:
              description: Memory that nothing uses.
              type: int
            memory_used_mib:
              description: Memory in use; without C(memory_reserved_mib) where the driver tells that apart.
              type: int
            memory_reserved_mib:
              description: Memory that driver and firmware keep for themselves.
              type: int
            memory_bandwidth_gb_per_s:
              description: Theoretical memory bandwidth at the highest memory clock, in 10^9 bytes per second.
              type: float
              sample: 1008.1
            bar1_total_mib:
              description: Size of BAR1; at least the memory's size when resizable BAR is on, 256 when it is off.
              type: int
            power_limit_watts:
              description: Power limit now in force.
              type: float
            power_limit_min_watts:
              description: Lowest power limit that the card accepts.
              type: float
            power_limit_max_watts:
              description: Highest power limit that the card accepts.
              type: float
            power_limit_default_watts:
              description: Power limit after the driver is loaded.
              type: float
            power_limit_enforced_watts:
              description: Power limit that is enforced now; lower than the limit where something else caps the card.
              type: float
            power_draw_watts:
              description: Power drawn now.
              type: float
            temperature_celsius:
              description: Temperature of the GPU.
              type: int
            pcie_generation:
              description: PCIe generation of the link now; an idle card lowers it.
              type: int
            pcie_generation_max:
              description: Highest PCIe generation that card and slot support together.
              type: int
            pcie_generation_device_max:
              description: Highest PCIe generation of the card alone, in any slot.
              type: int
            pcie_width:
              description: PCIe lanes in use now.
              type: int
            pcie_width_max:
              description: Most PCIe lanes that card and slot support together.
              type: int
            persistence_mode:
              description: Whether the driver stays loaded, and with it power limits, when nothing uses the card.
              type: bool
            ecc_enabled:
              description: Whether the memory's error correction is on; V(none) for a card that has none.
              type: bool
            nvlink:
              description: The card's NVLink links; V(none) for a card that has none.
              type: list
              elements: dict
              contains:
                link:
                  description: Number of the link.
                  type: int
                active:
                  description: Whether it is in use, which takes a bridge and a card at its other end.
                  type: bool
            sampled:
              description:
                - What was seen while the card was watched; V(none) without O(sample_seconds).
                - Every quantity is a dict of C(min), C(mean) and C(max), or V(none) where the card does not say.
              type: dict
              contains:
                count:
                  description: How often the card was looked at.
                  type: int
                seconds:
                  description: For how long it was watched.
                  type: float
                pcie_generation:
                  description: PCIe generation of the link.
                  type: dict
                pcie_width:
                  description: PCIe lanes in use.
                  type: dict
                power_draw_watts:
                  description: Power drawn.
                  type: dict
                clock_sm_mhz:
                  description: Streaming multiprocessor clock.
                  type: dict
                temperature_celsius:
                  description: Temperature of the GPU.
                  type: dict
                utilization_gpu_percent:
                  description: Share of time in which the card computed.
                  type: dict
                throttle_reasons:
                  description: Names of all that held the clocks down at any look; V(none) where the card does not say.
                  type: list
                  elements: str
            throttle_reasons:
              description: Names of what holds the clocks down now.
              type: list
              elements: str
              sample: [gpu_idle]
            processes:
              description: Processes that use the card, by pid.
              type: list
              elements: dict
              contains:
                pid:
                  description: Process id.
                  type: int
                name:
                  description: Program.
                  type: str
                memory_mib:
                  description: The card's memory that the process holds.
                  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import host_python
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import cards, host_hardware, lost_cards
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import host_record


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "host_python": {"type": "path", "default": host_python.DEFAULT},
            "required": {"type": "bool", "default": False},
            "sample_interval_ms": {"type": "int", "default": 200},
            "sample_seconds": {"type": "float", "default": 0},
        },
        supports_check_mode=True,
    )
    seconds, interval_ms = module.params["sample_seconds"], module.params["sample_interval_ms"]
    if not 0 <= seconds <= 3600:
        module.fail_json(msg=f"sample_seconds is {seconds}: give 0, or up to an hour (3600).")
    if interval_ms < 10:
        module.fail_json(msg=f"sample_interval_ms is {interval_ms}: give at least 10, the cards answer no faster.")
    facts = cards.read(module.params["host_python"], seconds, interval_ms)
    facts = lost_cards.told(facts, host_hardware.nvidia_devices(), host_record.usable())
    if module.params["required"] and not facts["available"]:
        module.fail_json(msg=facts["reason"])
    module.exit_json(changed=False, ansible_facts={"mixed_gpu_gpus": facts})


if __name__ == "__main__":
    main()
