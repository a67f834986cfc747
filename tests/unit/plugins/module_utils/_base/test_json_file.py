# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import json
import os
import pathlib
import re
import signal
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file, json_state
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._programs import apply_power_limits

PLUGINS = pathlib.Path(json_file.__file__).resolve().parents[2]

# a writer that stops for ever where C(move) is called; it prints a line before
WRITER = """
import sys, time
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import json_file
def move(_one, _other):
    print("moving", flush=True)
    time.sleep(600)
json_file.write_text(sys.argv[1], "{}", 0o644, move)
"""


@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a":' * 500 + "1" + "}" * 500, "[" * 100_000])
def test_json_that_is_nested_too_deep_is_a_value_error(text):
    with pytest.raises(ValueError, match="nested more than 100 levels deep|Expecting value"):
        json_file.from_text(text)
    with pytest.raises(UserError, match="^/x cannot be used: it holds no JSON .*; move it away"):
        json_state.Form(1, "run the play again").parse(text, "/x")


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999", "9" * 400, "9" * 5000])
def test_a_number_that_json_or_a_float_cannot_hold_is_a_value_error(number):
    with pytest.raises(ValueError, match="holds the number .*, which is none of JSON's"):
        json_file.from_text(f'{{"at": [{number}]}}')


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless").symlink_to("/dev/zero")
    for name in ("pipe", "endless"):
        with pytest.raises(OSError, match=f"it is no file: .*{name}"):
            json_file.read_text(str(tmp_path / name))


def test_json_of_every_other_kind_is_read():
    deep: list = []
    for _level in range(json_file.DEEPEST - 1):
        deep = [deep]
    for data in (None, 1.5, "text", [], {"a": [1, {"b": None}]}, deep):
        assert json_file.from_text(json.dumps(data)) == data
        assert json_file.from_text(json.dumps(data).encode()) == data


def test_settings_of_power_that_are_nested_too_deep_are_one_sentence(tmp_path):
    path = tmp_path / "power.json"
    path.write_text('{"a":' * 100_000 + "1" + "}" * 100_000, encoding="utf-8")
    with pytest.raises(apply_power_limits.PowerError, match="power.json cannot be read .*run the role gpu_power"):
        apply_power_limits.read_settings(str(path))


def test_there_is_one_reader_of_json():
    """Programs that are copied to hosts import nothing of ours and have their own."""
    alone = {"_programs", "_watchdog"}
    files = [path for path in sorted(PLUGINS.rglob("*.py")) if not alone & set(path.parts)]
    reading = re.compile(r"\bjson\.loads?\(")
    others = [str(path.relative_to(PLUGINS)) for path in files if reading.search(path.read_text(encoding="utf-8"))]
    assert others == ["module_utils/_base/json_file.py"]


@pytest.fixture
def calls(monkeypatch):
    """What was written to the disk or renamed, in order: files as "file", directories by name."""
    made: list[str] = []
    fsync, replace = os.fsync, os.replace

    def record_fsync(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        made.append(f"sync {os.path.basename(path) if os.path.isdir(path) else 'file'}")
        fsync(descriptor)

    def record_replace(one, other):
        made.append(f"move to {os.path.basename(other)}")
        replace(one, other)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return made


def test_a_file_and_its_directory_are_on_the_disk_in_this_order(tmp_path, calls):
    path = tmp_path / "one" / "two" / "state.json"
    json_file.write_text(str(path), "{}\n", 0o640, os.replace)
    assert calls == [f"sync {tmp_path.name}", "sync one", "sync file", "move to state.json", "sync two"]
    assert path.read_text(encoding="utf-8") == "{}\n" and path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in path.parent.iterdir()] == ["state.json"]


def test_a_record_of_power_limits_and_its_directory_are_on_the_disk(tmp_path, calls):
    apply_power_limits.write_record(str(tmp_path / "applied.json"), {"schema": 1, "cards": []})
    assert calls == ["sync file", "move to applied.json", f"sync {tmp_path.name}"]


def test_a_link_is_replaced_in_one_step_also_after_a_killed_run(tmp_path, calls):
    (tmp_path / ".new-current").symlink_to("of-a-killed-run")
    for target in ("a", "b"):
        json_file.replace_link(str(tmp_path / "current"), target)
        assert os.readlink(tmp_path / "current") == target
    assert calls == ["move to current", f"sync {tmp_path.name}"] * 2
    assert [entry.name for entry in tmp_path.iterdir()] == ["current"]


def _writer(path):
    """Start a writer, and return it when its temporary file is complete."""
    paths = os.pathsep.join(path for path in sys.path if path)
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )  # fmt: skip
    assert child.stdout is not None and child.stdout.readline() == "moving\n"
    return child


def test_the_next_writer_removes_what_a_killed_one_left_and_leaves_a_living_one_alone(tmp_path):
    killed = _writer(tmp_path / "killed.json")
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    (left,) = tmp_path.iterdir()
    living = _writer(tmp_path / "living.json")
    try:
        assert not left.exists()
        (temporary,) = tmp_path.iterdir()
        # of somebody else, whatever the name says
        (tmp_path / ".new-abcdefgh").mkdir()
        (tmp_path / ".new-12345678").symlink_to("/etc/passwd")
        (tmp_path / ".new-name-42").write_text("", encoding="utf-8")
        json_file.write_text(str(tmp_path / "state.json"), "{}", 0o644, os.replace)
        assert {entry.name for entry in tmp_path.iterdir()} == {
            temporary.name, ".new-abcdefgh", ".new-12345678", ".new-name-42", "state.json",
        }  # fmt: skip
    finally:
        living.kill()
        living.wait()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "state.json"
    path.write_text("old", encoding="utf-8")

    def move(_one, _other):
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        json_file.write_text(str(path), "new", 0o644, move)
    assert path.read_text(encoding="utf-8") == "old" and list(tmp_path.iterdir()) == [path]
