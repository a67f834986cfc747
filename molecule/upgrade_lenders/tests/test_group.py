"""Upgrades of llama.cpp of a box and its lender, which has no compiler: both move, or none does."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab_upgrades

UNIT = "ggml-rpc-server-lent.service"
DROP_IN = f"/run/systemd/system/{UNIT}.d"
LATEST = "cat $(ls -t /var/lib/mixed_gpu/{}/*.json | head -n 1)"


def in_use(version):
    """The beginning of a shell command for a unit: what is in a case, where this version is in use."""
    return f"case $$(readlink /opt/llama.cpp/current) in {version}-*)"


@pytest.fixture
def drop_in(lender):
    """Add lines to the lender's unit, until the test ends."""

    def _write(text):
        lender.check_output(f"mkdir -p {DROP_IN} && cat > {DROP_IN}/test.conf <<'EOF'\n[Service]\n{text}\nEOF")
        lender.check_output("systemctl daemon-reload")

    yield _write
    lender.check_output(f"rm -rf {DROP_IN} && systemctl daemon-reload")


@pytest.fixture
def other_build(group, other):
    """Return the build of the other version, which both hosts have beside the one in use."""
    if not group.host.run(f"ls -d /opt/llama.cpp/{other[0]}-*").stdout:
        for options in (other[1], [] if other[1] else [lab_upgrades.NEWER]):
            done = group.run(*options)
            assert done.returncode == 0, done.stdout[-6000:]
    return group.host.check_output(f"basename /opt/llama.cpp/{other[0]}-*")


def went_back(group, done, before):
    """Check that an upgrade was not accepted, and that all is as before; return what it said."""
    assert done.returncode == 2, done.stdout[-6000:]
    ended = group.last()
    assert (group.stage(), ended["outcome"]) == ("", "rolled_back"), ended
    assert not ended["verdicts"]["after"]["accepted"] and ended["verdicts"]["back"]["accepted"], ended
    assert "in use again on all hosts, as before (" in lab_upgrades.said(done)
    assert group.both_serve(before)
    return lab_upgrades.said(done)


def test_both_move_and_stay_and_the_lender_copies_what_the_box_has_built(group, other):
    version, options = other
    assert group.lender.run("command -v c++").rc != 0
    done = group.run(*options)
    assert done.returncode == 0, done.stdout[-6000:]
    ended, new = group.last(), group.builds()
    assert (group.stage(), ended["outcome"], ended["verdicts"]["after"]["accepted"]) == ("", "kept", True), ended
    assert f"on this host and the lender lender from {ended['from']['version']} to {version} is done" in (
        lab_upgrades.said(done)
    )
    assert new == [ended["to"]["builds"]["main"], ended["lenders"]["lender"]["to"]["builds"]["main"]]
    assert new[0] == new[1] and new[0].startswith(f"{version}-") and group.both_serve(new)
    # the same files, and still no compiler
    record = f"cat /opt/llama.cpp/{new[0]}/build.json"
    assert group.lender.check_output(record) == group.host.check_output(record)
    assert group.lender.run("command -v c++").rc != 0
    # what was measured is of the new build, and so is what is recorded
    key = json.loads(group.host.check_output(record))["key"]
    fact = json.loads(group.host.check_output("cat /etc/ansible/facts.d/mixed_gpu.fact"))
    assert fact["models"][fact["active"]]["fingerprint_parts"]["llama_cpp"] == key
    assert key in group.host.check_output(LATEST.format("revalidations"))
    assert key in group.host.check_output(LATEST.format("baselines"))
    lenders = json.loads(group.host.check_output("cat /var/lib/mixed_gpu/lenders.json"))["lenders"]
    assert lenders["lender"]["build"]["version"] == version
    assert "Nothing to upgrade" in lab_upgrades.said(group.run(*options))


def test_site_tunes_nothing_again_and_leaves_the_builds_and_the_lender(group):
    options = [] if group.builds()[0].startswith(f"b{lab_upgrades.PINNED}-") else [lab_upgrades.NEWER]
    recorded = "cat /etc/ansible/facts.d/mixed_gpu.fact"
    before, builds = group.host.check_output(recorded), group.builds()
    done = group.site(*options)
    assert done.returncode == 0, done.stdout[-6000:]
    assert group.host.check_output(recorded) == before and group.both_serve(builds)
    assert re.search(r"lender +: ok=\d+ +changed=0 ", done.stdout), done.stdout[-2000:]


def test_where_the_new_version_cannot_be_measured_both_go_back(group, other, other_build, unmeasurable):
    before = group.builds()
    with unmeasurable(other_build):
        done = group.run(*other[1])
    said = went_back(group, done, before)
    assert f"{other[0]} was not accepted (broken" in said, said[-2000:]


def test_a_lender_whose_server_does_not_start_brings_both_back(group, other, drop_in):
    version, options = other
    before = group.builds()
    drop_in(f"ExecStartPre=/bin/sh -c '{in_use(version)} exit 1;; esac'")
    said = went_back(group, group.run(*options), before)
    assert f"{version} was not accepted (broken: lender: " in said, said[-2000:]


def test_a_lender_that_can_neither_copy_nor_build_is_refused_and_says_why(group, other, tmp_path):
    before = group.host.check_output(lab_upgrades.FOLDERS)
    inventory, variables = tmp_path / "lender.yml", {"llama_cpp_cmake_options": {"GGML_LLAMAFILE": "OFF"}}
    inventory.write_text(json.dumps({"mixed_gpu_lenders": {"hosts": {"lender": variables}}}))
    done = group.run(*other[1], f"--inventory={inventory}")
    assert done.returncode == 2, done.stdout[-4000:]
    said = lab_upgrades.said(done)
    assert "lender lacks the tools that building llama.cpp takes" in said, said[-2000:]
    assert "not copied: its variables ask for another value of GGML_LLAMAFILE" in said, said[-2000:]
    assert group.host.check_output(lab_upgrades.FOLDERS) == before
