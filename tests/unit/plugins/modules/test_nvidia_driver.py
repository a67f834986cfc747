# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The modules nvidia_driver_plan and nvidia_driver_record, with programs that answer as dpkg and apt do.

The real ones are asked on this machine in `test_this_machine`, and in Molecule.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shutil

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_host, driver_versions
from ansible_collections.homelab.mixed_gpu.plugins.modules import nvidia_driver_plan, nvidia_driver_record

TRANSCRIPTS = pathlib.Path(__file__).parents[1] / "module_utils/_driver/fixtures/apt"
MAIN = "nvidia-headless-580-server-open"
KERNEL = "6.8.0-90-generic"
FIRST, SECOND, THIRD = "580.65.06-1", "580.95.05-1", "580.105.08-1"


class Host:
    """Says which packages it has; its apt knows those of a transcript."""

    def __init__(self, home):
        self.home = home
        self.programs = home / "bin"
        self.programs.mkdir()
        self.program("dpkg-query", f"cat {home}/dpkg 2>/dev/null || true")
        self.program("apt-get", f'echo "$*" >> {home}/asked; case "$*" in *download*) touch downloaded.deb ;; esac')
        self.program("apt-cache", "true")
        self.program("modinfo", "exit 1")
        self.program("dkms", "true")
        self.program("systemctl", "true")
        self.has({})

    def program(self, name, script):
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (self.programs / name).chmod(0o755)

    def has(self, packages, held=()):
        lines = [
            f"{'hold' if name in held else 'install'}\tinstalled\t{name}\tamd64\t{version}\tnvidia\n"
            for name, version in packages.items()
        ]
        (self.home / "dpkg").write_text("".join(lines), encoding="utf-8")

    def built(self, version):
        self.program("modinfo", f'case "$*" in *version*) echo {version} ;; esac')

    def asked(self):
        path = self.home / "asked"
        return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


@pytest.fixture
def host(tmp_path, monkeypatch):
    made = Host(tmp_path)
    monkeypatch.setenv("PATH", f"{made.programs}:{os.environ['PATH']}")
    monkeypatch.setattr(driver_host, "system", lambda: "Ubuntu 24.04")
    monkeypatch.setattr(driver_host.host_hardware, "kernels", lambda: [KERNEL])
    return made


@pytest.fixture
def run(call_module, tmp_path):
    def _run(module, **arguments):
        arguments = {"directory": str(tmp_path / "driver"), **arguments}
        return call_module(module, arguments)

    return _run


@pytest.fixture
def plan(run):
    return lambda goal, **arguments: run(nvidia_driver_plan, goal=goal, **arguments)


@pytest.fixture
def record(run, tmp_path, monkeypatch):
    warned = []
    # Where the controller's code is loaded too, as in a whole test run, warnings do not come with the result.
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: warned.append(warning))

    def _record(action, **arguments):
        done = run(nvidia_driver_record, action=action, pin_path=str(tmp_path / "pin"), **arguments)
        return {**done, "warned": list(warned)}

    return _record


# --- looking ---


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="needs dpkg")
def test_this_machine(plan):
    driver = plan("loaded", _ansible_check_mode=True)["driver"]
    assert driver["kernel_running"] == platform.release()
    assert set(driver["modules"]) == {driver["kernel_running"], *driver["kernels_next"]}
    assert driver["loaded_version"] == "" or driver["loaded_version"][0].isdigit()
    assert driver["system"].split()[-1].replace(".", "").isdigit()


def test_kept_package_files_are_found_by_version(plan, host, tmp_path):
    kept = tmp_path / "driver/packages/580.95.05"
    kept.mkdir(parents=True)
    (kept / "libcuda1_1%3a580.95.05-1_amd64.deb").touch()
    (kept / "partial").touch()
    found = plan("loaded")["driver"]["kept"]
    assert found == {"libcuda1": {"1:580.95.05-1": str(kept / "libcuda1_1%3a580.95.05-1_amd64.deb")}}


def test_the_packages_of_another_vendors_kernel_are_found(plan, host, monkeypatch):
    kernel = "6.14.8-2-pve"
    monkeypatch.setattr(driver_host.host_hardware, "kernels", lambda: [kernel])
    image = "proxmox-kernel-6.14.8-2-pve-signed"
    host.program("dpkg-query", f"""case "$*" in
        *"-S /boot/vmlinuz-{kernel}") echo "{image}: /boot/vmlinuz-{kernel}" ;;
        "-S "*) exit 1 ;;
        *) cat {host.home}/dpkg ;;
    esac""")
    host.has({"proxmox-default-kernel": "2.0.0", "proxmox-backup-client": "4"})
    answer = plan("packages")
    assert answer["driver"]["images"] == {kernel: image} and answer["driver"]["kernels_next"] == [kernel]
    assert answer["plan"]["headers"] == [f"proxmox-headers-{kernel}", "proxmox-default-headers"]
    assert "proxmox-backup-client" not in answer["driver"]["packages"]


# --- packages ---


def test_without_a_driver_the_packages_are_planned_and_nothing_is_asked_of_apt(plan, host):
    answer = plan("packages", branch="580")
    assert answer["plan"]["main"] == MAIN and MAIN in answer["plan"]["missing"]
    assert (answer["step"], answer["error"], host.asked()) == (None, "", [])
    assert answer["planned"] == {"present": "", "wanted": "", "foreign": ""}


def test_with_fresh_lists_the_versions_are_chosen_and_pinned(plan, host):
    host.program("apt-cache", f"cat {TRANSCRIPTS}/ubuntu2404-580-server-open.txt")
    answer = plan("packages", branch="580", fetch_lists=True)
    version = "580.126.20-0ubuntu0.24.04.1"
    assert answer["step"]["install"][MAIN] == version and answer["planned"]["wanted"] == version
    assert "Pin: version 580.126.20*" in answer["step"]["pin"] and answer["step"]["main"] == MAIN
    assert [line.split()[-1] for line in host.asked()] == ["update"]


def test_a_requested_version_counts_instead_of_branch_and_version(plan, host):
    host.program("apt-cache", f"cat {TRANSCRIPTS}/ubuntu2404-580-server-open.txt")
    asked = plan("packages", branch="560", version="560.1.1", requested="580", fetch_lists=True)
    assert asked["planned"]["wanted"] == "580.126.20-0ubuntu0.24.04.1"
    wrong = plan("packages", branch="560", version="560.1.1", requested="580.1.1", fetch_lists=True)
    assert "580.1.1" in wrong["error"]


def test_what_no_source_has_is_an_answer_that_says_which_lists_are_missing(plan, host):
    host.program("apt-get", "echo 'W: Failed to fetch http://mirror/InRelease  Could not connect' >&2")
    answer = plan("packages", branch="580", fetch_lists=True)
    assert answer["step"] is None and "restricted and multiverse" in answer["error"]
    assert "http://mirror/InRelease" in answer["error"]
    checked = plan("packages", branch="580", fetch_lists=True, _ansible_check_mode=True)
    assert checked["message"].startswith("Would install linux-headers-")


def on_bus(monkeypatch, *ids):
    devices = [{"address": f"0000:0{place}:00.0", "device_id": number, "name": None} for place, number in
               enumerate(ids, 1)]
    monkeypatch.setattr(nvidia_driver_plan.host_hardware, "nvidia_devices", lambda: devices)


def test_nothing_said_means_what_the_cards_need(plan, host, monkeypatch):
    assert plan("packages")["plan"]["main"] == MAIN
    on_bus(monkeypatch, "0x1b06", "0x2684")
    assert plan("packages")["plan"]["main"] == "nvidia-headless-580-server"
    on_bus(monkeypatch, "0x2c05", "0x2684")
    assert plan("packages")["plan"]["main"] == MAIN
    on_bus(monkeypatch, "0x3fff", "0x2684")
    known = plan("packages")
    assert known["plan"]["main"] == MAIN and "Not known to this collection" in known["message"]


@pytest.mark.parametrize(
    ("ids", "wish", "words"),
    [
        (("0x1db6", "0x2c05"), {}, "No driver serves both"),
        (("0x1b06",), {"open_modules": True}, "nvidia_driver_open_modules is true"),
        (("0x2c05",), {"open_modules": "false"}, "nvidia_driver_open_modules is false"),
        (("0x1b06",), {"branch": "595"}, "whose last branch is 580"),
        (("0x1b06",), {"requested": "595.71.05"}, "whose last branch is 580"),
        (("0x1b06",), {"version": "610.43.02"}, "Driver branch 610"),
    ],
)
def test_a_driver_that_a_card_does_not_stand_is_refused_before_anything_is_asked(
    plan, host, monkeypatch, ids, wish, words
):
    on_bus(monkeypatch, *ids)
    answer = plan("packages", fetch_lists=True, **wish)
    assert answer["failed"] and words in answer["msg"] and host.asked() == []
    left = plan("packages", slots_left_out=["01:00.0"], **wish)
    assert words not in left.get("msg", "")


def test_an_unknown_system_is_refused_or_tried_as_another(plan, host, monkeypatch):
    monkeypatch.setattr(driver_host, "system", lambda: "Linuxmint 22.1")
    assert "knows no driver packages for Linuxmint 22.1" in plan("packages")["msg"]
    assert plan("packages", system="Ubuntu 24.04")["plan"]["main"] == MAIN
    assert "for Ubuntu 99.04" in plan("packages", system="Ubuntu 99.04")["msg"]


def test_the_branch_of_an_exact_version_needs_no_saying(plan, host):
    assert plan("packages", version="595.71.05")["plan"]["branch"] == "595"


def test_a_branch_at_its_end_fails_with_the_alternative(plan, host):
    answer = plan("packages", branch="560")
    assert answer["failed"] and 'set nvidia_driver_branch to "580"' in answer["msg"]


def test_the_present_driver_is_named_by_its_recorded_version(plan, record, host):
    host.has({MAIN: FIRST, "libnvidia-compute-580-server": FIRST})
    assert plan("packages", branch="580")["planned"]["present"] == FIRST
    record("record", main=MAIN, reason="installed")
    assert plan("packages", branch="580", version="580.95.05")["planned"]["present"] == FIRST


def test_somebody_elses_driver_is_left_alone(plan, host):
    host.has({"nvidia-dkms-580-open": FIRST})
    answer = plan("packages", branch="580")
    assert answer["message"] == answer["planned"]["foreign"] and "it is left as it is" in answer["message"]


# --- settings, reboot, proof ---


def test_settings_of_the_installed_driver(plan, host):
    host.has({MAIN: FIRST})
    host.built("580.65.06")
    decided = plan("settings", main=MAIN)["settings"]
    assert (decided["ours"], decided["hold"], decided["problem"]) == (True, [MAIN], "")
    assert plan("settings", main=MAIN, hold=False)["settings"]["hold"] == []


def test_settings_of_a_driver_that_is_not_there_change_nothing(plan, host):
    decided = plan("settings", main=MAIN)["settings"]
    assert not decided["ours"] and not decided["files"] and not decided["absent"]


def test_settings_of_somebody_elses_driver_are_those_that_were_recorded(plan, record, host):
    host.has({"nvidia-dkms-580-open": FIRST}, held=["nvidia-dkms-580-open"])
    assert plan("settings")["settings"]["absent"] == []
    record("record")
    host.has({"nvidia-dkms-580-open": FIRST})
    assert plan("settings")["settings"]["hold"] == ["nvidia-dkms-580-open"]


def test_a_reboot_is_due_where_the_loaded_module_is_another(plan, host):
    host.built("580.65.06")
    answer = plan("loaded")
    assert answer["reboot_due"] and "The driver is installed (580.65.06)" in answer["message"]
    assert "came back with kernel" in plan("loaded", rebooted=True)["msg"]


def test_cuda_is_asked_as_a_server_would_ask_and_the_nodes_are_looked_at_before(plan, host, monkeypatch):
    order = host.home / "order"
    host.program("systemd-run", f'printf "%s\n" "$@" > {host.home}/run; echo cuinit >> {order}; echo 999')
    host.program("systemctl", f"echo unit >> {order}; echo UnitFileState=enabled")

    def missing(_host):
        order.write_text("nodes\n", encoding="utf-8")
        return ["/dev/nvidia-uvm (the kernel module nvidia_uvm is not loaded)"]

    monkeypatch.setattr(nvidia_driver_plan.make_device_nodes, "missing", missing)
    monkeypatch.setattr(driver_versions, "loaded", lambda: "580.65.06")
    gpus = {"available": True, "reason": None, "driver_version": "580.65.06", "gpus": []}
    answer = plan("proof", gpus=gpus)["msg"]
    assert "/dev/nvidia-uvm" in answer and "cuInit answers 999" in answer
    assert order.read_text(encoding="utf-8").split() == ["nodes", "unit", "cuinit"]
    words = (host.home / "run").read_text(encoding="utf-8").splitlines()
    for word in ("--pipe", "--wait", "DynamicUser=yes", "CapabilityBoundingSet=", "DeviceAllow=char-nvidia* rw"):
        assert word in words


def test_the_proof_fails_with_every_problem(plan, host, monkeypatch):
    gpus = {"available": True, "reason": None, "driver_version": "580.65.06", "gpus": []}
    assert "kernel module is not loaded" in plan("proof", gpus=gpus)["msg"]
    monkeypatch.setattr(driver_versions, "loaded", lambda: "580.95.05")
    monkeypatch.setattr(nvidia_driver_plan.host_hardware, "nvidia_pci", lambda root="": ["0000:01:00.0"])
    answer = plan("proof", gpus=gpus, gpus_expected=["RTX 4090"])["msg"]
    for words in ("half-done upgrade", "1 NVIDIA card(s) and NVML sees 0", "wants RTX 4090"):
        assert words in answer


# --- record and rollback ---


def test_a_driver_is_recorded_once_and_atomically(record, host, tmp_path):
    path = tmp_path / "driver/record.json"
    host.has({MAIN: FIRST}, held=[MAIN])
    assert record("record", _ansible_check_mode=True)["changed"]
    assert not path.exists()
    done = record("record", main=MAIN, reason="installed")
    assert done["changed"] and done["record"]["states"][0]["holds"] == [MAIN]
    assert not record("record", main=MAIN, reason="installed")["changed"]
    assert (path.stat().st_mode & 0o777, sorted(os.listdir(path.parent))) == (0o644, ["lock", "record.json"])
    host.has({MAIN: SECOND})
    shown = record("record", _ansible_diff=True, _ansible_check_mode=True)["diff"]
    assert SECOND in shown["after"] and SECOND not in shown["before"]


def test_package_files_of_the_present_driver_and_of_the_one_before_are_kept(record, host, tmp_path):
    kept = tmp_path / "driver/packages"
    for version in (FIRST, SECOND, THIRD):
        host.has({MAIN: version})
        assert record("record", main=MAIN, reason="installed", keep_packages=True)["changed"]
    assert host.asked() == [f"download -q {MAIN}={version}" for version in (FIRST, SECOND, THIRD)]
    assert sorted(os.listdir(kept)) == ["580.105.08", "580.95.05"]
    (kept / "580.105.08" / f"{MAIN}_{THIRD}_amd64.deb").touch()
    again = record("record", main=MAIN, reason="installed", keep_packages=True)
    assert (again["changed"], again["lost"]) == (False, [])


def test_packages_that_no_source_has_any_more_are_named(record, host):
    host.has({MAIN: FIRST})
    host.program("apt-get", "exit 100")
    done = record("record", keep_packages=True)
    assert done["lost"] == [f"{MAIN}={FIRST}"]
    assert f"Not kept for going back, because no apt source has them any more: {MAIN}={FIRST}" in str(done["warned"])


def test_there_and_back(plan, record, host):
    for version in (FIRST, SECOND):
        host.has({MAIN: version})
        record("record", main=MAIN, reason="installed")
    host.program("apt-cache", f"printf '{MAIN}:\\n  Version table:\\n     {FIRST} 500\\n        500 file:/x\\n'")
    back = plan("rollback")
    assert (back["step"]["version"], back["step"]["install"], back["main"]) == (FIRST, {MAIN: FIRST}, MAIN)
    assert f'nvidia_driver_version: "{FIRST}"' in back["message"]
    assert record("begin")["record"]["rollback"]["finished_at"] is None
    host.has({MAIN: FIRST})
    record("record", main=MAIN, reason="rolled back")
    assert record("finish")["record"]["rollback"]["finished_at"]
    again = plan("rollback")
    assert (again["step"], again["main"]) == (None, MAIN) and FIRST in again["message"] and SECOND in again["message"]
    assert not record("begin")["changed"]
    named = plan("rollback", to="570.1")
    assert named["failed"] and "version 570.1 was not recorded" in named["msg"]


def test_a_rollback_that_cannot_end_does_not_begin(plan, record, host):
    for version in (FIRST, SECOND):
        host.has({MAIN: version})
        record("record", main=MAIN, reason="installed")
    assert "cannot be restored" in plan("rollback")["msg"]


def test_an_interrupted_rollback_is_not_continued_past_what_was_installed_meanwhile(plan, record, host):
    for version in (FIRST, SECOND):
        host.has({MAIN: version})
        record("record", main=MAIN, reason="installed")
    record("begin")
    # what the rollback left half done is no driver that the role installed
    host.has({MAIN: FIRST})
    assert record("record", reason="rolled back")["record"]["rollback"] is not None
    host.has({MAIN: THIRD})
    assert record("record", main=MAIN, reason="installed")["record"]["rollback"] is None
    assert record("begin", to="580.95.05")["record"]["rollback"]["to"]["version"] == SECOND


def test_nothing_to_go_back_to(plan, record, host):
    host.has({MAIN: FIRST})
    for answer in (plan("rollback"), record("begin")):
        assert answer["failed"] and "There is no driver to go back to" in answer["msg"]


@pytest.mark.parametrize("text", ["{", '{"schema": 9}', '{"schema": 1, "states": 3, "rollback": null}'])
def test_a_record_that_cannot_be_used_stays_as_it_is(plan, record, host, tmp_path, text):
    path = tmp_path / "driver/record.json"
    path.parent.mkdir()
    path.write_text(text, encoding="utf-8")
    for answer in (record("record"), record("begin"), plan("packages", branch="580"), plan("rollback")):
        assert answer["failed"] and str(path) in answer["msg"] and "move it away" in answer["msg"]
    assert path.read_text(encoding="utf-8") == text
