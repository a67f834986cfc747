# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a host says about its driver. Private to this collection. Reads, and runs programs that only answer.

What is missing on the host is empty in the answer, never a failure.
"""

from __future__ import annotations

import os
import platform
import re
import typing as t
import urllib.parse

from .._base import systemd, unit_sandbox
from .._base.types import Json
from .._hardware import host_hardware
from . import (
    apt,
    boot_menu,
    driver_kernel,
    driver_packages,
    driver_settings,
    driver_systems,
    driver_versions,
    kernel_headers,
)
from .driver_proof import CuInit
from .driver_types import HostDriver, KernelModule, Package, PersistenceUnit

UNIT: t.Final = "nvidia-persistenced.service"
_KEYS = ("/var/lib/shim-signed/mok/MOK.der", "/var/lib/dkms/mok.pub")
_WANTS = f"/etc/systemd/system/multi-user.target.wants/{UNIT}"
NODES_UNIT: t.Final = "mixed-gpu-nodes.service"
# systemd's own: the interpreter of a module may lie where the sandbox shows nothing
_PYTHON = "/usr/bin/python3"
_CUINIT_SECONDS: t.Final = 60
_CUINIT = "import ctypes; print(ctypes.CDLL('libcuda.so.1').cuInit(0))"


class Programs(t.Protocol):
    """What is needed of an AnsibleModule."""

    def get_bin_path(self, arg: str) -> str | None:
        """Return the path of a program."""

    def run_command(self, args: list[str], *, environ_update: dict[str, str], cwd: str | None) -> tuple[int, str, str]:
        """Run a command and return its return code, output and error output."""


class Host:
    """A host that is asked; `programs` is an AnsibleModule, `kept_dir` the directory of kept package files."""

    def __init__(self, programs: Programs, kept_dir: str) -> None:
        self._programs = programs
        self._kept_dir = kept_dir

    def run(self, command: list[str], cwd: str | None = None) -> tuple[int, str, str]:
        """Run a command with apt's environment; 127 where there is no such program."""
        program = self._programs.get_bin_path(command[0])
        if program is None:
            return 127, "", f"{command[0]} is not installed"
        return self._programs.run_command([program, *command[1:]], environ_update=dict(apt.ENVIRONMENT), cwd=cwd)

    def _ask(self, *command: str) -> str:
        """What a program prints, or "" where it is missing or fails."""
        returncode, out, _err = self.run(list(command))
        return out if returncode == 0 else ""

    def look(self) -> HostDriver:
        """Return everything but what apt could install (`policies`)."""
        kernel, why, known = self.next_kernel()
        following = [kernel] if known else host_hardware.kernels()
        initrds = [_mtime(f"/boot/initrd.img-{name}") for name in following]
        return {
            "system": system(),
            "packages": self.packages(),
            "kernel_running": platform.release(),
            "kernel_next": kernel,
            "kernels_next": following,
            "kernel_next_why": why,
            "modules": {name: self._kernel_module(name) for name in dict.fromkeys([platform.release(), *following])},
            "headers": self._headers(following),
            "images": {name: self._owner(f"/boot/vmlinuz-{name}") for name in following},
            "dkms": self._ask("dkms", "status").splitlines(),
            "loaded_version": driver_versions.loaded(),
            "nouveau_loaded": os.path.isdir("/sys/module/nouveau"),
            "secure_boot": host_hardware.secure_boot(),
            "mok": self._mok(),
            "persistence": self._persistence(),
            "initramfs_mtime": min((time for time in initrds if time is not None), default=None),
            "nouveau_mtime": _mtime(driver_settings.NOUVEAU_PATH, driver_settings.NOUVEAU),
            "policies": {},
            "kept": self.kept(),
        }

    def packages(self) -> dict[str, Package]:
        """Return the driver's packages, kernel metapackages, headers and dkms, by name."""
        return driver_packages.parse_dpkg(self._ask("dpkg-query", "-W", "-f", driver_packages.DPKG_FORMAT))

    def policies(self, names: t.Iterable[str]) -> Json:
        """Return what apt could install of these packages."""
        return apt.parse_policy(self._ask("apt-cache", "policy", *sorted(set(names))))

    def next_kernel(self) -> driver_kernel.NextKernel:
        """Return the kernel that boots next, and why."""
        kernels, running = host_hardware.kernels(), platform.release()
        if kernels and _efi_text("LoaderInfo").startswith("systemd-boot"):
            return self._of_systemd_boot(kernels, running)
        settings = _read("/etc/default/grub")
        try:
            parts = sorted(os.listdir("/etc/default/grub.d"))
        except OSError:
            parts = []
        settings += "".join("\n" + _read(f"/etc/default/grub.d/{part}") for part in parts if part.endswith(".cfg"))
        default = boot_menu.shell_value(settings, "GRUB_DEFAULT")
        environment, menu = _read("/boot/grub/grubenv"), _read("/boot/grub/grub.cfg")
        return driver_kernel.next_kernel(kernels, running, default, environment, menu)

    def _of_systemd_boot(self, kernels: list[str], running: str) -> driver_kernel.NextKernel:
        """Return the kernel that systemd-boot starts: Proxmox pins one in a file, and everybody else asks bootctl."""
        for path in ("/etc/kernel/next-boot-pin", "/etc/kernel/proxmox-boot-pin"):
            if _read(path).strip() in kernels:
                return driver_kernel.NextKernel(_read(path).strip(), f"{path} names it")
        listed = self._ask("bootctl", "--no-pager", "--json=short", "list")
        kernel = boot_menu.systemd_boot(listed, _efi_text("LoaderEntryOneShot"), kernels)
        if kernel:
            return driver_kernel.NextKernel(kernel, "it is systemd-boot's default entry")
        return driver_kernel.not_known(kernels, running, "bootctl names no default entry with a kernel of /boot")

    def _owner(self, path: str) -> str:
        """Return the package that owns a path, or ""; /lib is a link to /usr/lib, and packages own either name."""
        said = [self._ask("dpkg-query", "-S", name) for name in (path, f"/usr{path}")]
        return kernel_headers.owner("".join(said))

    def _headers(self, kernels: t.Iterable[str]) -> dict[str, str]:
        """Return the package that owns the headers of each kernel that has some."""
        paths = {kernel: f"/lib/modules/{kernel}/build" for kernel in kernels}
        return {kernel: self._owner(path) for kernel, path in paths.items() if os.path.exists(f"{path}/Makefile")}

    def kept(self) -> dict[str, dict[str, str]]:
        """Return the paths of kept package files, by package and version."""
        found: dict[str, dict[str, str]] = {}
        for folder, _folders, names in os.walk(self._kept_dir):
            for name in names:
                parts = name.removesuffix(".deb").split("_")
                if name.endswith(".deb") and len(parts) == 3:
                    found.setdefault(parts[0], {})[urllib.parse.unquote(parts[1])] = os.path.join(folder, name)
        return found

    def cuinit(self) -> CuInit:
        """Call cuInit as a serving unit would: in its sandbox, with its devices, as its kind of user.

        Called as root, the library loads nvidia_uvm and makes its node, and so hides that a server cannot.
        """
        systemd_run = self._programs.get_bin_path("systemd-run") or "systemd-run"
        properties = [
            *unit_sandbox.lines("llama_cpp", unit_sandbox.nodes(["CUDA"]), ["localhost"]),
            f"RuntimeMaxSec={_CUINIT_SECONDS}",
        ]
        returncode, out, err = self.run(unit_sandbox.command([systemd_run], properties, [_PYTHON, "-I", "-c", _CUINIT]))
        if returncode == 0 and out.strip().isdigit():
            return {"result": int(out), "detail": ""}
        lines = err.strip().splitlines() or [f"no answer within {_CUINIT_SECONDS} seconds or exit status {returncode}"]
        return {"result": None, "detail": lines[-1].removeprefix("OSError: ")}

    def nodes_unit(self) -> dict[str, str]:
        """Return C(ActiveState) and C(UnitFileState) of the unit that makes the device nodes at boot."""
        return systemd.properties(self._ask("systemctl", "show", "-p", "ActiveState,UnitFileState", NODES_UNIT))

    def _kernel_module(self, kernel: str) -> KernelModule | None:
        for name in driver_versions.MODULES:
            version = self._ask("modinfo", "-k", kernel, "-F", "version", name).strip()
            if version:
                return {"version": version, "signer": self._ask("modinfo", "-k", kernel, "-F", "signer", name).strip()}
        return None

    def _mok(self) -> dict[str, str]:
        states = {path: "unknown" for path in _KEYS if os.path.exists(path)}
        for path in states:
            _returncode, out, _err = self.run(["mokutil", "--test-key", path])
            answers = [state for state in ("already enrolled", "not enrolled") if state in out]
            states[path] = answers[0].removeprefix("already ") if answers else "unknown"
        return states

    def _persistence(self) -> PersistenceUnit:
        names = ("UnitFileState", "ActiveState", "FragmentPath", "NeedDaemonReload")
        out = self._ask("systemctl", "show", "-p", ",".join(names), UNIT)
        said = systemd.properties(out)
        # the unit's own command line, not what the drop-in makes of it
        unit = _read(said.get("FragmentPath", ""))
        commands = re.findall(r"^ExecStart=(.+)$", unit, re.MULTILINE)
        return {
            "present": bool(unit),
            "unit_file_state": said.get("UnitFileState", ""),
            "static": bool(unit) and not re.search(r"^\[Install\]", unit, re.MULTILINE),
            "active": said.get("ActiveState") == "active",
            "exec_start": (commands or [""])[-1],
            "stale": said.get("NeedDaemonReload") == "yes",
            "wanted_at_boot": os.path.lexists(_WANTS),
            "dropin": _read(driver_settings.DROPIN_PATH),
        }


def _read(path: str) -> str:
    """The text of a file, or "" where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as handle:
            return handle.read()
    except OSError:
        return ""


def _efi_text(name: str) -> str:
    """Return a variable of the boot loader interface (systemd.io/BOOT_LOADER_INTERFACE): UTF-16 behind four bytes."""
    path = f"/sys/firmware/efi/efivars/{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f"
    try:
        with open(path, "rb") as handle:
            return handle.read()[4:].decode("utf-16-le", errors="replace").rstrip("\0")
    except OSError:
        return ""


def _mtime(path: str, content: str | None = None) -> float | None:
    """The time of a file's last change, or None where it is missing or, with `content`, says something else."""
    if content is not None and _read(path) != content:
        return None
    try:
        return os.stat(path).st_mtime
    except OSError:
        return None


def system() -> str:
    """Return name and release of the operating system, such as Debian 13."""
    text = _read("/etc/os-release") or _read("/usr/lib/os-release")
    values = dict(re.findall(r"^(ID|VERSION_ID)=[\"']?([^\"'\n]*)", text, re.MULTILINE))
    return driver_systems.system_name(values.get("ID", ""), values.get("VERSION_ID", ""))
