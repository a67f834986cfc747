# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError

DATA = {"schema": 1, "names": ["a"]}


def check(data):
    if "names" not in data:
        raise UserError("it has no names")


FORM = json_state.Form(1, "run the play again", check)


class Module:
    """As much of AnsibleModule as a state file needs."""

    def __init__(self, check_mode=False, diff=False):
        self.check_mode = check_mode
        self._diff = diff
        self.messages = []

    atomic_move = staticmethod(os.replace)

    def set_mode_if_different(self, path, mode, changed):
        if os.stat(path).st_mode & 0o777 == mode:
            return changed
        os.chmod(path, mode)
        return True

    def fail_json(self, msg):
        self.messages.append(msg)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "state" / "names.json"


def state(path, **kwargs):
    return json_state.StateFile(Module(**kwargs), FORM, str(path))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "it holds no JSON"),
        ("{", "it holds no JSON"),
        ("[1]", "it holds a list instead of a dict"),
        ("{}", "its schema is None, and this release reads schema 1"),
        ('{"schema": 2, "names": []}', "its schema is 2"),
        ('{"schema": true, "names": []}', "its schema is True"),
        ('{"schema": 1}', "it has no names"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_a_cure(text, words):
    with pytest.raises(UserError, match=rf"^/x/y cannot be used: {words}.*; move it away \(mv /x/y /x/y.old\) and run"):
        FORM.parse(text, "/x/y")
    with pytest.raises(UserError, match=f"^{words}"):
        FORM.data(text)


def test_a_file_that_does_not_outlive_a_boot_needs_no_schema():
    assert json_state.Form(None, "x").data('{"a": 1}') == {"a": 1}


def test_a_state_is_written_once_and_read_again(path):
    file = state(path)
    with file.locked():
        assert file.read() is None
        assert file.write(DATA)
    assert path.stat().st_mode & 0o777 == 0o644
    again = state(path)
    assert again.read() == DATA
    assert not again.write(dict(DATA))
    path.chmod(0o600)
    assert again.write(dict(DATA)), "a mode that does not let others read is a change"
    assert path.stat().st_mode & 0o777 == 0o644
    assert again.write(None)
    assert not path.exists()


def test_check_mode_tells_the_change_and_makes_none(path):
    file = state(path, check_mode=True, diff=True)
    with file.locked():
        file.read()
        assert file.write(DATA)
    assert not path.parent.exists()
    shown = file.diff()["diff"]
    assert (shown["before_header"], shown["before"], json.loads(shown["after"])) == (str(path), "", DATA)
    assert state(path).diff() == {}


def test_a_second_run_waits_and_gives_up(path, monkeypatch):
    monkeypatch.setattr(json_file, "POLL_SECONDS", 0.01)
    with (
        state(path).locked(),
        pytest.raises(UserError, match=f"{path.parent} has been locked by another run for 0.02 seconds"),
        state(path).locked(0.02),
    ):
        raise AssertionError("two runs hold the lock")
    with state(path).locked(0):
        pass


def test_a_history_keeps_the_newest(tmp_path):
    history = json_state.History(Module(), str(tmp_path / "history"), 2)
    kept = [history.add("a", "2026-11-24T04:35:00Z", {"n": n}) for n in range(4)]
    history.add("b", "2026-11-24T04:35:00Z", {})
    names = [f"a@20261124T043500Z-{count:03d}.json" for count in (2, 3)]
    assert [os.path.basename(path) for path in kept[2:]] == names
    assert sorted(os.listdir(tmp_path / "history")) == [*names, "b@20261124T043500Z-000.json"]
    assert json_state.History(Module(), str(tmp_path / "history"), 0).add("b", "2026-11-25T04:35:00Z", {}) is None
    assert json_state.History(Module(check_mode=True), str(tmp_path / "none"), 2).add("a", "x", {}) is None
    assert not (tmp_path / "none").exists()


def test_failures_are_told_in_one_sentence(path):
    module = Module()
    with json_state.failures_told(module, str(path)):
        raise UserError("it is so")
    with json_state.failures_told(module, str(path)):
        (path / "x").read_text(encoding="utf-8")
    with json_state.failures_told(module, str(path)):
        raise OSError(28, "No space left on device")
    assert module.messages == [
        "it is so.",
        f"{path}/x cannot be read or written (No such file or directory): run as root, and make room there.",
        f"{path} cannot be read or written (No space left on device): run as root, and make room there.",
    ]


def test_history_names_sort_by_age_and_only_the_own_ones_are_pruned():
    names = []
    for now in ("2026-11-24T04:40:00Z", "2026-11-24T04:40:00Z", "2026-11-24T04:41:00Z"):
        names.append(json_state.history_name("d", now, names))
    assert names == sorted(set(names)) and len(names) == 3
    others = ["d-long@20260101T000000Z-000.json", "notes.txt"]
    assert json_state.to_prune(names + others, "d", 1) == names[:2]
    assert json_state.to_prune(names + others, "d", 3) == []
    assert json_state.to_prune(names, "d", 0) == names
