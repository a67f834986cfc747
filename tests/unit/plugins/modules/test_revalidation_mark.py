# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The mark "needs revalidation": what the hook writes, and what the modules say of it and do with it."""

from __future__ import annotations

import json

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._driver import driver_mark, driver_packages
from ansible_collections.homelab.mixed_gpu.plugins.modules import revalidation_mark, revalidation_mark_info

OLD = "580.95.05-0ubuntu0.24.04.1"
NEW = "580.105.08-0ubuntu0.24.04.1"
NAME = "nvidia-utils-580-server"
LATER = "2026-11-25T18:20:36Z"


def dpkg(*packages):
    """What dpkg-query prints, of (name, version, source)."""
    assert driver_packages.DPKG_FORMAT.count("\t") == 5
    return "".join(
        f"install\tinstalled\t{name}\tamd64\t{version}\t{source}\n" for name, version, source in packages
    )


@pytest.fixture
def apt(tmp_path):
    """An operation of apt: the hook before and after it."""
    mark, seen = tmp_path / "lib" / "mark.json", tmp_path / "lib" / "seen.json"

    def _apt(before, after, now=LATER):
        assert driver_mark.hook("before", str(mark), str(seen), dpkg(*before), now) is None
        return driver_mark.hook("after", str(mark), str(seen), dpkg(*after), now)

    _apt.mark, _apt.seen = mark, seen
    return _apt


def driver(version):
    return [(NAME, version, "nvidia-graphics-drivers-580-server")]


def run(capfd, module, **arguments):
    with patch_module_args(arguments), pytest.raises(SystemExit):
        module.main()
    return json.loads(capfd.readouterr().out)


def test_an_upgrade_marks_the_host_also_where_nothing_was_known(apt):
    news = apt(driver(OLD), driver(NEW))
    assert NAME in news and driver_mark.CURE in news
    assert json.loads(apt.mark.read_text()) == {
        "schema": 1, "since": LATER, "packages": [{"name": NAME, "from": OLD, "to": NEW}]
    }
    assert apt.mark.stat().st_mode & 0o777 == 0o644


def test_packages_that_are_no_driver_mark_nothing(apt):
    assert apt([("vim", "1", "vim")], [("vim", "2", "vim"), ("nvidia-container-toolkit", "1", "x")]) is None
    assert not apt.mark.exists()


def test_a_removal_and_a_change_by_dpkg_alone_are_found_by_the_next_operation(apt):
    apt(driver(OLD), driver(OLD))
    apt([], [])
    assert json.loads(apt.mark.read_text())["packages"] == [{"name": NAME, "from": OLD, "to": None}]


def test_several_changes_are_one_way_from_the_first_and_the_way_back_ends_it(apt):
    apt(driver("1"), driver("2"), "2026-11-20T00:00:00Z")
    apt(driver("2"), driver("3"))
    assert json.loads(apt.mark.read_text()) == {
        "schema": 1, "since": "2026-11-20T00:00:00Z", "packages": [{"name": NAME, "from": "1", "to": "3"}]
    }
    assert "again the one" in apt(driver("3"), driver("1"))
    assert not apt.mark.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 2}', '{"schema": 1, "since": 3, "packages": []}'])
def test_a_damaged_mark_is_a_mark_and_is_replaced(apt, capfd, text):
    apt(driver("1"), driver("1"))
    apt.mark.write_text(text)
    state = run(capfd, revalidation_mark_info, path=str(apt.mark))
    assert state["needed"] is True and "damaged" in state["why"]
    apt(driver("1"), driver("2"))
    assert run(capfd, revalidation_mark_info, path=str(apt.mark))["packages"][0]["to"] == "2"


@pytest.mark.parametrize("text", ["", "{", '{"packages": 3}'])
def test_damaged_knowledge_of_what_was_there_is_made_anew(apt, text):
    apt(driver("1"), driver("1"))
    apt.seen.write_text(text)
    assert NAME in apt(driver("1"), driver("2"))


def test_info_warns_and_names_the_command(capfd, apt, monkeypatch):
    warnings = []
    monkeypatch.setattr(AnsibleModule, "warn", lambda self, warning: warnings.append(warning))
    apt(driver(OLD), driver(NEW))
    result = run(capfd, revalidation_mark_info, path=str(apt.mark))
    assert result["why"].startswith("the driver changed at") and result["packages"][0]["from"] == OLD
    run(capfd, revalidation_mark_info, path=str(apt.mark), warn=False)
    assert run(capfd, revalidation_mark_info, path=str(apt.seen.parent / "none"))["needed"] is False
    assert warnings == [f"T{result['why'][1:]}. Revalidate with: {result['cure']}"]


def test_marking_and_taking_it_away(capfd, tmp_path):
    path = str(tmp_path / "new" / "mark.json")
    packages = [{"name": NAME, "from": OLD, "to": NEW}]
    shown = run(capfd, revalidation_mark, path=path, packages=packages, _ansible_check_mode=True, _ansible_diff=True)
    assert shown["changed"] and NEW in shown["diff"]["after"] and not (tmp_path / "new").exists()
    assert run(capfd, revalidation_mark, path=path, packages=packages)["changed"] is True
    assert run(capfd, revalidation_mark, path=path)["changed"] is False
    assert run(capfd, revalidation_mark, path=path, state="absent", _ansible_check_mode=True)["changed"] is True
    assert run(capfd, revalidation_mark, path=path, state="absent")["mark"] is None
    assert run(capfd, revalidation_mark, path=path, state="absent")["changed"] is False
    assert "needs name" in run(capfd, revalidation_mark, path=path, packages=[{"name": NAME}])["msg"]


def test_words():
    def said(*packages):
        return driver_mark.sentence({"schema": 1, "since": LATER, "packages": list(packages)})

    assert "(a 1 -> 2)" in said({"name": "a", "from": "1", "to": "2"})
    both = said({"name": "a", "from": None, "to": "2"}, {"name": "b", "from": "1", "to": None})
    assert "(a 2 was installed, b 1 was removed)" in both
    assert "and 2 more packages" in said(*({"name": name, "from": "1", "to": "2"} for name in "abc"))
    assert "marked" in said()
