# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
from __future__ import annotations

import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "bench"))

import site_cost

LOG = """
TASK [a : b | Install c] ***
ok: [sandbox] => {"changed": false}

PLAY RECAP *********************
sandbox : ok=200  changed=%d  unreachable=0  failed=0  skipped=17  rescued=0  ignored=0
seconds=%s
"""


def test_a_run_that_changed_nothing() -> None:
    assert site_cost.read(LOG % (0, 57.2)) == site_cost.Run(57.2, 200, 17)


def test_a_run_that_changed_something_is_no_measurement() -> None:
    with pytest.raises(ValueError, match="did not leave everything as it was: .*'changed': 3"):
        site_cost.read(LOG % (3, 57.2))


def test_the_medians_are_compared() -> None:
    text = site_cost.text_of("abc", {
        "before": [site_cost.Run(seconds, 200, 17) for seconds in (60, 61, 90)],
        "after": [site_cost.Run(seconds, 80, 7) for seconds in (18.3, 18, 30)],
    })  # fmt: skip
    assert "| before (`abc`) | 61.0 | 60.0 61.0 90.0 | 200 | 17 |" in text
    assert "**0.30** of the seconds" in text
