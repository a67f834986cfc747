# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program around llama-bench, with the real nvidia-ml-py, against a libnvidia-ml.so.1 compiled for the test."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml.build import HERE, environment

SCRIPT = pathlib.Path(__file__).parents[3] / "roles/power_sweep/files/energy_meter.py"
FAST, SLOW = "GPU-11111111-2222-3333-4444-555555555555", "GPU-66666666-7777-8888-9999-aaaaaaaaaaaa"
specification = importlib.util.spec_from_file_location("energy_meter", SCRIPT)
meter = importlib.util.module_from_spec(specification)
specification.loader.exec_module(meter)

# like llama-bench: loads for a while, then two tests, each with its row at its end
PROGRAM = """
import json, sys, time
time.sleep(0.5)
print("ggml_cuda_init: found 2 CUDA devices")
for tokens, samples in ((64, [0.3, 0.3]), (16, [0.2])):
    taken = []
    for seconds in samples:
        started = time.monotonic_ns()
        time.sleep(seconds)
        taken.append(time.monotonic_ns() - started)
    print(json.dumps({"n_gen": tokens, "samples_ns": taken}), flush=True)
sys.exit(int(sys.argv[1]))
"""


def run(library, *command, counter=True, **options):
    # the RTX 3090 draws 300 W; the RTX 4090 would draw 460 W and is limited to 450
    text = (HERE / "profiles" / "under_load.txt").read_text().replace("100000;300000;440000;460000", "460000")
    text += "0.energy_counter=1\n1.energy_counter=1\n" if counter else "0.energy_counter=1\n"
    return subprocess.run(
        [sys.executable, str(SCRIPT), "--interval-ms", "20", *command],
        env=environment(library, None, text), capture_output=True, text=True, check=False, **options,
    )  # fmt: skip


def rows(done):
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("counter", [True, False])
def test_each_row_gets_the_energy_of_its_own_samples(library, counter):
    done = run(library, sys.executable, "-c", PROGRAM, "0", counter=counter)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "ggml_cuda_init: found 2 CUDA devices"
    for row in rows(done):
        energy, seconds = row["energy"], sum(row["samples_ns"]) / 1e9
        assert energy["seconds"] == pytest.approx(seconds, abs=1e-6)
        assert energy["joules"] == pytest.approx({FAST: 450 * seconds, SLOW: 300 * seconds}, rel=0.001)
        assert energy["source"] == {FAST: "counter", SLOW: "counter" if counter else "power"}


def test_the_exit_status_and_the_output_are_the_programs(library):
    assert run(library, sys.executable, "-c", PROGRAM, "3").returncode == 3
    assert run(library, "sh", "-c", "echo out; kill -9 $$").returncode == 137
    done = run(library, "/none/such")
    assert done.returncode == 127 and "cannot be run" in done.stderr


def test_what_the_caller_holds_open_stays_open(library, tmp_path):
    with open(tmp_path / "lock", "w", encoding="utf-8") as lock:
        done = run(library, "readlink", f"/proc/self/fd/{lock.fileno()}", pass_fds=(lock.fileno(),))
    assert done.stdout.strip() == str(tmp_path / "lock")


def test_no_driver_is_one_sentence(library):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "true"],
        env=environment(library, "no_driver"), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "no energy is measured" in done.stderr and "Traceback" not in done.stderr


def test_power_that_changes_is_integrated():
    looks = [(0.0, 100.0), (1.0, 100.0), (2.0, 300.0), (3.0, 300.0)]
    assert meter.integral(looks, 0, 3) == pytest.approx(100 + 200 + 300)
    assert meter.integral(looks, 1.5, 2.5) == pytest.approx(0.5 * 250 + 0.5 * 300)
    assert meter.integral(looks, 1.2, 1.4) == pytest.approx(0.2 * 160)


def test_without_a_look_there_is_no_energy():
    assert meter.energy([], 0, 1) is None
    assert meter.energy([(0.0, {"GPU-a": None}, {"GPU-a": None})], 0, 1) is None
    assert meter.with_energy("no row", 1.0, []) == "no row"
