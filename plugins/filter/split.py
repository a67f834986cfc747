# SPDX-License-Identifier: GPL-3.0-or-later
# GNU General Public License v3.0+ (see COPYING or https://www.gnu.org/licenses/gpl-3.0.txt)
"""Filters on splits and cards. Each is documented in a file of its name beside this one."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError


def tensor_split(layers: t.Any, program: str) -> str:
    """Return the split as C(program) wants it; AnsibleFilterError for an unknown program or for what is no split."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._split import layer_split

    try:
        return layer_split.render_tensor_split(layers, program)
    except ValueError as error:
        raise AnsibleFilterError(f"tensor_split: {error}") from None


def lent_cards(names: t.Iterable[str], variables: t.Mapping[str, t.Any], box: str, boxes: t.Any) -> list[str]:
    """Return the cards that hosts lend to a box, as their variables say."""
    from ansible_collections.homelab.mixed_gpu.plugins.module_utils._preflight import lender_group

    return lender_group.lent_cards(box, {name: variables[name] for name in names}, boxes)


class FilterModule:
    """Filters on splits and cards."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Return the filters by name."""
        return {"lent_cards": lent_cards, "tensor_split": tensor_split}
