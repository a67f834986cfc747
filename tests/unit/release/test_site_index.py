# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The lists of pages of the documentation site. Sphinx refuses a page that one list names twice, or that is missing."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).resolve().parents[3]
SITE = ROOT / "tests/release/site"


def lists() -> list[list[str]]:
    """Return the pages that each list of the first page names, without globs and what the build makes."""
    found = []
    for body in re.findall(r"```\{toctree\}\n(.*?)```", (SITE / "index.md").read_text(encoding="utf-8"), re.DOTALL):
        lines = [line for line in body.splitlines() if line and not line.startswith(":") and "*" not in line]
        pages = [match[1] if (match := re.search(r"<(.*)>", line)) else line for line in lines]
        found.append([page for page in pages if not page.startswith("reference/")])
    return found


def test_each_list_names_a_page_once_and_the_page_is_there():
    for pages in lists():
        assert sorted(pages) == sorted(set(pages))
        for page in pages:
            places = [folder / f"{page}{ending}" for folder in (SITE, ROOT) for ending in (".md", ".rst")]
            assert any(place.is_file() for place in places), page
    assert any("docs/operating" in pages for pages in lists())
