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

from ansible_collections.homelab.mixed_gpu.tests.lab import controller as lab

PLAYBOOK = "homelab.mixed_gpu.upgrade"
RECORD = "/var/lib/mixed_gpu/upgrade.json"
# timings vary here, and the machine computes for others: only what is much slower may count
WIDE = '--extra-vars={"revalidate_tolerance_percent": 150, "revalidate_ignore_contention": true}'
_OFF = dict.fromkeys(("GGML_LLAMAFILE", "GGML_AVX", "GGML_AVX2", "GGML_BMI2", "GGML_FMA", "GGML_F16C"), False)


def extra_build(options: dict[str, bool | str]) -> str:
    """Return the option that asks for another build of the sandbox's slow device."""
    build = {"name": "slow", "targets": ["ggml-rpc-server"], "native": False, "cmake_options": {**_OFF, **options}}
    return f"--extra-vars={json.dumps({'llama_cpp_extra_builds': [build]})}"


#: The same source as a debug build without SSE4.2, many times slower; and with an option that CMake does not know.
SLOWER = extra_build({"GGML_SSE42": False, "CMAKE_BUILD_TYPE": "Debug"})
EQUAL = extra_build({"GGML_SSE42": True, "MIXED_GPU_UPGRADE_TEST": True})


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
