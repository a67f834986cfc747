# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A build of one host is copied to another: two prefixes, and the archive between them."""

from __future__ import annotations

import io
import os
import pathlib
import shutil
import tarfile

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import job, json_file
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._llama_cpp import build_plan
from ansible_collections.homelab.mixed_gpu.plugins.modules import llama_cpp_build, llama_cpp_copy

SETTINGS = {
    "source": "archive", "archive_url": "https://example.org/llama.cpp.tar", "archive_sha256": "a" * 64,
    "archive_build_number": 7, "archive_build_commit": "abc", "packages": [], "download_dir": "/nonexistent",
    "backends": ["cpu"], "native": False, "cuda_root": "/nonexistent", "cuda_architectures": [], "nccl_root": "",
    "cmake_options": {}, "targets": ["llama-bench"], "extra_builds": [], "quick_compile": False, "web_ui": False,
    "keep_builds": 2, "keep_downloads": 2, "jobs": 1, "ccache_dir": "/nonexistent", "required_flags": {}, "copy": True,
}  # fmt: skip
PROGRAM = "#!/bin/sh\necho 'version: 7 (abc)'\n"


@pytest.fixture
def run(call_module):
    """Call a module in this process; return its result."""

    def _run(module, state, settings, **more):
        paths = {"host_python": "/nonexistent/python", "upgrade_record": "/nonexistent/upgrade.json"}
        name = {"host": "pc2"} if module is llama_cpp_copy else {}
        arguments = {"state": state, "settings": settings, **paths, **name, **more}
        return call_module(module, arguments)

    return _run


@pytest.fixture
def box(tmp_path):
    """Settings of a host that has a build: a program, a library and a link to it."""
    settings = {**SETTINGS, "prefix": str(tmp_path / "box")}
    said = {"c": "cc 14", "cxx": "c++ 14"}
    [build] = build_plan.plan(settings, build_plan.source(settings, {}), said, [])
    made = tmp_path / "box" / build.directory
    (made / "bin").mkdir(parents=True)
    (made / "bin/llama-bench").write_text(PROGRAM)
    (made / "bin/llama-bench").chmod(0o755)
    (made / "bin/libtiny.so.0.1").write_text("a library")
    (made / "bin/libtiny.so").symlink_to("libtiny.so.0.1")
    (made / "build.log").write_text("made\n")
    (made / "build.json").write_text(json_file.to_text({**build.record, "built_at": "2026-01-01T00:00:00Z"}))
    (tmp_path / "box/current").symlink_to(build.directory)
    return settings


@pytest.fixture
def lender(tmp_path):
    """Settings of a host that has nothing yet."""
    return {**SETTINGS, "prefix": str(tmp_path / "lender")}


@pytest.fixture
def offered(run, box, tmp_path):
    """What the box offers, and its archive as the role carries it over, as options of the module."""
    offer = run(llama_cpp_copy, "offered", box)["offer"]
    archive = tmp_path / "archive.tar.gz"
    packed = run(llama_cpp_copy, "packed", box, archive=str(archive))
    assert archive.stat().st_mode & 0o777 == 0o644 and packed["sha256"] == job.sha256(archive)
    return {"offer": offer, "archive": str(archive), "sha256": packed["sha256"]}


def planned(run, lender, offered):
    return run(llama_cpp_copy, "planned", lender, offer=offered["offer"])


def test_the_same_build_is_there_afterwards_in_the_same_place(run, box, lender, offered):
    found = planned(run, lender, offered)
    name = os.readlink(pathlib.Path(box["prefix"], "current"))
    assert found["changed"] and found["plan"] == {
        "taken": True, "changed": True, "missing": True, "missing_packages": [],
        "why": f"llama.cpp is not built on pc2: {name} is copied from pc2.",
        "wanted": {"version": "b7", "builds": {"main": name}},
    }  # fmt: skip
    assert run(llama_cpp_copy, "present", lender, **offered)["changed"]
    there, here = (pathlib.Path(settings["prefix"], "current") for settings in (box, lender))
    assert os.readlink(here) == name
    for file in ("build.json", "build.log", "bin/llama-bench", "bin/libtiny.so.0.1"):
        assert (here / file).read_bytes() == (there / file).read_bytes()
    assert (here / "bin/llama-bench").stat().st_mode & 0o777 == 0o755
    assert os.readlink(here / "bin/libtiny.so") == "libtiny.so.0.1"
    assert not pathlib.Path(offered["archive"]).exists()
    installed = run(llama_cpp_build, "verified", lender)["installed"]
    assert installed["present"] and installed["build"] == 7

    again = planned(run, lender, offered)
    assert not again["changed"] and again["plan"]["taken"] and not again["plan"]["missing"]
    assert not run(llama_cpp_copy, "present", lender, offer=offered["offer"])["changed"]


def test_a_planned_build_is_offered_before_it_is_there_and_taken_without_a_switch(run, box, lender, offered):
    """As an upgrade does: the box builds beside what is in use, and the lenders copy that before any switches."""
    assert run(llama_cpp_copy, "present", lender, **offered)["changed"]
    prefix, before = pathlib.Path(box["prefix"]), os.readlink(pathlib.Path(box["prefix"], "current"))
    newer = {"archive_url": "https://example.org/newer.tar", "archive_build_number": 8}
    box, lender = {**box, **newer}, {**lender, **newer}
    [build] = build_plan.plan(box, build_plan.source(box, {}), {"c": "cc 14", "cxx": "c++ 14"}, [])
    planned_offer = run(llama_cpp_copy, "offered", box, record=build.record)["offer"]
    assert planned_offer["record"] == build.record and planned_offer["packages"] == []
    plan = run(llama_cpp_copy, "planned", lender, offer=planned_offer)["plan"]
    assert plan["taken"] and plan["wanted"] == {"version": "b8", "builds": {"main": build.directory}}

    shutil.copytree(prefix / before, prefix / build.directory, symlinks=True)
    record = {**build.record, "built_at": "2026-01-02T00:00:00Z"}
    (prefix / build.directory / "build.json").write_text(json_file.to_text(record))
    offer = run(llama_cpp_copy, "offered", box, record=build.record)["offer"]
    assert offer["record"] == record
    archive = {"archive": offered["archive"]}
    sha256 = run(llama_cpp_copy, "packed", box, record=offer["record"], **archive)["sha256"]
    assert run(llama_cpp_copy, "built", lender, offer=offer, sha256=sha256, **archive)["changed"]
    there = pathlib.Path(lender["prefix"])
    assert os.readlink(there / "current") == before and (there / build.directory / "bin/llama-bench").exists()
    assert not run(llama_cpp_copy, "built", lender, offer=offer)["changed"]


def test_check_mode_changes_nothing(run, lender, offered):
    assert planned(run, lender, offered)["changed"]
    assert run(llama_cpp_copy, "present", lender, _ansible_check_mode=True, **offered)["changed"]
    assert not pathlib.Path(lender["prefix"]).exists() and pathlib.Path(offered["archive"]).exists()


def test_other_variables_build_and_say_why(run, lender, offered):
    plan = planned(run, {**lender, "targets": ["llama-cli"]}, offered)["plan"]
    assert not plan["taken"] and not plan["changed"]
    assert plan["why"] == "llama.cpp is built on pc2, and not copied: llama_cpp_targets asks for llama-cli, too."


def test_what_is_not_planned_is_not_taken_either(run, lender, offered):
    message = run(llama_cpp_copy, "present", {**lender, "targets": ["llama-cli"]}, **offered)["msg"]
    assert "llama_cpp_targets asks for llama-cli, too" in message
    elsewhere = {**offered["offer"]["record"], "version": "../../elsewhere"}
    changed = {**offered, "offer": {**offered["offer"], "record": elsewhere}}
    assert "names that no build has" in run(llama_cpp_copy, "present", lender, **changed)["msg"]
    assert not pathlib.Path(lender["prefix"]).exists()


def test_a_host_without_a_build_offers_nothing(run, lender):
    found = run(llama_cpp_copy, "offered", lender)
    assert found["offer"] == {}
    assert "no other host has a build to copy" in planned(run, lender, found)["plan"]["why"]


def test_a_host_without_nvcc_offers_and_one_with_cards_takes_no_build_without_cuda(run, box, lender, offered):
    cards = {"backends": ["cuda"], "cuda_architectures": [89]}
    assert run(llama_cpp_copy, "offered", {**box, **cards})["offer"]["runs_on"]["toolkit"] == ""
    plan = planned(run, {**lender, **cards}, offered)["plan"]
    assert plan["why"] == "llama.cpp is built on pc2, and not copied: its variables ask for the backend cuda."


def _nothing_is_there(settings):
    prefix = pathlib.Path(settings["prefix"])
    return [path.name for path in prefix.iterdir()] == [".work"] and not (prefix / "current").is_symlink()


def test_what_was_changed_on_its_way_is_refused(run, lender, offered):
    with pathlib.Path(offered["archive"]).open("ab") as file:
        file.write(b"more")
    message = run(llama_cpp_copy, "present", lender, **offered)["msg"]
    assert "has the SHA-256" in message and offered["sha256"] in message and _nothing_is_there(lender)


def _member(name, content=b"", **fields):
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    return member, io.BytesIO(content)


@pytest.mark.parametrize(
    "evil",
    [
        [_member("../outside", b"x")],
        [_member("bin/..", b"x")],
        [_member("bin/deeper/x", b"x")],
        [_member("/etc/outside", b"x")],
        [_member("bin/link", type=tarfile.SYMTYPE, linkname="../../outside")],
        [_member("bin/link", type=tarfile.SYMTYPE, linkname="..")],
        [_member("bin/link", type=tarfile.LNKTYPE, linkname="/etc/passwd")],
        [_member("bin/pipe", type=tarfile.FIFOTYPE)],
        [_member("bin", type=tarfile.SYMTYPE, linkname="elsewhere")],
        [_member("bin/a", type=tarfile.SYMTYPE, linkname="b"), _member("bin/a", b"x")],
    ],
    ids=lambda members: members[-1][0].name,
)
def test_nothing_of_an_archive_gets_a_place_outside_the_build(run, lender, offered, tmp_path, evil):
    archive = tmp_path / "evil.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for member, content in evil:
            content.seek(0)
            file.addfile(member, content)
    before = sorted(path.name for path in tmp_path.iterdir())
    options = {"offer": offered["offer"], "archive": str(archive), "sha256": job.sha256(archive)}
    message = run(llama_cpp_copy, "present", lender, **options)["msg"]
    assert "do not trust its host" in message and _nothing_is_there(lender)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "lender"])


def test_another_build_than_the_offered_one_is_refused(run, lender, offered):
    other = {**offered["offer"], "record": {**offered["offer"]["record"], "built_at": "2026-01-02T00:00:00Z"}}
    message = run(llama_cpp_copy, "present", lender, **{**offered, "offer": other})["msg"]
    assert "holds another build than the offered one" in message and _nothing_is_there(lender)


def test_a_program_that_does_not_run_here_is_not_used_and_the_cure_is_said(run, box, lender, tmp_path):
    program = pathlib.Path(box["prefix"], "current/bin/llama-bench")
    program.write_text("#!/bin/sh\necho 'error while loading shared libraries: libodd.so'; exit 127\n")
    archive = tmp_path / "archive.tar.gz"
    offer = run(llama_cpp_copy, "offered", box)["offer"]
    sha256 = run(llama_cpp_copy, "packed", box, archive=str(archive))["sha256"]
    message = run(llama_cpp_copy, "present", lender, offer=offer, archive=str(archive), sha256=sha256)["msg"]
    assert "libodd.so" in message and message.endswith("build it on this host, with llama_cpp_copy: false.")
    assert _nothing_is_there(lender)
