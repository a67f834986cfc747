# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""A card is its id everywhere: no dict has a key uuid, which once was a second name of the same value."""

from __future__ import annotations

import pathlib
import re

ROOT = pathlib.Path(__file__).parents[3]
#: A quoted key, or an attribute in YAML. PyTorch's property of that name is read with getattr.
KEY = re.compile(r"""["']uuid["']|\.uuid\b""")


def test_no_dict_has_a_key_uuid() -> None:
    found = []
    for folder in ("plugins", "roles", "playbooks"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.suffix in (".py", ".yml", ".j2"):
                for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                    found += [f"{path}:{number}"] if KEY.search(line) and "getattr(" not in line else []
    assert not found
