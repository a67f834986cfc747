"""The driver after the role: held against real upgrades, upgraded on purpose, and brought back. The tests build on "
"one another, in this order."""

from __future__ import annotations

import json
import re

FIRST, SECOND = "580.95.05-0ubuntu0.24.04.1", "580.105.08-0ubuntu0.24.04.1"
OURS = (
    "libnvidia-compute-580-server", "nvidia-compute-utils-580-server", "nvidia-dkms-580-server-open",
    "nvidia-headless-580-server-open", "nvidia-utils-580-server",
)  # fmt: skip
RECORD = "/var/lib/mixed_gpu/driver/record.json"
OLD_KERNEL, NEW_KERNEL = "6.8.0-10-generic", "6.8.0-20-generic"


def ran(host, command):
    done = host.run(command)
    assert done.rc == 0, done.stdout + done.stderr
    return done.stdout


def versions(host):
    return {name: ran(host, f"dpkg-query -W -f '${{Version}}' {name}") for name in OURS}


def held(host):
    return set(ran(host, "apt-mark showhold").split())


def record(host):
    return json.loads(host.file(RECORD).content_string)


def recap(done):
    found = dict(re.findall(r"(ok|changed|failed)=(\d+)", done.stdout.rsplit("PLAY RECAP", 1)[-1]))
    return {name: int(count) for name, count in found.items()}


def refused(done, *words):
    """The play failed, and one message has all these words."""
    text = " ".join(done.stdout.split())
    assert recap(done)["failed"] == 1, done.stdout[-4000:]
    for word in words:
        assert word in text, done.stdout[-4000:]


def went_well(done):
    assert done.returncode == 0, done.stdout[-6000:]
    return done


def upgradable(host):
    """What unattended-upgrades would upgrade, by its own words."""
    done = host.run("unattended-upgrade --dry-run --debug 2>&1")
    assert done.rc == 0, done.stdout
    found = re.search(r"Packages that will be upgraded: (.*)|No packages found that can be upgraded", done.stdout)
    assert found, done.stdout[-3000:]
    return set((found[1] or "").split())


# --- after converge ---


def test_the_named_version_is_installed_and_its_module_is_there_for_the_next_kernel(host):
    assert set(versions(host).values()) == {FIRST}
    assert ran(host, f"modinfo -k {OLD_KERNEL} -F version nvidia").strip() == "580.95.05"
    assert f"nvidia/580.95.05, {OLD_KERNEL}, x86_64: installed" in ran(host, "dkms status")


def test_driver_and_kernel_metapackages_are_held(host):
    assert held(host) == {*OURS, "linux-image-generic", "linux-headers-generic"}


def test_nouveau_is_kept_out_of_the_initramfs_too(host):
    listed = ran(host, f"lsinitramfs /boot/initrd.img-{OLD_KERNEL}")
    assert "etc/modprobe.d/mixed_gpu-nouveau.conf" in listed
    assert "blacklist nouveau" in host.file("/etc/modprobe.d/mixed_gpu-nouveau.conf").content_string


def test_the_static_persistence_daemon_keeps_the_cards_awake_after_boot(host):
    unit = "nvidia-persistenced.service"
    assert "--persistence-mode" in ran(host, f"systemctl show -p ExecStart {unit}")
    assert "--no-persistence-mode" not in ran(host, f"systemctl show -p ExecStart {unit}")
    assert unit in ran(host, "systemctl show -p Wants multi-user.target")
    assert ran(host, f"systemctl show -p StopWhenUnneeded --value {unit}").strip() == "no"
    ran(host, f"systemctl start {unit}")
    assert host.service("nvidia-persistenced").is_running


def test_the_record_has_the_driver_and_its_package_files_are_kept(host):
    states = record(host)["states"]
    assert [(state["reason"], state["version"]) for state in states] == [("installed", FIRST)]
    assert states[0]["packages"] == dict.fromkeys(OURS, FIRST)
    kept = ran(host, "ls /var/lib/mixed_gpu/driver/packages/580.95.05").split()
    assert len(kept) == len(OURS)


# --- new versions appear ---


def test_a_real_dist_upgrade_leaves_driver_and_kernel_alone(host):
    ran(host, "/var/tmp/archive.sh second && apt-get update")
    out = ran(host, "DEBIAN_FRONTEND=noninteractive apt-get -y dist-upgrade")
    assert ran(host, "dpkg-query -W -f '${Version}' control") == "2", out
    assert set(versions(host).values()) == {FIRST}
    assert not host.file(f"/boot/vmlinuz-{NEW_KERNEL}").exists


def test_without_holds_the_pin_alone_keeps_the_driver(host):
    names = " ".join(held(host))
    ran(host, f"apt-mark unhold {names}")
    wanted = ran(host, "apt-get -s dist-upgrade")
    without_pin = ran(host, "apt-get -s -o Dir::Etc::preferencesparts=/nowhere dist-upgrade")
    ran(host, f"apt-mark hold {names}")
    assert "nvidia" not in wanted
    assert f"Inst libnvidia-compute-580-server [{FIRST}] ({SECOND}" in without_pin


def test_unattended_upgrades_leave_it_alone_by_the_blacklist_alone(host):
    names = " ".join(held(host))
    files = "/etc/apt/preferences.d/mixed_gpu-nvidia", "/etc/apt/apt.conf.d/52mixed_gpu-nvidia"
    ran(host, "apt-get install -y --allow-downgrades control=1")
    with_all = upgradable(host)
    ran(host, f"apt-mark unhold {names}; mv {files[0]} /root/pin")
    with_blacklist = upgradable(host)
    ran(host, f"mv {files[1]} /root/blacklist")
    with_nothing = upgradable(host)
    ran(host, f"mv /root/pin {files[0]}; mv /root/blacklist {files[1]}; apt-mark hold {names}")
    assert with_all == {"control"}
    assert with_blacklist == {"control"}
    assert {"control", *OURS, "linux-image-generic"} <= with_nothing


# --- refusals ---


def test_a_branch_at_its_end_is_refused_with_the_alternative(host, controller):
    refused(
        controller.play(nvidia_driver_branch="560"), "Driver branch 560 is end of life", 'nvidia_driver_branch to "580"'
    )
    assert set(versions(host).values()) == {FIRST}


def test_a_transitional_package_is_refused(host, controller):
    done = controller.play(nvidia_driver_branch="595")
    refused(done, "only a transitional package", "branch 610", 'nvidia_driver_branch to "610"')
    assert set(versions(host).values()) == {FIRST}


def test_a_version_that_no_source_has_is_refused_with_those_that_there_are(host, controller):
    done = controller.play(nvidia_driver_version="580.65.06")
    refused(done, "580.65.06", SECOND)


def test_users_get_no_driver_into_a_container(host, controller):
    done = controller.play(**{"__nvidia_driver_stand_in": False})
    refused(done, "is a container", "nvidia_driver_manage to false")


# --- upgrade, and back ---


def test_a_module_that_does_not_compile_for_the_next_kernel_is_an_error(host, controller):
    # the admin lets a new kernel in; it boots next, and the driver does not compile for it
    ran(host, f"echo {NEW_KERNEL} > /etc/stand-in-does-not-compile")
    ran(host, "apt-get install -y --allow-change-held-packages linux-image-generic linux-headers-generic")
    refused(controller.play(), f"580.95.05 is not there for kernel {NEW_KERNEL}, which boots next", "make.log")
    # told to boot the old kernel, GRUB makes all well again
    ran(host, f"echo 'GRUB_DEFAULT=\"gnulinux-advanced-1>gnulinux-{OLD_KERNEL}-advanced-1\"' > /etc/default/grub")
    went_well(controller.play())
    ran(host, "rm /etc/default/grub /etc/stand-in-does-not-compile")
    ran(host, f"dkms install -m nvidia -v 580.95.05 -k {NEW_KERNEL}")
    went_well(controller.play())


def test_a_version_by_variable_is_an_upgrade_and_stays(host, controller):
    went_well(controller.play(nvidia_driver_version=SECOND))
    assert set(versions(host).values()) == {SECOND}
    assert ran(host, f"modinfo -k {NEW_KERNEL} -F version nvidia").strip() == "580.105.08"
    assert held(host) == {*OURS, "linux-image-generic", "linux-headers-generic"}
    assert [state["version"] for state in record(host)["states"]] == [FIRST, SECOND]
    assert recap(went_well(controller.play(nvidia_driver_version="580.105.08")))["changed"] == 0


def test_the_rollback_restores_the_first_version_although_the_archive_has_lost_it(host, controller):
    ran(host, "/var/tmp/archive.sh lost && apt-get update")
    done = went_well(controller.play("homelab.mixed_gpu.driver_rollback"))
    assert set(versions(host).values()) == {FIRST}
    assert f'nvidia_driver_version: "{FIRST}"' in done.stdout.replace("\\", "")
    assert ran(host, f"modinfo -k {NEW_KERNEL} -F version nvidia").strip() == "580.95.05"
    assert held(host) == {*OURS, "linux-image-generic", "linux-headers-generic"}
    assert "580.95.05*" in host.file("/etc/apt/preferences.d/mixed_gpu-nvidia").content_string
    assert record(host)["rollback"]["finished_at"] is not None


def test_a_second_rollback_changes_nothing_and_so_does_the_role(host, controller):
    assert recap(went_well(controller.play("homelab.mixed_gpu.driver_rollback")))["changed"] == 0
    assert recap(went_well(controller.play()))["changed"] == 0


def test_a_rollback_to_what_was_never_there_is_refused(host, controller):
    done = controller.play("homelab.mixed_gpu.driver_rollback", nvidia_driver_rollback_to="570.1.1")
    refused(done, "version 570.1.1 was not recorded on this host", FIRST)
    assert set(versions(host).values()) == {FIRST}


def test_a_rollback_whose_packages_are_gone_is_refused_before_anything_changes(host, controller):
    went_well(controller.play(nvidia_driver_version=SECOND))
    ran(host, "mv /var/lib/mixed_gpu/driver/packages/580.95.05 /root/kept")
    refused(controller.play("homelab.mixed_gpu.driver_rollback"), "cannot be restored", "kept package files")
    assert set(versions(host).values()) == {SECOND}
    ran(host, "mv /root/kept /var/lib/mixed_gpu/driver/packages/580.95.05")


def test_a_rollback_that_is_broken_off_stays_under_way(host, controller):
    # the archive has lost the first version, so that only the kept file can be used
    kept = f"/var/lib/mixed_gpu/driver/packages/580.95.05/nvidia-utils-580-server_{FIRST}_amd64.deb"
    ran(host, f"mv {kept} /root/kept.deb && head -c 100 /root/kept.deb > {kept}")
    assert controller.play("homelab.mixed_gpu.driver_rollback").returncode != 0
    ran(host, f"mv /root/kept.deb {kept}")
    assert set(versions(host).values()) == {SECOND}
    rollback = record(host)["rollback"]
    # a later test, whose role installs another driver, goes back to the second then, and not on to this
    assert (rollback["to"]["version"], rollback["finished_at"]) == (FIRST, None)
    assert recap(went_well(controller.play(nvidia_driver_version=SECOND)))["changed"] == 0
    assert record(host)["rollback"]["finished_at"] is None


def test_a_damaged_record_is_an_error_that_names_file_and_cure(host, controller):
    ran(host, f"cp {RECORD} /root/record.json && echo '{{' > {RECORD}")
    refused(controller.play(), f"{RECORD} cannot be used", "mv ")
    ran(host, f"mv /root/record.json {RECORD}")


# --- NVIDIA's repository, and somebody else's driver ---


def test_nvidias_repository_is_added_with_its_key_pinned_and_replaces_the_driver(host, controller):
    ran(
        host,
        "/var/tmp/archive.sh nvidia && mv /etc/os-release /var/tmp/os-release.ubuntu && cp /var/tmp/os-release.image "
        "/etc/os-release",
    )
    source = {
        "nvidia_driver_source": "nvidia", "nvidia_driver_branch": "595", "nvidia_repository_url": "file:/srv/nvidia",
        "nvidia_repository_key_url": "file:///srv/nvidia/key.asc",
    }  # fmt: skip
    refused(controller.play(**source, nvidia_repository_key_fingerprint="0" * 40), "0" * 40, "is not signed")
    fingerprint = host.file("/srv/nvidia/fingerprint").content_string.strip()
    # another key signs, and stands beside the pinned key in the file
    ran(host, "/var/tmp/archive.sh forged")
    refused(controller.play(**source, nvidia_repository_key_fingerprint=fingerprint), fingerprint, "is not signed")
    for path in ("/etc/apt/keyrings/mixed_gpu-nvidia.asc", "/etc/apt/sources.list.d/mixed_gpu-nvidia.sources"):
        assert not host.file(path).exists
    ran(host, "/var/tmp/archive.sh signed")
    went_well(controller.play(**source, nvidia_repository_key_fingerprint=fingerprint))
    assert ran(host, "dpkg-query -W -f '${Version}' nvidia-kernel-open-dkms") == "595.71.05-1"
    assert "580" not in ran(
        host, "dpkg-query -W -f '${db:Status-Status} ${Package}\n' 'nvidia-dkms*' | grep ^installed || true"
    )
    assert ran(host, f"modinfo -k {NEW_KERNEL} -F version nvidia").strip() == "595.71.05"
    assert record(host)["rollback"] is None
    went_well(controller.play("homelab.mixed_gpu.driver_rollback"))
    assert set(versions(host).values()) == {SECOND}
    ran(host, "cp /var/tmp/os-release.ubuntu /etc/os-release; rm /etc/apt/sources.list.d/mixed_gpu-nvidia.sources")


def test_a_driver_of_somebody_else_is_left_alone(host, controller):
    ran(
        host,
        "rm -rf /var/lib/mixed_gpu/driver /etc/apt/preferences.d/mixed_gpu-nvidia; apt-mark unhold $(apt-mark "
        "showhold)",
    )
    ran(host, f"apt-get purge -y {' '.join(OURS)}")
    ran(host, "apt-get install -y nvidia-dkms-580-open && apt-mark hold nvidia-dkms-580-open")
    done = went_well(controller.play())
    assert "it is left as it is" in " ".join(done.stdout.split())
    assert recap(done)["changed"] == 0
    assert held(host) == {"nvidia-dkms-580-open"}
    refused(
        controller.play(nvidia_driver_branch="610"),
        "nvidia-dkms-580-open (branch 580) was held by somebody else",
        "apt-mark unhold",
    )
