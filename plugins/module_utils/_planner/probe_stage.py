# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a small model, alone on each device, tells about the devices. Private to this collection. Pure functions only.

Splits of one model identify only the difference of two devices' cost per block, because all splits have the same sum.
Which device is the slow one is answered by a load per device that uses no other. docs/data_formats.md describes the
dicts (device, model, load, device_probe).
"""

from __future__ import annotations

import statistics
import typing as t

from .._base.fields import is_number
from .._base.types import Mapping

#: Relative difference below which two devices count as equally fast: repeats within one load do not show how much two
#: loads differ.
EQUAL_WITHIN: t.Final = 0.03
#: Measured over theoretical bandwidth from which on a card cannot be the one it is taken for. Clocks, and thus the
#: theoretical value, may be set a few percent higher than what the driver reports as the highest.
IMPOSSIBLE_FROM: t.Final = 1.1
#: Bytes in one MiB.
MIB: t.Final = 2**20


def _number(where: str, value: t.Any, least: float = 0) -> float:
    if not is_number(value, least):
        raise ValueError(f"{where} must be a number of at least {least:g}, not {value!r}")
    return float(value)


def weights_bytes(model: Mapping) -> int:
    """Return the bytes of weights that are read for one generated token: all blocks and the output slot.

    The token embedding is left out: one row of it is read per token, from host memory.
    """
    blocks = model["block_bytes"]
    if not isinstance(blocks, (list, tuple)) or not blocks:
        raise ValueError(f"model.block_bytes must be a list with one number per block, not {blocks!r}")
    total = sum(_number("model.block_bytes", value) for value in blocks)
    return int(total + _number("model.output_bytes", model["output_bytes"]))


def name_of(device: Mapping) -> str:
    """Return a device as C(CUDA0 (GPU-1111...)), or by its name where that is also its id."""
    name, identity = str(device["device"]), str(device["id"])
    return name if name == identity else f"{name} ({identity})"


def shortfall(device: Mapping, model: Mapping, reserve_mib: int) -> str | None:
    """Return why the probe model is not put on a device, or None when there is room for it.

    Usable is what is free, or the device's budget where that is less. Weights and C(reserve_mib) must fit into it.
    """
    limits = [_number(f"free_mib of {name_of(device)}", device["free_mib"])]
    if device.get("budget_mib") is not None:
        limits.append(_number(f"budget_mib of {name_of(device)}", device["budget_mib"]))
    needed = weights_bytes(model) / MIB + reserve_mib
    if needed <= min(limits):
        return None
    return f"the probe model needs {needed:.0f} MiB with the reserve, and {min(limits):.0f} MiB are usable"


def loads(
    devices: t.Sequence[Mapping], model: Mapping, tests: t.Sequence[Mapping], reserve_mib: int
) -> list[dict[str, t.Any]]:
    """Return one load per device that has room for the model: all layers on it, none on any other."""
    slots = len(model["block_bytes"]) + 1
    return [
        {
            "label": f"{name_of(device)} alone",
            "split_mode": "layer",
            "layers": [slots if other == index else 0 for other in range(len(devices))],
            "load": 1,
            "purpose": "device probe",
            "tests": list(tests),
        }
        for index, device in enumerate(devices)
        if shortfall(device, model, reserve_mib) is None
    ]


# --- reading the results ---------------------------------------------------------------------------------------------


def _per_token_ms(load: Mapping, kind: str, tokens: str) -> list[float]:
    """Return the times of one test, sorted, in milliseconds per token. C(tokens) is n_gen or n_prompt."""
    for result in load["results"]:
        if result["kind"] == kind:
            count = _number(f"{tokens} of the {kind} test of {load['label']}", result[tokens], 1)
            where = f"samples_ms of the {kind} test of {load['label']}"
            samples = [_number(where, value) / count for value in result["samples_ms"]]
            if not samples or min(samples) <= 0:
                raise ValueError(f"{where} must hold positive times, not {result['samples_ms']!r}")
            return sorted(samples)
    raise ValueError(f"{load['label']} has no {kind} test among its results")


def _measured(load: Mapping, n_bytes: int) -> dict[str, t.Any]:
    """Return the numbers of one load that is ok. Bandwidth: bytes of weights per token over median time, in 10^9 B/s.

    The KV cache is left out: for the few tokens of the test it is less than the noise.
    """
    decode = _per_token_ms(load, "decode", "n_gen")
    prefill = _per_token_ms(load, "prefill", "n_prompt")
    median = statistics.median(decode)
    return {
        "decode_ms_per_token": {"median": median, "low": decode[0], "high": decode[-1]},
        "bandwidth_gb_per_s": n_bytes / (median / 1000) / 1e9,
        "prefill_tokens_per_second": 1000 / statistics.median(prefill),
    }


def faster(one: Mapping, other: Mapping) -> bool:
    """Return whether a device is measurably faster than another: no sample in common, and more than EQUAL_WITHIN."""
    mine, theirs = one["decode_ms_per_token"], other["decode_ms_per_token"]
    return bool(mine["high"] < theirs["low"] and mine["median"] * (1 + EQUAL_WITHIN) < theirs["median"])


def _rank(rows: t.Sequence[dict[str, t.Any]]) -> None:
    """Set C(rank), 1 for the fastest; devices that are not measurably slower than the first of a rank share it."""
    first: dict[str, t.Any] | None = None
    measured = [row for row in rows if row["status"] == "ok"]
    for place, row in enumerate(sorted(measured, key=lambda row: float(row["decode_ms_per_token"]["median"])), start=1):
        if first is None or faster(first, row):
            first = row
            row["rank"] = place
        else:
            row["rank"] = first["rank"]


def order(rows: t.Sequence[Mapping]) -> tuple[str, str | None]:
    """Compare the measured order with the theoretical bandwidths; return what they are to each other, and a warning.

    C(confirmed): at least one pair is known to be unlike, and no pair is the other way round. C(contradicted): some
    pair is, and the warning names the one that is furthest apart. C(unknown): nothing to compare.
    """
    known = [row for row in rows if row["status"] == "ok" and row["theoretical_bandwidth_gb_per_s"]]
    pairs = [
        (one, slower)
        for one in known
        for slower in known
        if one["theoretical_bandwidth_gb_per_s"] > (1 + EQUAL_WITHIN) * slower["theoretical_bandwidth_gb_per_s"]
    ]
    wrong = [(one, slower) for one, slower in pairs if faster(slower, one)]
    if not wrong:
        return ("confirmed" if pairs else "unknown"), None
    one, other = min(wrong, key=lambda pair: float(pair[0]["bandwidth_gb_per_s"] / pair[1]["bandwidth_gb_per_s"]))
    should, than = (row["theoretical_bandwidth_gb_per_s"] for row in (one, other))
    cause = (
        f"the order of the cards looks swapped, or {one['device']} is throttled; compare its power limit, clocks and"
        " temperature with what is usual"
    )
    if other["bandwidth_gb_per_s"] > IMPOSSIBLE_FROM * than:
        cause = (
            f"{other['device']} does more than such a card can, so the order of the cards is swapped; check"
            " CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES"
        )
    return "contradicted", (
        f"{one['device']} should be the faster card ({should:.0f} against {than:.0f} GB/s) but measures slower"
        f" ({_text(one['bandwidth_gb_per_s'])} against {_text(other['bandwidth_gb_per_s'])} GB/s): {cause}."
    )


def _text(value: float) -> str:
    """Write a number with three digits, and never with an exponent."""
    return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _failure(rows: t.Sequence[Mapping]) -> str | None:
    """Return one sentence when a device does not work at all, else None. Too little memory is no fault of a device."""
    broken = [row for row in rows if row["status"] not in ("ok", "skipped", "out_of_memory")]
    if not broken:
        return None
    what = "; ".join(f"{name_of(row)} failed alone with the small probe model: {row['reason']}" for row in broken)
    slow = any(row["status"] == "timed_out" for row in broken)
    wait = " (or, if it is only slow, give it more split_tuning_probe_timeout_seconds)" if slow else ""
    return (
        f"{what}. The model itself was not loaded: repair the device or take it out of the configuration{wait}, and run"
        " this again."
    )


def _summary(rows: t.Sequence[Mapping]) -> str:
    """Say in one sentence what every device does alone, the fastest first."""
    said = []
    for row in sorted(rows, key=lambda row: int(row["rank"] or len(rows) + 1)):
        if row["status"] == "ok":
            said.append(
                f"{row['device']} {_text(row['decode_ms_per_token']['median'])} ms per token"
                f" ({_text(row['bandwidth_gb_per_s'])} GB/s), prefill {_text(row['prefill_tokens_per_second'])} tok/s,"
                f" rank {row['rank']}"
            )
        else:
            said.append(f"{row['device']} not measured ({row['reason']})")
    return f"Each device alone with the probe model: {'; '.join(said)}."


def assess(
    measured: t.Sequence[Mapping],
    devices: t.Sequence[Mapping],
    model: Mapping,
    reserve_mib: int,
    gpus: t.Sequence[Mapping],
    crossings: t.Mapping[str, Mapping] | None = None,
) -> dict[str, t.Any]:
    """Return the C(device_probe) of docs/data_formats.md.

    C(measured): the loads as split_benchmark completed them. C(model): the probe model, from gguf_info. C(gpus): the
    cards of gpu_facts, whose theoretical bandwidth is compared. C(crossings): of network_links.alone, kept as
    C(network_ms) beside what was measured, with which a later probe is compared. Raises ValueError when a load fits no
    device.
    """
    n_bytes = weights_bytes(model)
    slots = len(model["block_bytes"]) + 1
    theory = {gpu.get("id"): gpu.get("memory_bandwidth_gb_per_s") for gpu in gpus}
    by_device: dict[int, Mapping] = {}
    for load in measured:
        used = [index for index, count in enumerate(load["layers"]) if count]
        if len(load["layers"]) != len(devices) or len(used) != 1 or load["layers"][used[0]] != slots:
            raise ValueError(f"layers of {load['label']} is {load['layers']!r}: all {slots} must be on one device")
        by_device[used[0]] = load
    rows: list[dict[str, t.Any]] = []
    for index, device in enumerate(devices):
        done = by_device.get(index)
        row: dict[str, t.Any] = {
            "device": device["device"],
            "id": device["id"],
            "status": "skipped" if done is None else done["status"],
            "reason": shortfall(device, model, reserve_mib) if done is None else done["reason"],
            "decode_ms_per_token": None,
            "bandwidth_gb_per_s": None,
            "theoretical_bandwidth_gb_per_s": theory.get(device["id"]),
            "prefill_tokens_per_second": None,
            "rank": None,
        }
        if done is not None and done["status"] == "ok":
            row.update(_measured(done, n_bytes))
            if crossings and device["id"] in crossings:
                row["network_ms"] = crossings[device["id"]]
        rows.append(row)
    _rank(rows)
    what, warning = order(rows)
    return {
        "devices": rows,
        "weights_bytes": n_bytes,
        "order": what,
        "warning": warning,
        "failure": _failure(rows),
        "summary": _summary(rows),
        "fingerprint": measured[0]["fingerprint"] if measured else None,
        "campaign": measured[0]["campaign"] if measured else None,
    }
