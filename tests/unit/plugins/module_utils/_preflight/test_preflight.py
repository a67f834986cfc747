# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Described machines, and what preflight says of them."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware.nvml import unavailable
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import preflight
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight.model_checks import read_models

HOST = {
    "os": {"id": "ubuntu", "version_id": "24.04", "pretty_name": "Ubuntu 24.04.3 LTS"},
    "machine": "x86_64",
    "kernel": "6.8.0-87-generic",
    "kernel_version": "#88-Ubuntu SMP PREEMPT_DYNAMIC",
    "kernels": ["6.8.0-87-generic"],
    "container": None,
    "hypervisor": None,
    "secure_boot": False,
    "files": [],
    "python_version": "3.12.3",
    "uid": 0,
    "init": "systemd",
    "memory_total_mib": 64000,
    "memory_available_mib": 60000,
    "swap_total_mib": 8192,
    "swap_used_mib": 0,
    "disks": [
        {"path": path, "mount_point": "/", "medium": "nvme", "total_mib": 900000, "free_mib": 50000, "held_mib": 0}
        for path in ("/opt/llama.cpp", "/srv/models")
    ],
    "listeners": [],
    "nvidia_pci": ["0000:01:00.0", "0000:02:00.0"],
    "nvidia_devices": [],
    "nvidia_nodes": ["nvidia-uvm", "nvidia0", "nvidia1", "nvidiactl"],
    "nvidia_module_version": "580.95.05",
    "nouveau_loaded": False,
    "revalidation": {"needed": False},
    "upgrade": {"needed": False},
    "gpus": None,
    "engines": [],
    "recorded": None,
}
GPUS = {
    "available": True,
    "reason": None,
    "driver_version": "580.95.05",
    "gpus": [
        {"id": "GPU-1", "name": "NVIDIA GeForce RTX 4090"},
        {"id": "GPU-2", "name": "NVIDIA GeForce RTX 3090"},
    ],
}
WANTED = {
    "port": 8080,
    "memory_mib": 2048,
    "disk": [{"path": "/opt/llama.cpp", "needed_mib": 3072}, {"path": "/srv/models", "needed_mib": 41000}],
    "gpus_expected": [],
    "models": read_models([], "/srv/models", {}),
    "psu_watts": 1600,
    "rest_of_machine_watts": 200,
    "power_limits_watts": {},
    "locked_clocks_mhz": {},
    "budgets_mib": {},
    "power_budget_policy": "warn",
}


def judge(gpus="the pair", wanted=None, **host):
    gpus = GPUS if gpus == "the pair" else gpus
    return preflight.checks({**copy.deepcopy(HOST), **host, "gpus": gpus}, {**WANTED, **(wanted or {})})


def bad(checks):
    return {check["name"]: check for check in checks if not check["ok"]}


def named(checks, name):
    return next(check for check in checks if check["name"] == name)


def test_the_box_that_all_this_is_for_passes():
    checks = judge(wanted={"gpus_expected": ["RTX 3090", "RTX 4090"]})
    assert bad(checks) == {}
    assert all(check["cure"] is None for check in checks)
    assert named(checks, "GPUs")["detail"] == "NVIDIA GeForce RTX 4090, NVIDIA GeForce RTX 3090; driver 580.95.05"


@pytest.mark.parametrize(
    ("host", "name", "words"),
    [
        ({"os": {"id": "debian", "version_id": "11", "pretty_name": "Debian 11"}}, "operating system", "Debian 12"),
        ({"os": {"id": "ubuntu", "version_id": "22.04", "pretty_name": "Ubuntu 22.04"}}, "operating system", "24.04"),
        ({"os": {"id": "fedora", "version_id": "43", "pretty_name": "Fedora 43"}}, "operating system", "Ubuntu 24.04"),
        ({"os": {"id": None, "version_id": None, "pretty_name": None}}, "operating system", "unknown"),
        ({"machine": "aarch64"}, "architecture", "x86_64"),
        ({"python_version": "3.10.12"}, "Python", "ansible_python_interpreter"),
        ({"uid": 1000}, "root", "become"),
        ({"init": "tini"}, "systemd", "tini"),
        ({"memory_total_mib": 1900}, "memory", "1900 MiB"),
    ],
)
def test_what_cannot_work_is_an_error_with_its_cure(host, name, words):
    found = bad(judge(**host))
    assert list(found) == [name]
    assert found[name]["severity"] == "error"
    assert words in f"{found[name]['detail']}; {found[name]['cure']}"


@pytest.mark.parametrize(("system", "version"), [("debian", "14"), ("ubuntu", "24.10"), ("ubuntu", "26.04")])
def test_a_newer_release_is_a_warning(system, version):
    found = bad(judge(os={"id": system, "version_id": version, "pretty_name": "new"}))
    assert found["operating system"]["severity"] == "warning"


def test_a_known_release_that_was_never_tried_says_so():
    found = bad(judge(os={"id": "ubuntu", "version_id": "26.04", "pretty_name": "Ubuntu 26.04 LTS"}))
    assert "none of them was tried" in found["operating system"]["cure"]
    newer = bad(judge(os={"id": "debian", "version_id": "14", "pretty_name": "Debian 14"}))
    assert "nvidia_driver_system" in newer["operating system"]["cure"]


def test_an_unknown_system_can_be_tried_anyway():
    mint = {"id": "linuxmint", "version_id": "22.1", "pretty_name": "Linux Mint 22.1"}
    refused = bad(judge(os=mint))["operating system"]
    assert refused["severity"] == "error" and "nvidia_driver_system" in refused["cure"]
    tried = bad(judge(wanted={"system": "Ubuntu 24.04"}, os=mint))["operating system"]
    assert (tried["severity"], tried["detail"]) == (
        "warning", "Linux Mint 22.1, treated as Ubuntu 24.04 (nvidia_driver_system)",
    )  # fmt: skip


@pytest.mark.parametrize("version", ["3.11.2", "3.13.5", "3.14.0rc1"])
def test_python_versions_are_compared_as_numbers(version):
    assert bad(judge(python_version=version)) == {}


def disks(free, opt_held=0, models_held=0, models_mount="/"):
    both = {"medium": "ssd", "total_mib": 100000, "free_mib": free}
    return [
        {"path": "/opt/llama.cpp", "mount_point": "/", "held_mib": opt_held, **both},
        {"path": "/srv/models", "mount_point": models_mount, "held_mib": models_held, **both},
    ]


def test_paths_on_one_file_system_share_its_room():
    assert bad(judge(disks=disks(44072))) == {}
    found = bad(judge(disks=disks(44071)))
    assert list(found) == ["disk /opt/llama.cpp", "disk /srv/models"]
    assert "44072 MiB with what the other paths need there" in found["disk /srv/models"]["detail"]
    assert "free 1 MiB on /," in found["disk /srv/models"]["cure"]
    assert bad(judge(disks=disks(44071, models_mount="/srv"))) == {}


def test_what_is_there_already_counts():
    assert bad(judge(disks=disks(200, opt_held=3100, models_held=41000))) == {}
    assert list(bad(judge(disks=disks(200, opt_held=3100, models_held=40000)))) == ["disk /srv/models"]


def test_port():
    ours = {"pid": 7, "process": "llama-server", "unit": "llama-server.service"}
    nginx = {"pid": 8, "process": "nginx", "unit": "nginx.service"}
    hidden = {"pid": None, "process": None, "unit": None}
    assert bad(judge(listeners=[ours])) == {}
    found = bad(judge(listeners=[ours, nginx]))
    assert found["port 8080"]["severity"] == "error"
    assert found["port 8080"]["detail"] == "taken by nginx (pid 8) of nginx.service"
    assert "llama_server_port" in found["port 8080"]["cure"]
    assert bad(judge(listeners=[hidden]))["port 8080"]["detail"] == "taken by a process"
    assert bad(judge(listeners=None))["port 8080"]["severity"] == "note"


def test_swap_in_use_is_a_warning():
    assert bad(judge(swap_used_mib=512)) == {}
    assert bad(judge(swap_used_mib=4000))["swap"]["severity"] == "warning"


def test_no_card_is_fine_unless_one_is_expected():
    none = {"nvidia_pci": [], "nvidia_module_version": None}
    assert bad(judge(None, **none)) == {}
    found = bad(judge(None, {"gpus_expected": ["RTX 4090"]}, **none))["GPUs"]
    assert (found["severity"], found["detail"]) == ("error", "0 NVIDIA cards on the PCI bus, 1 expected (RTX 4090)")


@pytest.mark.parametrize(("nouveau", "words"), [(False, "no NVIDIA driver is loaded"), (True, "nouveau holds them")])
def test_a_missing_driver_is_a_warning_because_a_role_installs_it(nouveau, words):
    checks = judge(None, {"gpus_expected": ["4090", "3090"]}, nvidia_module_version=None, nouveau_loaded=nouveau)
    found = bad(checks)["GPUs"]
    assert (found["severity"], words in found["detail"]) == ("warning", True)
    assert "nvidia_driver" in found["cure"]


def test_cards_are_counted_before_their_names_can_be_read():
    checks = judge(None, {"gpus_expected": ["4090", "3090"]})
    assert bad(checks) == {}
    assert "2 NVIDIA cards on the PCI bus, driver 580.95.05 is loaded" in named(checks, "GPUs")["detail"]
    assert bad(judge(None, {"gpus_expected": ["4090"] * 3}))["GPUs"]["severity"] == "error"


def test_another_card_than_expected_is_an_error():
    found = bad(judge(wanted={"gpus_expected": ["RTX 4090", "RTX 4090"]}))["GPUs"]
    assert found["severity"] == "error"
    assert "missing is RTX 4090" in found["cure"]


def test_a_memory_budget_for_a_card_that_is_not_there_is_an_error():
    budgets = {"budgets_mib": {"GPU-1": 22000, "CUDA1": 20000, "192.168.1.9:50052": 8000}}
    assert "memory budgets" not in bad(judge(wanted=budgets))
    budgets["budgets_mib"]["GPU-7"] = 20000
    found = bad(judge(wanted=budgets))["memory budgets"]
    assert found["severity"] == "error" and "names GPU-7, which is none of the devices here: CUDA0" in found["detail"]
    assert "memory budgets" not in bad(judge(None, budgets))


def test_a_card_that_left_the_bus_is_named_and_one_that_nobody_expects_has_a_cure():
    slots = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
    gpus = [{**gpu, "pci_bus_id": f"0000{slot}"} for gpu, slot in zip(GPUS["gpus"], slots, strict=False)]
    seen = {**GPUS, "available": False, "reason": "GPU 2: fell off the bus: power-cycle.", "gpus": gpus}
    expected = {"gpus_expected": ["RTX 4090", "RTX 3090", "A4000"]}
    off_bus = named(judge(seen, expected, nvidia_pci=slots[:2], nvidia_devices=on_bus("0x2684", "0x2204")), "GPUs")
    assert off_bus["severity"] == "error" and off_bus["detail"].endswith("missing: A4000")
    host = {"nvidia_devices": on_bus("0x2684", "0x2204", "0x24b0"), "nvidia_pci": slots}
    unseen = named(judge({**seen, "available": True, "reason": None}, **host), "GPUs")
    assert unseen["severity"] == "warning" and "lost: an NVIDIA card at 0000:03:00.0" in unseen["detail"]
    assert unseen["cure"].startswith("power-cycle the machine")
    none = named(judge({**seen, "gpus": []}, **host), "GPUs")
    assert none["detail"].startswith("no card answers; driver ")


def test_an_expected_card_that_is_lost_is_an_error_that_names_it():
    slots = ["0000:01:00.0", "0000:02:00.0", "0000:03:00.0"]
    gpus = [{**gpu, "pci_bus_id": f"0000{slot}"} for gpu, slot in zip(GPUS["gpus"], slots, strict=False)]
    seen = {**GPUS, "available": False, "reason": "GPU 2: An NVIDIA card fell off the bus: power-cycle.", "gpus": gpus}
    host = {"nvidia_devices": on_bus("0x2684", "0x2204", "0x24b0"), "nvidia_pci": slots}
    found = named(judge(seen, {"gpus_expected": ["RTX 4090", "RTX 3090", "A4000"]}, **host), "GPUs")
    assert found["severity"] == "error" and "lost: A4000 at 0000:03:00.0" in found["detail"]
    assert found["cure"].startswith("A4000 at 0000:03:00.0: An NVIDIA card fell off the bus")
    power = named(judge(seen, {"gpus_expected": ["RTX 4090", "RTX 3090", "A4000"]}, **host), "power supply")
    assert power["severity"] == "error" and power["detail"].startswith("lost: A4000 at 0000:03:00.0")
    surplus = judge(seen, {"gpus_expected": ["RTX 4090", "RTX 3090"], "psu_watts": 900}, **host)
    assert named(surplus, "GPUs")["severity"] == "warning"
    assert "the draw of unnamed card is not known" in named(surplus, "power supply")["detail"]
    gone = {**seen, "gpus": []}
    found = named(judge(gone, {"gpus_expected": ["RTX 4090"]}, **host), "GPUs")
    assert found["severity"] == "error" and "0000:02:00.0" in found["detail"]


def on_bus(*ids, driver=None):
    return [
        {"address": f"0000:0{place}:00.0", "device_id": number, "name": None, "driver": driver, "bar1_mib": None,
         "iommu": None}
        for place, number in enumerate(ids, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ids", "more", "severity", "words"),
    [
        (("0x1b06", "0x2204"), {}, None, ["driver up to 580, closed kernel modules, CUDA up to 12.9"]),
        (("0x2c05", "0x2204"), {}, None, ["driver 570 or later, open kernel modules, CUDA 12.8 or later"]),
        (("0x1db6", "0x2c05"), {}, "error", ["No driver serves both", "nvidia_driver_slots_left_out"]),
        (("0x1287", "0x2204"), {}, "error", ["Kepler", "470"]),
        (("0x1b06", "0x2204"), {"nvidia_module_version": "595.71.05"}, "warning", ["driver 595.71.05 is loaded"]),
        (("0x3fff", "0x2204"), {}, "note", ["not known: card 10de:3fff"]),
    ],
)
def test_the_age_of_the_cards_is_known_before_there_is_a_driver(ids, more, severity, words):
    host = {"nvidia_module_version": None, **more}
    found = named(judge(None, nvidia_devices=on_bus(*ids), **host), "card generations")
    assert (found["ok"], None if found["ok"] else found["severity"]) == (severity is None, severity)
    for word in words:
        assert word in f"{found['detail']}; {found['cure']}"


def test_a_card_that_is_left_out_is_no_problem():
    checks = judge(None, {"slots_left_out": ["01:00.0"]}, nvidia_devices=on_bus("0x1287", "0x2204"),
                   nvidia_module_version=None)
    assert named(checks, "card generations")["ok"]


def test_a_broken_driver_says_why():
    found = bad(judge(unavailable("A driver upgrade is half done, reboot to finish it.")))["GPUs"]
    assert (found["severity"], found["cure"]) == ("warning", "A driver upgrade is half done, reboot to finish it.")


@pytest.mark.parametrize("name", ["revalidation", "upgrade"])
def test_what_is_left_to_be_done_is_shown_until_it_is_done(name):
    found = {"needed": True, "why": "the driver changed at 2026-11-25T18:20:36Z (...)", "cure": "ansible-playbook x"}
    assert bad(judge(**{name: found}))[name] == {
        "name": name, "ok": False, "severity": "warning", "detail": found["why"], "cure": found["cure"],
    }
    assert name not in [check["name"] for check in judge()]


def cards(**second):
    base = {"pcie_width": 8, "pcie_generation": 1, "pcie_generation_max": 4, "pcie_generation_device_max": 4}
    return {**GPUS, "gpus": [{**gpu, **base, "pci_bus_id": f"00000000:0{number}:00.0"} | (second if number == 2 else {})
                             for number, gpu in enumerate(GPUS["gpus"], 1)]}


def sampled(generation, width=8, busy=99):
    quantities = {"pcie_generation": generation, "pcie_width": width, "utilization_gpu_percent": busy}
    ranges = {key: {"min": 0, "mean": 1, "max": value} for key, value in quantities.items()}
    return {"count": 9, "seconds": 2.0, **ranges}


SECOND = "PCIe 00:02:00.0"


@pytest.mark.parametrize(
    ("card", "severity", "words"),
    [
        ({"pcie_width": 4}, "warning", "x4"),
        ({"pcie_width": 1}, "warning", "2.0 GB/s at most"),
        ({"sampled": sampled(1)}, "warning", "generation 1 under load, 4 possible"),
        ({"sampled": sampled(4, width=2)}, "warning", "x2, generation 4"),
        ({"pcie_generation_max": 3}, "note", "the card could do 4"),
        ({"pcie_generation_max": 2, "sampled": sampled(2)}, "warning", "x8, generation 2"),
    ],
)
def test_a_slot_that_is_slower_than_it_could_be(card, severity, words):
    found = bad(judge(cards(**card)))
    assert list(found) == [SECOND]
    assert found[SECOND]["severity"] == severity
    assert words in found[SECOND]["detail"]


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({}, "now unknown (an idle card lowers it)"),
        ({"sampled": None}, "now unknown"),
        ({"sampled": sampled(1, busy=0)}, "now unknown"),  # watched, but nothing ran
        ({"sampled": {"pcie_generation": None, "utilization_gpu_percent": None}}, "now unknown"),
        ({"sampled": sampled(4)}, "x8, generation 4: enough"),
        ({"pcie_generation": 4}, "x8, generation 4: enough"),
        ({"pcie_width": 16, "pcie_generation": 4}, "x16, generation 4"),
        ({"pcie_width": None}, "unknown: neither driver nor kernel says"),
        ({"pcie_generation": None, "pcie_generation_max": None}, "generation unknown"),
    ],
)
def test_an_idle_or_unknown_link_is_no_warning(card, words):
    checks = judge(cards(**card))
    assert bad(checks) == {}
    assert words in named(checks, SECOND)["detail"]


def test_slots_of_a_virtual_machine_are_not_judged():
    devices = [{"address": "0000:02:00.0", "iommu": None, "bar1_mib": None, "driver": "nvidia", "device_id": "0x2204"}]
    checks = judge(cards(pcie_width=1), hypervisor="KVM or QEMU", nvidia_devices=devices)
    assert bad(checks) == {}
    assert "real slots" in named(checks, "PCIe")["detail"]


def devices(*iommu):
    return [
        {"address": f"0000:0{number}:00.0", "iommu": kind, "bar1_mib": 32768, "driver": "nvidia", "device_id": "0x2684"}
        for number, kind in enumerate(iommu, 1)
    ]


@pytest.mark.parametrize(
    ("kinds", "read", "ok", "words"),
    [
        (("DMA-FQ", "DMA-FQ"), "ok", False, "peer-to-peer"),
        (("DMA", "identity"), "ok", False, "peer-to-peer"),
        (("identity", "identity"), "ok", True, "passes through"),
        (("DMA", "DMA"), "chipset_not_supported", True, "cards do not reach each other"),
        (("DMA", "DMA"), None, True, "on (DMA)"),
        ((None, None), "ok", True, "off"),
    ],
)
def test_an_iommu_matters_to_cards_that_reach_each_other(kinds, read, ok, words):
    gpus = {**GPUS, "p2p": [{"a": "GPU-1", "b": "GPU-2", "read": read}] if read else []}
    found = named(judge(gpus, nvidia_devices=devices(*kinds)), "IOMMU")
    assert (found["ok"], words in found["detail"]) == (ok, True)
    assert ok or "iommu=pt" in found["cure"]


def test_a_driver_makes_secure_boot_a_fact_of_no_concern():
    assert bad(judge(secure_boot=True)) == {}
    assert "mokutil" in bad(judge(None, secure_boot=True, nvidia_module_version=None))["Secure Boot"]["cure"]
    assert "cannot be read" in named(judge(secure_boot=None), "Secure Boot")["detail"]


@pytest.mark.parametrize(("kernel", "ok"), [("6.14.0-1-generic", True), ("7.0.0-1-generic", False), ("7.1.2", False)])
def test_kernels_that_older_drivers_do_not_build_for(kernel, ok):
    checks = judge(None, kernel=kernel, kernels=[kernel], nvidia_module_version=None)
    assert named(checks, "kernel")["ok"] is ok
    assert named(judge(kernel=kernel, kernels=[kernel]), "kernel")["ok"]


def models(*entries, **sizes):
    return {"models": read_models(list(entries), "/srv/models", sizes)}


def test_a_wrong_entry_of_llm_models_is_found_before_anything_is_built():
    found = bad(judge(wanted=models({"id": "m", "url": "https://x.org/m.gguf", "sha256": ""})))["models"]
    assert (found["severity"], found["cure"]) == ("error", "add it")
    assert "The model m has no sha256 for https://x.org/m.gguf" in found["detail"]


def test_all_wrong_entries_are_named_beside_the_sizes_of_the_others():
    entries = [
        {"id": "a", "url": "https://x.org/a.gguf"}, {"id": "b", "path": "b.gguf"},
        {"id": "odd", "generate": {"type": "q9"}}, {"id": "c", "url": "https://x.org/c.gguf", "sha256": "0" * 64},
    ]  # fmt: skip
    wanted = models(*entries, c=40000, d=7)
    found = [check for check in judge(wanted=wanted) if check["name"] == "models"]
    assert [check["severity"] for check in found] == ["error"] * 3 + ["warning"]
    words = ["no sha256 for https://x.org/a.gguf", "The path b.gguf", "odd cannot be generated", "is given for d,"]
    assert all(word in check["detail"] for word, check in zip(words, found, strict=True))
    assert "c 40000 MiB" in named(judge(wanted=wanted), "memory for models")["detail"]


def test_sizes_of_models():
    sha = "0" * 64
    url = {"id": "m", "url": "https://x.org/m.gguf", "sha256": sha}
    assert "m of unknown size" in named(judge(wanted=models(url)), "memory for models")["detail"]
    assert list(bad(judge(wanted=models(url, m=65000)))) == [
        "memory for models", "disk /opt/llama.cpp", "disk /srv/models"
    ]
    catalogue = models({"id": "qwen2_5_coder_32b_instruct_q8_0"})
    assert "qwen2_5_coder_32b_instruct_q8_0 33208 MiB" in named(judge(wanted=catalogue), "memory for models")["detail"]
    there = judge(wanted=models(url), files=[{"path": "/srv/models/m/m.gguf", "size_bytes": 70000 << 20}])
    assert bad(there)["memory for models"]["severity"] == "warning"
    assert "size of the model m is '40 GB'" in bad(judge(wanted=models(url, m="40 GB")))["models"]["detail"]


def test_shards_count_together():
    names = [f"/data/m-0000{number}-of-00002.gguf" for number in (1, 2)]
    wanted = models({"id": "m", "path": names[0]})
    sizes = [{"path": name, "size_bytes": 20 << 30} for name in names]
    assert "m 40960 MiB" in named(judge(wanted=wanted, files=sizes), "memory for models")["detail"]
    sizes[1]["size_bytes"] = None
    assert bad(judge(wanted=wanted, files=sizes))["models"]["severity"] == "error"


def test_policy_of_the_power_budget():
    assert bad(judge(wanted={"psu_watts": 850}))["power supply"]["severity"] == "warning"
    assert bad(judge(wanted={"psu_watts": 850, "power_budget_policy": "fail"}))["power supply"]["severity"] == "error"
    ignored = named(judge(wanted={"psu_watts": 850, "power_budget_policy": "ignore"}), "power supply")
    assert ignored["ok"] and "ignored" in ignored["detail"]
    planned = {"RTX 4090": 315, "GPU-2": 280, "RTX 3090": 999}
    steady = named(judge(wanted={"psu_watts": 850, "power_limits_watts": planned}), "power supply")["detail"]
    assert "steady 795 W of 850 W (power limits 315 to be set + 280 to be set" in steady
    assert "gpu_power_psu_watts" in bad(judge(wanted={"psu_watts": 0}))["power supply"]["cure"]
    with pytest.raises(UserError, match="one of warn, fail, ignore"):
        judge(wanted={"power_budget_policy": "perhaps"})


def test_claims_stand_beside_what_is_here_and_judge_nothing():
    rows = {row["name"]: row for row in preflight.claims({**HOST, "gpus": GPUS}, {**WANTED, "psu_watts": 0})}
    assert (rows["power supply"]["claim"], rows["power supply"]["found"]) == ("1300 W", "not known")
    assert rows["peaks"]["found"] == "950 to 1170 W, unverified"
    assert rows["disk"]["found"] == "0.9 TB, NVMe"
    assert all("guides" in row["source"] for row in rows.values())
    lines = preflight.claims_table(list(rows.values()))
    assert len(lines) == 6 and max(map(len, lines)) <= 74
    assert preflight.claims(HOST, WANTED) == [] == preflight.claims_table([])


def test_table():
    lines = preflight.table(judge(uid=1000, swap_used_mib=4000))
    assert lines[0] == "ok   operating system     Ubuntu 24.04.3 LTS"
    assert "FAIL root                 tasks run as user id 1000; set become to true," in lines
    (warning,) = [number for number, line in enumerate(lines) if line.startswith("warn swap")]
    assert lines[warning + 1].startswith(" " * 26) and lines[warning + 1].strip()
    assert max(map(len, lines)) <= 74


def test_a_deep_path_leaves_room_for_the_text():
    deep = "/mnt/tank/very/deep/down/models"
    disk = {**HOST["disks"][0], "path": deep}
    lines = preflight.table(judge(disks=[disk], wanted={"disk": [{"path": deep, "needed_mib": 1}]}))
    number = lines.index(f"ok   disk {deep}")
    assert lines[number + 1] == f"{'':31}50000 MiB free on /; 1 MiB needed"
    assert max(map(len, lines)) <= 74


def test_all_that_cannot_work_is_one_text_below_the_table():
    found = preflight.judge({**HOST, "gpus": GPUS, "uid": 1000, "init": "tini", "swap_used_mib": 4000}, WANTED)
    assert found["problem"] == (
        "root: tasks run as user id 1000; set become to true, with a user that may use sudo. systemd: process 1 is"
        " tini; boot the host with systemd; a container needs an image whose command is systemd."
    )
    assert found["lines"] == preflight.table(found["checks"]) + preflight.claims_table(found["claims"])
    assert preflight.judge({**HOST, "gpus": GPUS}, WANTED)["problem"] is None


def test_a_generated_model_has_the_size_that_it_needs_on_disk():
    made = {"id": "made", "generate": {"blocks": 64, "embedding_length": 1024, "feed_forward_length": 4096}}
    (known,) = read_models([made], "/srv/models", {})["models"]
    assert 1900 < known["size_mib"] < 2100
