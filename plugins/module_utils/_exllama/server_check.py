# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Whether exllama-server serves what was recorded. Private to this collection. Pure functions only.

TabbyAPI does not say where it puts layers; its settings and its unit decide that, and each load of the worker that
revalidates shows that they do.
"""

from __future__ import annotations

import re
import typing as t

from .._base import json_file
from .._base.types import Mapping

_CARDS = re.compile(r"^Environment=\"?CUDA_VISIBLE_DEVICES=([^\"\s]*)", re.MULTILINE)
_CONFIG = re.compile(r"^LoadCredential=config\.yml:(/\S+)$", re.MULTILINE)


def config_path(unit_text: str) -> str:
    """Return the path of the settings that a unit hands to TabbyAPI, "" for none."""
    found = _CONFIG.search(unit_text)
    return found[1] if found else ""


def _of_draft(deployment: Mapping) -> dict[str, t.Any]:
    """Return what the settings say of a draft that was recorded, or that there is none."""
    draft = deployment.get("speculation")
    if not draft:
        return {"draft": None}
    ids = [device["id"] for device in deployment["devices"]]
    return {
        "draft": draft["path"],
        "draft_cache_mode": draft["cache_mode"],
        "draft_gpu_split": [draft["memory_gb"] if card == draft["device"] else 0.0 for card in ids],
    }


def deviations(deployment: Mapping, unit_text: str, config_text: str) -> list[str]:
    """Return one sentence per difference between a deployment and what its unit and settings say."""
    try:
        config = json_file.from_text(config_text)
        model, drafting = config["model"], config.get("draft_model") or {}
    except (AttributeError, KeyError, TypeError, ValueError):
        return ["The settings of exllama-server cannot be read."]
    serving = deployment["serving"]
    wanted: dict[str, t.Any] = {
        "gpu_split": list(deployment["gpu_split_gb"]),
        "max_seq_len": serving["context_size"],
        "cache_mode": serving["cache_mode"],
        "backend": serving["engine"],
        "tensor_parallel": bool(deployment["tensor_parallel"]),
        "tensor_parallel_backend": deployment["tensor_parallel"] or "native",
        "model": deployment["model"]["path"],
        **_of_draft(deployment),
    }
    draft = f"{drafting.get('draft_model_dir')}/{drafting.get('draft_model_name')}" if drafting else None
    served = {**drafting, **model, "model": f"{model.get('model_dir')}/{model.get('model_name')}", "draft": draft}
    found = [
        f"exllama-server is to serve with {name} {served.get(name)}; the facts say {value}."
        for name, value in wanted.items()
        if served.get(name) != value
    ]
    cards = _CARDS.search(unit_text)
    ids = ",".join(device["id"] for device in deployment["devices"])
    if (cards[1] if cards else "") != ids:
        found.append(f"exllama-server uses the cards {cards[1] if cards else 'of CUDA'}; the facts say {ids}.")
    return found
