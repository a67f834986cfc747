# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How TabbyAPI serves a model: cards, memory per card, settings, environment. Private to this collection.

Pure functions only. `settings` are the variables of the role exllamav2 without their prefix.
"""

from __future__ import annotations

import os
import re
import typing as t

from .._base import addresses
from .._base.errors import UserError
from .._base.types import Json
from .._split import engines, exl_split, speculation
from . import generations, release_plan

Settings = t.Mapping[str, t.Any]

# directories that the unit's sandbox hides (ProtectHome, PrivateTmp)
_HIDDEN = re.compile(r"/(home|root|run/user|tmp|var/tmp)/")
#: What every TabbyAPI runs with: nothing is fetched while serving, and nothing is reported to others.
ENVIRONMENT: t.Final = {
    "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1", "NO_COLOR": "1", "TABBY_LOG_CONSOLE_WIDTH": "200",
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
}  # fmt: skip
_FLASH_ATTENTION = re.compile(r"^flash[-_]attn\b", re.IGNORECASE | re.MULTILINE)


def validate(settings: Settings) -> None:
    """Raise UserError for a server that must not or cannot run."""
    generation = generations.named(settings["engine"])
    try:
        exl_split.serving_profile(generation.package, settings["context_size"], settings["cache_mode"])
    except ValueError as exc:
        raise UserError(f"exllamav2_context_size or exllamav2_cache_mode cannot be used: {exc}.") from exc
    draft = settings["draft"]
    for what, path in (("model", settings["model_path"]), ("draft", draft.get("path") or "")):
        if _HIDDEN.match(path):
            raise UserError(
                f"The {what} {path} is below a directory that exllama-server.service does not see (/home, /root,"
                f" /tmp): move the {what}, to /srv/models for example."
            )
    if draft:
        _validate_draft(settings, generation)


def _validate_draft(settings: Settings, generation: generations.Generation) -> None:
    """Raise UserError for a draft that TabbyAPI would not use as it is meant."""
    draft = settings["draft"]
    if not draft.get("path"):
        raise UserError("exllamav2_draft has no path: name the folder of the draft, or empty exllamav2_draft.")
    try:
        exl_split.cache_types(generation.package, _draft_cache_mode(settings))
    except ValueError as exc:
        raise UserError(f"exllamav2_draft.cache_mode cannot be used: {exc}.") from exc
    if bool(draft.get("card")) != bool(draft.get("memory_gb")):
        raise UserError("exllamav2_draft has only one of card and memory_gb: give both, or neither.")


def _draft_cache_mode(settings: Settings) -> str:
    return str(settings["draft"].get("cache_mode") or settings["cache_mode"])


def split(models: t.Mapping[str, t.Any], settings: Settings, known: t.Sequence[str]) -> Json:
    """Decide on which cards a model goes, and how: {gpus, gpu_split_gb, tensor_parallel, source}.

    `models` are the deployments of the host's facts, `known` the UUIDs of the host's cards in PCI order. `source` is
    "variable", "record" (a deployment of this engine, model, context and cache), or "automatic", where the engine
    fills one card after the other. `tensor_parallel` is how cards add up that share each layer, "" where they take
    turns. Raises UserError.
    """
    gpus, split_gb = list(settings["gpus"]), [float(size) for size in settings["gpu_split_gb"]]
    chosen = gpus or list(known)
    release_plan.check_cards(gpus, known)
    shared = _tensor_parallel(settings)
    card = settings["draft"].get("card")
    if card and card not in chosen:
        raise UserError(
            f"exllamav2_draft.card is {card}, and the server uses {', '.join(chosen) or 'no card'}: name one of these."
        )
    if split_gb:
        _check_given(split_gb, chosen)
        return {"gpus": chosen, "gpu_split_gb": split_gb, "tensor_parallel": shared, "source": "variable"}
    entry = next((entry for entry in models.values() if _is_of(entry, settings)), None)
    if entry is None:
        return {"gpus": chosen, "gpu_split_gb": [], "tensor_parallel": shared, "source": "automatic"}
    if shared not in ("", entry["tensor_parallel"]):
        raise UserError(
            f"exllamav2_tensor_parallel is {shared!r}, and the recorded split of {entry['model']['id']} was measured"
            f" with {entry['tensor_parallel']!r}: empty it, or set exllamav2_gpu_split_gb too."
        )
    recorded = dict(zip([device["id"] for device in entry["devices"]], entry["gpu_split_gb"], strict=True))
    order = _recorded_order(recorded, gpus, known, entry["model"]["id"])
    numbers = [float(recorded[card_id]) for card_id in order]
    return {
        "gpus": order,
        "gpu_split_gb": numbers,
        "tensor_parallel": entry["tensor_parallel"],
        "source": "record",
    }


def _tensor_parallel(settings: Settings) -> str:
    way = str(settings["tensor_parallel"])
    if way and generations.named(settings["engine"]).name != "v3":
        raise UserError(f"exllamav2_tensor_parallel is {way!r}, which only the engine v3 has: empty it.")
    return way


def model_id(settings: Settings) -> str:
    """Return the name of the model in the host's facts."""
    return settings["model_id"] or os.path.basename(settings["model_path"])


def _check_given(split_gb: t.Sequence[float], chosen: t.Sequence[str]) -> None:
    if len(split_gb) != len(chosen):
        raise UserError(
            f"exllamav2_gpu_split_gb has {len(split_gb)} numbers for {len(chosen)} cards; give one per card, in the "
            f"order of {', '.join(chosen)}."
        )
    if min(split_gb) < 0 or max(split_gb) <= 0:
        raise UserError("exllamav2_gpu_split_gb leaves no card any memory; give GB, at least one number above 0.")


def _is_of(entry: t.Mapping[str, t.Any], settings: Settings) -> bool:
    """Return whether a recorded deployment is of this engine, model, context and cache, with a split."""
    serving, engine = entry.get("serving") or {}, generations.named(settings["engine"]).package
    same = all(serving.get(name) == settings[name] for name in ("context_size", "cache_mode"))
    same = same and serving.get("engine") == engine and entry["model"]["id"] == model_id(settings)
    return bool(same and entry.get("gpu_split_gb"))


def _recorded_order(
    recorded: t.Mapping[str, float], gpus: t.Sequence[str], known: t.Sequence[str], model: str
) -> list[str]:
    missing = [card_id for card_id in recorded if card_id not in known]
    if missing:
        raise UserError(
            f"The recorded split of {model} is for the card {missing[0]}, which is not in this host: tune the model "
            "again, or set exllamav2_gpu_split_gb."
        )
    if gpus and set(gpus) != set(recorded):
        raise UserError(
            f"The recorded split of {model} is for {', '.join(recorded)} and exllamav2_gpus names other cards: empty "
            "exllamav2_gpus, or set exllamav2_gpu_split_gb."
        )
    return list(gpus or recorded)


def config(settings: Settings, chosen: t.Mapping[str, t.Any]) -> Json:
    """Return TabbyAPI's config.yml; what is missing has TabbyAPI's own default."""
    drafting = {"draft_model": _draft_section(settings, chosen["gpus"])} if settings["draft"] else {}
    return {
        "network": {
            "host": settings["host"],
            "port": settings["port"],
            "disable_auth": not settings["keyed"],
            # pictures that a prompt names would be fetched from anywhere
            "disable_fetch_requests": True,
            "api_servers": ["OAI"],
        },
        "logging": {
            "log_prompt": False,
            "log_generation_params": False,
            "log_requests": False,
            "log_chat_completion_requests": False,
        },
        "model": {
            "model_dir": os.path.dirname(settings["model_path"]),
            "model_name": os.path.basename(settings["model_path"]),
            "backend": generations.named(settings["engine"]).package,
            "max_seq_len": settings["context_size"],
            "cache_size": settings["context_size"],
            "cache_mode": settings["cache_mode"],
            "tensor_parallel": bool(chosen["tensor_parallel"]),
            "tensor_parallel_backend": chosen["tensor_parallel"] or "native",
            "gpu_split_auto": not chosen["gpu_split_gb"],
            "gpu_split": chosen["gpu_split_gb"],
        },
        **drafting,
    }


def _draft_section(settings: Settings, gpus: t.Sequence[str]) -> Json:
    """Return the section draft_model of TabbyAPI's config.yml, which both generations read alike."""
    draft, path = settings["draft"], settings["draft"]["path"].rstrip("/")
    memory = float(draft.get("memory_gb") or 0)
    return {
        "draft_model_dir": os.path.dirname(path),
        "draft_model_name": os.path.basename(path),
        "draft_cache_mode": _draft_cache_mode(settings),
        "draft_gpu_split": [memory if card == draft["card"] else 0.0 for card in gpus] if memory else [],
    }


def recorded_draft(entry: t.Mapping[str, t.Any] | None) -> Json:
    """Return C(exllamav2_draft) of a recorded entry, {} without one, or where it serves without such a draft."""
    draft = (entry or {}).get("speculation") or {}
    if draft.get("kind") != speculation.OF_EXLLAMA:
        return {}
    named = {"path": "path", "card": "device", "memory_gb": "memory_gb", "cache_mode": "cache_mode"}
    return {name: draft[field] for name, field in named.items()}


def environment(settings: Settings, chosen: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Return the variables of the unit."""
    generation = generations.named(settings["engine"])
    found = ENVIRONMENT | engines.cuda_environment(chosen["gpus"]) | dict(generation.environment)
    if not _FLASH_ATTENTION.search(settings["requirements"]):
        found |= generation.environment_without_flash_attention
    return found


def networks(settings: Settings) -> list[str]:
    """Return all that the unit may talk to. Raises UserError for what is no network."""
    given = addresses.networks(settings["allowed_networks"], "exllamav2_allowed_networks")
    return addresses.allowed(settings["host"], given)
