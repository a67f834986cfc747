# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import apt

FIXTURES = pathlib.Path(__file__).parent / "fixtures" / "apt"
SIMULATED = """\
Reading package lists...
The following packages will be REMOVED:
  nvidia-dkms-570
Remv nvidia-dkms-570 [570.1-0ubuntu1]
Inst libnvidia-compute-580:amd64 [580.105.08-1] (580.95.05-1 NVIDIA:1.0/noble [amd64])
Inst nvidia-dkms-580-open (580.95.05-1 NVIDIA:1.0/noble [amd64])
Conf nvidia-dkms-580-open (580.95.05-1 NVIDIA:1.0/noble [amd64])
"""


def test_a_simulation_is_read():
    assert apt.parse_simulation(SIMULATED) == [
        {"action": "remove", "name": "nvidia-dkms-570", "from": "570.1-0ubuntu1", "to": ""},
        {"action": "install", "name": "libnvidia-compute-580", "from": "580.105.08-1", "to": "580.95.05-1"},
        {"action": "install", "name": "nvidia-dkms-580-open", "from": "", "to": "580.95.05-1"},
    ]


def test_policy_lists_what_can_be_fetched_newest_first():
    text = (FIXTURES / "ubuntu2404-nvidia-repository.txt").read_text(encoding="utf-8")
    found = apt.parse_policy(text)["nvidia-dkms-open"]
    assert found["installed"] == "610.43.02-1ubuntu1"
    upstream = [version.split("-")[0] for version in found["versions"]]
    assert upstream == ["615.71.09", "610.43.02", "595.71.05", "595.45.04"]


def test_policy_of_what_is_only_installed_and_of_what_is_unknown():
    installed = (
        "a:\n  Installed: 2\n  Candidate: 2\n  Version table:\n *** 2 100\n        100 /var/lib/dpkg/status\n"
        "     1 500\n        500 file:/x ./ Packages\n"
    )
    assert apt.parse_policy(installed)["a"]["versions"] == ["1"]
    unknown = "a:\n  Installed: (none)\n  Candidate: (none)\n  Version table:\n"
    assert apt.parse_policy(unknown)["a"] == {"installed": "", "candidate": "", "versions": []}


def test_why_apt_refuses_is_one_line():
    out = "The following packages have unmet dependencies:\n a : Depends: b (= 2) but 1 is to be installed\n"
    assert apt.reason(out, "E: Unable to correct problems, you have held broken packages.\n") == (
        "a : Depends: b (= 2) but 1 is to be installed / Unable to correct problems, you have held broken packages."
    )


@pytest.mark.parametrize(
    ("returncode", "err", "words"),
    [
        (0, "", ""),
        (0, "W: Target Packages is configured multiple times\n", ""),
        (0, "W: Failed to fetch http://a/InRelease  Could not connect\nW: Some index files failed\n", "http://a/"),
        (100, "E: The repository 'file:/x ./ InRelease' is not signed.\n", "is not signed"),
        (100, "", "ended with 100"),
    ],
)
def test_a_source_out_of_reach_is_told_from_a_mere_warning(returncode, err, words):
    found = apt.update_problem(returncode, "", err)
    assert words in found and bool(found) is bool(words)


def test_the_lock_of_the_package_lists_is_waited_for(monkeypatch):
    monkeypatch.setattr(apt.time, "sleep", lambda _seconds: None)
    answers = [(100, "", "E: Could not get lock /var/lib/apt/lists/lock.\n"), (0, "", "")]
    assert apt.update_lists(lambda _command: answers.pop(0), 60) == ""
    assert answers == []
    held = apt.update_lists(lambda _command: (100, "", "E: Could not get lock /x\n"), 0)
    assert "Could not get lock" in held


def test_packages_that_apt_does_not_know():
    err = (
        "E: Unable to locate package no-such\nE: Package 'virtual-only' has no installation candidate\n"
        "E: Version '9' for 'coreutils' was not found\nE: Unable to locate package no-such\n"
    )
    assert apt.unknown_packages(err) == ["no-such", "virtual-only", "coreutils"]


def test_a_failure_is_one_message_with_a_cure():
    assert apt.failure(["a"], "no room", False, "") == (
        "The package a could not be installed: no room. Nothing was changed; check the host's network and its apt "
        "sources, then run the play again."
    )
    many = apt.failure([f"p{number}" for number in range(9)], "no room", True, "make room")
    assert "packages p0, p1, p2, p3, p4, p5 and 3 more could" in many
    assert many.endswith("is in /var/log/apt/term.log; make room.")
