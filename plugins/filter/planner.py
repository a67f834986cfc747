# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters for plans. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError


def split_plan(problem: t.Any, loads: t.Any) -> dict[str, t.Any]:
    """Return the plan for a problem and its loads; AnsibleFilterError names the field that is wrong."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._planner import stages

    try:
        return stages.plan(problem, loads)
    except ValueError as error:
        raise AnsibleFilterError(f"split_plan: {error}; docs/data_formats.md says what belongs there") from None


def lent_cards(names: t.Iterable[str], variables: t.Mapping[str, t.Any], box: str, boxes: t.Any) -> list[str]:
    """Return the cards that hosts lend to a box, as their variables say."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import lender_group

    return lender_group.lent_cards(box, {name: variables[name] for name in names}, boxes)


class FilterModule:
    """Filters for plans."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"lent_cards": lent_cards, "split_plan": split_plan}
