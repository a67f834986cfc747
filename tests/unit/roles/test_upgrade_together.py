# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The role upgrade over a box and a lender, with other roles that keep a file for a link: both move, or none does.

The whole run is Ansible's; roles of the same names write the files. What is refused is tried in molecule/lenders.
"""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import typing as t

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.action import upgrade_record

COLLECTION = pathlib.Path(upgrade_record.__file__).parents[2]
HERE: t.Final = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
FAIL: t.Final = "- ansible.builtin.fail: {{msg: no room}}\n  when: breaks == '{}' and inventory_hostname == 'pc2'\n"
LINKED: t.Final = "lookup('ansible.builtin.file', home ~ '/' ~ inventory_hostname)"
#: The other roles: what each of their entry points does here. b2 is the new version, the file of a host is its link.
ROLES: t.Final = {
    "cuda_toolkit/plan": "- ansible.builtin.set_fact: {cuda_toolkit_installed: {root: '', nccl_root: ''}}\n",
    "llama_cpp/plan": f"""
- ansible.builtin.set_fact:
    llama_cpp_planned:
      present: {{version: "{{{{ {LINKED} }}}}", builds: {{main: "{{{{ {LINKED} }}}}"}}}}
      wanted: "{{{{ {{'version': b2, 'builds': {{'main': b2}} if b2 else {{}}}} }}}}"
  vars: {{b2: "{{{{ '' if breaks in ['tools', 'archive'] and inventory_hostname == 'pc2' else 'b2' }}}}"}}
""",
    "llama_cpp/offer_planned": """
- ansible.builtin.set_fact: {llama_cpp_offered: {host: box}, llama_cpp_packed: {path: '', sha256: ''}}
""",
    "llama_cpp/copy_plan": """
- ansible.builtin.set_fact:
    llama_cpp_copy_planned:
      taken: "{{ breaks in ['tools', 'archive'] and llama_cpp_offer.host == 'box' }}"
      missing: "{{ breaks in ['tools', 'archive'] }}"
      why: It is copied.
      wanted: {version: b2, builds: {main: b2}}
""",
    "llama_cpp/pack": """
- ansible.builtin.fail: {msg: no archive}
  when: breaks == 'archive'
- ansible.builtin.set_fact: {llama_cpp_packed: {path: of the box, sha256: ''}}
""",
    "llama_cpp/pack_end": "[]\n",
    "llama_cpp/offered": "[]\n",
    "llama_cpp/built": FAIL.format("build")
    + """
- ansible.builtin.debug: {msg: "{{ inventory_hostname }} has the archive {{ llama_cpp_offer_archive.path }}."}
  when: llama_cpp_offer | length > 0
- ansible.builtin.set_fact: {ansible_connection: ssh, ansible_host: 127.0.0.1, ansible_port: 9}
  when: breaks == inventory_hostname
""",
    "llama_cpp/use": """
- ansible.builtin.copy: {content: "{{ llama_cpp_use.main }}", dest: "{{ home }}/{{ inventory_hostname }}", mode: "0644"}
""",
    "llama_cpp/verify": FAIL.format("switch") + "- ansible.builtin.set_fact: {llama_cpp_installed: {}}\n",
    "llama_cpp/prune": "[]\n",
    "llama_rpc/main": "- ansible.builtin.set_fact: {llama_rpc_units: []}\n",
    "llama_server/main": "- ansible.builtin.set_fact: {llama_server_url: ''}\n",
    "server_watchdog/main": "[]\n",
    "revalidate/baseline": "[]\n",
    "revalidate/accept": "[]\n",
    "revalidate/main": """
- ansible.builtin.set_fact:
    revalidate_result:
      {accepted: true, verdict: ok, summary: as before, baseline_at: then, contended: null}
""",
    "revalidate/outcome": """
- ansible.builtin.meta: end_play
  when: breaks == 'killed'
- ansible.builtin.set_fact:
    revalidate_result:
      accepted: "{{ not slow }}"
      verdict: "{{ slow | ternary('regressed', 'ok') }}"
      summary: measured
      contended: null
  vars:
    slow: "{{ breaks == 'speed' and lookup('ansible.builtin.file', home ~ '/pc2') == 'b2' }}"
""",
}
PLAY: t.Final = """
- hosts: all
  gather_facts: false
  max_fail_percentage: 0
  module_defaults:
    homelab.mixed_gpu.upgrade_record: {path: "{{ home }}/upgrade.json", fact_file: "{{ home }}/none"}
  vars: {upgrade_component: llama_cpp, upgrade_hosts: [box, pc2]}
  roles: [homelab.mixed_gpu.upgrade]
"""
SERVED: t.Final = """
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule({name: {"type": "raw"} for name in ("state", "required", "lenders", "installed")})
module.exit_json(family="llama_cpp", unit="llama-server.service")
"""
#: Says that a unit is stopped.
SYSTEMCTL: t.Final = "#!/bin/sh\necho LoadState=loaded\necho ActiveState=inactive\n"


class Together(t.NamedTuple):
    """A box and a lender on this machine."""

    home: pathlib.Path

    def run(self, breaks: str = "", on_resume: str = "continue", **of_lender: t.Any) -> str:
        """Run the role on both, and return what it said in one line."""
        hosts = {"box": HERE, "pc2": {**HERE, **of_lender}}
        (self.home / "hosts.json").write_text(json.dumps({"all": {"hosts": hosts}}))
        given = {"home": str(self.home), "breaks": breaks, "upgrade_on_resume": on_resume}
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", str(self.home / "hosts.json"), "-e", json.dumps(given),
             str(self.home / "play.yml")],
            env={**os.environ, "ANSIBLE_COLLECTIONS_PATH": str(self.home), "HOME": str(self.home),
                 "ANSIBLE_STDOUT_CALLBACK": "ansible.builtin.default", "ANSIBLE_NOCOLOR": "true",
                 "PATH": f"{self.home}:{os.environ['PATH']}"},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        return " ".join((done.stdout + done.stderr).split())

    def restore(self, files: dict[str, str], **changed: str) -> None:
        """Write the files that another run left, some of them changed."""
        for name, text in {**files, **changed}.items():
            (self.home / name).write_text(text)

    def links(self) -> tuple[str, str]:
        """Return what the links of both hosts lead to."""
        return (self.home / "box").read_text(), (self.home / "pc2").read_text()

    def record(self) -> dict[str, t.Any]:
        """Return the record, which is the box's."""
        return t.cast("dict[str, t.Any]", json.loads((self.home / "upgrade.json").read_text()))


def _write(home: pathlib.Path) -> Together:
    """Write a collection that has this role, and others in place of the other roles."""
    collection = home / "ansible_collections/homelab/mixed_gpu"
    for name, text in ROLES.items():
        role, entry = name.split("/")
        tasks = collection / "roles" / role / "tasks"
        tasks.mkdir(parents=True, exist_ok=True)
        (tasks / f"{entry}.yml").write_text(f"---\n{text}")
    (collection / "roles/upgrade").symlink_to(COLLECTION / "roles/upgrade")
    (collection / "plugins/modules").mkdir(parents=True)
    (collection / "plugins/action").mkdir()
    (collection / "meta").symlink_to(COLLECTION / "meta")
    for name in ("module_utils", "doc_fragments"):
        (collection / "plugins" / name).symlink_to(COLLECTION / "plugins" / name)
    for kind in ("modules", "action"):
        name = f"plugins/{kind}/upgrade_record.py"
        (collection / name).symlink_to(COLLECTION / name)
    for name in ("split_record", "lender_record"):
        (collection / f"plugins/modules/{name}.py").write_text(SERVED)
    (home / "systemctl").write_text(SYSTEMCTL)
    (home / "systemctl").chmod(0o755)
    (home / "play.yml").write_text(PLAY)
    for host in ("box", "pc2"):
        (home / host).write_text("b1")
    return Together(home)


@pytest.fixture
def together(tmp_path: pathlib.Path) -> Together:
    """Write both hosts, which have b1."""
    return _write(tmp_path)


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the links and the record, by name, of a run that was killed while the new version was revalidated."""
    killed = _write(tmp_path_factory.mktemp("killed"))
    said = killed.run("killed")
    assert killed.links() == ("b2", "b2"), said
    assert killed.record()["under_way"]["stage"] == "revalidating"
    return {name: (killed.home / name).read_text() for name in ("box", "pc2", "upgrade.json")}


def test_both_move_and_then_have_nothing_to_upgrade(together: Together) -> None:
    said = together.run()
    assert together.links() == ("b2", "b2"), said
    assert "on this host and the lender pc2 from b1 to b2 is done" in said
    assert together.record()["finished"][-1]["outcome"] == "kept"
    assert "b2 is what is asked for, and what this host and the lender pc2 have" in together.run()


def test_a_lender_without_tools_copies_what_the_box_has_built(together: Together) -> None:
    said = together.run("tools")
    assert "pc2 has the archive of the box." in said and "box has the archive" not in said
    assert together.links() == ("b2", "b2") and together.record()["finished"][-1]["outcome"] == "kept", said


def test_without_the_archive_of_the_box_nobody_is_switched(together: Together) -> None:
    said = together.run("archive")
    assert "failed before anything was changed (box: no archive); b1 is in use as before" in said
    assert "has the archive" not in said and together.links() == ("b1", "b1")


def test_where_the_lender_cannot_be_built_for_nobody_is_switched(together: Together) -> None:
    said = together.run("build")
    assert "failed before anything was changed (pc2: no room); b1 is in use as before" in said
    assert together.links() == ("b1", "b1") and together.record()["finished"][-1]["outcome"] == "untouched"
    assert "Record the stage of the revalidation" not in said


@pytest.mark.parametrize(("breaks", "why"), [("switch", "broken: pc2: no room"), ("speed", "regressed: measured")])
def test_what_goes_wrong_on_the_lender_brings_both_back(together: Together, breaks: str, why: str) -> None:
    said = together.run(breaks)
    assert f"b2 was not accepted ({why}), and b1 is in use again on all hosts, as before (ok: measured)" in said
    assert together.links() == ("b1", "b1") and together.record()["finished"][-1]["outcome"] == "rolled_back"


def test_what_was_interrupted_goes_on_with_both(together: Together, interrupted: dict[str, str]) -> None:
    together.restore(interrupted, box="b1")
    said = together.run()
    assert "it stopped while the new version was being revalidated" in said
    assert together.links() == ("b2", "b2") and together.record()["under_way"] is None, said
    assert together.record()["finished"][-1]["outcome"] == "kept"


def test_a_lender_that_is_away_stops_it_and_the_next_run_brings_both_back(
    together: Together, interrupted: dict[str, str]
) -> None:
    # neither version, so that going back is seen on both
    together.restore(interrupted, pc2="b0")
    before = together.record()
    said = together.run(ansible_connection="ssh", ansible_host="127.0.0.1", ansible_port=9, on_resume="rollback")
    assert "pc2 does not answer any more" in said
    assert together.links() == ("b2", "b0")
    assert together.record() == before
    said = together.run(on_resume="rollback")
    assert "it stopped while the new version was being revalidated" in said
    assert together.links() == ("b1", "b1") and together.record()["under_way"] is None, said
    assert together.record()["finished"][-1]["outcome"] == "rolled_back"


def test_without_the_box_the_lender_is_not_switched(together: Together) -> None:
    said = together.run("box")
    assert "box does not answer any more, so pc2 stays as it is" in said
    assert together.links() == ("b1", "b1")
    assert together.record()["under_way"]["stage"] == "building"
