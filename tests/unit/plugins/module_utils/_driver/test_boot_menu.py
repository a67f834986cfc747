# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Menus that grub-common wrote, and lists as bootctl prints them."""

from __future__ import annotations

import json
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import boot_menu, driver_kernel

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "grub"
DEBIAN = (FIXTURES / "debian12.cfg").read_text(encoding="utf-8")
PROXMOX = (FIXTURES / "proxmox9.cfg").read_text(encoding="utf-8")
DISK = "11111111-2222-3333-4444-555555555555"
NEW, OLD = "6.12.48+deb12-amd64", "6.1.0-40-amd64"
PVE = ["6.8.12-15-pve", "6.14.11-4-pve", "6.17.2-1-pve"]
ADVANCED = "Advanced options for Debian GNU/Linux"
# as os-prober, memtest86+ and 41_custom add them
MORE = """\
menuentry 'Windows Boot Manager (on /dev/sdb1)' --class windows $menuentry_id_option 'osprober-efi-AAAA-BBBB' {
    insmod part_gpt
    chainloader /EFI/Microsoft/Boot/bootmgfw.efi
}
menuentry "Rescue > with 6.1 (it's old)" --id rescue {
    linux /boot/vmlinuz-6.1.0-40-amd64 root=/dev/sda2 single
}
menuentry 'Xen' --id xen {
    multiboot2 /boot/xen.gz placeholder
    module2 /boot/vmlinuz-6.1.0-40-amd64 placeholder root=/dev/sda2
}
"""


def following(default, menu=DEBIAN, environment="", kernels=(NEW, OLD), running=OLD):
    menu = menu.replace('set default="1>2"', f'set default="{default or 0}"')
    return driver_kernel.next_kernel(list(kernels), running, default, environment, menu)


def test_a_menu_is_read_with_its_submenus():
    simple, advanced = boot_menu.parse(DEBIAN)[:2]
    assert (simple.title, simple.ident, simple.release) == ("Debian GNU/Linux", f"gnulinux-simple-{DISK}", NEW)
    assert [entry.release for entry in advanced.entries] == [NEW, NEW, OLD, OLD]
    assert boot_menu.parse("") == boot_menu.parse("if true; then\n}\n{\n'\n") == []


@pytest.mark.parametrize(
    ("default", "release"),
    [
        ("0", NEW), ("1>2", OLD), ("1>0", NEW), ("1>3", OLD), ("1", NEW), ("1>99", NEW), ("99", NEW), ("", NEW),
        ("\u00b2", NEW),
        ("Debian GNU/Linux", NEW), (f"{ADVANCED}>Debian GNU/Linux, with Linux {OLD}", OLD), (f"{ADVANCED}>2", OLD),
        (f"gnulinux-advanced-{DISK}>gnulinux-{OLD}-advanced-{DISK}", OLD), (f"1>gnulinux-{OLD}-recovery-{DISK}", OLD),
        (f"gnulinux-simple-{DISK}", NEW), ("gnulinux-5.10.0-1-amd64-advanced", NEW),
        ("Rescue >> with 6.1 (it's old)", OLD), ("rescue", OLD), ("xen", OLD), ("3", OLD),
    ],
)  # fmt: skip
def test_every_form_of_the_default_finds_its_kernel(default, release):
    found = following(default, DEBIAN + MORE)
    assert (found.release, found.known) == (release, True)


@pytest.mark.parametrize("default", ["2", "Windows Boot Manager (on /dev/sdb1)", "osprober-efi-AAAA-BBBB"])
def test_another_system_is_not_known(default):
    found = following(default, DEBIAN + MORE)
    assert (found.release, found.known) == (OLD, False) and "Windows" in found.why


@pytest.mark.parametrize(
    ("environment", "release"),
    [
        ("# GRUB Environment Block\n", PVE[2]),
        ("saved_entry=1>4\n", PVE[0]),
        (f"saved_entry=gnulinux-advanced-{DISK}>gnulinux-{PVE[1]}-advanced-{DISK}\n", PVE[1]),
        ("saved_entry=1>4\nnext_entry=1>2\n", PVE[1]),
        (f"{ADVANCED}\nsaved_entry={ADVANCED}>Debian GNU/Linux, with Linux {PVE[0]}\n", PVE[0]),
    ],
)
def test_a_saved_entry_is_looked_up_in_the_menu(environment, release):
    found = following("saved", PROXMOX, environment, PVE, running=PVE[2])
    assert (found.release, found.known) == (release, True)


def test_what_is_saved_for_one_boot_counts_whatever_the_default_is():
    assert following("0", environment="next_entry=1>2\n").release == OLD


def test_a_menu_that_is_older_than_the_settings_is_not_believed():
    stale = driver_kernel.next_kernel([NEW, OLD], NEW, "0", "", DEBIAN)
    assert (stale.release, stale.known) == (NEW, False) and "GRUB_DEFAULT=1>2" in stale.why
    gone = following("1>2", kernels=(NEW,), running=NEW)
    assert not gone.known and OLD in gone.why


@pytest.mark.parametrize(
    ("default", "environment", "known"),
    [
        ("1>2", "", False), ("2", "", False), ("saved", "saved_entry=1>2\n", False), ("saved", "", True),
        ("Windows Boot Manager", "", False), ("0", "", True), ("0", "next_entry=3\n", False),
        (f"{ADVANCED}>Debian GNU/Linux, with Linux {OLD}", "", True),
    ],
)  # fmt: skip
def test_without_a_menu_a_place_in_it_is_not_known(default, environment, known):
    found = driver_kernel.next_kernel([OLD, NEW], OLD, default, environment, "")
    assert found.known == known
    assert known or (found.release == OLD and "no grub.cfg" in found.why)


def test_a_guess_is_a_kernel_that_is_there():
    assert driver_kernel.next_kernel([OLD, NEW], "5.4.0-1-old", "1>2", "", "").release == NEW


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("GRUB_DEFAULT=0\n", "0"), ('GRUB_DEFAULT="1>2" # the older\n', "1>2"), ("GRUB_DEFAULT='a \"b\"'\n", 'a "b"'),
        ("GRUB_DEFAULT=saved\nGRUB_DEFAULT=3\n", "3"), ("#GRUB_DEFAULT=9\n", ""), ("GRUB_DEFAULT=\n", ""),
        (" export GRUB_DEFAULT=saved\n", "saved"), ("GRUB_DEFAULT='broken\n", ""),
    ],
)  # fmt: skip
def test_values_of_the_shell(text, value):
    assert boot_menu.shell_value(text, "GRUB_DEFAULT") == value


# bootctl --json=short list, of systemd 257
LOADER = [
    {"type": "type1", "id": "c0ffee-6.12.48+deb13-amd64.conf", "version": "6.12.48+deb13-amd64", "isDefault": True,
     "linux": "/c0ffee/6.12.48+deb13-amd64/linux"},
    {"type": "type1", "id": "c0ffee-6.12.9-zabbly+.conf", "version": "6.12.9-zabbly+", "isDefault": False},
    {"type": "auto", "id": "auto-windows", "isDefault": False},
]  # fmt: skip


def test_systemd_boot_says_its_default_and_what_is_for_one_boot():
    kernels = ["6.12.48+deb13-amd64", "6.12.9-zabbly+"]
    listed = json.dumps(LOADER)
    assert boot_menu.systemd_boot(listed, "", kernels) == kernels[0]
    assert boot_menu.systemd_boot(listed, "c0ffee-6.12.9-zabbly+.conf", kernels) == kernels[1]
    assert boot_menu.systemd_boot(listed, "auto-windows", kernels) == ""
    for nothing in ("", "[]", "no json", json.dumps(LOADER[1:])):
        assert boot_menu.systemd_boot(nothing, "", kernels) == ""
    unified = [{"type": "type2", "id": "debian-6.12.48+deb13-amd64.efi", "path": "/efi/EFI/Linux", "isDefault": True}]
    assert boot_menu.systemd_boot(json.dumps(unified), "", kernels) == kernels[0]


@pytest.mark.parametrize("listed", ["5", "null", '"x"', "[1, []]", '{"a": 1}', '[{"isDefault": true, "version": 5}]'])
def test_a_list_of_systemd_boot_in_another_form_is_not_known(listed):
    assert boot_menu.systemd_boot(listed, "", [NEW, OLD]) == ""
