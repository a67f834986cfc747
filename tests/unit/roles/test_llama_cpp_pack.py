# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The entry points pack and pack_end of the role llama_cpp: the folder on the controller does not outlive its use."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_cpp_copy

COLLECTION = pathlib.Path(llama_cpp_copy.__file__).parents[2]
#: In place of the module: an archive of one word, where there is to be one.
PACKED: t.Final = """
import os
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({name: {"type": "raw"} for name in ("state", "settings", "host", "record", "archive")})
os.makedirs(os.path.dirname(module.params["archive"]), exist_ok=True)
if module.params["record"]["packs"]:
    with open(module.params["archive"], "w") as file:
        file.write("packed")
module.exit_json(sha256="of the archive")
"""
PLAY: t.Final = """
- hosts: all
  gather_facts: false
  vars: {llama_cpp_offered: {record: {packs: "{{ packs }}"}}}
  tasks:
    - ansible.builtin.include_role: {name: homelab.mixed_gpu.llama_cpp, tasks_from: pack}
    - ansible.builtin.debug: {msg: "It has {{ lookup('ansible.builtin.file', path) }} in {{ path }}."}
      vars: {path: "{{ llama_cpp_packed.path }}"}
    - ansible.builtin.include_role: {name: homelab.mixed_gpu.llama_cpp, tasks_from: pack_end}
"""


#: A host that is away while the archive is read, and back one task later.
AWAY: t.Final = "{{ 'ssh' if __llama_cpp_folder is defined and __llama_cpp_fetched is undefined else 'local' }}"


@pytest.mark.parametrize(
    ("packs", "connection", "sentence"),
    [
        (True, "local", "It has packed in "),
        (False, "local", "the remote file does not exist"),
        (True, AWAY, "box did not answer while its build was read: run the play again."),
    ],
    ids=["read", "no archive", "away"],
)
def test_no_folder_is_left_also_where_the_archive_cannot_be_read(
    tmp_path: pathlib.Path, packs: bool, connection: str, sentence: str
) -> None:
    collection = tmp_path / "ansible_collections/homelab/mixed_gpu"
    (collection / "plugins/modules").mkdir(parents=True)
    (collection / "plugins/modules/llama_cpp_copy.py").write_text(PACKED)
    (collection / "meta").symlink_to(COLLECTION / "meta")
    (collection / "roles").mkdir()
    (collection / "roles/llama_cpp").symlink_to(COLLECTION / "roles/llama_cpp")
    (tmp_path / "play.yml").write_text(PLAY)
    (tmp_path / "folders").mkdir()
    given = {"packs": packs, "llama_cpp_prefix": str(tmp_path / "prefix"),
             "ansible_connection": connection, "ansible_host": "127.0.0.1", "ansible_port": 1,
             "ansible_python_interpreter": sys.executable}  # fmt: skip
    argv = [sys.executable, "-m", "ansible", "playbook", "-i", "box,", "-e", json.dumps(given), "play.yml"]
    done = subprocess.run(
        argv, cwd=tmp_path,
        env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(tmp_path), "HOME": str(tmp_path),
             "TMPDIR": str(tmp_path / "folders"), "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    said = " ".join(done.stdout.split())
    whole = packs and connection == "local"
    assert (done.returncode == 0) == whole, done.stdout + done.stderr
    assert sentence in said and (f"It has packed in {tmp_path}/folders/" in said) == whole, said
    assert "pack | Create a folder on the controller" in done.stdout
    assert list((tmp_path / "folders").glob("*llama_cpp*")) == [], done.stdout
    assert list((tmp_path / "prefix/.work").iterdir()) == []
