"""Models that do not fit their devices, after the site playbook: what was chosen is what serves."""

from __future__ import annotations

import json
import re

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_stage
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import expert_placement
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab


def _entry(host):
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    return fact["models"][fact["active"]]


def _placement(entry):
    layers = [place["layers"] for place in entry["placement"]]
    return expert_placement.from_json(layers, entry["experts_in_ram"])


def _loads(host, entry):
    files = host.run("ls /var/lib/mixed_gpu/measurements/*.json").stdout.split()
    loads = [json.loads(host.file(path).content_string)["load"] for path in files]
    return sorted(
        (load for load in loads if load.get("experts_in_ram") and load["campaign"] == entry["campaign"]),
        key=lambda load: load["load"],
    )


def test_experts_that_do_not_fit_are_in_ram_and_all_layers_on_devices(host):
    entry = _entry(host)
    placement = _placement(entry)
    assert sum(placement.layers) == entry["model"]["block_count"] + 1
    assert placement.any and entry["decision"]["ram_mib"] == -(-entry["experts_in_ram"]["ram_bytes"] // 2**20)
    for device, mib in zip(entry["devices"], entry["decision"]["mib"], strict=True):
        assert 0 < mib <= device["budget_mib"]


def test_the_choice_rests_on_loads_in_the_planned_order(host):
    entry = _entry(host)
    loads = _loads(host, entry)
    purposes = [load["purpose"] for load in loads if load["purpose"] != "baseline"]
    before = [purpose for purpose in purposes if purpose != "confirm"]
    assert purposes[0] == "anchor" and "confirm" in purposes
    succeeded = [load for load in loads if load["purpose"] in before and load["status"] == "ok"]
    assert len(succeeded) <= expert_stage.MOST_BEFORE
    threads = {test.get("threads") for load in loads for test in load["tests"]}
    assert entry["experts_in_ram"]["threads"] in threads
    assert entry["decision"]["loads_used"] == len([load for load in loads if load["purpose"] != "baseline"])


def test_the_unit_serves_the_recorded_placement(host):
    entry = _entry(host)
    unit = host.file("/etc/systemd/system/llama-server.service").content_string
    words = unit[unit.index("ExecStart=") :].split()
    told = {flag: value.strip('"') for flag, value in zip(words, words[1:], strict=False) if flag.startswith("-")}
    placement = _placement(entry)
    assert told["-ot"] == expert_placement.render(placement, "llama_server")
    assert told["-ts"] == ",".join(map(str, placement.layers))
    assert (told["-lm"], told["-t"], told["-tb"]) == ("none", str(placement.threads), str(placement.threads))
    assert told["-ub"] == str(entry["serving"]["micro_batch_size"])
    assert "MemorySwapMax=0" in unit


def _moved(host, tensor):
    """Return the tensors of a pattern that the running server has moved to the CPU."""
    since = host.run("systemctl show -P InvocationID llama-server").stdout.strip()
    # the log holds pieces of tokens, which are no UTF-8
    words = "grep -a 'buffer type overridden'"
    log = host.run(f"journalctl -o cat _SYSTEMD_INVOCATION_ID={since} | {words}").stdout
    return set(re.findall(rf"tensor ({tensor})\.weight .* buffer type overridden to CPU", log))


def test_the_server_moved_the_planned_tensors_and_no_other(host):
    placement = _placement(_entry(host))
    moved = _moved(host, r"blk\.\d+\.ffn_\w+_exps")
    planned = {f"blk.{block}.ffn_{part}_exps" for block in placement.blocks for part in ("up", "gate", "down")}
    if placement.partial:
        planned |= {f"blk.{placement.partial.block}.ffn_{part}_exps" for part in placement.partial.parts}
    # llama.cpp's own placement may move parts of further blocks
    assert moved >= planned if placement.override else moved == planned


def test_the_server_answers(host):
    body = json.dumps({"prompt": "One, two,", "n_predict": 4, "cache_prompt": False, "ignore_eos": True})
    answer = host.run(f"{lab.CURL} --max-time 60 http://127.0.0.1:8080/completion -d %s", body)
    assert json.loads(answer.stdout)["timings"]["predicted_n"] == 4


def test_the_baseline_is_of_the_served_placement(host):
    entry = _entry(host)
    path = host.run("ls /var/lib/mixed_gpu/baselines/*.json").stdout.split()[0]
    baseline = json.loads(host.file(path).content_string)
    assert baseline["loads"]
    for load in baseline["loads"]:
        placed = expert_placement.from_json(load["layers"], load["experts_in_ram"])
        assert placed == _placement(entry)
    assert baseline["memory"] is not None and baseline["served"] is not None


def test_a_revalidation_measures_the_recorded_placement(host, controller):
    run = controller.play(
        "-e", "revalidate_measure=true", "-e", "revalidate_min_loads=2", playbook="homelab.mixed_gpu.revalidate"
    )
    # how fast the machine of the test hosts is just now is not asked here
    assert "revalidate : Verify the verdict" in run.stdout, run.stdout
    entry = _entry(host)
    files = host.run("ls -t /var/lib/mixed_gpu/measurements/*.json").stdout.split()
    loads = [json.loads(host.file(path).content_string) for path in files]
    again = [stored for stored in loads if stored["load"].get("purpose") == "revalidation"]
    assert again and all(stored["load"]["status"] == "ok" for stored in again)
    for stored in again:
        words = stored["command"]
        assert words[words.index("-ot") + 1] == expert_placement.render(_placement(entry), "llama_bench")
        assert words[words.index("-t") + 1] == str(entry["experts_in_ram"]["threads"])


def test_a_model_that_may_not_use_ram_is_refused_with_the_cure(controller):
    run = controller.play("-e", "split_tuning_experts_in_ram=never", "-e", "split_tuning_active=false")
    assert run.returncode != 0
    said = " ".join(run.stdout.split())
    assert "does not fit" in said and "split_tuning_experts_in_ram: auto" in said


@pytest.mark.parametrize("threads", [1])
def test_a_number_of_blocks_and_of_threads_is_kept_to(host, controller, threads):
    chosen = {
        "split_tuning_experts_in_ram": "12", "split_tuning_expert_threads": [threads], "split_tuning_active": False,
        "split_tuning_deployment": "by-hand", "split_tuning_baseline_max_loads": 1,
    }  # fmt: skip
    run = controller.play("-e", json.dumps(chosen))
    assert run.returncode == 0, run.stdout
    fact = json.loads(host.file("/etc/ansible/facts.d/mixed_gpu.fact").content_string)
    placed = _placement(fact["models"]["by-hand"])
    assert len(placed.blocks) == 12 and placed.partial is None and placed.threads == threads
    assert fact["active"] != "by-hand"


def test_a_dense_model_that_does_not_fit_is_served_with_its_feed_forward_part_in_ram(host, controller):
    """Last, because it becomes the active deployment."""
    shape = {"blocks": 16, "embedding_length": 512, "feed_forward_length": 4096, "type": "q8_0"}
    chosen = {
        "llm_models": [{"id": "molecule-dense-q8_0", "generate": shape}],
        "split_tuning_model_id": "molecule-dense-q8_0", "split_tuning_baseline_max_loads": 1,
    }  # fmt: skip
    # the site playbook itself asserts that the server holds what was planned, and nothing else, in RAM
    run = controller.play("-e", json.dumps(chosen))
    assert run.returncode == 0, run.stdout
    entry = _entry(host)
    placement = _placement(entry)
    assert entry["model"]["id"] == "molecule-dense-q8_0" and placement.kind == expert_placement.FFN and placement.any
    assert "every token reads what is in RAM there" in entry["decision"]["why"]
    assert any("the devices alone would hold it with" in note for note in entry["decision"]["advice"])
    unit = host.file("/etc/systemd/system/llama-server.service").content_string
    assert expert_placement.render(placement, "llama_server") in unit and "MemorySwapMax=0" in unit
    moved = _moved(host, r"blk\.\d+\.ffn_\w+")
    planned = {f"blk.{block}.ffn_{part}" for block in placement.blocks for part in ("up", "gate", "down")}
    if placement.partial:
        planned |= {f"blk.{placement.partial.block}.ffn_{part}" for part in placement.partial.parts}
    assert moved == planned
    test_the_server_answers(host)
