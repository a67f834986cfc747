"""Models on a real host: what is there after plays and hosts that die, full disks, two plays at once, and damage."""

from __future__ import annotations

import json
import os
import re
import signal
import typing as t

import pytest

ORIGIN = "/srv/hub/owner/Model-GGUF/1111111111111111111111111111111111111111/Model-Q8_0.gguf"
MODEL = "/srv/models/model/Model-Q8_0.gguf"
PART = f"{MODEL}.part"
MIB = 1 << 20
# until the hub is told otherwise: slow enough to be caught in the act on any machine
SLOW = {"rate": MIB // 8}
PROGRESS = r"\| Model-Q8_0.gguf: \d+ MiB of \d+ MiB \(\d+ %\), .*/s, .* left"
ONE = "--extra-vars=mixed_gpu_model=model"
# Gives the manifest of a file the times of the file.
RENEW = """
import json, os, pathlib, sys
for file in pathlib.Path("/var/lib/mixed_gpu/models").glob("*.json"):
    manifest, status = json.loads(file.read_text()), os.stat(sys.argv[1])
    if manifest["path"] == sys.argv[1]:
        times = {"mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
        file.write_text(json.dumps(manifest | times))
"""


def words(output: str) -> str:
    """Return the output of a play as one line."""
    return " ".join(output.split())


def changed(output: str) -> int:
    """Return how many tasks of a play changed something."""
    return int(re.search(r"changed=(\d+)", output)[1])


def size(host: t.Any, path: str) -> int:
    """Return the size of a file, 0 where there is none."""
    return int(host.run("stat -c %%s %s || echo 0", path).stdout.split()[-1])


def same(host: t.Any, path: str = MODEL, origin: str = ORIGIN) -> bool:
    """Whether a file is what the hub has."""
    return host.run("cmp %s %s", path, origin).rc == 0


def kill(play: t.Any) -> str:
    """Kill a play with all its processes on the controller and return what it said."""
    if play.poll() is None:
        os.killpg(play.pid, signal.SIGKILL)
    return play.finish()


@pytest.fixture
def gone(host: t.Any) -> None:
    """Remove the model, as if it had never been fetched."""
    assert host.run("rm -rf /srv/models/model /var/lib/mixed_gpu/models/Model-Q8_0.gguf-*.json").rc == 0


def test_both_models_are_there_and_known(host):
    assert same(host)
    folder = "/srv/hub/owner/Model-exl2/2222222222222222222222222222222222222222"
    for name in ("config.json", "output.safetensors"):
        assert same(host, f"/srv/models/folder/{name}", f"{folder}/{name}")
    (record,) = [
        json.loads(host.file(path).content_string)
        for path in host.run("ls /var/lib/mixed_gpu/models/hub/*GGUF*").stdout.split()
    ]
    assert (record["revision"], record["commit"]) == ("main", "1" * 40)
    assert host.run("ls -A /srv/models/model").stdout.split() == ["Model-Q8_0.gguf"]


def test_a_play_that_is_killed_leaves_a_job_that_the_next_play_waits_for(host, controller, eventually, faults, gone):
    faults(SLOW)
    play = controller.start(ONE)
    try:
        eventually(lambda: size(host, PART) > MIB // 2 or play.poll() is not None, 300)
    finally:
        output = kill(play)
    assert not host.file(MODEL).exists, output[-4000:]
    play = controller.start(ONE)
    # it shows how far the other one is, and fetches nothing itself
    play.shows(PROGRESS)
    faults()
    output = play.finish(600)
    assert play.returncode == 0 and re.search(PROGRESS, output) and changed(output) == 0, output[-4000:]
    assert same(host) and host.run("ls -A /srv/models/model").stdout.split() == ["Model-Q8_0.gguf"]


def test_a_reboot_in_mid_download_is_continued(host, controller, eventually, faults, gone):
    faults(SLOW)
    play = controller.start(ONE)
    try:
        eventually(lambda: size(host, PART) > MIB // 2 or play.poll() is not None, 300)
        controller.reboot()
    finally:
        output = kill(play)
    kept = size(host, PART)
    assert kept > MIB // 2 and not host.file(MODEL).exists, output[-4000:]
    faults()
    done = controller.play(ONE, "-v")
    assert done.returncode == 0, done.stdout[-4000:]
    assert re.search(rf'resumed_bytes"?: {kept}\b', done.stdout) and same(host)


def test_two_plays_at_once_fetch_it_once(host, controller, faults, gone):
    faults(SLOW)
    plays = [controller.start(ONE) for _each in range(2)]
    for play in plays:
        play.shows(PROGRESS)
    faults()
    outputs = [play.finish(600) for play in plays]
    assert [play.returncode for play in plays] == [0, 0], outputs[0][-3000:] + outputs[1][-3000:]
    assert all(re.search(PROGRESS, output) for output in outputs)
    assert sorted(changed(output) for output in outputs) == [0, 1] and same(host)


def test_a_damaged_file_is_named_set_aside_and_fetched_again(host, controller):
    host.run("printf damage | dd of=%s conv=notrunc bs=1 seek=100000", MODEL)
    # a failing disk changes no times
    assert host.run("/usr/bin/python3 -c %s %s", RENEW, MODEL).rc == 0
    full = "--extra-vars=llm_models_verify=full"
    found = controller.play(full, "--extra-vars=mixed_gpu_models=verify")
    assert found.returncode == 2 and f"{MODEL} is damaged" in words(found.stdout)
    done = controller.play(full)
    assert done.returncode == 0 and same(host), done.stdout[-4000:]
    assert f"{MODEL} is damaged" in words(done.stdout) and "set aside" in done.stdout
    assert not same(host, f"{MODEL}.corrupt")


def test_a_disk_that_fills_up_and_is_freed(host, controller, eventually, faults):
    host.run("mkdir -p /srv/small && mount -t tmpfs -o size=48m tmpfs /srv/small")
    on_small = (ONE, '--extra-vars={"llm_models_dir": "/srv/small", "llm_models_reserve_mib": 1}')
    part, filler = "/srv/small/model/Model-Q8_0.gguf.part", "/srv/small/filler"
    faults(SLOW)
    play = controller.start(*on_small)
    try:
        eventually(lambda: size(host, part) > MIB // 2 or play.poll() is not None, 300)
        host.run("dd if=/dev/zero of=%s bs=1M", filler)
        output = play.finish(600)
    finally:
        kill(play)
    assert play.returncode == 2 and "the disk is full: free some space" in words(output), output[-4000:]
    assert not host.file("/srv/small/model/Model-Q8_0.gguf").exists
    faults()
    refused = controller.play(*on_small)
    assert refused.returncode == 2, refused.stdout[-4000:]
    assert "/srv/small has 0 KiB free, and folder, model still need" in words(refused.stdout)
    host.run("rm %s", filler)
    done = controller.play(*on_small)
    assert done.returncode == 0 and same(host, "/srv/small/model/Model-Q8_0.gguf"), done.stdout[-4000:]
    host.run("umount /srv/small")


def test_a_gated_model_wants_a_token_which_stays_secret(host, controller, gone):
    host.run("touch /srv/hub/owner/Model-GGUF/gated; mv /var/lib/mixed_gpu/models/hub /srv/hub-records")
    try:
        refused = controller.play(ONE)
        assert refused.returncode == 2 and "owner/Model-GGUF is gated: log in at" in words(refused.stdout)
        done = controller.play(ONE, "--extra-vars=llm_models_hub_token=good", "-vvv", "--diff")
    finally:
        host.run("rm /srv/hub/owner/Model-GGUF/gated")
    assert done.returncode == 0 and same(host), done.stdout[-4000:]
    token = host.file("/etc/mixed_gpu/hub_token")
    assert (token.mode, token.user, token.content_string) == (0o600, "root", "good\n")
    assert not re.search(r"Bearer|\bgood\b(?!\})", done.stdout.replace("llm_models_hub_token=good", ""))


def test_without_a_hub_files_and_records_are_brought_along(host, controller, gone):
    host.run("rm -rf /var/lib/mixed_gpu/models/hub; mkdir -p /srv/stick; cp /srv/hub-records/* /srv/stick")
    host.run("cp %s /srv/stick/under-another-name; systemctl stop hub", ORIGIN)
    try:
        failed = controller.play(ONE)
        assert failed.returncode == 2 and "bring files and records with llm_models_source_dir" in words(failed.stdout)
        done = controller.play(ONE, "--extra-vars=llm_models_source_dir=/srv/stick")
        again = controller.play(ONE)
    finally:
        host.run("systemctl start hub")
    assert done.returncode == 0 and same(host), done.stdout[-4000:]
    assert again.returncode == 0 and changed(again.stdout) == 0


def test_the_list_and_removal(host, controller):
    host.run("mkdir -p /srv/models/older && head -c 5000000 /dev/zero > /srv/models/older/x")
    listed = controller.play("--extra-vars=mixed_gpu_models=list")
    assert listed.returncode == 0 and changed(listed.stdout) == 0, listed.stdout[-4000:]
    for row in (
        "model +complete +28 MiB +28 MiB +owner/Model-GGUF@11111111",
        "older +not in llm_models +5 MiB +- +/srv/models/older",
        "llama_3_3_70b_instruct_q4_k_m +39.6 GiB +80 layers +Llama 3.3 Community License",
    ):  # fmt: skip
        assert re.search(row, listed.stdout), row
    remove = "--extra-vars=mixed_gpu_models=remove"
    refused = controller.play(remove, "--extra-vars=mixed_gpu_model=none")
    assert refused.returncode == 2 and "has no model none: it has folder, model, older" in words(refused.stdout)
    done = controller.play(remove, ONE)
    assert done.returncode == 0 and not host.file("/srv/models/model").exists
    assert host.run("ls /var/lib/mixed_gpu/models/ | grep -c 'Model-Q8_0.*json$'").stdout.strip() == "0"
    assert host.file("/srv/models/folder/config.json").exists and host.file("/srv/models/older/x").exists
