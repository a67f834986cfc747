# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""fleet.yml through the real ansible-playbook: boxes as files, which the real module reads."""

from __future__ import annotations

import html.parser
import json
import pathlib
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.fixtures import fleet

Playbook = t.Callable[..., tuple[int, str]]
#: host -> what its box is; all others are tuned and well.
SPECIAL = {
    "box03": "broken", "box07": "driver", "box11": "bare", "box19": "regressed", "box23": "unreachable",
    "box29": "hostile", "box31": "build", "box37": "reboot", "box41": "unread", "box43": "watchdog",
    "box47": "sudo",
}  # fmt: skip
WELL = ("box00", "box01", "box02", "box30", "box49")
BOXES = sorted([*SPECIAL, *WELL])
EVIL = "\x1b[2J\r\nbox99  RTX 5090  well\u202e {{ lookup('pipe', 'touch owned') }} <script>alert(1)</script>" * 900


def make(root: pathlib.Path, kind: str | None) -> dict[str, t.Any]:
    """Write one box and return the variables of its host."""
    host: dict[str, t.Any] = {"ansible_connection": "local", "fleet_root": str(root)}
    if kind == "unreachable":
        ssh = root / "ssh"
        fleet.write(root, "ssh", "#!/bin/sh\necho 'ssh: connect to host: Connection refused' >&2\nexit 255\n")
        ssh.chmod(0o755)
        return {"ansible_connection": "ssh", "ansible_ssh_executable": str(ssh), "ansible_host": "127.0.0.1"}
    if kind == "sudo":
        fleet.write(root, "sudo", "#!/bin/sh\necho 'Sorry, user ops is not allowed to execute that.' >&2\nexit 1\n")
        (root / "sudo").chmod(0o755)
        return {**host, "ansible_become": True, "ansible_become_user": "nobody", "ansible_become_exe": f"{root}/sudo"}
    if kind == "unread":
        return {**host, "python": "/nonexistent/python3"}
    if kind == "bare":
        root.mkdir()
        return host
    changes = {"driver": {"driver": "590.10"}, "build": {"build": "b9999"}}.get(kind or "", {})
    if kind == "hostile":
        changes = {"model": {**fleet.ENTRY["model"], "name": EVIL}}
    fleet.box(root, **changes)
    if kind in ("broken", "regressed"):
        fleet.revalidated(root, kind, "2026-11-29T08:00:00Z", "decode takes 8.3 % more time")
    if kind == "reboot":
        fleet.write(root, "run/reboot-required", "")
    if kind == "watchdog":
        fleet.watched(root, stuck=True)
    return host


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> str:
    """All boxes."""
    folder = tmp_path_factory.mktemp("boxes")
    hosts = {name: make(folder / name, SPECIAL.get(name)) for name in BOXES}
    path = folder / "hosts.yml"
    path.write_text(json.dumps({"mixed_gpu": {"hosts": hosts}}))
    return str(path)


class Cells(html.parser.HTMLParser):
    """The cells of a page, and which tags it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.rows = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.rows += tag == "tr"


def test_all_boxes_in_one_table(playbook: Playbook, inventory: str, tmp_path: pathlib.Path) -> None:
    words = ["--forks", "10", "-e", "fleet_json=fleet.json", "-e", "fleet_page=fleet.html"]
    words += ["-e", "ansible_python_interpreter={{ python | default(ansible_playbook_python) }}"]
    rc, output = playbook("homelab.mixed_gpu.fleet", *words, inventory=inventory)
    assert rc == 0, output
    assert "changed=1" not in output
    report = json.loads((tmp_path / "fleet.json").read_text())
    found = {row["host"]: row["state"] for row in report["hosts"]}
    expected = {
        "box03": "broken", "box07": "attention", "box11": "untuned", "box19": "attention", "box23": "unreachable",
        "box31": "differs", "box37": "attention", "box41": "unread", "box43": "broken",
        "box47": "unread",
    }  # fmt: skip
    assert found == {name: expected.get(name, "ok") for name in BOXES}
    first = [row["host"] for row in report["hosts"]][:10]
    assert first == ["box03", "box43", "box07", "box19", "box37", "box23", "box41", "box47", "box31", "box11"]
    said = {sentence.partition(":")[0]: sentence for sentence in report["attention"]}
    assert list(said) == first[:9]
    assert "decode takes 8.3 % more time" in said["box03"] and "Connection refused" in said["box23"]
    assert "Sorry, user ops is not allowed" in said["box47"]
    assert "590.10" in said["box07"] and "most hosts have b11312" in said["box31"]
    shown = [line for line in output.splitlines() if "box29" in line and "Llama" not in line and "RTX 4090" in line]
    assert len(shown) == 1 and "\x1b" not in shown[0] and "script" not in shown[0]
    assert not (tmp_path / "owned").exists()
    page = (tmp_path / "fleet.html").read_text()
    assert Cells(page).rows == 1 + len(BOXES) and "script" not in Cells(page).tags


def test_a_limit_shows_fewer(playbook: Playbook, inventory: str) -> None:
    rc, output = playbook("homelab.mixed_gpu.fleet", "--limit", "box00,box01,box02", inventory=inventory)
    assert rc == 0 and '"3 hosts: 3 well."' in output, output


def test_nobody_answers(playbook: Playbook, inventory: str) -> None:
    rc, output = playbook("homelab.mixed_gpu.fleet", "--limit", "box23", "--check", inventory=inventory)
    assert rc == 0 and '"1 host: 1 not reached."' in output, output


def test_lenders_are_in_the_table(playbook: Playbook, tmp_path: pathlib.Path) -> None:
    hosts = {"box": make(tmp_path / "box", None), "pc": make(tmp_path / "pc", "bare")}
    fleet.write(tmp_path / "pc", "etc/systemd/system/ggml-rpc-server-gpu.service", "[Unit]\n")
    groups = {"mixed_gpu": {"hosts": {"box": hosts["box"]}}, "mixed_gpu_lenders": {"hosts": {"pc": hosts["pc"]}}}
    (tmp_path / "hosts.yml").write_text(json.dumps(groups))
    rc, output = playbook("homelab.mixed_gpu.fleet", inventory=str(tmp_path / "hosts.yml"))
    assert rc == 0 and '"2 hosts: 2 well."' in output and "lends 1 device" in output, output
