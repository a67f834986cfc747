# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program of mixed-gpu-revalidate.service, with an ansible-playbook of the test that writes what the real one does;
the real one runs in the Molecule scenario `default`. The metric is read back with prometheus-client's own parser."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile

import pytest
from prometheus_client.parser import text_string_to_metric_families

ROLE = pathlib.Path(__file__).parents[3] / "roles/revalidation_timer"
PLAYBOOK = """#!{python}
import json, os, sys
given = json.loads(sys.argv[sys.argv.index("--extra-vars") + 1])
print("TASK [say what was given] ***", json.dumps(given))
with open({directory!r} + "/wanted.json") as handle:
    wanted = json.load(handle)
for name in ("revalidate_report", "revalidate_busy_report"):
    if wanted.get(name) is not None:
        with open(given[name], "w") as handle:
            json.dump(wanted[name], handle)
print(wanted.get("says", ""))
sys.exit(wanted["status"])
"""
RESULT = {
    "verdict": "regressed", "accepted": False, "measured": True, "deployment": "m-c512", "summary": "decode is slower",
    "advice": [], "checks": [{"name": "decode", "change_percent": 8.3}, {"name": "cards"}],
}  # fmt: skip
IDLE = {"box": {"busy": False, "why": "no slot of llama-server is in use"}}
BUSY = {"box": {"busy": True, "why": "llama-server is answering 1 request in 4 slots"}}


@pytest.fixture
def run(tmp_path):
    """Run the program in an environment whose ansible-playbook does what `wanted` says.

    stdout of what it returns is what it said, stderr that with what Ansible printed.
    """
    bin_directory = tmp_path / "bin"
    bin_directory.mkdir()
    playbook = bin_directory / "ansible-playbook"
    playbook.write_text(PLAYBOOK.format(python=sys.executable, directory=str(tmp_path)))
    playbook.chmod(0o755)
    (bin_directory / "python").symlink_to(shutil.which(sys.executable))
    (tmp_path / "metrics").mkdir()

    def _run(*options, by_timer=False, **wanted):
        (tmp_path / "wanted.json").write_text(json.dumps({"status": 0, "revalidate_busy_report": IDLE, **wanted}))
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        environment |= {"TRIGGER_UNIT": "mixed-gpu-revalidate.timer"} if by_timer else {}
        command = [
            str(bin_directory / "python"), str(ROLE / "files/revalidate_unattended.py"), "--inventory=inventory.yml",
            "--host=box", f"--state={tmp_path}/state", f"--mark={tmp_path}/mark.json", "--every-hours=156",
            f"--metrics={tmp_path}/metrics/mixed_gpu.prom", *options,
        ]  # fmt: skip
        with open(tmp_path / "journal", "w+", encoding="utf-8") as journal:
            stream = os.fstat(journal.fileno())
            environment["JOURNAL_STREAM"] = f"{stream.st_dev}:{stream.st_ino}"
            done = subprocess.run(command, env=environment, stdout=journal, stderr=journal, check=False)
            journal.seek(0)
            said = journal.read()
        lines = [line for line in said.splitlines() if not line.startswith("<7>")]
        return subprocess.CompletedProcess(command, done.returncode, "\n".join(lines), said)

    return _run


@pytest.fixture
def metrics(tmp_path):
    """The metric, as {name: {labels: value}}."""

    def _metrics():
        families = text_string_to_metric_families((tmp_path / "metrics/mixed_gpu.prom").read_text())
        found = {}
        for sample in (sample for family in families for sample in family.samples):
            labels = tuple(value for _key, value in sorted(sample.labels.items()))
            found.setdefault(sample.name.removeprefix("mixed_gpu_"), {})[labels] = sample.value
        return found

    return _metrics


def report(**result):
    return {"schema": 1, "verdict": "ok", "accepted": True, "hosts": {"box": {**RESULT, **result}}}


def test_a_regression_is_one_line_a_failure_and_a_metric(run, metrics):
    done = run(status=2, revalidate_report=report())
    assert (done.returncode, done.stdout) == (2, "<3>box (m-c512): regressed: decode is slower")
    found = metrics()
    states = {labels[2]: value for labels, value in found["revalidation_verdict"].items()}
    assert states == {name: float(name == "regressed") for name in states} and len(states) == 6
    assert found["revalidation_change_percent"] == {("m-c512", "box", "decode"): 8.3}
    assert found["revalidation_measured"] == {("m-c512", "box"): 1}
    assert found["revalidation_accepted"] == {("m-c512", "box"): 0}
    assert found["needs_revalidation"] == {(): 0}
    assert abs(found["revalidation_timestamp_seconds"][()] - found["revalidation_last_try_timestamp_seconds"][()]) < 60


def test_an_accepted_verdict_is_information(run, metrics):
    done = run(revalidate_report=report(verdict="ok", accepted=True, measured=False, summary="as fast as before"))
    assert (done.returncode, done.stdout) == (0, "<6>box (m-c512): ok: as fast as before")
    assert metrics()["revalidation_measured"] == {("m-c512", "box"): 0}


def test_a_busy_host_is_skipped_and_the_old_verdict_stays(run, metrics, tmp_path):
    run(status=2, revalidate_report=report())
    (tmp_path / "mark.json").write_text('{"schema": 1, "since": "2026-11-25T18:20:36Z", "packages": []}')
    done = run(revalidate_busy_report=BUSY)
    assert done.returncode == 0
    assert done.stdout == f"<5>box: skipped: {BUSY['box']['why']}; the timer tries again later"
    found = metrics()
    assert found["revalidation_verdict"][("m-c512", "box", "regressed")] == 1
    assert found["needs_revalidation"] == {(): 1}


def test_a_play_without_a_report_failed_and_an_old_report_is_not_taken_for_it(run, metrics):
    run(revalidate_report=report(verdict="ok", accepted=True))
    fatal = 'fatal: [box]: FAILED! => {"msg": "There is no baseline."}'
    done = run(status=2, says=fatal)
    assert done.returncode == 2
    assert done.stdout.startswith("<3>box: failed: ansible-playbook ended with status 2 (There is no baseline.)")
    assert metrics()["revalidation_verdict"][("", "box", "failed")] == 1


def test_a_play_that_cannot_start_fails_too(run):
    done = run(revalidate_busy_report=None, says="[ERROR]: inventory.yml is missing")
    assert (done.returncode, "inventory.yml is missing" in done.stdout) == (1, True)


def test_the_timer_does_nothing_before_it_is_due_and_a_person_need_not_wait(run, tmp_path):
    accepted = report(verdict="ok", accepted=True)
    assert run(revalidate_report=accepted, by_timer=True).stdout.startswith("<6>")
    assert run(revalidate_report=accepted, by_timer=True).stdout == ""
    assert run(revalidate_report=accepted).stdout.startswith("<6>")
    (tmp_path / "mark.json").write_text('{"schema": 1, "since": "2099-11-25T18:20:36Z", "packages": []}')
    assert run(revalidate_report=accepted, by_timer=True).stdout.startswith("<6>")


def test_measuring_is_asked_for(run):
    assert '"revalidate_measure": true' in run("--measure", revalidate_report=report()).stderr
    assert "revalidate_measure" not in run(revalidate_report=report()).stderr


def test_a_metric_that_cannot_be_written_is_said(run, tmp_path):
    shutil.rmtree(tmp_path / "metrics")
    done = run(revalidate_report=report(verdict="ok"))
    assert done.returncode == 0 and "cannot be written" in done.stdout


def pack(*arguments):
    command = [sys.executable, str(ROLE / "files/pack_collection.py"), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_the_collection_is_packed_without_tests_and_known_by_its_content(tmp_path):
    root = tmp_path / "mixed_gpu"
    packed = ("galaxy.yml", "playbooks/c.yml", "plugins/modules/a.py")
    for name in (*packed, "plugins/__pycache__/a.pyc", "tests/unit/b.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    first = pack(root, tmp_path / "a.tar.gz")
    with tarfile.open(tmp_path / "a.tar.gz") as archive:
        names = archive.getnames()
    place = "ansible_collections/homelab/mixed_gpu/"
    assert sorted(names) == [place + name for name in packed]
    (root / "tests/unit/b.py").write_text("other")
    os.utime(root / "galaxy.yml", (1, 1))
    assert pack(root) == first
    (root / "playbooks/c.yml").write_text("other")
    assert pack(root) != first
