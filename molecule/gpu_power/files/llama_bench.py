"""A stand-in for llama-bench on a host without a GPU: a pair whose cards take turns.

Below 300 W the RTX 3090 gets so slow that no other work of the machine can hide it. The program takes the arguments
that split_benchmark gives, and the time that it prints, and asks NVML for the limits that hold.
"""

from __future__ import annotations

import json
import os
import sys
import time

import pynvml

FIELDS = {
    "-m": "model_filename", "-dev": "devices", "-sm": "split_mode", "-ngl": "n_gpu_layers", "-b": "n_batch",
    "-ub": "n_ubatch", "-ctk": "type_k", "-ctv": "type_v", "-t": "n_threads", "--poll": "poll", "-lm": "load_mode",
}  # fmt: skip
given = dict(zip(sys.argv[1::2], sys.argv[2::2], strict=True))
base = {name: int(given[flag]) if given[flag].isdigit() else given[flag] for flag, name in FIELDS.items()}
base |= {"build_commit": "0c1e57098", "build_number": 11312, "n_depth": 0}
base["tensor_split"] = "/".join(f"{float(share):.2f}" for share in given["-ts"].split("/"))
assert os.environ["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID" and os.environ["CUDA_VISIBLE_DEVICES"].startswith("GPU-666")

pynvml.nvmlInit()
limits = {}
for index in range(pynvml.nvmlDeviceGetCount()):
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    limits[pynvml.nvmlDeviceGetName(handle)] = pynvml.nvmlDeviceGetPowerManagementLimit(handle) / 1000
time.sleep(0.5)  # loading the model
slow = 5.0 if limits["NVIDIA GeForce RTX 3090"] < 300 else 1.0
for prompt, gen, ms in ((int(given["-p"]), 0, 1.0), (0, int(given["-n"]), 10.0)):
    samples = []
    for _repetition in range(int(given["-r"])):
        started = time.monotonic_ns()
        time.sleep((prompt + gen) * (ms + ms * slow) / 1000)
        samples.append(time.monotonic_ns() - started)
    print(json.dumps({**base, "n_prompt": prompt, "n_gen": gen, "samples_ns": samples}), flush=True)
pynvml.nvmlShutdown()
