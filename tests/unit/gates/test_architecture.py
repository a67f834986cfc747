# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""What docs/architecture.md names is there: the page sends newcomers to files."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def test_every_file_that_the_page_names_exists() -> None:
    rooms = re.findall(r"`(?:_[a-z_]+/)?[a-z_]+\.py`", TEXT)
    others = re.findall(r"`((?:roles|playbooks|plugins|tests|inventories)/[a-zA-Z0-9_/.]+\.[a-z0-9]+)`", TEXT)
    assert len(rooms) > 25 and len(others) > 5
    missing = [name for name in others if not (ROOT / name).is_file()]
    # a name without a room is of the room before it
    for row in TEXT.splitlines():
        room = ""
        for named, file in re.findall(r"`(?:(_[a-z_]+)/)?([a-z_]+\.py)`", row):
            room = named or room
            missing += [] if (ROOT / "plugins" / "module_utils" / room / file).is_file() else [f"{room}/{file}"]
    assert missing == []


def test_the_functions_and_modules_that_the_page_names_exist() -> None:
    for file, function in (("_split/memory_plan.py", "why_nothing_fits"), ("_planner/stages.py", "plan")):
        assert f"def {function}(" in (ROOT / "plugins" / "module_utils" / file).read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}
    assert {"split_tuning_info", "split_benchmark", "split_record", "measurement_lease", "campaign"} <= modules
