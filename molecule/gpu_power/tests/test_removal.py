"""After all other tests: what is taken out is undone, and nothing stays."""

from __future__ import annotations

from ansible_collections.homelab.mixed_gpu.molecule.gpu_power.tests.conftest import IN_FORCE, UNIT

RULE = "/etc/udev/rules.d/72-mixed-gpu-power.rules"
AS_FOUND = {"0.persistence_mode": "0", "1.persistence_mode": "0"}


def test_taking_it_out_undoes_it(host, kept, controller):
    done = controller.play("--extra-vars={gpu_power_state: absent}")
    assert done.returncode == 0, done.stdout[-3000:]
    assert kept() == AS_FOUND
    assert host.run("systemctl cat %s", UNIT).rc != 0
    for path in (RULE, "/etc/mixed_gpu/gpu_power.json", "/opt/mixed_gpu/lib/apply_power_limits.py"):
        assert not host.file(path).exists


def test_uninstall_undoes_it_too(host, kept, controller):
    done = controller.play()
    assert done.returncode == 0 and kept() == IN_FORCE, done.stdout[-3000:]
    done = controller.play(playbook="homelab.mixed_gpu.uninstall")
    assert done.returncode == 0, done.stdout[-3000:]
    assert kept() == AS_FOUND
    for path in (f"/etc/systemd/system/{UNIT}", RULE, "/opt/mixed_gpu"):
        assert not host.file(path).exists
