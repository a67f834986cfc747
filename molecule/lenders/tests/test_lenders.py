"""A box and a host that lends it a device, after the site playbook: who reaches what, and what is served."""

from __future__ import annotations

import json
import re
import time

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import network_links
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

RECORD = "/var/lib/mixed_gpu/lenders.json"
UNIT = "ggml-rpc-server-lent.service"
PORT = 50052
#: A TCP connection that is closed at once; 124 where the other side does not even answer.
CONNECT = "timeout 5 bash -c '< /dev/tcp/{}/{}'"


@pytest.fixture(scope="module")
def address(host, lender):
    """Return the address on which the lender lends: of its interfaces the one that was chosen for that."""
    (lent,) = json.loads(host.file(RECORD).content_string)["lenders"].values()
    assert lent["address"] in lender.check_output("hostname -I").split()
    return lent["address"]


@pytest.fixture(scope="module")
def endpoint(address):
    return f"{address}:{PORT}"


@pytest.fixture(scope="module")
def entry(host):
    record = json.loads(host.check_output("cat /etc/ansible/facts.d/mixed_gpu.fact"))
    return record["models"][record["active"]]


def test_the_model_is_split_over_both_hosts_and_answers(host, entry, endpoint):
    placed = {place["id"]: place["layers"] for place in entry["placement"]}
    assert set(placed) == {f"127.0.0.1:{PORT}", endpoint} and all(placed.values())
    unit = host.file("/etc/systemd/system/llama-server.service").content_string
    assert endpoint in unit and "After=network-online.target" in unit
    body = '{"prompt": "one two", "n_predict": 4}'
    answer = json.loads(host.check_output(f"{lab.CURL} -d '{body}' http://127.0.0.1:8080/completion"))
    assert answer["tokens_predicted"] == 4


def test_the_lender_has_the_build_of_the_box_and_no_compiler(host, lender):
    record = "cat /opt/llama.cpp/current/build.json"    # with the time at which it was built
    assert lender.check_output(record) == host.check_output(record)
    assert lender.run("command -v c++").rc != 0
    assert host.run("ls /opt/llama.cpp/.work/download-copy*").rc != 0


def test_the_lender_listens_on_its_address_alone(lender, endpoint):
    lines = lender.check_output("ss -Hltnp --cgroup").splitlines()    # of IPv4 and of IPv6
    assert [line.split()[3] for line in lines if "rpc-server" in line] == [endpoint]
    assert [line.split()[3] for line in lines if UNIT in line] == [endpoint]


def test_the_unit_is_hardly_exposed(lender):
    report = lender.check_output(f"systemd-analyze security --no-pager {UNIT}")
    assert float(re.search(rf"exposure level for {UNIT}: ([\d.]+)", report)[1]) <= 1.5, report


def test_a_third_host_and_the_lender_itself_are_refused_by_the_filter(lender, stranger, address):
    # the network is no obstacle: the stranger reaches another port of the lender
    lender.check_output("systemd-run --quiet --unit=open-port python3 -m http.server 8123")
    try:
        lab.eventually(lambda: stranger.run(CONNECT.format(address, 8123)).rc == 0)
    finally:
        lender.run("systemctl stop open-port")
    assert stranger.run(CONNECT.format(address, PORT)).rc == 124
    assert lender.run(CONNECT.format(address, PORT)).rc == 124


def test_the_filter_has_the_address_of_the_box_and_no_other(host, lender, address):
    (route,) = json.loads(host.check_output(f"ip -j route get {address}"))
    box = route["prefsrc"]
    allowed = lender.check_output(f"systemctl show --value -p IPAddressAllow {UNIT}").split()
    assert allowed in ([box], [f"{box}/32"])
    denied = lender.check_output(f"systemctl show --value -p IPAddressDeny {UNIT}").split()
    assert sorted(denied) == ["0.0.0.0/0", "::/0"]


@pytest.mark.parametrize(("options", "status"), [("-p IPAddressDeny=any -p IPAddressAllow=192.0.2.1", 0), ("", 1)])
def test_without_a_filter_nothing_starts(lender, options, status):
    program = "/usr/bin/python3 /opt/mixed_gpu/lib/prepare_rpc_server.py --filtered"
    done = lender.run(f"systemd-run --quiet --pipe --wait -p DynamicUser=yes {options} {program}")
    assert done.rc == status and ("No start: systemd's address filter" in done.stderr) == bool(status)


def test_the_network_was_measured_and_is_said(host, entry, endpoint):
    network = entry["decision"]["network"]
    link = network["links"][endpoint]
    assert link["protocol"].startswith("7.") and link["round_trip_ms"] > 0 and link["to_mb_per_s"] > 0
    assert network["mib"] > 0 and network_links.named(link) in network["why"]
    record = json.loads(host.file(RECORD).content_string)
    (lent,) = record["lenders"].values()
    assert [server["endpoint"] for server in lent["servers"]] == [endpoint] and lent["build"]["build"]


def test_weights_are_kept_in_a_cache_of_the_unit(lender):
    environment = lender.check_output(f"systemctl show --value -p Environment {UNIT}")
    assert "LLAMA_CACHE=/var/cache/mixed-gpu-rpc/lent" in environment
    assert lender.file("/var/cache/private/mixed-gpu-rpc/lent").is_directory
    assert lender.check_output("systemctl is-enabled mixed-gpu-rpc-cache.timer") == "enabled"


def test_the_bound_of_the_cache_is_held_by_a_unit_that_can_do_nothing_else(lender):
    folder = "/var/cache/private/mixed-gpu-rpc/lent"
    unit = lender.check_output("systemctl cat mixed-gpu-rpc-cache.service")
    start = next(line for line in unit.splitlines() if line.startswith("ExecStart="))
    lender.check_output(f"mkdir -p {folder}/rpc && head -c 1048576 /dev/zero > {folder}/rpc/0123456789abcdef")
    override = "/run/systemd/system/mixed-gpu-rpc-cache.service.d"
    none = start.rpartition("--most-gib")[0] + "--most-gib 0.0"
    lender.check_output(f"mkdir -p {override} && printf '[Service]\\nExecStart=\\n{none}\\n' > {override}/bound.conf")
    try:
        lender.check_output("systemctl daemon-reload && systemctl start mixed-gpu-rpc-cache.service")
        assert not lender.file(f"{folder}/rpc/0123456789abcdef").exists
    finally:
        lender.check_output(f"rm -r {override} && systemctl daemon-reload")


def _site(controller, *options):
    """Run the site playbook over all hosts of the scenario."""
    return controller.play(
        f"--inventory={controller.directory}/inventory",
        f"--extra-vars=@{controller.project}/molecule/default/variables.yml",
        f"--extra-vars=@{controller.directory}/variables.yml", *options,
    )  # fmt: skip


def test_an_older_build_of_a_lender_is_named_before_anything_is_loaded(host, controller):
    text = host.file(RECORD).content_string
    record = json.loads(text)
    record["lenders"]["lender"]["build"] = {"build": 9950, "commit": "0123456", "version": "b9950"}
    before = host.check_output("systemctl show --value -p InvocationID llama-server")
    host.check_output(f"cat > {RECORD} <<'EOF'\n{json.dumps(record)}\nEOF")
    try:
        done = _site(controller, "--limit=sandbox")
    finally:
        host.check_output(f"cat > {RECORD} <<'EOF'\n{text}EOF")
    assert done.returncode != 0 and "lender has llama.cpp b9950 (0123456) and sandbox has" in done.stdout
    assert host.check_output("systemctl show --value -p InvocationID llama-server") == before


def test_without_the_lender_in_the_run_nothing_changes(host, controller):
    before = host.check_output("systemctl show --value -p InvocationID llama-server")
    began = time.time()
    done = _site(controller, "--limit=sandbox")
    assert done.returncode == 0 and "changed=0" in done.stdout, done.stdout[-4000:]
    assert host.check_output("systemctl show --value -p InvocationID llama-server") == before
    newest = host.check_output("stat -c %Y /etc/ansible/facts.d/mixed_gpu.fact")
    assert int(newest) < began


def test_the_verification_of_the_rpc_servers_runs_alone_on_all_hosts(controller):
    done = _site(controller, "--tags=llama_rpc_verify")
    assert done.returncode == 0, done.stdout[-4000:]
    assert done.stdout.count("llama_rpc : verify | Assert that every server runs") == 2    # the lender, then its box
    assert re.findall(r"changed=(\d+)", done.stdout) == ["0", "0"], done.stdout[-4000:]
