# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What host_preflight thinks of a host. Private to this collection.

A check is a dict {name, ok, severity, detail, cure}. `severity` says what a check that is not ok means: "error" cannot
work, "warning" works badly, "note" is worth knowing. `cure` is None where nothing needs one.
"""

from __future__ import annotations

import posixpath
import re
import textwrap
import typing as t

from .._base.checks import check
from .._hardware import known_cards, pcie, power_budget
from .._models import entries as llm_models
from .._models import model_shapes, transfer
from . import preflight_hardware as hardware

# Releases that are tested. Newer ones of the same distributions probably work, older ones lack Python 3.11.
TESTED_RELEASES = {"debian": ["12", "13"], "ubuntu": ["24.04"]}
OLDEST_PYTHON = (3, 11)
WIDTH = 74  # Ansible's own output breaks lines beyond that
WIDEST_NAME = 24
SWAP_USED_MIB = 512  # more swap in use than this says that the host is short of memory

MIB = 1 << 20

#: As the report names it.
CLAIMS_SOURCE = "Rule of thumb in guides for an RTX 4090 and a 3090"
PEAK_KEYS = ("peak_low_watts", "peak_high_watts")

Check = dict[str, t.Any]
Json = dict[str, t.Any]


def checks(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    """All checks of one host, in the order in which they are shown.

    `host` is what the module host_info returns as `host`, with `gpus`, the fact mixed_gpu_gpus, or None where it could
    not be asked, `engines`, what llm_engines_info found, or None, and `recorded`, the host fact mixed_gpu, or None.
    `wanted` holds port (int), memory_mib (int), disk ([{path, needed_mib}]), gpus_expected (UUIDs or parts of names),
    server_unit (the unit that may hold the port), models (see models), psu_watts (0 where it is not known),
    rest_of_machine_watts, power_limits_watts and locked_clocks_mhz (what is to be set, by UUID or end of the name), and
    power_budget_policy (warn, fail or ignore). Raises KeyError for a missing key.
    """
    expected = wanted["gpus_expected"]
    known = _model_sizes(host, wanted["models"])
    found = [
        _operating_system(host["os"]),
        check("architecture", host["machine"] == "x86_64", "error", host["machine"], "use an x86_64 machine"),
        _python(host["python_version"]),
        _root(host["uid"]),
        check(
            "systemd",
            host["init"] == "systemd",
            "error",
            f"process 1 is {host['init'] or 'unknown'}",
            "boot the host with systemd; a container needs an image whose command is systemd",
        ),
        *hardware.kernel(host),
        *hardware.machine(host, expected),
        *hardware.secure_boot(host),
        _memory(host, wanted["memory_mib"]),
        *_memory_for_models(host, known),
        _swap(host),
        *_models(wanted["models"], known),
    ]
    disks = [_with_models(want, wanted["models"], known) for want in wanted["disk"]]
    found += _disks(list(zip(host["disks"], disks, strict=True))) + _slow_disk(host, wanted)
    found.append(_port(host["listeners"], wanted["port"], wanted["server_unit"]))
    found += hardware.binding(host, expected)
    found.append(hardware.expected_cards(host, expected))
    found += pcie.links(host) + hardware.resizable_bar(host) + hardware.iommu(host)
    found += hardware.power(host, wanted) + hardware.others_on_the_cards(host)
    found += hardware.tensor_parallel(host, host["engines"], host["recorded"])
    found += _pending("revalidation", host["revalidation"]) + _pending("upgrade", host["upgrade"])
    return found


def _pending(name: str, found: t.Mapping[str, t.Any]) -> list[Check]:
    """What due.of_host or upgrade_stages.unfinished says, where something is to be done."""
    return [check(name, False, "warning", found["why"], found["cure"])] if found["needed"] else []


def models(entries: t.Sequence[t.Mapping[str, t.Any]], directory: str, sizes_mib: t.Mapping[str, t.Any]) -> Json:
    """What the entries of llm_models mean for a host: {directory, problem, files, models}.

    `files` are all paths to look at; `models` has id, paths, kind and size_mib per model, where size_mib is what
    `sizes_mib` gives by id, or what the catalogue or a well-known file of that name has, or None. `problem` is one
    sentence where an entry is not understood; then nothing else is known. Raises ValueError for a size that is no whole
    number.
    """
    found: Json = {"directory": directory, "problem": None, "files": [], "models": []}
    try:
        files = llm_models.model_files(entries, directory)
    except transfer.DownloadError as error:
        return {**found, "problem": str(error)}
    found["files"] = [file["path"] for file in files]
    for first in (file for file in files if file["first"]):
        name = first["id"]
        given = sizes_mib.get(name)
        if given is not None and not str(given).isdigit():
            raise ValueError(f"the size of the model {name} is {given!r}: it must be a whole number of MiB")
        paths = [file["path"] for file in files if file["id"] == name]
        sizes = [file["size_bytes"] for file in files if file["id"] == name]
        size = int(given) if given is not None else _published_mib(posixpath.basename(first["path"]))
        if given is None and None not in sizes:
            size = round(sum(sizes) / MIB)
        found["models"].append({"id": name, "paths": paths, "kind": first["kind"], "size_mib": size})
    return found


def _published_mib(name: str) -> int | None:
    """Size of a well-known file by its name, however that is punctuated."""
    letters = _letters(name.removesuffix(".gguf"))
    for key, gigabytes in model_shapes.PUBLISHED_GB.items():
        if letters == _letters(f"{model_shapes.SHAPES[key].name} Q4_K_M"):
            return round(gigabytes * 1e9 / MIB)
    return None


def _letters(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.lower())


def _model_sizes(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Json]:
    """The models with the size of what is on the host, where all their files are."""
    on_host = {file["path"]: file["size_bytes"] for file in host["files"]}
    found = []
    for model in wanted["models"]:
        sizes = [on_host.get(path) for path in model["paths"]]
        whole = all(size is not None for size in sizes)
        size = sum(size for size in sizes if size) // MIB if whole else model["size_mib"]
        found.append({**model, "size_mib": size, "there": whole})
    return found


def _models(wanted: t.Mapping[str, t.Any], known: t.Sequence[Json]) -> list[Check]:
    """What is wrong with llm_models, before an hour of building."""
    if wanted["problem"]:
        problem, _colon, cure = wanted["problem"].rstrip(".").rpartition(": ")
        return [check("models", False, "error", problem, cure)]
    missing = [model for model in known if model["kind"] == "path" and not model["there"]]
    return [
        check(
            "models", False, "error", f"{model['id']} is to be at {model['paths'][0]}, and not all of it is there",
            "put it there, correct its path in llm_models, or give a url",
        )
        for model in missing
    ]


def _sizes_words(known: t.Sequence[Json]) -> str:
    return ", ".join(
        f"{model['id']} {'of unknown size' if model['size_mib'] is None else str(model['size_mib']) + ' MiB'}"
        for model in known
    )


def _memory_for_models(host: t.Mapping[str, t.Any], known: t.Sequence[Json]) -> list[Check]:
    """A model on the cards needs little main memory to run; loading it again is quick where all of it stays cached."""
    if not known:
        return []
    largest = max((model["size_mib"] for model in known if model["size_mib"] is not None), default=None)
    if largest is None:
        return [check("memory for models", True, "note", f"not judged: {_sizes_words(known)}", None)]
    total = host["memory_total_mib"]
    unknown = [model for model in known if model["size_mib"] is None]
    detail = f"{total} MiB; {_sizes_words([model for model in known if model['size_mib'] == largest] + unknown)}"
    cure = (
        "every load, five to seven in a tuning, reads it from disk again; more memory than the largest model makes"
        " loads quick"
    )
    return [check("memory for models", total > largest, "warning", detail, cure)]


def _with_models(want: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any], known: t.Sequence[Json]) -> Json:
    """What is wanted of a path; in the models' directory no less than the known sizes of what is put there."""
    if posixpath.normpath(want["path"]) != posixpath.normpath(wanted["directory"]):
        return dict(want)
    sizes = [model["size_mib"] or 0 for model in known if model["kind"] != "path"]
    return {**want, "needed_mib": max(want["needed_mib"], sum(sizes))}


def _models_disk(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> t.Mapping[str, t.Any] | None:
    """The disk of the models' directory, where that was looked at."""
    pairs = zip(host["disks"], wanted["disk"], strict=True)
    return next((disk for disk, want in pairs if want["path"] == wanted["models"]["directory"]), None)


def _slow_disk(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Check]:
    disk = _models_disk(host, wanted)
    if disk is None or disk["medium"] != "disk" or not known_cards.of_host(host):
        return []
    cure = "put the models on an SSD: a spinning disk reads 40 GB in three to five minutes, at each load"
    return [check("kind of disk", False, "warning", f"{disk['path']} lies on a spinning disk", cure)]


def claims(host: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any]) -> list[Json]:
    """What guides say of such a box, beside what this one has: {name, claim, found, source}.

    Nothing is judged by a claim, and none was measured for this collection. Empty where there is no card, and none is
    expected.
    """
    known = known_cards.of_host(host)
    if not known and not wanted["gpus_expected"]:
        return []
    budget = power_budget.budget(known, wanted["psu_watts"], wanted["rest_of_machine_watts"])
    disk = _models_disk(host, wanted)
    widths = [gpu.get("pcie_width") for gpu in known]
    medium = {"nvme": "NVMe", "ssd": "SSD", "disk": "spinning disk", None: "kind unknown"}
    rows = {
        "power supply": ("1300 W", f"{wanted['psu_watts']} W" if wanted["psu_watts"] else "not known"),
        "peaks": (
            "600 + 450 W at once",
            "{} to {} W, unverified".format(*(budget[key] - budget["rest_watts"] for key in PEAK_KEYS))
            if known and budget["peak_low_watts"] is not None else "not known",
        ),
        "memory": ("64 to 128 GB", f"{host['memory_total_mib'] * MIB / 1e9:.0f} GB"),
        "disk": (
            "1 TB NVMe",
            f"{disk['total_mib'] * MIB / 1e12:.1f} TB, {medium[disk['medium']]}" if disk else "not looked at",
        ),
        "PCIe": (
            "4.0 x8 for both is enough",
            ", ".join(f"x{width}" for width in widths if width) or "not known",
        ),
    }
    return [
        {"name": name, "claim": claim, "found": found, "source": CLAIMS_SOURCE} for name, (claim, found) in rows.items()
    ]


def claims_table(rows: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """The claims as lines of text."""
    if not rows:
        return []
    width = max(len(row["name"]) for row in rows)
    claim = max(len(row["claim"]) for row in rows)
    return [
        f"{rows[0]['source']}, and what is here:",
        *(f"     {row['name']:<{width}}  {row['claim']:<{claim}}  {row['found']}" for row in rows),
    ]


def table(found: t.Sequence[t.Mapping[str, t.Any]]) -> list[str]:
    """The checks as lines of text, at most WIDTH columns wide: verdict, name, what was seen, and below it the cure.

    Only a word that is longer than its column goes beyond that, such as the UUIDs of two cards in a row.
    """
    width = min(WIDEST_NAME, max((len(row["name"]) for row in found), default=0))
    lines = []
    for row in found:
        verdict = "ok" if row["ok"] else {"error": "FAIL", "warning": "warn"}.get(row["severity"], "note")
        text = row["detail"] if row["ok"] or row["cure"] is None else f"{row['detail']}; {row['cure']}"
        start, indent = f"{verdict:<5}{row['name']:<{width}}  ", " " * (width + 7)
        if len(row["name"]) > width:  # a deep path: the text begins below it
            lines.append(start.rstrip())
            start = indent
        lines += textwrap.wrap(
            text, width=WIDTH, initial_indent=start, subsequent_indent=indent, break_long_words=False,
            break_on_hyphens=False,
        )
    return lines


def _operating_system(system: t.Mapping[str, t.Any]) -> Check:
    detail = system["pretty_name"] or system["id"] or "unknown"
    tested = TESTED_RELEASES.get(system["id"] or "")
    version = system["version_id"] or ""
    if tested is not None and version in tested:
        return check("operating system", True, "error", detail, None)
    if tested is not None and _numbers(version) > _numbers(tested[-1]):
        cure = f"newer than what is tested ({', '.join(tested)}); go on, and say so when you report a problem"
        return check("operating system", False, "warning", detail, cure)
    detail = f"{detail} is not supported"
    return check("operating system", False, "error", detail, "use Debian 12 or 13, or Ubuntu 24.04")


def _python(version: str) -> Check:
    return check(
        "Python",
        _numbers(version)[:2] >= OLDEST_PYTHON,
        "error",
        version,
        "set ansible_python_interpreter to a Python of 3.11 or later, as Debian 12 and Ubuntu 24.04 have it",
    )


def _root(uid: int) -> Check:
    detail = "tasks run as root" if uid == 0 else f"tasks run as user id {uid}"
    return check("root", uid == 0, "error", detail, "set become to true, with a user that may use sudo")


def _memory(host: t.Mapping[str, t.Any], needed_mib: int) -> Check:
    total, available = host["memory_total_mib"], host["memory_available_mib"]
    return check(
        "memory",
        total >= needed_mib,
        "error",
        f"{total} MiB, {available} MiB of it available; {needed_mib} MiB needed",
        "add memory, or lower host_preflight_memory_mib if you know better",
    )


def _swap(host: t.Mapping[str, t.Any]) -> Check:
    total, used = host["swap_total_mib"], host["swap_used_mib"]
    return check(
        "swap",
        used <= SWAP_USED_MIB,
        "warning",
        f"{used} of {total} MiB in use" if total else "none",
        "the host is short of memory, and measurements would vary: stop what fills it, then 'swapoff -a && swapon -a'",
    )


def _disks(pairs: t.Sequence[tuple[t.Mapping[str, t.Any], t.Mapping[str, t.Any]]]) -> list[Check]:
    """One check per (disk, what is wanted there).

    What already lies below a path counts as room, or a host that is done would be called too small; what several paths
    still need of one file system adds up.
    """
    growth: dict[str, int] = {}
    for disk, want in pairs:
        still = max(0, want["needed_mib"] - disk["held_mib"])
        growth[disk["mount_point"]] = growth.get(disk["mount_point"], 0) + still
    found = []
    for disk, want in pairs:
        mount, free, held, needed = disk["mount_point"], disk["free_mib"], disk["held_mib"], want["needed_mib"]
        detail = f"{free} MiB free on {mount}{f', {held} MiB there already' * bool(held)}; {needed} MiB needed"
        if growth[mount] > needed - held > 0:
            detail += f", {growth[mount]} MiB with what the other paths need there"
        cure = f"free {growth[mount] - free} MiB on {mount}, or mount a larger disk at {want['path']}"
        ok = needed <= held or free >= growth[mount]
        found.append(check(f"disk {want['path']}", ok, "error", detail, cure))
    return found


def _port(listeners: t.Sequence[t.Mapping[str, t.Any]] | None, port: int, server_unit: str) -> Check:
    name = f"port {port}"
    if listeners is None:
        cure = "install iproute2 to have it looked at"
        return check(name, False, "note", "unknown, the host has no ss", cure)
    others = [listener for listener in listeners if listener["unit"] != server_unit]
    if not others:
        return check(name, True, "error", f"{server_unit} listens" if listeners else "free", None)
    who = sorted({_listener_words(listener) for listener in others})
    return check(
        name, False, "error", f"taken by {' and '.join(who)}", "stop it, or choose another llama_server_port"
    )


def _listener_words(listener: t.Mapping[str, t.Any]) -> str:
    process = f"{listener['process']} (pid {listener['pid']})" if listener["process"] else "a process"
    return f"{process} of {listener['unit']}" if listener["unit"] else process


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
