# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The program that starts TabbyAPI: its files, and its keys."""

from __future__ import annotations

import importlib.util
import json
import pathlib
import stat

SCRIPT = pathlib.Path(__file__).resolve().parents[3] / "roles/exllamav2/files/exllama_server.py"
spec = importlib.util.spec_from_file_location("exllama_server", SCRIPT)
exllama_server = importlib.util.module_from_spec(spec)
spec.loader.exec_module(exllama_server)


def test_the_starter_gives_the_server_its_files_and_nobody_else_the_keys(tmp_path):
    for name in ("checkout", "credentials", "run"):
        (tmp_path / name).mkdir()
    (tmp_path / "credentials/config.yml").write_text("{}", encoding="utf-8")
    (tmp_path / "credentials/api_key").write_text('ke"y: #1\n', encoding="utf-8")
    for _start in range(2):
        keys = exllama_server.prepare(tmp_path / "checkout", tmp_path / "credentials", tmp_path / "run")
    tokens = tmp_path / "run/api_tokens.yml"
    written = json.loads(tokens.read_text(encoding="utf-8"))
    assert written["api_key"] == 'ke"y: #1' and keys == list(written.values()) and len(written["admin_key"]) == 64
    assert stat.S_IMODE(tokens.stat().st_mode) == 0o600
    assert (tmp_path / "run/config.yml").read_text(encoding="utf-8") == "{}"
    assert (tmp_path / "run/templates").readlink() == tmp_path / "checkout/templates"


def test_without_a_key_no_key_is_made_up(tmp_path):
    for name in ("credentials", "run"):
        (tmp_path / name).mkdir()
    assert exllama_server.prepare(tmp_path, tmp_path / "credentials", tmp_path / "run") == []
    assert not (tmp_path / "run/api_tokens.yml").exists()
