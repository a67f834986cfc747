# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What `make demo` checks first: with real sockets, a real forward, and stand-ins for a container engine."""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.tests.lab import demo_check

SCRIPT = pathlib.Path(demo_check.__file__)
HOST = "demo-host"


@pytest.fixture
def taken() -> t.Iterator[int]:
    """A port on 127.0.0.1 on which somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def forward(tmp_path: pathlib.Path) -> t.Iterator[int]:
    """The port of a forward as lab.sh starts and notes it."""
    for _attempt in range(10):  # somebody else may take the port first
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        command = [sys.executable, str(SCRIPT.with_name("forward.py")), "listen", str(port), "--", "true"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            if process.stdout is None or process.stdout.readline() != b"listening\n":
                continue
            (tmp_path / "forwards").mkdir()
            (tmp_path / f"forwards/{HOST}-{port}").write_text(f"{process.pid}\n")
            yield port
            process.kill()
            return
    pytest.fail("no port could be listened on")


def test_a_port_in_use_is_not_free(taken: int) -> None:
    assert not demo_check.is_free(taken)


def test_the_next_free_port() -> None:
    assert demo_check.choose_port("", [], free=lambda _port: True) == 8080
    assert demo_check.choose_port("", [], free=lambda port: port > 8082) == 8083
    with pytest.raises(demo_check.Unfit, match="No port from 8080 to 8179"):
        demo_check.choose_port("", [], free=lambda _port: False)


def test_a_port_that_was_asked_for(taken: int) -> None:
    assert demo_check.choose_port("9000", [], free=lambda _port: True) == 9000
    with pytest.raises(demo_check.Unfit, match=f"Port {taken} on 127.0.0.1 cannot be used"):
        demo_check.choose_port(str(taken), [])
    for word in ("0", "65536", "http", "-1"):
        with pytest.raises(demo_check.Unfit, match="is no port"):
            demo_check.choose_port(word, [])


def test_the_port_of_an_earlier_demo_stays(forward: int, tmp_path: pathlib.Path) -> None:
    found = demo_check.forwarded_ports(tmp_path, HOST)
    assert found == [forward] and not demo_check.is_free(forward)
    assert demo_check.choose_port("", found, free=lambda _port: True) == forward
    assert demo_check.choose_port(str(forward), found) == forward
    assert demo_check.choose_port("", [8080, 9000], free=lambda _port: False) == 8080


def test_notes_of_forwards_that_are_gone(forward: int, tmp_path: pathlib.Path) -> None:
    notes = {f"{HOST}-1": os.getpid(), f"{HOST}-2": 1 << 30, f"{HOST}-b-{forward}": os.getpid(), "other-3": os.getpid()}
    for name, process in notes.items():
        (tmp_path / "forwards" / name).write_text(str(process))
    assert demo_check.forwarded_ports(tmp_path, HOST) == [forward]


def test_python_and_memory() -> None:
    demo_check.check_python((3, 11))
    with pytest.raises(demo_check.Unfit, match=r"Python is 3\.10, .* set PYTHON"):
        demo_check.check_python((3, 10))
    demo_check.check_memory("MemFree: 1 kB\nMemAvailable:    2097152 kB\n")
    with pytest.raises(demo_check.Unfit, match="2047 MiB of memory are available, the demo needs 2048"):
        demo_check.check_memory("MemTotal: 9999999 kB\nMemAvailable: 2097151 kB\n")
    demo_check.check_memory(pathlib.Path("/proc/meminfo").read_text())


def test_disk_is_counted_once_per_file_system() -> None:
    needs = [(pathlib.Path("/cache"), 5000), (pathlib.Path("/checkout"), 1000)]
    demo_check.check_disk(needs, lambda _folder: (1, 6000))
    demo_check.check_disk(needs, lambda folder: (1, 5000) if folder.name == "cache" else (2, 1000))
    with pytest.raises(demo_check.Unfit, match="5999 MiB are free on .* /checkout, the demo needs 6000"):
        demo_check.check_disk(needs, lambda _folder: (1, 5999))


def test_the_disk_of_a_folder_that_is_not_there(tmp_path: pathlib.Path) -> None:
    assert demo_check.disk_of(tmp_path / "a/b") == demo_check.disk_of(tmp_path)


@pytest.mark.parametrize(
    ("listed", "mounts", "expected"),
    [("other", "", False), (f"{HOST}\nother", "/cache/ccache\n/cache/pip", True), (HOST, "/srv/www", None)],
)
def test_a_container_of_an_ordinary_engine(
    tmp_path: pathlib.Path, listed: str, mounts: str, expected: bool | None
) -> None:
    engine = tmp_path / "engine"
    engine.write_text(f"#!/bin/sh\n[ $1 = ps ] && echo '{listed}' || echo '{mounts}'\n")
    engine.chmod(0o755)
    if expected is None:
        with pytest.raises(demo_check.Unfit, match=f"has a container {HOST} that is none of this lab"):
            demo_check.engine_host_exists(str(engine), "image", HOST, pathlib.Path("/cache"))
    else:
        found = demo_check.engine_host_exists(str(engine), "image", HOST, pathlib.Path("/cache"))
        assert found is expected


def test_an_engine_that_cannot_be_used(tmp_path: pathlib.Path) -> None:
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\necho no daemon >&2; exit 1\n")
    engine.chmod(0o755)
    for name, image, message in [
        (str(tmp_path / "absent"), "image", "is not installed"),
        (str(engine), "", "needs LAB_IMAGE"),
        (str(engine), "image", r"does not answer \(no daemon\)"),
    ]:
        with pytest.raises(demo_check.Unfit, match=message):
            demo_check.engine_host_exists(name, image, HOST, tmp_path)


def test_the_script_names_every_problem(taken: int, tmp_path: pathlib.Path) -> None:
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "LAB_HOST": HOST, "LAB_ENGINE": str(tmp_path / "absent"),
        "MIXED_GPU_DEMO_PORT": str(taken),
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 1 and done.stdout == ""
    assert "is not installed" in done.stderr and f"Port {taken} on 127.0.0.1 cannot be used" in done.stderr


def test_the_script_prints_the_port(tmp_path: pathlib.Path) -> None:
    engine = tmp_path / "engine"
    engine.write_text("#!/bin/sh\n")
    engine.chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path), "LAB_HOST": HOST, "LAB_ENGINE": str(engine),
        "LAB_IMAGE": "image",
    }  # fmt: skip
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8080
    assert (f"http://127.0.0.1:{done.stdout.strip()}" in done.stderr) is (done.stdout != "8080\n")
