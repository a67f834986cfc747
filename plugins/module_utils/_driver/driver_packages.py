# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Which driver packages to install, hold, pin and keep, and whether what is there will do. Private to this collection.

Pure functions only. What is known about systems and branches is a table of the role nvidia_driver (vars/systems.yml,
with sources); here are the decisions. A decision is a dict whose `error` is "" or one sentence: what, why, cure.
"""

from __future__ import annotations

import re
import typing as t

Table = t.Mapping[str, t.Any]

# By source package where the distribution names it well, else by name; toolkits and container tools come and go alone.
_DRIVER_SOURCE = re.compile(
    r"nvidia-(graphics-drivers|open-gpu-kernel-modules|persistenced|modprobe)|firmware-nvidia|linux-restricted-|linux-signatures-nvidia"
)
_DRIVER_NAME = re.compile(
    r"(nvidia-|libnvidia-|cuda-drivers|linux-(modules|objects|signatures)-nvidia-|xserver-xorg-video-nvidia)"
)
_OTHER_NAME = re.compile(
    r"(nvidia-(cuda|container|ctk|docker|visual-profiler|profiler|nsight|cudnn|fs|gds|egl|vaapi|texture)|libnvidia-(container|egl))"
)
# The package that brings the kernel module decides whose driver a host has.
_MODULE_PACKAGE = re.compile(
    r"(nvidia-(tesla-[0-9]+-)?(open-)?kernel(-open)?-dkms|nvidia-dkms(-[0-9]+)?(-server)?(-open)?"
    r"|linux-modules-nvidia-[0-9]+.*)\Z"
)
_KERNEL_METAPACKAGE = re.compile(
    r"linux-((image|headers|modules-extra|tools)-)?(generic|lowlatency|virtual|oem|amd64|cloud-amd64|rt-amd64)"
    r"(-hwe)?(-[0-9]{2}\.[0-9]{2}[a-z]?)?(-edge)?\Z"
)
# What unattended-upgrades must leave alone; Python regular expressions, matched at the start of a name.
_BLACKLISTED = (
    "nvidia-", "libnvidia-", "libcuda1", "libnvcuvid1", "cuda-drivers", "firmware-nvidia-", "linux-modules-nvidia-",
    "xserver-xorg-video-nvidia",
)  # fmt: skip
_BLACKLISTED_KERNELS = ("linux-image-", "linux-headers-", "linux-generic", "linux-modules-")

# Drivers whose kernel module is known not to compile. (branch, newest bad version, oldest bad kernel, open modules
# only,
# cure, source)
_BAD_BUILDS = (
    ("550", "550.163.01-5", "6.12.97", True, "set nvidia_driver_open_modules to false",
     "NVIDIA/open-gpu-kernel-modules#1272"),
    ("580", "580.126.17", "7.0", False, "boot and keep a kernel of the 6 series, or take 580.159.04 or later",
     "NVIDIA/infra-controller#6049"),
    ("580", "580.159", "7.1", False, "boot and keep an older kernel, or take 580.159.04 or later",
     "void-linux/void-packages#61087"),
)  # fmt: skip


def version_key(version: str) -> tuple[t.Any, ...]:
    """Return a sort key of a Debian version (or of a kernel release), ordered as dpkg --compare-versions does.

    Source: deb-version(7). Epoch, upstream version and revision are compared one after the other; in each, runs of
    non-digits (letters before other characters, ~ before the end) and of digits (as numbers) alternate.
    """
    epoch, _colon, rest = version.rpartition(":")
    upstream, dash, revision = rest.rpartition("-")
    if not dash:
        upstream, revision = rest, ""
    return (int(epoch or 0), _part_key(upstream), _part_key(revision))


def _part_key(text: str) -> tuple[t.Any, ...]:
    key: list[t.Any] = []
    for letters, digits in re.findall(r"([^0-9]*)([0-9]*)", text):
        if not letters and not digits:
            continue
        # 0 ends a run: after ~ (-1), before every letter and every other character
        key.append((*(-1 if char == "~" else ord(char) + (0 if char.isalpha() else 256) for char in letters), 0))
        key.append(int(digits or 0))
    return (*key, (0,))


def upstream(version: str) -> str:
    """Return the driver's own version in a package version: 580.95.05 of 1:580.95.05-0ubuntu0.24.04.1."""
    return version.rpartition(":")[2].split("-", 1)[0].split("~", 1)[0].split("+", 1)[0]


def branch_of(version: str) -> str:
    """Return the branch of a version of the driver, such as 580; "" for what is none."""
    major = re.match(r"([0-9]+)\.", upstream(version))
    return major[1] if major else ""


def is_driver(name: str, source: str = "") -> bool:
    """Whether a package belongs to the driver, so that it must stay of one version with the loaded module."""
    if _OTHER_NAME.match(name):
        return False
    return bool(_DRIVER_SOURCE.match(source) or _DRIVER_NAME.match(name))


def is_kernel_metapackage(name: str) -> bool:
    """Whether a package only pulls the newest kernel or its headers."""
    return bool(_KERNEL_METAPACKAGE.match(name))


def parse_dpkg(text: str) -> dict[str, dict[str, t.Any]]:
    """Return the packages of the driver, the kernel metapackages and dkms by name, as {version, source, arch, held,
    whole}.

    `text` is what dpkg-query prints for ``DPKG_FORMAT``. A held package counts: its status abbreviation is hi, not ii.
    One that was left half installed counts as well, with `whole` false. Of several architectures the first is kept.
    """
    found: dict[str, dict[str, t.Any]] = {}
    for line in text.splitlines():
        want, status, name, arch, version, source = (*line.split("\t"), *[""] * 6)[:6]
        if status not in ("", "not-installed", "config-files") and name not in found:
            whole = status in ("installed", "triggers-awaited", "triggers-pending")
            found[name] = {"version": version, "source": source, "arch": arch, "held": want == "hold", "whole": whole}
    return {
        name: entry
        for name, entry in sorted(found.items())
        if is_driver(name, entry["source"]) or is_kernel_metapackage(name) or name == "dkms" or "linux-headers-" in name
    }


DPKG_FORMAT = "${db:Status-Want}\t${db:Status-Status}\t${Package}\t${Architecture}\t${Version}\t${source:Package}\n"


def next_kernel(
    kernels: t.Sequence[str], running: str, grub_default: str = "", grub_environment: str = ""
) -> tuple[str, str]:
    """Return the kernel that boots next and why: (release, sentence).

    GRUB takes `next_entry` once, else the entry of GRUB_DEFAULT (a name, or `saved`), else the newest kernel
    (/etc/grub.d/10_linux sorts by version). `kernels` are the releases in /boot. Without any, the running one counts.
    """
    if not kernels:
        return running, "no kernel is in /boot: the running one counts"
    newest = max(kernels, key=version_key)
    stated = dict(re.findall(r"^(next_entry|saved_entry)=(.+)$", grub_environment, re.MULTILINE))
    chosen = [("next_entry of GRUB", stated.get("next_entry", ""))]
    if grub_default == "saved":
        chosen.append(("saved_entry of GRUB", stated.get("saved_entry", "")))
    else:
        chosen.append(("GRUB_DEFAULT", grub_default))
    for name, entry in chosen:
        named = [kernel for kernel in kernels if re.search(rf"(?<![0-9.]){re.escape(kernel)}(?![A-Za-z0-9+])", entry)]
        if named:
            return max(named, key=len), f"{name} names it"
    return newest, "it is the newest in /boot"


def system_name(distribution: str, version: str) -> str:
    """Return the table's key: Debian 13.2 is Debian 13, Ubuntu 24.04.3 is Ubuntu 24.04."""
    parts = version.split(".")
    return f"{distribution} {'.'.join(parts[: 1 if distribution == 'Debian' else 2])}"


def _error(sentence: str, **more: t.Any) -> dict[str, t.Any]:
    return {"error": sentence, **more}


def plan(info: Table, request: Table, table: Table) -> dict[str, t.Any]:
    """Decide what the host is to have, before anything is asked of apt.

    `info` is what nvidia_driver_info returns as `driver`. `request` has branch, version (""), source (distribution or
    nvidia), open_modules, signed_modules, system (of `system_name`) and recorded (packages of the newest recorded state
    that this role installed). `table` has `systems` and `branches` (roles/nvidia_driver/vars/systems.yml).
    Returns {error, branch, packages, headers, main, module, release, foreign, installed, missing, cure, note}:
    `main` brings the kernel module, `module` is its name for modinfo, `foreign` is "" or what the host's own driver is,
    `installed` the package version of `main`, `missing` what must be installed or changed.
    """
    system = table["systems"].get(request["system"])
    if system is None:
        return _error(
            f"The role nvidia_driver knows no driver packages for {request['system']}: use "
            f"{' or '.join(table['systems'])}, or install a driver yourself and set nvidia_driver_manage to false."
        )
    branch, exact = str(request["branch"]), str(request["version"])
    if not re.fullmatch(r"[0-9]{3}", branch):
        return _error(
            f'nvidia_driver_branch is "{branch}", which is no driver branch; set it to three digits, such as 580.'
        )
    if exact and branch_of(exact) != branch:
        return _error(
            f'nvidia_driver_version is "{exact}", which is not of branch {branch}: set nvidia_driver_branch to '
            f'"{branch_of(exact) or "its first number"}", or correct the version.'
        )
    kinds = system[request["source"]]
    life = table["branches"].get(branch, {})
    if life.get("end_of_life") and branch not in kinds.get("maintained", []):
        return _error(
            f"Driver branch {branch} is end of life ({life['end_of_life']}) and gets no fixes: set "
            "nvidia_driver_branch to "
            f'"{life["instead"]}"{_where(system, request, life["instead"])}.'
        )
    only = kinds.get("branches", [])
    if only and branch not in only:
        return _error(
            f"{request['system']} has driver branch {' or '.join(only)} from the source {request['source']}, not "
            f"{branch}: "
            f'set nvidia_driver_branch to "{only[0]}"{_where(system, request, branch)}.'
        )
    if int(branch) < int(kinds.get("oldest", 0)):
        return _error(
            f"NVIDIA's repository for {request['system']} begins with branch {kinds['oldest']}, not {branch}: set "
            f'nvidia_driver_branch to "{kinds["default"]}".'
        )
    flavour = ("open" if request["open_modules"] else "proprietary") + ("_signed" if request["signed_modules"] else "")
    # newest names first
    for names in kinds["packages"]:
        if int(branch) >= int(names.get("from", 0)) and flavour in names:
            break
    else:
        return _error(
            f"{request['system']} has no signed kernel modules from the source {request['source']}: set "
            "nvidia_driver_signed_modules to false, or nvidia_driver_source to distribution on Ubuntu."
        )
    packages = [name.format(branch=branch, kernel=info["kernel_next"]) for name in names[flavour]]
    headers = [] if request["signed_modules"] else _headers(info)
    installed = info["packages"].get(packages[0], {}).get("version", "")
    bad = known_bad(exact or installed, info["kernel_next"], request["open_modules"]) if exact or installed else ""
    result = {
        "error": f"{bad}." if bad and not _built(info, exact) else "",
        "branch": branch,
        "packages": packages,
        "headers": headers,
        "main": packages[0],
        "module": names.get("module", kinds.get("module", "nvidia")).format(
            open="-open" if request["open_modules"] else ""
        ),
        "installed": installed,
        "foreign": "",
        "missing": [],
        "cure": kinds["cure"],
        "note": "",
    }
    if life.get("end_of_life"):
        result["note"] = (
            f"NVIDIA ended branch {branch} ({life['end_of_life']}); {request['system']} still maintains it."
        )
    if not installed:
        foreign = _foreign(info, branch, request["recorded"])
        if foreign.get("error"):
            return {**result, **foreign}
        if foreign:
            return {**result, "foreign": foreign["foreign"]}
    wrong = installed and not _satisfies(installed, branch, exact)
    absent = [name for name in [*headers, *packages] if not info["packages"].get(name, {"whole": False})["whole"]]
    result["missing"] = [*headers, *packages] if wrong else absent
    return result


def _headers(info: Table) -> list[str]:
    """Headers of the kernel that boots next, and what brings those of later kernels along where their images come by
    themselves.
    """
    images = [name for name in info["packages"] if is_kernel_metapackage(name) and name.startswith("linux-image-")]
    return [f"linux-headers-{info['kernel_next']}", *(name.replace("-image-", "-headers-", 1) for name in images)]


def _where(system: Table, request: Table, branch: str) -> str:
    """The other source, where this one does not have the branch."""
    mine, other = system[request["source"]], system["nvidia" if request["source"] == "distribution" else "distribution"]
    if mine.get("branches") and branch not in mine["branches"]:
        if int(branch) >= int(other.get("oldest", 0)) and not other.get("branches"):
            return " and nvidia_driver_source to nvidia"
        return f' ("{other.get("default", "595")}") and nvidia_driver_source to nvidia' if other.get("oldest") else ""
    return ""


def _built(info: Table, exact: str) -> bool:
    """Whether the module is there for the kernel that boots next: then nothing has to be foretold."""
    module = info["modules"].get(info["kernel_next"])
    return bool(module) and (not exact or module["version"] == upstream(exact))


def known_bad(version: str, kernel: str, open_modules: bool) -> str:
    """Return why this version's module will not compile for a kernel, or "" when nothing is known against it."""
    release = re.match(r"[0-9.]+", kernel)
    for branch, newest, oldest_kernel, only_open, cure, source in _BAD_BUILDS:
        if (
            branch_of(version) == branch
            and version_key(version) < version_key(newest)
            and release
            and version_key(release[0]) >= version_key(oldest_kernel)
            and (open_modules or not only_open)
        ):
            kind = "open kernel module" if only_open else "kernel module"
            return (
                f"The {kind} of driver {version} does not compile for kernel {kernel}, which boots next ({source}): "
                f"{cure}"
            )
    return ""


def _satisfies(version: str, branch: str, exact: str) -> bool:
    if not exact:
        return branch_of(version) == branch
    return version == exact or ("-" not in exact and upstream(version) == exact)


def _foreign(info: Table, branch: str, recorded: t.Container[str]) -> dict[str, str]:
    """What other driver than ours is there: {} | {foreign: sentence} | {error: sentence}."""
    others = {
        name: entry
        for name, entry in info["packages"].items()
        if _MODULE_PACKAGE.match(name) and name not in recorded and branch_of(entry["version"])
    }
    for name, entry in others.items():
        if branch_of(entry["version"]) == branch:
            return {
                "foreign": f"Driver {upstream(entry['version'])} ({name}) is of the wanted branch and from other "
                "packages than "
                "this role's: it is left as it is."
            }
    held = [name for name, entry in others.items() if entry["held"]]
    if held:
        return {
            "error": f"{held[0]} (branch {branch_of(others[held[0]]['version'])}) was held by somebody else, and "
            f"branch {branch} would "
            f"replace it: run 'apt-mark unhold {' '.join(held)}', or set nvidia_driver_manage to false."
        }
    loaded = info["loaded_version"]
    if not others and loaded and branch_of(loaded) == branch:
        return {
            "foreign": f"Driver {loaded} is loaded, of the wanted branch and from no package that is known: it is "
            "left as it is."
        }
    return {}


def choose(planned: Table, policies: Table, info: Table, request: Table) -> dict[str, t.Any]:
    """Decide which version of each missing package to install.

    `policies` is what apt.parse_policy returns for planned["missing"], planned["main"] and the driver's installed
    packages.
    Returns {error, version, install: {name: version}, remove, downgrade}: `version` is that of the package that brings
    the kernel module, `remove` names packages of another driver that must go first in the same step.
    """
    main, branch, exact = planned["main"], planned["branch"], str(request["version"])
    known = {name: policies.get(name, {"candidate": "", "versions": []}) for name in planned["missing"]}
    lacking = [name for name, entry in known.items() if not entry["versions"]]
    if lacking:
        headers = [name for name in lacking if name in planned["headers"]]
        cure = planned["cure"]
        if headers == lacking:
            cure = (
                f"kernel {info['kernel_next']} boots next and is not of the distribution's archive any more; install "
                "the archive's "
                "kernel and reboot into it"
            )
        return _error(f"The host's apt sources do not have {', '.join(lacking)}: {cure}.")
    available = policies.get(main, {"versions": []})["versions"]
    fitting = [version for version in available if _satisfies(version, branch, exact)]
    if exact and not fitting:
        return _error(
            f"The host's apt sources do not have {main} in version {exact}, only {', '.join(available) or 'none'}: "
            "choose one of "
            "these, or go back to a version that was kept (playbook driver_rollback)."
        )
    newest = available[0] if available else ""
    # An old branch's name lives on as an empty package that depends on the next branch.
    if branch in main and not exact and branch_of(newest) != branch:
        return _error(
            f"{main} is only a transitional package by now and would install branch {branch_of(newest)} ({newest}) "
            "instead of "
            f'{branch}: set nvidia_driver_branch to "{branch_of(newest)}" if that will do.'
        )
    if not fitting:
        offered = sorted({branch_of(version) for version in available})
        return _error(
            f"On {request['system']} the package {main} is of driver branch {' or '.join(offered)}, not of {branch}: "
            "set "
            f'nvidia_driver_branch to "{offered[-1]}" if that will do.'
        )
    version = fitting[0]
    bad = known_bad(version, info["kernel_next"], request["open_modules"])
    if bad:
        return _error(f"{bad}.")
    install = {}
    for name, entry in known.items():
        same = [other for other in entry["versions"] if upstream(other) == upstream(version)]
        # what follows the driver's version has it; persistenced of Debian, firmware and headers have their own
        install[name] = version if version in entry["versions"] else (same or entry["versions"])[0]
    # whatever else of the driver is there follows: a metapackage may be content with any newer module
    for name, entry in info["packages"].items():
        offered = policies.get(name, {"versions": []})["versions"]
        if is_driver(name, entry["source"]) and version in offered and entry["version"] != version:
            install[name] = version
    remove = [
        name
        for name in info["packages"]
        if _MODULE_PACKAGE.match(name) and name != main and name not in install and not _belongs(name, planned)
    ]
    return {"error": "", "version": version, "install": install, "remove": remove}


def _belongs(name: str, planned: Table) -> bool:
    """Whether a package that brings a module is a part of the planned driver, as nvidia-dkms-580-server-open is."""
    wanted_open, branch = planned["main"].endswith("-open") or "-open" in planned["main"], planned["branch"]
    return branch in name and branch in planned["main"] and (("-open" in name) == wanted_open)


def pin(version: str) -> str:
    """Return the apt preferences that keep every package of the driver at one version, and allow going back to it.

    A priority of 1000 and more also downgrades (apt_preferences(5)). By source package, because pinning a metapackage
    alone leaves its dependencies free. The glob covers packages of other revisions of the same driver version.
    """
    return (
        "# Written by the role homelab.mixed_gpu.nvidia_driver: the driver stays at this version, also by going back.\n"
        "Package: src:*nvidia*:any src:cuda-drivers:any src:cuda-compat:any\n"
        f"Pin: version {version.rpartition(':')[0] and '*'}{upstream(version)}*\n"
        "Pin-Priority: 1001\n"
    )


def blacklist(with_kernel: bool) -> str:
    """Return apt configuration that keeps unattended-upgrades away from the driver, and from kernels where wanted."""
    patterns = (*_BLACKLISTED, *(_BLACKLISTED_KERNELS if with_kernel else ()))
    lines = "".join(f'    "^{pattern}";\n' for pattern in patterns)
    return (
        "// Written by the role homelab.mixed_gpu.nvidia_driver: the driver is upgraded on purpose, or not at all.\n"
        f"Unattended-Upgrade::Package-Blacklist {{\n{lines}}};\n"
    )


def holds(packages: Table, hold: bool, hold_kernel: bool) -> dict[str, list[str]]:
    """Return {hold, unhold, held}: packages whose hold has to change, and those that are held then.

    Kernel metapackages are held with both set.
    """
    wanted: dict[str, list[str]] = {"hold": [], "unhold": []}
    for name, entry in packages.items():
        if is_kernel_metapackage(name):
            should = hold and hold_kernel
        elif is_driver(name, entry["source"]):
            should = hold
        else:
            continue
        if should != entry["held"]:
            wanted["hold" if should else "unhold"].append(name)
    before = {name for name, entry in packages.items() if entry["held"]}
    wanted["held"] = sorted((before | set(wanted["hold"])) - set(wanted["unhold"]))
    return wanted


def persistence(unit: Table) -> dict[str, t.Any]:
    """Return what the persistence daemon needs: {dropin (text or ""), wants (bool)}.

    `unit` is {load_state, static (no [Install]), exec_start}, both of the unit's own file, without drop-ins.
    Ubuntu's unit is static,
    so that it cannot be enabled, stops when unneeded, and is started with --no-persistence-mode.
    """
    if unit["load_state"] != "loaded":
        return {"dropin": "", "wants": False}
    words = unit["exec_start"].split()
    static = unit["static"]
    if not static and "--no-persistence-mode" not in words:
        return {"dropin": "", "wants": False}
    words = [word for word in words if word not in ("--no-persistence-mode", "--persistence-mode")]
    dropin = (
        "# Written by the role homelab.mixed_gpu.nvidia_driver.\n"
        + ("[Unit]\nStopWhenUnneeded=false\n" if static else "")
        + f"[Service]\nExecStart=\nExecStart={' '.join([words[0], '--persistence-mode', *words[1:]])}\n"
    )
    return {"dropin": dropin, "wants": static}


def built_problem(info: Table, version: str) -> str:
    """Return "" when the module of this version is there for the kernel that boots next, else one sentence."""
    kernel, version = info["kernel_next"], upstream(version)
    module = info["modules"].get(kernel)
    if module and module["version"] == version:
        return ""
    if module:
        return (
            f"The NVIDIA kernel module for kernel {kernel}, which boots next ({info['kernel_next_why']}), is "
            f"{module['version']}, "
            f"and the packages are {version}: read 'dkms status', remove the module that is left over, and run the "
            "play again."
        )
    states = [line for line in info["dkms"] if line.startswith("nvidia") and f", {kernel}," in line]
    states = states or [line for line in info["dkms"] if line.startswith("nvidia")]
    said = f"dkms says '{'; '.join(states)}'" if states else "dkms knows nothing of it"
    return (
        f"The NVIDIA kernel module {version} is not there for kernel {kernel}, which boots next "
        f"({info['kernel_next_why']}); "
        f"{said}: read /var/lib/dkms/nvidia*/*/build/make.log, then choose another nvidia_driver_branch or "
        "nvidia_driver_version, or boot and keep a kernel that this driver supports."
    )


def secure_boot(info: Table) -> dict[str, t.Any]:
    """Return {ok, detail, cure}: whether Secure Boot lets the module of the next kernel be loaded, and what to do."""
    module = info["modules"].get(info["kernel_next"]) or {"version": "", "signer": ""}
    if info["secure_boot"] is None:
        return {"ok": True, "detail": "Secure Boot: this machine does not say (no EFI variables)", "cure": ""}
    if not info["secure_boot"]:
        return {"ok": True, "detail": "Secure Boot is off", "cure": ""}
    if "Canonical" in module["signer"]:
        return {"ok": True, "detail": f"Secure Boot is on, and the module is signed by {module['signer']}", "cure": ""}
    enrolled = [path for path, state in info["mok"].items() if state == "enrolled"]
    if module["signer"] and enrolled:
        detail = f"Secure Boot is on, the module is signed by {module['signer']}, and {enrolled[0]} is enrolled"
        return {"ok": True, "detail": detail, "cure": ""}
    key = next(iter(info["mok"]), "")
    if not module["signer"]:
        detail = "Secure Boot is on and the module is not signed, so the kernel will not load it"
    else:
        detail = (
            f"Secure Boot is on and the key of {module['signer']} is not enrolled, so the kernel will not load "
            "the module"
        )
    importing = (
        f"run 'mokutil --import {key}'" if key else ("make a key (dkms does when it builds), import it with mokutil")
    )
    cure = (
        f"{importing} as root, reboot, and choose 'Enroll MOK' at the machine's own screen (it cannot be done over the "
        "network); or set nvidia_driver_signed_modules to true on Ubuntu; or switch Secure Boot off in the firmware"
    )
    return {"ok": False, "detail": detail, "cure": cure}


CUDA_ERRORS = {
    2: ("out of memory", "end what holds the memory of the cards (nvidia-smi lists it)"),
    3: (
        "not initialized",
        "set nvidia_driver_uvm_disable_hmm to true (options nvidia_uvm uvm_disable_hmm=1: some kernels and open "
        "modules "
        "need it) and reboot",
    ),
    100: ("no device", "look whether CUDA_VISIBLE_DEVICES hides the cards, and read 'dmesg | grep -i nvrm'"),
    304: ("operating system", "load the module nvidia_uvm ('modprobe nvidia_uvm') and read 'dmesg | grep -i nvrm'"),
    802: ("system not ready", "start nvidia-fabricmanager where the cards have NVSwitch"),
    803: ("driver and library mismatch", "reboot: the library is of another version than the loaded module"),
    804: ("forward compatibility", "remove cuda-compat: it does not work with GeForce cards"),
    999: ("unknown", "reboot, and read 'dmesg | grep -i nvrm'"),
}


def cuda_problem(cuinit: Table) -> str:
    """Return "" when cuInit succeeded, else one sentence. `cuinit` is {result (number or None), detail}."""
    if cuinit["result"] == 0:
        return ""
    if cuinit["result"] is None:
        return (
            f"The CUDA library could not be asked ({cuinit['detail']}): install the driver's library libcuda.so.1 of "
            "the "
            "loaded module's version, then run the role nvidia_driver again."
        )
    name, cure = CUDA_ERRORS.get(cuinit["result"], ("see cuda.h", "reboot, and read 'dmesg | grep -i nvrm'"))
    return f"cuInit answers {cuinit['result']} ({name}), so no CUDA program can run: {cure}."


def problems(info: Table, gpus: Table, expected: t.Sequence[str], pci: t.Sequence[str]) -> list[str]:
    """Return one sentence for everything that keeps the cards from being used; empty means that all is well.

    `gpus` is the fact mixed_gpu_gpus. `expected` holds UUIDs or parts of names, one per card, or nothing for any.
    `pci` are the addresses of NVIDIA's display controllers.
    """
    found = []
    if not info["loaded_version"]:
        return [
            "The NVIDIA kernel module is not loaded: reboot; if that does not help, read 'modprobe nvidia' and 'dmesg "
            "| grep -i "
            "nvidia', and look at Secure Boot ('mokutil --sb-state')."
        ]
    if not gpus["available"]:
        return [str(gpus["reason"])]
    if gpus["driver_version"] != info["loaded_version"]:
        found.append(
            f"The loaded module is {info['loaded_version']} and the library {gpus['driver_version']}: reboot to end "
            "the "
            "half-done upgrade."
        )
    if len(gpus["gpus"]) != len(pci):
        found.append(
            f"The PCI bus has {len(pci)} NVIDIA card(s) and NVML sees {len(gpus['gpus'])}: read 'dmesg | grep -i "
            "nvrm', check "
            "power plugs and seating, and reboot."
        )
    free = list(gpus["gpus"])
    # UUIDs first, so that a name does not take the card that a UUID means
    for want in sorted(expected, key=lambda text: not text.startswith("GPU-")):
        card = next((card for card in free if want == card["uuid"] or want.lower() in card["name"].lower()), None)
        if card is None:
            there = ", ".join(f"{card['name']} {card['uuid']}" for card in gpus["gpus"]) or "none"
            found.append(
                f"nvidia_driver_gpus_expected wants {want}, and NVML sees {there}: reseat the card or correct the list."
            )
        else:
            free.remove(card)
    if expected and free and not found:
        found.append(
            f"NVML sees {len(gpus['gpus'])} cards, more than the {len(expected)} of nvidia_driver_gpus_expected: add "
            f"{free[0]['uuid']} to the list."
        )
    trouble = cuda_problem(info["cuinit"])
    return [*found, trouble] if trouble else found
