"""The diagnosis looks at the lender and at the link to it: one that is far from its record is named."""

from __future__ import annotations

import json

from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

FACT = "/etc/ansible/facts.d/mixed_gpu.fact"
#: No cable between two containers carries that much, however quick the machine is.
TIMES = 1000


def _tuned_far_quicker(text: str) -> tuple[str, str]:
    """Return the host's record with the rates of a far quicker link, and the endpoint of the lender."""
    record = json.loads(text)
    ((endpoint, link),) = record["models"][record["active"]]["decision"]["network"]["links"].items()
    link.update({name: TIMES * link[name] for name in ("to_mb_per_s", "from_mb_per_s")})
    return json.dumps(record), endpoint


def test_a_link_that_became_slow_is_named_and_the_server_comes_back(host, controller, tmp_path):
    text = host.check_output(f"cat {FACT}")
    wrong, endpoint = _tuned_far_quicker(text)
    report = tmp_path / "diagnosis.json"
    before = host.check_output("systemctl show --value -p InvocationID llama-server")
    host.check_output(f"cat > {FACT} <<'EOF'\n{wrong}\nEOF")
    try:
        done = controller.play(
            f"--inventory={controller.directory}/inventory", "--extra-vars=diagnose_links=true diagnose_seconds=1",
            f"--extra-vars=diagnose_report={report}", playbook="homelab.mixed_gpu.diagnose",
        )  # fmt: skip
    finally:
        host.check_output(f"cat > {FACT} <<'EOF'\n{text}\nEOF")
    assert done.returncode == 0, done.stdout[-4000:]
    (found,) = json.loads(report.read_text())["hosts"].values()
    (said,) = found["lenders"]
    address = endpoint.rpartition(":")[0]
    assert said.startswith(f"The link to {address} became slow: ") and " when it was tuned; round trip " in said
    kinds = {(one["subject"], one["kind"]) for one in found["findings"]}
    assert ("network", "link") in kinds and ("lender", "seen") not in kinds
    # the server was stopped for the measurement, since an RPC server has one client at a time
    assert host.check_output("systemctl show --value -p InvocationID llama-server") != before
    answer = host.check_output(f"""{lab.CURL} -d '{{"prompt": "one two", "n_predict": 4}}' http://127.0.0.1:8080/completion""")
    assert json.loads(answer)["tokens_predicted"] == 4
