# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Both split modes side by side: one row per arm that was measured. Private to this collection. Pure functions only."""

from __future__ import annotations

import statistics
import typing as t

from .._base.types import Json
from .._split import allreduce
from .._split.layer_split import Layers
from .tensor_loads import PURPOSE, RIVAL_PURPOSE, TensorLoads

Key = tuple[Layers, str]


def rows(state: TensorLoads, verdict: str) -> list[Json]:
    """Return the layer split that tensor mode was measured against, and each arm of tensor mode (shares, all-reduce).

    C(verdict) is that of the mode. A row has C(mode), C(layers) (shares in mode tensor), C(asked) (all-reduces that
    were asked for), C(allreduce) (the one that ran), C(transport) of NCCL, C(fallback) (why another one ran), C(loads),
    C(status) and C(reason) of its last failure, means C(decode_ms_per_token), C(prefill_ms) and C(objective_ms), each
    None where it was not measured, C(less_percent) (how much less of the objective it takes than the layer split),
    and C(verdict): chosen, slower, inconclusive, rejected (by the trial) or failed.
    """
    return [_layer_row(state, verdict), *_tensor_rows(state, verdict)]


def _layer_row(state: TensorLoads, verdict: str) -> Json:
    shown = {
        # no micro-batch enters decoding
        "decode_ms_per_token": state.rival_decode or state.evidence.load_means("decode", state.layers),
        "prefill_ms": state.rival_prefill or state.before("prefill"),
        "objective_ms": state.layer_times or [state.layer_ms],
    }
    failed = next((load for load in state.loads if load["purpose"] == RIVAL_PURPOSE and load["status"] != "ok"), None)
    return {
        "mode": "layer", "layers": list(state.layers), "asked": [], "allreduce": None, "transport": None,
        "fallback": None, "loads": len(state.layer_times), "status": failed["status"] if failed else "ok",
        "reason": failed.get("reason") if failed else None, **{name: _mean(known) for name, known in shown.items()},
        "less_percent": 0.0, "verdict": "slower" if verdict == "faster" else "chosen",
    }  # fmt: skip


def _tensor_rows(state: TensorLoads, verdict: str) -> list[Json]:
    found: dict[Key, Json] = {}
    for load in state.loads:
        if load["purpose"] != PURPOSE:
            continue
        key = (tuple(load["layers"]), allreduce.of_load(load))
        empty = {
            "mode": "tensor", "layers": list(key[0]), "asked": [], "allreduce": key[1] or None, "transport": None,
            "fallback": None, "loads": 0, "status": "ok", "reason": None,
        }  # fmt: skip
        row = found.setdefault(key, empty)
        row["loads"] += 1
        asked, said = allreduce.asked(load), load.get("allreduce") or {}
        row["asked"] += [asked] if asked and asked not in row["asked"] else []
        row.update({name: said[name] for name in ("transport", "fallback") if said.get(name)})
        if load["status"] != "ok":
            row.update(status=load["status"], reason=load.get("reason"))
    for key, row in found.items():
        shown = {"decode_ms_per_token": state.decode, "prefill_ms": state.prefill, "objective_ms": state.times}
        row.update({name: _mean(known.get(key, [])) for name, known in shown.items()})
        took = row["objective_ms"]
        row["less_percent"] = None if took is None else round(100 * (1 - took / state.layer_ms), 1)
        row["verdict"] = _verdict(state, key, row, verdict)
    return [found[key] for key in sorted(found)]


def _verdict(state: TensorLoads, key: Key, row: Json, of_mode: str) -> str:
    """Return what became of an arm; that of the mode is that of its best arm."""
    if key == state.best:
        return "chosen" if of_mode == "faster" else of_mode
    return "failed" if row["status"] != "ok" else "slower"


def _mean(known: t.Sequence[float]) -> float | None:
    return round(statistics.fmean(known), 4) if known else None
