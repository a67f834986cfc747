# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The planner of a revalidation against described hosts: which steps it asks for, and what it makes of them."""

from __future__ import annotations

import copy

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base import unit_end
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._base.steps import Done
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._revalidation import answers, baselines, campaign
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment
from ansible_collections.homelab.mixed_gpu.tests.unit.plugins.module_utils._revalidation.described_pair import (
    DECODE,
    ENTRY,
    FAST,
    GPUS,
    HOST,
    PREFILL,
    SLOW,
    baseline,
    load,
    probe,
    served,
    server,
)

VARIABLES = {
    "lenders": {}, "looks": [], "host": "box",
    "deployment": "", "measure": "auto", "accept": ["ok", "improved"], "tolerance_percent": 3.0,
    "ignore_contention": False, "answers": True, "answers_days": 30, "answers_tokens": 64,
    "answers_text_tokens": 256, "answers_tolerance_percent": 15,
    "min_loads": 2, "max_loads": 6, "reserve_mib": 512, "replace_baseline": False, "for_baseline": False,
    "fingerprint_extra": {}, "llama_cpp": "/opt/llama.cpp/current", "server_url": "http://127.0.0.1:8080",
    "api_key_file": "/key", "exllama_root": "/opt/exllama",
    "exllama_url": "http://127.0.0.1:5000", "exllama_api_key_file": "/exllama.key",
    "served_tests": [{"name": "prompt"}], "busy_seconds": 5,
    "state_dir": "/var/lib/mixed_gpu", "conflicting_units": ["llama-server.service"], "load_timeout_seconds": 1200,
    "lease_seconds": 7200, "lease_wait_seconds": 300, "texts": [], "text_tokens": 192,
}  # fmt: skip
PROBE_MODEL = {"model_path": "/probe.gguf", "serving": {"context_size": 512}, "tests": [DECODE, PREFILL]}
PROBED = {**ENTRY, "device_probe": {**probe(), **PROBE_MODEL}}


DRAFT = {"kind": "draft-simple", "draft": "small", "device": FAST, "n_max": 4}


def counted(accepted, texts="t"):
    """Return the acceptance of 150 drafts of four tokens."""
    return {"texts": texts, "rows": [{"text": "code", "drafted": 600, "accepted": accepted, "drafts": 150}]}


def checked(status="ok", entry=ENTRY, days_ago=0, **changes):
    """Return a check of the answers of the described pair."""
    configuration = {**baselines.configuration(entry, "b1", GPUS, HOST), "model_sha256": "a" * 64}
    return {
        "schema": 1, "status": status, "configuration": answers.subject(configuration, entry),
        "tolerance_percent": 15.0, "sentence": f"these answers are {status}",
        "checked_at": f"2026-11-{25 - days_ago:02d}T09:00:00Z", **changes,
    }  # fmt: skip


class Host:
    """A host that answers every step; C(modules) replaces answers by module, or by the name of the step."""

    def __init__(self, entry=ENTRY, **modules):
        self.entry = entry
        self.asked = []
        self.released = 0
        self.modules = modules

    def run(self, step):
        self.asked.append(step.name)
        answer = self.modules.get(step.name, self.modules.get(step.module))
        if answer is None:
            answer = getattr(self, f"_{step.module}")(step)
        elif callable(answer):
            answer = answer(step)
        return copy.deepcopy(answer)

    def _revalidation_info(self, _step):
        return {
            "why": None, "deployment": "d", "entry": self.entry, "baseline": baseline(), "build": "b1", "gpus": GPUS,
            "answers": checked(entry=self.entry), "wrong_answers": False, "versions": {}, "host": HOST,
            "rpc_protocol": "7.0",
            "model": {"path": "/srv/models/m.gguf", "exists": True, "sha256": "a" * 64},
        }  # fmt: skip

    def _llama_server_info(self, _step):
        return server()

    def _llama_server_busy_info(self, _step):
        return {"busy": False, "why": "no slot is in use"}

    def _llama_server_benchmark(self, _step):
        return {"tests": served()}

    def _draft_acceptance_info(self, _step):
        return {"acceptance": counted(360)}

    def _llama_devices_info(self, _step):
        return {"devices": [{**device, "free_mib": 20000, "budget_mib": None} for device in ENTRY["devices"]]}

    def _answer_check(self, _step):
        return {"answers": checked(entry=self.entry)}

    def _split_benchmark(self, step):
        return {"load": {**load(step.args["load"]["load"]), **step.args["load"]}}


def play(host, check=False, **variables):
    """Return what the campaign results in on a host."""
    given = {f"revalidate_{name}": value for name, value in {**VARIABLES, **variables}.items()}
    planner = campaign.planner(given)
    done = []
    host.leases, host.whys = [], []
    for second in range(60):
        plan = planner.predict(done) if check else planner.plan(done)
        if plan.result is not None or plan.failure is not None:
            return plan
        host.released += plan.release
        host.leases += [plan.lease] if plan.lease else []
        host.whys += [plan.why]
        step = plan.steps[0]
        assert step.name not in [item.step.name for item in done]
        done.append(Done(step, host.run(step), f"2026-11-25T10:00:{second:02d}Z"))
        assert isinstance(planner.line(done[-1]), str)
    raise AssertionError("the campaign does not end")


LOOK = ["host", "server", "use", "served"]
AGAIN = ["server again", "completion again"]


def test_a_host_as_fast_as_before_is_not_measured():
    host = Host()
    result = play(host).result
    assert host.asked == LOOK and not host.leases
    assert (result["changed"], result["deployment"], result["revalidation"]["verdict"]) == (False, "d", "ok")
    assert result["lines"][0] == "Nothing is measured: the serving instance is as fast as in the baseline."
    assert result["lines"][1] == "box: OK, d"
    assert "Repair that first" in result["accepted"]["obstacle"]
    assert result["revalidation"]["at"] == "2026-11-25T10:00:00Z"


def test_a_suspicious_timing_is_measured_under_one_lease_which_is_then_released():
    host = Host(served={"tests": served(decode=1.08)})
    result = play(host).result
    assert host.asked == [*LOOK, "devices", "load 1", "load 2", *AGAIN]
    assert host.released == 1 and len(host.leases) == 3
    assert "as served, decode (generation) takes 8.0 % more time" in host.whys[4]
    assert result["lines"][0] == "box: OK, d"
    assert host.leases[0].options["conflicts"] == ["llama-server.service"]
    assert (result["revalidation"]["verdict"], result["revalidation"]["measured"]) == ("ok", True)


def test_each_device_is_measured_alone_as_the_tuning_did(monkeypatch):
    def loads(devices, _model, tests, _reserve):
        return [{"label": f"{device['device']} alone", "load": 1, "tests": tests} for device in devices]

    def assess(measured, *_rest):
        return {**probe(slow=1.2), "failure": None, "summary": "CUDA1 is slow", "n": len(measured)}

    monkeypatch.setattr(campaign.probe_stage, "loads", loads)
    monkeypatch.setattr(campaign.probe_stage, "assess", assess)
    host = Host(PROBED, gguf_info={"model": {"size_bytes": 1}})
    result = play(host, measure="true").result
    assert host.asked[4:] == [
        "devices", "probe sizes", "probe of CUDA0 alone", "probe of CUDA1 alone", "load 1", "load 2", *AGAIN
    ]  # fmt: skip
    kept = deployment.renew(PROBED, result["accepted"]["renewal"])["device_probe"]
    assert kept["n"] == 2 and kept["model_path"] == "/probe.gguf" and kept["tests"] == [DECODE, PREFILL]


def test_without_the_probe_only_the_explanation_is_missing():
    host = Host(PROBED, gguf_info={"failed": True, "msg": "no such file"})
    result = play(host, measure="true").result
    assert host.asked[4:] == ["devices", "probe sizes", "load 1", "load 2", *AGAIN]
    assert result["revalidation"]["verdict"] == "ok"
    assert result["accepted"]["renewal"]["device_probe"] is None


def test_what_ends_measuring_is_a_finding():
    host = Host(**{"load 2": {"failed": True, "msg": "the lease was lost"}})
    result = play(host, measure="true").result
    assert host.asked[-4:] == ["load 1", "load 2", *AGAIN]
    checks = {check["name"]: check for check in result["revalidation"]["checks"]}
    assert checks["speed"]["verdict"] == "broken" and "the lease was lost" in checks["speed"]["detail"]
    host = Host(llama_devices_info={"failed": True, "msg": "another order"})
    assert "another order" in play(host, measure="true").result["revalidation"]["summary"]


def test_a_server_that_does_not_come_back_is_broken():
    host = Host(**{"server again": server(state="failed", last_lines=["out of memory"])})
    result = play(host, measure="true").result
    assert host.asked[-1] == "server again"
    assert result["revalidation"]["verdict"] == "broken" and "out of memory" in result["revalidation"]["summary"]
    host = Host(**{"completion again": {"failed": True, "msg": "HTTP 500"}})
    assert "HTTP 500" in play(host, measure="true").result["revalidation"]["summary"]


@pytest.mark.parametrize(
    ("variables", "answers", "why"),
    [
        ({"measure": "false"}, {}, "measuring was not asked for"),
        ({}, {"llama_server_busy_info": {"busy": True, "why": "4 requests"}}, "the server is in use (4 requests)"),
    ],
)
def test_why_a_suspicious_host_is_not_measured(variables, answers, why):
    host = Host(served={"tests": served(decode=1.08)}, **answers)
    result = play(host, **variables).result
    assert host.asked == LOOK and why in result["lines"][0]
    assert result["revalidation"]["verdict"] == "inconclusive"


def test_a_server_that_is_down_is_asked_for_no_completion():
    host = Host(llama_server_info=server(state="failed"))
    assert play(host, measure="false").result["revalidation"]["verdict"] == "broken"
    assert host.asked == ["host", "server", "use"]


def test_check_mode_looks_and_asks_nobody():
    host = Host()
    result = play(host, check=True, measure="true").result
    assert host.asked == ["host", "server", "use"] and result["revalidation"]["measured"] is False


def test_a_host_without_a_record_fails_with_the_cure():
    host = Host(revalidation_info={"why": "/etc/x.fact records no deployment: run the site playbook"})
    assert play(host).failure == "/etc/x.fact records no deployment: run the site playbook."


def test_a_wrong_variable_is_named():
    with pytest.raises(ValueError, match="revalidate_max_loads is 'many'"):
        play(Host(), max_loads="many")
    with pytest.raises(ValueError, match="revalidate_measure is 'perhaps'"):
        play(Host(), measure="perhaps")


def test_what_was_measured_becomes_the_baseline_where_that_is_asked_for():
    host = Host()
    new = copy.deepcopy(GPUS)
    new["driver_version"] = "580.105.08"
    seen = {**host._revalidation_info(None), "gpus": new}
    host = Host(revalidation_info=seen)
    result = play(host, replace_baseline="true", fingerprint_extra={"build": 2}).result
    assert [name for name in host.asked if name.startswith("load")] == ["load 1", "load 2", "load 3"]
    accepted = result["accepted"]
    assert accepted["obstacle"] is None and accepted["revalidation"]["accepted"]
    assert accepted["revalidation"]["summary"].startswith("new baseline: ")
    renewed = deployment.renew(ENTRY, accepted["renewal"])
    parts = renewed["fingerprint_parts"]
    assert (parts["driver_version"], parts["llama_cpp"], parts["extra"]) == ("580.105.08", "b1", {"build": 2})
    assert [gpu["id"] for gpu in parts["gpus"]] == [FAST, SLOW]
    names = ("build", "gpus", "host", "loads")
    made = baselines.make(
        "d", renewed, *[accepted[name] for name in names], "accepted", 6, result["revalidation"]["at"]
    )
    assert (made["reason"], made["recorded_at"], len(made["loads"])) == ("accepted", "2026-11-25T10:00:00Z", 3)
    assert accepted["completions"]["tests"] == served() and accepted["server"] == server()["server"]


def test_what_tunes_a_host_again():
    retuned = play(Host()).result["retuned"]
    assert retuned["obstacle"] is None and retuned["model"]["id"] == "m" and retuned["rpc_endpoints"] == []
    assert retuned["revalidation"]["summary"].startswith("tuned again after: ")
    replaced = {**Host()._revalidation_info(None), "model": {"path": "/m", "exists": True, "sha256": "b" * 64}}
    assert "Nothing was tuned: " in play(Host(revalidation_info=replaced)).result["retuned"]["obstacle"]


@pytest.mark.parametrize(
    ("known", "variables", "asked"),
    [
        ({"answers": None}, {}, True),
        ({"answers": checked(days_ago=20)}, {"answers_days": 20}, True),
        ({"answers": checked(days_ago=20)}, {"answers_days": 21}, False),
        ({"wrong_answers": True}, {}, True),
        ({"answers": checked("wrong")}, {}, True),
        ({"answers": checked("unknown")}, {}, True),
        ({"answers": checked("incomparable")}, {}, False),
        ({}, {"answers_tolerance_percent": 20}, True),
        ({"entry": {**ENTRY, "speculation": {"kind": "ngram-simple"}}}, {}, False),
        ({"build": "b2"}, {}, True),
        ({"gpus": {**GPUS, "driver_version": "999"}}, {}, True),
        ({"answers": None}, {"answers": False}, False),
    ],
)
def test_the_answers_are_checked_when_something_changed_or_time_has_passed(known, variables, asked):
    host = Host(answer_check={"answers": checked()})
    told = {**host._revalidation_info(None), **known}
    host.modules["revalidation_info"] = told
    result = play(host, measure="true", **variables).result
    assert host.asked[4:] == ["devices", *(["answers"] if asked else []), "load 1", "load 2", *AGAIN]
    assert result["revalidation"]["verdict"] in ("ok", "improved")


def test_the_mark_is_where_the_unit_looks_whatever_the_state_directory_is():
    told = {**Host()._revalidation_info(None), "answers": None}
    steps = []
    host = Host(revalidation_info=told, answer_check=lambda step: steps.append(step) or {"answers": checked()})
    play(host, measure="true", state_dir="/srv/state")
    assert steps[0].args["wrong_file"] == unit_end.WRONG_ANSWERS
    assert steps[0].args["answers_dir"] == "/srv/state/answers"


def test_wrong_answers_break_a_host_and_nothing_more_is_measured_or_started():
    told = {**Host()._revalidation_info(None), "answers": None}
    host = Host(revalidation_info=told, answer_check={"answers": checked("wrong")})
    result = play(host, measure="true").result
    assert host.asked[4:] == ["devices", "answers"] and host.released == 0
    assert result["revalidation"]["verdict"] == "broken"
    assert "answers: these answers are wrong" in result["revalidation"]["summary"]
    assert "Repair that first" in result["accepted"]["obstacle"]


def test_wrong_answers_of_the_last_check_break_a_host_that_is_not_measured():
    told = {**Host()._revalidation_info(None), "answers": checked("wrong"), "wrong_answers": True}
    assert play(Host(revalidation_info=told), measure="false").result["revalidation"]["verdict"] == "broken"


@pytest.mark.parametrize(("status", "verdict"), [("unknown", "inconclusive"), ("incomparable", "ok"), ("ok", "ok")])
def test_what_could_not_be_compared_is_no_pass(status, verdict):
    told = {**Host()._revalidation_info(None), "answers": checked(status)}
    found = play(Host(revalidation_info=told), measure="false").result["revalidation"]
    assert [one["verdict"] for one in found["checks"] if one["name"] == "answers"] == [verdict]
    assert found["verdict"] == verdict


def test_a_check_of_another_configuration_says_nothing():
    told = {**Host()._revalidation_info(None), "answers": checked("wrong"), "build": "b2"}
    found = play(Host(revalidation_info=told), measure="false").result["revalidation"]
    assert "answers" not in [check["name"] for check in found["checks"]]


def test_a_check_that_fails_ends_measuring():
    told = {**Host()._revalidation_info(None), "answers": None}
    host = Host(revalidation_info=told, answer_check={"failed": True, "msg": "no llama-server"})
    result = play(host, measure="true").result
    assert host.asked[4:] == ["devices", "answers", *AGAIN]
    assert "no llama-server" in result["revalidation"]["summary"]


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        (Host({**ENTRY, "speculation": DRAFT}), True),
        (Host({**ENTRY, "speculation": {**DRAFT, "kind": "ngram-mod"}}), False),
        (Host({**ENTRY, "speculation": DRAFT}, llama_server_busy_info={"busy": True, "why": "2 requests"}), False),
        (Host(), False),
    ],
)
def test_drafted_tokens_are_counted_where_a_model_drafts_and_nobody_else_asks(host, asked):
    play(host, measure="false")
    assert ("acceptance" in host.asked) is asked
    assert "acceptance" not in host.asked or host.asked.index("acceptance") == host.asked.index("served") + 1


def test_fewer_right_tokens_than_in_the_baseline_are_told_and_the_new_baseline_has_them():
    entry = {**ENTRY, "speculation": DRAFT}

    def looked(step):
        known = baselines.make("d", entry, "b1", GPUS, HOST, baseline()["loads"], "tuned", 6)
        whole = baselines.complete(known, baseline()["memory"], served(), None, counted(450))
        return {**Host(entry)._revalidation_info(step), "baseline": whole}

    result = play(Host(entry, revalidation_info=looked), measure="false").result
    assert result["revalidation"]["verdict"] == "regressed"
    found = {check["name"]: check for check in result["revalidation"]["checks"]}
    assert found["acceptance"]["verdict"] == "regressed" and found["decode (generation)"]["verdict"] == "ok"
    assert result["revalidation"]["explanation"]["cause"] == "acceptance"
    accepted = play(Host(entry, revalidation_info=looked), measure="true").result["accepted"]
    assert accepted["obstacle"] is None and accepted["acceptance"] == counted(360)
    failed = Host(entry, revalidation_info=looked, draft_acceptance_info={"failed": True, "msg": "no answer"})
    assert "acceptance" not in {check["name"] for check in play(failed).result["revalidation"]["checks"]}
