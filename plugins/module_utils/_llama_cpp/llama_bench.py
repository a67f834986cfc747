# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Command lines and output of llama-bench. Private to this collection. Pure functions only.

The forms are those of llama.cpp b11312; docs/data_formats.md describes the dicts (device, serving, load).
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from .._base import json_file
from .._base.errors import UserError
from .._base.types import Json, Mapping
from .._measuring import load_checks, outcome
from .._split import expert_placement
from .._split.types import ListedDevice, Serving
from . import allreduce_log

#: serving key -> llama-bench flag, in the order of the command line. llama-bench has no context or slots of its own.
SERVING_FLAGS: t.Final = (
    ("gpu_layers", "-ngl"),
    ("batch_size", "-b"),
    ("micro_batch_size", "-ub"),
    ("flash_attention", "-fa"),
    ("cache_type_k", "-ctk"),
    ("cache_type_v", "-ctv"),
    ("threads", "-t"),
    ("poll", "--poll"),
    ("load_mode", "-lm"),
)
#: serving key -> field of an output row, for the check that the program did what it was told.
_ROW_FIELDS: t.Final = (
    ("gpu_layers", "n_gpu_layers"),
    ("batch_size", "n_batch"),
    ("cache_type_k", "type_k"),
    ("cache_type_v", "type_v"),
    ("poll", "poll"),
    ("load_mode", "load_mode"),
)


# --- devices ---------------------------------------------------------------------------------------------------------

_DEVICE_LINE = re.compile(r"\s+([A-Za-z][^\s:]*): (.*) \(([0-9]+) MiB, ([0-9]+) MiB free\)\s*")

# RPC servers have a say in the list, and may be anybody's: what no device has is refused before it is looked at.
_LIST_CHARACTERS: t.Final = 1 << 20
_LINE_CHARACTERS: t.Final = 1000
_LARGEST_MIB: t.Final = 1 << 24                # 16 TiB


def list_devices_command(llama_bench: str, rpc_endpoints: t.Sequence[str]) -> list[str]:
    """Return the command that lists the devices. llama-bench obeys --list-devices at once, so --rpc comes before it."""
    rpc = ["--rpc", ",".join(rpc_endpoints)] if rpc_endpoints else []
    return [llama_bench, *rpc, "--list-devices"]


def parse_devices(text: str) -> list[ListedDevice]:
    """Return the devices of C(llama-bench --list-devices), in its order, without their ids.

    Each has device, backend, description, total_mib and free_mib. Devices without memory of their own (accelerators
    such as BLAS) cannot hold layers and are left out. More free memory than there is in all, as hosts with one memory
    for everything report, counts as all of it. Raises UserError when the list is missing, has a line of unknown form,
    or claims what no device has.
    """
    if len(text) > _LIST_CHARACTERS:
        raise UserError(f"it has {len(text)} characters, and a list of devices has some lines")
    lines = text.splitlines()
    try:
        start = lines.index("Available devices:") + 1
    except ValueError:
        raise UserError("there is no line 'Available devices:' in what it printed") from None
    devices: list[ListedDevice] = []
    for line in lines[start:]:
        if not line.strip() or line.strip() == "(none)":
            continue
        if line.startswith(" ") and len(line) > _LINE_CHARACTERS:
            raise UserError(f"the line of a device, {_shown(line)}, has {len(line)} characters")
        match = _DEVICE_LINE.fullmatch(line)
        if match is None:
            if line.startswith("  "):
                raise UserError(f"the device line {_shown(line)} has an unknown form")
            continue
        name, description, total, free = match.groups()
        if max(int(total), int(free)) > _LARGEST_MIB:
            raise UserError(
                f"{_shown(name)} ({_shown(description)}) claims {_shown(total)} MiB with {_shown(free)} MiB free, "
                "which no device has"
            )
        if int(total) == 0:
            continue
        devices.append({
            "device": name,
            "backend": re.sub(r"\d+$", "", name),
            "description": description,
            "total_mib": int(total),
            "free_mib": min(int(free), int(total)),
        })
    return devices


def _shown(text: str) -> str:
    """Return what a peer may have written as it may stand in a sentence."""
    text = text.strip()
    return ascii(text if len(text) <= 60 else f"{text[:60]}...")


def explain_list_failure(rc: int, text: str, rpc_endpoints: t.Sequence[str]) -> str:
    """Return one sentence for a failed listing: the endpoint that does not answer, or the program's own words."""
    text = text[-_LIST_CHARACTERS:]
    lost = outcome.device_lost(text)
    if lost is not None:
        return lost
    misuse = explain_misuse(rc, text)
    if misuse is not None:
        return misuse
    tail = f" with the endpoints {', '.join(rpc_endpoints)}" if rpc_endpoints else ""
    return outcome.crash(f"llama-bench could not list the devices{tail}: it", rc, text)


# --- one load --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What one process is told to measure: the devices that hold layers, their shares, and the tests."""

    devices: tuple[str, ...]
    shares: tuple[int, ...]             # empty for a single device, which needs no vector
    split_mode: str
    serving: Mapping
    tests: tuple[Mapping, ...]
    experts: expert_placement.ExpertPlacement | None


def make_order(load: Mapping, devices: t.Sequence[str], serving: Mapping) -> Order:
    """Check a load of the planner against the devices and return the Order; raises UserError naming the wrong field.

    Devices without a layer are not named to llama.cpp at all: as C(-dev A/B -ts 33/0) B would still get buffers.
    With experts in RAM the serving profile is that of expert_placement.serving_with, and the batch is at least as large
    as the largest micro-batch of the tests.
    """
    label = load.get("label", "the load")
    counts = load_checks.check_layers(load, len(devices))
    split_mode = load.get("split_mode")
    if not isinstance(split_mode, str) or not re.fullmatch(r"[a-z]+", split_mode):
        raise UserError(f"split_mode of {label} is {split_mode!r}: it must be a mode of llama.cpp such as layer")
    tests = load_checks.check_tests(load)
    try:
        experts = expert_placement.from_json(counts, load.get("experts_in_ram"))
    except ValueError as exc:
        raise UserError(f"{exc} ({label})") from exc
    if experts is not None:
        if split_mode == "tensor":
            raise UserError(f"{label} has weights in RAM and split mode tensor, which needs whole blocks on devices")
        sizes = [size for test in tests if isinstance(size := micro_batch(test, serving), int)]
        serving = expert_placement.serving_with(t.cast(Serving, serving), experts, max(sizes, default=0))
    for field, flag in SERVING_FLAGS:
        value = serving.get(field)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise UserError(f"serving.{field} is {value!r}: llama-bench needs it as text or a number for {flag}")
    used = [(name, count) for name, count in zip(devices, counts, strict=True) if count > 0]
    return Order(
        devices=tuple(name for name, _count in used),
        shares=tuple(count for _name, count in used) if len(used) > 1 else (),
        split_mode=split_mode,
        serving=serving,
        tests=tests,
        experts=experts,
    )


def micro_batch(test: Mapping, serving: Mapping) -> t.Any:
    """Return the micro-batch of a test: its own where it names one, else that of the serving profile."""
    return test.get("micro_batch_size", serving.get("micro_batch_size"))


def threads(test: Mapping, serving: Mapping) -> t.Any:
    """Return the threads of the CPU in a test: its own where it names some, else those of the serving profile."""
    return test.get("threads", serving.get("threads"))


def _joined(values: t.Iterable[t.Any]) -> str:
    return ",".join(str(value) for value in dict.fromkeys(values)) or "0"


def bench_command(llama_bench: str, model_path: str, order: Order, rpc_endpoints: t.Sequence[str]) -> list[str]:
    """Return the command that measures all tests of the order in one process, with one loading of the model.

    llama-bench runs every depth with every prompt and every generation length, and has one number of repetitions: rows
    that were not asked for are dropped when the output is read, and the largest number of repetitions holds for all.
    Micro-batches and threads are run in the order in which the tests name them.
    Only what belongs to the model (file, split, devices) makes it load again, and that is the same for all tests.
    """
    tests = order.tests
    rpc = ["--rpc", ",".join(rpc_endpoints)] if rpc_endpoints else []
    split = ["-ts", "/".join(str(share) for share in order.shares)] if order.shares else []
    values = {
        **order.serving,
        "micro_batch_size": _joined(micro_batch(test, order.serving) for test in tests),
        "threads": _joined(threads(test, order.serving) for test in tests),
    }
    flags = [part for field, flag in SERVING_FLAGS for part in (flag, str(values[field]))]
    pairs = dict.fromkeys((test["n_prompt"], test["n_gen"]) for test in tests if test["n_prompt"] and test["n_gen"])
    return [
        llama_bench, "-m", model_path,
        *rpc,                            # before -dev, which knows only devices that are already registered
        "-dev", "/".join(order.devices), "-sm", order.split_mode, *split, *flags, *_experts(order),
        "-p", _joined(test["n_prompt"] for test in tests if not test["n_gen"]),
        "-n", _joined(test["n_gen"] for test in tests if not test["n_prompt"]),
        *(part for prompt, gen in pairs for part in ("-pg", f"{prompt},{gen}")),
        "-d", _joined(test["n_depth"] for test in tests),
        "-r", str(max(test["repetitions"] for test in tests)),
        "-o", "jsonl",
    ]


def _experts(order: Order) -> list[str]:
    """Return the flags of experts in RAM."""
    if order.experts is None or not order.experts.any:
        return []
    no_host = ["--no-host", "1"] if order.experts.no_host else []
    return ["-ot", expert_placement.render(order.experts, "llama_bench"), *no_host]


def diagnosis_command(command: t.Sequence[str]) -> list[str]:
    """Return a short, talkative form of C(command).

    llama-bench silences llama.cpp, so a failed allocation ends as 'failed to create context'; -v tells device and size.
    """
    short = list(command)
    short[short.index("-r") + 1] = "1"
    return [*short, "--no-warmup", "-v"]


def question_command(command: t.Sequence[str]) -> list[str]:
    """Return the shortest, talkative form of C(command): one token, for what llama.cpp says while it loads."""
    short = diagnosis_command(command)
    while "-pg" in short:
        place = short.index("-pg")
        del short[place : place + 2]
    for flag, value in (("-p", "0"), ("-n", "1"), ("-d", "0")):
        short[short.index(flag) + 1] = value
    return short


# --- reading the output ----------------------------------------------------------------------------------------------


def read_rows(stdout: str) -> tuple[list[Json], list[str], bool]:
    """Return the JSON rows of C(-o jsonl), the other lines, and whether a row was cut off."""
    rows: list[Json] = []
    strange: list[str] = []
    broken = False
    for line in stdout.splitlines():
        text = line.strip()
        if text.startswith("{"):
            try:
                row = json_file.from_text(text, any_number=True)
            except ValueError:
                broken = True
            else:
                rows.append(row)
        elif text and not allreduce_log.is_of_nccl(text):
            strange.append(text)
    return rows, strange, broken


def same_split(printed: t.Any, shares: t.Sequence[int]) -> bool:
    """Compare llama-bench's C(tensor_split) ("20.00/13.00", trailing zero shares dropped) with the shares asked for."""
    try:
        found = [float(part) for part in str(printed).split("/")]
    except ValueError:
        return False
    wanted = [float(share) for share in shares]
    length = max(len(found), len(wanted))
    found += [0.0] * (length - len(found))
    wanted += [0.0] * (length - len(wanted))
    return all(abs(one - other) < 0.006 for one, other in zip(found, wanted, strict=True))


def _disagreement(row: Mapping, order: Order) -> str | None:
    """Return which field of a row differs from what was asked, or None."""
    if row.get("devices") != "/".join(order.devices):
        return f"devices {row.get('devices')} instead of {'/'.join(order.devices)}"
    if row.get("split_mode") != order.split_mode:
        return f"split mode {row.get('split_mode')} instead of {order.split_mode}"
    if not same_split(row.get("tensor_split"), order.shares):
        return f"split {row.get('tensor_split')} instead of {'/'.join(str(share) for share in order.shares) or 'none'}"
    experts = expert_placement.render(order.experts, "llama_bench") if order.experts else ""
    if row.get("tensor_buft_overrides", "none") != (experts or "none"):
        return f"the overrides {row.get('tensor_buft_overrides')} instead of {experts or 'none'}"
    for field, name in _ROW_FIELDS:
        if name in row and str(row[name]) != str(order.serving[field]):
            return f"{name} {row[name]} instead of {order.serving[field]}"
    return None


def _results(rows: t.Sequence[Mapping], order: Order) -> list[Json]:
    """Return one result per test, in the order of the tests, or raise UserError naming what is missing."""
    results: list[Json] = []
    for test in order.tests:
        shape = tuple(test[field] for field in ("n_prompt", "n_gen", "n_depth"))
        name = f"the {test.get('kind')} test (n_prompt {shape[0]}, n_gen {shape[1]}, n_depth {shape[2]})"
        wanted, of_cpu = micro_batch(test, order.serving), threads(test, order.serving)
        matching = [
            row
            for row in rows
            if (row.get("n_prompt"), row.get("n_gen"), row.get("n_depth")) == shape
            and row.get("n_ubatch", wanted) == wanted
            and row.get("n_threads", of_cpu) == of_cpu
        ]
        if not matching:
            raise UserError(f"it printed no row for {name}")
        samples = load_checks.samples_ms(matching[0])
        if samples is None or len(samples) < test["repetitions"]:
            raise UserError(f"the row for {name} does not hold {test['repetitions']} positive times")
        difference = _disagreement(matching[0], order)
        if difference is not None:
            raise UserError(f"the row for {name} says {difference}")
        own = {name: test[name] for name in ("micro_batch_size", "threads") if name in test}
        results.append({
            "kind": test.get("kind"),
            "n_prompt": shape[0],
            "n_gen": shape[1],
            "n_depth": shape[2],
            **own,
            "samples_ms": samples,
        })
        if isinstance(matching[0].get("energy"), dict):  # not llama-bench's own: a wrapper that measures energy adds it
            results[-1]["energy"] = matching[0]["energy"]
    return results


_INVALID_FLAG = re.compile(r"error: invalid parameter for argument: (\S+)")


def explain_misuse(rc: int, text: str) -> str | None:
    """Return one sentence when the program itself cannot do what is asked of it, whatever the split; else None."""
    if "failed to find RPC backend" in text:
        return "llama-bench was built without RPC: build llama.cpp with the rpc backend, or leave rpc_endpoints empty"
    match = _INVALID_FLAG.search(text)
    if match and not outcome.INVALID_DEVICE.search(text):
        return (f"llama-bench does not accept {match.group(1)} as it was given: this llama.cpp is older or newer than"
                " the one that the collection was made for, so install the pinned version")
    if "error while loading shared libraries" in text or rc in (126, 127):
        return f"llama-bench cannot be run ({outcome.last_words(text)}): install llama.cpp again"
    return None


def judge(rc: int, stdout: str, stderr: str, timed_out_after: int | None, order: Order) -> outcome.Verdict:
    """Return the Verdict over one finished process. C(timed_out_after) is its limit in seconds when it ran into it."""
    rows, strange, broken = read_rows(stdout)
    build = next((f"{row.get('build_number')} ({row.get('build_commit')})" for row in rows), None)

    def failed(status: str, reason: str, explained: bool = True) -> outcome.Verdict:
        return outcome.Verdict(status, reason, [], [], build, explained)

    if timed_out_after is not None:
        return failed("timed_out", f"llama-bench was not done after {timed_out_after} seconds and was ended")
    if rc != 0:
        text = "\n".join([*strange, stderr])
        told = outcome.known(text)
        if told is not None:
            return failed(*told)
        reason = outcome.crash("llama-bench", rc, text)
        return failed("crashed", reason, explained=False)
    try:
        results = _results(rows, order)
    except UserError as exc:
        cut = ", and its output is cut off" if broken else ""
        return failed("unreadable", f"llama-bench ended well but {exc}{cut}")
    if broken:
        return failed("unreadable", "llama-bench ended well but a row of its output is cut off")
    warnings = [f"llama-bench printed {outcome.clip(line)!r} among its results" for line in strange[:5]]
    return outcome.Verdict("ok", None, results, warnings, build, True)


# --- the store -------------------------------------------------------------------------------------------------------
