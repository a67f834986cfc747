# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What one release of ExLlama with its server consists of, its key, and how a model is split.

Private to this collection. Pure functions only. A release is a directory: a virtual environment with PyTorch and the
engine, the engine's extension compiled for the host's cards, and a checkout of TabbyAPI.
"""

from __future__ import annotations

import re
import typing as t

from .._base import fingerprints
from .._driver import cuda_compat
from .._split import engines

SCHEMA = 1
#: Per engine: the Python package and the module that its extension is.
ENGINES = {"v2": ("exllamav2", "exllamav2_ext"), "v3": ("exllamav3", "exllamav3_ext")}
#: The oldest compute capability that each engine computes on.
OLDEST_ARCHITECTURE = {"v2": 60, "v3": 80}

_PIN = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)==([^\s;\\]+)", re.MULTILINE)
# a wheel by its address, whose name says its version
_WHEEL = re.compile(r"^([A-Za-z0-9][A-Za-z0-9._-]*)\s*@\s*\S*/[^/\s-]+-([^/\s-]+)-[^/\s]*\.whl", re.MULTILINE)
_COMMIT = re.compile(r"[0-9a-f]{40}\Z")
_ARCHITECTURE = re.compile(r"[0-9]{2,3}\Z")
_RELEASE = re.compile(r"release ([0-9]+\.[0-9]+)")


class ExllamaError(ValueError):
    """A release or a split that cannot be had; the message says what is wrong and what to write instead."""


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
    wrong = [text for text in plain if not _ARCHITECTURE.match(text)]
    if wrong:
        raise ExllamaError(
            f"{wrong[0]!r} is no compute capability; write exllamav2_cuda_architectures as for a 3090 and a "
            f"4090, [86, 89]"
        )
    return ";".join(f"{text[:-1]}.{text[-1]}" for text in plain)


def plan(
    engine: str,
    *,
    python: str,
    requirements: str,
    server: t.Mapping[str, str],
    build_extension: bool,
    nvcc: str = "",
    driver: str = "",
    architectures: t.Iterable[t.Any] = (),
) -> dict[str, t.Any]:
    """Return a release: {key (SHA-256 of all that changes it), directory, record (what build.json says), trouble}.

    `python` is "3.12"; `requirements` the text of a hashed requirements file; `server` {url, commit}; `nvcc` what its
    --version prints, "" where there is none; `driver` the loaded driver's version, or "". `trouble` is one sentence
    about what stops the release from being made or used, or "". Raises ExllamaError for what cannot be meant.
    """
    package, module = ENGINES[engine]
    pinned = pins(requirements)
    if package not in pinned:
        raise ExllamaError(
            f"the requirements for the engine {engine} pin no {package}; correct exllamav2_requirements_file, or "
            f"leave it empty"
        )
    if not _COMMIT.match(server["commit"]):
        raise ExllamaError(
            f'the commit of the server is "{server["commit"]}"; set exllamav2_server_commit to the full 40 '
            f"digits of a commit "
            "of TabbyAPI, because a branch or tag moves"
        )
    listed = arch_list(architectures) if build_extension else ""
    cuda = torch_cuda(pinned)
    found = _RELEASE.search(nvcc)
    record = {
        "schema": SCHEMA,
        "engine": engine,
        "package": package,
        "module": module,
        "version": pinned[package],
        "torch": pinned.get("torch", ""),
        "torch_cuda": cuda,
        "python": python,
        "requirements": fingerprints.fingerprint({"text": requirements}),
        "server": dict(server),
        "build_extension": build_extension,
        "nvcc": (found[1] if found else "") if build_extension else "",
        "arch_list": listed,
    }
    # a mirror has the same commit
    key = fingerprints.fingerprint(record | {"server": server["commit"]})
    return {
        "key": key,
        "directory": f"{record['version']}-{key[:12]}",
        "record": record | {"key": key},
        "trouble": _driver_trouble(record, driver) or (_compile_trouble(record) if build_extension else ""),
    }


def _driver_trouble(record: t.Mapping[str, t.Any], driver: str) -> str:
    """Return why PyTorch does not run with the loaded driver, or "" (also where either is not known)."""
    major, loaded = record["torch_cuda"].partition(".")[0], re.match(r"[0-9]+", driver)
    branch = cuda_compat.DRIVERS.get(int(major or 0))
    if branch and loaded and int(loaded[0]) < branch:
        return (
            f"PyTorch {record['torch']} was built with CUDA {record['torch_cuda']}, which needs driver {branch} "
            f"or later, and "
            f"{driver} is loaded: install a newer one (nvidia_driver_branch), or give an "
            f"exllamav2_requirements_file with a "
            "PyTorch for that driver."
        )
    return ""


def _compile_trouble(record: t.Mapping[str, t.Any]) -> str:
    """Return why the extension cannot be compiled as planned, or ""."""
    wanted, has = record["torch_cuda"], record["nvcc"]
    if not has:
        return (
            f"{record['package']} is compiled on this host, and there is no nvcc; run the role cuda_toolkit, or "
            f"correct "
            "exllamav2_cuda_root."
        )
    if wanted and wanted.partition(".")[0] != has.partition(".")[0]:
        major = cuda_compat.parse(wanted)[0]
        return (
            f"PyTorch {record['torch']} was built with CUDA {wanted} and nvcc is {has}, and an extension needs "
            f"the same major "
            f"version: use a toolkit of CUDA {major} (cuda_toolkit_source wheels or nvidia, driver "
            f"{cuda_compat.DRIVERS.get(major, 580)} or later; {wanted} fits exactly), or give an "
            f"exllamav2_requirements_file "
            f"with a PyTorch built with CUDA {has.partition('.')[0]}."
        )
    oldest = OLDEST_ARCHITECTURE[record["engine"]]
    listed = [int(text.replace(".", "")) for text in record["arch_list"].split(";") if text]
    if not listed:
        return (
            "no architecture is given to compile for; set exllamav2_cuda_architectures, for a 3090 and a 4090 to "
            "[86, 89]."
        )
    if listed[0] < oldest:
        return (
            f"a card has compute capability {listed[0] / 10:.1f}, and {record['package']} needs "
            f"{oldest / 10:.1f} or later; name the other cards in exllamav2_gpus."
        )
    return ""


def split(models: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any], known: t.Sequence[str]) -> dict[str, t.Any]:
    """Decide on which cards a model goes: the result of chosen_split, and the C(environment) that shows these cards."""
    found = chosen_split(models, wanted, known)
    return {**found, "environment": engines.cuda_environment(found["gpus"])}


def chosen_split(
    models: t.Mapping[str, t.Any], wanted: t.Mapping[str, t.Any], known: t.Sequence[str]
) -> dict[str, t.Any]:
    """Decide on which cards a model goes, and how much of each it may use: {gpus, gpu_split_gb, source}.

    `models` are the deployments of the host's facts, `wanted` is {engine ("v2"), model_id, context_size, cache_mode,
    gpus (UUIDs), gpu_split_gb}, `known` the UUIDs of the host's cards in PCI order. `source` is "variable", "record" (a
    deployment of this engine and model with this context and cache, and its gpu_split_gb in the order of its devices),
    or "automatic", where the engine fills one card after the other. Raises ExllamaError.
    """
    gpus, model_id = list(wanted["gpus"]), wanted["model_id"]
    chosen, split_gb = gpus or list(known), [float(size) for size in wanted["gpu_split_gb"]]
    strange = [card_id for card_id in chosen if card_id not in known]
    if strange:
        raise ExllamaError(
            f"the card {strange[0]} of exllamav2_gpus is not in this host, which has {', '.join(known) or 'none'}; "
            "correct it"
        )
    if split_gb:
        if len(split_gb) != len(chosen):
            raise ExllamaError(
                f"exllamav2_gpu_split_gb has {len(split_gb)} numbers for {len(chosen)} cards; give one per card, in "
                f"the order of {', '.join(chosen)}"
            )
        if min(split_gb) < 0 or max(split_gb) <= 0:
            raise ExllamaError("exllamav2_gpu_split_gb leaves no card any memory; give GB, at least one above 0")
        return {"gpus": chosen, "gpu_split_gb": split_gb, "source": "variable"}
    for entry in models.values():
        serving = entry.get("serving") or {}
        if (
            str(serving.get("engine")) != f"exllama{wanted['engine']}"
            or entry["model"]["id"] != model_id
            or any(serving.get(name) != wanted[name] for name in ("context_size", "cache_mode"))
            or not entry.get("gpu_split_gb")
        ):
            continue
        recorded = dict(zip([device["id"] for device in entry["devices"]], entry["gpu_split_gb"], strict=True))
        missing = [card_id for card_id in recorded if card_id not in known]
        if missing:
            raise ExllamaError(
                f"the recorded split of {model_id} is for the card {missing[0]}, which is not in this host: tune it "
                "again, or set exllamav2_gpu_split_gb"
            )
        order = gpus or list(recorded)
        if set(order) != set(recorded):
            raise ExllamaError(
                f"the recorded split of {model_id} is for {', '.join(recorded)} and exllamav2_gpus names other cards: "
                "empty exllamav2_gpus, or set exllamav2_gpu_split_gb"
            )
        return {"gpus": order, "gpu_split_gb": [float(recorded[card_id]) for card_id in order], "source": "record"}
    return {"gpus": chosen, "gpu_split_gb": [], "source": "automatic"}
