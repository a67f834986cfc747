# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How a measuring process ended, read from its exit status and output. Private to this collection. Pure functions only.

The messages are those of llama.cpp b11312, PyTorch and CUDA.
"""

from __future__ import annotations

import re
import signal
import typing as t
from dataclasses import dataclass

from .._base.types import Json

STATUSES: t.Final = ("ok", "out_of_memory", "crashed", "timed_out", "unreadable", "device_lost")
#: What a trial (split_mode_trial) may end as beyond that.
TRIAL_STATUSES: t.Final = ("hung", "refused", "different", "unstable", "reference_failed")
#: A resumed run would only see these again; a lost device or unreadable output may be gone the next time.
REUSABLE: t.Final = ("ok", "out_of_memory", "crashed", "timed_out")


@dataclass(frozen=True)
class Verdict:
    """What one process gave. explained is False when a talkative second run may tell why it failed."""

    status: str
    reason: str | None
    results: list[Json]
    warnings: list[str]
    build: str | None
    explained: bool


_OUT_OF_MEMORY = re.compile(
    r"out of memory|failed to allocate|unable to allocate|insufficient memory|cudaMalloc failed"
    r"|failed to reserve memory|OutOf(?:Device|Host)Memory|memory allocation of size \d+ failed|ALLOC_FAILED"
    r"|std::bad_alloc",
    re.IGNORECASE,
)
#: Harmless lines of a talkative run: each is followed by a slower way that works.
_HARMLESS = re.compile(r"pinned memory|host buffer for async uploads|failed to allocate graph, reserving", re.I)
_BUFFER_OF_SIZE = re.compile(r"failed to allocate (\S+) buffer of size ([0-9]{1,20})")
_CUDA_BUFFER = re.compile(r"allocating ([0-9]{1,12}(?:\.[0-9]{1,6})?) MiB on device ([0-9]{1,3}): cudaMalloc failed")
_UNREACHABLE = re.compile(r"Failed to connect to (\S+)|RPC handshake failed for (\S+)|Cannot resolve host '([^']*)'")
_OTHER_PROTOCOL = re.compile(r"RPC server version mismatch: (\d+\.\d+\.\d+)")
_GONE = re.compile(
    r"Remote RPC server crashed|(?:send|recv) failed \(bytes_|fallen off the bus"
    r"|GPU is lost|no CUDA-capable device is detected|ErrorDeviceLost|uncorrectable ECC error",
)
#: The sentence that out_of_memory makes of either.
_WANTED = re.compile(
    r"out of memory: (?P<mib>[0-9]{1,20}) MiB more were wanted on (?:CUDA device (?P<cuda>\d+)|(?P<buffer>\S+))$"
)
#: What ggml's CUDA_CHECK and PyTorch print before they abort; CUDA's texts are those of cudaGetErrorString.
_CUDA_ERROR = re.compile(r"CUDA error: (.+)(?:\n\s*current device: (\d+))?")
_CUDA_CURES: t.Final = (
    ("no kernel image", "llama.cpp was not built for this card: build it for the cards of this host"),
    ("PTX was compiled with an unsupported toolchain", "the driver is older than the CUDA toolkit: upgrade the driver"),
    ("driver version is insufficient", "the driver is older than the CUDA toolkit: upgrade the driver"),
    ("initialization error", "the driver does not work: look for its errors in the kernel log"),
    ("peer access", "take GGML_CUDA_P2P out of the environment, or look at the IOMMU"),
)
_CUDA_CURE: t.Final = "this is no matter of memory: look for Xid errors of the driver in the kernel log"
INVALID_DEVICE = re.compile(r"error: invalid device: (\S+)")
_SAYS_LITTLE = re.compile(
    r"^llama_bench: error: failed to|: failed to (?:load model|create[ _]context(?: with model .*)?)$|: [A-Z]+ error$"
    r"|exiting due to model loading error$"
)
#: What llama-server puts before an error: minutes.seconds.milliseconds.microseconds and E.
_ERROR_LINE = r"^\d+\.\d{2}\.\d{3}\.\d{3} E "
_COMPLAINT = re.compile(_ERROR_LINE + r"|error|fail|abort|assert|what\(\)|terminate", re.IGNORECASE)
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
    return f"out of memory: {clip(lines[0])}"


def memory_wanted(reason: str) -> tuple[str, float]:
    """Return the device and the MiB that a sentence of out_of_memory names; empty and 0 where it names none."""
    match = _WANTED.match(reason)
    if match is None:
        return "", 0.0
    return (f"CUDA{match['cuda']}" if match["cuda"] else match["buffer"]), float(match["mib"])


def crash(program: str, rc: int, text: str) -> str:
    """Return how a program that failed ended, with its last words, or what an error of CUDA means, with its cure."""
    match = _CUDA_ERROR.search(text)
    if match is None:
        return f"{program} {how_it_ended(rc)} ({last_words(text)})"
    message = match.group(1).strip().rstrip(".")
    cure = next((cure for part, cure in _CUDA_CURES if part in message), _CUDA_CURE)
    where = f" on CUDA device {match.group(2)}" if match.group(2) else ""
    return f"{program} {how_it_ended(rc)}: CUDA says {clip(message)}{where}; {cure}"


def device_lost(text: str) -> str | None:
    """Return one sentence when what a program printed says that a device is gone, with what to do; else None."""
    match = _UNREACHABLE.search(text)
    other = _OTHER_PROTOCOL.search(text)
    if other:
        which = f" {match.group(2)}" if match and match.group(2) else ""
        return (f"the RPC endpoint{which} speaks protocol {other.group(1)}, which this llama.cpp refuses: run"
                " homelab.mixed_gpu.site over both hosts, so that they have the same llama.cpp")
    if match:
        endpoint = next(group for group in match.groups() if group)
        return (f"the RPC endpoint {endpoint} does not answer ({_line_of(text, match.start())}): start the"
                " ggml-rpc-server there, of the same llama.cpp build, or take it out of rpc_endpoints")
    match = INVALID_DEVICE.search(text)
    if match:
        return f"llama.cpp no longer has the device {match.group(1)}: look at what llama_devices_info lists now"
    match = _GONE.search(text)
    if match:
        return (f"a device was lost ({_line_of(text, match.start())}): look at the journal of its ggml-rpc-server or of"
                " the kernel")
    return None


def known(text: str) -> tuple[str, str] | None:
    """Return (status, sentence) when what a program printed says that memory ran out or a device is gone; else None."""
    memory = out_of_memory(text)
    if memory is not None:
        return "out_of_memory", memory
    lost = device_lost(text)
    return None if lost is None else ("device_lost", lost)


def _line_of(text: str, position: int) -> str:
    """Return the line around a position, without the place in the source that an abort prints before its message."""
    start = text.rfind("\n", 0, position) + 1
    end = text.find("\n", position)
    return clip(_SOURCE_PLACE.sub("", text[start:end if end >= 0 else len(text)].strip()))


def clip(text: str) -> str:
    """Shorten a line to 240 characters."""
    return text if len(text) <= 240 else text[:237] + "..."


def _lines(text: str) -> list[str]:
    """Return the lines that say something, without those of a backtrace."""
    return [line.strip() for line in text.splitlines() if line.strip() and "[0x" not in line]


def complaints(text: str) -> list[str]:
    """Return the lines of a program in which it says that something went wrong."""
    return [line for line in _lines(text) if _COMPLAINT.search(line)]


def last_words(text: str) -> str:
    """Return the line of a failed program that says most: its last complaint, or else its last line."""
    found = complaints(text)
    # The last lines only say that loading failed; what llama.cpp said before them is the reason.
    reasons = [line for line in found if not _SAYS_LITTLE.search(line)]
    chosen = (reasons or found or _lines(text) or ["it printed nothing"])[-1]
    return clip(_SOURCE_PLACE.sub("", re.sub(_ERROR_LINE, "", chosen)))


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
