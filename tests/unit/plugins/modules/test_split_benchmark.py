# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module against executables that behave, and misbehave, like llama-bench."""

from __future__ import annotations

import json
import os
import pathlib
import sys
import threading
import time

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._models import random_model
from ansible_collections.homelab.mixed_gpu.plugins.modules import split_benchmark
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import HERE, build_library, environment

FAKE = pathlib.Path(__file__).parents[2] / "fixtures_bench" / "fake_llama_bench.py"
METER = pathlib.Path(__file__).parents[4] / "roles" / "power_sweep" / "files" / "energy_meter.py"
PREFILL = {"kind": "prefill", "n_prompt": 256, "n_gen": 0, "n_depth": 0, "repetitions": 2}
DECODE = {"kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "repetitions": 3}
LOAD = {
    "label": "20/13 load 1", "split_mode": "layer", "layers": [20, 13], "load": 1, "purpose": "anchor",
    "tests": [PREFILL, DECODE],
}
SERVING = {
    "batch_size": 2048, "micro_batch_size": 512, "flash_attention": "on", "cache_type_k": "f16", "cache_type_v": "f16",
    "threads": 1, "poll": 0, "load_mode": "auto", "gpu_layers": 99,
}


class Bench:
    """Runs the module with a fake llama-bench.

    C(starts) are the arguments of every process it started, C(warnings) what the module warned of.
    """

    def __init__(self, tmp_path, call_module):
        self.call_module = call_module
        self.program = tmp_path / "llama-bench"
        self.program.write_text(f"#!{sys.executable}\n{FAKE.read_text()}")
        self.program.chmod(0o755)
        self.model = tmp_path / "m.gguf"
        self.model.write_bytes(b"GGUF")
        self.state = tmp_path / "state" / "measurements"
        self.log, self.pids = tmp_path / "log", tmp_path / "pids"
        self.unit = tmp_path / "unit"
        self.lease = {"lease_unit": ""}
        self.warnings = []

    def __call__(self, mode="ok", check=False, diff=False, more=None, **changes):
        arguments = {
            "llama_bench": str(self.program), "model_path": str(self.model), "load": LOAD, "devices": ["RPC0", "RPC1"],
            "rpc_endpoints": ["a:1", "b:2"], "serving": SERVING, "campaign": "c", "fingerprint": "f",
            "state_dir": str(self.state), "timeout_seconds": 60, "lock_wait_seconds": 0,
            "environment": {
                "FAKE_MODE": mode, "FAKE_LOG": str(self.log), "FAKE_PIDS": str(self.pids), "FAKE_UNIT": str(self.unit),
                **(more or {}),
            },
            **self.lease, **changes, "_ansible_check_mode": check, "_ansible_diff": diff,
        }
        return self.call_module(split_benchmark, arguments)

    @property
    def starts(self):
        return self.log.read_text().splitlines() if self.log.exists() else []


@pytest.fixture
def bench(tmp_path, call_module, monkeypatch):
    result = Bench(tmp_path, call_module)
    # Where the controller's code is loaded too, as in a whole test run, warnings do not come with the result.
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: result.warnings.append(warning))
    return result


def test_one_process_measures_all_tests(bench):
    result = bench(diff=True)
    load = result["load"]
    assert result["changed"] and len(bench.starts) == 1
    assert json.loads(pathlib.Path(result["path"]).read_text())["llama_cpp_build"] == "11312 (0c1e57098)"
    assert {name: load[name] for name in LOAD} == LOAD
    assert (load["status"], load["reason"], load["reused"]) == ("ok", None, False)
    assert (load["campaign"], load["fingerprint"]) == ("c", "f")
    assert [result["kind"] for result in load["results"]] == ["prefill", "decode"]
    assert load["results"][1] == {
        "kind": "decode", "n_prompt": 0, "n_gen": 32, "n_depth": 0, "samples_ms": [320.0, 320.000001, 320.000002],
    }
    assert load["contention"]["cpus"] >= 1 and load["contention"]["cards"] == {}
    assert isinstance(load["wall_ms"], int) and load["measured_at"].endswith("Z")
    assert result["diff"]["before"] == {} and result["diff"]["after"] == load


NCCL = (
    "NCCL version 2.32.3+cuda13.0\n"
    "box:1:2 [0] NCCL INFO ncclCommInitAll comm 0x5 rank 0 nranks 2 - Init COMPLETE\n"
    "box:1:3 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via SHM/direct/direct"
)
INTERNAL = "ggml_cuda_ar_pipeline_init: initialized AllReduce pipeline: 2 GPUs, 256 KB staging"
FALLBACK = f"NCCL init failed (unhandled system error); falling back to internal AllReduce\n{INTERNAL}"


@pytest.mark.parametrize(
    ("way", "says", "loud", "found", "starts"),
    [
        # NCCL speaks for itself; llama.cpp only in a talkative run
        ("nccl", NCCL, "", {"ran": "nccl", "transport": "SHM", "fallback": None}, 1),
        ("internal", "", INTERNAL, {"ran": "internal", "transport": None, "fallback": None}, 2),
        ("nccl", "", FALLBACK,
         {"ran": "internal", "transport": None, "fallback": "NCCL init failed (unhandled system error)"}, 2),
        ("internal", "", "", None, 2),
    ],
)  # fmt: skip
def test_cards_that_share_layers_say_how_they_add_up(bench, way, says, loud, found, starts):
    load = {**LOAD, "split_mode": "tensor", "layers": [4, 4], "environment": {"GGML_CUDA_ALLREDUCE": way}}
    arguments = {"devices": ["CUDA0", "CUDA1"], "rpc_endpoints": [], "more": {"FAKE_SAYS": says, "FAKE_LOUD": loud}}
    result = bench(load=load, **arguments)
    assert (result["load"]["status"], len(bench.starts), bench.warnings) == ("ok", starts, [])
    assert result["load"].get("allreduce") == (found and {"asked": way, **found})
    assert len(result["load"]["results"]) == 2
    if starts == 2:
        assert "-p 0 -n 1 -d 0 -r 1" in bench.starts[1] and bench.starts[1].endswith("--no-warmup -v")
    # once per arm
    bench(load={**load, "load": 2}, **arguments)
    assert len(bench.starts) == starts + 1


@pytest.mark.parametrize(
    ("mode", "devices"), [("layer", ["CUDA0", "CUDA1"]), ("tensor", ["RPC0", "RPC1"])]
)
def test_others_add_up_in_one_way_alone(bench, mode, devices):
    load = bench(load={**LOAD, "split_mode": mode}, devices=devices, more={"FAKE_LOUD": INTERNAL})["load"]
    assert "allreduce" not in load and len(bench.starts) == 1


def test_experts_without_room_in_ram_are_out_of_memory_before_anything_starts(bench, monkeypatch):
    options = random_model.checked_options({"blocks": 32, "type": "q8_0", "expert_count": 4, "expert_used_count": 2})
    random_model.write_model(str(bench.model), options, "0" * 64)
    monkeypatch.setattr(job, "available_memory_mib", lambda: 1027)
    experts = {"kind": "experts", "blocks": list(range(20)), "partial": None, "threads": 2, "no_host": False,
               "override": ""}  # fmt: skip
    # 20 blocks of 4 x 3 x 512 x 256 weights and 512 x 256 of the token embedding, 34 bytes for 32: 33 MiB, beside 1024
    load = bench(load={**LOAD, "experts_in_ram": experts})["load"]
    assert (load["status"], bench.starts) == ("out_of_memory", [])
    assert load["reason"] == "out of memory: 30 MiB more were wanted on CPU"


@pytest.fixture
def meter(tmp_path):
    """The energy meter of the role power_sweep as a wrapper, and the environment in which it sees two cards."""
    (tmp_path / "nvml").mkdir()
    text = (HERE / "profiles" / "generating.txt").read_text()
    variables = environment(build_library(tmp_path / "nvml"), None, text)
    names = ("LD_LIBRARY_PATH", "FAKE_NVML_PROFILE")
    return [sys.executable, str(METER)], {name: variables[name] for name in names}


def test_a_wrapper_measures_energy(bench, meter):
    wrapper, variables = meter
    energy = bench(wrapper=wrapper, more=variables)["load"]["results"][1]["energy"]
    assert energy["seconds"] == pytest.approx(0.96, abs=0.001) and len(energy["joules"]) == 2
    assert set(energy["source"].values()) == {"counter"}
    # with another key it is another measurement, without the wrapper there is no energy
    assert "energy" not in bench(fingerprint="g")["load"]["results"][1]


@pytest.mark.parametrize(("mode", "status"), [("out_of_memory", "out_of_memory"), ("segfault", "crashed")])
def test_a_wrapper_hides_no_failure(bench, meter, mode, status):
    wrapper, variables = meter
    assert bench(mode, wrapper=wrapper, more=variables)["load"]["status"] == status


def test_the_second_time_it_is_reused_without_the_program(bench):
    first = bench()
    bench.program.unlink()
    second = bench(load={**LOAD, "label": "renamed"})
    assert not second["changed"] and len(bench.starts) == 1
    assert second["load"] == {**first["load"], "label": "renamed", "reused": True}


@pytest.mark.parametrize(
    "changes",
    [{"campaign": "d"}, {"fingerprint": "g"}, {"load": {**LOAD, "load": 2}}, {"load": {**LOAD, "layers": [19, 14]}}],
)
def test_another_key_is_another_measurement(bench, changes):
    bench()
    assert bench(**changes)["changed"] and len(bench.starts) == 2
    assert len(list(bench.state.glob("*.json"))) == 2


def test_tests_that_were_not_measured_are(bench):
    bench(load={**LOAD, "tests": [PREFILL]})
    assert bench()["changed"] and not bench()["changed"]


def test_check_mode_predicts_on_a_fresh_host(bench):
    bench.program.unlink()
    result = bench(check=True, diff=True)
    assert result["changed"] and result["load"] is None and not bench.state.exists()
    assert result["diff"]["after"]["status"] == "would be measured"


def test_check_mode_returns_what_is_stored(bench):
    first = bench()
    assert bench(check=True)["load"] == {**first["load"], "reused": True}


@pytest.mark.parametrize(
    ("layers", "devices", "asked"),
    [([33, 0], "RPC0", None), ([0, 33], "RPC1", None), ([32, 1], "RPC0/RPC1", "32/1")],
)
def test_a_device_without_layers_is_left_out(bench, layers, devices, asked):
    assert bench(load={**LOAD, "layers": layers})["load"]["status"] == "ok"
    words = bench.starts[0].split()
    assert words[words.index("-dev") + 1] == devices
    assert words[words.index("-ts") + 1] == asked if asked else "-ts" not in words


@pytest.mark.parametrize(
    ("mode", "status", "words", "starts"),
    [
        ("out_of_memory", "out_of_memory", "20480 MiB more were wanted on CUDA device 1", 1),
        ("silent_out_of_memory", "out_of_memory", "16 MiB more were wanted on RPC0[127.0.0.1:50052]", 2),
        ("segfault", "crashed", "SIGSEGV", 2),
        ("lost", "device_lost", "Remote RPC server crashed", 1),
        ("garbage", "unreadable", "no row for the prefill test", 1),
        ("truncated", "unreadable", "cut off", 1),
        ("row_missing", "unreadable", "no row for the decode test", 1),
        ("wrong_split", "unreadable", "split 1.00/20.00/13.00 instead of 20/13", 1),
        ("wrong_device", "unreadable", "devices RPC1/RPC0 instead of RPC0/RPC1", 1),
        ("not_a_number", "unreadable", "positive times", 1),
    ],
)
def test_a_failed_measurement_is_a_result(bench, mode, status, words, starts):
    result = bench(mode)
    assert result["changed"] and result["load"]["results"] == []
    assert result["load"]["status"] == status and words in result["load"]["reason"]
    assert len(bench.starts) == starts
    again = bench()
    lasting = status in ("out_of_memory", "crashed")
    assert again["changed"] is not lasting
    assert again["load"]["status"] == (status if lasting else "ok")


def test_a_stored_failure_is_measured_again_when_asked(bench):
    assert bench("hang", timeout_seconds=1)["load"]["status"] == "timed_out"
    assert bench()["load"]["status"] == "timed_out"
    again = bench(reuse_failures=False)
    assert again["changed"] and again["load"]["status"] == "ok"
    # and what went well is not
    assert bench(reuse_failures=False)["load"]["reused"]


def test_garbage_before_the_rows_is_a_warning(bench):
    result = bench("warnings")
    assert result["load"]["status"] == "ok"
    assert len(bench.warnings) == 1 and "something odd" in bench.warnings[0]


def alive(pid):
    """Whether the process runs; one that ended and was not collected yet does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8") as handle:
            return handle.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_hang_ends_at_the_limit(bench):
    result = bench("hang", timeout_seconds=1)
    assert result["load"]["status"] == "timed_out"
    assert result["load"]["reason"] == "llama-bench was not done after 1 seconds and was ended"
    assert not bench()["changed"]


def test_the_whole_tree_is_killed(bench):
    assert bench("stubborn", timeout_seconds=8)["load"]["status"] == "timed_out"
    pids = bench.pids.read_text().split()
    assert len(pids) == 2 and not any(alive(pid) for pid in pids)


def test_what_a_finished_program_leaves_behind_is_killed(bench):
    assert bench("leaves_child")["load"]["status"] == "ok"
    pids = bench.pids.read_text().split()
    assert len(pids) == 1 and not alive(pids[0])
    lock = json_file.take_lock(str(bench.state / ".lock"), 0)
    assert lock is not None
    json_file.release_lock(lock)


@pytest.mark.parametrize("damage", ["", "{", "[]", "cut"])
def test_a_damaged_file_is_set_aside_and_measured_again(bench, damage):
    path = pathlib.Path(bench()["path"])
    path.write_text(path.read_text()[:100] if damage == "cut" else damage)
    predicted = bench(check=True)
    assert predicted["changed"] and path.exists()
    assert bench.warnings[-1].startswith(f"{path} is damaged") and "would be set aside" in bench.warnings[-1]
    result = bench()
    assert result["changed"] and result["load"]["status"] == "ok" and f"it is kept as {path}" in bench.warnings[-1]
    assert len(list(bench.state.glob("*.damaged-*"))) == 1
    assert not bench()["changed"]


def test_the_store_is_whole_and_says_what_it_is(bench):
    path = pathlib.Path(bench()["path"])
    stored = json.loads(path.read_text())
    assert stored["schema"] == 1 and stored["key"]["layers"] == [20, 13] and stored["command"][-2:] == ["-o", "jsonl"]
    assert path.stat().st_mode & 0o777 == 0o644
    assert sorted(entry.name for entry in bench.state.iterdir()) == sorted([".lock", path.name])


def test_a_measurement_that_goes_on_is_an_error_after_the_wait(bench):
    lock = json_file.take_lock(str(bench.state / ".lock"), 0)
    result = bench()
    assert result["failed"] and "Another measurement has held" in result["msg"] and not bench.starts
    json_file.release_lock(lock)


def test_an_orphan_is_waited_for_and_its_result_reused(bench):
    path = pathlib.Path(bench()["path"])
    content = path.read_text()
    path.unlink()
    lock = json_file.take_lock(str(bench.state / ".lock"), 0)

    def orphan():
        time.sleep(0.5)
        path.write_text(content)
        json_file.release_lock(lock)

    thread = threading.Thread(target=orphan)
    thread.start()
    result = bench(lock_wait_seconds=60)
    thread.join()
    assert not result["changed"] and result["load"]["reused"] and len(bench.starts) == 1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"load": {**LOAD, "layers": [33]}}, "layers of 20/13 load 1 is [33]"),
        ({"serving": {}}, "serving.gpu_layers is None"),
        ({"llama_bench": "/nowhere/llama-bench"}, "There is no program /nowhere/llama-bench"),
        ({"model_path": "/nowhere/m.gguf"}, "There is no readable model /nowhere/m.gguf"),
        ({"timeout_seconds": 0}, "timeout_seconds is 0"),
    ],
)
def test_misuse_is_one_sentence(bench, changes, words):
    result = bench(**changes)
    assert result["failed"] and words in result["msg"] and "\n" not in result["msg"] and not bench.starts


@pytest.mark.parametrize(("mode", "words"), [("old", "does not accept -lm"), ("cannot_run", "libgomp.so.1")])
def test_a_program_that_cannot_be_used_is_an_error(bench, mode, words):
    result = bench(mode)
    assert result["failed"] and words in result["msg"]
    assert bench()["changed"]


# The lease: a systemctl whose unit is active as long as a file is there, which holds its invocation id.

SYSTEMCTL = """#!/bin/sh
if [ -e "{unit}" ]; then echo "ActiveState=active"; echo "InvocationID=$(cat "{unit}")"
else echo "ActiveState=inactive"; echo "InvocationID="; fi
"""


@pytest.fixture
def leased(bench, tmp_path, monkeypatch):
    bench.unit.write_text("one invocation")
    program = tmp_path / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(SYSTEMCTL.format(unit=bench.unit))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    state = tmp_path / "lease.json"
    state.write_text(json.dumps(lease_unit.new_state("A", "2026-01-01T00:00:00Z", [])))
    os.utime(state, (0, 0))
    bench.lease = {"lease_unit": "mixed-gpu-lease", "lease_owner": "A", "lease_file": str(state)}
    return bench


def touched_at(bench):
    return pathlib.Path(bench.lease["lease_file"]).stat().st_mtime


def test_under_a_lease_it_measures_and_touches_it(leased):
    assert leased()["load"]["status"] == "ok"
    assert touched_at(leased) > 0


def test_without_a_lease_nothing_is_started(leased):
    leased.unit.unlink()
    result = leased()
    assert result["failed"] and "mixed-gpu-lease.service is inactive" in result["msg"] and not leased.starts


def test_the_lease_of_somebody_else_will_not_do(leased):
    result = leased(lease_owner="B")
    assert result["failed"] and "belongs to A, not to B" in result["msg"] and not leased.starts


def test_a_stored_load_needs_no_lease(leased):
    leased()
    leased.unit.unlink()
    assert leased()["load"]["reused"]


@pytest.mark.parametrize(
    ("mode", "words"), [("stop_lease", "is inactive"), ("replace_lease", "was replaced by another")]
)
def test_a_sample_whose_lease_vanished_is_discarded(leased, mode, words):
    result = leased(mode)
    assert result["failed"] and len(leased.starts) == 1
    assert "No sample was kept for 20/13 load 1" in result["msg"] and words in result["msg"]
    assert not list(leased.state.glob("*.json"))
