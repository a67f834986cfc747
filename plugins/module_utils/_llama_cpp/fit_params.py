# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""llama.cpp's own memory estimate, `llama-fit-params -fitp on`. Private to this collection. Pure functions only.

It prints one line per device, `NAME model context compute` in whole MiB (rounded down), and a last one for the host,
without loading the model (tools/fit-params and common/fit.cpp of llama.cpp b11312).
"""

from __future__ import annotations

import re
import typing as t

from .._base.errors import UserError
from .._base.fields import is_whole
from .._base.types import Json, Mapping
from .._split import expert_placement, layer_split, memory_plan
from .._split.expert_placement import ExpertPlacement
from .._split.types import Model, Serving
from . import llama_bench, load_check

#: First words of a failure that is the model's.
REFUSES: t.Final = "llama.cpp refuses the model"

#: In split mode tensor all devices are one to the dry run.
ONE_SUM: t.Final = (
    "llama.cpp's dry run gives one sum for all devices in split mode tensor; its trial has loaded the real context"
    " instead"
)

#: A refusal whose reason was not printed, as happens (load_check.py).
SILENT: t.Final = f"{REFUSES} (it names no reason)"

PARTS = ("model_mib", "kv_mib", "compute_mib")

#: serving key -> flag: those of llama-bench, and the context that it has not; the slots are apart, see command.
SERVING_FLAGS: t.Final = (("context_size", "-c"), *llama_bench.SERVING_FLAGS)

_LINE = re.compile(r"(\S.*?) ([0-9]{1,12}) ([0-9]{1,12}) ([0-9]{1,12}) ?")
#: An error line of llama.cpp about split mode tensor.
_TENSOR_ERROR = re.compile(r" E \w+: (?:error loading model: )?(.*SPLIT_MODE_TENSOR.*)")
_NO_CONTEXT: t.Final = "what():  failed to create llama_context"
#: RPC servers have a say in the output; a longer line is none of a device.
_LINE_CHARACTERS: t.Final = 1000


def command(
    program: str, model_path: str, devices: t.Sequence[str], layers: t.Sequence[int], serving: Mapping,
    rpc_endpoints: t.Sequence[str], split_mode: str, experts: ExpertPlacement | None,
) -> list[str]:  # fmt: skip
    """Return the command that asks llama.cpp about C(layers) on C(devices), with the flags of the server.

    Devices without a slot are left out, as the server leaves them out. The program has no `-kvu`: a unified cache is
    asked for as one slot of the whole context, which is what it is. Raises UserError where the two lists do not
    belong together or a serving flag is missing.
    """
    if len(devices) != len(layers):
        raise UserError(f"{len(layers)} layer counts do not belong to {len(devices)} devices")
    if not all(is_whole(count, 0) for count in layers) or not any(layers):
        raise UserError(f"layers must be whole numbers of zero or more, at least one of them more: {list(layers)}")
    used = [(name, count) for name, count in zip(devices, layers, strict=True) if count]
    words = _model_words(program, model_path, [name for name, _count in used], rpc_endpoints)
    words += ["-sm", "none" if len(used) == 1 else split_mode]
    if len(used) > 1:
        words += ["-ts", layer_split.render_tensor_split([count for _name, count in used], "llama_fit_params")]
    words += _serving_words(serving, experts)
    if experts is not None and experts.any:
        words += ["-ot", expert_placement.render(experts, "llama_fit_params")]
    return [*words, "-fit", "off", "-fitp", "on"]


def fit_command(
    program: str,
    model_path: str,
    devices: t.Sequence[str],
    serving: Mapping,
    rpc_endpoints: t.Sequence[str],
    margins_mib: t.Sequence[int],
) -> list[str]:
    """Return the command that asks llama.cpp where it would place the model by itself, with the flags of the server.

    C(margins_mib) stay free on each device. It answers in the form that parse_fit reads. Raises UserError as command().
    """
    words = _model_words(program, model_path, devices, rpc_endpoints)
    flags = _serving_words(serving, None)
    at = flags.index("-ngl")  # what is set, fit leaves alone
    words += [*flags[:at], *flags[at + 2 :]]
    words += ["-fitt", ",".join(map(str, margins_mib))] if margins_mib else []
    return [*words, "-fit", "on"]


def _model_words(
    program: str, model_path: str, devices: t.Sequence[str], rpc_endpoints: t.Sequence[str]
) -> list[str]:
    # --rpc comes before -dev, which knows registered devices only
    rpc = ["--rpc", ",".join(rpc_endpoints)] if rpc_endpoints else []
    return [program, "-m", model_path, *rpc, "-dev", ",".join(devices)]


def _serving_words(serving: Mapping, experts: ExpertPlacement | None) -> list[str]:
    missing = [key for key, _flag in SERVING_FLAGS if key not in serving]
    missing += [key for key in ("parallel_slots", "kv_unified") if key not in serving]
    if missing:
        raise UserError(f"serving.{missing[0]} is missing")
    told = expert_placement.serving_with(t.cast(Serving, serving), experts)
    words = [part for key, flag in SERVING_FLAGS for part in (flag, str(dict(told)[key]))]
    words += ["-np", str(1 if serving["kv_unified"] else serving["parallel_slots"])]
    return [*words, "--no-host"] if experts is not None and experts.no_host else words


#: Patterns of `-ot` as fit prints them: all experts of a block, or everything of its feed-forward part but some.
_FITTED = re.compile(r"blk\\\.([0-9]{1,6})\\\.ffn_(\([a-z_|]+\)|down)(_\(ch\|\)exps|\.\*)=(\S+)")
_FIT = re.compile(
    r"-c ([0-9]{1,12}) -ngl (-?[0-9]{1,6})(?: -ts ([0-9]{1,6}(?:,[0-9]{1,6})*))?(?: -ot \"(.*)\")?\s*"
)
_WHOLE: t.Final = ("up", "down", "gate_up", "gate")


def parse_fit(text: str, devices: t.Sequence[str], block_count: int) -> tuple[int, ExpertPlacement]:
    """Return (context, placement) of what llama.cpp placed by itself: C(-c 8192 -ngl 49 -ts 20,29 -ot "..."), one line.

    Blocks whose experts are whole in RAM are named; what it moves beyond stands in C(override) alone, as it is printed.
    Raises UserError where it leaves whole layers in RAM, which no plan does, or printed something else.
    """
    line = next((line for line in reversed(text.splitlines()) if re.match(r"-c [0-9]+ -ngl ", line)), "")
    match = _FIT.fullmatch(line)
    if match is None:
        raise UserError(f"there is no line of the form '-c N -ngl N -ts N,N' in its output ({text[-200:].strip()})")
    layers, slots = int(match[2]), block_count + 1
    if not match[3] and layers < 0:
        raise UserError("it changes nothing: the model fits as it is")
    if layers < slots:
        raise UserError(f"it leaves {slots - layers} whole layers in RAM, which the collection does not measure")
    shares = [int(share) for share in match[3].split(",")] if match[3] else [slots]
    if not any(shares) or len(shares) > len(devices):
        raise UserError(f"its shares are {match[3]:.60} for {len(devices)} devices ({', '.join(devices)})")
    counts = layer_split.layers_from_shares([*shares, *[0] * (len(devices) - len(shares))], slots)
    overrides = match[4].split(",") if match[4] else []
    blocks = []
    for override in overrides:
        found = _FITTED.fullmatch(override)
        if found is None:
            raise UserError(f"it moves tensors in a form that is not known ({override[:100]})")
        whole = set(found[2].strip("()").split("|")) == set(_WHOLE) and found[3] != ".*"
        # it names the output layer as if it were a block
        if found[4] == "CPU" and whole and int(found[1]) < block_count:
            blocks.append(int(found[1]))
    # systemd takes backslashes away
    return int(match[1]), ExpertPlacement(counts, tuple(blocks), override=",".join(overrides).replace("\\.", "[.]"))


def parse(text: str, devices: t.Sequence[str]) -> list[Json]:
    """Return model, KV and compute MiB of each of C(devices), in their order; zeros for one that has no part.

    Raises UserError when the program printed something else, for instance tensor mode's single line `Meta()`.
    """
    found: dict[str, list[int]] = {}
    for line in text.splitlines():
        match = _LINE.fullmatch(line) if len(line) <= _LINE_CHARACTERS else None
        if match is not None:
            found[match[1]] = [int(value) for value in match.groups()[1:]]
    host = found.pop("Host", None)
    if host is None or not found:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "nothing")
        raise UserError(f"there are no lines of the form 'DEVICE model KV compute' in what it printed ({last[:200]})")
    strange = [name for name in found if name not in devices]
    if strange:
        raise UserError(f"it speaks of {strange[0]}, which is none of the devices ({', '.join(devices)})")
    result = []
    for name in devices:
        values = found.get(name, [0, 0, 0])
        entry: Json = {"device": name, **dict(zip(PARTS, values, strict=True))}
        result.append({**entry, "mib": sum(values)})
    return result


def failure(program: str, rc: int, output: str, split_mode: str) -> tuple[str, bool]:
    """Return one sentence without a full stop for a run that did not end well, and whether llama.cpp refuses it.

    Of split mode tensor llama.cpp refuses some architectures and settings; the sentence is its own then.
    """
    own = _TENSOR_ERROR.search(output) if split_mode == "tensor" else None
    if own is not None:
        return own[1].strip()[:300].rstrip("."), True
    if load_check.refused(output) or (split_mode == "tensor" and _NO_CONTEXT in output):
        words = load_check.reason(output)
        return (f"{REFUSES} ({words})" if words else SILENT), True
    how = f"was ended by signal {-rc}" if rc < 0 else f"ended with {rc}"
    last = next((line.strip() for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
    return f"{program} {how}: {last[:300]}", False


#: How far plan and dry run may be apart on a device: the larger of the two counts.
AGREES_WITHIN_MIB: t.Final = 256
AGREES_WITHIN: t.Final = 0.05


def disagreement(dry_run_mib: t.Sequence[int], difference_mib: t.Sequence[int], devices: t.Sequence[str]) -> str | None:
    """Return one sentence where plan and dry run are farther apart than they should be, or None where they agree."""
    apart = [
        f"{device} by {more:+d} of {mib} MiB"
        for device, mib, more in zip(devices, dry_run_mib, difference_mib, strict=True)
        if abs(more) > max(AGREES_WITHIN_MIB, AGREES_WITHIN * mib)
    ]
    if not apart:
        return None
    return (
        f"The memory plan is off from llama.cpp's dry run on {' and '.join(apart)}: believe the dry run, and raise "
        "split_tuning_reserve_mib by the difference if the server does not load"
    )


def compare(
    dry_run_mib: t.Sequence[int], model: Model, serving: Serving, layers: t.Sequence[int],
    experts: ExpertPlacement | None, copied: bool,
) -> list[int]:  # fmt: skip
    """Return, per device, what our plan counts more (or, below zero, less) than the dry run, in MiB.

    Both are upper bounds on the device of the output slot: they count an output for every token of a micro-batch.
    """
    planned = memory_plan.MemoryPlan(model, serving, experts=experts, copied=copied).mib(layers)
    return [ours - theirs for ours, theirs in zip(planned, dry_run_mib, strict=True)]
