"""The table of all boxes, read on a real host: systemd answers, and nothing changes."""

from __future__ import annotations

import json

from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import deployment


def test_the_fleet_shows_the_host_as_it_is(host, controller, tmp_path):
    done = controller.play(f"--extra-vars=fleet_json={tmp_path}/fleet.json", playbook="homelab.mixed_gpu.fleet")
    assert done.returncode == 0, done.stdout[-4000:]
    assert "changed=0" in done.stdout.rpartition("PLAY RECAP")[2]
    (row,) = json.loads((tmp_path / "fleet.json").read_text())["hosts"]
    record = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    served = record["models"][record["active"]]
    assert (row["host"], row["engine"], row["deployments"]) == ("sandbox", "llama.cpp", len(record["models"]))
    assert row["split"] == ",".join(map(str, deployment.layers(served))) and row["split_mode"] == served["split_mode"]
    # read and understood: it may need a person for what other tests did to it
    assert row["state"] in ("ok", "attention", "broken"), row
    assert not [said for said in row["concerns"] if "systemd" in said], row
