#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read system, memory and NVIDIA cards of a host without a driver
version_added: 0.1.0
description:
  - Reads system, memory and the NVIDIA cards on the PCI bus from files below C(/proc) and C(/sys).
  - Needs nothing but Python, and takes well under a second.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes.reads
"""

EXAMPLES = r"""
- name: Read the system and the cards
  homelab.mixed_gpu.host_info:
  register: found

- name: Show the cards
  ansible.builtin.debug:
    msg: "{{ found.host.nvidia_devices | map(attribute='name') }}"
"""

RETURN = r"""
host:
  description: What was found.
  type: dict
  returned: always
  contains:
    os:
      description: C(id), C(version_id) and C(pretty_name) of C(/etc/os-release); each is none where it is not stated.
      type: dict
      sample: {id: debian, version_id: "13", pretty_name: Debian GNU/Linux 13 (trixie)}
    machine:
      description: CPU architecture as C(uname -m) names it.
      type: str
      sample: x86_64
    kernel:
      description: Release of the running kernel.
      type: str
    kernel_version:
      description: Build of the running kernel, which names C(PREEMPT_RT) where it is one.
      type: str
    firmware:
      description: Version and date of the mainboard's firmware (BIOS), V(none) where the machine does not say.
      type: str
      sample: F12 01/07/2026
    kernels:
      description: Releases of the kernels in C(/boot), oldest first.
      type: list
      elements: str
    python_version:
      description: Version of the Python that runs this module.
      type: str
      sample: 3.13.5
    uid:
      description: Effective user id.
      type: int
    init:
      description: Name of process 1.
      type: str
      sample: systemd
    container:
      description: Kind of container that this is, or none.
      type: str
      sample: podman
    hypervisor:
      description: What this is a virtual machine of, or none on bare metal.
      type: str
      sample: KVM or QEMU
    secure_boot:
      description: Whether UEFI Secure Boot is on; none where its variables cannot be read.
      type: bool
    memory_total_mib:
      description: Main memory.
      type: int
    memory_available_mib:
      description: Main memory that programs can get without swapping.
      type: int
    swap_total_mib:
      description: Swap space.
      type: int
    swap_used_mib:
      description: Swap space in use.
      type: int
    nvidia_pci:
      description: PCI addresses of the NVIDIA display controllers, in order.
      type: list
      elements: str
      sample: ["0000:01:00.0", "0000:02:00.0"]
    nvidia_devices:
      description: One entry per address of C(nvidia_pci), from the kernel, so without any driver.
      type: list
      elements: dict
      contains:
        address:
          description: PCI address.
          type: str
        device_id:
          description: PCI device id.
          type: str
          sample: "0x2684"
        name:
          description: Product name in the list of PCI ids that lspci reads, or none where the host has no such list.
          type: str
          sample: GeForce RTX 4090
        driver:
          description: Kernel driver that holds the card, such as V(nvidia), V(nouveau) and V(vfio-pci), or none.
          type: str
        generation:
          description: PCIe generation of the link now, which an idle card lowers; none, as all below, where unknown.
          type: int
        generation_max:
          description: PCIe generation that the card is capable of.
          type: int
        width:
          description: PCIe lanes in use.
          type: int
        width_max:
          description: PCIe lanes that the card has.
          type: int
        slot_generation_max:
          description: PCIe generation that the slot is capable of.
          type: int
        slot_width_max:
          description: PCIe lanes that the slot has.
          type: int
        bar1_mib:
          description: Size of the window to its memory (BAR1); 256 where resizable BAR is off.
          type: int
        iommu:
          description: How the IOMMU treats the card - V(DMA), V(DMA-FQ), V(identity) - or none without one.
          type: str
    nvidia_nodes:
      description: NVIDIA's device files below C(/dev) through which a program reaches cards.
      type: list
      elements: str
      sample: [nvidia-uvm, nvidia0, nvidiactl]
    nvidia_module_version:
      description: Version of the loaded NVIDIA kernel module, or none.
      type: str
    nouveau_loaded:
      description: Whether the kernel module nouveau is loaded.
      type: bool
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host


def main() -> None:
    module = AnsibleModule(argument_spec={}, supports_check_mode=True)
    module.exit_json(changed=False, host=host.describe())


if __name__ == "__main__":
    main()
