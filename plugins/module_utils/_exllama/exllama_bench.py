# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Orders for the role split_tuning's exllama_worker.py, and its answers. Private to this collection. Pure functions."""

from __future__ import annotations

import typing as t

from .._base import json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping
from .._measuring import load_checks, outcome
from .._split import allreduce, engines, exl_split, exl_tensor, memory_plan
from .._split.types import ListedDevice, Model, Serving
from . import fixed_text

#: How often the worker may load a model again to correct where exllamav3 put it.
LOADS_TO_CORRECT = 6


def measure_order(
    load: Mapping,
    devices: t.Sequence[Mapping],
    serving: Serving,
    model: Model,
    reserve_mib: int,
) -> Json:
    """Return what the worker is told for a load of the planner. Raises UserError naming a wrong field.

    C(devices), C(serving) and C(model) are those of docs/data_formats.md; C(reserve_mib) is kept free on every card.
    """
    label = load.get("label", "the load")
    engine = engines.of(serving)
    if engine.family != "exllama":
        known = " or ".join(other.name for other in engines.in_family("exllama"))
        raise UserError(f"serving.engine is {engine.name!r}: it must be {known}")
    mode = load.get("split_mode")
    if mode not in ("layer", "tensor") or mode not in _modes(engine):
        raise UserError(f"split_mode of {label} is {mode!r}: {engine.display} has {' and '.join(_modes(engine))}")
    load_checks.check_layers(load, len(devices))
    tests = load_checks.check_tests(load)
    try:
        memory = memory_plan.MemoryPlan(model, serving)
        budgets = memory_plan.budgets_mib(devices, reserve_mib)
        # of a recorded split the numbers are known, and others are none of it
        recorded = [float(share) for share in load.get("gpu_split_gb") or []]
        if mode == "tensor":
            split = recorded or exl_tensor.gpu_split_gb(load["layers"], budgets)
        else:
            split = recorded or exl_split.gpu_split_gb(model, serving, memory, load["layers"], budgets)
        cache = _cache(engine.name, serving)
    except KeyError as exc:
        raise UserError(f"model or serving of {label} has no {exc}") from exc
    except ValueError as exc:
        raise UserError(str(exc)) from exc
    blocks = model["block_count"]
    whole = sum(model["block_bytes"]) if engine.name == "exllamav2" else sum(map(memory.slot_bytes, range(blocks)))
    return {
        "action": "measure",
        "engine": engine.name,
        "split_mode": mode,
        "model": model["path"],
        "layers": list(load["layers"]),
        "gpu_split_gb": split,
        "block_gb": whole / blocks / exl_split.GIB,
        "context_size": serving["context_size"],
        "chunk_size": serving["micro_batch_size"],
        "cache": cache,
        "tests": [dict(test) for test in tests],
        "tries": 1 if recorded else LOADS_TO_CORRECT,
        **({"soak": dict(load["soak"])} if load.get("soak") else {}),
        **fixed_text.order(serving["context_size"]),
    }


def _modes(engine: engines.Engine) -> list[str]:
    return ["layer", "tensor"] if "mode" in engine.stages else ["layer"]


def _cache(engine: str, serving: Serving) -> t.Any:
    """Return the cache in the worker's words: exllamav2's mode, or exllamav3's bits of K and V, None for float16."""
    if engine == "exllamav2":
        return serving["cache_mode"]
    kinds = exl_split.cache_types(engine, serving["cache_mode"])
    return None if kinds[0] == "f16" else [int(kind.removeprefix("exl3_q")) for kind in kinds]


def read_answer(stdout: str) -> Json | None:
    """Return the worker's answer, or None where there is none to be read."""
    try:
        answer = json_file.from_text(stdout, any_number=True)
    except ValueError:
        return None
    return answer if isinstance(answer, dict) else None


def judge(
    rc: int, stdout: str, stderr: str, timed_out_after: int | None, order: Mapping
) -> tuple[outcome.Verdict, Json]:
    """Return the verdict over a finished worker, and what the load says beyond a load of llama-bench.

    That is C(gpu_split_gb), C(tries), C(load_ms), C(loaded), cards with their memory, C(answers), and in split mode
    tensor C(allreduce); empty unless it is ok.
    """
    name = engines.named(order["engine"]).display

    def failed(status: str, reason: str) -> tuple[outcome.Verdict, Json]:
        return outcome.Verdict(status, reason, [], [], None, True), {}

    if timed_out_after is not None:
        return failed("timed_out", f"{name} was not done after {timed_out_after} seconds and was ended")
    answer = read_answer(stdout)
    if rc != 0 or answer is None:
        return failed(*(outcome.known(stderr) or ("crashed", outcome.crash(name, rc, stderr))))
    if answer.get("status") == "out_of_memory":
        return failed("out_of_memory", f"out of memory: {answer.get('reason')}")
    if answer.get("status") == "misplaced":
        return failed("crashed", f"{answer.get('reason')}, where {order['layers']} was wanted")
    if answer.get("status") == "refused":
        return failed("crashed", f"{name} refuses it: {str(answer.get('reason')).rstrip('.')}")
    try:
        if answer["layers"] != order["layers"]:
            raise ValueError(f"it placed {answer['layers']} instead of {order['layers']}")
        for test, result in zip(order["tests"], answer["results"], strict=True):
            samples = load_checks.checked_samples(result["samples_ms"])
            if samples is None or len(samples) < test["repetitions"]:
                raise ValueError(f"its {test['kind']} test does not hold {test['repetitions']} positive times")
        versions = ", ".join(f"{package} {version}" for package, version in answer["versions"].items())
        more = {
            "gpu_split_gb": answer["gpu_split_gb"],
            "tries": answer["tries"],
            "load_ms": answer["load_ms"],
            "loaded": answer["devices"],
            "answers": fixed_text.checked(answer["answers"]),
            **({"allreduce": _added_up(answer, stderr)} if order["split_mode"] == "tensor" else {}),
        }
        return outcome.Verdict("ok", None, answer["results"], [], versions, True), more
    except (KeyError, TypeError, ValueError) as exc:
        return failed("unreadable", f"{name}'s worker ended well but its answer cannot be used ({exc})")


def _added_up(answer: Mapping, stderr: str) -> Json:
    """Return how cards added up (_split/allreduce.py): what the worker asked for, which ExLlamaV3 does not replace."""
    way = str(answer["allreduce"])
    transport = allreduce.transport(stderr) if way == "nccl" else None
    return {"asked": way, "ran": way, "transport": transport, "fallback": None}


def read_devices(stdout: str, cuda_ids: t.Sequence[str]) -> list[ListedDevice]:
    """Return the cards of the worker's answer in the form of llama.cpp's devices, without ids.

    Raises UserError when it cannot be read, or when PyTorch names other cards than C(cuda_ids).
    """
    answer = read_answer(stdout) or {}
    try:
        cards = [(card["id"], card["name"], card["total_mib"], card["free_mib"]) for card in answer["devices"]]
    except (KeyError, TypeError) as exc:
        raise UserError("ExLlama's worker did not answer with a list of cards") from exc
    named = [card_id for card_id, *_rest in cards]
    if all(named) and named != list(cuda_ids):  # older versions of PyTorch know no UUIDs
        raise UserError(
            f"PyTorch sees {', '.join(named) or 'no card'} where {', '.join(cuda_ids)} was expected: check"
            " CUDA_DEVICE_ORDER=PCI_BUS_ID and CUDA_VISIBLE_DEVICES"
        )
    return [
        {"device": f"CUDA{index}", "backend": "CUDA", "description": name, "total_mib": total, "free_mib": free}
        for index, (_id, name, total, free) in enumerate(cards)
    ]
