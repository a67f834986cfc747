# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one release of ExLlama with its server consists of, and its key. Private to this collection.

Pure functions only. A release is a directory: a virtual environment with PyTorch and the engine, the engine's
extension compiled for the host's cards, and a checkout of TabbyAPI. `settings` are the variables of the role
exllamav2 without their prefix, with the text of the requirements file as `requirements`.
"""

from __future__ import annotations

import re
import typing as t

from .._base import fingerprints
from .._base.errors import UserError
from .._driver import cuda_compat
from . import generations

Settings = t.Mapping[str, t.Any]
Record = dict[str, t.Any]

SCHEMA: t.Final = 1
_OLDEST_PYTHON: t.Final = (3, 11)

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
# a wheel by its address, whose name says its version
_WHEEL = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*@\s*\S*/[^/\s-]+-([^/\s-]+)-[^/\s]*\.whl", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_ARCHITECTURE = re.compile(r"[0-9]{2,3}")
_RELEASE = re.compile(r"release ([0-9]+\.[0-9]+)")


def pins(requirements: str) -> dict[str, str]:
    """Return name to version of what a requirements file pins, names normalised as PyPI does.

    Where markers give a package several versions, the last one counts: they are newer versions for newer Pythons.
    """
    found = [*_PIN.findall(requirements), *_WHEEL.findall(requirements)]
    return {re.sub(r"[-_.]+", "-", name).lower(): version.replace("%2B", "+") for name, version in found}


def torch_cuda(pinned: t.Mapping[str, str]) -> str:
    """Return the CUDA release ("13.0") that the pinned PyTorch was built with, or "" where it does not show.

    PyPI's PyTorch names no CUDA in its version, but pins the runtime library that it was built with.
    """
    version = pinned.get("nvidia-cuda-runtime") or pinned.get("nvidia-cuda-runtime-cu12") or ""
    found = re.match(r"[0-9]+\.[0-9]+", version)
    return found[0] if found else ""


def arch_list(architectures: t.Iterable[t.Any]) -> str:
    """Return TORCH_CUDA_ARCH_LIST ("8.6;8.9") for compute capabilities without their dot (86, "89")."""
    plain = sorted({str(architecture) for architecture in architectures}, key=lambda text: (len(text), text))
    wrong = [text for text in plain if not _ARCHITECTURE.fullmatch(text)]
    if wrong:
        raise UserError(
            f"{wrong[0]!r} in exllamav2_cuda_architectures is no compute capability; for a 3090 and a 4090 write "
            "[86, 89]."
        )
    return ";".join(f"{text[:-1]}.{text[-1]}" for text in plain)


def packages(settings: Settings) -> list[str]:
    """Return the distribution's packages that making a release needs."""
    compilers = ["ccache", "g++", "python3-dev"] if settings["build_extension"] else []
    return ["ca-certificates", "git", "python3-venv", *compilers]


def check_python(interpreter: str, version: str) -> None:
    """Raise UserError for a Python that cannot make the environment; `version` is "3.12", or "" for none."""
    found = re.fullmatch(r"([0-9]+)\.([0-9]+)", version)
    if found and (int(found[1]), int(found[2])) >= _OLDEST_PYTHON:
        return
    oldest = ".".join(map(str, _OLDEST_PYTHON))
    what = f"is Python {version}, which is too old" if found else "cannot be run"
    raise UserError(f"{interpreter} {what}: ExLlama needs Python {oldest} or later; set exllamav2_python to one.")


def check_cards(gpus: t.Sequence[str], known: t.Sequence[str]) -> None:
    """Raise UserError where exllamav2_gpus (`gpus`) names a card that the host does not have; `known` are the UUIDs."""
    strange = [card_id for card_id in gpus if card_id not in known]
    if strange:
        raise UserError(
            f"The card {strange[0]} of exllamav2_gpus is not in this host, which has {', '.join(known) or 'none'}; "
            "correct exllamav2_gpus."
        )


def architectures(settings: Settings, cards: t.Mapping[str, t.Any]) -> list[t.Any]:
    """Return the compute capabilities to compile for: those given, else those of the cards that will be used.

    `cards` is `mixed_gpu_gpus`. Raises UserError where neither tells, and for a card that is not there.
    """
    if cards["available"]:
        check_cards(settings["gpus"], [card["id"] for card in cards["gpus"]])
    if settings["cuda_architectures"] or not settings["build_extension"]:
        return list(settings["cuda_architectures"])
    found = [card for card in cards["gpus"] if not settings["gpus"] or card["id"] in settings["gpus"]]
    if not found:
        why = "there is none" if cards["available"] else cards["reason"]
        raise UserError(
            f"The CUDA architecture of this host's cards is unknown ({why}); correct that, or set "
            "exllamav2_cuda_architectures, for a 3090 and a 4090 to [86, 89]."
        )
    return sorted({card["compute_capability"].replace(".", "") for card in found})


def versions(record: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return what a build.json of a release says of versions: engine, pytorch and tabbyapi; of another build, nothing.

    A revalidation tells them where they changed.
    """
    if "package" not in record:
        return {}
    server = record.get("server") or {}
    return {
        str(record["package"]): str(record.get("version", "")),
        "pytorch": str(record.get("torch", "")),
        "tabbyapi": str(server.get("commit", "")),
    }


def directory(record: t.Mapping[str, t.Any]) -> str:
    """Return the name of the directory of a recorded release."""
    return f"{record['version']}-{record['key'][:12]}"


def plan(settings: Settings, python: str, nvcc: str, wanted: t.Iterable[t.Any]) -> Record:
    """Return a release: what build.json says, but for `found`.

    `python` is "3.12"; `nvcc` what its --version prints, "" for none; `wanted` the architectures to compile for. The
    key is the SHA-256 of all that changes the result. Raises UserError for what cannot be meant.
    """
    generation = generations.named(settings["engine"])
    pinned = pins(settings["requirements"])
    if generation.package not in pinned:
        raise UserError(
            f"The requirements for the engine {generation.name} pin no {generation.package}; correct "
            "exllamav2_requirements_file, or leave it empty."
        )
    commit = settings["server_commit"] or generation.server_commit
    if not _COMMIT.fullmatch(commit):
        raise UserError(
            f'exllamav2_server_commit is "{commit}"; set it to the full 40 digits of a commit of TabbyAPI, because a '
            "branch or tag moves."
        )
    compiled = settings["build_extension"]
    found = _RELEASE.search(nvcc)
    record = {
        "schema": SCHEMA,
        "engine": generation.name,
        "package": generation.package,
        "module": generation.module,
        "version": pinned[generation.package],
        "torch": pinned.get("torch", ""),
        "torch_cuda": torch_cuda(pinned),
        "python": python,
        "requirements": fingerprints.fingerprint({"text": settings["requirements"]}),
        "server": {"url": settings["server_git_url"], "commit": commit},
        "build_extension": compiled,
        "nvcc": found[1] if found and compiled else "",
        "arch_list": arch_list(wanted) if compiled else "",
    }
    # a mirror has the same commit
    return record | {"key": fingerprints.fingerprint(record | {"server": commit})}


def obstacle(record: t.Mapping[str, t.Any], driver: str) -> str:
    """Return one sentence about what stops a release from being made or used, or "".

    `driver` is the version of the loaded driver, or "".
    """
    found = _driver_obstacle(record, driver)
    return found or (_compile_obstacle(record) if record["build_extension"] else "")


def _driver_obstacle(record: t.Mapping[str, t.Any], driver: str) -> str:
    major, loaded = record["torch_cuda"].partition(".")[0], re.match(r"[0-9]+", driver)
    branch = cuda_compat.DRIVERS.get(int(major or 0))
    if branch and loaded and int(loaded[0]) < branch:
        return (
            f"PyTorch {record['torch']} was built with CUDA {record['torch_cuda']}, which needs driver {branch} or "
            f"later, and {driver} is loaded: install a newer one (nvidia_driver_branch), or give an "
            "exllamav2_requirements_file with a PyTorch for that driver."
        )
    return ""


def _compile_obstacle(record: t.Mapping[str, t.Any]) -> str:
    wanted, has = record["torch_cuda"], record["nvcc"]
    if not has:
        return (
            f"{record['package']} is compiled on this host, and there is no nvcc; run the role cuda_toolkit, or "
            "correct exllamav2_cuda_root."
        )
    if wanted and wanted.partition(".")[0] != has.partition(".")[0]:
        major = cuda_compat.parse(wanted)[0]
        return (
            f"PyTorch {record['torch']} was built with CUDA {wanted} and nvcc is {has}, and an extension needs the "
            f"same major version: use a toolkit of CUDA {major} (cuda_toolkit_source wheels or nvidia, driver "
            f"{cuda_compat.DRIVERS.get(major, 580)} or later; {wanted} fits exactly), or give an "
            f"exllamav2_requirements_file with a PyTorch built with CUDA {has.partition('.')[0]}."
        )
    oldest = generations.named(record["engine"]).oldest_architecture
    listed = [int(text.replace(".", "")) for text in record["arch_list"].split(";") if text]
    if listed and listed[0] < oldest:
        return (
            f"a card has compute capability {listed[0] / 10:.1f}, and {record['package']} needs {oldest / 10:.1f} or "
            "later; name the other cards in exllamav2_gpus."
        )
    problem = cuda_compat.architecture_problem(
        cuda_compat.nvcc_release(f"release {has}"), record["arch_list"].replace(".", "").split(";")
    )
    return f"{problem}: name the other cards in exllamav2_gpus." if problem else ""
