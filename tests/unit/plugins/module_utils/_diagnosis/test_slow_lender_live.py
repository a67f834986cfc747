# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Who holds up a real llama-server with a device on another host: the lender, the link to it, or nobody.

Devices are RPC servers that wait (tests/bench/paced_device.c), the link is that of the lab. What is recorded is what
the same server took before. The bounds are wide: a device waits three times as long, a link has far more delay.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.steps import Done
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._diagnosis import lender_campaign
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import gguf_model, random_model
from ansible_collections.homelab.mixed_gpu.tests.unit.lab import test_link as lab

pytestmark = [pytest.mark.live, pytest.mark.link, lab.pytestmark]
Json = dict[str, t.Any]

ROOT: t.Final = pathlib.Path(__file__).parents[5]
SHAPE: t.Final = {
    "blocks": 8, "embedding_length": 256, "feed_forward_length": 256, "head_count": 4, "head_count_kv": 2,
    "vocabulary_size": 512, "context_length": 1024, "type": "q4_0",
}  # fmt: skip
NEAR, FAR = "127.0.0.1:50052", "10.77.0.2:50052"
LAYERS: t.Final = {NEAR: 4, FAR: 5}
#: Microseconds per node of a graph: a token takes a fifth of a second, which is much beside what the machine does.
PACE: t.Final = {NEAR: 500, FAR: 1000}
#: What is recorded as slower, in percent: a machine with other work takes some of it.
TOLERANCE: t.Final = 50.0
READY: t.Final = {"state": "ready", "deviations": [], "last_lines": [], "reason": ""}
#: Calls a module where the box is.
RUN: t.Final = """
import importlib, json, sys
from ansible.module_utils.testing import patch_module_args
found = importlib.import_module("ansible_collections.homelab.mixed_gpu.plugins.modules." + sys.argv[1])
with patch_module_args(json.loads(sys.argv[2])):
    found.main()
"""
#: Ends once llama-server is ready.
HEALTH: t.Final = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=600).read()"


class Hosts:
    """A box and a lender, each with an RPC server that waits, and llama-server over both."""

    def __init__(self, programs: pathlib.Path, folder: pathlib.Path, lasting: contextlib.ExitStack) -> None:
        self.programs, self.folder, self.lasting = programs, folder, lasting
        self.namespaces = {NEAR: lab.host(lasting), FAR: lab.host(lasting)}
        box, lender = self.namespaces.values()
        lab.link("start", folder / "link", f"box={box}:10.77.0.1/24", f"lender={lender}:10.77.0.2/24")
        lasting.callback(lab.link, "stop", folder / "link")
        self.model = str(folder / "model.gguf")
        random_model.write_model(self.model, random_model.checked_options(SHAPE), "slow-lender")
        source, self.library = ROOT / "tests/bench/paced_device.c", str(folder / "paced_device.so")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", self.library, source, "-ldl"], check=True)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        for endpoint, pace in PACE.items():
            self.lend(endpoint, pace)
        self.serve()

    def start(self, name: str, box: int, *command: str, **variables: str) -> None:
        """Start a program in the network of a host, instead of one of the same name."""
        self.stop(name)
        with open(self.folder / f"{name}.log", "ab") as log:
            self.running[name] = subprocess.Popen(
                ["nsenter", "-t", str(box), "--net", "--", *command], stdout=log, stderr=log,
                env={**os.environ, **variables},
            )  # fmt: skip
        self.lasting.callback(self.stop, name)

    def stop(self, name: str) -> None:
        """End a program."""
        if process := self.running.pop(name, None):
            process.kill()
            process.wait()

    def lend(self, endpoint: str, pace: int) -> None:
        """Start the RPC server of a host; it waits so many microseconds per node of a graph."""
        host, port = endpoint.split(":")
        command = (str(self.programs / "ggml-rpc-server"), "-H", host, "-p", port, "-t", "1")
        paced = {"LD_PRELOAD": self.library, "PACE_US_NODE": str(pace), "PACE_US_TOKEN": "0"}
        self.start(endpoint, self.namespaces[endpoint], *command, **paced)

    def serve(self) -> None:
        """Start llama-server, and wait until it is ready."""
        split = "/".join(map(str, LAYERS.values()))
        self.start(
            "llama-server", self.namespaces[NEAR], str(self.programs / "llama-server"), "-m", self.model, "--rpc",
            f"{NEAR},{FAR}", "-dev", "RPC0,RPC1", "-ts", split, "-ngl", "99", "-c", "1024", "-np", "1", "-fa", "on",
            "-t", "1", "--port", "8080", "--no-warmup",
        )  # fmt: skip
        until = time.monotonic() + 600
        while lab.inside(self.namespaces[NEAR], HEALTH, "http://127.0.0.1:8080/health").wait() != 0:
            assert self.running["llama-server"].poll() is None, (self.folder / "llama-server.log").read_text()[-2000:]
            assert time.monotonic() < until, "llama-server does not get ready"
            time.sleep(0.2)

    def module(self, name: str, **arguments: t.Any) -> Json:
        """Return what a module of ours says on the box."""
        said, error = lab.inside(self.namespaces[NEAR], RUN, name, json.dumps(arguments)).communicate()
        assert said, error
        found = json.loads(said)
        assert not found.get("failed"), found
        return t.cast(Json, found)

    def links(self) -> Json:
        """Measure the link, with the server stopped, as the campaign does; one that is not ready is asked again."""
        self.stop("llama-server")
        asked = {"endpoints": [FAR], "required": False, "timeout_seconds": 300}
        while not (found := self.module("rpc_link_info", **asked))["links"]:
            assert self.running[FAR].poll() is None, found
        return found

    def diagnosed(self, entry: Json) -> Json:
        """Return the diagnosis of the box itself."""
        found = self.module(
            "llama_server_diagnosis", deployment="d", entry=entry, server=READY, seconds=4, blocks=4, journal_days=0,
            tolerance_percent=TOLERANCE, wait_seconds=300, timeout_seconds=600, state_dir=str(self.folder),
            host_python=sys.executable,
        )  # fmt: skip
        return t.cast(Json, found["diagnosis"])


def recorded(fit: Json | None, network: Json | None, **rates: float) -> Json:
    """Return the entry of the host's record."""
    objective = {"name": "request", "prompt_tokens": 32, "generated_tokens": 16, "depth_tokens": 0}
    ids = list(LAYERS)
    return {
        "devices": [{"device": f"RPC{number}", "id": name, "backend": "RPC", "description": name}
                    for number, name in enumerate(ids)],
        "placement": [{"id": name, "layers": count} for name, count in LAYERS.items()],
        "split_mode": "layer", "speculation": None, "rpc_endpoints": ids,
        "serving": {
            "context_size": 1024, "parallel_slots": 1, "kv_unified": True, "batch_size": 512, "micro_batch_size": 512,
        },
        "fingerprint_parts": {"tests": [
            {"kind": "decode", "n_gen": 16, "n_depth": 0, "n_prompt": 0},
            {"kind": "prefill", "n_prompt": 32, "n_depth": 0, "n_gen": 0},
        ]},
        "decision": {
            "objective": objective, "fit": fit, "table": [], "feasible": [], "network": network, **rates,
        },
    }  # fmt: skip


def tuned(hosts: Hosts) -> Json:
    """Return what a tuning would have recorded of the hosts as they are."""
    judged = hosts.diagnosed(recorded(None, None, decode_tokens_per_second=5.0))
    phases = {phase["kind"]: phase for phase in judged["phases"]}
    assert all(phase["blocks"] >= 2 for phase in phases.values()), phases
    near, far = LAYERS.values()
    decode, prompt = phases["decode"]["ms"], phases["prefill"]["ms"]
    own = phases["decode"]["devices"][0]["ms"]
    fit = {
        "decode_ms_per_layer": [own / near, (decode - own) / far],
        # the output layer costs a prompt nothing
        "prefill_ms_per_layer": [prompt / 3 / near, 2 * prompt / 3 / (far - 1)], "prefill_overlap": 1.0,
        "weights": None, "decode_residual_percent": 0.0, "prefill_residual_percent": 0.0,
    }  # fmt: skip
    model = gguf_model.read(gguf_model.files_of(hosts.model))
    network = {
        "links": hosts.links()["links"], "work": {"tokens": 32, "prompt_mask": 0.0, "token_mask": 0.0},
        "model": {name: model[name] for name in ("embedding_length", "vocabulary_size")},
    }  # fmt: skip
    rates = {"decode_tokens_per_second": 1000 / decode, "prefill_tokens_per_second": 32000 / prompt}
    hosts.serve()
    return recorded(fit, network, **rates)


def told(hosts: Hosts, entry: Json) -> tuple[list[str], set[tuple[str, str]], Json]:
    """Diagnose with diagnose_links auto; return the steps that ran, the problems (who, what), and the diagnosis."""
    lenders = {"pc2": {"driver_version": None, "servers": [{"endpoint": FAR, "device": "", "card": None}]}}
    whole = {**entry, "decision": {**entry["decision"], "layers": list(LAYERS.values()), "split_mode": "layer"}}
    campaign = lender_campaign.planner({
        "diagnose_recorded": {"entry": whole, "lenders": lenders}, "diagnose_server": READY,
        "diagnose_diagnosed": {"diagnosis": hosts.diagnosed(entry)}, "diagnose_links": "auto",
        "diagnose_tolerance_percent": TOLERANCE, "diagnose_watches": [], "diagnose_looks": [],
        "diagnose_server_url": "http://127.0.0.1:8080", "diagnose_state_dir": "/nonexistent",
        "diagnose_load_timeout_seconds": 600, "diagnose_lease_wait_seconds": 300,
    })  # fmt: skip
    done: list[Done] = []
    while (plan := campaign.plan(done)).result is None:
        (step,) = plan.steps
        answer = hosts.links() if step.name == "links" else READY
        done.append(Done(step, answer, "2026-11-29T17:00:00Z"))
    judged = t.cast(Json, plan.result["told"]["diagnosis"])
    problems = {(one["subject"], one["kind"]) for one in judged["findings"] if one["severity"] == "problem"}
    return [one.step.name for one in done], problems, judged


def test_the_lender_or_the_link_is_named_where_it_is_slow_and_nobody_where_none_is(
    llama_bin: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    measured, lender, link = ["links", "server again"], ("pc2", "slower"), ("network", "link")
    with contextlib.ExitStack() as lasting:
        hosts = Hosts(llama_bin, tmp_path, lasting)
        entry = tuned(hosts)
        steps, problems, judged = told(hosts, entry)
        assert steps == [] and not {lender, link} & problems, judged
        assert "since nothing is slower than recorded" in judged["lenders"][0]

        lab.link("set", tmp_path / "link", "--delay-ms", 100)
        steps, problems, judged = told(hosts, entry)
        assert steps == measured and link in problems and lender not in problems, judged
        assert judged["summary"].startswith("network: the link to 10.77.0.2 became slow: "), judged

        lab.link("set", tmp_path / "link", "--delay-ms", 0.15)
        hosts.lend(FAR, 3 * PACE[FAR])
        hosts.serve()
        steps, problems, judged = told(hosts, entry)
        assert steps == measured and lender in problems and link not in problems, judged
        assert judged["summary"].startswith("pc2: a token takes "), judged
