# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the role diagnose makes of its variables, by the real ansible-playbook."""

from __future__ import annotations

import json
import pathlib

import pytest

ROLE = pathlib.Path(__file__).resolve().parents[3] / "roles/diagnose"


@pytest.mark.parametrize(("words", "seconds"), [
    (["-e", "diagnose_seconds=20"], 40),
    (["-e", "diagnose_seconds=20", "-e", "diagnose_load=false"], 0),
    (["-e", json.dumps({"diagnose_seconds": 0.5})], 1),
])  # fmt: skip
def test_lenders_are_watched_while_the_server_works(playbook, tmp_path, words, seconds):
    book, kept = tmp_path / "watch.yml", tmp_path / "seconds"
    book.write_text(json.dumps([{
        "hosts": "localhost", "gather_facts": False,
        "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
        "tasks": [{"ansible.builtin.copy": {"content": "{{ __diagnose_watch_seconds }}", "dest": str(kept)}}],
    }]))  # fmt: skip
    status, output = playbook(str(book), *words)
    assert status == 0, output
    assert float(kept.read_text()) == seconds
