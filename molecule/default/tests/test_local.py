"""Ansible on the box itself: the built collection, installed there, with ansible_connection local."""

from __future__ import annotations

import importlib.metadata
import re
import subprocess

import pytest

HOME = "/opt/controller"


@pytest.fixture(scope="module")
def box(host, controller, tmp_path_factory):
    """Put Ansible, the built collection and the scenario's inventory on the host; return its host."""
    build = tmp_path_factory.mktemp("build")
    subprocess.run(
        ["ansible-galaxy", "collection", "build", "--output-path", str(build)],
        cwd=controller.project,
        check=True,
        capture_output=True,
    )
    assert host.run(f"mkdir -p {HOME}").rc == 0
    tarball = sorted(build.glob("*.tar.gz"))[0]
    for source in (
        tarball,
        controller.project / "inventories" / "sandbox",
        controller.project / "molecule" / "default" / "variables.yml",
    ):
        target = f"{controller.host_name}:{HOME}/"
        subprocess.run([controller.engine, "cp", str(source), target], check=True, capture_output=True)
    # the report's chart is drawn on the controller, which is this host now
    packages = ("ansible-core", "matplotlib", "pytest", "hypothesis", "gguf", "numpy")
    wanted = [f"{name}=={importlib.metadata.version(name)}" for name in packages]
    for command in (
        f"/opt/mixed_gpu/venv/bin/python -m venv {HOME}/venv",
        f"{HOME}/venv/bin/pip install -q --disable-pip-version-check {' '.join(wanted)}",
        f"LC_ALL=C.UTF-8 {HOME}/venv/bin/ansible-galaxy collection install --offline -p {HOME}/collections"
        f" {HOME}/{tarball.name}",
    ):
        done = host.run(command)
        assert done.rc == 0, done.stdout + done.stderr
    yield host
    host.run(f"rm -rf {HOME}")


def test_the_site_playbook_runs_on_the_box_itself_and_finds_nothing_to_change(box):
    done = box.run(
        f"cd {HOME} && LC_ALL=C.UTF-8 LAB_CONNECTION=local ANSIBLE_COLLECTIONS_PATH={HOME}/collections"
        f" {HOME}/venv/bin/ansible-playbook -i sandbox -e @variables.yml homelab.mixed_gpu.site"
    )
    assert done.rc == 0, done.stdout[-4000:] + done.stderr[-2000:]
    # the report is new on this controller; on the host itself nothing changes
    changed = re.findall(r"TASK \[([^\]]+)\] \**\nchanged:", done.stdout)
    assert all(task.startswith("homelab.mixed_gpu.report") for task in changed), changed
    assert box.file(f"{HOME}/reports/sandbox.html").exists


def test_what_needs_the_real_llama_cpp_holds(box, controller):
    """The unit tests with the mark live: ratios, dry run, split mode tensor on the real programs."""
    # the tests belong to no release, but know themselves as a part of the collection
    collection = f"{HOME}/collections/ansible_collections/homelab/mixed_gpu"
    for name in ("tests", "LICENSE", "pyproject.toml"):
        target = f"{controller.host_name}:{collection}/{name}"
        command = [controller.engine, "cp", str(controller.project / name), target]
        subprocess.run(command, check=True, capture_output=True)
    current = "/opt/llama.cpp/current/bin"
    done = box.run(
        f"cd {collection} && LC_ALL=C.UTF-8 PYTHONPATH={HOME}/collections MIXED_GPU_LLAMA_BIN={current}"
        f" {HOME}/venv/bin/python -m pytest -q -m 'live and not link' $(grep -rlE 'mark[.]live' tests/unit)"
    )
    assert done.rc == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert re.search(r"\n\d+ passed, \d+ deselected in ", done.stdout), done.stdout[-2000:]
