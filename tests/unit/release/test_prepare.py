# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A release of this very checkout, copied: versions and notes, by antsibull-changelog itself."""

from __future__ import annotations

import pathlib
import shutil

import pytest
import yaml
from ansible_collections.homelab.mixed_gpu.tests.release import prepare


@pytest.fixture
def checkout(tmp_path: pathlib.Path) -> pathlib.Path:
    """A collection with one module, one role and two fragments, of which one speaks of what nobody had."""
    folder = tmp_path / "ansible_collections/homelab/mixed_gpu"
    (folder / "plugins/modules").mkdir(parents=True)
    (folder / "plugins/module_utils/_base").mkdir(parents=True)
    (folder / "changelogs/fragments").mkdir(parents=True)
    (folder / "roles/report/meta").mkdir(parents=True)
    (folder / "playbooks").mkdir()
    for playbook in ("plan", "site"):
        (folder / f"playbooks/{playbook}.yml").write_text("---\n[]\n", encoding="utf-8")
    for name in (
        "galaxy.yml", "changelogs/config.yaml", "plugins/modules/host_info.py", "roles/report/meta/argument_specs.yml",
        "README.md", "plugins/module_utils/_base/version.py",
    ):  # fmt: skip
        shutil.copy(prepare.ROOT / name, folder / name)
    shutil.copytree(prepare.ROOT / "plugins/doc_fragments", folder / "plugins/doc_fragments")
    (folder / "changelogs/changelog.yaml").write_text("---\nancestor: null\nreleases: {}\n", encoding="utf-8")
    for name, text in {
        "a.yml": "---\nbugfixes:\n  - module - what nobody had.\n",
        "b.yml": "---\nminor_changes:\n  - gone.\nmajor_changes:\n  - module - is there.\n"
        "add object.playbook:\n  - {name: site, description: Serve}\n",
    }.items():
        (folder / "changelogs/fragments" / name).write_text(text, encoding="utf-8")
    return folder


def text(checkout: pathlib.Path, name: str) -> str:
    return (checkout / name).read_text(encoding="utf-8")


def test_a_first_release_and_the_next(checkout: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.main(["1.0.0", str(checkout)])
    assert "prepare: no notes name plan: add it to a fragment" in capsys.readouterr().out
    assert yaml.safe_load(text(checkout, "galaxy.yml"))["version"] == "1.0.0"
    assert 'COLLECTION: t.Final = "1.0.0"\n' in text(checkout, "plugins/module_utils/_base/version.py")
    assert "\nversion_added: 1.0.0\n" in text(checkout, "plugins/modules/host_info.py")
    notes = text(checkout, "CHANGELOG.rst")
    assert "v1.0.0\n======" in notes and "- module - is there." in notes
    assert "nobody had" not in notes and "gone" not in notes
    assert "- homelab.mixed_gpu.report - Write one page" in notes and "- homelab.mixed_gpu.site - Serve" in notes
    assert "\n    version_added: 1.0.0\n" in text(checkout, "roles/report/meta/argument_specs.yml")
    assert not list((checkout / "changelogs/fragments").glob("*.yml"))

    with pytest.raises(SystemExit, match=r"1\.0\.0 was released on \d{4}-\d\d-\d\d: give a newer version"):
        prepare.main(["1.0.0", str(checkout)])

    # the next one tells what changed, and what was added before stays added before
    fragment = checkout / "changelogs/fragments/c.yml"
    fragment.write_text("---\nbugfixes:\n  - module - works.\n", encoding="utf-8")
    prepare.main(["1.0.1", str(checkout)])
    notes = text(checkout, "CHANGELOG.rst")
    assert "- module - works." in notes and "- module - is there." in notes
    assert yaml.safe_load(text(checkout, "galaxy.yml"))["version"] == "1.0.1"
    assert notes.count("homelab.mixed_gpu.report - ") == 1
    assert "\nversion_added: 1.0.0\n" in text(checkout, "plugins/modules/host_info.py")


@pytest.mark.parametrize("given", [[], [""], ["v1"]])
def test_what_is_no_version_is_refused(given: list[str]) -> None:
    with pytest.raises(SystemExit, match="give three numbers"):
        prepare.main(given)


def test_fragments_name_playbooks_that_exist() -> None:
    for file in (prepare.ROOT / "changelogs/fragments").glob("*.yml"):
        for playbook in yaml.safe_load(file.read_text(encoding="utf-8")).get("add object.playbook", []):
            assert (prepare.ROOT / f"playbooks/{playbook['name']}.yml").is_file(), (file.name, playbook["name"])
