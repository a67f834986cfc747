# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A program that prints what journalctl printed stands in for it."""

from __future__ import annotations

import json
import os
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import (
    allreduce_log,
    load_journal,
    server_log,
)

FIXTURES = sorted((pathlib.Path(__file__).parent / "fixtures" / "llama_server").glob("*.txt"))
LOADED = (FIXTURES[0].parent / "b11312-rpc-20-13.txt").read_text()
UNIT, START, NEXT = "llama-server.service", "a" * 32, "b" * 32
REQUEST = "9.01.234.567 I slot release: id  0 | task 7 | stop processing: n_tokens = 12\n"


@pytest.fixture
def journal(tmp_path):
    """Return a journal: says(text) sets what it holds, load(...) reads it, asked() says how often."""

    class Journal:
        program, kept, calls = tmp_path / "journalctl", tmp_path / "run", tmp_path / "calls"

        def says(self, text, rc=0, more="true"):
            (tmp_path / "text").write_text(text)
            self.program.write_text(f"#!/bin/sh\necho x >> {self.calls}\ncat {tmp_path}/text\n{more}\nexit {rc}\n")
            self.program.chmod(0o755)

        def asked(self):
            return len(self.calls.read_text().split()) if self.calls.exists() else 0

        def load(self, invocation=START, ready=True, pid=0):
            return load_journal.load(str(self.program), UNIT, invocation, ready, str(self.kept), pid)

    return Journal()


@pytest.mark.parametrize("fixture", FIXTURES, ids=lambda path: path.stem)
def test_nothing_after_the_loaded_model_is_about_the_load(journal, fixture):
    text = fixture.read_text()
    journal.says(text + REQUEST * 100)
    assert journal.load() == server_log.parse_load(text)


def test_a_start_is_read_once_and_a_rotated_journal_does_not_matter(journal):
    journal.says(LOADED)
    first = journal.load()
    assert first["complete"]
    journal.says(REQUEST * 1000)
    assert journal.load() == first
    assert journal.asked() == 1


def test_what_nccl_writes_in_the_unit_is_read_with_it(journal, tmp_path, monkeypatch):
    said = tmp_path / "nccl.log"
    said.write_text(
        "box:1:2 [0] NCCL INFO ncclCommInitAll comm 0x5 rank 0 nranks 2 - Init COMPLETE\n"
        "box:1:3 [0] NCCL INFO Channel 00 : 0[0] -> 1[1] via NET/Socket/0\n"
    )
    monkeypatch.setattr(allreduce_log, "NCCL_FILE", str(said))
    journal.says((FIXTURES[0].parent / "b11312-rpc-tensor-3-1.txt").read_text())
    assert journal.load(NEXT)["allreduce"] is None
    # as a process sees it
    found = journal.load(pid=os.getpid())["allreduce"]
    assert found == {"asked": None, "ran": "nccl", "transport": "NET", "fallback": None}
    said.unlink()
    assert journal.load(pid=os.getpid())["allreduce"] == found


def test_the_next_start_is_read_anew(journal):
    journal.says(LOADED)
    journal.load()
    journal.says("error: no such file\n")
    assert not journal.load(NEXT)["complete"]
    assert journal.asked() == 2


def test_a_load_that_goes_on_is_not_kept(journal):
    journal.says("\n".join(LOADED.splitlines()[:80]))
    journal.load(ready=False)
    journal.says(LOADED)
    assert journal.load(ready=False)["complete"] and journal.load()["complete"]
    assert journal.asked() == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1, "invocation_id": "' + START + '", "server": {}}'])
def test_what_was_kept_and_is_damaged_is_read_from_the_journal(journal, text):
    journal.says(LOADED)
    first = journal.load()
    path = pathlib.Path(load_journal.path(UNIT, str(journal.kept)))
    assert json.loads(path.read_text())["invocation_id"] == START
    path.write_text(text)
    assert journal.load() == first
    assert journal.asked() == 2


def test_a_journal_without_an_end_is_read_to_a_limit(journal):
    journal.says(REQUEST, more=f"yes '{REQUEST.strip()}'")
    assert not journal.load()["complete"]
    journal.says("", more="yes | tr -d '\\n'")
    assert not journal.load()["complete"]


def test_a_journal_that_cannot_be_read_is_one_sentence(journal):
    journal.says("", rc=4, more="echo not permitted >&2")
    with pytest.raises(UserError, match=r"llama-server.service cannot be read \(not permitted\): run as root"):
        journal.load()
