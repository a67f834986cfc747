# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)

from __future__ import annotations

import pytest
from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import expert_memory

MEMORY = expert_memory.Bounds((900, 800), (700, 0), (800, None))


def test_a_bound_is_as_likely_anywhere_between_what_was_held_and_what_was_too_much() -> None:
    assert expert_memory.chance(MEMORY, [700, 800]) == 1
    assert expert_memory.chance(MEMORY, [750, 800]) == pytest.approx(0.5)
    assert expert_memory.chance(MEMORY, [800, 800]) == 0 == expert_memory.chance(MEMORY, [850, 1])


def test_only_devices_that_were_full_and_have_held_something_are_looked_at_again() -> None:
    assert expert_memory.at(MEMORY, 0.0, [900, 800]) == (700, 800)
    assert expert_memory.at(MEMORY, 1.0, [900, 800]) == (799, 800)
    nothing_held = MEMORY._replace(held=(0, 0))
    assert expert_memory.at(nothing_held, 0.5, [900, 800]) == (900, 800)
