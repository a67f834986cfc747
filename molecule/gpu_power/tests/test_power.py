"""What the cards are told, by a real systemd, in the order in which it happens to a machine."""

from __future__ import annotations

import re

from ansible_collections.homelab.mixed_gpu.molecule.gpu_power.tests.conftest import (
    FAST,
    IN_FORCE,
    SLOW,
    UNIT,
    changed,
    words,
)


def _when(host, unit):
    return int(host.run("systemctl show --value -p ActiveEnterTimestampMonotonic %s", unit).stdout)


def test_limits_clocks_and_persistence_mode_are_in_force(host, kept):
    assert kept() == IN_FORCE
    assert host.service(UNIT).is_enabled and host.service(UNIT).is_running


def test_the_program_needs_nothing_of_the_collection(host):
    assert host.file("/opt/mixed_gpu/lib/apply_power_limits.py").mode == 0o644
    assert host.run("/opt/mixed_gpu/venv/bin/python -I /opt/mixed_gpu/lib/apply_power_limits.py --help").rc == 0


def test_systemd_finds_no_fault_with_the_unit(host):
    assert host.run("systemd-analyze verify /etc/systemd/system/%s", UNIT).stderr == ""


def test_after_a_reboot_they_are_in_force_before_the_server_starts(host, kept, controller, eventually):
    before = host.run("systemctl show --value -p InvocationID %s", UNIT).stdout
    controller.reboot()
    assert host.run("systemctl show --value -p InvocationID %s", UNIT).stdout != before
    assert kept() == IN_FORCE
    eventually(lambda: host.service("llama-server").is_running)
    assert 0 < _when(host, "nvidia-persistenced") <= _when(host, UNIT) <= _when(host, "llama-server")


def test_a_driver_that_is_loaded_anew_gets_them_again(host, kept, eventually):
    # what an upgrade of the driver does: the daemon lets go of it, it is replaced, the daemon takes the new one
    assert host.run("systemctl stop nvidia-persistenced").rc == 0
    assert not host.service(UNIT).is_running
    assert "0.power_limit_milliwatts" not in kept() and "1.power_limit_milliwatts" not in kept()
    assert host.run("rm -f /run/fake_nvml && systemctl start nvidia-persistenced").rc == 0
    eventually(lambda: kept() == IN_FORCE)


def test_the_rule_for_a_driver_without_the_daemon_says_what_works(host, kept, eventually):
    rule = host.file("/etc/udev/rules.d/72-mixed-gpu-power.rules").content_string
    command = re.search(r'RUN\+="([^"]+)"', rule).group(1)
    host.run("rm -f /run/fake_nvml")
    assert host.run(command).rc == 0
    eventually(lambda: kept() == IN_FORCE)


def test_what_somebody_else_changed_is_noticed_and_put_right(host, kept, controller):
    assert host.run("sed -i s/280000/350000/ /run/fake_nvml").rc == 0
    done = controller.play("--tags=verify_alone")
    assert done.returncode == 2 and "is 350 W, not 280 W" in words(done.stdout), done.stdout[-3000:]
    done = controller.play()
    assert done.returncode == 0 and changed(done.stdout) == 1, done.stdout[-3000:]
    assert kept() == IN_FORCE


def test_what_a_card_does_not_take_is_refused_before_anything_changes(host, kept, controller):
    files = "sha256sum /etc/mixed_gpu/gpu_power.json /etc/systemd/system/mixed-gpu-power.service"
    before = host.run(files).stdout
    done = controller.play(f"--extra-vars={{gpu_power_limits_watts: {{{FAST}: 300, {SLOW}: 400}}}}")
    assert done.returncode == 2, done.stdout[-3000:]
    assert "takes power limits from 100 to 366 W" in words(done.stdout) and "Nothing was changed" in words(done.stdout)
    assert kept() == IN_FORCE and host.run(files).stdout == before


def test_a_card_that_refuses_fails_the_play_with_its_reason(host, kept, controller):
    profile = "/etc/fake_nvml/profile.txt"
    assert host.run(f"echo 1.error.nvmlDeviceSetPowerManagementLimit=4 >> {profile}").rc == 0
    done = controller.play(f"--extra-vars={{gpu_power_limits_watts: {{{FAST}: 400}}}}")
    host.run(f"sed -i /error/d {profile}")
    assert done.returncode == 2 and "refuses its power limit" in words(done.stdout), done.stdout[-3000:]
    assert kept() == IN_FORCE
