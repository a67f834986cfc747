# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import connecting

URL = "http://127.0.0.1:8080"


@pytest.mark.parametrize(
    ("bound_to", "url", "words"),
    [
        ("127.0.0.1", URL, "ssh -N -L 8080:127.0.0.1:8080 box"),
        ("0.0.0.0", URL, "http://box:8080"),
        ("192.168.1.7", "http://192.168.1.7:8081", "http://192.168.1.7:8081 as well"),
        ("::", URL, "http://box:8080"),
    ],
)
def test_other_machines_are_told_their_way(bound_to: str, url: str, words: str) -> None:
    found = connecting.connection({"state": "ready", "api_key_file": "", "bound_to": bound_to}, url, "box", "")
    assert words in found["elsewhere"] and found["url"] == url
    assert found["command"].startswith(f"curl {url}/v1/chat/completions -d ")


def test_a_server_that_does_not_say_where_it_listens() -> None:
    server = {"state": "stopped", "api_key_file": "/etc/x.key"}
    found = connecting.connection(server, URL, "box", "")
    assert found["elsewhere"] == "" and "/etc/x.key | curl -H @- " in found["command"]


def test_a_browser_gets_a_page_where_that_is_proved() -> None:
    server = {"state": "ready", "api_key_file": "/etc/x.key", "chats": {"proved": ["a chat", "the chat page"]}}
    found = connecting.connection(server, URL, "box", "")
    assert found["page"] and "A browser gets the chat page" in found["sentence"]
    assert not connecting.connection({**server, "chats": {"proved": ["a chat"]}}, URL, "box", "")["page"]
    assert not connecting.connection({**server, "chats": None}, URL, "box", "")["page"]


def test_no_server() -> None:
    for server, url in (({"state": "absent"}, URL), (None, URL), ({"state": "ready"}, "")):
        found = connecting.connection(server, url, "box", "")
        assert (found["url"], found["sentence"]) == ("", "No server is installed: run the playbook site.")
