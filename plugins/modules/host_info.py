#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: host_info
short_description: Read system, memory, disk room and NVIDIA cards of a host without a driver
version_added: 0.1.0
description:
  - Reads system, memory, disk room, listening processes and the NVIDIA cards on the PCI bus, mostly from files below
    C(/proc) and C(/sys).
  - Needs nothing but Python, and takes well under a second.
extends_documentation_fragment:
  - homelab.mixed_gpu._attributes
attributes:
  check_mode:
    support: full
    details:
      - This action does not modify state.
  diff_mode:
    support: N/A
    details:
      - This action does not modify state.
options:
  paths:
    description: Paths whose disk room is returned; a path need not exist.
    type: list
    elements: path
    default: []
  files:
    description: Files whose size is returned; a file need not exist.
    type: list
    elements: path
    default: []
  port:
    description: TCP port whose listening processes are read with C(ss).
    type: int
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Read disk room and listeners
  homelab.mixed_gpu.host_info:
    paths: [/srv/models]
    port: 8080
  register: found

- name: Show the room for models
  ansible.builtin.debug:
    msg: "{{ found.host.disks[0].free_mib }} MiB"
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
      returned: always
      sample: {id: debian, version_id: "13", pretty_name: Debian GNU/Linux 13 (trixie)}
    machine:
      description: CPU architecture as C(uname -m) names it.
      type: str
      returned: always
      sample: x86_64
    kernel:
      description: Release of the running kernel.
      type: str
      returned: always
    kernel_version:
      description: Build of the running kernel, which names C(PREEMPT_RT) where it is one.
      type: str
      returned: always
    firmware:
      description: Version and date of the mainboard's firmware (BIOS), V(none) where the machine does not say.
      type: str
      returned: always
      sample: F12 01/07/2026
    kernels:
      description: Releases of the kernels in C(/boot), oldest first.
      type: list
      elements: str
      returned: always
    python_version:
      description: Version of the Python that runs this module.
      type: str
      returned: always
      sample: 3.13.5
    uid:
      description: Effective user id.
      type: int
      returned: always
    init:
      description: Name of process 1.
      type: str
      returned: always
      sample: systemd
    container:
      description: Kind of container that this is, or none.
      type: str
      returned: always
      sample: podman
    hypervisor:
      description: What this is a virtual machine of, or none on bare metal.
      type: str
      returned: always
      sample: KVM or QEMU
    secure_boot:
      description: Whether UEFI Secure Boot is on; none where its variables cannot be read.
      type: bool
      returned: always
    memory_total_mib:
      description: Main memory.
      type: int
      returned: always
    memory_available_mib:
      description: Main memory that programs can get without swapping.
      type: int
      returned: always
    swap_total_mib:
      description: Swap space.
      type: int
      returned: always
    swap_used_mib:
      description: Swap space in use.
      type: int
      returned: always
    disks:
      description: One entry per path of O(paths), in that order.
      type: list
      elements: dict
      returned: always
      contains:
        path:
          description: The path.
          type: str
          returned: always
        mount_point:
          description: Where the file system that holds it, or will hold it, is mounted.
          type: str
          returned: always
        medium:
          description: V(nvme), V(ssd), V(disk) (it rotates), or none where it is no local disk.
          type: str
          returned: always
        total_mib:
          description: Size of that file system.
          type: int
          returned: always
        free_mib:
          description: Room on that file system, without what is reserved for root.
          type: int
          returned: always
        held_mib:
          description: Disk space of what lies below the path already.
          type: int
          returned: always
    files:
      description: One entry per path of O(files), in that order.
      type: list
      elements: dict
      returned: always
      contains:
        path:
          description: The path.
          type: str
          returned: always
        size_bytes:
          description: Size, or none where there is no such file.
          type: int
          returned: always
    listeners:
      description: One entry per process that listens on O(port); none where C(ss) is missing or no port was given.
      type: list
      elements: dict
      returned: always
      contains:
        pid:
          description: Process id, or none where it may not be seen.
          type: int
          returned: always
        process:
          description: Program, or none where it may not be seen.
          type: str
          returned: always
        unit:
          description: systemd unit, or none.
          type: str
          returned: always
    nvidia_pci:
      description: PCI addresses of the NVIDIA display controllers, in order.
      type: list
      elements: str
      returned: always
      sample: ["0000:01:00.0", "0000:02:00.0"]
    nvidia_devices:
      description: One entry per address of C(nvidia_pci), from the kernel, so without any driver.
      type: list
      elements: dict
      returned: always
      contains:
        address:
          description: PCI address.
          type: str
          returned: always
        device_id:
          description: PCI device id.
          type: str
          returned: always
          sample: "0x2684"
        name:
          description: Product name in the list of PCI ids that lspci reads, or none where the host has no such list.
          type: str
          returned: always
          sample: GeForce RTX 4090
        driver:
          description: Kernel driver that holds the card, such as V(nvidia), V(nouveau) and V(vfio-pci), or none.
          type: str
          returned: always
        generation:
          description: PCIe generation of the link now, which an idle card lowers; none, as all below, where unknown.
          type: int
          returned: always
        generation_max:
          description: PCIe generation that the card is capable of.
          type: int
          returned: always
        width:
          description: PCIe lanes in use.
          type: int
          returned: always
        width_max:
          description: PCIe lanes that the card has.
          type: int
          returned: always
        slot_generation_max:
          description: PCIe generation that the slot is capable of.
          type: int
          returned: always
        slot_width_max:
          description: PCIe lanes that the slot has.
          type: int
          returned: always
        bar1_mib:
          description: Size of the window to its memory (BAR1); 256 where resizable BAR is off.
          type: int
          returned: always
        iommu:
          description: How the IOMMU treats the card - V(DMA), V(DMA-FQ), V(identity) - or none without one.
          type: str
          returned: always
    nvidia_nodes:
      description: NVIDIA's device files below C(/dev) through which a program reaches cards.
      type: list
      elements: str
      returned: always
      sample: [nvidia-uvm, nvidia0, nvidiactl]
    nvidia_module_version:
      description: Version of the loaded NVIDIA kernel module, or none.
      type: str
      returned: always
    nouveau_loaded:
      description: Whether the kernel module nouveau is loaded.
      type: bool
      returned: always
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import host


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "paths": {"type": "list", "elements": "path", "default": []},
            "files": {"type": "list", "elements": "path", "default": []},
            "port": {"type": "int"},
        },
        supports_check_mode=True,
    )
    params = module.params
    listeners = host.listening(params["port"], module.get_bin_path("ss"), module.run_command)
    module.exit_json(changed=False, host=host.describe(params["paths"], params["files"], listeners))


if __name__ == "__main__":
    main()
