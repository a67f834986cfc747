# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What an upgrade does next, wherever it was interrupted."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_stages as stages
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import upgrade_steps as steps
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.interrupted_upgrades import (
    BACK,
    HALF,
    LATER,
    NEW,
    OK,
    OLD,
    OTHER,
    SLOW,
    at,
    ends,
)


def opening(record, component="", version="", on_resume="continue", sha256=""):
    return steps.opening(record, component, version, sha256, on_resume)


def test_a_host_begins_where_nothing_is_under_way():
    opened = opening(stages.empty(), "llama_cpp", "b11400", "rollback")
    assert (opened["component"], opened["asked"]["version"], opened["plan"]) == ("llama_cpp", "b11400", True)
    assert steps.decide(stages.empty(), ends(OLD, NEW), "rollback")["do"] == "begin"


def test_what_is_there_already_is_nothing_to_upgrade():
    step = steps.decide(stages.empty(), ends(OLD, OLD), "continue")
    assert step["do"] == "nothing" and "b11312 is what is asked for" in step["sentence"]
    # the same version in another build is another thing
    other = {**OLD, "builds": {"main": "b11312-ff"}}
    assert steps.decide(stages.empty(), ends(OLD, other), "continue")["do"] == "begin"


def test_nothing_asked_and_nothing_under_way_is_an_error():
    with pytest.raises(UserError, match="-e component=driver"):
        opening(stages.empty())


@pytest.mark.parametrize(
    ("component", "version", "sha256", "way"),
    [
        ("driver", "", "", ""),
        ("driver", "580.105.08", "", ""),
        ("llama_cpp", "", "", ""),
        ("llama_cpp", "b11400", "", "git"),
        ("llama_cpp", "0.3.40", "ab", "sdist"),
    ],
)
def test_which_variables_say_what_to_install(component, version, sha256, way):
    opened = opening(stages.empty(), component, version, sha256=sha256)
    assert (opened["way"], opened["asked"]) == (way, {"version": version, "sha256": sha256})


DRIVER = {"present": "580.95.05-1", "wanted": "580.105.08-1", "foreign": ""}


def test_what_the_roles_plan_is_read():
    assert steps.places("driver", "box", steps.Host({"driver": DRIVER})) == (
        {"version": "580.95.05-1", "builds": {}}, {"version": "580.105.08-1", "builds": {}}
    )  # fmt: skip
    planned = {"llama_cpp": {"present": OLD, "wanted": NEW}}
    assert steps.places("llama_cpp", "box", steps.Host(planned)) == (OLD, NEW)


NOTHING = {"version": "", "builds": {}}


def test_a_lender_is_to_have_what_it_copies_and_else_what_it_builds():
    of_box = {"version": "b11400", "builds": {"main": "b11400-of-the-box"}}
    copied = {"taken": True, "wanted": of_box, "why": "It is copied."}
    built = {"taken": False, "wanted": {}, "why": "llama.cpp is built on pc2, and not copied: its CPU has no avx512f."}
    for wanted in (NEW, NOTHING):
        planned = {"llama_cpp": {"present": OLD, "wanted": wanted}}
        assert steps.places("llama_cpp", "pc2", steps.Host(planned, copy=copied)) == (OLD, of_box)
    with pytest.raises(UserError, match="pc2 lacks the tools .* not copied: its CPU has no avx512f. Run site once"):
        steps.places("llama_cpp", "pc2", steps.Host(planned, copy=built))


@pytest.mark.parametrize(
    ("component", "planned", "words"),
    [
        ("driver", {**DRIVER, "present": ""}, "box has no driver to upgrade"),
        ("driver", {**DRIVER, "foreign": "It is of NVIDIA's installer."}, "installer, so this collection does not"),
        ("llama_cpp", {"present": {"version": "", "builds": {}}, "wanted": NEW}, "box has no llama.cpp to upgrade"),
        ("llama_cpp", {"present": OLD, "wanted": {"version": "package", "builds": {}}}, "llama_cpp_source is package"),
        ("llama_cpp", {"present": OLD, "wanted": {"version": "", "builds": {}}}, "box lacks the tools that building"),
    ],
)
def test_what_could_not_be_gone_back_from_is_refused(component, planned, words):
    with pytest.raises(UserError, match=words):
        steps.places(component, "box", steps.Host({component: planned}))


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
@pytest.mark.parametrize("component", ["", "llama_cpp"])
@pytest.mark.parametrize("version", ["", "b11400"])
@pytest.mark.parametrize("present", [OLD, HALF, NEW])
def test_every_stage_is_gone_on_with_or_rolled_back(stage, on_resume, component, version, present):
    record = at(stage)
    opened = opening(record, component, version, on_resume)
    assert (opened["component"], opened["asked"]["version"]) == ("llama_cpp", "b11400")
    assert stages.STAGES[stage] in opened["sentence"] and LATER in opened["sentence"] or stage == "building"
    backwards = on_resume == "rollback" or stage in BACK
    assert opened["plan"] is not backwards
    known = ends(present, NEW) if opened["plan"] else []
    if stage == "keeping" and on_resume == "rollback":
        with pytest.raises(UserError, match="It was accepted"):
            steps.decide(record, known, on_resume)
        return
    step = steps.decide(record, known, on_resume)
    if backwards:
        assert step["do"] == "restore"
    elif stage == "keeping" and present == NEW:
        assert step["do"] == "measure"
    else:
        assert step["do"] == "install"


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
def test_another_component_is_refused_with_the_cure(stage, on_resume):
    with pytest.raises(UserError) as caught:
        opening(at(stage), "driver", "", on_resume)
    error = str(caught.value)
    assert "The upgrade of llama.cpp from b11312 to b11400" in error and stages.STAGES[stage] in error
    if stage in BACK:
        assert error.endswith("run upgrade with -e component=llama_cpp and without a version to finish that first")
    else:
        assert "finish that first, with -e component=llama_cpp -e version=b11400" in error
        # what was accepted is not gone back from
        assert error.endswith("-e upgrade_on_resume=rollback") == (stage != "keeping")


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
def test_another_version_is_refused_with_the_cure(stage, on_resume):
    record = at(stage)
    if stage in BACK or on_resume == "rollback":
        with pytest.raises(UserError, match="It comes before b11500"):
            opening(record, "llama_cpp", "b11500", on_resume)
        return
    assert opening(record, "llama_cpp", "b11500", on_resume)["plan"]
    with pytest.raises(UserError, match="Asked for now is b11500: .*-e component=llama_cpp -e version=b11400"):
        steps.decide(record, ends(NEW, OTHER), on_resume)


def test_other_variables_than_those_of_then_are_refused():
    record = at("installing", {"version": "", "sha256": ""})
    with pytest.raises(UserError) as caught:
        steps.decide(record, ends(OLD, {**NEW, "builds": {"main": "b11400-ee"}}), "continue")
    assert "another build of b11400 (b11400-ee)" in str(caught.value)
    assert "with the inventory's variables as they were then" in str(caught.value)


def test_the_hash_that_was_asked_for_comes_along():
    record = at("installing", {"version": "0.3.40", "sha256": "ab" * 32})
    opened = opening(record)
    assert (opened["asked"]["sha256"], opened["way"]) == ("ab" * 32, "sdist")
    with pytest.raises(UserError, match=f"-e version=0.3.40 -e sha256={'ab' * 32}"):
        opening(record, "driver")
    assert opening(record, "", "0.3.41")["asked"]["sha256"] == ""


def test_the_verdict_decides_about_the_new_version():
    record, step = steps.judged(at("revalidating"), {**OK, "checks": []}, LATER)
    assert (record["under_way"]["stage"], step["do"]) == ("keeping", "accept")
    record, step = steps.judged(at("revalidating"), SLOW, LATER)
    assert (record["under_way"]["stage"], step["do"]) == ("rolling_back", "restore")
    assert record["under_way"]["verdicts"]["after"] == SLOW


def having(present, failure="", reboot=False):
    """What is known of a host: what it has, None where that was not looked at."""
    planned = {} if present is None else {"llama_cpp": {"present": present, "wanted": NEW}}
    return steps.Host(planned, failure, reboot)


@pytest.mark.parametrize(
    ("stage", "present", "reboot", "after", "do"),
    [
        # llama.cpp that could not be built, and one that does not serve
        ("building", OLD, False, "untouched", None),
        ("installing", OLD, False, "untouched", None),
        ("installing", HALF, False, "rolling_back", "restore"),
        ("installing", NEW, False, "rolling_back", "restore"),
        ("revalidating", OLD, False, "rolling_back", "restore"),
        # a driver: half of its packages may be there
        ("installing", None, False, "rolling_back", "restore"),
        ("installing", None, True, "installing", None),
    ],
)
def test_a_failed_installation_is_gone_back_from_where_anything_was_switched(stage, present, reboot, after, do):
    record, step = steps.failed(at(stage), {"box": having(present, "no room", reboot)}, LATER, 20)
    if after == "untouched":
        assert record["under_way"] is None and record["finished"][-1]["outcome"] == "untouched"
        assert record["finished"][-1]["why"] == "no room"
    else:
        assert record["under_way"]["stage"] == after
    assert step == (None if do is None else {"do": do, "sentence": "no room"})
    if do:
        broken = {"verdict": "broken", "accepted": False, "summary": "no room"}
        assert record["under_way"]["verdicts"]["after"] == broken


@pytest.mark.parametrize(
    ("stage", "box", "pc2", "after"),
    [
        # it does not compile on the lender: nobody has been switched
        ("building", having(OLD), having(OLD, "no compiler"), "untouched"),
        # the same where an earlier run had stopped the server to switch: going back starts it
        ("installing", having(OLD), having(OLD, "no compiler"), "rolling_back"),
        # one host was switched, and the other one could not be: both go back, whichever failed
        ("installing", having(NEW), having(OLD, "no compiler"), "rolling_back"),
        ("installing", having(OLD, "no compiler"), having(NEW), "rolling_back"),
        ("installing", having(NEW), having(NEW, "no compiler"), "rolling_back"),
        # nobody knows what the other one has
        ("building", having(OLD, "no compiler"), having(None), "rolling_back"),
        ("installing", having(NEW), having(NEW, "no compiler", reboot=True), "installing"),
    ],
)
def test_a_host_that_fails_leads_all_hosts_back(stage, box, pc2, after):
    record, step = steps.failed(at(stage, lenders=["pc2"]), {"box": box, "pc2": pc2}, LATER, 20)
    failure = "pc2: no compiler" if pc2.failure else "box: no compiler"
    if after == "untouched":
        assert (record["finished"][-1]["outcome"], record["finished"][-1]["why"], step) == (after, failure, None)
    else:
        assert record["under_way"]["stage"] == after
        assert step == ({"do": "restore", "sentence": failure} if after == "rolling_back" else None)


@pytest.mark.parametrize(
    ("stage", "verdict", "outcome", "well"),
    [
        ("keeping", None, "kept", True),
        ("proving", OK, "rolled_back", False),
        ("proving", SLOW, "broken", False),
    ],
)
def test_the_outcome_follows_from_the_verdict(stage, verdict, outcome, well):
    upgrade = steps.finished(at(stage), verdict, LATER, 20)["finished"][-1]
    assert (upgrade["outcome"], steps.ended_well(upgrade)) == (outcome, well)


def test_a_rollback_that_was_asked_for_ends_well():
    record = stages.advance(stages.advance(at("building"), "rolling_back", LATER), "proving", LATER)
    assert steps.ended_well(steps.finished(record, OK, LATER, 20)["finished"][-1])
    assert not steps.ended_well(steps.finished(record, SLOW, LATER, 20)["finished"][-1])


def test_a_box_and_its_lenders_begin_together_where_one_of_them_lacks_it():
    step = steps.decide(stages.empty(), ends(OLD, NEW, "pc2", "pc3"), "continue")
    assert step["sentence"] == "Upgrading from b11312 to b11400, together with the lenders pc2 and pc3."
    only_lender = [*ends(NEW, NEW), stages.Ends("pc2", OLD, NEW)]
    assert steps.decide(stages.empty(), only_lender, "continue")["do"] == "begin"
    other = stages.Ends("pc2", {**NEW, "builds": {"main": "another build of b11400"}}, NEW)
    assert steps.decide(stages.empty(), [*ends(NEW, NEW), other], "continue")["do"] == "begin"
    both = steps.decide(stages.empty(), ends(NEW, NEW, "pc2"), "continue")
    assert both["do"] == "nothing" and "what this host and the lender pc2 have" in both["sentence"]


@pytest.mark.parametrize("stage", stages.STAGES)
@pytest.mark.parametrize("on_resume", ["continue", "rollback"])
@pytest.mark.parametrize(
    ("begun", "now"), [(["pc2"], []), ([], ["pc2"]), (["pc2"], ["pc3"]), (["pc2"], ["pc2", "pc3"])]
)
def test_an_upgrade_ends_on_the_hosts_on_which_it_began(stage, on_resume, begun, now):
    with pytest.raises(UserError, match="run upgrade over the same hosts") as caught:
        steps.opening(at(stage, lenders=begun), "llama_cpp", "", "", on_resume, now)
    assert ("began without lenders" if not begun else "began with the lender pc2") in str(caught.value)
    assert steps.opening(at(stage, lenders=begun), "llama_cpp", "", "", on_resume, begun)["sentence"]


def test_what_is_kept_is_installed_again_where_a_lender_lost_it():
    record = at("keeping", lenders=["pc2"])
    assert steps.decide(record, ends(NEW, NEW, "pc2"), "continue")["do"] == "measure"
    lost = [*ends(NEW, NEW), stages.Ends("pc2", OLD, NEW)]
    assert steps.decide(record, lost, "continue")["do"] == "install"
    with pytest.raises(UserError, match="Asked for now is b11500"):
        steps.decide(record, [*ends(NEW, NEW), stages.Ends("pc2", NEW, OTHER)], "continue")


def test_where_each_host_goes_is_by_its_name():
    places = steps.places_of(at("installing", lenders=["pc2"]), ["box", "pc2"])
    assert places["former"] == {"box": OLD, "pc2": OLD}
    assert {name: place["builds"] for name, place in places["wanted"].items()} == dict.fromkeys(
        ("box", "pc2"), NEW["builds"]
    )
    assert steps.places_of(stages.empty(), ["box"]) == {"former": {}, "wanted": {}}


@pytest.mark.parametrize(
    ("component", "served", "hosts", "refused"),
    [
        ("llama_cpp", ["10.0.0.7"], {"box": steps.Host()}, True),
        ("llama_cpp", ["10.0.0.7", "10.0.0.8"], {"box": steps.Host(), "pc2": steps.Host(lends_at="10.0.0.7")}, True),
        ("llama_cpp", ["10.0.0.7"], {"box": steps.Host(), "pc2": steps.Host(lends_at="10.0.0.7")}, False),
        ("driver", ["10.0.0.7"], {"box": steps.Host()}, False),
    ],
)
def test_llama_cpp_is_not_upgraded_without_a_lender_that_is_served_over(component, served, hosts, refused):
    if refused:
        with pytest.raises(UserError, match=f"serves over the lender {served[-1]}, and llama.cpp's RPC wants the same"):
            steps.refuse_alone(stages.empty(), component, served, hosts)
    else:
        steps.refuse_alone(stages.empty(), component, served, hosts)
    steps.refuse_alone(at("installing"), component, served, hosts)
