# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import chat_record

UNIT = "llama-server.service"
PROVED = {"proved": ["a chat"], "unproved": [], "line": "x", "seconds": 0.4}


def test_what_was_proved_is_of_one_start(tmp_path):
    directory = str(tmp_path / "new")
    assert chat_record.kept(UNIT, directory, "one") is None
    chat_record.keep(UNIT, directory, "one", PROVED)
    kept = chat_record.kept(UNIT, directory, "one")
    assert kept.pop("proved_at").endswith("Z") and kept == PROVED
    assert chat_record.kept(UNIT, directory, "two") is None
    assert chat_record.kept("exllama-server.service", directory, "one") is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1, "invocation_id": "one", "chats": 3}', '{"schema": 2}'])
def test_a_damaged_record_is_none(tmp_path, text):
    with open(chat_record.path(UNIT, str(tmp_path)), "w", encoding="utf-8") as handle:
        handle.write(text)
    assert chat_record.kept(UNIT, str(tmp_path), "one") is None
