# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import ast
import pathlib

import pytest
from ansible_collections.homelab.mixed_gpu.tests.gates import sizes


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        ("x = 1", 0),
        ("if a:\n    pass\nelif b:\n    pass\nelif c:\n    pass\nelse:\n    pass", 1),
        ("if a:\n    pass\nelse:\n    if b:\n        pass\n    x = 1", 2),
        ("for a in b:\n  with c:\n    try:\n      pass\n    except d:\n      while e:\n        f()", 4),
        ("for a in b:\n    def inner():\n        while c:\n            pass", 1),
    ],
)
def test_depth_counts_blocks_within_blocks(text: str, deep: int) -> None:
    assert sizes.depth(ast.parse(text)) == deep


def test_what_is_too_large_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.py"
    path.write_text("def long():\n" + "    pass\n" * 60 + "\n" * 340)
    assert [sentence for _name, sentence in sizes.of_code(path)] == [
        f"{path}: 401 lines, at most 400", f"{path}:1: long has 61 lines, at most 60",
    ]
    path.write_text("def fine():\n" + "    pass\n" * 59)
    assert sizes.of_code(path) == []


def test_an_exception_that_is_none_any_more_is_named(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "plugins" / "filter").mkdir(parents=True)
    (tmp_path / "plugins" / "large.py").write_text("\n" * 401)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sizes, "EXCEPTIONS", {})
    assert sizes.main() == 1
    assert capsys.readouterr().out == "plugins/large.py: 401 lines, at most 400\n"
    monkeypatch.setitem(sizes.EXCEPTIONS, "plugins/large.py", "a table")
    assert sizes.main() == 0
    monkeypatch.setitem(sizes.EXCEPTIONS, "plugins/small.py", "was a table")
    assert sizes.main() == 1
    assert capsys.readouterr().out == "plugins/small.py: is no exception any more\n"
