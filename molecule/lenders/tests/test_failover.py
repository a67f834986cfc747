"""The lender goes and comes back. Neither host holds the model alone, so the box waits for it, and says so."""

from __future__ import annotations

import json

from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

UNIT = "ggml-rpc-server-lent.service"
ALL = "all lenders answer"


def _said(host, name):
    return host.check_output(f"systemctl show --value -p {name} llama-server")


def _answers(host):
    body = '{"prompt": "one two", "n_predict": 4}'
    done = host.run(f"{lab.CURL} -d '{body}' http://127.0.0.1:8080/completion")
    return done.rc == 0 and json.loads(done.stdout).get("tokens_predicted") == 4


def test_the_server_was_started_with_its_lender(host):
    assert _said(host, "StatusText") == ALL
    watchdog = json.loads(host.check_output("cat /etc/mixed_gpu/watchdog.json"))
    record = json.loads(host.check_output("cat /etc/ansible/facts.d/mixed_gpu.fact"))
    entry = record["models"][record["active"]]
    assert watchdog["lender_placements"] == [[name for name in entry["rpc_endpoints"] if not name.startswith("127.")]]
    (fallback,) = entry["fallbacks"]
    assert fallback["placement"] is None and "the server waits: no context fits" in fallback["why"]


def test_without_the_lender_it_waits_and_goes_on_by_itself(host, lender):
    before = _said(host, "InvocationID")
    lender.check_output(f"systemctl stop {UNIT}")
    try:
        # the watchdog sees that the connection has ended, and no request meets it
        lab.eventually(lambda: _said(host, "StatusText").startswith("waits for "))
        assert _said(host, "ActiveState") == "active" and _said(host, "InvocationID") != before
        restarts = _said(host, "NRestarts")
        told = host.check_output("journalctl --no-pager -o cat -u llama-server")
        assert "nothing fits without the lenders that are missing" in told
        lab.eventually(lambda: "waits for the lender" in host.check_output("journalctl -o cat -t mixed-gpu-notify"))
    finally:
        lender.check_output(f"systemctl start {UNIT}")
    lab.eventually(lambda: _said(host, "StatusText") == ALL)
    lab.eventually(lambda: _answers(host))
    assert _said(host, "NRestarts") == restarts
