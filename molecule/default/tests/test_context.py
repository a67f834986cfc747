"""How much context, and what it costs: in record and report, planned on the tuned host, and tuned a second time."""

from __future__ import annotations

import html
import json
import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import context_table

FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
OTHER = {
    "split_tuning_context_size": 1024,
    "split_tuning_cache_type_k": "q8_0",
    "split_tuning_cache_type_v": "q8_0",
}
AGAIN = "molecule-q8_0-c1024-np1-q8_0-q8_0"


def _record(host):
    return json.loads(host.file(FACT).content_string)


def _served(host):
    record = _record(host)
    return record["active"], record["models"][record["active"]]


def _costs(entry):
    """Return the costs by kind that a tuning has to hand on; nothing where a device seemed to take no time."""
    fit = entry["decision"]["fit"] or {}
    found = [fit[name] for name in ("decode_ms_per_layer", "prefill_ms_per_layer") if fit.get(name)]
    return found if all(min(costs) > 0 for costs in found) else []


def _extra(variables):
    return f"--extra-vars={json.dumps(variables)}"


def test_the_report_shows_the_table_of_the_record(host, controller):
    _name, entry = _served(host)
    contexts = entry["decision"]["contexts"]
    page = (controller.directory / "reports" / "sandbox.html").read_text(encoding="utf-8")
    assert ("How much context, and what does it cost?" in page) == bool(contexts)
    assert entry["decision"]["fit"] is None or contexts is not None or entry["split_mode"] == "tensor"
    for row in contexts["rows"] if contexts else ():
        assert all(html.escape(cell) in page for cell in context_table.cells(row))
        assert (row["layers"] is None) == (row["missing_mib"] is not None)
    asked = [row for row in (contexts["rows"] if contexts else ()) if row["asked"]]
    assert all(row["context_size"] == entry["serving"]["context_size"] for row in asked)
    assert len(asked) == (1 if contexts else 0)


def test_a_plan_says_what_another_profile_would_give_by_what_was_measured(host, controller):
    name, entry = _served(host)
    done = controller.play(_extra(OTHER), playbook="homelab.mixed_gpu.plan")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "context 1024 tokens, 1 slot(s), KV cache q8_0/q8_0" in done.stdout
    assert re.search(r"1024 +q8_0 .* asked for", done.stdout)
    assert re.search(r"changed=0\b", done.stdout.rpartition("PLAY RECAP")[2])
    measured = f"PREDICTION from what {name} measured: " in done.stdout
    assert measured == bool(_costs(entry))
    # decode with its interval, for the best split at least
    assert bool(re.search(r"\d \(\d[\d.]* to \d[\d.]*\).*, best", done.stdout)) == measured


@pytest.fixture(scope="module")
def again(host, controller, eventually):
    """The record before and after a second tuning of the served model, and what that said; the host is as it was."""
    before = _record(host)
    entry = before["models"][before["active"]]
    parts = entry["fingerprint_parts"]
    variables = {
        **OTHER,
        "split_tuning_active": False,
        "split_tuning_model_path": entry["model"]["path"],
        "split_tuning_model_sha256": entry["model"]["sha256"],
        "split_tuning_rpc_endpoints": parts["rpc_endpoints"],
        "split_tuning_fingerprint_extra": parts["extra"],
        # what is decided by the order of the devices alone, and nothing else
        "split_tuning_objective": "decode",
        "split_tuning_modes": ["layer"],
        "split_tuning_micro_batches": [],
        "split_tuning_baseline_max_loads": 1,
    }
    assert host.run(f"cp -a {FACT} {FACT}.kept").rc == 0
    try:
        done = controller.play(_extra(variables), playbook="context.yml")
        assert done.returncode == 0, done.stdout[-4000:]
        yield before, _record(host), done.stdout
    finally:
        host.run(f"mv {FACT}.kept {FACT}")
        host.run(f"rm -f /var/lib/mixed_gpu/baselines/{AGAIN}.json")
        # the lease gave the server back
        eventually(lambda: host.run("curl -s -f http://127.0.0.1:8080/health").rc == 0)


def test_a_second_tuning_leaves_what_is_served(again):
    before, after, _said = again
    assert after["active"] == before["active"]
    assert {name: entry for name, entry in after["models"].items() if name != AGAIN} == before["models"]
    serving = after["models"][AGAIN]["serving"]
    assert (serving["context_size"], serving["cache_type_k"], serving["cache_type_v"]) == (1024, "q8_0", "q8_0")


def test_a_second_tuning_starts_from_the_costs_of_the_first(again):
    before, after, said = again
    first = re.search(r"anchor: measure ([\d/]+(?: and [\d/]+)?), (.*)", said)
    assert first, said[-4000:]
    favoured = f"the best by what layers cost in the tuning of {before['active']}" in first[2]
    assert favoured != ("as far apart as memory allows" in first[2])
    entry = before["models"][before["active"]]
    costs = _costs(entry)
    if not costs:
        assert not favoured
    elif len(costs) == 2 and max(costs[0]) > 1.1 * (1.05 + entry["decision"]["fit"]["error"]) * min(costs[0]):
        # an error of that size does not change which device should have the most layers
        assert favoured
        assert first[1].split(" and ")[0] in {"/".join(map(str, row["layers"])) for row in _table(after)}


def _table(record):
    return record["models"][AGAIN]["decision"]["table"]
