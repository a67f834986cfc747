# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What the tests of upgrades share: builds to upgrade to, and what a test host says of an upgrade."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import typing as t

import yaml
from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

PLAYBOOK = "homelab.mixed_gpu.upgrade"
RECORD = "/var/lib/mixed_gpu/upgrade.json"
#: Says whether anything was recorded or built. The watchdog may look at any time.
FOLDERS = "ls -l --time-style=full-iso --hide=watchdog /var/lib/mixed_gpu /opt/llama.cpp"
# timings vary here, and the machine computes for others: only what is much slower may count
WIDE = '--extra-vars={"revalidate_tolerance_percent": 150, "revalidate_ignore_contention": true}'
_DEFAULTS = yaml.safe_load((lab.PROJECT / "roles/llama_cpp/defaults/main.yml").read_text(encoding="utf-8"))
PINNED: t.Final[int] = _DEFAULTS["llama_cpp_sdist_build_number"]
#: The same source under another number: another build, which ccache has compiled already.
NEWER = f"--extra-vars=llama_cpp_sdist_build_number={PINNED + 1}"
_OFF = dict.fromkeys(("GGML_LLAMAFILE", "GGML_AVX", "GGML_AVX2", "GGML_BMI2", "GGML_FMA", "GGML_F16C"), False)


def extra_build(options: dict[str, bool | str]) -> str:
    """Return the option that asks for another build of the sandbox's slow device."""
    build = {"name": "slow", "targets": ["ggml-rpc-server"], "native": False, "cmake_options": {**_OFF, **options}}
    return f"--extra-vars={json.dumps({'llama_cpp_extra_builds': [build]})}"


#: The same source as a debug build without SSE4.2, many times slower; and with an option that CMake does not know.
SLOWER = extra_build({"GGML_SSE42": False, "CMAKE_BUILD_TYPE": "Debug"})
EQUAL = extra_build({"GGML_SSE42": True, "MIXED_GPU_UPGRADE_TEST": True})


#: Versions of the stand-in driver, and the options of a host that has it.
FIRST, SECOND = "580.95.05-0ubuntu0.24.04.1", "580.105.08-0ubuntu0.24.04.1"
STAND_IN = '--extra-vars={"__nvidia_driver_stand_in": true, "nvidia_driver_manage": true}'
DRIVER_SCENARIO = lab.PROJECT / "molecule" / "nvidia_driver"


def ran(host: t.Any, command: str) -> str:
    """Run a command on a host, and return what it printed."""
    done = host.run(command)
    assert done.rc == 0, done.stdout + done.stderr
    return str(done.stdout)


def driver_version(host: t.Any) -> str:
    """Return the version of the stand-in driver on a host."""
    return ran(host, "dpkg-query -W -f '${Version}' nvidia-headless-580-server-open")


def archive_driver(host: t.Any, name: str) -> None:
    """Let a host of this name in the lab be Ubuntu, with an archive of the first version of the stand-in driver."""
    packages = "apt-utils dkms dpkg-dev gpg gpg-agent initramfs-tools linux-base unattended-upgrades"
    ran(host, f"apt-get -q update && apt-get -qy install --no-install-recommends {packages}")
    source = DRIVER_SCENARIO / "files" / "archive.sh"
    argv = [lab.Controller.engine, "cp", str(source), f"{name}:/var/tmp/archive.sh"]
    subprocess.run(argv, check=True, capture_output=True)
    ran(host, "cp --dereference /etc/os-release /var/tmp/os-release.image && rm /etc/os-release")
    release = 'NAME=Ubuntu\nID=ubuntu\nVERSION_ID="24.04"\nVERSION_CODENAME=noble\n'
    assert host.run("printf %s > /etc/os-release", release).rc == 0
    ran(host, "bash /var/tmp/archive.sh first")
    ran(host, "echo 'deb [trusted=yes] file:/srv/archive ./' > /etc/apt/sources.list.d/archive.list")
    ran(host, "apt-get -q update && apt-get -qy install --no-install-recommends linux-image-generic")


class Upgrades:
    """Upgrades of one test host, given as testinfra's."""

    def __init__(self, host: t.Any, controller: lab.Controller) -> None:
        self.host = host
        self.controller = controller

    def run(self, *options: str, component: str = "llama_cpp") -> subprocess.CompletedProcess[str]:
        """Run the playbook to its end."""
        return self.controller.play(f"--extra-vars=component={component}", WIDE, *options, playbook=PLAYBOOK)

    def kill_at(self, stage: str, *options: str, component: str = "llama_cpp") -> None:
        """Run the playbook and kill it as soon as the record says that it is at a stage."""
        play = self.controller.start(f"--extra-vars=component={component}", WIDE, *options, playbook=PLAYBOOK)
        try:
            lab.eventually(lambda: self.stage() == stage or play.poll() is not None, 1200)
        finally:
            if play.poll() is None:
                os.killpg(play.pid, signal.SIGKILL)
            output = play.finish()
        assert self.stage() == stage, output[-6000:]

    def record(self) -> dict[str, t.Any]:
        """Return the record of upgrades."""
        return t.cast("dict[str, t.Any]", json.loads(self.host.file(RECORD).content_string))

    def last(self) -> dict[str, t.Any]:
        """Return the upgrade that ended last."""
        return t.cast("dict[str, t.Any]", self.record()["finished"][-1])

    def stage(self) -> str:
        """Return where the upgrade is that is under way, or an empty string."""
        found = self.host.run(f"cat {RECORD}")
        upgrade = json.loads(found.stdout)["under_way"] if found.rc == 0 else None
        return str(upgrade["stage"]) if upgrade else ""

    def links(self) -> dict[str, str]:
        """Return where the links of both builds lead."""
        return {name: self.host.run(f"readlink /opt/llama.cpp/{name}").stdout.strip() for name in ("current", "slow")}

    def runs(self, unit: str) -> str:
        """Return the directory of the build that a unit runs."""
        pid = self.host.run("systemctl show -p MainPID --value %s", unit).stdout.strip()
        # not /proc/PID/exe, which takes a capability that root of a container may lack
        return str(self.host.run("head -c 200 /proc/%s/cmdline", pid).stdout.split("/")[3])

    def serves(self, links: dict[str, str]) -> bool:
        """Whether links and running services are of these builds, and a completion is real."""
        body = json.dumps({"prompt": "One, two,", "n_predict": 2, "cache_prompt": False, "ignore_eos": True})
        answer = self.host.run(f"{lab.CURL} --max-time 20 http://127.0.0.1:8080/completion -d %s", body)
        running = [self.runs(unit) for unit in ("llama-server", "ggml-rpc-server-fast", "ggml-rpc-server-slow")]
        return (
            self.links() == links
            and running == [links["current"], links["current"], links["slow"]]
            and '"predicted_n":2' in answer.stdout
        )


def fleet(directory: pathlib.Path) -> str:
    """Return the option that puts a second host behind the first, which nobody can reach."""
    inventory = directory / "fleet.yml"
    inventory.write_text(
        "mixed_gpu: {hosts: {second: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 9}}}\n"
    )
    return f"--inventory={inventory}"


def recap(done: subprocess.CompletedProcess[str]) -> str:
    """Return the end of the output in one line."""
    return " ".join(done.stdout.rsplit("PLAY RECAP", 1)[-1].split())


def said(done: subprocess.CompletedProcess[str]) -> str:
    """Return the output with its line breaks taken out of sentences."""
    return " ".join(done.stdout.split())
