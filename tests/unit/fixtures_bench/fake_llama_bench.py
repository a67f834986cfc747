# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A stand-in for llama-bench: it takes the same arguments, prints the same rows, and misbehaves as FAKE_MODE says.

The tests make an executable of it. Every start appends its arguments to the file FAKE_LOG. FAKE_SAYS is printed before
the rows, FAKE_LOUD only with -v.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import time

MODE = os.environ.get("FAKE_MODE", "ok")
FLAGS = {
    "-m": "model_filename", "-dev": "devices", "-sm": "split_mode", "-ngl": "n_gpu_layers", "-b": "n_batch",
    "-ub": "n_ubatch", "-ctk": "type_k", "-ctv": "type_v", "-t": "n_threads", "--poll": "poll", "-lm": "load_mode",
}


def options(argv: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    index = 0
    while index < len(argv):
        if argv[index] in ("-v", "--no-warmup", "--list-devices"):
            found[argv[index]] = []
            index += 1
        else:
            found.setdefault(argv[index], []).append(argv[index + 1])
            index += 2
    return found


def whole(text: str) -> object:
    return int(text) if text.isdigit() else text


def shares(text: str) -> str:
    """Like the real program: two decimals, and zero shares at the end dropped."""
    values = [float(part) for part in text.split("/")]
    while len(values) > 1 and values[-1] == 0:
        values.pop()
    return "/".join(f"{value:.2f}" for value in values)


def rows(given: dict[str, list[str]]) -> list[dict[str, object]]:
    base: dict[str, object] = {name: whole(given[flag][0]) for flag, name in FLAGS.items()}
    base |= {"build_commit": "0c1e57098", "build_number": 11312, "tensor_split": shares(given.get("-ts", ["0"])[0])}
    lengths = [(int(value), 0) for value in given["-p"][0].split(",") if value != "0"]
    lengths += [(0, int(value)) for value in given["-n"][0].split(",") if value != "0"]
    lengths += [(int(value.split(",")[0]), int(value.split(",")[1])) for value in given.get("-pg", [])]
    result = []
    for depth, (prompt, gen) in itertools.product(given["-d"][0].split(","), lengths):
        samples = [(prompt + 10 * gen + int(depth)) * 1_000_000 + count for count in range(int(given["-r"][0]))]
        result.append({**base, "n_prompt": prompt, "n_gen": gen, "n_depth": int(depth), "samples_ns": samples})
    return result


def complain(text: str, status: int) -> None:
    print(text, file=sys.stderr)
    sys.exit(status)


def list_devices() -> None:
    if MODE == "hang":
        time.sleep(600)
    if MODE == "lost":
        print("/src/ggml-rpc.cpp:547: Failed to connect to 127.0.0.1:50059\n", file=sys.stderr)
        sys.stderr.flush()
        os.abort()
    if MODE == "odd":
        print("Available devices:\n  something new here")
        sys.exit(0)
    print(os.environ.get("FAKE_DEVICES", "Available devices:\n  (none)"))
    sys.exit(0)


def main() -> None:
    with open(os.environ["FAKE_LOG"], "a", encoding="utf-8") as log:
        log.write(" ".join(sys.argv[1:]) + "\n")
    given = options(sys.argv[1:])
    if "--list-devices" in given:
        list_devices()
    talkative = "-v" in given
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    if MODE == "hang":
        time.sleep(600)
    if MODE == "stubborn":
        # A child in this process group and one in a session of its own, both deaf to TERM, holding the output open.
        for own_session in (False, True):
            if os.fork() == 0:
                if own_session:
                    os.setsid()
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                with open(os.environ["FAKE_PIDS"], "a", encoding="utf-8") as pids:
                    pids.write(f"{os.getpid()}\n")
                time.sleep(600)
        time.sleep(600)
    if MODE == "leaves_child":
        if os.fork() == 0:
            with open(os.environ["FAKE_PIDS"], "a", encoding="utf-8") as pids:
                pids.write(f"{os.getpid()}\n")
            time.sleep(600)
        while not os.path.exists(os.environ["FAKE_PIDS"]):
            time.sleep(0.01)
    if MODE == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if MODE == "out_of_memory":
        complain("ggml_backend_cuda_buffer_type_alloc_buffer: allocating 20480.00 MiB on device 1: cudaMalloc failed:"
                 " out of memory", 1)
    if MODE == "silent_out_of_memory":
        if talkative:
            where = "RPC0[127.0.0.1:50052]"
            print(f"alloc_tensor_range: failed to allocate {where} buffer of size 16777216", file=sys.stderr)
        complain("llama_bench: error: failed to create context with model 'x'", 1)
    if MODE == "lost":
        print("/src/ggml-rpc.cpp:566: Remote RPC server crashed or returned malformed response", file=sys.stderr)
        sys.stderr.flush()
        os.abort()
    if MODE == "old":
        complain("error: invalid parameter for argument: -lm\nusage: llama-bench [options]", 1)
    if MODE == "cannot_run":
        complain("llama-bench: error while loading shared libraries: libgomp.so.1: cannot open shared object file", 127)
    if MODE == "stop_lease":
        os.unlink(os.environ["FAKE_UNIT"])
    if MODE == "replace_lease":
        with open(os.environ["FAKE_UNIT"], "w", encoding="utf-8") as unit:
            unit.write("another invocation")
    print(os.environ.get("FAKE_SAYS", ""), flush=True)
    if talkative:
        print(os.environ.get("FAKE_LOUD", ""), file=sys.stderr)
    lines = [json.dumps(row) for row in rows(given)]
    if MODE == "warnings":
        sys.stdout.buffer.write(b"warning: \xff\xfe something odd\n")
        sys.stdout.flush()
        print("ggml_cuda_init: found 2 CUDA devices:", file=sys.stderr)
    if MODE == "truncated":
        lines[-1] = lines[-1][:200]
    if MODE == "row_missing":
        lines.pop()
    if MODE == "garbage":
        lines = ["Segmentation fault? No: <html>"]
    if MODE == "wrong_split":
        lines = [line.replace('"tensor_split": "', '"tensor_split": "1.00/') for line in lines]
    if MODE == "wrong_device":
        lines = [line.replace("RPC0/RPC1", "RPC1/RPC0") for line in lines]
    if MODE == "not_a_number":
        lines = [line.replace('"samples_ns": [', '"samples_ns": [NaN, ') for line in lines]
    print("\n".join(lines))


main()
