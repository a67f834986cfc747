# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What a retune gives the roles that tune and serve. Some stand in for those, in a collection beside the playbook."""

from __future__ import annotations

import json
import pathlib
import typing as t

ROOT = pathlib.Path(__file__).resolve().parents[3]
SHOWN = "- ansible.builtin.debug: {msg: \"%s\"}\n"
SERVES = SHOWN % "serves after {{ llama_server_after_units }}" + "- set_fact: {llama_server_url: http://box}\n"
MODEL = {"id": "m", "path": "/m.gguf", "sha256": ""}
RETUNED = {"model": MODEL, "rpc_endpoints": ["127.0.0.1:50052"], "fingerprint_extra": {}}


def test_the_server_starts_after_the_rpc_servers(
    playbook: t.Callable[..., tuple[int, str]], tmp_path: pathlib.Path
) -> None:
    collection = tmp_path / "collections/ansible_collections/homelab/mixed_gpu"
    for role, text in (
        ("split_tuning", SHOWN % "tunes {{ split_tuning_rpc_endpoints }}, drafts {{ split_tuning_drafts }}"),
        ("llama_server", SERVES),
        ("server_watchdog", SHOWN % "watches {{ server_watchdog_url }} with {{ server_watchdog_peer_units }}"),
    ):
        (collection / "roles" / role / "tasks").mkdir(parents=True)
        (collection / "roles" / role / "tasks/main.yml").write_text(f"---\n{text}")
    for name in ("roles/llama_rpc", "roles/llm_models", "roles/revalidate", "plugins", "meta"):
        (collection / name).symlink_to(ROOT / name)
    role = {"name": "homelab.mixed_gpu.revalidate", "tasks_from": "retune_llama_cpp"}
    devices = [{"name": "fast", "port": 50052, "program": "/bin/true"}]
    given: dict[str, t.Any] = {"__revalidate_campaign": {"retuned": RETUNED}, "llama_rpc_devices": devices}
    draft = {"path": "/d.gguf", "sha256": "", "draft_for": "m"}
    given |= {"split_tuning_drafts": {"d": draft}, "llm_models_dir": str(tmp_path)}
    play = {"hosts": "box", "gather_facts": False, "tasks": [{"ansible.builtin.include_role": role, "vars": given}]}
    (tmp_path / "play.json").write_text(json.dumps([play]))
    (tmp_path / "hosts.json").write_text(json.dumps({"all": {"hosts": {"box": {"ansible_connection": "local"}}}}))
    rc, output = playbook(str(tmp_path / "play.json"), inventory=str(tmp_path / "hosts.json"))
    assert rc == 0, output
    assert "tunes ['127.0.0.1:50052'], drafts {'d': {'path': '/d.gguf'" in output
    assert "serves after ['ggml-rpc-server-fast.service']" in output
    assert "watches http://box with ['ggml-rpc-server-fast.service']" in output
