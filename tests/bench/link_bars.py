"""link_bars.py PAGE: are decode and prompts over a network as predicted from its rate and round trip? Needs root.

MIXED_GPU_LLAMA_BIN names the folder of llama.cpp's programs. A box and a lender are network namespaces, joined by the
cable of tests/lab/link.py. Devices are the real RPC servers with paced_device.c: they wait instead of computing, so
that the machine's mood is no part of a result; for the same reason all of this runs before other programs. What the
devices cost is fitted without the cable, from splits over two of them in the box, by the planner's own fit. Then each
cable is measured as a tuning does, the planner predicts a split that was not among them, and that is measured over it.
Last the planner chooses the order of the devices and the split, by the cable and the memory of the box, and its choice
is measured as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import typing as t

import page
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_link
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, random_model
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expected_speeds, known_costs
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import (
    cost_fit,
    memory_plan,
    model_weights,
    network_links,
    workload,
)

Json = dict[str, t.Any]
HERE: t.Final = pathlib.Path(__file__).parent
LINK: t.Final = HERE.parent / "lab" / "link.py"
#: A model whose messages are those of a real one, and whose weights cross a slow cable in seconds.
MODEL: t.Final = {
    "blocks": 8, "embedding_length": 2048, "feed_forward_length": 512, "head_count": 16, "head_count_kv": 2,
    "vocabulary_size": 32000, "context_length": 8192, "type": "q4_0",
}  # fmt: skip
PROMPT, ANSWER, MICRO_BATCH = 2048, 48, 512
SERVING: t.Final = {
    "context_size": 4096, "parallel_slots": 1, "kv_unified": True, "batch_size": 2048, "micro_batch_size": MICRO_BATCH,
    "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
}  # fmt: skip
#: Microseconds per node of a graph, and per node and token; the lender's device is the slower one.
BOX: t.Final = (60.0, 2.5)
LENDER: t.Final = (90.0, 3.75)
Split = tuple[int, int]
#: Layers in the order of the devices: splits of which the costs are fitted, and one that is predicted.
FITTED: t.Final = ((2, 7), (6, 3))
BETWEEN: t.Final = (4, 5)
#: The share of all memory that the box has room for, where the planner chooses: else it would need no lender.
ROOM: t.Final = 0.75
LOADS: t.Final = 2


class Cable(t.NamedTuple):
    """A network: rate, delay of one way, and the share of packets that it loses."""

    name: str
    rate_mbit: float
    delay_ms: float
    loss_percent: float
    lent_first: bool = True


CABLES: t.Final = (
    Cable("1 GbE", 1000, 0.15, 0), Cable("1 GbE, the lender last", 1000, 0.15, 0, lent_first=False),
    Cable("2.5 GbE", 2500, 0.15, 0), Cable("0.1 GbE, 2 ms", 100, 1.0, 0), Cable("1 GbE, 2 % loss", 1000, 0.15, 2),
)  # fmt: skip


class Row(t.NamedTuple):
    """What was predicted and measured of a split over a cable, in ms of a token and of a prompt."""

    cable: str
    link: rpc_link.Link
    split: Split
    lent_first: bool
    predicted: tuple[float, float]
    measured: tuple[float, float]


class Choice(t.NamedTuple):
    """What the planner chooses: the order of the devices, and the split."""

    lent_first: bool
    split: Split


def beyond(link: t.Mapping[str, t.Any], loopback: t.Mapping[str, t.Any]) -> Json:
    """Return what a link takes more than the way to a server of the same host, which fitted costs contain."""

    def rate(name: str) -> float:
        return 1 / max(1e-6, 1 / link[name] - 1 / loopback[name])

    waited = max(0.0, link["round_trip_ms"] - loopback["round_trip_ms"])
    return {
        "round_trip_ms": waited, "stalls_ms": link["stalls_ms"], "to_mb_per_s": rate("to_mb_per_s"),
        "from_mb_per_s": rate("from_mb_per_s"),
    }  # fmt: skip


def fitted(model: Json, points: t.Mapping[tuple[int, int], tuple[float, float]]) -> expected_speeds.Rates:
    """Return the rates of both devices by the planner's fit, from ms of a token and of a prompt by split."""
    weights = model_weights.of_model(model, SERVING, ANSWER / 2)
    costs = {}
    for index, kind in enumerate(("decode", "prefill")):
        measured = [(weights.amounts(kind, split), ms[index]) for split, ms in points.items()]
        batches = PROMPT // MICRO_BATCH
        prefill = kind == "prefill"
        costs[kind] = (
            cost_fit.fit_prefill(measured, batches, None, 1.0, None) if prefill else cost_fit.fit_decode(measured, None)
        )
    layer = model_weights.of_average_layer(model, SERVING, ANSWER / 2, MICRO_BATCH)
    fit = {
        "decode_ms_per_layer": costs["decode"], "prefill_ms_per_layer": costs["prefill"], "prefill_overlap": 1.0,
        "average_layer": layer, "error": 0.0, "spread": {},
    }  # fmt: skip
    return expected_speeds.measured(known_costs.of_fit("without the cable", fit, []))


def _speeds(model: Json, rates: expected_speeds.Rates, lent_first: bool, link: Json) -> expected_speeds.Speeds:
    """Return the planner's speeds where the lender is behind a link."""
    links = (link, None) if lent_first else (None, link)
    objective = workload.Objective("request", PROMPT, ANSWER, 0)
    return expected_speeds.Speeds(model, SERVING, objective, rates._replace(links=links))


def predicted(
    model: Json, rates: expected_speeds.Rates, lent_first: bool, link: Json, split: Split
) -> tuple[float, float]:
    """Return the planner's ms of a token and of a prompt with a split, where the lender is behind a link."""
    speeds = _speeds(model, rates, lent_first, link)
    token, prompt = speeds.decode(split, ANSWER // 2), speeds.ttft(split)
    assert token is not None and prompt is not None
    return token.ms, prompt.ms


def chosen(model: Json, rates: t.Mapping[bool, expected_speeds.Rates], link: Json) -> Choice:
    """Return the planner's order of the devices, and of the splits that the box has room for the one it predicts best.

    C(rates) are those where the lender is first, and where it is not.
    """
    objective = {"name": "request", "prompt_tokens": PROMPT, "generated_tokens": ANSWER}
    first = network_links.ordered([{"id": "box"}, {"id": "lender"}], {"lender": link}, model, objective, False)[0]["id"]
    lent_first = first == "lender"
    memory, speeds = memory_plan.MemoryPlan(model, SERVING), _speeds(model, rates[lent_first], lent_first, link)
    layers = len(model["block_weights"]) + 1
    room = ROOM * max(memory.mib((layers, 0)))
    splits = [(count, layers - count) for count in range(1, layers)]

    def request_ms(split: Split) -> float:
        found = speeds.objective_ms(split)
        assert found is not None
        return found

    return Choice(lent_first, min((one for one in splits if memory.mib(one)[lent_first] <= room), key=request_ms))


class Lab:
    """A box and a lender, with a device each, and one in the box that is as slow as the lender's."""

    def __init__(self, folder: pathlib.Path, lasting: contextlib.ExitStack) -> None:
        self.folder, self.lasting = folder, lasting
        self.programs = pathlib.Path(os.environ.get("MIXED_GPU_LLAMA_BIN") or sys.exit("set MIXED_GPU_LLAMA_BIN"))
        self.box, self.lender = self._namespace(), self._namespace()
        self.link("start", f"box={self.box}:10.77.0.1/24", f"lender={self.lender}:10.77.0.2/24")
        lasting.callback(self.link, "stop")
        library = folder / "paced_device.so"
        source = HERE / "paced_device.c"
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
        self.library = str(library)
        self.near = self._server(self.box, "127.0.0.1:50052", BOX)
        self.twin = self._server(self.box, "127.0.0.1:50053", LENDER)
        self.far = self._server(self.lender, "10.77.0.2:50052", LENDER)
        self.path = str(folder / "model.gguf")
        random_model.write_model(self.path, random_model.checked_options(MODEL), "bench-link")
        self.model = gguf_model.read(gguf_model.files_of(self.path))

    def _started(self, command: t.Sequence[str], **options: t.Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options)
        self.lasting.callback(process.wait)
        self.lasting.callback(process.kill)
        return process

    def _namespace(self) -> int:
        """Return the process that holds a new network namespace."""
        pid = self._started(["unshare", "--net", "sleep", "infinity"]).pid
        here = os.readlink("/proc/self/ns/net")
        while os.readlink(f"/proc/{pid}/ns/net") == here:
            time.sleep(0.01)
        subprocess.run(inside(pid, "ip", "link", "set", "lo", "up"), check=True)
        return pid

    def _server(self, namespace: int, endpoint: str, pace: tuple[float, float]) -> str:
        host, port = endpoint.split(":")
        environment = {
            **os.environ, "LD_PRELOAD": self.library, "PACE_US_NODE": str(pace[0]), "PACE_US_TOKEN": str(pace[1]),
        }  # fmt: skip
        program = str(self.programs / "ggml-rpc-server")
        self._started(inside(namespace, program, "-H", host, "-p", port, "-t", "1"), env=environment)
        return endpoint

    def link(self, command: str, *words: str) -> None:
        """Have tests/lab/link.py do something."""
        subprocess.run([sys.executable, str(LINK), command, str(self.folder / "link"), *words], check=True)

    def shape(self, cable: Cable) -> None:
        """Change the cable."""
        wanted = {"rate-mbit": cable.rate_mbit, "delay-ms": cable.delay_ms, "loss-percent": cable.loss_percent}
        self.link("set", *(word for option, value in wanted.items() for word in (f"--{option}", str(value))))

    def asked(self, endpoint: str, timeout_seconds: float = 30) -> rpc_link.Link:
        """Return how quick the way from the box to a server is; the best of LOADS, since others only make it slower."""
        found = []
        for _time in range(LOADS):
            command = inside(self.box, sys.executable, __file__, "ask", endpoint, str(timeout_seconds))
            found.append(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))
        return {
            "protocol": found[0]["protocol"], "round_trip_ms": min(one["round_trip_ms"] for one in found),
            "stalls_ms": statistics.fmean(one["stalls_ms"] for one in found),
            "to_mb_per_s": max(one["to_mb_per_s"] for one in found),
            "from_mb_per_s": max(one["from_mb_per_s"] for one in found),
        }  # fmt: skip

    def measured(
        self, lender: str, split: tuple[int, int], lent_first: bool, whole: bool = False
    ) -> tuple[float, float]:
        """Return ms of a token and of a prompt: the least of all repetitions, since others only make it slower.

        C(whole): their mean, which has what is lost on the way.
        """
        token, prompt = [], []
        for _load in range(LOADS):
            command = inside(
                self.box, str(self.programs / "llama-bench"), "-m", self.path, "--rpc", f"{self.near},{lender}",
                "-dev", "RPC1/RPC0" if lent_first else "RPC0/RPC1", "-ts", f"{split[0]}/{split[1]}", "-ngl", "99",
                "-fa", "1", "-p", str(PROMPT), "-n", str(ANSWER), "-ub", str(MICRO_BATCH), "-t", "1", "-r", "3",
                "-o", "json",
            )  # fmt: skip
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            of_prompt, of_answer = json.loads(done.stdout)
            prompt += [ns / 1e6 for ns in of_prompt["samples_ns"]]
            token += [ns / 1e6 / ANSWER for ns in of_answer["samples_ns"]]
        return (statistics.fmean(token), statistics.fmean(prompt)) if whole else (min(token), min(prompt))


def inside(namespace: int, *command: str) -> list[str]:
    """Return a command that runs in the network namespace of a process."""
    return ["nsenter", f"--net=/proc/{namespace}/ns/net", *command]


def cut_after(lab: Lab) -> float:
    """Return after how many seconds a cable that is cut is said, where a second's silence counts."""
    lab.link("cut", "lender")
    began = time.monotonic()
    try:
        lab.asked(lab.far, 1)
    except subprocess.CalledProcessError:
        return time.monotonic() - began
    finally:
        lab.link("mend", "lender")
    sys.exit("link_bars: a cable that is cut was taken for one that works")


def rows(lab: Lab) -> list[Row]:
    """Return what was predicted and measured over each cable."""
    loopback = lab.asked(lab.twin)
    rates = {
        first: fitted(lab.model, {split: lab.measured(lab.twin, split, first) for split in FITTED})
        for first in (True, False)
    }
    found = []

    def row(cable: Cable, choice: Choice, link: rpc_link.Link) -> None:
        first, split = choice
        told = predicted(lab.model, rates[first], first, beyond(link, loopback), split)
        seen = lab.measured(lab.far, split, first, whole=bool(cable.loss_percent))
        found.append(Row(cable.name, link, split, first, told, seen))
        print(found[-1], file=sys.stderr)

    for cable in CABLES:
        lab.shape(cable)
        link = lab.asked(lab.far)
        row(cable, Choice(cable.lent_first, BETWEEN), link)
        if cable.lent_first and not cable.loss_percent:
            row(cable._replace(name=f"{cable.name}, chosen"), chosen(lab.model, rates, beyond(link, loopback)), link)
    return found


def off_percent(predicted_ms: float, measured_ms: float) -> float:
    """Return how far a prediction is off what was measured."""
    return 100 * (predicted_ms / measured_ms - 1)


def text(found: t.Sequence[Row], cut_seconds: float) -> str:
    """Return the section."""
    lines = [
        "## Network",
        "",
        "Written by `make bench-link`. Is what a lender's network costs predicted? A box and a lender are joined by a",
        "cable of a given rate, delay and loss (`tests/lab/link.py`). Devices are llama.cpp's RPC servers that wait",
        "a known time instead of computing, and run before all other programs. Their costs are fitted without the",
        "cable. Rate and round trip are measured as a tuning does, the better of two; what a loopback takes is taken",
        f"off, since the fit contains it. A model of width {MODEL['embedding_length']} is split,",
        f"a prompt has {PROMPT} tokens. Where the planner chooses, it takes its order of the devices, and the split",
        f"with which a request of {PROMPT} and {ANSWER} tokens is the fastest by its prediction, of those that leave",
        f"the box {100 * ROOM:.0f} % of the model at most. The bar: predictions within 10 % at 1 GbE.",
        "",
        f"Measured {page.today()} on {page.machine()}; the least of {3 * LOADS} repetitions, with",
        "loss their mean. Predicted, measured:",
        "",
        "| cable | layers in the box | round trip ms | MB/s to, from | ms per token | off | ms per prompt | off |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in found:
        rates = f"{row.link['to_mb_per_s']:.0f}, {row.link['from_mb_per_s']:.0f}"
        stalls = f" + {row.link['stalls_ms']:.1f}" if row.link["stalls_ms"] else ""
        own = f"{row.split[row.lent_first]} of {sum(row.split)}, {'last' if row.lent_first else 'first'}"
        cells = [row.cable, own, f"{row.link['round_trip_ms']:.2f}{stalls}", rates]
        for told, seen in zip(row.predicted, row.measured, strict=True):
            cells += [f"{told:.1f}, {seen:.1f}", f"{off_percent(told, seen):+.1f} %"]
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", f"A cable that is cut is said after {cut_seconds:.1f} s, where a second of silence counts."]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure and write the section; or, with C(ask ENDPOINT SECONDS), print how quick the way to a server is."""
    if sys.argv[1] == "ask":
        host, port = sys.argv[2].split(":")
        print(json.dumps(rpc_link.measure(host, int(port), timeout_seconds=float(sys.argv[3]))))
        return
    # all of this waits far more than it computes, and must not wait for what else runs on the machine
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as lasting:
        lab = Lab(pathlib.Path(folder), lasting)
        found = rows(lab)
        seconds = cut_after(lab)
    page.write_section(pathlib.Path(sys.argv[1]), "network", text(found, seconds))


if __name__ == "__main__":
    main()
