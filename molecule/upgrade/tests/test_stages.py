"""An upgrade that is killed with SIGKILL at each stage, and gone on with or rolled back."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import upgrades as lab

CONTINUE, ROLLBACK = ("--extra-vars=upgrade_on_resume=continue", "--extra-vars=upgrade_on_resume=rollback")


def test_a_killed_upgrade_refuses_another_and_goes_on_to_be_kept(upgrades):
    before = upgrades.links()
    upgrades.kill_at("revalidating", lab.EQUAL)
    other = upgrades.run(component="driver")
    assert other.returncode == 2
    assert "It comes before the driver: finish that first, with -e component=llama_cpp" in lab.said(other), other.stdout
    # without the options of then, what is asked for is what was there before
    plain = upgrades.run()
    assert plain.returncode == 2 and "Asked for now is another build of b11312" in lab.said(plain), plain.stdout
    done = upgrades.run(lab.EQUAL)
    assert done.returncode == 0, done.stdout[-6000:]
    assert "it stopped while the new version was being revalidated" in lab.said(done)
    assert (upgrades.stage(), upgrades.last()["outcome"]) == ("", "kept")
    now = upgrades.links()
    assert now["slow"] != before["slow"] and now["current"] == before["current"]
    assert upgrades.serves(now)
    # the build before is still there, so this builds nothing, and leaves the host as it was found
    back = upgrades.run()
    assert back.returncode == 0, back.stdout[-6000:]
    assert "compile | Start the build" not in back.stdout
    assert upgrades.serves(before)


@pytest.fixture
def target(upgrades):
    """Options for the one of two equal builds that the host does not have in use, and the links that it leads to."""
    variables_say = upgrades.run("--check")
    return [lab.EQUAL] if "Nothing to upgrade" in lab.said(variables_say) else []


@pytest.mark.parametrize("stage", ["installing", "revalidating", "keeping"])
def test_going_on(upgrades, target, stage):
    before = upgrades.links()
    upgrades.kill_at(stage, *target)
    done = upgrades.run(CONTINUE, *target)
    assert done.returncode == 0, done.stdout[-6000:]
    assert (upgrades.stage(), upgrades.last()["outcome"]) == ("", "kept")
    now = upgrades.links()
    assert now["slow"] == upgrades.last()["to"]["builds"]["slow"] != before["slow"]
    assert upgrades.serves(now)
    assert "Nothing to upgrade" in lab.said(upgrades.run(*target))


@pytest.mark.parametrize("stage", ["installing", "revalidating"])
def test_rolling_back(upgrades, target, stage):
    before = upgrades.links()
    upgrades.kill_at(stage, *target)
    # asked for by nobody in particular: what is under way is what counts
    done = upgrades.run(ROLLBACK, component="")
    assert done.returncode == 0, done.stdout[-6000:]
    assert "was given up (a rollback was asked for)" in lab.said(done)
    assert (upgrades.stage(), upgrades.last()["outcome"]) == ("", "rolled_back")
    assert upgrades.serves(before)


def test_what_was_accepted_is_not_rolled_back(upgrades, target):
    upgrades.kill_at("keeping", *target)
    refused = upgrades.run(ROLLBACK)
    assert refused.returncode == 2 and "It was accepted, so there is nothing to roll back" in lab.said(refused)
    assert upgrades.run(*target).returncode == 0
    assert upgrades.last()["outcome"] == "kept"


@pytest.mark.parametrize("on_resume", [CONTINUE, ROLLBACK])
@pytest.mark.parametrize("stage", ["rolling_back", "proving"])
def test_going_back_goes_on_whatever_is_wished(upgrades, stage, on_resume):
    before = upgrades.links()
    upgrades.kill_at(stage, lab.SLOWER)
    done = upgrades.run(on_resume)
    assert done.returncode == 2, done.stdout[-6000:]
    assert "was not accepted (regressed " in lab.said(done) and "as before (" in lab.said(done)
    assert (upgrades.stage(), upgrades.last()["outcome"]) == ("", "rolled_back")
    assert upgrades.serves(before)


def test_a_source_that_cannot_be_had_changes_nothing(upgrades):
    recorded = "cat /var/lib/mixed_gpu/upgrade.json"
    before, written = upgrades.links(), upgrades.host.run(recorded).stdout
    done = upgrades.run("--extra-vars=version=0.0.1", f"--extra-vars=sha256={'0' * 64}")
    assert done.returncode == 2
    assert "llama_cpp_python-0.0.1.tar.gz was not found" in lab.said(done), done.stdout[-4000:]
    assert upgrades.stage() == "" and upgrades.host.run(recorded).stdout == written  # and nothing was measured
    assert upgrades.serves(before)


def test_a_new_version_is_what_everything_runs(host, upgrades, target):
    before = upgrades.links()
    done = upgrades.run("--extra-vars=llama_cpp_sdist_build_number=11313")
    assert done.returncode == 0, done.stdout[-6000:]
    assert "from b11312 to b11313 is done" in lab.said(done)
    now = upgrades.links()
    assert now["current"].startswith("b11313-") and now["slow"].startswith("b11313-")
    assert upgrades.serves(now)
    assert "11313" in host.run("/opt/llama.cpp/current/bin/llama-server --version 2>&1").stdout
    # and back, which is an upgrade like any other, to builds that are still there
    back = upgrades.run(*([] if target else [lab.EQUAL]))
    assert back.returncode == 0, back.stdout[-6000:]
    assert "compile | Start the build" not in back.stdout
    assert upgrades.serves(before)
