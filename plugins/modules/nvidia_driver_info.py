#!/usr/bin/python
# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_driver_info
short_description: Look at the NVIDIA driver of a host, installed or not
version_added: 0.1.0
description:
  - Reads packages with their holds, the kernels in C(/boot) and which of them boots next, the kernel module of each,
    DKMS, Secure
    Boot, the persistence daemon's unit, and on request what apt could install and whether CUDA starts.
  - Needs nothing but Python and dpkg. What is missing on the host is empty in the answer, never a failure.
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
  modules:
    description: Names under which C(modinfo) may know the kernel module; the first that is there counts.
    type: list
    elements: str
    default: [nvidia, nvidia-current-open, nvidia-current]
  policies:
    description: Packages that apt is asked about.
    type: list
    elements: str
    default: []
  kept_dir:
    description: Directory with package files that were kept for going back.
    type: path
  cuda:
    description: Whether to call C(cuInit), in a process of its own.
    type: bool
    default: false
author:
  - The homelab.mixed_gpu maintainers (@homelab-mixed-gpu)
"""

EXAMPLES = r"""
- name: Look at the driver
  homelab.mixed_gpu.nvidia_driver_info:
    cuda: true
  register: found

- name: Show what boots next
  ansible.builtin.debug:
    msg: "{{ found.driver.kernel_next }}: {{ found.driver.modules[found.driver.kernel_next] }}"
"""

RETURN = r"""
driver:
  description: What was found.
  returned: always
  type: dict
  contains:
    packages:
      description:
        - Packages of the driver, kernel metapackages, kernel headers and dkms, by name, each with C(version),
          C(source), C(arch) and
          C(held).
      type: dict
      returned: always
    kernel_running:
      description: Release of the running kernel.
      type: str
      returned: always
    kernel_next:
      description: Release of the kernel that boots next.
      type: str
      returned: always
    kernel_next_why:
      description: Why that one.
      type: str
      returned: always
    kernels:
      description: Releases in C(/boot), oldest first.
      type: list
      elements: str
      returned: always
    modules:
      description: For the running and the next kernel, C(version) and C(signer) of the NVIDIA module, or none where
        there is none.
      type: dict
      returned: always
    dkms:
      description: Lines of C(dkms status).
      type: list
      elements: str
      returned: always
    loaded_version:
      description: Version of the loaded module, or an empty text.
      type: str
      returned: always
    nouveau_loaded:
      description: Whether nouveau is loaded.
      type: bool
      returned: always
    secure_boot:
      description: Whether Secure Boot is on, or none where the firmware does not say.
      type: bool
      returned: always
    mok:
      description: For each key file that dkms may sign with, V(enrolled), V(not enrolled) or V(unknown).
      type: dict
      returned: always
    persistence:
      description: C(load_state), C(unit_file_state), C(static), C(exec_start) and C(active) of
        nvidia-persistenced.service.
      type: dict
      returned: always
    initramfs:
      description: C(path) and C(mtime) of the next kernel's initramfs, or none.
      type: dict
      returned: always
    policies:
      description: Per package of O(policies), C(installed), C(candidate) and the C(versions) that can be fetched,
        newest first.
      type: dict
      returned: always
    kept:
      description: Paths of kept package files, by package and version.
      type: dict
      returned: always
    cuinit:
      description: C(result) of cuInit, or none with the reason in C(detail) where it could not be called.
      type: dict
      returned: always
"""

import os
import platform
import re
import sys
import typing as t
import urllib.parse

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import apt, driver_packages

SECURE_BOOT = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")
CUINIT = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"


def read(path: str) -> str:
    """The text of a file, or "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


class Host:
    """What this host says."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module

    def ask(self, *argv: str) -> str:
        """What a program prints, or "" where it is missing or fails."""
        program = self.module.get_bin_path(argv[0])
        if program is None:
            return ""
        rc, out, _err = self.module.run_command([program, *argv[1:]], environ_update={"LC_ALL": "C.UTF-8"})
        return out if rc == 0 else ""

    def packages(self) -> dict[str, dict[str, t.Any]]:
        return driver_packages.parse_dpkg(self.ask("dpkg-query", "-W", "-f", driver_packages.DPKG_FORMAT))

    def kernels(self) -> list[str]:
        try:
            names = os.listdir("/boot")
        except OSError:
            return []
        found = [name.split("-", 1)[1] for name in names if re.match(r"vmlinu[xz]-[0-9]", name)]
        return sorted(found, key=driver_packages.version_key)

    def next_kernel(self, kernels: list[str]) -> tuple[str, str]:
        settings = read("/etc/default/grub")
        try:
            parts = sorted(os.listdir("/etc/default/grub.d"))
        except OSError:
            parts = []
        settings += "".join("\n" + read(f"/etc/default/grub.d/{part}") for part in parts if part.endswith(".cfg"))
        default = re.findall(r"^\s*GRUB_DEFAULT=[\"']?([^\"'\n]*)", settings, re.MULTILINE)
        environment = read("/boot/grub/grubenv")
        return driver_packages.next_kernel(kernels, platform.release(), (default or [""])[-1], environment)

    def kernel_module(self, kernel: str) -> dict[str, str] | None:
        for name in self.module.params["modules"]:
            version = self.ask("modinfo", "-k", kernel, "-F", "version", name).strip()
            if version:
                return {"version": version, "signer": self.ask("modinfo", "-k", kernel, "-F", "signer", name).strip()}
        return None

    def secure_boot(self) -> bool | None:
        try:
            with open(SECURE_BOOT, "rb") as handle:
                data = handle.read()
        except OSError:
            return None
        # four bytes of attributes, then the value
        return len(data) == 5 and data[4] == 1

    def mok(self) -> dict[str, str]:
        states = {}
        program = self.module.get_bin_path("mokutil")
        for path in KEYS:
            if not os.path.exists(path):
                continue
            states[path] = "unknown"
            if program is not None:
                _rc, out, _err = self.module.run_command([program, "--test-key", path])
                for state in ("already enrolled", "not enrolled"):
                    if state in out:
                        states[path] = state.removeprefix("already ")
        return states

    def persistence(self) -> dict[str, t.Any]:
        names = ("LoadState", "UnitFileState", "ActiveState", "FragmentPath")
        out = self.ask("systemctl", "show", "-p", ",".join(names), "nvidia-persistenced.service")
        said = systemd.properties(out)
        # its own command line, not what our drop-in makes of it
        unit = read(said.get("FragmentPath", ""))
        commands = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
        return {
            "load_state": said.get("LoadState", "not-found"),
            "unit_file_state": said.get("UnitFileState", ""),
            "static": bool(unit) and not re.search(r"^\[Install\]", unit, re.MULTILINE),
            "active": said.get("ActiveState") == "active",
            "exec_start": (commands or [""])[-1],
        }

    def initramfs(self, kernel: str) -> dict[str, t.Any] | None:
        path = f"/boot/initrd.img-{kernel}"
        try:
            return {"path": path, "mtime": os.stat(path).st_mtime}
        except OSError:
            return None

    def kept(self) -> dict[str, dict[str, str]]:
        directory = self.module.params["kept_dir"]
        found: dict[str, dict[str, str]] = {}
        for folder, _folders, names in os.walk(directory or os.devnull):
            for name in names:
                parts = name.removesuffix(".deb").split("_")
                if name.endswith(".deb") and len(parts) == 3:
                    found.setdefault(parts[0], {})[urllib.parse.unquote(parts[1])] = os.path.join(folder, name)
        return found

    def cuinit(self) -> dict[str, t.Any]:
        if not self.module.params["cuda"]:
            return {"result": None, "detail": "not asked"}
        # by itself: a library that crashes or hangs must not take the module along
        rc, out, err = self.module.run_command(["timeout", "60", sys.executable, "-c", CUINIT])
        if rc == 0 and out.strip().isdigit():
            return {"result": int(out), "detail": ""}
        if rc == 124:
            return {"result": None, "detail": "it did not answer within 60 seconds"}
        detail = (err.strip().splitlines() or [f"exit status {rc}"])[-1].removeprefix("OSError: ")
        return {"result": None, "detail": detail}


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "modules": {
                "type": "list",
                "elements": "str",
                "default": ["nvidia", "nvidia-current-open", "nvidia-current"],
            },
            "policies": {"type": "list", "elements": "str", "default": []},
            "kept_dir": {"type": "path"},
            "cuda": {"type": "bool", "default": False},
        },
        supports_check_mode=True,
    )
    host = Host(module)
    kernels = host.kernels()
    following, why = host.next_kernel(kernels)
    wanted = module.params["policies"]
    module.exit_json(
        changed=False,
        driver={
            "packages": host.packages(),
            "kernels": kernels,
            "kernel_running": platform.release(),
            "kernel_next": following,
            "kernel_next_why": why,
            "modules": {
                kernel: host.kernel_module(kernel) for kernel in dict.fromkeys([platform.release(), following])
            },
            "dkms": host.ask("dkms", "status").splitlines(),
            "loaded_version": read("/sys/module/nvidia/version").strip(),
            "nouveau_loaded": os.path.isdir("/sys/module/nouveau"),
            "secure_boot": host.secure_boot(),
            "mok": host.mok(),
            "persistence": host.persistence(),
            "initramfs": host.initramfs(following),
            "policies": apt.parse_policy(host.ask("apt-cache", "policy", *wanted)) if wanted else {},
            "kept": host.kept(),
            "cuinit": host.cuinit(),
        },
    )


if __name__ == "__main__":
    main()
