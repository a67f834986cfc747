# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""How exposed each unit is, by systemd-analyze, and the table of it in docs/exposure.md.

`MIXED_GPU_WRITE_EXPOSURE=1 pytest tests/unit/roles/test_unit_exposure.py` writes the table anew.
"""

from __future__ import annotations

import os
import pathlib
import re
import shutil
import subprocess
import typing as t

import jinja2
import pytest
from ansible.plugins.filter import core as core_filters
from ansible.plugins.test import core as core_tests
from ansible_collections.homelab.mixed_gpu.plugins.filter import llama_cpp, serving
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import sandboxed_run
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._hardware import power_limits
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_servers
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._measuring import lease_unit

ROOT = pathlib.Path(__file__).parents[3]
PAGE = ROOT / "docs" / "exposure.md"
NODES = ["char-nvidia*"]
CALL = {
    "device_nodes": [], "layers": [45, 36], "local": True, "networks": ["localhost"], "nccl": False,
    "nccl_file": "/tmp/nccl.log", "wrong_answers": "/var/lib/mixed_gpu/wrong_answers",
    "exec_start": ["-m", "m"], "choose": [], "environment": {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}, "cuda": False,
    "limits": {"start_interval_seconds": 600, "start_burst": 10, "stop_seconds": 60},
}  # fmt: skip
ANYWHERE = {"local": False, "networks": ["localhost", "192.0.2.0/24"]}
LENT = {
    "local": False, "networks": ["localhost", "192.0.2.7"],
    "choose": ["--lender=192.0.2.7:50052", '"--placement=--rpc 192.0.2.7:50052 -dev RPC0,CUDA0"'],
}  # fmt: skip
EXLLAMA = {
    "local": True, "networks": ["localhost"], "environment": {}, "limits": CALL["limits"], "nccl": True,
}  # fmt: skip


def server(**call: t.Any) -> dict[str, t.Any]:
    """Variables of llama-server's template."""
    return {
        "__llama_server_command": {**CALL, **call}, "__llama_server_key": "m", "llama_server_after_units": [],
        "llama_server_conflicting_units": ["exllama-server.service"], "llama_server_program": "/opt/llama-server",
        "__llama_server_program": {"rc": 0, "stdout": "/opt/llama-server"}, "__llama_server_access": {"wanted": True},
        "__llama_server_chooser": "/opt/mixed_gpu/lib/choose_placement.py",
        "__llama_server_key_path": "/etc/key", "__llama_server_entry": {
            "model": {"sha256": "0"}, "serving": {"load_mode": "auto"}}, "llama_server_supplementary_groups": [],
    }  # fmt: skip


def rpc(device: str = "", address: str = "", networks: t.Sequence[str] = ()) -> dict[str, t.Any]:
    """Variables of ggml-rpc-server's template."""
    named = [{"name": "fast", "port": 50052, "device": device}]
    return {
        "item": {"item": rpc_servers.servers(named, address, [], networks)[0]}, "llama_rpc_cache_gib": 64,
        "__llama_rpc_program": "/opt/ggml-rpc-server", "llama_rpc_reload_unit": "llama-server.service",
        "__llama_rpc_prepare_program": "/opt/mixed_gpu/lib/prepare_rpc_server.py",
    }  # fmt: skip


CACHE = {
    "__llama_rpc_prepare_program": "/opt/p.py", "__llama_rpc_caches": "/var/cache/private/mixed-gpu-rpc",
    "llama_rpc_cache_gib": 64,
}  # fmt: skip


def exllama(**plan: t.Any) -> dict[str, t.Any]:
    """Variables of exllama-server's template."""
    return {
        "__exllamav2_server": {**EXLLAMA, **plan}, "__exllamav2_plan": {"path": "/opt/exllama/r"},
        "__exllamav2_access": {"wanted": True}, "exllamav2_engine": "v3", "exllamav2_model_path": "/srv/m",
        "exllamav2_conflicting_units": [],
        "exllamav2_root": "/opt/exllama", "__exllamav2_config_path": "/etc/c", "__exllamav2_key_path": "/etc/key",
        "exllamav2_supplementary_groups": [],
    }  # fmt: skip


POWER = {
    "__gpu_power_program_path": "/opt/a.py", "gpu_power_wait_seconds": 60,
    "__gpu_power_settings_path": "/etc/s", "__gpu_power_record_path": "/run/mixed_gpu_power/r.json",
    "gpu_power_before_units": ["llama-server.service"],
}  # fmt: skip
TIMER = {
    "__revalidation_timer_venv": "/opt/v", "__revalidation_timer_config_dir": "/etc/mixed_gpu/revalidation",
    "revalidation_timer_limit_seconds": 7200, "revalidation_timer_metrics_path": "",
}  # fmt: skip

SERVER, RPC, EXL = (
    "llama_server/templates/llama-server.service.j2",
    "llama_rpc/templates/ggml-rpc-server.service.j2",
    "exllamav2/templates/exllama-server.service.j2",
)
NODES_UNIT = {
    "__nvidia_driver_nodes_program": "/opt/p.py", "nvidia_driver_nodes_wait_seconds": 60,
    "nvidia_driver_slots_left_out": [],
}  # fmt: skip

WATCHDOG = {
    "__server_watchdog_contents": "0", "__server_watchdog_lib": "/opt/mixed_gpu/lib",
    "server_watchdog_unit": "a.service", "__server_watchdog_key": {"stat": {"exists": True}},
    "server_watchdog_key_path": "/etc/key",
    "server_watchdog_metrics_path": "", "__server_watchdog_plan": {"addresses": ["localhost"]},
    "server_watchdog_command": [], "server_watchdog_webhook_url": "",
}  # fmt: skip

#: unit, case, template below roles/, its variables, the most that is allowed
CASES: t.Final = (
    ("llama-server", "RPC and CPU devices, this host alone", SERVER, server(), 1.2),
    ("llama-server", "cards, this host alone", SERVER, server(device_nodes=NODES), 1.5),
    ("llama-server", "cards, other hosts too", SERVER, server(device_nodes=NODES, **ANYWHERE), 1.6),
    ("llama-server", "cards, and those of a lender", SERVER, server(device_nodes=NODES, **LENT), 1.5),
    ("llama-server", "cards in tensor mode, this host alone", SERVER, server(device_nodes=NODES, nccl=True), 1.5),
    ("ggml-rpc-server", "CPU, this host alone", RPC, rpc(), 1.2),
    ("ggml-rpc-server", "a card, this host alone", RPC, rpc("CUDA0"), 1.5),
    ("ggml-rpc-server", "a CPU lent to a box", RPC, rpc("", "192.168.1.7", ["192.168.1.8"]), 1.5),
    ("ggml-rpc-server", "a card lent to a box", RPC, rpc("CUDA0", "192.168.1.7", ["192.168.1.8"]), 1.5),
    ("mixed-gpu-rpc-cache", "", "llama_rpc/templates/mixed-gpu-rpc-cache.service.j2", CACHE, 1.5),
    ("exllama-server", "this host alone", EXL, exllama(), 1.5),
    ("exllama-server", "other hosts too", EXL, exllama(**ANYWHERE), 1.6),
    ("mixed-gpu-nodes", "", "nvidia_driver/templates/mixed-gpu-nodes.service.j2", NODES_UNIT, 2.5),
    ("mixed-gpu-watchdog", "", "server_watchdog/templates/mixed-gpu-watchdog.service.j2", WATCHDOG, 1.5),
    ("mixed-gpu-notify@", "to the journal", "server_watchdog/templates/mixed-gpu-notify@.service.j2", WATCHDOG, 1.5),
    ("mixed-gpu-power", "", "gpu_power/templates/mixed-gpu-power.service.j2", POWER, 1.5),
    ("mixed-gpu-revalidate", "", "revalidation_timer/templates/mixed-gpu-revalidate.service.j2", TIMER, 3.0),
)
#: name of a transient unit, case, what systemd-run is given, the most that is allowed
TRANSIENT: t.Final = (
    ("mixed-gpu-run-*", "measuring on RPC and CPU devices", sandboxed_run.Sandbox(), 1.2),
    ("mixed-gpu-run-*", "measuring on cards", sandboxed_run.Sandbox(device_nodes=NODES), 1.5),
    ("mixed-gpu-run-*", "ExLlama's worker", sandboxed_run.Sandbox(engine="exllama", device_nodes=NODES), 1.5),
    ("mixed-gpu-run-*", "building", sandboxed_run.Build(("/opt/build", "/var/cache/ccache")), 0.8),
    ("mixed-gpu-run-*", "fetching what is built", sandboxed_run.Build(("/opt/web-ui",), network=True), 1.5),
)

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")


def exposure(folder: pathlib.Path, unit: str, text: str) -> float:
    """Return the exposure of a unit by its text."""
    path = folder / f"{re.sub('[^a-z-]', 'x', unit)}.service"
    path.write_text(text, encoding="utf-8")
    command = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"exposure level for \S+: ([\d.]+)", done.stdout)
    assert found, done.stderr
    return float(found[1])


def rendered(template: str, variables: dict[str, t.Any]) -> str:
    """Return the text of a unit, as the module template makes it."""
    path = ROOT / "roles" / template
    engine = jinja2.Environment(trim_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined)
    engine.filters |= core_filters.FilterModule().filters()
    own = llama_cpp.FilterModule().filters() | serving.FilterModule().filters()
    engine.filters |= {f"homelab.mixed_gpu.{name}": function for name, function in own.items()}
    engine.tests |= core_tests.TestModule().tests()
    engine.globals["lookup"] = lambda _plugin, name, **_options: name
    return engine.from_string(path.read_text(encoding="utf-8")).render({"ansible_managed": "managed", **variables})


def transient(command: t.Sequence[str]) -> str:
    """Return the text of the unit that a command of systemd-run starts."""
    values = [value for option, value in zip(command, command[1:], strict=False) if option == "-p"]
    values += [word.removeprefix("--property=") for word in command if word.startswith("--property=")]
    unit = ("Description=", "After=", "BindsTo=", "Conflicts=", "CollectMode=")
    return "\n".join(["[Service]", "ExecStart=/x", *(value for value in values if not value.startswith(unit)), ""])


def figures(folder: pathlib.Path) -> list[tuple[str, str, float, float]]:
    """Return unit, case, exposure and the most that is allowed, for all units."""
    texts = [(unit, case, rendered(template, given), most) for unit, case, template, given, most in CASES]
    for unit, case, box, most in TRANSIENT:
        texts.append((unit, case, transient(sandboxed_run.prefix("u.service", box, {}, 60, 0)[0]), most))
    lease = lease_unit.start_command("systemd-run", "/sc", ["/p"], "o", ["a.service"], ["a.service"], 60, "/s")
    texts.append(("mixed-gpu-lease", "", transient(lease), 1.2))
    restore = power_limits.restore_unit("systemd-run", "a.service", ["/p"])
    texts.append(("mixed-gpu-power-restore", "", transient(restore), 1.5))
    return [(unit, case, exposure(folder, unit, text), most) for unit, case, text, most in texts]


def page(found: t.Sequence[tuple[str, str, float, float]], version: str) -> str:
    """Return the text of the page."""
    rows = [f"| {unit} | {case} | {level:.1f} | {most:.1f} |" for unit, case, level, most in found]
    return "\n".join([
        "# Exposure of the units",
        "",
        "What `systemd-analyze security` says of each unit, from 0 (closed) to 10. The table is written by",
        "tests/unit/roles/test_unit_exposure.py, which fails where a unit is above its bound.",
        f"Figures of systemd {version}; versions weigh a little differently.",
        "",
        "| unit | case | exposure | at most |",
        "|---|---|---|---|",
        *rows,
        "",
    ])  # fmt: skip


def test_each_unit_is_in_the_table():
    units = {str(path.relative_to(ROOT / "roles")) for path in ROOT.glob("roles/*/templates/*.service.j2")}
    assert units == {template for _unit, _case, template, _given, _most in CASES}


def test_no_unit_is_more_exposed_than_allowed(tmp_path):
    found = figures(tmp_path)
    assert [row for row in found if row[2] > row[3]] == []
    said = subprocess.run(["systemd-analyze", "--version"], capture_output=True, text=True, check=True).stdout
    text = page(found, said.split()[1])
    if os.environ.get("MIXED_GPU_WRITE_EXPOSURE"):
        PAGE.write_text(text, encoding="utf-8")
    written = PAGE.read_text(encoding="utf-8")
    units = [[line.split("|")[1:3] for line in each.splitlines()] for each in (written, text)]
    assert units[0] == units[1]
    if f"Figures of systemd {said.split()[1]};" in written:
        assert written == text


def test_a_unit_without_a_sandbox_is_found_out(tmp_path):
    assert exposure(tmp_path, "open", "[Service]\nExecStart=/x\n") > 9
