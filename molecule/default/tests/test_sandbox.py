"""What measures and asks runs in the sandbox of the units that serve, and what builds in one without a network."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

EVIL = "/opt/evil/llama-bench"
#: says who it is, and tries what it must not
SCRIPT = """#!/bin/sh
id -u
touch /etc/owned /var/lib/mixed_gpu/owned /srv/models/owned
python3 -c 'import os, socket; socket.create_connection((os.environ["OWN"], 8188), 2)' && echo CONNECTED >&2
ls /dev/kmsg
cat /etc/shadow
setsid sleep 987654 &
exit 1
"""


@pytest.fixture
def evil(host):
    """A llama-bench that is not to be trusted."""
    host.run("mkdir -p /opt/evil; printf %s %s > %s; chmod 755 %s", "%s", SCRIPT, EVIL, EVIL)
    assert host.run("systemd-run --collect --unit=evil-listener python3 -m http.server 8188").rc == 0
    yield EVIL
    host.run("systemctl stop evil-listener; rm -r /opt/evil; rm -f /etc/owned")


def _module(controller, name, arguments):
    command = [
        "ansible", f"--inventory={controller.project}/inventories/sandbox", "mixed_gpu", "-m",
        f"homelab.mixed_gpu.{name}", "-a", json.dumps(arguments),
    ]  # fmt: skip
    environment = {**os.environ, "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    # a failure is shown twice: in an error with the task, and as the result
    return json.loads(done.stdout.partition(" => ")[2])


def test_every_measurement_was_made_in_the_sandbox(host):
    folder = "/var/lib/mixed_gpu/measurements"
    loads = host.run("grep -l wall_ms %s/*.json", folder).stdout.split()
    assert loads
    assert [path for path in loads if '"sandboxed": true' not in host.file(path).content_string] == []


def test_what_is_not_trusted_has_no_power(host, controller, eventually, evil):
    # the host's own address, which is not loopback
    own = host.run("hostname -I").stdout.split()[0]
    connect = f"import socket; socket.create_connection(('{own}', 8188), 2)"
    eventually(lambda: host.run("python3 -c %s", connect).rc == 0)
    answer = _module(controller, "llama_devices_info", {"llama_bench": evil, "environment": {"OWN": own}})
    said = answer["stderr"]
    assert answer["rc"] == 1
    assert "touch: cannot touch '/etc/owned': Read-only file system" in said
    assert "touch: cannot touch '/var/lib/mixed_gpu/owned': Read-only file system" in said
    assert "touch: cannot touch '/srv/models/owned': Read-only file system" in said
    assert "CONNECTED" not in said and "create_connection" in said
    assert "cannot access '/dev/kmsg'" in said
    assert "/etc/shadow: Permission denied" in said
    assert not host.file("/etc/owned").exists
    # nothing of it is left, the unit neither
    assert host.run("pgrep -f 'sleep [9]87654'").stdout == ""
    eventually(lambda: host.run("systemctl list-units --all --no-legend 'mixed-gpu-run-*'").stdout == "")


#: configures as any project does, and tries what it must not
CMAKE = """
cmake_minimum_required(VERSION 3.18)
project(evil C)
foreach(path /etc/owned /srv/models/owned /opt/llama.cpp/owned)
  execute_process(COMMAND touch ${path} RESULT_VARIABLE touched ERROR_QUIET)
  message(STATUS "write ${path}: ${touched}")
endforeach()
execute_process(COMMAND python3 -c "import socket; socket.socket()" RESULT_VARIABLE opened ERROR_QUIET)
message(STATUS "socket: ${opened}")
execute_process(COMMAND cat /etc/shadow RESULT_VARIABLE opened ERROR_QUIET OUTPUT_QUIET)
message(STATUS "shadow: ${opened}")
execute_process(COMMAND id -u OUTPUT_VARIABLE uid OUTPUT_STRIP_TRAILING_WHITESPACE)
message(STATUS "user: ${uid}")
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bin)
add_executable(llama-bench tool.c)
"""
PREFIX = "/opt/evil/prefix"


@pytest.fixture
def evil_source(host, evil):
    """Settings of a build from a source that is not to be trusted."""
    make = (
        "mkdir -p /opt/evil/site /opt/evil/x/ggml /opt/evil/x/tools && cd /opt/evil && touch x/ggml/a x/tools/a && "
        "printf %s %s > x/CMakeLists.txt && echo 'int main(void) { return 0; }' > x/tool.c && "
        "tar -cf site/source.tar x && sha256sum site/source.tar"
    )
    sha256 = host.run(make, "%s", CMAKE).stdout.split()[0]
    serve = "python3 -m http.server --bind 127.0.0.1 --directory /opt/evil/site 8123"
    assert host.run(f"systemd-run --collect --unit=evil-site {serve}").rc == 0
    yield {
        "source": "archive", "archive_url": "http://127.0.0.1:8123/source.tar", "archive_sha256": sha256,
        "archive_build_number": 7, "archive_build_commit": "abc", "packages": [], "download_dir": "/opt/evil/downloads",
        "backends": ["cpu"], "native": False, "cuda_root": "/nonexistent", "cuda_architectures": [], "nccl_root": "",
        "cmake_options": {}, "targets": ["llama-bench"], "extra_builds": [], "quick_compile": False, "web_ui": False,
        "prefix": PREFIX, "keep_builds": 2, "keep_downloads": 2, "jobs": 1, "ccache_dir": "/var/cache/ccache",
        "required_flags": {},
    }  # fmt: skip
    host.run("systemctl stop evil-site")


def test_a_build_cannot_write_elsewhere_or_reach_a_network(host, controller, evil_source):
    answer = _module(controller, "llama_cpp_build", {"state": "present", "settings": evil_source})
    assert answer.get("changed"), answer
    log = host.file(f"{PREFIX}/.work/build.log").content_string
    assert "building in a sandbox without a network" in log
    for path in ("/etc/owned", "/srv/models/owned", "/opt/llama.cpp/owned"):
        assert f"write {path}: 1" in log and not host.file(path).exists
    assert "socket: 1" in log and "shadow: 1" in log
    assert "user: 0" not in log and "user: " in log
    made = host.file(f"{PREFIX}/current/bin/llama-bench")
    assert (made.user, made.mode & 0o7777) == ("root", 0o755)
    assert host.run("find %s/.work -user root -o -print", PREFIX).stdout == ""
