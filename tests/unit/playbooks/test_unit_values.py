# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Values of an inventory in the units of the servers: the real templates, read back by systemd itself."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import rpc_servers

ROOT = pathlib.Path(__file__).resolve().parents[3]
SYSTEMD = pathlib.Path("/usr/lib/systemd/systemd")
NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
TARGET = "[Unit]\nDescription=test\nWants={}\n"
AWKWARD = 'a "b" 100%h \\ $HOME ${HOME} ; \'c\' é'
#: What a systemd before 253 says of the one key that it does not know.
NEWER = "Unknown key 'LogFilterPatterns' in section [Service], ignoring."

ENTRY = {
    "model": {"sha256": "0" * 64, "path": "/srv/models/m/m.gguf", "id": "m"},
    "serving": {
        "load_mode": "auto", "gpu_layers": 99, "context_size": 512, "parallel_slots": 1, "kv_unified": True,
        "batch_size": 512, "micro_batch_size": 64, "flash_attention": "on", "cache_type_k": "f16",
        "cache_type_v": "f16", "threads": 1, "poll": 0,
    },
    "devices": [{"id": "127.0.0.1:50052", "device": "RPC0", "backend": "RPC", "description": "x"}],
    "placement": [{"id": "127.0.0.1:50052", "layers": 3}], "split_mode": "layer", "environment": {},
    "rpc_endpoints": ["127.0.0.1:50052"],
}  # fmt: skip
SERVER = {
    "llama_server_deployment": "", "llama_server_program": "/usr/bin/true", "llama_server_host": "127.0.0.1",
    "llama_server_port": 8080, "llama_server_api_key": "", "llama_server_alias": "m", "llama_server_cache_ram_mib": 0,
    "llama_server_cors_origins": "localhost", "llama_server_log_verbosity": 4, "llama_server_extra_arguments": [],
    "llama_server_after_units": [], "llama_server_conflicting_units": ["exllama-server.service"],
    "llama_server_supplementary_groups": [], "llama_server_allowed_networks": [],
    "llama_server_load_timeout_seconds": 900,
    "__llama_server_recorded": {"available": True, "deployment": "m-c512", "entry": ENTRY},
    "__llama_server_program": {"rc": 0, "stdout": "/usr/bin/true"},
}
DEVICE = rpc_servers.servers([{"name": "fast", "port": 50052}], "", [], [])[0]
RPC = {
    "item": {"item": DEVICE}, "__llama_rpc_program": "/usr/bin/true", "llama_rpc_cache_gib": 64,
    "llama_rpc_reload_unit": "llama-server.service",
}
LIMITS = {"start_interval_seconds": 600, "start_burst": 10, "stop_seconds": 60}
EXLLAMA = {
    "exllamav2_engine": "v2", "exllamav2_root": "/usr", "exllamav2_model_path": "/srv/models/m",
    "exllamav2_conflicting_units": ["llama-server.service"], "exllamav2_supplementary_groups": [],
    "exllamav2_api_key": "", "__exllamav2_plan": {"path": "/usr"},
    "__exllamav2_server": {
        "local": True, "environment": {}, "networks": ["localhost"], "limits": LIMITS, "nccl": False,
    },
}
ROLES = {
    "llama_server": ("llama-server.service", SERVER),
    "llama_rpc": ("ggml-rpc-server.service", RPC),
    "exllamav2": ("exllama-server.service", EXLLAMA),
}


class Rendered(t.NamedTuple):
    """The text of a unit, or why it was refused."""

    text: str
    refused: str


@pytest.fixture
def render(playbook, tmp_path):
    """Render the unit of a role once per change of its variables, in one play."""

    def _render(role: str, changes: dict[str, dict]) -> dict[str, Rendered]:
        unit, base = ROLES[role]
        folder = pathlib.Path(tempfile.mkdtemp(dir=tmp_path))
        variables = tmp_path / "variables.yml"
        own = ROOT / "roles" / role / "vars/main.yml"
        tasks, template = [], ROOT / "roles" / role / f"templates/{unit}.j2"
        for number, change in enumerate(changes.values()):
            copy = {
                "name": f"case {number}",
                "ansible.builtin.copy": {
                    "content": f"{{{{ lookup('ansible.builtin.template', '{template}') }}}}",
                    "dest": f"{folder}/{number}.service",
                    "mode": "0644",
                },
                "register": f"case_{number}",
                "ignore_errors": True,
                "vars": change,
            }
            tasks += [copy, {
                "ansible.builtin.copy": {
                    "content": f"{{{{ case_{number} | to_json }}}}", "dest": f"{folder}/{number}.json", "mode": "0644",
                },
            }]  # fmt: skip
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": tasks}
        play["vars_files"] = [str(own), str(variables)]
        variables.write_text(json.dumps(base))
        (tmp_path / "files").unlink(missing_ok=True)
        (tmp_path / "files").symlink_to(ROOT / "roles" / role / "files")
        (tmp_path / "play.yml").write_text(json.dumps([play]))
        status, output = playbook(str(tmp_path / "play.yml"))
        assert status == 0, output
        found = {}
        for number, name in enumerate(changes):
            result = json.loads((folder / f"{number}.json").read_text())
            path = folder / f"{number}.service"
            found[name] = Rendered(path.read_text() if path.exists() else "", result.get("msg") or "")
        return found

    return _render


def read_back(text: str) -> dict[str, list[str]]:
    """Return what systemd makes of a unit, by the names of its own dump. An environment may have several lines."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        run = pathlib.Path(folder, "run")
        run.mkdir()
        os.chown(run, 65534, 65534)
        pathlib.Path(folder, "a.service").write_text(text)
        pathlib.Path(folder, "default.target").write_text(TARGET.format("a.service"))
        environment = {
            "SYSTEMD_UNIT_PATH": folder, "XDG_RUNTIME_DIR": str(run), "HOME": str(run), "PATH": os.environ["PATH"],
            "SYSTEMD_LOG_TARGET": "console",
        }
        done = subprocess.run(
            [*NOBODY, str(SYSTEMD), "--test", "--user", "--no-pager"],
            env=environment, capture_output=True, text=True, check=True, timeout=600,
        )  # fmt: skip
    unit = done.stdout.partition("-> Unit a.service:\n")[2].partition("-> Unit ")[0]
    said = [line for line in done.stderr.splitlines() if "a.service" in line and NEWER not in line]
    found: dict[str, list[str]] = {"log": said}
    name = ""
    for line in unit.splitlines():
        key, colon, value = line.strip().partition(": ")
        if line.startswith("\t") and colon:
            name = key
            found.setdefault(name, []).append(value)
        elif not line.startswith("\t") and name:
            found[name][-1] += "\n" + line
    assert found["Unit Load State"] == ["loaded"], text
    return found


needs_systemd = pytest.mark.skipif(
    not (SYSTEMD.exists() and shutil.which("setpriv") and os.getuid() == 0), reason="needs systemd's program, and root"
)


def with_entry(**changes):
    """Return variables whose recorded deployment is changed."""
    return {"__llama_server_recorded": SERVER["__llama_server_recorded"] | {"entry": ENTRY | changes}}


@needs_systemd
def test_values_of_llama_server_arrive_as_they_are(render):
    cases = {
        "arguments": {"llama_server_extra_arguments": ["--chat-template", "a\nUser=root\n\tb", AWKWARD, ";", "-x"]},
        "alias": {"llama_server_alias": AWKWARD},
        "path": with_entry(model=ENTRY["model"] | {"path": "/srv/m odels/100%.gguf"}),
        "environment": with_entry(environment={"X": "a\nUser=root", "Y": AWKWARD, "Z": "a b"}),
    }
    rendered = render("llama_server", cases)
    assert all(f"ConditionPathExists=!{unit_end.WRONG_ANSWERS}\n" in case.text for case in rendered.values())
    found = {name: read_back(case.text) for name, case in rendered.items()}
    command = {name: unit["Command Line"][0] for name, unit in found.items()}
    assert '"a\\nUser=root\\n\\tb"' in command["arguments"] and command["arguments"].endswith('";" -x')
    in_dump = '"a \\"b\\" 100%h \\\\ \\$\\$HOME \\$\\${HOME} ; \'c\' é"'
    assert in_dump in command["arguments"] and in_dump in command["alias"]
    assert ' -m "/srv/m odels/100%.gguf" ' in command["path"]
    assert {"X=a\nUser=root", f"Y={AWKWARD}", "Z=a b"} <= set(found["environment"]["Environment"])
    for unit in found.values():
        # the name that DynamicUser= takes from the unit
        assert unit["User"] == ["a"] and unit["DynamicUser"] == ["yes"] and unit["log"] == []
        assert "Start" not in " ".join(key for key in unit if "ExecStartPre" in key)


def test_what_a_unit_of_llama_server_cannot_hold_is_refused_by_name(render):
    cases = {
        "llama_server_alias": {"llama_server_alias": "m\nExecStartPre=+/bin/touch /pwned"},
        "llama_server_cors_origins": {"llama_server_cors_origins": "localhost\nUser=root"},
        "llama_server_after_units": {"llama_server_after_units": ["a.service\nOnFailure=b.service"]},
        "llama_server_conflicting_units": {"llama_server_conflicting_units": ["a.service b.service"]},
        "llama_server_supplementary_groups": {"llama_server_supplementary_groups": ["video\nUser=root"]},
        "llama_server_extra_arguments": {"llama_server_extra_arguments": ["--x", "a\0b"]},
        "split_tuning_environment": with_entry(environment={"X=1\nUser": "root"}),
        "llama_server_allowed_networks": {"llama_server_allowed_networks": ["10.0.0.0/8\nUser=root"]},
    }
    for name, case in render("llama_server", cases).items():
        assert name in case.refused and case.text == "", (name, case)
        assert "\n" not in case.refused.split("Error")[-1].strip()


@needs_systemd
def test_values_of_rpc_servers_arrive_or_are_refused(render):
    def device(**changes):
        return {"item": {"item": DEVICE | changes}}

    fine = {"environment": device(environment={"X": AWKWARD, "Y": "a\nUser=root"}), "device": device(device="CPU 1")}
    found = {name: read_back(case.text) for name, case in render("llama_rpc", fine).items()}
    assert {f"X={AWKWARD}", "Y=a\nUser=root"} <= set(found["environment"]["Environment"])
    assert found["device"]["Command Line"][0].endswith('--device "CPU 1"')
    assert all(unit["User"] == ["a"] for unit in found.values())
    bad = {
        "host in llama_rpc_devices": device(host="127.0.0.1\nUser=root"),
        "environment in llama_rpc_devices": device(environment={"a b": "1"}),
        "llama_rpc_reload_unit": {"llama_rpc_reload_unit": "a.service; touch /pwned"},
    }
    for name, case in render("llama_rpc", bad).items():
        assert name in case.refused and case.text == "", (name, case)


@needs_systemd
def test_values_of_exllama_arrive_or_are_refused(render):
    server = EXLLAMA["__exllamav2_server"]
    fine = {
        "environment": {"__exllamav2_server": server | {"environment": {"X": AWKWARD}}},
        "model": {"exllamav2_model_path": "/srv/100% of it"},
    }
    found = {name: read_back(case.text) for name, case in render("exllamav2", fine).items()}
    assert f"X={AWKWARD}" in found["environment"]["Environment"]
    assert found["model"]["Description"] == ["ExLlama v2 with TabbyAPI, 100% of it"]
    bad = {
        "exllamav2_model_path": {"exllamav2_model_path": "/srv/a\nOnFailure=b.service"},
        "exllamav2_supplementary_groups": {"exllamav2_supplementary_groups": ["a\nUser=root"]},
    }
    for name, case in render("exllamav2", bad).items():
        assert name in case.refused and case.text == "", (name, case)
