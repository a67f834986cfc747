# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The check before a placement is served: when it is made, and what becomes of it."""

from __future__ import annotations

import json
import pathlib

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.errors import UserError
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.steps import Done
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import answers, answers_campaign
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.test_campaign import (
    Host,
    checked,
)

ROOT = pathlib.Path(__file__).resolve().parents[5]
VARIABLES = {
    "program": "/opt/llama.cpp/current/bin/llama-server", "deployment": "", "load_timeout_seconds": 900,
    "conflicting_units": ["exllama-server.service"], "answers": True, "answers_tokens": 64, "answers_text_tokens": 256,
    "answers_tolerance_percent": 15.0,
}  # fmt: skip


def play(told, found=None, check=False, **variables):
    """Return (last plan, steps, leases) of a campaign on a host; C(found) is what answer_check returns."""
    given = {f"llama_server_{name}": value for name, value in {**VARIABLES, **variables}.items()}
    planner = answers_campaign.planner(given)
    done, leases = [], []
    for _turn in range(4):
        plan = planner.predict(done) if check else planner.plan(done)
        if plan.result is not None or plan.failure is not None:
            return plan, [item.step for item in done], leases
        leases += [plan.lease] if plan.lease else []
        step = plan.steps[0]
        done.append(Done(step, told if step.name == "host" else found, "2026-11-25T10:00:00Z"))
        assert isinstance(planner.line(done[-1]), str)
    raise AssertionError("the campaign does not end")


def host(**changes):
    return {**Host()._revalidation_info(None), **changes}


def test_an_unchanged_host_does_not_pay_again():
    plan, steps, leases = play(host())
    assert [step.name for step in steps] == ["host"] and not leases
    assert plan.result["why"] == "Nothing changed since the answers were checked: these answers are ok."
    assert plan.result["changed"] is False


def test_what_a_revalidation_over_lenders_has_checked_counts():
    told = host()
    lenders = {"pc2": {"driver_version": "580.95.05", "cards": []}}
    configuration = {**told["answers"]["configuration"], "lenders": lenders}
    seen = answers.subject(configuration, told["entry"])
    assert [step.name for step in play(host(answers={**told["answers"], "configuration": seen}))[1]] == ["host"]


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"answers": None}, "were not checked yet"),
        ({"build": "b2"}, "build, driver, host or placement changed"),
        ({"host": {"kernel": "6.99", "firmware": {}}}, "build, driver, host or placement changed"),
        ({"wrong_answers": True}, "the last check found wrong answers"),
        ({"answers": checked("unknown")}, "the last check could compare nothing"),
    ],
)
def test_what_changed_is_checked_under_the_lease_before_it_is_served(changes, why):
    told = host(**changes)
    plan, steps, leases = play(told, {"answers": checked()})
    assert [step.module for step in steps] == ["revalidation_info", "answer_check"]
    assert leases[0].options["conflicts"] == ["llama-server.service", "exllama-server.service"]
    assert plan.result["why"] == "The answers were checked: these answers are ok."
    arguments = steps[1].args
    assert arguments["entry"] == told["entry"] and arguments["generated_tokens"] == 64
    assert arguments["wrong_file"] == "/var/lib/mixed_gpu/wrong_answers"
    # recorded with the configuration of the check, it is not made again
    again = host(**{**changes, "answers": checked(configuration=arguments["configuration"]), "wrong_answers": False})
    assert [step.name for step in play(again)[1]] == ["host"]
    given = {f"llama_server_{name}": value for name, value in VARIABLES.items()}
    look = Done(steps[0], told, "2026-11-25T10:00:00Z")
    assert why in answers_campaign.planner(given).plan([look]).why


def test_wrong_answers_end_the_campaign():
    plan, _steps, _leases = play(host(answers=None), {"answers": checked("wrong")})
    assert plan.failure == "BROKEN, not served: these answers are wrong."


def test_what_cannot_be_compared_is_told_and_served():
    plan, _steps, _leases = play(host(answers=None), {"answers": checked("unknown")})
    assert plan.result["answers"]["status"] == "unknown"


@pytest.mark.parametrize("status", ["unknown", "incomparable"])
def test_what_cannot_be_compared_after_wrong_answers_is_not_served_and_has_a_cure(status):
    plan, _steps, _leases = play(host(wrong_answers=True), {"answers": checked(status)})
    assert f"cannot tell (these answers are {status}); remove /var/lib/mixed_gpu/wrong_answers once" in plan.failure


def test_a_check_that_cannot_be_made_is_no_pass():
    plan, _steps, _leases = play(host(answers=None), {"failed": True, "msg": "There is no program x."})
    assert plan.failure == "the answers could not be checked: There is no program x."


def test_the_planner_alone_decides_whether_the_answers_are_checked():
    plan, steps, _leases = play(host(answers=None), answers=False)
    assert (plan.result["why"], steps) == ("The answers are not checked (llama_server_answers).", [])
    tasks = yaml.safe_load((ROOT / "roles/llama_server/tasks/main.yml").read_text())
    asked = next(task for task in tasks if task["ansible.builtin.include_tasks"]["file"] == "answers.yml")
    assert asked["when"] == "__llama_server_known"


def test_where_nothing_is_asked():
    assert play(host(answers=None), check=True)[1] == []
    plan, steps, _leases = play({"why": "nothing was tuned"})
    assert len(steps) == 1 and "nothing was tuned" in plan.result["why"]


def test_a_wrong_variable_is_named():
    with pytest.raises(ValueError, match="llama_server_answers_tokens is 'many'"):
        play(host(), answers_tokens="many")


@pytest.mark.parametrize(
    "damage",
    [
        {"status": "fine"}, {"configuration": None}, {"sentence": None}, {"checked_at": 3}, {"tolerance_percent": "15"},
    ],
)  # fmt: skip
def test_a_damaged_file_is_named_with_the_cure(damage):
    with pytest.raises(UserError, match="run site again"):
        answers.FORM.parse(json.dumps({**checked(), **damage}), "/var/lib/mixed_gpu/answers/d.json")
