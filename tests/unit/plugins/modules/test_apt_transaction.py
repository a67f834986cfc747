# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The module and its action plugin, with programs that answer as apt and dpkg do; the real ones are in Molecule."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.modules import apt_transaction

COLLECTIONS = pathlib.Path(apt_transaction.__file__).parents[5]
APT = """\
#!/bin/sh
echo "$*" >> {home}/asked
case "$*" in
  *update*) cat {home}/update >&2; exit 0 ;;
  *" -s "*) cat {home}/simulated; cat {home}/refused >&2; [ ! -s {home}/refused ] ;;
  *) cp {home}/pin {home}/pin.seen 2>/dev/null; . {home}/real ;;
esac
"""


@pytest.fixture
def host(tmp_path, monkeypatch):
    """A host whose apt-get says what the files in the returned directory say; a 1 and b 1 are installed, c is half."""
    for name in ("update", "simulated", "refused", "real", "asked"):
        (tmp_path / name).write_text("", encoding="utf-8")
    programs = tmp_path / "bin"
    programs.mkdir()
    packages = "installed\ta\t1\ninstalled\tb\t1\nhalf-installed\tc\t1\nconfig-files\td\t1\n"
    dpkg = f"#!/bin/sh\ncat <<'END'\n{packages}END\n"
    for name, text in (("apt-get", APT.format(home=tmp_path)), ("dpkg-query", dpkg)):
        (programs / name).write_text(text, encoding="utf-8")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    return tmp_path


@pytest.fixture
def run(call_module):
    def _run(**arguments):
        return call_module(apt_transaction, arguments)

    return _run


def asked(host):
    return (host / "asked").read_text(encoding="utf-8").splitlines()


def test_what_is_there_needs_no_apt(run, host):
    done = run(packages=["a", "b"], install={"a": "1"}, remove=["d", "nowhere"], update_lists=True)
    assert (done["changed"], done["actions"], asked(host)) == (False, [], [])


@pytest.mark.parametrize("wish", [{"packages": ["c"]}, {"install": {"a": "2"}}, {"remove": ["c"]}])
def test_a_look_says_whether_something_is_to_be_done(run, host, wish):
    assert run(**wish, look_only=True)["changed"] is True
    assert asked(host) == []


def test_one_step_installs_exact_versions_files_and_any_version_and_removes(run, host):
    (host / "simulated").write_text("Inst a [1] (2 X:1/y [amd64])\nRemv b [1]\nRemv nvidia-x [1]\n", encoding="utf-8")
    done = run(
        packages=["c"], install={"a": "2", "e": "3"}, files={"e": "/kept/e.deb"}, remove=["b"], removable="nvidia-.*",
        update_lists=True, _ansible_diff=True,
    )  # fmt: skip
    assert done["changed"] and [entry["name"] for entry in done["actions"]] == ["a", "b", "nvidia-x"]
    assert done["diff"] == {"before": "a 1\nb 1\nnvidia-x 1\n", "after": "a 2\n"}
    assert ["update" in line for line in asked(host)] == [True, False, False]
    assert all(line.endswith("install a=2 /kept/e.deb c b-") for line in asked(host)[1:])


def test_a_package_that_apt_may_not_remove_stops_the_step(run, host):
    (host / "simulated").write_text("Inst a [1] (2 X:1/y [amd64])\nRemv important [1]\n", encoding="utf-8")
    done = run(install={"a": "2"})
    assert done["failed"] and "apt would remove important as well. Nothing was changed; remove important" in done["msg"]
    assert len(asked(host)) == 1


def test_a_package_that_no_source_has_names_its_own_cure_unless_lists_could_not_be_fetched(run, host):
    (host / "refused").write_text("E: Unable to locate package cmake\n", encoding="utf-8")
    wish = {"packages": ["cmake"], "update_lists": True, "cure_unknown": "enable contrib in them"}
    known = run(**wish)["msg"]
    assert known == (
        "The package cmake could not be installed: the host's apt sources do not have cmake. Nothing was changed; "
        "enable contrib in them."
    )
    (host / "update").write_text("W: Failed to fetch http://mirror/InRelease  Could not connect\n", encoding="utf-8")
    offline = run(**wish)["msg"]
    assert "http://mirror/InRelease" in offline and offline.endswith(
        "check the host's network and its apt sources, then run the play again."
    )


def test_in_check_mode_old_package_lists_are_no_failure(run, host):
    (host / "refused").write_text("E: Unable to locate package cmake\n", encoding="utf-8")
    done = run(packages=["cmake"], update_lists=True, _ansible_check_mode=True)
    assert (done["changed"], done["actions"][0]["name"], len(asked(host))) == (True, "cmake", 1)
    assert run(packages=["cmake"], _ansible_check_mode=True)["failed"]


def test_the_pin_is_there_for_apt_and_stays(run, host):
    done = run(install={"a": "2"}, pin_path=str(host / "pin"), pin="Pin: version 2*\n")
    assert done["changed"]
    assert (host / "pin.seen").read_text() == (host / "pin").read_text() == "Pin: version 2*\n"


@pytest.mark.parametrize("before", [None, "Pin: version 1*\n"])
@pytest.mark.parametrize("fails", ["refused", "real"])
def test_the_pin_of_before_comes_back_when_the_step_fails(run, host, before, fails):
    if before:
        (host / "pin").write_text(before, encoding="utf-8")
    text = {"refused": "E: held broken packages\n", "real": "echo 'E: dpkg returned an error' >&2; exit 1\n"}
    (host / fails).write_text(text[fails], encoding="utf-8")
    done = run(install={"a": "2"}, pin_path=str(host / "pin"), pin="Pin: version 2*\n")
    assert done["failed"] and done["msg"].startswith("The package a could not be installed: ")
    assert ("Nothing was changed" in done["msg"]) is (fails == "refused")
    assert ((host / "pin").read_text() if (host / "pin").exists() else None) == before


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")
def test_the_real_apt_does_not_know_a_package_that_does_not_exist(run):
    assert run(remove=["no-such-package-at-all"])["changed"] is False
    done = run(install={"no-such-package-at-all": "1"}, _ansible_check_mode=True)
    assert done["failed"] and "do not have no-such-package-at-all. Nothing was changed" in done["msg"]


# --- the action plugin, in a play ---

PLAY = """
- hosts: localhost
  connection: local
  gather_facts: false
  vars: {{ansible_python_interpreter: {python}, ansible_async_dir: {home}/async}}
  tasks:
    - name: Install
      homelab.mixed_gpu.apt_transaction: {{packages: {packages}, label: installing tools, timeout_seconds: {timeout},
        pin_path: {home}/pin, pin: "new"}}
      register: result
      ignore_errors: true
    - name: Keep
      ansible.builtin.copy: {{content: "{{{{ result }}}}", dest: {home}/result.json, mode: "0600"}}
      check_mode: false
"""


@pytest.fixture
def play(host):
    def _play(packages, *options, timeout=60):
        text = PLAY.format(python=sys.executable, home=host, packages=packages, timeout=timeout)
        (host / "play.yml").write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", str(host / "play.yml"), *options],
            env=os.environ | {
                "HOME": str(host), "ANSIBLE_COLLECTIONS_PATH": str(COLLECTIONS), "ANSIBLE_LOCALHOST_WARNING": "false",
                "ANSIBLE_NOCOLOR": "true", "LC_ALL": "C.UTF-8",
            },
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads((host / "result.json").read_text())

    return _play


def test_a_step_runs_as_a_job_and_returns_its_own_result(play, host):
    (host / "simulated").write_text("Inst e (2 X:1/y [amd64])\n", encoding="utf-8")
    result = play(["e"])
    assert result["changed"] and result["actions"] == [{"action": "install", "name": "e", "from": "", "to": "2"}]
    assert "ansible_job_id" not in result and list((host / "async").iterdir()) == []
    assert (host / "pin").read_text() == "new"


def test_without_work_and_in_check_mode_no_job_is_started(play, host):
    assert play(["a"])["changed"] is False
    assert play(["e"], "--check")["changed"] is True
    assert not (host / "async").exists() and not (host / "pin").exists()


def test_a_step_that_takes_too_long_is_stopped_and_leaves_the_pin_of_before(play, host):
    (host / "pin").write_text("old", encoding="utf-8")
    (host / "real").write_text("sleep 300\n", encoding="utf-8")
    result = play(["e"], timeout=10)
    assert result["failed"] and result["msg"].startswith("installing tools: not finished after 10 s; the job and its")
    assert (host / "pin.seen").read_text() == "new"
    assert (host / "pin").read_text() == "old"
