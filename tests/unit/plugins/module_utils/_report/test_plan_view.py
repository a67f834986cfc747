# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The page of a plan that has no prediction; pages of the others are among the tests of the playbook."""

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._report import plan_view


def test_a_plan_that_ends_in_a_sentence_is_shown_as_its_lines() -> None:
    line = "No prediction: /wrong.gguf does not exist yet."
    shown = plan_view.view({"needed": True, "activate": False, "lines": [line], "why": line})
    assert shown == {"title": "No prediction", "sentences": [], "pictures": [], "lines": [line]}
    with pytest.raises(KeyError):
        plan_view.view({"msg": "no plan"})
