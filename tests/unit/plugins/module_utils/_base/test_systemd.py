# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import systemd
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError


class Host:
    """A module on a host whose systemctl prints what it is given; None is a host without one."""

    def __init__(self, answer=(0, "", "")):
        self.answer = answer
        self.asked = []

    def get_bin_path(self, _name):
        return None if self.answer is None else "/bin/systemctl"

    def run_command(self, command):
        self.asked.append(command)
        return self.answer


def test_a_unit_is_shown_as_a_dict():
    host = Host((0, "ActiveState=active\nDescription=a=b\n", ""))
    found = systemd.show(host, "x.service", "ActiveState", "Description")
    assert found == {"ActiveState": "active", "Description": "a=b"}
    assert host.asked == [["/bin/systemctl", "show", "-p", "ActiveState,Description", "x.service"]]


@pytest.mark.parametrize(
    ("answer", "words"),
    [(None, "no systemctl"), ((1, "", "Failed to connect to bus"), r"about x.service \(Failed to connect to bus\)")],
)
def test_a_systemd_that_does_not_answer_is_an_error(answer, words):
    with pytest.raises(UserError, match=words):
        systemd.show(Host(answer), "x.service", "ActiveState")


def test_several_units_are_told_apart_and_repeated_values_are_kept():
    text = "Id=a.service\nExecStart=one\nExecStart=two\n\nId=b.service\nActiveState=\n"
    assert systemd.units(text) == [
        {"Id": "a.service", "ExecStart": "one\ntwo"}, {"Id": "b.service", "ActiveState": ""},
    ]
    assert systemd.properties("") == {}


def test_unit_names_get_their_type():
    assert [systemd.unit_name(name) for name in ("llama-server", "a.socket", "b@1.2")] == [
        "llama-server.service", "a.socket", "b@1.2.service",
    ]
