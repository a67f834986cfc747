# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What cards of a box and of a lender draw together, by the tasks of the role llama_server in a real play.

Box and lender are this machine, whose cards are those of the stand-in for NVML: the first is the box's, the second is
lent. The server answers as llama-server does.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import time
import typing as t

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import served_store
from ansible_collections.homelab.mixed_gpu.plugins.modules import lent_power
from ansible_collections.homelab.mixed_gpu.tests import local_server
from ansible_collections.homelab.mixed_gpu.tests.fake_nvml import build
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.modules import test_llama_server_benchmark as benchmark

ROOT: t.Final = pathlib.Path(lent_power.__file__).parents[2]
ENDPOINT: t.Final = "192.168.1.20:50052"
ENTRY: t.Final = {
    "fingerprint": "f", "campaign": "c", "split_mode": "layer",
    "placement": [{"id": benchmark.FAST, "layers": 20}, {"id": ENDPOINT, "layers": 13}],
    "devices": [
        {"device": "CUDA0", "id": benchmark.FAST, "backend": "CUDA"},
        {"device": "RPC0", "id": ENDPOINT, "backend": "RPC"},
    ],
}  # fmt: skip
STORED: t.Final = {
    "schema": served_store.SCHEMA, "configuration": served_store.configuration(ENTRY), "tests": [],
    "power_tokens": 512, "power": {"reason": f"{ENDPOINT} is on another host"},
}  # fmt: skip
CARD: t.Final = {"id": benchmark.SLOW, "name": "NVIDIA GeForce RTX 3090"}
LENDERS: t.Final = {"pc2": {"servers": [{"endpoint": ENDPOINT, "device": "CUDA0", "card": CARD}]}}


class Answers(benchmark.Handler):
    """An answer takes time, as a model does."""

    def do_POST(self) -> None:
        time.sleep(0.3)
        super().do_POST()


@pytest.fixture
def url() -> t.Iterator[str]:
    """Where a server answers."""
    with local_server.serving(Answers, asked=[], key=None, broken=False, raw=None, timings={}) as server:
        yield server.url


def ran(tmp_path: pathlib.Path, url: str, times: int, **of_lender: t.Any) -> str:
    """Run the tasks so many times, with variables of the lender, and return what Ansible showed."""
    (tmp_path / "m.json").write_text(json.dumps(STORED))
    python = {"host_python": sys.executable}
    play = {
        "hosts": "box", "gather_facts": False,
        "module_defaults": {
            "homelab.mixed_gpu.lent_power": {**python, "state_dir": str(tmp_path)},
            "homelab.mixed_gpu.gpu_facts": python,
        },
        "vars": {
            "llama_server_url": url, "__llama_server_key_file": "",
            "__llama_server_recorded": {"deployment": "m", "entry": ENTRY, "lenders": LENDERS},
        },
        "tasks": [
            {"ansible.builtin.include_tasks": str(ROOT / "roles/llama_server/tasks/lent_power.yml")},
        ] * times,
    }  # fmt: skip
    (tmp_path / "play.yml").write_text(yaml.safe_dump([play]))
    here = {
        "ansible_connection": "local", "ansible_python_interpreter": sys.executable,
        "ansible_async_dir": str(tmp_path / "async"),
    }  # fmt: skip
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": {"box": here, "pc2": {**here, **of_lender}}}}))
    text = (build.HERE / "profiles" / "under_load.txt").read_text(encoding="utf-8")
    environment = build.environment(build.build_library(tmp_path), None, text) | {
        "ANSIBLE_COLLECTIONS_PATH": str(ROOT.parents[2]), "HOME": str(tmp_path), "ANSIBLE_CONFIG": "",
        "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }  # fmt: skip
    words = [sys.executable, "-m", "ansible", "playbook", "-i", str(tmp_path / "hosts.json"), "play.yml"]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    return done.stdout


def test_box_and_lender_are_watched_while_the_server_answers(tmp_path: pathlib.Path, url: str) -> None:
    shown = ran(tmp_path, url, 2)
    found = json.loads((tmp_path / "m.json").read_text())
    power = found.pop("power")
    assert power.get("reason") is None, power
    assert [(card["device"], card.get("host")) for card in power["cards"]] == [("CUDA0", None), ("RPC0", "pc2")]
    assert all(card["watts"] > 0 for card in power["cards"])
    assert power["watts"] == pytest.approx(sum(card["watts"] for card in power["cards"]))
    assert power["joules_per_token"] == pytest.approx(power["watts"] / 50, rel=0.01)
    assert found == {name: value for name, value in STORED.items() if name != "power"}
    # what is known is not measured again
    assert shown.count("TASK [lent_power | Record what all cards draw]") == 2
    assert "changed=1 " in shown


@pytest.mark.parametrize(
    ("of_lender", "words"),
    [
        ({"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 1}, "Failed to connect"),
        ({"ansible_python_interpreter": "/bin/false"}, "Module result deserialization failed"),
        ({"ansible_async_dir": "{{ playbook_dir }}/{{ 1000000000 | random }}"}, "could not find job"),
    ],
    ids=["unreachable", "no module runs", "lost job"],
)
def test_why_a_lender_was_not_seen_is_recorded(
    tmp_path: pathlib.Path, url: str, of_lender: dict[str, t.Any], words: str
) -> None:
    shown = ran(tmp_path, url, 1, **of_lender)
    reason = json.loads((tmp_path / "m.json").read_text())["power"]["reason"]
    assert reason.startswith("pc2 was not seen: ") and words in reason, reason + shown[-4000:]
