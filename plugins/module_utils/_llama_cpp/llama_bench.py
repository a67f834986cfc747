# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Command lines and output of llama-bench. Private to this collection. Pure functions only.

The forms are those of llama.cpp b11312; docs/data_formats.md describes the dicts (device, serving, load).
"""

from __future__ import annotations

import json
import math
import re
import signal
import typing as t
from dataclasses import dataclass

from .._base import fingerprints

STORE_SCHEMA: t.Final = 1
STATUSES: t.Final = ("ok", "out_of_memory", "crashed", "timed_out", "unreadable", "device_lost")
#: What a trial (split_mode_trial) may end as beyond that.
TRIAL_STATUSES: t.Final = ("hung", "refused", "different", "unstable", "reference_failed")
#: A resumed run would only see these again; a lost device or unreadable output may be gone the next time.
REUSABLE: t.Final = ("ok", "out_of_memory", "crashed", "timed_out")

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
    ("threads", "n_threads"),
    ("poll", "poll"),
    ("load_mode", "load_mode"),
)


class BenchError(ValueError):
    """Something that was asked for, or printed, makes no sense; the message is one sentence for the operator."""


# --- devices ---------------------------------------------------------------------------------------------------------

_DEVICE_LINE = re.compile(r"^\s+([A-Za-z][^\s:]*): (.*) \((\d+) MiB, (\d+) MiB free\)\s*$")


def list_devices_command(llama_bench: str, rpc_endpoints: t.Sequence[str]) -> list[str]:
    """Return the command that lists the devices. llama-bench obeys --list-devices at once, so --rpc comes before it."""
    rpc = ["--rpc", ",".join(rpc_endpoints)] if rpc_endpoints else []
    return [llama_bench, *rpc, "--list-devices"]


def parse_devices(text: str) -> list[dict[str, t.Any]]:
    """Return the devices of C(llama-bench --list-devices), in its order, without their ids.

    Each has device, backend, description, total_mib and free_mib. Devices without memory of their own (accelerators
    such as BLAS) cannot hold layers and are left out. Raises BenchError when the list is missing or has a line of
    unknown form.
    """
    lines = text.splitlines()
    try:
        start = lines.index("Available devices:") + 1
    except ValueError:
        raise BenchError("there is no line 'Available devices:' in what it printed") from None
    devices: list[dict[str, t.Any]] = []
    for line in lines[start:]:
        if not line.strip() or line.strip() == "(none)":
            continue
        match = _DEVICE_LINE.match(line)
        if match is None:
            if line.startswith("  "):
                raise BenchError(f"the device line {line.strip()!r} has an unknown form")
            continue
        name, description, total, free = match.groups()
        if int(total) == 0:
            continue
        devices.append({
            "device": name,
            "backend": re.sub(r"\d+$", "", name),
            "description": description,
            "total_mib": int(total),
            "free_mib": int(free),
        })
    return devices


def identify(devices: t.Sequence[t.Mapping[str, t.Any]], cuda_uuids: t.Sequence[str]) -> list[dict[str, t.Any]]:
    """Return the devices with C(id) and an empty C(budget_mib).

    RPC devices are known by their endpoint (a second device of one endpoint by endpoint#1), CUDA devices by the UUID at
    their place in C(cuda_uuids), all others by their name. Raises BenchError when the UUIDs do not match the devices.
    """
    cuda = [entry["device"] for entry in devices if entry["backend"] == "CUDA"]
    if cuda_uuids and len(cuda_uuids) != len(cuda):
        raise BenchError(
            f"cuda_uuids names {len(cuda_uuids)} cards ({', '.join(cuda_uuids)}) but llama.cpp sees {len(cuda)} CUDA"
            f" devices ({', '.join(cuda) or 'none'}): give one UUID for each, in the order of CUDA_VISIBLE_DEVICES"
        )
    by_name = dict(zip(cuda, cuda_uuids, strict=False))
    result: list[dict[str, t.Any]] = []
    for entry in devices:
        name = str(entry["device"])
        identity = by_name.get(name, name)
        if entry["backend"] == "RPC":
            endpoint = str(entry["description"])
            earlier = sum(1 for other in result if other["backend"] == "RPC" and other["description"] == endpoint)
            identity = f"{endpoint}#{earlier}" if earlier else endpoint
        if any(other["id"] == identity for other in result):
            raise BenchError(f"two devices have the id {identity}: every entry of cuda_uuids must be a different card")
        result.append({**entry, "id": identity, "budget_mib": None})
    return result


def set_budgets(
    devices: t.Sequence[t.Mapping[str, t.Any]], budgets_mib: t.Mapping[str, t.Any]
) -> list[dict[str, t.Any]]:
    """Return the devices with C(budget_mib) filled from C(budgets_mib), whose keys are ids or llama.cpp's names."""
    result = [dict(entry) for entry in devices]
    for key, value in budgets_mib.items():
        matching = [entry for entry in result if key in (entry["id"], entry["device"])]
        if not matching:
            raise BenchError(f"budgets_mib names {key}, which is none of the devices here: {describe(devices)}")
        try:
            budget = int(value)
        except (TypeError, ValueError):
            budget = 0
        if isinstance(value, bool) or budget < 1 or str(budget) != str(value).strip():
            raise BenchError(f"budgets_mib gives {key} {value!r}: a budget is a whole number of MiB, at least 1")
        if matching[0]["budget_mib"] not in (None, budget):
            raise BenchError(f"budgets_mib names {matching[0]['id']} by id and by name with different values: keep one")
        matching[0]["budget_mib"] = budget
    return result


def check_order(devices: t.Sequence[t.Mapping[str, t.Any]], expected: t.Sequence[str]) -> None:
    """Raise BenchError unless the ids of the devices are C(expected), in that order."""
    found = [str(entry["id"]) for entry in devices]
    if expected and found != list(expected):
        raise BenchError(
            f"the devices are not those expected, or not in that order: found {', '.join(found) or 'none'}, expected "
            f"{', '.join(expected)}; check CUDA_DEVICE_ORDER=PCI_BUS_ID, CUDA_VISIBLE_DEVICES and the order of"
            " rpc_endpoints"
        )


def missing_endpoints(devices: t.Sequence[t.Mapping[str, t.Any]], rpc_endpoints: t.Sequence[str]) -> list[str]:
    """Return the endpoints that were asked for and offer no device."""
    there = {entry["description"] for entry in devices if entry["backend"] == "RPC"}
    return [endpoint for endpoint in rpc_endpoints if endpoint not in there]


def describe(devices: t.Sequence[t.Mapping[str, t.Any]]) -> str:
    """Return the devices as C(RPC0 (127.0.0.1:50052), ...), or C(none)."""
    names = [str(e["device"]) if e["id"] == e["device"] else f"{e['device']} ({e['id']})" for e in devices]
    return ", ".join(names) or "none"


def explain_list_failure(rc: int, text: str, rpc_endpoints: t.Sequence[str]) -> str:
    """Return one sentence for a failed listing: the endpoint that does not answer, or the program's own words."""
    lost = device_lost(text)
    if lost is not None:
        return lost
    misuse = explain_misuse(rc, text)
    if misuse is not None:
        return misuse
    tail = f" with the endpoints {', '.join(rpc_endpoints)}" if rpc_endpoints else ""
    return f"llama-bench could not list the devices{tail}: it {how_it_ended(rc)} ({last_words(text)})"


# --- one load --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Order:
    """What one process is told to measure: the devices that hold layers, their shares, and the tests."""

    devices: tuple[str, ...]
    shares: tuple[int, ...]             # empty for a single device, which needs no vector
    split_mode: str
    serving: t.Mapping[str, t.Any]
    tests: tuple[t.Mapping[str, t.Any], ...]


def _whole(value: t.Any, what: str, minimum: int = 0) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < minimum:
        raise BenchError(f"{what} is {value!r}: it must be a whole number, at least {minimum}")
    return int(value)


def check_layers(load: t.Mapping[str, t.Any], devices: int) -> list[int]:
    """Return the layers of a load, one number per device; raises BenchError when they, or its number, make no sense."""
    label = load.get("label", "the load")
    layers = load.get("layers")
    if not isinstance(layers, (list, tuple)) or len(layers) != devices or not devices:
        raise BenchError(f"layers of {label} is {layers!r}: it must hold one number for each of {devices} devices")
    counts = [_whole(value, f"layers[{index}] of {label}") for index, value in enumerate(layers)]
    if sum(counts) == 0:
        raise BenchError(f"layers of {label} puts nothing on any device: give at least one slot")
    _whole(load.get("load"), f"load of {label}", 1)
    return counts


def check_tests(load: t.Mapping[str, t.Any]) -> tuple[t.Mapping[str, t.Any], ...]:
    """Return the tests of a load; raises BenchError naming the field that is wrong."""
    label = load.get("label", "the load")
    tests = load.get("tests")
    if not isinstance(tests, (list, tuple)) or not tests:
        raise BenchError(f"tests of {label} is {tests!r}: it must be a list with at least one test")
    for index, test in enumerate(tests):
        where = f"tests[{index}] of {label}"
        if not isinstance(test, t.Mapping):
            raise BenchError(f"{where} is {test!r}: it must be a dict with n_prompt, n_gen, n_depth and repetitions")
        for field in ("n_prompt", "n_gen", "n_depth"):
            _whole(test.get(field), f"{field} of {where}")
        _whole(test.get("repetitions"), f"repetitions of {where}", 1)
        if "micro_batch_size" in test:
            _whole(test["micro_batch_size"], f"micro_batch_size of {where}", 1)
        if test["n_prompt"] == 0 and test["n_gen"] == 0:
            raise BenchError(f"{where} has n_prompt 0 and n_gen 0: it must process or generate at least one token")
    return tuple(tests)


def make_order(load: t.Mapping[str, t.Any], devices: t.Sequence[str], serving: t.Mapping[str, t.Any]) -> Order:
    """Check a load of the planner against the devices and return the Order; raises BenchError naming the wrong field.

    Devices without a layer are not named to llama.cpp at all: as C(-dev A/B -ts 33/0) B would still get buffers.
    """
    label = load.get("label", "the load")
    counts = check_layers(load, len(devices))
    split_mode = load.get("split_mode")
    if not isinstance(split_mode, str) or not re.fullmatch(r"[a-z]+", split_mode):
        raise BenchError(f"split_mode of {label} is {split_mode!r}: it must be a mode of llama.cpp such as layer")
    tests = check_tests(load)
    for field, flag in SERVING_FLAGS:
        value = serving.get(field)
        if not isinstance(value, (str, int)) or isinstance(value, bool):
            raise BenchError(f"serving.{field} is {value!r}: llama-bench needs it as text or a number for {flag}")
    used = [(name, count) for name, count in zip(devices, counts, strict=True) if count > 0]
    return Order(
        devices=tuple(name for name, _count in used),
        shares=tuple(count for _name, count in used) if len(used) > 1 else (),
        split_mode=split_mode,
        serving=serving,
        tests=tests,
    )


def micro_batch(test: t.Mapping[str, t.Any], serving: t.Mapping[str, t.Any]) -> t.Any:
    """Return the micro-batch of a test: its own where it names one, else that of the serving profile."""
    return test.get("micro_batch_size", serving.get("micro_batch_size"))


def _joined(values: t.Iterable[t.Any]) -> str:
    return ",".join(str(value) for value in dict.fromkeys(values)) or "0"


def bench_command(llama_bench: str, model_path: str, order: Order, rpc_endpoints: t.Sequence[str]) -> list[str]:
    """Return the command that measures all tests of the order in one process, with one loading of the model.

    llama-bench runs every depth with every prompt and every generation length, and has one number of repetitions: rows
    that nobody asked for are dropped when the output is read, and the largest number of repetitions holds for all.
    Micro-batches are run in the order in which the tests name them.
    Only what belongs to the model (file, split, devices) makes it load again, and that is the same for all tests.
    """
    tests = order.tests
    rpc = ["--rpc", ",".join(rpc_endpoints)] if rpc_endpoints else []
    split = ["-ts", "/".join(str(share) for share in order.shares)] if order.shares else []
    values = {**order.serving, "micro_batch_size": _joined(micro_batch(test, order.serving) for test in tests)}
    flags = [part for field, flag in SERVING_FLAGS for part in (flag, str(values[field]))]
    pairs = dict.fromkeys((test["n_prompt"], test["n_gen"]) for test in tests if test["n_prompt"] and test["n_gen"])
    return [
        llama_bench, "-m", model_path,
        *rpc,                            # before -dev, which knows only devices that are already registered
        "-dev", "/".join(order.devices), "-sm", order.split_mode, *split, *flags,
        "-p", _joined(test["n_prompt"] for test in tests if not test["n_gen"]),
        "-n", _joined(test["n_gen"] for test in tests if not test["n_prompt"]),
        *(part for prompt, gen in pairs for part in ("-pg", f"{prompt},{gen}")),
        "-d", _joined(test["n_depth"] for test in tests),
        "-r", str(max(test["repetitions"] for test in tests)),
        "-o", "jsonl",
    ]


def diagnosis_command(command: t.Sequence[str]) -> list[str]:
    """Return a short, talkative form of C(command).

    llama-bench silences llama.cpp, so a failed allocation ends as 'failed to create context'; -v tells device and size.
    """
    short = list(command)
    short[short.index("-r") + 1] = "1"
    return [*short, "--no-warmup", "-v"]


# --- reading the output ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Verdict:
    """What one process gave. explained is False when a talkative second run may tell why it failed."""

    status: str
    reason: str | None
    results: list[dict[str, t.Any]]
    warnings: list[str]
    build: str | None
    explained: bool


def read_rows(stdout: str) -> tuple[list[dict[str, t.Any]], list[str], bool]:
    """Return the JSON rows of C(-o jsonl), the other lines, and whether a row was cut off."""
    rows: list[dict[str, t.Any]] = []
    strange: list[str] = []
    broken = False
    for line in stdout.splitlines():
        text = line.strip()
        if text.startswith("{"):
            try:
                row = json.loads(text)
            except ValueError:
                broken = True
            else:
                rows.append(row)
        elif text:
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


def _disagreement(row: t.Mapping[str, t.Any], order: Order) -> str | None:
    """Return which field of a row differs from what was asked, or None."""
    if row.get("devices") != "/".join(order.devices):
        return f"devices {row.get('devices')} instead of {'/'.join(order.devices)}"
    if row.get("split_mode") != order.split_mode:
        return f"split mode {row.get('split_mode')} instead of {order.split_mode}"
    if not same_split(row.get("tensor_split"), order.shares):
        return f"split {row.get('tensor_split')} instead of {'/'.join(str(share) for share in order.shares) or 'none'}"
    for field, name in _ROW_FIELDS:
        if name in row and str(row[name]) != str(order.serving[field]):
            return f"{name} {row[name]} instead of {order.serving[field]}"
    return None


def checked_samples(samples: t.Any) -> list[float] | None:
    """Return samples when they are positive numbers and there is one at least, else None."""
    if not isinstance(samples, list) or not samples:
        return None
    for value in samples:
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or value <= 0:
            return None
    return samples


def _samples_ms(row: t.Mapping[str, t.Any]) -> list[float] | None:
    samples = checked_samples(row.get("samples_ns"))
    return None if samples is None else [value / 1e6 for value in samples]


def _results(rows: t.Sequence[t.Mapping[str, t.Any]], order: Order) -> list[dict[str, t.Any]]:
    """Return one result per test, in the order of the tests, or raise BenchError naming what is missing."""
    results: list[dict[str, t.Any]] = []
    for test in order.tests:
        shape = tuple(test[field] for field in ("n_prompt", "n_gen", "n_depth"))
        name = f"the {test.get('kind')} test (n_prompt {shape[0]}, n_gen {shape[1]}, n_depth {shape[2]})"
        wanted = micro_batch(test, order.serving)
        matching = [
            row
            for row in rows
            if (row.get("n_prompt"), row.get("n_gen"), row.get("n_depth")) == shape
            and row.get("n_ubatch", wanted) == wanted
        ]
        if not matching:
            raise BenchError(f"it printed no row for {name}")
        samples = _samples_ms(matching[0])
        if samples is None or len(samples) < test["repetitions"]:
            raise BenchError(f"the row for {name} does not hold {test['repetitions']} positive times")
        difference = _disagreement(matching[0], order)
        if difference is not None:
            raise BenchError(f"the row for {name} says {difference}")
        own = {"micro_batch_size": wanted} if "micro_batch_size" in test else {}
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


_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|insufficient memory|cudaMalloc failed"
    r"|failed to reserve memory|OutOf(?:Device|Host)Memory|memory allocation of size \d+ failed|ALLOC_FAILED"
    r"|std::bad_alloc",
    re.IGNORECASE,
)
#: Harmless lines of a talkative run: each is followed by a slower way that works.
_HARMLESS = re.compile(r"pinned memory|host buffer for async uploads|failed to allocate graph, reserving", re.I)
_BUFFER_OF_SIZE = re.compile(r"failed to allocate (\S+) buffer of size (\d+)")
_CUDA_BUFFER = re.compile(r"allocating ([\d.]+) MiB on device (\d+): cudaMalloc failed")
_UNREACHABLE = re.compile(r"Failed to connect to (\S+)|RPC handshake failed for (\S+)|Cannot resolve host '([^']*)'")
_GONE = re.compile(
    r"Remote RPC server crashed|RPC server version mismatch|(?:send|recv) failed \(bytes_|fallen off the bus"
    r"|GPU is lost|no CUDA-capable device is detected|ErrorDeviceLost|uncorrectable ECC error",
)
_INVALID_DEVICE = re.compile(r"error: invalid device: (\S+)")
_INVALID_FLAG = re.compile(r"error: invalid parameter for argument: (\S+)")
_SAYS_LITTLE = re.compile(
    r"^llama_bench: error: failed to|: failed to (?:load model|create context(?: with model .*)?)$|: [A-Z]+ error$"
)
#: What llama-server and llama-perplexity put before an error: minutes.seconds.milliseconds.microseconds and E.
_ERROR_LINE = r"^\d+\.\d{2}\.\d{3}\.\d{3} E "
_SOURCE_PLACE = re.compile(r"^\S+\.(?:c|cc|cpp|cu|cuh|h|hpp|m):\d+: ")


def out_of_memory(text: str) -> str | None:
    """Return one sentence when what a program printed says that memory ran out, with device and size; else None."""
    lines = [line.strip() for line in text.splitlines() if _OUT_OF_MEMORY.search(line) and not _HARMLESS.search(line)]
    if not lines:
        return None
    for line in lines:
        match = _CUDA_BUFFER.search(line)
        if match:
            return f"out of memory: {float(match.group(1)):.0f} MiB more were wanted on CUDA device {match.group(2)}"
    for line in lines:
        match = _BUFFER_OF_SIZE.search(line)
        if match:
            return f"out of memory: {int(match.group(2)) / 2**20:.0f} MiB more were wanted on {match.group(1)}"
    return f"out of memory: {_clip(lines[0])}"


def device_lost(text: str) -> str | None:
    """Return one sentence when what a program printed says that a device is gone, with what to do; else None."""
    match = _UNREACHABLE.search(text)
    if match:
        endpoint = next(group for group in match.groups() if group)
        return (f"the RPC endpoint {endpoint} does not answer ({_line_of(text, match.start())}): start the"
                " ggml-rpc-server there, of the same llama.cpp build, or take it out of rpc_endpoints")
    match = _INVALID_DEVICE.search(text)
    if match:
        return f"llama.cpp no longer has the device {match.group(1)}: look at what llama_devices_info lists now"
    match = _GONE.search(text)
    if match:
        return (f"a device was lost ({_line_of(text, match.start())}): look at the journal of its ggml-rpc-server or of"
                " the kernel")
    return None


def _line_of(text: str, position: int) -> str:
    """Return the line around a position, without the place in the source that an abort prints before its message."""
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return _clip(_SOURCE_PLACE.sub("", text[start:end if end >= 0 else len(text)].strip()))


def _clip(text: str, limit: int = 240) -> str:
    return text if len(text) <= limit else text[: limit - 3] + "..."


def last_words(text: str) -> str:
    """Return the line of a failed program that says most: its last complaint, or else its last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and "[0x" not in line]
    wanted = re.compile(_ERROR_LINE + r"|error|fail|abort|assert|what\(\)|terminate", re.IGNORECASE)
    complaints = [line for line in lines if wanted.search(line)]
    # The last lines only say that loading failed; what llama.cpp said before them is the reason.
    reasons = [line for line in complaints if not _SAYS_LITTLE.search(line)]
    chosen = (reasons or complaints or lines or ["it printed nothing"])[-1]
    return _clip(_SOURCE_PLACE.sub("", re.sub(_ERROR_LINE, "", chosen)))


def _signal_number(rc: int) -> int | None:
    """Return the signal that ended a process with this exit status, or None."""
    if rc < 0:
        return -rc
    return rc - 128 if rc > 128 else None


def how_it_ended(rc: int) -> str:
    """Return in words how a process with this exit status ended."""
    number = _signal_number(rc)
    if number is None:
        return f"ended with exit status {rc}"
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    hint = {
        "SIGILL": ", so it was built for another processor",
        "SIGKILL": " before its time limit, most likely by the kernel because the host's memory was used up",
    }.get(name, "")
    return f"was ended by {name}{hint}"


def explain_misuse(rc: int, text: str) -> str | None:
    """Return one sentence when the program itself cannot do what is asked of it, whatever the split; else None."""
    if "failed to find RPC backend" in text:
        return "llama-bench was built without RPC: build llama.cpp with the rpc backend, or leave rpc_endpoints empty"
    match = _INVALID_FLAG.search(text)
    if match and not _INVALID_DEVICE.search(text):
        return (f"llama-bench does not accept {match.group(1)} as it was given: this llama.cpp is older or newer than"
                " the one that the collection was made for, so install the pinned version")
    if "error while loading shared libraries" in text or rc in (126, 127):
        return f"llama-bench cannot be run ({last_words(text)}): install llama.cpp again"
    return None


def judge(rc: int, stdout: str, stderr: str, timed_out_after: int | None, order: Order) -> Verdict:
    """Return the Verdict over one finished process. C(timed_out_after) is its limit in seconds when it ran into it."""
    rows, strange, broken = read_rows(stdout)
    build = next((f"{row.get('build_number')} ({row.get('build_commit')})" for row in rows), None)

    def failed(status: str, reason: str, explained: bool = True) -> Verdict:
        return Verdict(status, reason, [], [], build, explained)

    if timed_out_after is not None:
        return failed("timed_out", f"llama-bench was not done after {timed_out_after} seconds and was ended")
    if rc != 0:
        text = "\n".join([*strange, stderr])
        memory = out_of_memory(text)
        if memory is not None:
            return failed("out_of_memory", memory)
        lost = device_lost(text)
        if lost is not None:
            return failed("device_lost", lost)
        return failed("crashed", f"llama-bench {how_it_ended(rc)} ({last_words(text)})", explained=False)
    try:
        results = _results(rows, order)
    except BenchError as exc:
        cut = ", and its output is cut off" if broken else ""
        return failed("unreadable", f"llama-bench ended well but {exc}{cut}")
    if broken:
        return failed("unreadable", "llama-bench ended well but a row of its output is cut off")
    warnings = [f"llama-bench printed {_clip(line)!r} among its results" for line in strange[:5]]
    return Verdict("ok", None, results, warnings, build, True)


# --- the store -------------------------------------------------------------------------------------------------------


def load_key(fingerprint: str, campaign: str, load: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the key of one load, as docs/data_formats.md names it."""
    key = {
        "fingerprint": fingerprint,
        "campaign": campaign,
        "split_mode": load["split_mode"],
        "layers": list(load["layers"]),
        "load": load["load"],
    }
    # only where they say something, so that loads of before keep their keys
    more = {name: load[name] for name in ("environment", "reference", "micro_batch_size") if load.get(name)}
    return {**key, **more}


def file_name(key: t.Mapping[str, t.Any]) -> str:
    """Return the name of the file that stores the load with this key."""
    return f"{fingerprints.fingerprint(key)}.json"


def stored_form(key: t.Mapping[str, t.Any], load: t.Mapping[str, t.Any], build: str | None, command: t.Sequence[str],
                warnings: t.Sequence[str]) -> dict[str, t.Any]:
    """Return what is written to the store for a measured load."""
    return {
        "schema": STORE_SCHEMA,
        "key": dict(key),
        "load": dict(load),
        "llama_cpp_build": build,
        "command": list(command),
        "warnings": list(warnings),
    }


def read_stored(text: str, key: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Return the load in a stored file, or raise BenchError when the file is damaged or belongs to something else."""
    try:
        data = json.loads(text)
    except ValueError as exc:
        raise BenchError(f"it holds no JSON ({exc})") from exc
    if not isinstance(data, dict) or data.get("schema") != STORE_SCHEMA:
        found = data.get("schema") if isinstance(data, dict) else None
        raise BenchError(f"its schema is {found!r}, and this version reads {STORE_SCHEMA}")
    if data.get("key") != dict(key):
        raise BenchError("it belongs to another load")
    load = data.get("load")
    known = (*STATUSES, *TRIAL_STATUSES)
    if not isinstance(load, dict) or load.get("status") not in known or not isinstance(load.get("results"), list):
        raise BenchError("it holds no load with a status and results")
    if load["status"] == "ok" and not load["results"]:
        raise BenchError("it holds a load that is ok and has no results")
    return load


def reusable(stored: t.Mapping[str, t.Any], tests: t.Sequence[t.Mapping[str, t.Any]]) -> bool:
    """Return whether a stored load answers these tests, so that it need not be measured again."""
    if stored["status"] not in REUSABLE:
        return False
    if stored["status"] != "ok":
        return True

    def shape(entry: t.Mapping[str, t.Any]) -> tuple[t.Any, ...]:
        return tuple(entry.get(field) for field in ("kind", "n_prompt", "n_gen", "n_depth", "micro_batch_size"))

    return {shape(test) for test in tests} <= {shape(result) for result in stored["results"]}
